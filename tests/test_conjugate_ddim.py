"""lambda-DDIM of a scalar state: recorded runs of the authors' program, DDIM, order 1."""

from __future__ import annotations

import numpy as np
import pytest

from fastsample import make_path, make_plan
from fastsample.schedules import VPLinear
from fastsample.solvers import find

from .golden_cases import Replay
from .orders import order
from .phase_cases import recorded

CASES = recorded("psld_lambdaddim")


def steps(path, lam, schedule=None):
    return find("lambda-ddim").steps(path, lam=lam, schedule=schedule)


@pytest.mark.parametrize("case", CASES, ids=repr)
def test_recorded_runs(case):
    """With their integrals, which RK45 found to about 1e-5, the states are theirs; ours are the exact integrals."""
    path, lam = make_path(VPLinear(case["beta0"], case["beta1"]), case["t_grid"]), case["lam"]
    made = steps(path, lam)
    unit = path.alpha[1:] * np.exp(-lam * path.t[1:])
    np.testing.assert_allclose([s.b[0] for s in made], unit * np.diff(case["Phi_exact"]), rtol=2e-13)
    theirs, x = unit * np.diff(case["Phi_official"]), case["x_T"]
    for step, b, eps in zip(made, theirs, case["net_eps"], strict=True):
        x = step.a * x + b * eps
    np.testing.assert_allclose(x, case["out"], rtol=0, atol=1e-12)
    ours = Replay(make_plan("lambda-ddim", path, lam=lam), case["x_T"], list(case["net_eps"])).x
    np.testing.assert_allclose(ours, case["out"], rtol=0, atol=2e-4)


@pytest.mark.parametrize("schedule", ["vp-linear", "edm", "flow", "ddpm-linear", "cosine"])
def test_inside_of_steps(schedule):
    """What the levels alone tell of sigma/alpha, against the schedule itself: exact where the docstring says so."""
    t_max = {"flow": 0.98}.get(schedule)
    path = make_path(schedule, "uniform", 12, t_max=t_max, final="end", t_min={"flow": 0.01}.get(schedule))
    lam = 0.7 / path.t[0]
    a, b = (np.array([s.b[0] for s in steps(path, lam, given)]) for given in (None, schedule))
    tolerance = {"ddpm-linear": 1e-5, "cosine": 1e-2}.get(schedule, 1e-11)
    np.testing.assert_allclose(a, b, rtol=tolerance)


@pytest.mark.parametrize("schedule", ["vp-linear", "edm", "scaled-linear"])
def test_lambda_0_is_ddim(schedule):
    path = make_path(schedule, "log-snr", 9, final="zero")
    ddim = make_plan("ddim", path, prediction="eps")
    np.testing.assert_allclose(make_plan("lambda-ddim", path).table, ddim.table, rtol=1e-11, atol=1e-13)


def test_order_1():
    for lam in (0.0, 0.5, -0.5):
        assert 0.9 < order("lambda-ddim", lam=lam) < 1.15


def test_arguments():
    path = make_path("vp-linear", "uniform", 4)
    with pytest.raises(ValueError, match="lam: got 'x'"):
        make_plan("lambda-ddim", path, lam="x")
