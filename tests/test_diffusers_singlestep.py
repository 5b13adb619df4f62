"""Singlestep DPM-Solver against stock: orders, algorithms, starts inside a group, edited states, exact mode."""

from __future__ import annotations

from typing import Any

import pytest
import torch

pytest.importorskip("diffusers")
import diffusers

from .lockstep import network, start
from .wide import DIGITS, OURS, PREDICTIONS, REMAPS, SHAPE, compare, errors, inpaint, made, product, reference_run, runs

NAME = "DPMSolverSinglestepScheduler"
ALGORITHMS = ("dpmsolver++", "sde-dpmsolver++", "dpmsolver")
LAST = {"dpmsolver": "sigma_min"}


@pytest.fixture(autouse=True, scope="module")
def _quiet() -> Any:
    """Stock warns of every change to ``lower_order_final``."""
    level = diffusers.utils.logging.get_verbosity()
    diffusers.utils.logging.set_verbosity_error()
    yield
    diffusers.utils.logging.set_verbosity(level)


def solvers(algorithm: str) -> list[dict[str, Any]]:
    kinds = product(
        [{"solver_order": order} for order in (1, 2, 3)],
        [{"solver_type": kind} for kind in ("midpoint", "heun")],
        [{"lower_order_final": lower} for lower in (True, False)],
    )
    return [{"algorithm_type": algorithm, "final_sigmas_type": LAST.get(algorithm, "zero"), **kind} for kind in kinds]


@pytest.mark.parametrize("algorithm", ALGORITHMS)
def test_formulas(algorithm: str) -> None:
    """Every state of every run, stock in float64 against ours: 2^-40."""
    for config in product(solvers(algorithm), PREDICTIONS):
        for steps in (1, 2, 3, 5, 10):
            assert compare(NAME, steps, config) <= DIGITS, (config, steps)
    for config in solvers(algorithm):
        assert compare(NAME, 25, config) <= DIGITS, config


OTHERS: list[dict[str, Any]] = [
    *REMAPS[1:],
    {"use_flow_sigmas": True, "prediction_type": "flow_prediction", "flow_shift": 3.0},
    {"variance_type": "learned_range"},
    {"thresholding": True, "sample_max_value": 2.0, "dynamic_thresholding_ratio": 0.8},
    {"lambda_min_clipped": -5.1, "beta_schedule": "squaredcos_cap_v2"},
    {"final_sigmas_type": "sigma_min"},
]


@pytest.mark.parametrize("config", OTHERS, ids=str)
def test_configurations(config: dict[str, Any]) -> None:
    for steps in (1, 2, 3, 6, 25):
        for order in (2, 3):
            if runs(NAME, steps, {"solver_order": order, **config}):
                assert compare(NAME, steps, {"solver_order": order, **config}) <= DIGITS
                assert compare(NAME, steps, {"solver_order": order, **config}, dtype=torch.float32) <= 64


@pytest.mark.parametrize("algorithm", ALGORITHMS)
def test_edited_states_and_starts_in_the_middle(algorithm: str) -> None:
    """A run that begins inside a group has fewer outputs than the group's order; stock lowers the order."""
    for config in solvers(algorithm):
        for first in (0, 1, 2, 3, 4):
            for begin in (True, False):
                assert compare(NAME, 9, config, first=first, begin=begin, edit=inpaint) <= DIGITS


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("algorithm", ["dpmsolver++", "dpmsolver"])
def test_roundings(algorithm: str, dtype: torch.dtype) -> None:
    """Against float64 on the same rounded inputs; the eps form multiplies by alpha'/alpha what cancels later, so
    there only stock's error is a measure."""
    found = [pair for config in solvers(algorithm) for pair in errors(NAME, 10, dtype, config, inpaint)]
    ours, stock = (sum(pair[k] for pair in found) / len(found) for k in (0, 1))
    if algorithm == "dpmsolver++":
        assert max(error for error, _ in found) <= 6
    assert dtype is torch.float32 or ours <= stock


def test_learned_variance_without_thresholding() -> None:
    ours = made(NAME, 4, {"variance_type": "learned"}, OURS[NAME])
    x, e = start(*SHAPE), start(2, 6, 4, 4, seed=1)
    assert ours.step(e, ours.timesteps[0], x).prev_sample.shape == x.shape


def test_outputs_from_outside() -> None:
    """A list that a caller assigned is the history."""
    schedulers = made(NAME, 9, {"solver_order": 3}), made(NAME, 9, {"solver_order": 3}, OURS[NAME])
    x, e, results = start(*SHAPE), start(*SHAPE, seed=1), []
    for s in schedulers:
        s.model_outputs = [start(*SHAPE, seed=k) for k in (5, 6, 7)]
        s.sample, s._step_index = start(*SHAPE, seed=8), 2
        results.append(s.step(e, s.timesteps[2], x, return_dict=False)[0])
    torch.testing.assert_close(results[1], results[0], rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(schedulers[1].model_outputs, schedulers[0].model_outputs, rtol=1e-4, atol=1e-4)


def test_third_order_sde_in_exact_mode() -> None:
    """x0_hat that is a parabola in log-SNR is integrated exactly by three nodes; stock has the wrong sign in the heun
    form."""
    results = {}
    for mode in ("strict", "exact"):
        ours = OURS[NAME](
            solver_order=3, solver_type="heun", algorithm_type="sde-dpmsolver++", prediction_type="sample"
        )
        ours.use(mode=mode).set_timesteps(9)
        rho = ours.sigmas.double()[:4]
        lam = -torch.log(rho)
        x, draws = torch.zeros(1, 1, 1, 1, dtype=torch.float64), torch.Generator().manual_seed(0)
        for i in range(3):
            output = ((lam[i] - lam[0]) ** 2).expand_as(x).clone()
            x = ours.step(output, ours.timesteps[i], x, generator=draws).prev_sample
        again = torch.Generator().manual_seed(0)
        xi = [torch.randn(x.shape, generator=again, dtype=torch.float64) for _ in range(3)]
        results[mode] = x
    alpha, h = 1 / (1 + rho[3] ** 2) ** 0.5, lam[3] - lam[0]
    s = torch.linspace(0, 1, 200_001, dtype=torch.float64) * h
    integral = torch.trapezoid(2 * torch.exp(-2 * (h - s)) * s**2, s)
    want = alpha * integral + rho[3] * alpha * (1 - torch.exp(-2 * h)) ** 0.5 * xi[2]
    torch.testing.assert_close(results["exact"], want, rtol=1e-8, atol=1e-8)
    assert (results["strict"] - want).abs().max() > 0.1


def test_exact_mode_draws_nothing_for_clean_data() -> None:
    for mode in ("strict", "exact"):
        ours = OURS[NAME](algorithm_type="sde-dpmsolver++").use(mode=mode)
        ours.set_timesteps(4)
        x, draws = start(*SHAPE), torch.Generator().manual_seed(1)
        for i, t in enumerate(ours.timesteps):
            before = draws.get_state()
            x = ours.step(network(x, i), t, x, generator=draws, return_dict=False)[0]
            assert torch.equal(before, draws.get_state()) == (mode == "exact" and i == 3)


@pytest.mark.parametrize(
    ("config", "mean"),
    [
        ({}, 0.2791),
        ({"use_karras_sigmas": True}, 0.2248),
        ({"prediction_type": "v_prediction"}, 0.1453),
        ({"prediction_type": "v_prediction", "use_karras_sigmas": True}, 0.0649),
    ],
    ids=str,
)
def test_values_of_the_stock_suite(config: dict[str, Any], mean: float) -> None:
    scheduler = OURS[NAME](final_sigmas_type="sigma_min", **config)
    assert abs(reference_run(scheduler, 10, scale=False)[1] - mean) <= 1e-4
