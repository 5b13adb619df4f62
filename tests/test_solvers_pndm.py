"""F-PNDM, S-PNDM and PLMS: recorded runs of the authors and of diffusers, orders, bad input."""

from __future__ import annotations

import math

import numpy as np
import pytest

from fastsample.grids import make_path
from fastsample.path import Path
from fastsample.plan import make_plan
from fastsample.solvers.deis import FIXED

from .follow import follow
from .golden_cases import Replay, cases
from .orders import VP, order
from .test_solvers_law import run_mixture

ANCHORED = pytest.mark.parametrize("anchored", [False, True], ids=["chained", "anchored"])


def level(squared: float, t: float) -> list[float]:
    return [math.sqrt(squared), math.sqrt(1 - squared), float(t)]


@ANCHORED
@pytest.mark.parametrize("case", [c for c in cases("pndm_official") if c.cfg["method"] != "DDIM"], ids=str)
def test_authors_program(case, anchored):
    table, times = case["alphas_cumprod_with_leading_one"], [*case["t"].tolist(), -1]

    def at(t):
        return level(table[int(t) + 1], t)

    options = {}
    if case.cfg["method"] == "F-PNDM":  # half times are cut to whole rows
        options["middles"] = [at(int((times[i] + times[i + 1]) / 2)) for i in range(3)]
    path = Path(*np.array([at(t) for t in times]).T)
    follow(case, make_plan(case.cfg["method"], path, anchored=anchored, **options))


@ANCHORED
@pytest.mark.parametrize("case", cases("pndm_diffusers"), ids=str)
def test_diffusers(case, anchored):
    cfg, table = case.cfg, case["alphas_cumprod"]
    stride = 1000 // cfg["steps"]
    last = 1.0 if cfg["set_alpha_to_one"] else table[0]
    rows = case["t"][0] - stride * np.arange(cfg["steps"] + 1)
    path = Path(*np.array([level(table[int(t)] if t >= 0 else last, t) for t in rows]).T)
    name, options = "plms", {}
    if not cfg["skip_prk_steps"]:
        # the second call of a step is made on the state of row t - stride // 2, whatever time the network is told
        name, told = "f-pndm", case["t"][:12].reshape(3, 4)
        options["middles"] = [
            middle
            for t, (_, second, third, _) in zip(rows[:3], told, strict=True)
            for middle in (level(table[int(t) - stride // 2], second), level(table[int(third)], third))
        ]
    kind = cfg["prediction"]
    follow(case, make_plan(name, path, prediction=kind, form=kind, anchored=anchored, **options))


def test_v_networks_may_be_combined_as_eps_or_as_v():
    """Two different methods for v networks; with one value they are the same DDIM step, for every kind of network."""
    path = make_path(VP, "log-snr", 8)
    rng = np.random.default_rng(2)
    outputs, x = rng.standard_normal((9, 5)), rng.standard_normal(5)
    ends = [Replay(make_plan("plms", path, prediction="v", form=form), x, outputs).x for form in ("eps", "v")]
    assert np.abs(ends[0] - ends[1]).max() > 1e-3
    plans = [make_plan("plms", path, prediction="v", form=form, order=1) for form in ("eps", "v")]
    second = [Replay(plan, x, [outputs[0], outputs[0], *outputs[2:]]).states for plan in plans]
    np.testing.assert_allclose(second[0][0], second[1][0], rtol=1e-13)


@ANCHORED
@pytest.mark.parametrize("form", ["eps", "v"])
@pytest.mark.parametrize("name", ["f-pndm", "s-pndm", "plms"])
def test_chained_and_anchored_are_the_same(name, form, anchored):
    path = make_path(VP, "log-snr", 7)
    plans = [make_plan(name, path, form=form, anchored=anchored) for anchored in (False, anchored)]
    outputs = np.random.default_rng(5).standard_normal((plans[0].nfe, 6))
    ends = [Replay(plan, np.ones(6), outputs).x for plan in plans]
    np.testing.assert_allclose(*ends, rtol=0, atol=1e-12)


def test_s_pndm_is_plms_of_two_values():
    path = make_path(VP, "uniform", 8)
    np.testing.assert_array_equal(make_plan("s-pndm", path).table, make_plan("plms", path, order=2).table)


def test_plms_is_ipndm_where_the_second_look_sees_the_same():
    path = make_path(VP, "uniform", 8)
    outputs, x = np.random.default_rng(7).standard_normal((8, 5)), np.linspace(-1, 1, 5)
    ends = [
        Replay(make_plan("plms", path), x, [outputs[0], *outputs]).x,
        Replay(make_plan("ipndm", path), x, outputs).x,
    ]
    np.testing.assert_allclose(*ends, rtol=0, atol=1e-12)


@pytest.mark.parametrize("name", ["f-pndm", "s-pndm", "plms"])
@pytest.mark.parametrize("grid", ["uniform", "log-snr"])
def test_order_of_convergence(name, grid):
    """The weights are those of equal steps in no coordinate that the flow knows: order 2, whatever the name says."""
    assert order(name, (160, 320), grid) == pytest.approx(2.0, abs=0.07)


def test_weights():
    for weights in FIXED:  # Adams-Bashforth on the points 0, -1, -2, -3: exact on [0, 1] for polynomials
        points = -np.arange(len(weights))
        for k in range(len(weights)):
            assert np.dot(weights, points.astype(float) ** k) == pytest.approx(1 / (k + 1), abs=1e-13)


def test_calls():
    path = make_path(VP, "log-snr", 10)
    assert (make_plan("f-pndm", path).nfe, make_plan("s-pndm", path).nfe, make_plan("plms", path).nfe) == (19, 11, 11)
    assert make_plan("f-pndm", path[:2]).nfe == 4
    assert len(make_plan("plms", path, guidance=2.0).slots) == 4  # the state and three earlier values
    assert make_plan("f-pndm", path, guidance=2.0).nfe == 19


@pytest.mark.parametrize("name", ["f-pndm", "s-pndm", "plms"])
@pytest.mark.parametrize("steps", [1, 2, 3, 4, 5])
def test_short_paths(name, steps):
    for path in (make_path(VP, "log-snr", steps), make_path(VP, "exponential", steps)):
        assert np.isfinite(run_mixture_of(name, path)).all()


def run_mixture_of(name: str, path: Path) -> np.ndarray:
    plan = make_plan(name, path, prediction="x0")
    return Replay(plan, np.ones(3), lambda i, x: 0.3 * x).x


def test_schedule_gives_middles_at_half_of_the_time():
    path = make_path("vp-linear", "uniform", 6)
    plan = make_plan("f-pndm", path, schedule="vp-linear")
    assert plan.t[1] == pytest.approx(0.5 * (path.t[0] + path.t[1]), rel=1e-12)
    assert plan.t[2] == plan.t[1]
    assert run_mixture("s-pndm", make_path(VP, "exponential", 1)).shape == (8, 4)


@pytest.mark.parametrize(
    ("option", "value"),
    [
        ("form", "x0"),
        ("anchored", 0),
        ("middles", [[0.5, 0.5, 0.5]]),
        ("middles", 3),
        ("middles", [[0.5, 0.5]] * 3),
        ("middles", [[0.5, math.nan, 0.5]] * 3),
        ("middles", [[0.9, 0.4, 0.5]] * 3),
        ("schedule", "vpp"),
    ],
)
def test_bad_options(option, value):
    with pytest.raises(ValueError, match=f"^{option}: got"):
        make_plan("f-pndm", make_path(VP, "log-snr", 8), **{option: value})


def test_order_is_an_option_of_plms_alone():
    with pytest.raises(ValueError, match="order: got 0"):
        make_plan("plms", make_path(VP, "log-snr", 8), order=0)
    with pytest.raises(ValueError, match="has no option 'order'"):
        make_plan("f-pndm", make_path(VP, "log-snr", 8), order=4)
