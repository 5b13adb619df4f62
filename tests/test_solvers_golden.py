"""Rows against recorded runs of the authors' own programs: 1e-10 in float64."""

from __future__ import annotations

import numpy as np
import pytest

from fastsample.path import Path
from fastsample.plan import make_plan

from .golden_cases import Case, Replay, cases

ORDER = {1: "1", 2: "2m", 3: "3m"}
ALGORITHM = {"dpmsolver++": "dpmpp", "dpmsolver": "dpm", "sde-dpmsolver++": "sde-dpmpp", "sde-dpmsolver": "sde-dpm"}


def check(case: Case, plan, start="x_T", end="x_0", draws=None, rtol=0.0, factor=1.0, times=0.0) -> None:
    if draws is None and "noise" in case:

        def draws(n):  # draw 0 is the start, which the recording gives
            return case["noise"][n - 1]

    run = Replay(plan, factor * case[start], case["eval_out"], draws or ())
    assert len(run.asked) == len(case["eval_x"])
    np.testing.assert_allclose(run.asked, case["eval_x"], rtol=rtol, atol=1e-10)
    np.testing.assert_allclose(run.x, case[end], rtol=rtol, atol=1e-10)
    np.testing.assert_allclose(plan.t[: len(case["eval_t"])], case["eval_t"], rtol=times, atol=0)


def table_path(case: Case, after: tuple[float, float], reverse: bool = False) -> Path:
    """Levels of integer rows of a table, and one more at the clean end."""
    squared = case["alphas_cumprod"][case["t"].astype(int)]
    levels = np.stack([np.sqrt(squared), np.sqrt(1 - squared), case["t"]], axis=1)
    levels = np.insert(levels, 0 if reverse else len(levels), [*after, 0.0], axis=0)
    return Path(*levels.T, reverse=reverse)


def clean(case: Case) -> tuple[float, float]:
    row0 = case["alphas_cumprod"][0]
    return (1.0, 0.0) if case.cfg.get("set_alpha_to_one", True) else (np.sqrt(row0), np.sqrt(1 - row0))


@pytest.mark.parametrize("case", cases("ddim_diffusers"), ids=str)
def test_ddim(case):
    cfg = case.cfg
    clip = 1.0 if cfg["clip_sample"] else None
    options = {"eta": cfg["eta"], "use_clipped": cfg["use_clipped_model_output"]}
    check(case, make_plan("ddim", table_path(case, clean(case)), prediction=cfg["prediction"], clip=clip, **options))


@pytest.mark.parametrize("case", cases("ddim_inverse_diffusers"), ids=str)
def test_ddim_inverse(case):
    path = table_path(case, clean(case), reverse=True)
    check(case, make_plan("ddim-inverse", path, prediction=case.cfg["prediction"]), "x_start", "x_end")


@pytest.mark.parametrize(
    "case", [c for c in cases("ddpm_diffusers") if c.cfg["variance_type"] != "learned_range"], ids=str
)
def test_ddpm(case):
    clip = 1.0 if case.cfg["clip_sample"] else None
    variance = case.cfg["variance_type"].removeprefix("fixed_")
    path = table_path(case, (1.0, 0.0))
    check(case, make_plan("ddpm", path, prediction=case.cfg["prediction"], clip=clip, variance=variance))


@pytest.mark.parametrize("case", cases("dpmsolver_multistep"), ids=str)
def test_dpm_solver(case):
    cfg = case.cfg
    options = {"solver_type": {"taylor": "heun", "dpmsolver": "midpoint"}[cfg["solver_type"]]}
    plan = make_plan(
        f"{ALGORITHM[cfg['algorithm']]}-{ORDER[cfg['order']]}",
        Path(case["alpha"], case["sigma"], case["t"]),
        prediction=cfg["prediction"],
        denoise=cfg.get("denoise_to_zero", False),
        lower_order_final=10,
        **(options if cfg["order"] > 1 else {}),
    )
    check(case, plan)


@pytest.mark.parametrize("case", cases("dpmsolver_multistep_diffusers"), ids=str)
def test_dpm_solver_diffusers(case):
    cfg, rho = case.cfg, case["sched_sigmas"]
    flow = cfg["prediction"] == "u"
    alpha = 1 - rho if flow else 1 / np.sqrt(1 + rho**2)
    sigma = rho if flow else rho * alpha
    options = {"solver_type": cfg["solver_type"]} if cfg["order"] > 1 else {}
    if cfg.get("asis"):
        options["third"] = "diffusers"
    name = f"{ALGORITHM[cfg['algorithm']]}-{ORDER[cfg['order']]}"
    path = Path(alpha, sigma, np.append(case["t"], 0.0))
    check(case, make_plan(name, path, prediction="flow" if flow else cfg["prediction"], **options))


@pytest.mark.parametrize(
    "case", [c for c in cases("euler_family_diffusers") if c.cfg["scheduler"] == "EulerDiscreteScheduler"], ids=str
)
def test_euler_ve_state(case):
    rho = case["sched_sigmas"]
    path = Path(np.ones_like(rho), rho, np.append(case["t"], 0.0))
    check(case, make_plan("euler", path, prediction=case.cfg["prediction"], input_scaling="vp"))


def k_diffusion(stem, *samplers):
    return [c for c in cases(stem) if c.cfg["sampler"] in samplers]


@pytest.mark.parametrize("case", k_diffusion("kdiffusion_ode", "euler", "dpmpp_2m"), ids=str)
def test_k_diffusion_ode(case):
    path = Path(np.ones_like(case["sigmas"]), case["sigmas"])
    name, options = ("euler", {}) if case.cfg["sampler"] == "euler" else ("dpmpp-2m", {"lower_order_final": 0})
    check(case, make_plan(name, path, prediction="x0", **options))


@pytest.mark.parametrize("case", k_diffusion("kdiffusion_sde", "dpmpp_2m_sde", "dpmpp_3m_sde"), ids=str)
def test_k_diffusion_sde(case):
    cfg = case.cfg
    name = {"dpmpp_2m_sde": "sde-dpmpp-2m", "dpmpp_3m_sde": "sde-dpmpp-3m"}[cfg["sampler"]]
    options = {"solver_type": cfg.get("solver_type", "heun"), "eta": cfg["eta"], "s_noise": cfg["s_noise"]}
    path = Path(np.ones_like(case["sigmas"]), case["sigmas"])
    check(case, make_plan(name, path, prediction="x0", lower_order_final=False, **options))


@pytest.mark.parametrize("case", k_diffusion("kdiffusion_sde", "euler"), ids=str)
def test_k_diffusion_churn(case):
    # the churn of call i rides on the row before it: the start has draw 0, row i draw i + 1
    options = {k: case.cfg[k] for k in ("s_churn", "s_tmin", "s_tmax", "s_noise")}
    path = Path(np.ones_like(case["sigmas"]), case["sigmas"])
    check(case, make_plan("euler", path, prediction="x0", **options), draws=lambda n: case["noise"][n])


@pytest.mark.parametrize(
    "case", [c for c in cases("flowmatch_diffusers") if c.cfg["scheduler"] == "FlowMatchEuler"], ids=str
)
def test_flow_euler(case):
    sigma = case["sched_sigmas"]
    path = Path(1 - sigma, sigma, np.append(case["t"], 0.0))
    renoise = case.cfg.get("stochastic_sampling", False)
    check(case, make_plan("euler", path, prediction="flow", renoise=renoise))
