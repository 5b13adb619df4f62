"""Classes with two calls per step against stock: Heun, KDPM2, KDPM2 ancestral, DPM-Solver SDE, flow Heun."""

from __future__ import annotations

import copy
import pickle
from typing import Any

import pytest
import torch

pytest.importorskip("diffusers")
import diffusers

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
)

HEUN, KDPM, KDPM_A = "HeunDiscreteScheduler", "KDPM2DiscreteScheduler", "KDPM2AncestralDiscreteScheduler"
FLOW, SDE = "FlowMatchHeunDiscreteScheduler", "DPMSolverSDEScheduler"
CHURN = {"s_churn": 3.0, "s_tmin": 0.2, "s_tmax": 0.8, "s_noise": 1.1}
with_torchsde = pytest.param(SDE, marks=pytest.mark.skipif(SDE not in OURS, reason="needs torchsde"))
ALL = pytest.mark.parametrize("name", [HEUN, KDPM, KDPM_A, with_torchsde, FLOW])


def configs(name: str) -> list[dict[str, Any]]:
    if name == FLOW:
        return [{}, {"shift": 3.0}]
    if name in (KDPM, KDPM_A):  # stock makes them slowly for long tables
        short = [{"num_train_timesteps": 100, "beta_start": 0.0085, "beta_end": 0.12}]
        return product(short, [PREDICTIONS[1], *REMAPS[1:], *SPACINGS])
    if name == SDE:
        return [{"noise_sampler_seed": 4, **c} for c in (PREDICTIONS[1], *REMAPS, *SPACINGS[1:])]
    return [*product(PREDICTIONS, REMAPS), *SPACINGS, {"clip_sample": True, "clip_sample_range": 0.7}]


@ALL
def test_formulas(name: str) -> None:
    """Every result of every step, stock in float64 against ours: 2^-40.  Flow Heun rounds to float32."""
    for config in configs(name):
        for steps in (1, 2, 3, 5, 10, *((25,) if config == configs(name)[0] else ())):
            if steps > 3 or runs(name, steps, config):
                error = compare(name, steps, config)
                assert error <= (8 if name == FLOW else DIGITS), (config, steps, error)


@ALL
def test_edited_states_and_starts_in_the_middle(name: str) -> None:
    bound, config = 8 if name == FLOW else DIGITS, configs(name)[0]
    for options in ({"edit": inpaint}, {"first": 4}, {"first": 4, "begin": True, "edit": inpaint}):
        assert compare(name, 6, config, **options) <= bound  # type: ignore[arg-type]
    assert compare(name, 6, config, dtype=torch.float32, edit=inpaint) <= 32


@pytest.mark.parametrize("name", [HEUN, KDPM, FLOW])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
def test_roundings(name: str, dtype: torch.dtype) -> None:
    """Against float64 on the same rounded inputs: a few roundings of the largest number, and not more than stock in
    half precision."""
    found = [pair for config in configs(name)[:2] for pair in errors(name, 7, dtype, config, inpaint)]
    ours, stock = (sum(pair[k] for pair in found) / len(found) for k in (0, 1))
    assert max(error for error, _ in found) <= 4
    assert dtype is torch.float32 or ours <= stock


def test_flow_heun_with_churn() -> None:
    for config in configs(FLOW):
        for options in (CHURN, {"s_churn": 50.0}, {"s_churn": 1.0, "s_tmin": 2.0}):
            assert compare(FLOW, 6, config, dtype=torch.float32, edit=inpaint, **options) <= 8
    for dtype in (torch.bfloat16, torch.float16):
        assert compare(FLOW, 6, {}, dtype=dtype, **CHURN) <= 2.0**24 * torch.finfo(dtype).eps


def test_flow_heun_exact_mode() -> None:
    """The grid is shifted once; the second half of a step draws nothing."""
    exact = OURS[FLOW](shift=3.0).use(mode="exact")
    exact.set_timesteps(4)
    plain = torch.linspace(1.0, 0.001, 4, dtype=torch.float64)
    levels = (3.0 * plain / (1.0 + 2.0 * plain)).float()
    torch.testing.assert_close(exact.sigmas[[0, 1, 3, 5]], levels, rtol=1e-6, atol=0)
    assert exact.sigma_min == made(FLOW, 4, {"shift": 3.0}).sigma_min
    x, draws = start(*SHAPE), torch.Generator().manual_seed(1)
    for i, t in enumerate(exact.timesteps):
        before = draws.get_state()
        x = exact.step(network(x, i), t, x, generator=draws, s_churn=3.0, return_dict=False)[0]
        assert torch.equal(before, draws.get_state()) == (i % 2 == 1)


@pytest.mark.skipif(SDE not in OURS, reason="needs torchsde")
class TestSde:
    def test_noise_scale(self) -> None:
        for s_noise in (0.0, 0.7):
            assert compare(SDE, 6, {"noise_sampler_seed": 1}, s_noise=s_noise) <= DIGITS

    def test_one_seed_per_sample(self) -> None:
        assert compare(SDE, 6, {"noise_sampler_seed": [3, 8]}) <= DIGITS

    def test_without_a_seed_the_global_generator_gives_one(self) -> None:
        results = []
        for cls in (None, OURS[SDE]):
            torch.manual_seed(5)
            results.append(self.run(made(SDE, 5, {}, cls)))
        torch.testing.assert_close(results[1], results[0], rtol=1e-4, atol=1e-4)

    def test_an_injected_sampler(self) -> None:
        schedulers = made(SDE, 5, {}), made(SDE, 5, {}, OURS[SDE])
        for scheduler in schedulers:
            scheduler.noise_sampler = lambda a, b: torch.full(SHAPE, float(a - b))
        want, got = (self.run(s) for s in schedulers)
        torch.testing.assert_close(got, want, rtol=1e-5, atol=1e-5)

    @pytest.mark.parametrize("noise", ["torch", "counter"])
    def test_copies_follow_the_same_path(self, noise: str) -> None:
        ours = OURS[SDE]().use(noise=noise, seed=None)
        ours.set_timesteps(6)
        x = start(*SHAPE) * ours.init_noise_sigma
        for i, t in enumerate(ours.timesteps):
            if i == 5:
                others = copy.deepcopy(ours), pickle.loads(pickle.dumps(ours))
                states = [x, x]
            if i >= 5:
                states = [self.call(other, i, t, y) for other, y in zip(others, states, strict=True)]
            x = self.call(ours, i, t, x)
            if i >= 5:
                assert all(torch.equal(y, x) for y in states)

    def test_counter_noise(self) -> None:
        """The same path for another number of samples; other seeds are other paths."""
        results = [
            self.run(made(SDE, 6, {}, lambda seed=seed: OURS[SDE]().use(noise="counter", seed=seed)), start(*shape))
            for seed, shape in ((3, SHAPE), (3, (1, *SHAPE[1:])), (4, SHAPE))
        ]
        assert torch.equal(results[0][:1], results[1])
        assert (results[0] - results[2]).abs().max() > 0.1

    def call(self, scheduler: Any, i: int, t: Any, x: torch.Tensor) -> torch.Tensor:
        made: torch.Tensor = scheduler.step(network(scaled(scheduler, x, t), i), t, x, return_dict=False)[0]
        return made

    def run(self, scheduler: Any, x: torch.Tensor | None = None) -> torch.Tensor:
        x = (start(*SHAPE) if x is None else x) * scheduler.init_noise_sigma
        for i, t in enumerate(scheduler.timesteps):
            x = self.call(scheduler, i, t, x)
        return x


@pytest.mark.parametrize(
    ("name", "total", "mean"), [(HEUN, 0.1233, 0.0002), (KDPM, 20.4125, 0.0266), (KDPM_A, 13979.9433, 18.2030)]
)
def test_values_of_the_stock_suite(name: str, total: float, mean: float) -> None:
    scheduler = OURS[name](num_train_timesteps=1100, beta_start=0.0001, beta_end=0.02, beta_schedule="linear")
    found = reference_run(scheduler, 10, scale=True)
    assert abs(found[0] - total) <= 1e-2 * max(1.0, total / 1e4) and abs(found[1] - mean) <= 1e-3


@ALL
def test_a_second_run(name: str) -> None:
    """A run that was left in the middle of a step does not touch the next one; shape and dtype may change."""
    config = {"noise_sampler_seed": 0} if name == SDE else {}
    ours = made(name, 5, config, OURS[name])
    x = start(*SHAPE)
    scaled(ours, x, ours.timesteps[0])
    ours.step(x, ours.timesteps[0], x)
    ours.set_timesteps(4)
    fresh, x = made(name, 4, config, OURS[name]), start(1, 2, 3, dtype=torch.float64)
    for i, t in enumerate(fresh.timesteps):
        draws = [{"generator": torch.Generator().manual_seed(i)} if name == KDPM_A else {} for _ in range(2)]
        results = []
        for scheduler, draw in zip((ours, fresh), draws, strict=True):
            e = network(scaled(scheduler, x, t), i)
            results.append(scheduler.step(e, t, x, return_dict=False, **draw)[0])
        assert torch.equal(*results)
        x = results[0]


def test_kdpm2_refuses_sample_predictions() -> None:
    for name in (KDPM, KDPM_A, *([SDE] if SDE in OURS else [])):
        ours, x = made(name, 3, {"prediction_type": "sample"}, OURS[name]), start(*SHAPE)
        with pytest.raises(NotImplementedError, match="prediction_type not implemented yet: sample"):
            ours.step(x, ours.timesteps[0], x)
    assert issubclass(OURS[HEUN], diffusers.HeunDiscreteScheduler)
