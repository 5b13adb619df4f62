"""An inner iteration of Langevin samplers: ours against PyTorch by hand and under torch.compile.

    python -m benchmarks.metropolis [--quick] [--gpu] [--threads 1] [--plot] [--out benchmarks/results/NAME]

What is timed lies between two calls of the network (benchmarks/langevin.py): of RTK-MALA the log-ratio, the choice, the
selection and the next proposal with its noise; of RTK-ULD the step of position and velocity with two noises.  Ours is
called through the public functions, checks and all.  Writes NAME.csv and NAME.json, and NAME.png with ``--plot``.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

if __package__ in (None, ""):  # run as a file
    sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import torch

from benchmarks.harness import Record, Timed, Times, device_name, machine, measure, now, ratio, write_csv
from benchmarks.langevin import COPY, EAGER, OURS, Job, build

JOBS = (
    Job("mala", 64, 16384, wanted=8.0),
    Job("mala", 256, 2),
    Job("mala", 1024, 64),
    Job("mala", 4, 2**20),
    Job("mala", 64, 16384, torch.bfloat16),
    Job("uld", 64, 16384, wanted=6.0),
    Job("uld", 1024, 64),
    Job("uld", 4, 2**20),
)
GPU_JOBS = (*JOBS, Job("mala", 64, 10**6))  # the last takes two launches


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the benchmark; exit code 0 whatever the figures are."""
    options = parse(arguments)
    device = "cuda" if options.gpu else "cpu"
    torch.set_num_threads(options.threads)
    facts, timestamp, started = machine(device), now(), time.perf_counter()
    print(f"{facts['cpu']}, {options.threads} threads, torch {facts['torch']}, load {facts['load_average_at_start']}")
    facts |= {"note": options.note, "clock": options.clock.__name__}
    records: list[Record] = []
    promised: list[dict[str, Any]] = []
    found: list[tuple[Job, dict[str, Times]]] = []
    for job in options.jobs:
        torch._dynamo.reset()
        with torch.inference_mode():
            programs = build(job, device, not options.quick)
            timed = {name: Timed((program,), torch.inference_mode) for name, program in programs.items()}
            times = measure(timed, device, options.min_time, min_rounds=5, clock=options.clock)
        found.append((job, times))
        print(f"\n{job.name}")
        for program in times:
            lines = figures(job, program, times, device)
            print(f"  {program:16}" + "".join(f"  {what} {v[0]:.4g} {unit}" for what, unit, v in lines), flush=True)
            config = {"shape": [job.batch, job.numel], "dtype": "float32", "network": str(job.network)[6:]}
            for metric, unit, values in lines:
                axis = ("numel", "elements of the state", job.batch * job.numel)
                made = (json.dumps(config | {"threads": facts["threads"]}), device_name(device), timestamp)
                made += (facts["fastsample"],)
                records.append(Record("metropolis", program, job.step, metric, unit, *axis, *values, *made))
        if job.wanted is not None:
            middle, low, high = ratio(times[EAGER], times[OURS])
            figure = f"{middle:.1f}x (20-80 %: {low:.1f}-{high:.1f})"
            item = {"what": job.name, "figure": figure, "wanted": job.wanted, "reached": middle >= job.wanted}
            promised.append(item)
        facts["seconds"] = round(time.perf_counter() - started, 1)
        facts["load_average_at_end"] = [round(x, 2) for x in os.getloadavg()]
        write_csv(options.out.with_suffix(".csv"), records)
        content = {"timestamp": timestamp, **facts, "must_reach": promised}
        options.out.with_suffix(".json").write_text(json.dumps(content, indent=1) + "\n")
    if options.plot:
        plot(found, options.out.with_suffix(".png"))
    print("\neager over ours:")
    for item in promised:
        verdict = "reached" if item["reached"] else "NOT reached"
        print(f"  {verdict:12} {item['what']}: {item['figure']}, wanted {item['wanted']}x")
    return 0


def figures(
    job: Job, program: str, times: dict[str, Times], device: str
) -> list[tuple[str, str, tuple[float, float, float]]]:
    """Metric, unit, and median, 20 % and 80 %."""
    middle, low, high = (1e6 * q for q in times[program].quantiles())
    lines = [("time", "us", (middle, low, high))]
    if program != COPY:
        counts = {"fraction_of_copy": job.bytes}  # each tensor once, and for ours what it really moves
        if program == OURS and job.moved(device) > job.bytes:
            counts["fraction_of_copy_moved"] = job.moved(device)
        for metric, count in counts.items():
            share = [count / (8 * job.batch * job.numel) * r for r in ratio(times[COPY], times[program])]
            lines.append((metric, "1", (share[0], share[1], share[2])))
    if program not in (COPY, OURS):
        lines.append((f"time_over_{OURS}", "x", ratio(times[program], times[OURS])))
    return lines


def plot(found: Sequence[tuple[Job, dict[str, Times]]], path: Path) -> None:
    """How many times the time of ours each program takes, a group of bars per job."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    names = [n for n in found[0][1] if n not in (COPY, OURS)]
    figure, axis = pyplot.subplots(figsize=(9, 0.55 * len(found) + 1.5))
    height = 0.8 / len(names)
    for i, name in enumerate(names):
        values = [ratio(times[name], times[OURS]) for _, times in found]
        middle = [v[0] for v in values]
        spread = [[v[0] - v[1] for v in values], [v[2] - v[0] for v in values]]
        places = [row + i * height for row in range(len(found))]
        axis.barh(places, middle, 0.9 * height, xerr=spread, label=name, error_kw={"linewidth": 0.8})
    axis.set_yticks([row + 0.4 - height / 2 for row in range(len(found))], [job.name for job, _ in found])
    axis.invert_yaxis()
    axis.axvline(1, color="black", linewidth=0.8)
    axis.set_xlabel("time over that of fastsample")
    axis.grid(axis="x", alpha=0.3)
    axis.legend()
    figure.tight_layout()
    figure.savefig(path, dpi=110)
    pyplot.close(figure)


def parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="short, without torch.compile")
    parser.add_argument("--gpu", action="store_true")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--min-time", type=float, default=0.5, help="seconds per program and job")
    parser.add_argument("--only", type=int, action="append", help=f"a job, 0..{len(JOBS) - 1}, on a GPU one more")
    parser.add_argument("--note", default="", help="kept in the JSON, such as what else ran on the machine")
    parser.add_argument("--cpu-time", action="store_true", help="read the clock of the thread; needs --threads 1")
    parser.add_argument("--plot", action="store_true", help="also draw NAME.png (needs matplotlib)")
    parser.add_argument("--out", type=Path, default=None)
    options = parser.parse_args(arguments)
    if options.cpu_time and (options.gpu or options.threads != 1):
        parser.error("--cpu-time: only with --threads 1 on a CPU")
    options.clock = time.thread_time if options.cpu_time else time.perf_counter
    jobs = GPU_JOBS if options.gpu else JOBS
    options.jobs = [jobs[i] for i in options.only] if options.only else jobs
    if options.quick:
        options.min_time = min(options.min_time, 0.1)
    if options.out is None:
        options.out = Path(__file__).parent / "results" / f"metropolis-{'cuda' if options.gpu else 'cpu'}"
    options.out.parent.mkdir(parents=True, exist_ok=True)
    return options


if __name__ == "__main__":
    sys.exit(main())
