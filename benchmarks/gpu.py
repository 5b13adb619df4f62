"""Everything that needs a GPU, in one command of at most nine minutes: build, tests, sanitizers, benchmark.

    python benchmarks/gpu.py [--only NAME ...]

Each stage has a time limit and its own log.  Results go to ``benchmarks/results/gpu-<device>/``: one log per stage,
and ``summary.json`` with the facts of the machine.  Ends with a table of stages (ok, failed, skipped and why); the exit
code is 1 if a stage failed, 2 if there is no CUDA device.
"""

from __future__ import annotations

import argparse
import dataclasses
import datetime
import json
import os
import platform
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))  # run as a file

from benchmarks import counters, suite  # noqa: E402

MEMBERS: dict[str, tuple[float, list[str]]] = {  # of the suite, in this order: seconds, options; 380 s in sum
    "update": (150, ["--budget", "120"]),
    "loop": (80, ["--quick"]),
    "metropolis": (40, ["--quick"]),
    "schedulers": (50, ["--no-errors"]),
    "threshold": (30, []),
    "brownian": (30, []),
}
TOTAL = 530.0  # seconds


@dataclasses.dataclass
class Stage:
    name: str
    command: list[str]
    limit: float  # seconds
    environment: dict[str, str] = dataclasses.field(default_factory=dict)
    skip: str = ""


def stages(folder: Path = ROOT / "benchmarks" / "results") -> list[Stage]:
    """All stages in order.  What cannot run here carries the reason.  ``folder``: of the results."""
    python = sys.executable
    build = (
        "from fastsample import native\n"
        "for device in ('cpu', 'cuda'):\n"
        "    assert native.load_for(device) and native.loaded_from(device) != 'triton', native.why_not(device)\n"
        "    print(device, native.loaded_from(device))"
    )
    found = [
        Stage("build", [python, "-c", build], 200),
        Stage("tests", [python, "-m", "pytest", "-p", "no:cacheprovider", "-rs", "tests/gpu"], 150),
    ]
    cases = ["tests/triton_cases.py", "tests/triton_clock_cases.py"]
    found.append(Stage("triton", [python, "-m", "pytest", "-p", "no:cacheprovider", *cases], 100))
    sanitizer = shutil.which("compute-sanitizer") or "/usr/local/cuda/bin/compute-sanitizer"
    missing = "" if Path(sanitizer).exists() else "compute-sanitizer is not on this machine"
    for tool in ("memcheck", "racecheck", "initcheck", "synccheck"):
        command = [sanitizer, f"--tool={tool}", "--error-exitcode=9"]
        if tool != "initcheck":  # which must see torch's kernels write what ours read
            for kernel in ("update_kernel", "metropolis_"):
                command += ["--kernel-name", f"kernel_substring={kernel}"]
        command += [python, "benchmarks/gpu_driver.py"]  # without torch's caching allocator, which would hide overruns
        found.append(Stage(tool, command, 45, {"PYTORCH_NO_CUDA_MEMORY_CACHING": "1"}, missing))
    known = {member.name: member for member in suite.MEMBERS}
    for name, (limit, options) in MEMBERS.items():
        if name in known:
            command = [python, "-m", f"benchmarks.{name}", "--gpu", *options]
            found.append(Stage(name, command, limit, skip=suite.missing(known[name])))
    found.append(Stage("page", [python, "-m", "benchmarks", "--page"], 30))
    # where the time of a short run goes, under nsys if it is there, else torch.profiler; the log has the summary
    job = ["sample", "--model", "digits", "--solver", "sde-dpmpp-2m", "--steps", "20", "-n", "64", "--no-progress"]
    traced = [python, "-m", "fastsample", "profile", "--out", "out/gpu/profile", "--", *job, "--out", "out/gpu/samples"]
    found.append(Stage("profile", traced, 60))
    found.append(Stage("variants", [python, "-m", "benchmarks.variants", "--gpu", "--budget", "40"], 70))
    found.append(Stage("counters", [python, "-m", "benchmarks.counters", "--out", str(folder)], 60))
    return found


def facts() -> dict[str, str]:
    """GPU, driver, clocks, versions."""
    import torch

    known = {
        "date": datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="seconds"),
        "gpu": torch.cuda.get_device_name(),
        "capability": ".".join(map(str, torch.cuda.get_device_capability())),
        "torch": torch.__version__,
        "torch_cuda": str(torch.version.cuda),
        "python": platform.python_version(),
        "cpu": platform.processor() or platform.machine(),
    }
    try:
        import triton

        known["triton"] = triton.__version__
    except ImportError:
        known["triton"] = "not installed"
    wanted = "driver_version,clocks.sm,clocks.mem,clocks.max.sm,clocks.max.mem,power.limit"
    questions = {
        "nvidia_smi": ["nvidia-smi", f"--query-gpu={wanted}", "--format=csv"],
        "nvcc": ["nvcc", "--version"],
        "commit": ["git", "-C", str(ROOT), "rev-parse", "HEAD"],
    }
    for name, command in questions.items():
        try:
            text = subprocess.run(command, capture_output=True, text=True, timeout=20, check=True).stdout.strip()
        except (OSError, subprocess.SubprocessError) as error:
            text = f"unknown: {error}"
        known[name] = text
    return known


def run(stage: Stage, folder: Path, left: float) -> tuple[str, str, float]:
    """Outcome, why, seconds.  The stage's process group is ended when its time is over."""
    if stage.skip:
        return "skipped", stage.skip, 0.0
    limit = min(stage.limit, left)
    if limit < 5:
        return "skipped", "no time left", 0.0
    begin = time.monotonic()
    path = [str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])]
    environment = {**os.environ, **stage.environment, "PYTHONPATH": os.pathsep.join(path), "PYTHONUNBUFFERED": "1"}
    log = folder / f"{stage.name}.log"
    with log.open("w") as file:
        try:
            process = subprocess.Popen(
                stage.command, cwd=ROOT, env=environment, stdout=file, stderr=subprocess.STDOUT, start_new_session=True
            )
        except OSError as error:
            return "failed", str(error), 0.0
        try:
            code = process.wait(limit)
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()
            return "failed", f"over {limit:.0f} s", time.monotonic() - begin
    lines = log.read_text(errors="replace").strip().splitlines() or [""]
    print("\n".join(f"  {line}" for line in lines[-25:]), flush=True)
    if code == counters.SKIPPED and stage.name == "counters":
        return "skipped", lines[-1][:100], time.monotonic() - begin
    outcome = "ok" if code == 0 else "failed"
    if outcome == "ok" and stage.name == "tests" and not re.search(r"\d+ passed", lines[-1]):
        outcome = "failed"  # all skipped is not a pass
    return outcome, lines[-1][:100] if code == 0 else f"exit {code}: {lines[-1][:90]}", time.monotonic() - begin


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", nargs="*", help="names of the stages to run")
    only = parser.parse_args().only
    begin = time.monotonic()
    import torch

    if not torch.cuda.is_available():
        print(f"no CUDA device: torch {torch.__version__}, CUDA {torch.version.cuda}")
        return 2
    machine = facts()
    folder = ROOT / "benchmarks" / "results" / ("gpu-" + re.sub(r"\W+", "-", machine["gpu"].lower()))
    folder.mkdir(parents=True, exist_ok=True)
    print("\n".join(f"{name}: {text}" for name, text in machine.items()))
    results: list[dict[str, str | float]] = []
    for stage in stages(folder):
        if only and stage.name not in only:
            continue
        print(f"\n== {stage.name}", flush=True)
        outcome, why, seconds = run(stage, folder, TOTAL - (time.monotonic() - begin))
        results.append({"stage": stage.name, "outcome": outcome, "seconds": round(seconds, 1), "why": why})
        (folder / "summary.json").write_text(json.dumps({"machine": machine, "stages": results}, indent=2) + "\n")
    print(f"\n{'stage':12} {'outcome':9} {'seconds':>8}  note")
    for result in results:
        print(f"{result['stage']:12} {result['outcome']:9} {result['seconds']:8}  {result['why']}")
    return 1 if any(result["outcome"] == "failed" for result in results) else 0


if __name__ == "__main__":
    sys.exit(main())
