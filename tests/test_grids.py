from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from fastsample.grids import GRIDS, make_path
from fastsample.schedules import SCHEDULES, VE, DiscreteVP, RectifiedFlow, VPLinear

from .golden_cases import cases

NAMES = {"logSNR": "log-snr", "time_uniform": "uniform", "time_quadratic": "quadratic"}


@pytest.mark.parametrize("case", cases("dpmsolver_multistep"), ids=str)
def test_grids_of_dpm_solver(case):
    cfg = case.cfg
    continuous = cfg["schedule"] == "vp_linear"
    schedule = VPLinear() if continuous else DiscreteVP.scaled_linear()
    path = make_path(schedule, NAMES[cfg["skip"]], cfg["nfe"])
    t = path.t if continuous else schedule.clock(path.t)
    for ours, theirs in ((t, "t"), (path.alpha, "alpha"), (path.sigma, "sigma")):
        np.testing.assert_allclose(ours, case[theirs], rtol=0, atol=1e-12)


@pytest.mark.parametrize("case", [c for c in cases("kdiffusion_ode") if c.cfg.get("grid")], ids=str)
def test_grids_of_k_diffusion(case):
    name, n = case.cfg["grid"], case.cfg["n"]
    if name == "vp":
        path = make_path(VPLinear(), "uniform", n, final="zero").ve()
    else:
        path = make_path(VE(), name, n, sigma_max=15.0, sigma_min=0.03)
    np.testing.assert_allclose(path.sigma, case["sigmas"], rtol=1e-11)
    assert (path.alpha == 1).all()


@pytest.mark.parametrize(
    "case", [c for c in cases("euler_family_diffusers") if c.cfg["scheduler"] == "EulerDiscreteScheduler"], ids=str
)
def test_grids_of_table_schedulers(case):
    karras = case.cfg.get("use_karras_sigmas", False)
    maker = DiscreteVP.scaled_linear if "scaled" in case.cfg["schedule"] else DiscreteVP.linear
    schedule = maker(interpolation="log-snr" if karras else "sigma")
    path = make_path(schedule, "karras" if karras else "uniform", case.cfg["steps"], final="zero")
    np.testing.assert_allclose(path.rho, case["sched_sigmas"], rtol=1e-9)
    np.testing.assert_allclose(path.t[:-1], case["t"], rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("stem", ["ddim_diffusers", "ddpm_diffusers"])
def test_leading_rows(stem):
    for case in cases(stem):
        schedule = DiscreteVP(case["alphas_cumprod"])
        path = make_path(schedule, "leading", case.cfg["steps"])
        np.testing.assert_array_equal(path.t[:-1], case["t"])
        np.testing.assert_allclose(path.alpha[:-1], case["eval_alpha"], rtol=1e-13)
        np.testing.assert_allclose(path.sigma[:-1], case["eval_sigma"], rtol=1e-10)


PLAIN = [c for c in cases("dpmsolver_multistep_diffusers") if "scaled" in c.cfg["schedule"] and not c.cfg["karras"]]


@pytest.mark.parametrize("case", PLAIN, ids=str)
def test_rounded_rows(case):
    """N + 1 rounded rows, whose last is replaced by clean data or is row 0."""
    final = {"zero": "replace", "sigma_min": "end"}[case.cfg["final_sigmas"]]
    path = make_path(DiscreteVP.scaled_linear(), "rows", case.cfg["steps"], final=final)
    np.testing.assert_array_equal(path.t[:-1], case["t"])
    np.testing.assert_allclose(path.rho, case["sched_sigmas"], rtol=1e-13)


@pytest.mark.parametrize(
    "grid", [g for g in GRIDS if g not in ("leading", "trailing", "rows", "beta") and "flow" not in g]
)
@pytest.mark.parametrize("schedule", ["vp-linear", "cosine", "scaled-linear", "edm"])
@pytest.mark.parametrize("steps", [1, 2, 17])
def test_every_grid_on_every_schedule(grid, schedule, steps):
    for final in ("end", "zero", "replace", None):
        path = make_path(schedule, grid, steps, final=final)
        assert path.steps == steps
        if final is not None:
            assert (path.sigma[-1] == 0) == (final != "end")
        if steps > 1:
            assert (np.diff(path.lam) > 0).all()


@pytest.mark.parametrize("grid", ["leading", "trailing", "rows"])
def test_rows_of_a_table(grid):
    path = make_path("scaled-linear", grid, 5)
    expected = {
        "leading": [800, 600, 400, 200, 0],
        "trailing": [999, 799, 599, 399, 199],
        "rows": [999, 749, 500, 250, 0],
    }[grid]
    np.testing.assert_array_equal(path.t[:-1], expected)
    np.testing.assert_array_equal(make_path("scaled-linear", "leading", 5, offset=1).t[:-1], np.arange(801, 0, -200))


def test_ends_of_clean_schedules():
    path = make_path("flow", "uniform", 4)
    np.testing.assert_allclose(path.sigma, [1, 0.75, 0.5, 0.25, 0])
    assert make_path(RectifiedFlow(3.0), "uniform", 4).sigma[2] == pytest.approx(3 * 0.5 / 2)


def test_lists_of_points():
    schedule = VPLinear()
    path = make_path(schedule, [0.9, 0.5, 0.1])
    np.testing.assert_allclose(path.alpha, schedule.alpha([0.9, 0.5, 0.1]))
    rho = np.array([9.0, 2.0, 0.5])
    np.testing.assert_allclose(make_path(schedule, rho, unit="sigma", final="zero").rho, [*rho, 0.0], rtol=1e-14)
    np.testing.assert_allclose(make_path(schedule, [-1.0, 0.0, 2.0], unit="log-snr").lam, [-1, 0, 2], atol=1e-14)
    assert make_path(schedule, [0.9, 0.5, 0.1], 2, final="end").steps == 2
    assert make_path(schedule, [0.9, 0.5, 0.1], 3, final="zero").steps == 3


def test_the_page_lists_every_grid_and_schedule():
    page = (Path(__file__).parents[1] / "docs" / "grids.md").read_text(encoding="utf-8")
    for name in (*GRIDS, *SCHEDULES):
        assert f"| `{name}` |" in page, name


def test_mappings():
    named = make_path("edm", "karras", 7, rho=5, sigma_max=40.0, final="end")
    assert make_path("edm", {"name": "karras", "rho": 5, "sigma_max": 40.0}, 7, final="end") == named
    assert make_path("edm", {"name": "karras", "rho": 5, "final": "end"}, 7, sigma_max=40.0) == named


@pytest.mark.parametrize(
    ("arguments", "options", "message"),
    [
        (("vp-linear", "karas", 5), {}, "did you mean karras"),
        (("vp-linear", "karras", 0), {}, "steps: got 0"),
        (("vp-linear", "karras", 2.5), {}, "steps: got 2.5"),
        (("vp-linear", "karras"), {}, "steps: got None"),
        (("vp-linear", "karras", 5), {"final": "one"}, "final: got 'one'"),
        (("vp-linear", "karras", 5), {"power": 2}, "does not take power"),
        (("vp-linear", "karras", 5), {"rho": -1}, "rho: got -1"),
        (("vp-linear", "uniform", 5), {"t_max": 2.0}, "t_max: got 2"),
        (("vp-linear", "uniform", 5), {"t_max": 0.1, "t_min": 0.2}, "allowed are t_max > t_min"),
        (("vp-linear", "uniform", 5), {"t_max": 0.5, "sigma_max": 0.2}, "t_max: got it and sigma_max"),
        (("vp-linear", "leading", 5), {}, "must be a DiscreteVP"),
        (("scaled-linear", "leading", 1001), {}, "the schedule has 1000 rows"),
        (("flow", "karras", 5), {}, "log-SNR is infinite"),
        (("vp-linear", {"rho": 5}, 5), {}, 'must have the name of a grid as its "name"'),
        (("vp-linear", {"name": "karras", "rho": 5}, 5), {"rho": 6}, "rho: got it twice"),
        (("vp-linear", {"name": "karras", "steps": 5}, 5), {}, "grid: got 'steps' in a mapping"),
        (("vp-linear", {"name": "karras", "power": 2}, 5), {}, "does not take power"),
        (("vp-linear", [0.5, 0.9]), {}, "must rise"),
        (("vp-linear", [0.9, 0.5], 2), {}, "steps: got 2, the grid has 2 points"),
        (("vp-linear", [0.9, 0.5]), {"unit": "ms"}, "unit: got 'ms'"),
        (("vp-linear", [0.9, 0.5]), {"rho": 7}, "takes no further options"),
        (("vp-linear", [2.0, 0.0]), {"unit": "sigma"}, "sigma values must be > 0"),
    ],
)
def test_bad_input(arguments, options, message):
    with pytest.raises(ValueError, match=message):
        make_path(*arguments, **options)


@pytest.mark.parametrize(
    ("schedule", "grid", "steps", "options"),
    [
        ("vp-linear", [2.0, 0.5, 0.1], None, {}),
        ("scaled-linear", [1500.0, 500.0, 0.0], None, {}),
        ("scaled-linear", [900.0, 500.0, -1.0], None, {}),
        ("scaled-linear", "leading", 1000, {"offset": 5}),
    ],
)
def test_times_outside_the_schedule_are_refused(schedule, grid, steps, options):
    with pytest.raises(ValueError, match="grid: has times .* allowed are 0 to"):
        make_path(schedule, grid, steps, **options)
