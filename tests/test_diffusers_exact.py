"""Exact mode mends what stock does wrong, each point by itself; counter noise does not depend on the batch."""

from __future__ import annotations

from typing import Any

import pytest
import torch

pytest.importorskip("diffusers")
import diffusers

from fastsample.integrations.diffusers.swap import classes

from .lockstep import ULP, generator, network, scaled, start, takes

OURS = classes()
SHAPE = (2, 3, 4, 4)
FLOW = {"use_flow_sigmas": True, "prediction_type": "flow_prediction", "flow_shift": 3.0}
MODES = ("strict", "exact")


def made(name: str, mode: str, steps: int = 6, noise: str = "torch", seed: int | None = None, **config: Any) -> Any:
    """One of ours, set up."""
    scheduler = OURS[name](**config).use(mode=mode, noise=noise, seed=seed)
    scheduler.set_timesteps(steps)
    return scheduler


@pytest.mark.parametrize("spacing", ["linspace", "leading", "trailing"])
@pytest.mark.parametrize("steps", [5, 7])
def test_ddim_goes_to_the_next_time_of_its_grid(spacing: str, steps: int) -> None:
    """#9261, #11347 and others: stock subtracts T // N whatever the grid; float64 formula here."""
    ours = made("DDIMScheduler", "exact", steps, timestep_spacing=spacing, clip_sample=False)
    stock = diffusers.DDIMScheduler(timestep_spacing=spacing, clip_sample=False)
    stock.set_timesteps(steps)
    table, times = ours.alphas_cumprod.double(), ours.timesteps.tolist()
    x, differs = start(*SHAPE), False
    for i, (t, following) in enumerate(zip(times, [*times[1:], None], strict=True)):
        e = network(x, i)
        a, b = table[t], table[following] if following is not None else ours.final_alpha_cumprod.double()
        x0 = (x.double() - (1 - a).sqrt() * e) / a.sqrt()
        want = b.sqrt() * x0 + (1 - b).sqrt() * e
        size = max(float(y.abs().max()) for y in (x, e, x0))
        assert (ours.step(e, t, x, return_dict=False)[0] - want).abs().max() <= 8 * ULP * size
        differs |= bool((stock.step(e, t, x, return_dict=False)[0] - want).abs().max() > 1e-3)
        x = want.float()
    assert differs == (spacing == "linspace" or (spacing == "trailing" and steps == 7))


def test_ddim_inverse_follows_its_grid() -> None:
    ours = made("DDIMInverseScheduler", "exact", 7, timestep_spacing="trailing", clip_sample=False)
    table, times = ours.alphas_cumprod.double(), ours.timesteps.tolist()
    x = start(*SHAPE)
    for i, (before, t) in enumerate(zip([None, *times[:-1]], times, strict=True)):
        e = network(x, i)
        a, b = table[before] if before is not None else ours.initial_alpha_cumprod.double(), table[t]
        want = b.sqrt() * (x.double() - (1 - a).sqrt() * e) / a.sqrt() + (1 - b).sqrt() * e
        size = float(max(x.abs().max(), want.abs().max()))
        assert (ours.step(e, t, x, return_dict=False)[0] - want).abs().max() <= 8 * ULP * size
        x = want.float()


@pytest.mark.parametrize("mode", MODES)
def test_start_among_equal_times(mode: str) -> None:
    """#5746, #6728, #9366: a run that starts at the first of several equal times; stock takes the second."""
    ours = made("DPMSolverMultistepScheduler", mode, 25, use_karras_sigmas=True, beta_schedule="squaredcos_cap_v2")
    assert ours.timesteps[0] == ours.timesteps[1]
    ours.step(start(*SHAPE), ours.timesteps[0], start(*SHAPE))
    assert ours.step_index == (1 if mode == "exact" else 2)


def test_flow_grid_is_shifted_once() -> None:
    strict, exact = (made("FlowMatchEulerDiscreteScheduler", mode, 4, shift=3.0) for mode in MODES)
    torch.testing.assert_close(strict.sigmas, torch.tensor([1.0, 0.8577, 0.6022, 0.0089, 0.0]), rtol=0, atol=1e-4)
    plain = torch.linspace(1.0, 0.001, 4, dtype=torch.float64)
    wanted = torch.cat([3.0 * plain / (1.0 + 2.0 * plain), torch.zeros(1)]).float()
    torch.testing.assert_close(exact.sigmas, wanted, rtol=1e-6, atol=0)
    assert exact.sigma_min == strict.sigma_min  # the attribute is stock's


FLOWING = [n for n in OURS if "use_flow_sigmas" in OURS[n]().config]


@pytest.mark.parametrize("name", FLOWING)
def test_flow_times_are_not_cut(name: str) -> None:
    strict, exact = (made(name, mode, 7, **FLOW) for mode in MODES)
    assert strict.timesteps.dtype == torch.int64 and exact.timesteps.dtype == torch.float32
    torch.testing.assert_close(exact.timesteps, exact.sigmas[:-1] * 1000.0, rtol=1e-6, atol=0)
    assert (strict.timesteps - exact.timesteps).abs().max() > 0.1


@pytest.mark.parametrize("name", [n for n in FLOWING if n.startswith(("DEIS", "SASolver"))])
@pytest.mark.parametrize("config", [FLOW, {"use_karras_sigmas": True}, {"use_exponential_sigmas": True}])
def test_no_noise_is_left(name: str, config: dict[str, Any]) -> None:
    """Data that is one point: a run must end there.  Stock's last step has length 0."""
    point, left = torch.linspace(-1.0, 1.0, 4).expand(SHAPE).contiguous(), []
    for mode in MODES:
        ours = made(name, mode, 12, **config)
        x = start(*SHAPE)
        for t, sigma in zip(ours.timesteps, ours.sigmas.tolist(), strict=False):
            flow = "use_flow_sigmas" in config
            alpha = 1.0 - sigma if flow else (1.0 + sigma * sigma) ** -0.5
            noise = (x - alpha * point) / (sigma if flow else sigma * alpha)
            x = ours.step(noise - point if flow else noise, t, x, return_dict=False, **generator(ours, 1))[0]
        left.append(float((x - point).abs().max()))
    assert left[1] <= 1e-4 < left[0]


DRAWING = [
    ("EulerAncestralDiscreteScheduler", {}),
    ("DPMSolverMultistepScheduler", {"algorithm_type": "sde-dpmsolver++"}),
    ("EDMDPMSolverMultistepScheduler", {"algorithm_type": "sde-dpmsolver++"}),
    ("FlowMatchEulerDiscreteScheduler", {"stochastic_sampling": True}),
]


@pytest.mark.parametrize(("name", "config"), DRAWING)
def test_nothing_is_drawn_for_a_zero_coefficient(name: str, config: dict[str, Any]) -> None:
    for mode in MODES:
        ours = made(name, mode, 4, **config)
        x, g = start(*SHAPE), torch.Generator().manual_seed(1)
        for i, t in enumerate(ours.timesteps):
            before = g.get_state()
            e = network(scaled(ours, x, t), i)
            x = ours.step(e, t, x, generator=g, return_dict=False)[0]
            drawn = not torch.equal(before, g.get_state())
            assert drawn == (mode == "strict" or i < 3)


@pytest.mark.parametrize("algorithm", ["data_prediction", "noise_prediction"])
@pytest.mark.parametrize("noise", ["torch", "counter"])
def test_sa_draws_only_where_tau_is_not_zero(noise: str, algorithm: str) -> None:
    """tau = 1 between 200 and 800: steps before and after them draw nothing, and the numbers are those of strict."""
    steps = 8
    strict, exact = (made("SASolverScheduler", m, steps, noise, seed=4, algorithm_type=algorithm) for m in MODES)
    used: dict[int, Any] = {}
    draw = exact._pend

    def recorded(*args: Any) -> Any:
        used[exact.step_index] = draw(*args)
        return used[exact.step_index]

    def again(like: torch.Tensor, *_: Any) -> Any:
        none = (None, exact._keys[1]) if noise == "counter" else (torch.randn_like(like), None)
        return used.get(strict.step_index, none)

    exact._pend, strict._pend = recorded, again
    x = y = start(*SHAPE)
    for i, t in enumerate(exact.timesteps):
        x = exact.step(network(x, i), t, x, return_dict=False)[0]
        assert (i in used) == (200 <= t <= 800)
        assert (exact.last_noise is None) == (noise == "counter" or i not in used)
    for i, t in enumerate(strict.timesteps):
        y = strict.step(network(y, i), t, y, return_dict=False)[0]
    assert 0 < len(used) < steps
    assert (x - y).abs().max() <= 200 * ULP * y.abs().max()


def test_sa_without_noise_leaves_the_generator_alone() -> None:
    for mode in MODES:
        ours = made("SASolverScheduler", mode, 5, tau_func=lambda t: 0.0)
        x, g = start(*SHAPE), torch.Generator().manual_seed(1)
        before = g.get_state()
        for i, t in enumerate(ours.timesteps):
            x = ours.step(network(x, i), t, x, generator=g, return_dict=False)[0]
        assert torch.equal(before, g.get_state()) == (mode == "exact")


@pytest.mark.parametrize("name", [n for n in OURS if n.startswith(("DPMSolverM", "DEIS", "UniPC", "SASolver"))])
def test_an_unknown_time(name: str) -> None:
    """Stock takes the last step for it."""
    x = start(*SHAPE)
    strict, exact = (made(name, mode) for mode in MODES)
    strict.step(x, torch.tensor(3.5), x)
    assert strict.step_index == 6
    with pytest.raises(ValueError, match="timestep: got 3.5, which is not one of"):
        exact.step(x, torch.tensor(3.5), x)


@pytest.mark.parametrize("name", OURS)
def test_modes_and_bad_choices(name: str) -> None:
    ours = OURS[name]()
    assert (ours.mode, ours.noise, ours.seed) == ("strict", "torch", None)
    assert ours.use(mode="exact", noise="counter", seed=3) is ours
    for choice in ({"mode": "fast"}, {"noise": "white"}, {"seed": -1}, {"seed": True}):
        with pytest.raises(ValueError, match=f"{next(iter(choice))}: got"):
            ours.use(**choice)
    ours.set_timesteps(5)
    x = start(*SHAPE) * getattr(ours, "init_noise_sigma", 1.0)
    for i, t in enumerate(ours.timesteps):  # every class runs in exact mode
        x = ours.step(network(scaled(ours, x, t), i), t, x, return_dict=False)[0]
    assert torch.isfinite(x).all()


NOISY = [n for n in OURS if takes(OURS[n](), "generator")]
STOCHASTIC: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "DDIMScheduler": ({}, {"eta": 1.0}),
    "EulerDiscreteScheduler": ({}, {"s_churn": 3.0}),
    "EDMEulerScheduler": ({}, {"s_churn": 3.0}),
    "DPMSolverMultistepScheduler": ({"algorithm_type": "sde-dpmsolver++"}, {}),
    "DPMSolverSinglestepScheduler": ({"algorithm_type": "sde-dpmsolver++"}, {}),
    "EDMDPMSolverMultistepScheduler": ({"algorithm_type": "sde-dpmsolver++"}, {}),
    "FlowMatchEulerDiscreteScheduler": ({"stochastic_sampling": True}, {}),
    "FlowMatchHeunDiscreteScheduler": ({}, {"s_churn": 3.0}),
    "TCDScheduler": ({}, {"eta": 0.5}),
}


def _run(name: str, x: torch.Tensor, g: Any = None, seed: int | None = None, scheduler: Any = None) -> torch.Tensor:
    config, step = STOCHASTIC.get(name, ({}, {}))
    scheduler = scheduler or made(name, "strict", 5, "counter", seed, **config)
    scheduler.set_timesteps(5)
    x = x * getattr(scheduler, "init_noise_sigma", 1.0)
    for i, t in enumerate(scheduler.timesteps):
        x = scheduler.step(network(scaled(scheduler, x, t), i), t, x, generator=g, return_dict=False, **step)[0]
    return x


@pytest.mark.parametrize("name", NOISY)
def test_counter_noise_and_the_batch(name: str) -> None:
    x = start(4, 3, 4, 4)
    whole = _run(name, x, seed=11)
    assert torch.equal(_run(name, x[:2], seed=11), whole[:2])
    assert torch.equal(_run(name, x, seed=11), whole)
    assert not torch.equal(_run(name, x, seed=12), whole)
    seeds = [torch.Generator().manual_seed(s) for s in (5, 6, 7, 8)]
    together = _run(name, x, seeds)
    for b in range(4):  # a picture of its own seed does not depend on the others
        assert torch.equal(_run(name, x[b : b + 1], [seeds[b]]), together[b : b + 1])
        assert torch.equal(_run(name, x[b : b + 1], seeds[b]), together[b : b + 1])


def test_counter_noise_without_a_seed_is_new_in_every_run() -> None:
    name, x = "EulerAncestralDiscreteScheduler", start(*SHAPE)
    ours = made(name, "strict", 5, "counter")
    torch.manual_seed(0)
    first, second = _run(name, x, scheduler=ours), _run(name, x, scheduler=ours)
    assert not torch.equal(first, second)
    torch.manual_seed(0)
    assert torch.equal(_run(name, x, scheduler=ours), first)


def test_counter_noise_is_standard_normal() -> None:
    """Mean and variance of what a step of DDPM adds, 2^16 numbers: 5 deviations each, one false alarm in 10^6."""
    ours = made("DDPMScheduler", "strict", 10, "counter", 4, prediction_type="sample", clip_sample=False)
    x = torch.zeros(4, 1, 128, 128)
    t = ours.timesteps[3]
    variance = float(ours._get_variance(int(t)))
    xi = ours.step(x, t, x, return_dict=False)[0].double() / variance**0.5
    n = xi.numel()
    assert abs(float(xi.mean())) < 5 / n**0.5 and abs(float(xi.var()) - 1.0) < 5 * (2 / n) ** 0.5
