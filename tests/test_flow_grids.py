"""Grids of flow matching against those of diffusers: recorded in float64, and live in its float32."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import fastsample
from fastsample.grids import make_path
from fastsample.schedules import RectifiedFlow

from .golden_cases import cases

LAWS = {"": "flow-match", "karras": "flow-karras", "exponential": "flow-exponential", "beta": "flow-beta"}
ROUNDING = 4e-7  # theirs are float32, and so are the ends that they begin with


def schedule_of(config: dict[str, Any], mu: float | None) -> RectifiedFlow:
    made = {"time_scale": 1000.0, "inverted": config.get("invert_sigmas", False)}
    if mu is None:
        return RectifiedFlow(config.get("shift", 1.0), **made)
    return RectifiedFlow.of_mu(mu, config.get("time_shift_type") == "linear", **made)


def grid_of(config: dict[str, Any], **options: Any) -> dict[str, Any]:
    law = next((law for law in LAWS if law and config.get(f"use_{law}_sigmas")), "")
    twice = not config.get("use_dynamic_shifting", False)
    return {"name": LAWS[law], "terminal": config.get("shift_terminal"), "twice": twice, **options}


@pytest.mark.parametrize(
    "case", [c for c in cases("flowmatch_diffusers") if c.cfg["scheduler"] == "FlowMatchEuler"], ids=str
)
def test_recorded(case):
    if case.cfg.get("use_beta_sigmas"):
        pytest.importorskip("scipy")
    path = make_path(schedule_of(case.cfg, case.cfg.get("mu")), grid_of(case.cfg), case.cfg["steps"])
    np.testing.assert_allclose(path.sigma, case["sched_sigmas"], rtol=1e-12)
    np.testing.assert_allclose(path.alpha, 1 - case["sched_sigmas"], rtol=0, atol=1e-12)
    np.testing.assert_allclose(path.t[:-1], case["t"], rtol=1e-12)


def drop_ins() -> Any:
    return pytest.importorskip("fastsample.integrations.diffusers")


SHIFTS: list[tuple[dict[str, Any], float | None]] = [
    ({}, None),
    ({"shift": 3.0}, None),
    ({"shift": 0.5}, None),
    ({"use_dynamic_shifting": True}, 0.8),
    ({"use_dynamic_shifting": True, "time_shift_type": "linear"}, 1.7),
]


@pytest.mark.parametrize("terminal", [None, 0.1])
@pytest.mark.parametrize("law", LAWS)
@pytest.mark.parametrize(("config", "mu"), SHIFTS)
def test_live(config, mu, law, terminal):
    diffusers = pytest.importorskip("diffusers")
    config = {**config, "shift_terminal": terminal, **({f"use_{law}_sigmas": True} if law else {})}
    ours = drop_ins().FlowMatchEulerDiscreteScheduler(**config)
    theirs = diffusers.FlowMatchEulerDiscreteScheduler(**config)
    for steps in (2, 7, 50):
        theirs.set_timesteps(steps, mu=mu)
        path = make_path(schedule_of(config, mu), grid_of(config), steps)
        np.testing.assert_allclose(path.sigma, theirs.sigmas.double(), rtol=ROUNDING)
        np.testing.assert_allclose(path.t[:-1], theirs.timesteps.double(), rtol=ROUNDING)
        ours.set_timesteps(steps, mu=mu)  # the drop-in has the grid of stock
        assert torch.equal(ours.sigmas, theirs.sigmas) and torch.equal(ours.timesteps, theirs.timesteps)
        ours.use(mode="exact").set_timesteps(steps, mu=mu)  # which shifts once
        path = make_path(schedule_of(config, mu), grid_of(config, twice=False), steps)
        np.testing.assert_allclose(path.sigma, ours.sigmas.double(), rtol=ROUNDING)
        ours.use(mode="strict")


@pytest.mark.parametrize("steps", [4, 28])
def test_the_levels_that_pipelines_give(steps):
    """Flux and others pass sigmas of their own, even from 1 to 1/steps."""
    diffusers = pytest.importorskip("diffusers")
    theirs = diffusers.FlowMatchEulerDiscreteScheduler(use_dynamic_shifting=True, shift_terminal=0.02)
    theirs.set_timesteps(sigmas=np.linspace(1.0, 1 / steps, steps).tolist(), mu=1.15)
    path = make_path(RectifiedFlow.of_mu(1.15), "flow-match", steps, u_min=1 / steps, terminal=0.02)
    np.testing.assert_allclose(path.sigma, theirs.sigmas.double(), rtol=0, atol=1.2e-7)  # float32 from the start


def test_shift_by_length():
    """mu is on a line through two lengths."""
    for tokens, mu in ((256, 0.5), (4096, 1.15), (2176, 0.825), (8896, 1.9625)):
        assert RectifiedFlow.dynamic(tokens).shift == pytest.approx(np.exp(mu), rel=1e-12)
        assert RectifiedFlow.dynamic(tokens, linear=True).shift == pytest.approx(mu, rel=1e-12)
    other = {"low": (256, 0.5), "high": (8192, 0.9)}
    for tokens, mu in ((256, 0.5), (8192, 0.9), (4224, 0.7)):
        assert RectifiedFlow.dynamic(tokens, time_scale=1000.0, **other).shift == pytest.approx(np.exp(mu), rel=1e-12)


def velocity(x: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
    return torch.tanh(x * (1.0 + 1e-3 * t.to(x).reshape(-1, 1)))


@pytest.mark.parametrize("inverted", [False, True])
def test_a_run_of_sample(inverted):
    """The whole run of stock with a stretched, shifted Karras grid; and Mochi's levels, which run from 0 to 1."""
    diffusers = pytest.importorskip("diffusers")
    config = {"shift": 3.0, "shift_terminal": 0.1, "use_karras_sigmas": True, "invert_sigmas": inverted}
    theirs = diffusers.FlowMatchEulerDiscreteScheduler(**config)
    theirs.set_timesteps(6)
    x = start = torch.randn(2, 5, generator=torch.Generator().manual_seed(0))
    for t in theirs.timesteps:
        x = theirs.step(velocity(x, t.expand(2)), t, x, return_dict=False)[0]
    network = fastsample.Network(velocity, prediction="flow")
    ours = fastsample.sample(
        network, start, solver="euler", schedule=schedule_of(config, None), grid=grid_of(config), steps=6
    )
    torch.testing.assert_close(ours, x, rtol=0, atol=3e-6)
    assert (ours - start).abs().max() > 0.1


@settings(max_examples=60, deadline=None)
@given(
    steps=st.integers(1, 60),
    shift=st.floats(0.05, 20.0),
    terminal=st.one_of(st.none(), st.floats(1e-4, 0.9)),
    u_min=st.floats(1e-5, 0.9),
    grid=st.sampled_from(["flow-match", "flow-karras", "flow-exponential"]),
)
def test_levels_fall_to_clean_data(steps, shift, terminal, u_min, grid):
    path = make_path(RectifiedFlow(shift), grid, steps, terminal=terminal, u_min=u_min)
    assert path.steps == steps and path.sigma[0] == 1.0 and path.sigma[-1] == 0.0
    assert (np.diff(path.sigma) < 0).all()
    if steps > 1 and terminal is not None:
        assert path.sigma[-2] == terminal
    assert make_path(RectifiedFlow(shift), grid, steps, terminal=terminal, u_min=u_min, final="end").sigma[-1] > 0


def test_an_end_of_ones_own():
    path = make_path(RectifiedFlow(3.0, t_min=0.02), "flow-match", 5, t_max=0.8)
    assert path.sigma[0] == 0.8 and path.sigma[-2] == pytest.approx(0.02, rel=1e-14) and path.sigma[-1] == 0.0


@pytest.mark.parametrize(
    ("schedule", "options", "message"),
    [
        ("vp-linear", {}, "those of a RectifiedFlow"),
        ("flow", {"u_min": 0.0}, "u_min: got 0.0"),
        ("flow", {"u_min": 1.0}, "u_min: got 1.0"),
        ("flow", {"u_min": 0.6, "t_max": 0.5}, "u_min: got 0.6, allowed are numbers below u = 0.5"),
        ("flow", {"terminal": 1.0}, "terminal: got 1.0"),
        ("flow", {"terminal": -0.1}, "terminal: got -0.1"),
        ("flow", {"terminals": 0.1}, "does not take terminals"),
    ],
)
def test_bad_input(schedule, options, message):
    for grid in ("flow-match", "flow-karras"):
        with pytest.raises(ValueError, match=message):
            make_path(schedule, grid, 5, **options)
