"""Solvers of several calls per step: recorded runs, order of convergence, exactness, what refuses."""

from __future__ import annotations

import numpy as np
import pytest

from fastsample import row
from fastsample.grids import make_path
from fastsample.path import Path
from fastsample.plan import make_plan
from fastsample.solvers.singlestep import order_list

from .golden_cases import Replay, cases
from .orders import VP, order
from .test_solvers_golden import check

NAMES = {"dpmsolver++": "dpmpp", "dpmsolver": "dpm", "sde-dpmsolver++": "sde-dpmpp"}


def call_path(case) -> Path:
    """The levels of all calls, and the end."""
    levels = [np.append(case[f"eval_{name}"], case[name][-1]) for name in ("alpha", "sigma", "t")]
    return Path(*levels)


@pytest.mark.parametrize("case", cases("dpmsolver_singlestep"), ids=str)
def test_dpm_solver_singlestep(case):
    cfg = case.cfg
    order = cfg["order"]
    options = {} if order == 1 else {"orders": [int(k) for k in case["orders"]]}
    if order > 1:
        options["solver_type"] = {"dpmsolver": "midpoint", "taylor": "heun"}[cfg["solver_type"]]
    name = f"{NAMES[cfg['algorithm']]}-{order}{'s' if order > 1 else ''}"
    if order == 1:
        options["lower_order_final"] = 0
    plan = make_plan(name, call_path(case), prediction=cfg["prediction"], **options)
    check(case, plan)
    if order > 1 and cfg["method"] == "singlestep":
        assert order_list(order, cfg["nfe"]) == case["orders"].tolist()


@pytest.mark.parametrize("anchored", [None, False], ids=["usual", "noise-made-again"])
@pytest.mark.parametrize("case", cases("dpmsolver_singlestep_diffusers"), ids=str)
def test_diffusers_singlestep(case, anchored):
    cfg, rho = case.cfg, case["sched_sigmas"]
    flow = cfg["prediction"] == "u"
    alpha = 1 - rho if flow else 1 / np.sqrt(1 + rho**2)
    sigma = rho if flow else rho * alpha
    orders, groups = case["orders"].astype(int), []
    for k in orders:  # 1, 2, 3, 1, 2, ... per call
        if k == 1:
            groups.append(1)
        else:
            groups[-1] = int(k)
    options = {"solver_type": cfg["solver_type"], "inner": "type", "orders": groups, "anchored": anchored}
    if cfg.get("asis"):
        options["third"] = "diffusers"
    plan = make_plan(
        f"{NAMES[cfg['algorithm']]}-{cfg['order']}s",
        Path(alpha, sigma, np.append(case["t"], 0.0)),
        prediction="flow" if flow else cfg["prediction"],
        **options,
    )
    check(case, plan, rtol=1e-14)  # the cosine table takes some states to 4e5


@pytest.mark.parametrize("case", cases("edm_sampler"), ids=str)
def test_edm(case):
    cfg = case.cfg
    options = {"s_churn": cfg["S_churn"], "s_tmin": cfg["S_min"], "s_tmax": cfg["S_max"], "s_noise": cfg["S_noise"]}
    path = Path(np.ones_like(case["sigmas"]), case["sigmas"])
    plan = make_plan("heun", path, prediction=cfg["prediction"], **options)
    # the churn of step i rides on the last row of the step before it: draw 0 is the start, row j draw j + 1
    before = {0: 0}
    before.update({1 + call: plan.step_of[call] + 1 for call in range(plan.nfe)})
    check(case, plan, draws=lambda n: case["noise"][before[n]], factor=path.sigma[0], times=1e-15)


def family(name):
    return [c for c in cases("euler_family_diffusers") if c.cfg["scheduler"] == name]


@pytest.mark.parametrize("case", family("EulerAncestralDiscreteScheduler"), ids=str)
def test_euler_ancestral(case):
    rho = case["sched_sigmas"]
    path = Path(np.ones_like(rho), rho, np.append(case["t"], 0.0))
    plan = make_plan("euler-ancestral", path, prediction=case.cfg["prediction"], input_scaling="vp")
    check(case, plan)


def two_stage(case, name, sigmas, **options):
    """diffusers doubles every level but the first and the last; the times of stages are its own."""
    path = Path(np.ones_like(sigmas), sigmas)
    prediction = case.cfg["prediction"]
    plan = make_plan(name, path, prediction=prediction, input_scaling="vp", time=case["eval_t"], **options)
    check(case, plan)


@pytest.mark.parametrize("case", family("HeunDiscreteScheduler"), ids=str)
def test_heun(case):
    doubled = case["sched_sigmas"]
    two_stage(case, "heun", np.append(doubled[:-1:2], doubled[-1]))


@pytest.mark.parametrize("case", family("KDPM2DiscreteScheduler"), ids=str)
def test_kdpm2(case):
    two_stage(case, "dpm-2", np.append(case["sched_sigmas"][:-2:2], 0.0))


@pytest.mark.parametrize("case", family("KDPM2AncestralDiscreteScheduler"), ids=str)
def test_kdpm2_ancestral(case):
    sigmas = np.append(case["sched_sigmas"][:-2:2], 0.0)  # one draw per step, which the row of its second call uses
    options = {"prediction": case.cfg["prediction"], "input_scaling": "vp", "time": case["eval_t"]}
    plan = make_plan("dpm-2-ancestral", Path(np.ones_like(sigmas), sigmas), **options)
    check(case, plan, draws=lambda n: case["noise"][n // 2 - 1])


@pytest.mark.parametrize("anchored", [False, True])
@pytest.mark.parametrize("case", [c for c in cases("kdiffusion_ode") if c.cfg["sampler"] == "dpm_fast"], ids=str)
def test_dpm_fast(case, anchored):
    cfg = case.cfg
    sigmas = np.geomspace(cfg["sigma_max"], cfg["sigma_min"], cfg["n"] + 1)
    plan = make_plan("dpm-fast", Path(np.ones_like(sigmas), sigmas), prediction="x0", anchored=anchored)
    check(case, plan, times=1e-14)


def test_dpm_fast_is_3s_on_its_own_levels():
    """On a path even in log-SNR its rows are those of dpm-3s.  A last group of one (n mod 3 is not 2) is a single
    step of first order, whose error of h^2 is that of the run; else the order is 3."""
    path = make_path(VP, "log-snr", 14, t_max=0.6, t_min=0.05)
    fast = make_plan("dpm-fast", path, schedule="vp-linear")  # groups 3, 3, 3, 3, 2
    levels = make_path(VP, "log-snr", 15, t_max=0.6, t_min=0.05)[:13]
    same = make_plan("dpm-3s", levels, orders=[3] * 4)
    assert fast.table[:12, : row.TIME] == pytest.approx(same.table[:, : row.TIME], abs=1e-12)
    assert fast.t[:12] == pytest.approx(same.t, abs=1e-12)
    assert order("dpm-fast", (96, 192)) == pytest.approx(2.0, abs=0.12)
    assert order("dpm-fast", (98, 194)) == pytest.approx(3.0, abs=0.12)


def test_dpm_fast_to_clean_data_and_with_noise():
    """The last call leads to sigma = 0; noise of any eta keeps the law."""
    path = make_path(VP, "log-snr", 9)
    onward = Path(np.append(path.alpha, 1.0), np.append(path.sigma, 0.0), np.append(path.t, 0.0))
    clean = make_plan("dpm-fast", onward, prediction="x0")
    assert clean.nfe == 10
    x = np.array([0.3, -0.4])
    assert Replay(clean, x, lambda i, state: np.array([0.7, -1.3])).x == pytest.approx([0.7, -1.3], rel=1e-14)
    for eta in (0.0, 0.5, 1.0):
        plan = make_plan("dpm-fast", path, prediction="x0", eta=eta)
        unit = np.eye(plan.draws)
        end = Replay(plan, path.sigma[0] * unit[0], lambda i, x: 0.0 * x, unit).x
        assert np.linalg.norm(end) == pytest.approx(path.sigma[-1], rel=1e-12)


@pytest.mark.parametrize(
    "case", [c for c in cases("flowmatch_diffusers") if c.cfg["scheduler"] == "FlowMatchHeun"], ids=str
)
def test_flow_heun(case):
    doubled = case["sched_sigmas"]
    sigma = np.append(doubled[:-1:2], 0.0)
    path = Path(1 - sigma, sigma) if (sigma < 1).all() else Path(1 - sigma, sigma, sigma)
    check(case, make_plan("flow-heun", path, prediction="flow", time=case["eval_t"]))


# steps of a singlestep path are calls: a group of k covers k of them
ORDERS = {
    ("heun", ()): 2.0,
    ("dpm-2", ()): 2.0,
    ("dpmpp-2s", ("midpoint",)): 2.0,
    ("dpmpp-2s", ("heun",)): 2.0,
    ("dpm-2s", ("midpoint",)): 2.0,
    ("dpm-2s", ("heun",)): 2.0,
    ("dpmpp-3s", ("midpoint",)): 3.0,
    ("dpmpp-3s", ("heun",)): 3.0,
    ("dpm-3s", ("midpoint",)): 3.0,
    ("dpm-3s", ("heun",)): 3.0,
}


@pytest.mark.parametrize(("row", "expected"), ORDERS.items(), ids=str)
def test_order_of_convergence(row, expected):
    """On the exact mixture (spec: 2S 1.91 to 2.02, 3S 2.95 to 3.10); whole groups only."""
    name, choices = row
    options = dict(zip(("solver_type",), choices, strict=False))
    if choices:
        options["fixed"] = True
    assert order(name, (96, 192), **options) == pytest.approx(expected, abs=0.12)


@pytest.mark.parametrize("name", ["euler-ancestral", "dpm-2-ancestral", "dpmpp-2s-ancestral", "dpmpp-sde"])
def test_without_noise_they_are_ode_solvers(name):
    expected = {"euler-ancestral": 1.0}.get(name, 2.0)
    assert order(name, (80, 160), eta=0.0) == pytest.approx(expected, abs=0.12)


def test_scaled_inputs_fit_the_row():
    """State, scaled input and what the step keeps are three outputs; noisy groups of three keep no start for it."""
    path = Path(np.ones(5), [9.0, 4.0, 1.5, 0.5, 0.1])
    x, e, xi = np.array([0.3, -0.4]), np.array([0.2, 0.9]), np.array([0.1, 0.8])
    kept = {"anchored": True}
    for name, options in (("sde-dpmpp-2s", {}), ("dpmpp-sde", {"r": 0.4}), ("heun", kept), ("sde-dpmpp-3s", {})):
        ends = []
        for scaling in ("none", "vp"):
            plan = make_plan(name, path, prediction="x0", input_scaling=scaling, **options)
            ends.append(Replay(plan, x, [e] * plan.nfe, [xi] * plan.draws).x)
        assert ends[0] == pytest.approx(ends[1], rel=1e-12)
    with pytest.raises(ValueError, match="input_scaling: a row of 'sde-dpmpp-3s' writes state"):
        make_plan("sde-dpmpp-3s", path, input_scaling="vp", anchored=True)
