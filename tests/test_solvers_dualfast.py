"""DualFast: a reference written from its formula, the identity with the second-order multistep, orders, errors."""

from __future__ import annotations

import math

import numpy as np
import pytest

from fastsample.grids import make_path
from fastsample.path import Path
from fastsample.plan import make_plan
from fastsample.schedules import VPLinear
from fastsample.solvers import names

from .exact import Mixture, exact_flow
from .golden_cases import GOLDEN, Replay

MIXTURE = Mixture()
VP = VPLinear()


def eps_of(path):
    levels = path.levels()

    def network(i, x):
        at = levels[i]
        return (x - at.alpha * MIXTURE.x0(x, at.alpha, at.sigma)) / at.sigma

    return network


REFERENCES = sorted(file.stem for file in GOLDEN.glob("dualfastref_*.npz"))


@pytest.mark.parametrize("name", REFERENCES)
def test_reference(name):
    with np.load(GOLDEN / f"{name}.npz") as file:
        case = {key: file[key] for key in file.files}
    path = Path(case["alphas"], case["sigmas"], case["t_grid"])
    base = {"ddim": "ddim", "dpmpp2m": "dpmpp-2m"}[str(case["base"])]
    anchor = {"prev": "previous", "first": "first"}[str(case["tau"])]
    options = {"c": case["c"].tolist(), "anchor": anchor, "mix": str(case["mode"])}
    plan = make_plan("dualfast", path, base=base, **options)
    run = Replay(plan, case["x_T"], case["net_eps"])
    np.testing.assert_allclose(run.states, case["states"], rtol=0, atol=1e-10)
    np.testing.assert_allclose(run.x, case["out"], rtol=0, atol=1e-10)


def shares(path):
    """h_i / (2 h_{i-1}) inside the run, 0 at its ends."""
    h = np.diff(path.lam)
    return [0.0, *(h[1:-1] / (2 * h[:-2])), 0.0]


@pytest.mark.parametrize("steps", [2, 5, 9])
def test_ddim_becomes_the_second_order_multistep(steps):
    path = make_path(VP, "uniform", steps)
    c = shares(path)
    np.testing.assert_allclose(shares(make_path(VP, "log-snr", 6))[1:-1], 0.5, rtol=1e-12)
    x = np.random.default_rng(0).standard_normal((8, 4))
    plan = make_plan("dualfast", path, base="ddim", c=c)
    other = make_plan("dpm-2m", path, lower_order_final=True)
    np.testing.assert_allclose(Replay(plan, x, eps_of(path)).x, Replay(other, x, eps_of(path)).x, rtol=0, atol=1e-11)


WRAPPED = [n for n in names("") if n not in ("dualfast", "ddim-inverse", "usf")]


@pytest.mark.parametrize("base", WRAPPED)
def test_zero_leaves_the_table_as_it_is(base):
    path = make_path("edm", "log-snr", 6)
    try:
        plain = make_plan(base, path)
    except ValueError as error:
        pytest.skip(f"needs another path: {error}")
    plan = make_plan("dualfast", path, base=base)
    assert plan.slots == plain.slots
    np.testing.assert_array_equal(plan.table, plain.table)


EPS_FAMILY = (
    "euler",
    "ddim",
    "dpmpp-2m",
    "dpmpp-3m",
    "dpm-2m",
    "dpm-3m",
    "unipc",
    "rho-ab-2",
    "ipndm",
    "forward-value",
)


@pytest.mark.parametrize("mix", ["first", "all"])
@pytest.mark.parametrize("anchor", ["previous", "first"])
@pytest.mark.parametrize("base", [n for n in EPS_FAMILY if n in names()])
def test_constant_predictions_leave_nothing_to_mix(base, anchor, mix):
    """eps_i = eps_older: the same end for every c, also where D is x0_hat."""
    path = make_path("edm", "log-snr", 6)
    x, e = np.random.default_rng(1).standard_normal((2, 8))
    ends = [
        Replay(make_plan("dualfast", path, base=base, c=c, anchor=anchor, mix=mix), x, [e] * 20).x
        for c in (0.0, 0.4, 1.7)
    ]
    np.testing.assert_allclose(ends[1], ends[0], rtol=0, atol=1e-12)
    np.testing.assert_allclose(ends[2], ends[0], rtol=0, atol=1e-12)


def test_one_step_is_affine_in_c():
    path = make_path(VP, "log-snr", 2)
    x, a, b = np.random.default_rng(2).standard_normal((3, 8))
    for base in ("ddim", "dpmpp-2m", "dpm-2m"):
        ends = [Replay(make_plan("dualfast", path, base=base, c=[0, c]), x, [a, b]).x for c in (0.0, 0.3, 0.6)]
        np.testing.assert_allclose(ends[2] - ends[1], ends[1] - ends[0], atol=1e-13)
        assert np.abs(ends[1] - ends[0]).max() > 1e-3


def test_shapes_of_c():
    path = make_path(VP, "log-snr", 5)
    table = {
        shape: make_plan("dualfast", path, base="dpm-1", c=0.4, shape=shape).table
        for shape in ("increasing", "decreasing")
    }
    for shape, c in (("increasing", [0, 0.1, 0.2, 0.3, 0.4]), ("decreasing", [0, 0.32, 0.24, 0.16, 0.08])):
        listed = make_plan("dualfast", path, base="dpm-1", c=c)
        np.testing.assert_allclose(listed.table, table[shape], rtol=1e-14, atol=1e-16)
    by_level = make_plan("dualfast", path, c=lambda level: 0.5 if level.lam > 0 else 0.0)
    assert by_level.nfe == 5


@pytest.mark.parametrize(
    ("base", "c", "order"),
    [("ddim", 0.0, 1.00), ("ddim", 0.3, 1.01), ("ddim", 0.5, 1.98), ("dpmpp-2m", 0.0, 2.02), ("dpmpp-2m", 0.2, 1.00)],
)
def test_order_of_convergence(base, c, order, truth):
    """lambda from -3 to 3, N = 160 and 320; the listed orders are those of N = 40 to 320, so within 0.1."""
    x, end = truth
    options = {"base": base, **({} if base == "ddim" else {"lower_order_final": 0})}
    errors = []
    for steps in (160, 320):
        path = lambda_path(steps)
        run = Replay(make_plan("dualfast", path, c=c, **options), x, eps_of(path))
        errors.append(np.median(np.linalg.norm(run.x - end, axis=1)))
    assert math.log2(errors[0] / errors[1]) == pytest.approx(order, abs=0.1)


def lambda_path(steps):
    lam = np.linspace(-3.0, 3.0, steps + 1)
    return Path(1 / np.sqrt(1 + np.exp(-2 * lam)), 1 / np.sqrt(1 + np.exp(2 * lam)), np.linspace(1, 0, steps + 1))


@pytest.fixture(scope="module")
def truth():
    times = [float(VP.t_of_lam(lam)) for lam in (-3.0, 3.0)]
    x = np.random.default_rng(4).standard_normal((64, 4))
    return x, exact_flow(MIXTURE.x0, VP, *times, x, 1500)[-1]


# mean distance to the exact end, 512 trajectories, lambda-uniform from t = 1 to 1e-3: c = -.2, 0, .1, .3, .5
DISTANCES = {
    (5, "ddim", "first"): (0.990, 0.723, 0.600, 0.376, 0.222),
    (5, "ddim", "previous"): (0.950, 0.723, 0.618, 0.426, 0.266),
    (12, "ddim", "first"): (0.571, 0.306, 0.195, 0.103, 0.217),
    (12, "ddim", "previous"): (0.429, 0.306, 0.252, 0.155, 0.074),
    (12, "dpmpp-2m", "previous"): (0.092, 0.097, 0.135, 0.213, 0.293),
    (12, "dpm-2m", "previous"): (0.155, 0.074, 0.050, 0.079, 0.126),
    (5, "dpm-2m", "previous"): (0.429, 0.280, 0.234, 0.222, 0.297),
}


@pytest.fixture(scope="module")
def full_run():
    x = np.random.default_rng(5).standard_normal((512, 4))
    return x, exact_flow(MIXTURE.x0, VP, 1.0, 1e-3, x, 400)[-1]


@pytest.mark.parametrize(("row", "expected"), DISTANCES.items(), ids=str)
def test_errors_on_an_exact_network(row, expected, full_run):
    """The list has other trajectories: within 4 standard errors of the difference (false alarm 6e-5 per number)."""
    (steps, base, anchor), (x, end) = row, full_run
    path = make_path(VP, "log-snr", steps)
    found = []
    for c, listed in zip((-0.2, 0.0, 0.1, 0.3, 0.5), expected, strict=True):
        plan = make_plan("dualfast", path, base=base, c=c, anchor=anchor)
        distances = np.linalg.norm(Replay(plan, x, eps_of(path)).x - end, axis=1)
        found.append(distances.mean())
        assert abs(found[-1] - listed) < 4 * math.sqrt(2 / len(x)) * distances.std()
    assert found[0] > found[1] or base == "dpmpp-2m"  # the sign: "older" means noisier
    assert (found[3] < found[1]) == (base != "dpmpp-2m")  # data-form second order gets worse


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"base": "dualfast"}, "base: got 'dualfast'"),
        ({"base": "zebra"}, "solver: got 'zebra'"),
        ({"base": "ddim", "solver_type": "heun"}, "'dualfast' has no option 'solver_type'"),
        ({"c": "x"}, "c: got 'x', allowed"),
        ({"c": [0.1]}, "c: got 1 numbers for 4 network calls"),
        ({"shape": "round"}, "shape: got 'round'"),
        ({"anchor": "last"}, "anchor: got 'last'"),
        ({"mix": "none"}, "mix: got 'none'"),
        ({"base": "unipc", "anchored": True}, "anchored: must be False"),
        ({"base": "cm", "c": 0.1}, "base: 'cm' combines raw outputs or makes its own prediction"),
    ],
)
def test_bad_input(options, message):
    with pytest.raises(ValueError, match=message):
        make_plan("dualfast", make_path(VP, "log-snr", 4), **options)


def test_options_of_the_base_pass_through():
    path = make_path(VP, "log-snr", 6)
    plan = make_plan("dualfast", path, base="dpmpp-2m", solver_type="heun", c=0.2)
    again = make_plan("dualfast", path, **dict(plan.options))
    assert again == plan
    assert not np.array_equal(plan.table, make_plan("dualfast", path, base="dpmpp-2m", c=0.2).table)
