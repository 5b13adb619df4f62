"""Runs with dynamic thresholding against recorded ones, in float64: the authors' DPM-Solver, and three of diffusers."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from fastsample import sample
from fastsample.path import Path
from fastsample.plan import make_plan

from .golden_cases import cases


def check(case, plan):
    """The recorded network outputs are played back: every question and the end must be the recorded ones."""
    asked = []

    def network(x, t):
        asked.append(x.clone())
        return torch.from_numpy(case["eval_out"][len(asked) - 1])

    x = sample(network, torch.from_numpy(case["x_T"]), plan=plan, dtype=torch.float64)
    np.testing.assert_allclose(np.stack(asked), case["eval_x"], rtol=0, atol=1e-10)
    np.testing.assert_allclose(x, case["x_0"], rtol=0, atol=1e-10)


@pytest.mark.parametrize("case", [c for c in cases("dpmsolver_threshold") if "thresholding" in c.cfg], ids=str)
def test_dpm_solver_with_a_floor_and_no_ceiling(case):
    limits = case.cfg["thresholding"]
    plan = make_plan(
        "dpmpp-2m",
        Path(case["alpha"], case["sigma"], case["t"]),
        prediction="eps",
        lower_order_final=10,
        threshold=(limits["ratio"], limits["max_val"], math.inf),
    )
    check(case, plan)


@pytest.mark.parametrize(
    "case", [c for c in cases("threshold_diffusers") if c.cfg["scheduler"].startswith("DPM")], ids=str
)
def test_diffusers_multistep(case):
    rho = case["sched_sigmas"]
    alpha = 1 / np.sqrt(1 + rho**2)
    path = Path(alpha, rho * alpha, np.append(case["t"], 0.0))
    threshold = (case.cfg["ratio"], 1.0, case.cfg["sample_max_value"])
    check(case, make_plan("dpmpp-2m", path, prediction="eps", threshold=threshold))


@pytest.mark.parametrize(
    "case", [c for c in cases("threshold_diffusers") if c.cfg["scheduler"].startswith("DDIM")], ids=str
)
def test_diffusers_ddim(case):
    alpha, sigma = (np.append(case[f"eval_{name}"], last) for name, last in (("alpha", 1.0), ("sigma", 0.0)))
    threshold = (case.cfg["ratio"], 1.0, case.cfg["sample_max_value"])
    path = Path(alpha, sigma, np.append(case["t"], -1.0))
    check(case, make_plan("ddim", path, prediction="eps", threshold=threshold))
