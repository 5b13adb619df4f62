"""UniPC: the authors' program and that of diffusers, orders of convergence, the exact Gaussian law, reductions."""

from __future__ import annotations

import numpy as np
import pytest

from fastsample.path import Path
from fastsample.plan import make_plan

from .exact import Mixture
from .follow import follow
from .golden_cases import Case, Replay, cases

FORM = {"data": "x0", "noise": "eps", True: "x0", False: "eps"}


@pytest.mark.parametrize("anchored", [False, True], ids=["chained", "anchored"])
@pytest.mark.parametrize("case", cases("unipc_official"), ids=str)
def test_authors_program(case, anchored):
    cfg = case.cfg
    options = {"order": cfg["order"], "variant": cfg["variant"], "form": FORM[cfg["form"]], "anchored": anchored}
    follow(case, make_plan("unipc", Path(case["alpha"], case["sigma"], case["t"]), **options))


@pytest.mark.parametrize("anchored", [False, True], ids=["chained", "anchored"])
@pytest.mark.parametrize("case", cases("unipc_diffusers"), ids=str)
def test_diffusers(case, anchored):
    cfg = case.cfg
    prediction = "flow" if cfg["prediction"] == "u" else cfg["prediction"]
    options = {"order": cfg["order"], "variant": cfg["solver_type"], "form": FORM[cfg["predict_x0"]]}
    path = Path(case["alpha"], case["sigma"], np.append(case["t"], 0.0))
    follow(case, make_plan("unipc", path, prediction=prediction, anchored=anchored, **options))


def varied(case: Case) -> float:
    path = Path(case["alpha"], case["sigma"], case["t"])
    plan = make_plan("unipc", path, order=case.cfg["order"], variant="exact")
    mixture, levels = Mixture(), path.levels()

    def eps(i, x):
        return (x - levels[i].alpha * mixture.x0(x, levels[i].alpha, levels[i].sigma)) / levels[i].sigma

    return float(np.abs(Replay(plan, case["x_T"], eps).x - case["x_0"]).max())


@pytest.mark.parametrize("case", cases("unipc_varycoeff_asis"), ids=str)
def test_varying_coefficients_as_published_drop_terms(case):
    """Order 1 of the authors' program is the exact system; from order 2 on its corrector is another, wrong one."""
    if case.cfg["order"] == 1:
        assert varied(case) < 1e-12
    else:
        assert varied(case) > 1e-2
