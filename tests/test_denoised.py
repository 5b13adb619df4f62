"""Previews of the data: of every solver, also where its rows have no output left for them."""

from __future__ import annotations

import numpy as np
import pytest
import torch

import fastsample
from fastsample import Network, make_path, make_plan, procedures, sample
from fastsample.solvers import registry

from .golden_cases import Replay

NAMES = registry.names("")
# D is not x0_hat of the network but a mix of it and the history, or the state (cm), as their papers have it
MIXED = {"ipndm", "dualfast", "usf", "cm"}
# state, scaled input and a history of eps_hat: nothing is left for x0_hat
FULL = {
    "deis", "deis-tab", "lms", "ipndm", "dpm-2s", "dpm-3s", "dpm-fast", "dpm-2m", "dpm-3m", "sde-dpm-2m",
    "forward-value", "f-pndm", "s-pndm", "plms", "usf",
    "rho-heun-2", "rho-kutta-3", "rho-ralston-3", "rho-heun-3", "rho-vdh-3", "rho-ssp-3", "rho-rk4",
}  # fmt: skip


def path_of(name: str) -> fastsample.Path:
    path = make_path("edm", "karras", 9, sigma_max=20.0, sigma_min=0.05, final="end")
    return path.reversed() if registry.find(name).ends == "inverse" else path


def previews(plan: fastsample.Plan) -> tuple[list[np.ndarray], np.ndarray, list[np.ndarray]]:
    """Previews of a run, its end, and what a network of x0 said."""
    rng = np.random.default_rng(3)
    x, *said = rng.standard_normal((1 + plan.nfe, 5))
    run = Replay(plan, x, said, rng.standard_normal((60, 5)))
    return run.previews, run.x, said


@pytest.mark.parametrize("name", NAMES)
def test_every_solver_shows_what_the_network_said(name):
    plan = make_plan(name, path_of(name), prediction="x0")
    shown, end, said = previews(plan.with_denoised())
    np.testing.assert_allclose(end, previews(plan)[1], rtol=1e-10, atol=1e-10)
    assert len(shown) == plan.nfe
    if name not in MIXED:
        np.testing.assert_allclose(shown, said, rtol=0, atol=1e-10)
    scaled = make_plan(name, path_of(name), prediction="x0", input_scaling="vp")
    if name in FULL:
        with pytest.raises(ValueError, match=r"denoised: a row of .* 4 outputs, allowed are 3; let the network scale"):
            scaled.with_denoised()
        return
    again, end_too, _ = previews(scaled.with_denoised())
    np.testing.assert_allclose(again, shown, rtol=0, atol=1e-10)
    np.testing.assert_allclose(end_too, end, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("name", registry.names("phase-space"))
def test_phase_space_shows_data(name):
    ring = fastsample.GaussianMixture.ring().phase_space()
    seen: list[torch.Size] = []
    look = lambda info: seen.append(info.denoised.shape) or None  # noqa: E731
    sample(ring, (3, 2), solver=name, steps=3, seed=0, denoised=True, callback=look)
    assert seen and {*seen} == {torch.Size((3, 2))}


NO_ESTIMATE = {"ml-em", "psld-ode"}  # procedures with no estimate of the data on their way


@pytest.mark.parametrize("name", [n for n in procedures.registry.procedures() if n not in NO_ESTIMATE])
def test_procedures_show_data(name):
    seen = []
    mixture = fastsample.GaussianMixture.ring()
    few = {} if "adaptive" in name else {"steps": 3}
    options = {"inner": 2} if name.startswith("rtk") else {}
    sample(
        mixture, (3, 2), solver=name, seed=0, denoised=True, **few, **options,
        callback=lambda info: seen.append(info.denoised.clone()) or None,
    )  # fmt: skip
    assert seen and all(x.shape == (3, 2) and x.isfinite().all() for x in seen)


def edm_network(dtype: torch.dtype) -> Network:
    """Raw outputs of EDM: x0_hat = tanh of the state, whatever is asked."""

    def fn(x: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
        sigma = torch.exp(4.0 * t.to(dtype)).reshape(-1, 1)
        state = x.to(dtype) * (sigma**2 + 0.25).sqrt()
        skip, out = 0.25 / (sigma**2 + 0.25), 0.5 * sigma / (sigma**2 + 0.25).sqrt()
        return (torch.tanh(state) - skip * state) / out

    return Network(fn, prediction="edm", time="log-sigma", input_scaling="edm")


@pytest.mark.parametrize("graph", ["off", "on"])
@pytest.mark.parametrize("name", ["dpmpp-3m", "sde-dpmpp-3s", "heun", "dpmpp-sde", "unipc"])
def test_callbacks_of_a_network_with_scaled_input(name, graph):
    """x0_hat is the tanh of the state that was asked, call by call, recorded as a graph or not."""
    states, seen = [torch.randn(2, 6, generator=torch.Generator().manual_seed(1), dtype=torch.float64) * 20.0], []

    def look(info):
        states.append(info.x.clone())
        seen.append(info.denoised.clone())

    choice = {"solver": name, "steps": 7, "schedule": fastsample.schedules.VE(0.05, 20.0), "grid": "karras", "seed": 5}
    end = sample(edm_network(torch.float64), states[0], denoised=True, callback=look, graph=graph, **choice)
    for state, shown in zip(states, seen, strict=False):
        torch.testing.assert_close(shown, torch.tanh(state), rtol=0, atol=1e-9)
    assert len(seen) == len(states) - 1 >= 7
    plain = sample(edm_network(torch.float64), states[0], **choice)
    torch.testing.assert_close(end, plain, rtol=0, atol=1e-9)


def test_the_noise_made_again_is_the_noise():
    """Recorded noise and keys; whole and split batches have the same bits."""
    path = make_path("edm", "karras", 6, sigma_max=20.0, sigma_min=0.05)
    plan = make_plan("sde-dpmpp-3s", path, prediction="x0", input_scaling="edm")
    kept = make_plan("sde-dpmpp-3s", path, prediction="x0")
    assert "anchor" not in [slot.name for slot in plan.slots] and "anchor" in [slot.name for slot in kept.slots]
    net = Network(lambda x, t: torch.tanh(t.to(x).reshape(-1, 1) + x * 0.0), prediction="x0", input_scaling="edm")
    bare = Network(net.fn, prediction="x0")
    whole = sample(net, (4, 9), plan=plan, seed=2)
    parts = [sample(net, (2, 9), plan=plan, seed=2, sample_ids=[k, k + 1]) for k in (0, 2)]
    assert torch.equal(torch.cat(parts), whole)
    torch.testing.assert_close(whole, sample(bare, (4, 9), plan=kept, seed=2), rtol=0, atol=2e-5)
    draws = torch.randn(plan.draws, 4, 9, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    ends = [
        sample(n, (4, 9), plan=p, noise=noise, dtype=torch.float64)
        for n, p, noise in ((net, plan, draws), (bare, kept, draws), (net, plan, lambda n: draws[n]))
    ]
    for end in ends[1:]:
        torch.testing.assert_close(end, ends[0], rtol=0, atol=1e-12)


def test_shown_survives_json():
    plan = make_plan("dpmpp-2m", path_of("dpmpp-2m"), input_scaling="edm", denoised=True)
    assert len({*plan.shown}) == 2  # the last call keeps nothing
    assert fastsample.Plan.from_json(plan.to_json()).shown == plan.shown
