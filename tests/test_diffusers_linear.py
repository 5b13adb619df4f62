"""Linear multistep classes against stock: PNDM (Runge-Kutta calls and linear ones) and LMS."""

from __future__ import annotations

from typing import Any

import pytest
import torch

pytest.importorskip("diffusers")
from .lockstep import network, scaled, start
from .wide import (
    DIGITS,
    OURS,
    PREDICTIONS,
    REMAPS,
    SHAPE,
    SPACINGS,
    compare,
    errors,
    inpaint,
    made,
    product,
    reference_run,
    runs,
    widen,
)

PNDM, LMS = "PNDMScheduler", "LMSDiscreteScheduler"
KINDS: list[dict[str, Any]] = [{"skip_prk_steps": skip} for skip in (True, False)]
NAMES = [PNDM, *([LMS] if LMS in OURS else [])]
needs_lms = pytest.mark.skipif(LMS not in OURS, reason="needs SciPy")


def configs(name: str) -> list[dict[str, Any]]:
    if name == LMS:
        return [*product(PREDICTIONS, REMAPS), *SPACINGS[1:]]
    return product(KINDS, SPACINGS, PREDICTIONS[:2], [{"set_alpha_to_one": one} for one in (True, False)])


@pytest.mark.parametrize("name", NAMES)
def test_formulas(name: str) -> None:
    """Every result of every step, stock in float64 against ours: 2^-40."""
    for config in configs(name):
        for steps in (1, 2, 3, 5, 10, *((25,) if config == configs(name)[0] else ())):
            if steps > 3 or runs(name, steps, config):
                assert compare(name, steps, config) <= DIGITS, (config, steps)


@pytest.mark.parametrize("name", NAMES)
def test_edited_states_and_starts_in_the_middle(name: str) -> None:
    for config in KINDS if name == PNDM else [{}]:
        for options in ({"edit": inpaint}, {"first": 1}, {"first": 2}, {"first": 5, "edit": inpaint}):
            assert compare(name, 8, config, **options) <= DIGITS  # type: ignore[arg-type]
            assert compare(name, 8, config, dtype=torch.float32, **options) <= 64  # type: ignore[arg-type]


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
def test_roundings(name: str, dtype: torch.dtype) -> None:
    """Against float64 on the same rounded inputs: a few roundings of the largest number, and less than stock in half
    precision."""
    chosen = KINDS if name == PNDM else [{}, *REMAPS[1:]]
    found = [pair for config in chosen for pair in errors(name, 10, dtype, config, inpaint)]
    ours, stock = (sum(pair[k] for pair in found) / len(found) for k in (0, 1))
    assert max(error for error, _ in found) <= 4
    assert dtype is torch.float32 or ours <= stock


@needs_lms
@pytest.mark.parametrize("order", [1, 2, 3, 5, 6, 7, 8])
def test_lms_orders(order: int) -> None:
    """8 slopes are more than a row can read: those steps are stock's own."""
    for options in ({}, {"first": 3, "begin": True}, {"first": 6, "edit": inpaint}):
        assert compare(LMS, 11, {}, order=order, **options) <= DIGITS  # type: ignore[arg-type]


@needs_lms
def test_lms_order_may_change() -> None:
    schedulers = [widen(s) for s in (made(LMS, 9, {}), made(LMS, 9, {}, OURS[LMS]))]
    states = [start(*SHAPE, dtype=torch.float64)] * 2
    for i, t in enumerate(schedulers[0].timesteps):
        order = (4, 4, 3, 4, 2, 2, 4, 4, 1)[i]
        for k, s in enumerate(schedulers):
            e = network(scaled(s, states[k], t), i)
            states[k] = s.step(e, t, states[k], order=order, return_dict=False)[0]
        torch.testing.assert_close(states[1], states[0], rtol=1e-11, atol=1e-11)
        assert len(schedulers[0].derivatives) == len(schedulers[1].derivatives)


@needs_lms
def test_lms_weights_are_integrals() -> None:
    """Slopes that are a cubic in sigma are integrated exactly: nothing of the quadrature's 1e-4 is left."""
    ours = widen(made(LMS, 8, {}, OURS[LMS]))
    sigmas = ours.sigmas
    x = torch.zeros(1, 1, 1, 1, dtype=torch.float64)
    for i, t in enumerate(ours.timesteps):
        ours.scale_model_input(x, t)
        before, x = x, ours.step((sigmas[i] / 10) ** 3 * torch.ones_like(x), t, x, return_dict=False)[0]
        if i >= 3:
            want = before + 2.5 * ((sigmas[i + 1] / 10) ** 4 - (sigmas[i] / 10) ** 4)
            torch.testing.assert_close(x, want, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("skip", [True, False])
def test_pndm_outputs_from_outside(skip: bool) -> None:
    """Lists that a caller assigned are the history, for the separate methods too."""
    for count in (1, 2, 3, 4, 6):
        if not skip and count < 3:
            continue
        schedulers = [made(PNDM, 10, {"skip_prk_steps": skip}, cls) for cls in (None, OURS[PNDM])]
        for counter in (1, 2):
            results = []
            for s in schedulers:
                s.ets, s.counter = [start(*SHAPE, seed=k) for k in range(count)], counter
                s.cur_sample = start(*SHAPE, seed=20)
                e, x = start(*SHAPE, seed=21), start(*SHAPE, seed=22)
                results.append(s.step_plms(e, 400, x, return_dict=False)[0])
            torch.testing.assert_close(results[1], results[0], rtol=1e-5, atol=1e-5)
            assert len(schedulers[0].ets) == len(schedulers[1].ets)


def test_pndm_multistep_needs_a_history() -> None:
    ours, x = made(PNDM, 10, {}, OURS[PNDM]), start(*SHAPE)
    with pytest.raises(ValueError, match="can only be run AFTER scheduler has been run in 'prk' mode"):
        ours.step_plms(x, 400, x)
    with pytest.raises(ValueError, match="you need to run 'set_timesteps'"):
        OURS[PNDM]().step_plms(x, 400, x)


@pytest.mark.parametrize("skip", [True, False])
@pytest.mark.parametrize("spacing", ["linspace", "leading", "trailing"])
def test_pndm_follows_its_grid_in_exact_mode(spacing: str, skip: bool) -> None:
    """Data that is one point: eps_hat is constant along the true path, which a run then follows to the last digit if
    every step ends where the next one begins.  Stock subtracts T // N whatever the grid."""
    point, noise = start(*SHAPE, dtype=torch.float64), start(*SHAPE, dtype=torch.float64, seed=1)
    worst = {}
    for mode in ("strict", "exact"):
        ours = OURS[PNDM](timestep_spacing=spacing, skip_prk_steps=skip).use(mode=mode)
        ours.set_timesteps(7)
        table, x = ours.alphas_cumprod.double(), None
        worst[mode] = 0.0
        for i, t in enumerate(ours.timesteps.tolist()):
            here = table[t].sqrt() * point + (1 - table[t]).sqrt() * noise
            x = here if x is None else x
            if not (skip and i == 1):  # the second call of the linear part is told a time it has not reached
                worst[mode] = max(worst[mode], float((x - here).abs().max()))
            x = ours.step(noise, t, x, return_dict=False)[0]
    assert worst["exact"] <= 1e-9
    assert (worst["strict"] > 1e-3) == (spacing != "leading")


def test_no_copies_while_a_run_goes() -> None:
    """Rows of a run that begins inside the grid are made together, at its first step."""
    for name, config in ((PNDM, KINDS[0]), (PNDM, KINDS[1]), *(((LMS, {}),) if LMS in OURS else ())):
        for first in (0, 1, 2, 5):
            ours, x = made(name, 9, config, OURS[name]), start(*SHAPE)
            counts = []
            for i, t in enumerate(ours.timesteps[first:]):
                scaled(ours, x, t)
                x = ours.step(network(x, i), t, x, return_dict=False)[0]
                counts.append(len(ours._rows().recipes))
            assert len(set(counts)) == 1, (name, first)


def test_values_of_the_stock_suite() -> None:
    total, mean = reference_run(OURS[PNDM](), 10, scale=False)
    assert abs(total - 198.1318) <= 1e-2 and abs(mean - 0.2580) <= 1e-3
    if LMS in OURS:
        config = {"num_train_timesteps": 1100, "beta_start": 0.0001, "beta_end": 0.02, "beta_schedule": "linear"}
        total, mean = reference_run(OURS[LMS](**config), 10, scale=True)
        assert abs(total - 1006.388) <= 1e-2 and abs(mean - 1.31) <= 1e-3
        total, mean = reference_run(OURS[LMS](**config, use_karras_sigmas=True), 10, scale=True)
        assert abs(total - 3812.9927) <= 2e-2
