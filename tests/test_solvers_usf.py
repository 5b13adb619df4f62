"""USF: the authors' program on known and random decisions, the published files, documents."""

from __future__ import annotations

import json

import numpy as np
import pytest

from fastsample.path import Path
from fastsample.plan import make_plan
from fastsample.solvers import usf

from .golden_cases import GOLDEN, Replay


def record(name):
    with np.load(GOLDEN / f"{name}.npz") as file:
        return {key: file[key] for key in file.files}


ALL = sorted(file.stem for file in GOLDEN.glob("usf_*.npz"))


@pytest.mark.parametrize("name", [n for n in ALL if "_v3" not in n])
def test_authors_program(name):
    case = record(name)
    decisions = json.loads(str(case["decisions"]))
    path = Path(case["alphas"], case["sigmas"], case["t_grid"])
    outputs = list(case["net_eps"])
    if decisions["afs"] == "average_x0":
        # the mean of the data as the first answer
        with pytest.raises(ValueError, match="afs: 'average-x0' starts from the mean"):
            usf.load(decisions)
        decisions["afs"] = "no_afs"
        outputs.insert(0, (case["x_T"] - path.alpha[0] * case["average_x0"]) / path.sigma[0])
    plan = make_plan("usf", path, schedule=usf.load(decisions))
    asked = np.array(Replay(plan, case["x_T"], outputs).asked)[-len(case["net_x"]) :]
    np.testing.assert_allclose(asked, case["net_x"], rtol=0, atol=1e-10)
    np.testing.assert_allclose(Replay(plan, case["x_T"], outputs).x, case["out"], rtol=0, atol=1e-10)


@pytest.mark.parametrize("name", [n for n in ALL if "_v3" in n])
def test_per_element_coefficients_are_refused(name):
    with pytest.raises(ValueError, match=r"steps\[\d\]: form 'v3' \(DPM-Solver-v3\) needs"):
        usf.load(json.loads(str(record(name)["decisions"])))
