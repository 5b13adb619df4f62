"""USF: the authors' program on known and random decisions, the published files, documents."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch

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
    outputs, options = list(case["net_eps"]), {}
    if decisions["afs"] == "average_x0":
        with pytest.raises(ValueError, match="afs: 'average-x0' starts from the mean"):
            make_plan("usf", path, schedule=usf.load(decisions))
        options["afs"] = "none"  # the mean of the data as the first answer
        outputs.insert(0, (case["x_T"] - path.alpha[0] * case["average_x0"]) / path.sigma[0])
    plan = make_plan("usf", path, schedule=usf.load(decisions), **options)
    asked = np.array(Replay(plan, case["x_T"], outputs).asked)[-len(case["net_x"]) :]
    np.testing.assert_allclose(asked, case["net_x"], rtol=0, atol=1e-10)
    np.testing.assert_allclose(Replay(plan, case["x_T"], outputs).x, case["out"], rtol=0, atol=1e-10)


@pytest.mark.parametrize("name", [n for n in ALL if "_v3" in n])
def test_per_element_coefficients_are_refused(name):
    with pytest.raises(ValueError, match=r"steps\[\d\]: form 'v3' \(DPM-Solver-v3\) needs"):
        usf.load(json.loads(str(record(name)["decisions"])))


def test_published_files(tmp_path):
    """As torch saves them: tensors, numpy numbers, a list with the score; no code of the file runs."""
    decisions = json.loads(str(record("usf_random2_vplinear_N5")["decisions"]))
    document = usf.load(decisions)
    assert document["steps"][2]["corrector"]["derivatives"][0]["points"] == [-3, -1]
    decisions["timesteps"] = torch.tensor(decisions["timesteps"], dtype=torch.float64)
    decisions["skip_coefficients"] = torch.ones(3)
    file = tmp_path / "schedule.pth"
    torch.save([decisions, np.float64(19.5)], file)
    read = usf.load(file)
    assert read.pop("skip_coefficients") == [1.0, 1.0, 1.0]
    assert read == document
    torch.save({"prediction_types": print}, file)
    with pytest.raises(ValueError, match="is not a file of plain values"):
        usf.load(str(file))


def test_documents_are_json(tmp_path):
    document = usf.known("unipc-3-bh2", 5)
    assert usf.load(json.dumps(document)) == document
    (tmp_path / "schedule.json").write_text(json.dumps(document))
    assert usf.load(tmp_path / "schedule.json") == document
    path = usf.make_path({**document, "timesteps": [1.0, 0.8, 0.6, 0.4, 0.2, 0.001]}, "vp-linear")
    plan = make_plan("usf", path, schedule=document)
    np.testing.assert_array_equal(plan.table, make_plan("usf", path, schedule="unipc-3-bh2").table)
    assert type(plan).from_json(plan.to_json()) == plan
    with pytest.raises(ValueError, match="timesteps: the document has none"):
        usf.make_path(document, "vp-linear")


def step(**changes):
    return {"steps": [{"order": 1}, {"order": 2, **changes}]}


@pytest.mark.parametrize(
    ("document", "message"),
    [
        ("nowhere.json", "schedule: got 'nowhere.json', allowed are"),
        ("{", "schedule: not JSON"),
        ("[1]", "schedule: got '\\[1\\]', allowed are"),
        ({"steps": []}, "steps: got \\[\\]"),
        ({"steps": [{"colour": 1}]}, r"steps\[0\]: got colour, allowed are form"),
        ({"steps": [{}], "version": 2}, "allowed is 'fastsample usf schedule' 1"),
        ({"steps": [{}], "timesteps": [1]}, "timesteps: got 1 numbers for 1 steps"),
        ({"steps": [{}], "afs": "maybe"}, "afs: got 'maybe'"),
        (step(form="v3"), r"steps\[1\]: form 'v3'"),
        (step(form="v"), r"steps\[1\].form: got 'v'"),
        (step(order=0), r"steps\[1\].order: got 0"),
        (step(start=-3), r"steps\[1\].start: got point -3, there are -1 to -2"),
        (step(derivatives=[]), r"steps\[1\].derivatives: got"),
        (step(derivatives=[{"points": [-1]}]), r"derivatives\[0\].points: got .*without -1"),
        (step(derivatives=[{"points": [-3]}]), "got point -3"),
        (step(derivatives=[{"points": [-2], "relaxation": "none"}]), r"relaxation: got 'none'"),
        (step(corrector={"order": 2, "start": -4}), "corrector.start: got point -4, there are -1 to -3"),
        ({"prediction_types": [], "orders": 3}, "a damaged document"),
    ],
)
def test_bad_documents(document, message):
    with pytest.raises(ValueError, match=message):
        usf.load(document)


@pytest.mark.parametrize(
    ("levels", "options", "message"),
    [
        (([0.3, 0.5, 0.9], [0.9, 0.6, 0.3]), {"schedule": "zebra"}, "schedule: got 'zebra', allowed are a document or"),
        (([0.3, 0.5, 0.9], [0.9, 0.6, 0.3]), {"schedule": {"steps": [{}]}}, "schedule: has 1 steps, the path has 2"),
        (([0.3, 0.5, 0.5], [0.9, 0.6, 0.6]), {}, "path: levels 1 and 2 are the same"),
        (([0.0, 0.5, 0.9], [1.0, 0.6, 0.3]), {}, "needs alpha > 0"),
        (([0.3, 0.5, 1.0], [0.9, 0.6, 0.0]), {"schedule": "ddim", "afs": "average-x0"}, "'average-x0' starts from"),
        (([0.3, 0.5, 1.0], [0.9, 0.6, 0.0]), {"schedule": step()}, "ends at sigma = 0"),
        (([0.3, 0.9], [0.9, 0.3]), {"schedule": "ddim", "afs": "zero-x0"}, "would never ask its network"),
    ],
)
def test_bad_paths(levels, options, message):
    with pytest.raises(ValueError, match=message):
        make_plan("usf", Path(*levels, np.linspace(1, 0, len(levels[0]))), **options)
