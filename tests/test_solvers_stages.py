"""Solvers of several calls per step: recorded runs, order of convergence, exactness, what refuses."""

from __future__ import annotations

import numpy as np
import pytest

from fastsample.path import Path
from fastsample.plan import make_plan
from fastsample.solvers.singlestep import order_list

from .golden_cases import cases
from .orders import order
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


@pytest.mark.parametrize("case", cases("dpmsolver_singlestep_diffusers"), ids=str)
def test_diffusers_singlestep(case):
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
    options = {"solver_type": cfg["solver_type"], "inner": "type", "orders": groups}
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
