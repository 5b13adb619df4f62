"""Reverse transition kernels: recorded runs, starts, predictions, calls, what is refused, the loop around them."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from fastsample.loop import drive

from .kernels import Recorded, begin, network_of, recorded_mixture

TOL = 1e-12
NARROW = 0.2  # narrowest mode of the recorded runs is a little wider
ESTIMATORS = {"exact": "energy", "trap": "trapezoid", "simpson": "simpson"}


def width_of(case):
    """The width that the recorded step sizes were made with."""
    return float(recorded_mixture().std.min())


@pytest.mark.parametrize("grid", ["ou", "vplinear"])
@pytest.mark.parametrize("estimator", ESTIMATORS)
def test_recorded_mala(grid, estimator):
    """States, log-ratios and decisions of every inner move."""
    case = Recorded(f"rtkmala_{grid}_n4_S4_{estimator}")
    d, mixture = case.data, recorded_mixture()
    fn, energy = network_of(mixture, case.path)
    run = begin(
        "rtk-mala",
        case.path,
        case.x,
        recorded=case.noise,
        energy=energy,
        inner=case.inner,
        theta=1.0,
        width=width_of(case),
        estimator=ESTIMATORS[estimator],
        uniforms=d["u"],
    )
    calls = 2 if estimator == "simpson" else 1
    states, inner = [run.state.clone()], []

    def look(call):
        k, n = divmod(call, 1 + calls * case.inner)
        if n and n % calls == 0:
            inner.append((run.state.clone(), run.chain[k].clone()))
        if run.ends_step(call):
            states.append(run.state.clone())

    made = drive(run, fn, [look])
    assert made == run.calls == case.segments * (1 + calls * case.inner)
    np.testing.assert_allclose(torch.stack(states), d["states"], rtol=0, atol=TOL)
    np.testing.assert_allclose(run.stats()["step_sizes"], d["tau"], rtol=TOL)
    chains = torch.stack([chain for _, chain in inner]).reshape(case.segments, case.inner, -1, 5)
    np.testing.assert_allclose(torch.stack([z for z, _ in inner]).reshape(d["inner"].shape), d["inner"], atol=TOL)
    np.testing.assert_allclose(chains[..., 2], d["log_accept"], rtol=0, atol=TOL)
    assert np.array_equal(chains[..., 3].numpy().astype(bool), d["accepted"])
    assert run.stats()["acceptance"] == pytest.approx(d["accepted"].mean(), abs=1e-15)


@pytest.mark.parametrize("grid", ["ou", "vplinear"])
@pytest.mark.parametrize("theta", [0.8, 1.5])
def test_recorded_uld(grid, theta):
    case = Recorded(f"rtkuld_{grid}_n4_S4_th{theta}")
    d = case.data
    fn, _ = network_of(recorded_mixture(), case.path)
    options = {"inner": case.inner, "theta": theta, "width": width_of(case)}
    run = begin("rtk-uld", case.path, case.x, recorded=case.noise, **options)
    states, inner = [run.state.clone()], []

    def look(call):
        inner.append(run.state.clone())
        if run.ends_step(call):
            states.append(inner[-1])

    assert drive(run, fn, [look]) == case.segments * case.inner
    np.testing.assert_allclose(torch.stack(states), d["states"], rtol=0, atol=TOL)
    np.testing.assert_allclose(torch.stack(inner).reshape(d["inner_z"].shape), d["inner_z"], rtol=0, atol=TOL)
    np.testing.assert_allclose(run.stats()["friction"], d["gamma"], rtol=TOL)
    np.testing.assert_allclose(run.stats()["step_sizes"], d["tau"], rtol=TOL)
