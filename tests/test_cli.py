"""The command line: what it writes, and that a mistake is one line and exit code 2 with nothing half-written."""

from __future__ import annotations

import json
import os
import subprocess
import sys

import numpy as np
import pytest

from fastsample.cli import main
from fastsample.plan import Plan
from fastsample.solvers import solvers

FACTORY = """
import torch
from fastsample import Network

def good():
    return Network(lambda x, t: 0.1 * x, prediction="eps", shape=(3,))

def bad():
    return Network(lambda x, t: x * float("nan"), prediction="eps", shape=(3,))

def wrong_shape():
    return Network(lambda x, t: x[:, :1], prediction="eps", shape=(3,))
"""


@pytest.fixture
def factory(tmp_path):
    path = tmp_path / "nets.py"
    path.write_text(FACTORY)
    return path


def fails(capsys, out, *arguments):
    """Run, expect exit code 2 and one line on stderr, return that line; ``out`` must not exist afterwards."""
    assert main([*arguments]) == 2
    captured = capsys.readouterr()
    lines = captured.err.strip().splitlines()
    assert len(lines) == 1, captured.err
    assert lines[0].startswith("fastsample: error: ")
    if out is not None:
        assert not out.exists()
        assert not [p for p in out.parent.iterdir() if p.is_dir() and p.name != "__pycache__"]
    return lines[0]


def test_main_job_writes_picture_samples_and_report(tmp_path, capsys):
    out = tmp_path / "out"
    command = ["sample", "--model", "digits", "--solver", "dpmpp-2m", "--steps", "4", "-n", "10", "--guidance", "2"]
    assert main([*command, "--seed", "3", "--out", str(out), "--fid"]) == 0
    printed = capsys.readouterr().out
    for name in ("samples.png", "samples.npz", "report.json"):
        assert str(out / name) in printed
    assert (out / "samples.png").read_bytes().startswith(b"\x89PNG")
    with np.load(out / "samples.npz") as data:
        x = data[data.files[0]]
    assert x.shape == (10, 1, 28, 28)
    assert np.isfinite(x).all()
    report = json.loads((out / "report.json").read_text())
    assert report["seed"] == 3
    assert report["nfe"] == 4
    assert report["digit_fid"] > 0
    assert report["seconds"]["network"] > 0
    assert report["facts"]["torch"]
    plan = Plan.from_json(json.dumps(report["plan"]))
    assert plan.hash == report["plan_hash"]


def test_batches_and_repeats_give_equal_samples(tmp_path):
    """The mixture's network is row-wise, so even its numbers do not depend on the batch."""
    arrays = []
    for name, extra in (("a", []), ("b", ["--batch", "3"]), ("c", ["--seed", "1"])):
        command = ["sample", "--model", "mixture", "--solver", "sde-dpmpp-2m", "--steps", "5", "-n", "8"]
        assert main([*command, *extra, "--out", str(tmp_path / name)]) == 0
        with np.load(tmp_path / name / "samples.npz") as data:
            arrays.append(data[data.files[0]])
    assert np.allclose(arrays[0], arrays[1], rtol=0, atol=1e-5)
    assert not np.allclose(arrays[0], arrays[2], atol=1e-2)


def test_own_factory_and_reference_backend(tmp_path, factory):
    command = [sys.executable, "-m", "fastsample", "sample", "--model", f"{factory}:good", "-n", "2", "--steps", "3"]
    result = subprocess.run(
        [*command, "--backend", "reference", "--out", str(tmp_path / "o")], capture_output=True, text=True, check=False
    )
    assert result.returncode == 0, result.stderr
    assert json.loads((tmp_path / "o" / "report.json").read_text())["backend"]["active"] == "reference"


def test_an_existing_result_is_kept_when_a_run_fails(tmp_path, factory, capsys):
    out = tmp_path / "o"
    base = ["sample", "-n", "2", "--steps", "3", "--out", str(out)]
    assert main([*base, "--model", f"{factory}:good"]) == 0
    before = {p.name: p.read_bytes() for p in out.iterdir()}
    capsys.readouterr()
    assert main([*base, "--model", f"{factory}:bad"]) == 2
    assert "not finite" in capsys.readouterr().err
    assert {p.name: p.read_bytes() for p in out.iterdir()} == before


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--solver", "dpmpp2m"], "dpmpp-2m"),
        (["--solver", "nonsense"], "solver"),
        (["--steps", "0"], "steps"),
        (["--steps", "-4"], "steps"),
        (["--schedule", "vp-liner"], "vp-linear"),
        (["--grid", "karas"], "karras"),
        (["--model", "digit"], "digits"),
        (["--model", "missing.py:make"], "missing.py"),
        (["-n", "0"], "-n: got 0"),
        (["--batch", "0"], "--batch: got 0"),
        (["--option", "eta"], "NAME=VALUE"),
        (["--option", "speed=3"], "speed"),
        (["--seed", "-1"], "seed: got -1"),
        (["--device", "warp"], "--device"),
        (["--backend", "fast"], "backend: got 'fast'"),
        (["--no-such-flag"], "no-such-flag"),
        (["--dtype", "int8"], "int8"),
    ],
)
def test_mistakes_are_one_line(tmp_path, capsys, arguments, message):
    out = tmp_path / "o"
    base = ["sample", "--model", "mixture", "-n", "2", "--steps", "2", "--out", str(out)]
    assert message in fails(capsys, out, *base, *arguments)


def test_networks_that_misbehave_are_one_line(tmp_path, capsys, factory):
    out = tmp_path / "deep" / "o"
    out.parent.mkdir()
    base = ["sample", "-n", "2", "--steps", "2", "--out", str(out), "--model"]
    assert "not finite" in fails(capsys, out, *base, f"{factory}:bad")
    assert "returned shape (2, 1)" in fails(capsys, out, *base, f"{factory}:wrong_shape")
    assert "nothing" in fails(capsys, out, *base, f"{factory}:nothing")


@pytest.mark.skipif(os.name != "posix", reason="permissions")
def test_an_unwritable_folder_is_one_line(tmp_path, capsys):
    blocked = tmp_path / "file"
    blocked.write_text("")  # a file where a folder should be: unwritable for root too
    line = fails(capsys, None, "sample", "--model", "mixture", "-n", "2", "--steps", "2", "--out", str(blocked / "o"))
    assert "file" in line


# ctm needs a network of two times
@pytest.mark.parametrize("solver", sorted(n for n in solvers() if n != "ctm"))
def test_every_solver_runs_by_name_alone(tmp_path, capsys, solver):
    assert main(["plan", solver, "--steps", "10"]) == 0
    assert f"{solver}: 10 steps" in capsys.readouterr().out
    command = ["sample", "--model", "mixture", "--solver", solver, "--steps", "4", "-n", "3"]
    assert main([*command, "--out", str(tmp_path / "o")]) == 0


@pytest.mark.parametrize(("variable", "value"), [("FASTSAMPLE_BACKEND", "foo"), ("FASTSAMPLE_LOG", "loud")])
def test_a_wrong_environment_variable_is_one_line(tmp_path, variable, value):
    command = [
        sys.executable,
        "-m",
        "fastsample",
        "sample",
        "--model",
        "mixture",
        "-n",
        "2",
        "--out",
        str(tmp_path / "o"),
    ]
    result = subprocess.run(command, capture_output=True, text=True, env={**os.environ, variable: value}, check=False)
    assert result.returncode == 2
    assert len(result.stderr.strip().splitlines()) == 1
    assert value in result.stderr


def test_an_existing_folder_on_its_own_is_written(tmp_path):
    """The temporary files lie inside a folder that exists: its parent need not be writable, nor on its file system."""
    out = tmp_path / "o"
    out.mkdir()
    (out / "mine.txt").write_text("kept")
    assert main(["sample", "--model", "mixture", "-n", "2", "--steps", "2", "--out", str(out)]) == 0
    assert sorted(p.name for p in out.iterdir()) == ["mine.txt", "report.json", "samples.npz", "samples.png"]
    assert [p.name for p in tmp_path.iterdir()] == ["o"]


def test_plan_and_solvers(capsys):
    assert main(["plan", "dpmpp-2m", "--steps", "3"]) == 0
    assert "dpmpp-2m: 3 steps" in capsys.readouterr().out
    assert main(["plan", "ddim", "--steps", "3", "--option", "eta=0.5", "--json"]) == 0
    assert Plan.from_json(capsys.readouterr().out).options["eta"] == 0.5
    assert main(["solvers"]) == 0
    printed = capsys.readouterr().out
    for name in ("euler", "ddim", "ddpm", "euler-maruyama", "dpmpp-3m", "sde-dpmpp-2m", "ddim-inverse"):
        assert name in printed
    assert main(["solvers", "ddpm"]) == 0
    assert "variance" in capsys.readouterr().out
    assert main(["info"]) == 0
    assert "update / cpu" in capsys.readouterr().out


def test_options_of_the_solver_by_name(tmp_path, capsys):
    base = ["sample", "--model", "mixture", "--solver", "ddim", "--steps", "3", "-n", "4"]
    samples = []
    for name, extra in (("a", ["--eta", "0.7"]), ("b", ["-o", "eta=0.7"]), ("c", ["--eta=0.7"]), ("d", [])):
        assert main([*base, *extra, "--out", str(tmp_path / name)]) == 0
        report = json.loads((tmp_path / name / "report.json").read_text())
        assert report["options"] == ({"eta": 0.7} if extra else {})
        with np.load(tmp_path / name / "samples.npz") as data:
            samples.append(data["samples"])
    assert (samples[0] == samples[1]).all()
    assert (samples[0] == samples[2]).all()
    assert (samples[0] != samples[3]).any()
    capsys.readouterr()
    wrong = ((["--sped", "3"], "no option 'sped'"), (["--eta"], "--eta: got no value"), (["eta"], "got 'eta'"))
    (tmp_path / "e").mkdir()
    for extra, message in wrong:
        assert message in fails(capsys, tmp_path / "e" / "o", *base, *extra, "--out", str(tmp_path / "e" / "o"))


def test_a_procedure_runs_and_reports(tmp_path, capsys):
    out = tmp_path / "o"
    command = [
        "sample",
        "--model",
        "mixture",
        "--solver",
        "dpm-adaptive",
        "--rtol",
        "0.02",
        "-n",
        "300",
        "--batch",
        "150",
    ]
    assert main([*command, "--out", str(out)]) == 0
    printed = capsys.readouterr().out
    report = json.loads((out / "report.json").read_text())
    assert report["solver"] == "dpm-adaptive"
    assert report["plan"] is None
    assert len(report["runs"]) == 2
    assert report["nfe"] == max(run["nfe"] for run in report["runs"]) > 5
    assert 0 < report["distance"]["sliced_w2"] < 0.2
    assert f"distance to the exact law {report['distance']['sliced_w2']:.4f}" in printed
