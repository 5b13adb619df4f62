"""``fastsample profile``: what the summary counts is what the run did; refusals. Traces: test_profile_traces.py."""

from __future__ import annotations

import gzip
import json
import os
import stat
import sys

import pytest
import torch

import fastsample
from fastsample.cli import main
from fastsample.profiling import enable, torch_trace
from fastsample.profiling.summary import summarize


def run(out, *job, tool="torch"):
    code = main(["profile", "--tool", tool, "--out", str(out), "--", *job])
    return code, json.loads((out / "summary.json").read_text()) if code == 0 else None


def sample_job(tmp_path, *options):
    return ["sample", *options, "--no-progress", "--out", str(tmp_path / "samples")]


def same(count):
    """The summary of a number that is the same in every step."""
    return lambda steps: {"least": count, "median": count, "most": count, "sum": count * steps}


def profiled(tmp_path, function):
    """The summary of a call, without the command."""
    with (
        enable(nvtx=False, torch_profiler=True),
        torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU], profile_memory=True) as seen,
    ):
        function()
    path = tmp_path / "trace.json"
    seen.export_chrome_trace(str(path))
    return summarize(torch_trace.read(path))


# --- jobs


def test_digits(tmp_path, capsys):
    options = ("--model", "digits", "--solver", "sde-dpmpp-2m", "--steps", "3", "-n", "2", "--guidance", "2")
    code, found = run(tmp_path / "p", *sample_job(tmp_path, *options))
    assert code == 0
    report = json.loads((tmp_path / "samples" / "report.json").read_text())
    assert found["counts"] == {"run": 1, "step": 3, "network": report["nfe"], "update": 3, "replay": 0, "capture": 0}
    assert found["solvers"] == ["sde-dpmpp-2m"] and found["state_bytes"] == [2 * 784 * 4]
    assert found["tool"] == "torch.profiler" and not found["cuda"] and found["device"] is None
    assert found["per_step"]["ops"] == same(1)(3)  # the update and nothing else
    assert found["per_step"]["host_reads"] == same(0)(3)
    assert found["per_step"]["state_allocations"] == same(0)(3)
    assert found["per_step"]["launches"] is None
    seconds = found["seconds"]
    parts = seconds["network"] + seconds["update"] + seconds["gaps"]
    assert parts == pytest.approx(seconds["runs"], rel=1e-6)
    assert 0 < seconds["runs"] < found["seconds_of_job"]
    assert found["top_ops"][0]["microseconds"] >= found["top_ops"][1]["microseconds"]
    printed = capsys.readouterr().out
    assert "3 steps, 3 network calls, 3 updates" in printed
    assert (tmp_path / "p" / "summary.txt").read_text() in printed
    with gzip.open(tmp_path / "p" / "trace.json.gz") as file:
        names = {event.get("name") for event in json.load(file)["traceEvents"]}
    assert {"fastsample:network", "fastsample:update", "fastsample:step sde-dpmpp-2m"} <= names


def test_mixture_with_two_calls_per_step(tmp_path):
    options = ("--model", "mixture", "--solver", "heun", "--steps", "4", "-n", "6", "--batch", "3")
    code, found = run(tmp_path / "p", *sample_job(tmp_path, *options))
    nfe = json.loads((tmp_path / "samples" / "report.json").read_text())["nfe"]
    assert code == 0 and nfe > 4
    counts = found["counts"]
    assert (counts["run"], counts["step"], counts["network"], counts["update"]) == (2, 8, 2 * nfe, 2 * nfe)
    assert found["per_step"]["host_reads"]["sum"] == 0
    assert found["per_step"]["ops"]["sum"] == 2 * nfe


def test_script(tmp_path, monkeypatch, capsys):
    (tmp_path / "beside_profiled.py").write_text("STEPS = 2\n")
    script = tmp_path / "job.py"
    script.write_text(
        "import sys\nfrom beside_profiled import STEPS\nimport fastsample\n"
        "assert __name__ == '__main__' and sys.argv == [__file__, '--seed', '3'], sys.argv\n"
        "fastsample.sample(lambda x, t: 0.1 * x, (2, 3), solver='ddim', steps=STEPS, seed=int(sys.argv[2]))\n"
    )
    arguments, path = list(sys.argv), list(sys.path)
    code, found = run(tmp_path / "p", "python", str(script), "--seed", "3")
    assert code == 0 and found["counts"]["step"] == 2
    assert (sys.argv, sys.path) == (arguments, path)
    code, found = run(tmp_path / "q", "python", "-c", "import sys, fastsample; " + SHORT.format(3), "x")
    assert code == 0 and found["counts"]["step"] == 3
    monkeypatch.syspath_prepend(str(tmp_path))
    (tmp_path / "as_module.py").write_text("import fastsample; " + SHORT.format(1))
    code, found = run(tmp_path / "r", "python", "-m", "as_module")
    assert code == 0 and found["counts"]["step"] == 1


SHORT = "fastsample.sample(lambda x, t: 0.1 * x, (2, 3), solver='ddim', steps={}, seed=0)"


def test_drop_in_of_diffusers(tmp_path):
    schedulers = pytest.importorskip("fastsample.integrations.diffusers")
    scheduler = schedulers.DDIMScheduler()
    scheduler.set_timesteps(5)
    x = torch.ones(1, 2, 4, 4)

    def loop():
        for t in scheduler.timesteps:
            scheduler.step(x, t, x, return_dict=False)

    found = profiled(tmp_path, loop)
    assert found["unit"] == "update" and found["counts"]["update"] == 5 and found["solvers"] == ["DDIMScheduler"]
    # times live on the host here and are looked at; `fastsample doctor` shows what an accelerator feels
    assert found["per_step"]["host_reads"] == same(1)(5)


def test_a_recorded_run_is_seen_by_its_replays(tmp_path):
    def job():
        fastsample.sample(lambda x, t: 0.1 * x, (2, 3), solver="dpmpp-2m", steps=4, seed=0, graph="on")

    found = profiled(tmp_path, job)
    assert found["unit"] == "replay" and found["solvers"] == ["dpmpp-2m"]
    counts = found["counts"]
    assert (counts["run"], counts["replay"], counts["network"]) == (1, 4, 0) and counts["capture"] >= 1
    assert found["per_step"]["host_reads"] == same(0)(4)
    seconds = found["seconds"]
    assert seconds["replay"] + seconds["gaps"] == pytest.approx(seconds["runs"], rel=1e-6)


def test_langevin_chains(tmp_path):
    from fastsample import langevin

    target, kept = langevin.Score(lambda x: -x), []

    def job():
        kept.append(langevin.sample(target, torch.zeros(3, 2), kernel="ula", steps=4, step_size=0.1, seed=0))

    found = profiled(tmp_path, job)
    assert found["counts"]["network"] == kept[0].report.calls == 4
    assert found["unit"] == "update" and found["counts"]["update"] == 4
    assert 0 < found["seconds"]["network"] < found["seconds"]["runs"]


# --- what the counts can see


def test_reads_and_allocations_of_a_callback_are_seen(tmp_path):
    kept = []

    def callback(info):
        if info.call % 2:
            float(info.x.sum())  # one read, though item and _local_scalar_dense are two ops
        kept.append(info.x.clone())  # a tensor of the state's size

    def job():
        fastsample.sample(lambda x, t: 0.1 * x, (4, 30), solver="ddim", steps=4, seed=0, callback=callback)

    found = profiled(tmp_path, job)["per_step"]
    assert found["host_reads"] == {"least": 0, "median": 0.5, "most": 1, "sum": 2}
    assert found["state_allocations"] == same(1)(4)
    assert found["ops"]["least"] >= 2


def test_reads_of_the_network_are_apart(tmp_path):
    def network(x, t):
        return 0.1 * x if t[0].item() > -1 else x

    found = profiled(tmp_path, lambda: fastsample.sample(network, (2, 3), solver="ddim", steps=3, seed=0))["per_step"]
    assert found["network_host_reads"] == same(1)(3)
    assert found["host_reads"] == same(0)(3)


# --- nsys


FAKE = """#!{python}
import os, subprocess, sys
sys.path.insert(0, {root!r})
with open({log!r}, "a") as log:
    print(os.environ.get("FASTSAMPLE_NVTX"), *sys.argv[1:], sep="\\t", file=log)
options = dict(word[2:].partition("=")[::2] for word in sys.argv[2:] if word.startswith("--") and "=" in word)
if sys.argv[1] == "profile":
    command = sys.argv[1 + next(n for n, word in enumerate(sys.argv[1:]) if word == sys.executable):]
    open(options["output"] + ".nsys-rep", "w").close()
    sys.exit(subprocess.run([*command[:1], "-c", {stand_in!r}]).returncode)
from tests.nsys_file import write_export
write_export(options["output"])
"""


@pytest.fixture
def fake_nsys(tmp_path, monkeypatch):
    """An nsys that notes how it was called; the job itself is a stand-in that ends with the code in ENDS_WITH."""
    log, file = tmp_path / "calls.txt", tmp_path / "bin" / "nsys"
    file.parent.mkdir()
    stand_in = "import os, sys; sys.exit(int(os.environ.get('ENDS_WITH', '0')))"
    root = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
    file.write_text(FAKE.format(python=sys.executable, root=root, log=str(log), stand_in=stand_in))
    file.chmod(file.stat().st_mode | stat.S_IXUSR)
    monkeypatch.setenv("PATH", str(file.parent) + os.pathsep + os.environ["PATH"])
    return lambda: [line.split("\t") for line in log.read_text().splitlines()]


def test_under_nsys(tmp_path, fake_nsys):
    pytest.importorskip("nvtx")
    out = tmp_path / "p"
    code, found = run(out, "sample", "--model", "mixture", tool="auto")
    assert code == 0 and found["tool"] == "nsys" and found["job"] == ["sample", "--model", "mixture"]
    assert {p.name for p in out.iterdir()} == {
        *("trace.nsys-rep", "trace.sqlite", "trace.json.gz", "summary.json", "summary.txt")
    }
    (on, *profile), (_, *export) = fake_nsys()
    stem = profile[4].removeprefix("--output=")
    assert on == "1"
    assert profile[:4] == ["profile", "--trace=cuda,nvtx,osrt", "--sample=none", "--force-overwrite=true"]
    assert profile[5:] == [sys.executable, "-m", "fastsample", "sample", "--model", "mixture"]
    expected = ["--type=sqlite", "--force-overwrite=true", f"--output={stem}.sqlite", f"{stem}.nsys-rep"]
    assert export == ["export", *expected]
    with gzip.open(out / "trace.json.gz") as file:
        names = [event["name"] for event in json.load(file)["traceEvents"]]
    assert names.count("fastsample:network") == 4 and "cudaGraphLaunch" in names


def test_a_job_that_fails_under_nsys(tmp_path, fake_nsys, monkeypatch, capsys):
    pytest.importorskip("nvtx")
    monkeypatch.setenv("ENDS_WITH", "7")
    assert run(tmp_path / "p", "sample", tool="nsys")[0] == 7
    assert "job: ended with exit code 7; no profile is written" in capsys.readouterr().err
    assert not (tmp_path / "p").exists()


# --- refusals


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "job: got none"),
        (["--", "plan", "ddim"], "job: got 'plan', allowed are fastsample's own sample, compare, and python SCRIPT"),
        (["--", "profile"], "job: got 'profile'"),
        (["--", "python"], "job: got 'python', need python SCRIPT"),
        (["--", "python", "-m"], "need python SCRIPT, -m MODULE"),
        (["--", "python", "-O", "x.py"], "job: got the option '-O' of python"),
        (["--", "python", "missing.py"], "job: the file missing.py does not exist"),
        (["--tool", "perf", "--", "sample"], "--tool: got 'perf', allowed are auto, nsys, torch"),
        (["--tool", "nsys", "--", "sample"], "--tool: got nsys, which is not on the PATH"),
        (["--speed", "3", "--", "sample"], "--speed"),
        (["--tool", "torch", "--", "sample", "--solver", "nonsense"], "solver: got 'nonsense'"),
        (["--tool", "torch", "--", "python", "-c", "pass"], "job: no run of fastsample was seen"),
    ],
)
def test_refusals(tmp_path, capsys, monkeypatch, arguments, message):
    monkeypatch.setenv("PATH", str(tmp_path))
    assert main(["profile", "--out", str(tmp_path / "p"), *arguments]) == 2
    error = capsys.readouterr().err
    assert "fastsample: error: " in error and message in error
    assert not (tmp_path / "p").exists()


def test_out_is_a_file(tmp_path, capsys):
    (tmp_path / "p").write_text("x")
    assert main(["profile", "--out", str(tmp_path / "p"), "--", "sample"]) == 2
    assert "out: " in capsys.readouterr().err


@pytest.mark.parametrize(("code", "exit_code"), [("raise ValueError('mine')", 1), ("import sys; sys.exit(5)", 5)])
def test_a_script_that_fails(tmp_path, capsys, code, exit_code):
    assert run(tmp_path / "p", "python", "-c", code)[0] == exit_code
    error = capsys.readouterr().err
    assert f"job: ended with exit code {exit_code}" in error and ("mine" in error) == (exit_code == 1)
    assert not (tmp_path / "p").exists()


def test_without_nvtx_under_nsys(tmp_path, fake_nsys, monkeypatch, capsys):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    assert run(tmp_path / "p", "sample", tool="nsys")[0] == 2
    assert "pip install nvtx" in capsys.readouterr().err
