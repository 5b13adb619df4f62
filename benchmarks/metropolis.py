"""An inner iteration of Langevin samplers: ours against PyTorch by hand and under torch.compile.

    python -m benchmarks.metropolis [--quick] [--gpu] [--threads 1] [--out FOLDER]

What is timed lies between two calls of the network (benchmarks/langevin.py): of RTK-MALA the log-ratio, the choice, the
selection and the next proposal with its noise; of RTK-ULD the step of position and velocity with two noises.  Ours is
called through the public functions, checks and all.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Sequence
from pathlib import Path

if __package__ in (None, ""):  # run as a file
    sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import torch

from benchmarks import member, plots
from benchmarks.harness import Timed, Times, measure, ratio
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
LARGE = Job("mala", 64, 10**6)  # takes two launches
GPU_JOBS = (*JOBS, LARGE)
plot = plots.ratios


def main(argv: Sequence[str] | None = None) -> int:
    """Run the benchmark; exit code 0 whatever the figures are."""
    options = parse(argv)
    run = member.Run("metropolis", options)
    run.facts["clock"] = options.clock.__name__
    for job in options.jobs:
        torch._dynamo.reset()
        with torch.inference_mode():
            programs = build(job, options.device, not options.quick)
            timed = {name: Timed((program,), torch.inference_mode) for name, program in programs.items()}
            times = measure(timed, options.device, options.min_time, min_rounds=5, clock=options.clock)
        print(f"\n{job.name}")
        config = {"shape": [job.batch, job.numel], "dtype": "float32", "network": str(job.network)[6:]}
        for program in times:
            lines = figures(job, program, times, options.device)
            print(f"  {program:16}" + "".join(f"  {what} {v[0]:.4g} {unit}" for what, unit, v in lines), flush=True)
            run.add(program, job.step, config, lines)
        if job.wanted is not None:
            run.promise(f"{job.name}: eager PyTorch over ours", job.wanted, ratio(times[EAGER], times[OURS]))
        if job == LARGE:
            share = [100 * job.bytes / (8 * job.batch * job.numel) * r for r in ratio(times[COPY], times[OURS])]
            run.promise_on_gpu(f"{job.name}: share of copy bandwidth", 80, " %", (share[0], share[1], share[2]))
        run.save()
    return run.end(plot)


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


def parse(argv: Sequence[str] | None) -> argparse.Namespace:
    p = member.parser("metropolis", __doc__, "short, without torch.compile")
    p.add_argument("--only", type=int, action="append", help=f"a job, 0..{len(JOBS) - 1}, on a GPU one more")
    p.add_argument("--cpu-time", action="store_true", help="read the clock of the thread; needs --threads 1")
    options = member.parse(p, argv, 0.5, 0.1, 0.1)
    if options.cpu_time and (options.gpu or options.threads != 1):
        p.error("--cpu-time: only with --threads 1 on a CPU")
    options.clock = time.thread_time if options.cpu_time else time.perf_counter
    jobs = GPU_JOBS if options.gpu else JOBS
    options.jobs = [jobs[i] for i in options.only] if options.only else jobs
    return options


if __name__ == "__main__":
    sys.exit(main())
