"""Microbenchmark of ``fastsample::update``: one step of (SDE-)DPM-Solver++ 2M, ours against what people run today.

    python -m benchmarks.update [--quick] [--gpu] [--out FOLDER]

Prints a table, the rows where we lose, and the figures the project promises.  Method: benchmarks/README.md.
"""

from __future__ import annotations

import argparse
import gc
import os
import re
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

if __package__ in (None, ""):  # run as a file
    sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
os.environ.setdefault("KINETO_LOG_LEVEL", "5")  # the profiler that counts bytes is chatty

import torch

from benchmarks import member, plots, report, steps
from benchmarks.harness import Timed, host_time, measure, peak_bytes

SHAPES = ((1, 4, 8, 8), (1, 4, 128, 128), (16, 4, 128, 128))
PEERS_PEAK = 2**20  # the memory of a peer is in proportion to the state, and slow calls are saved beyond
COPIES = 256  # most copies of a program's memory, to keep a GPU's L2 cold
plot = plots.times_over_size


def main(argv: Sequence[str] | None = None) -> int:
    """Run the benchmark; exit code 0 whatever the figures are."""
    options = parse(argv)
    session = member.Run("update", options)
    points: list[report.Point] = []
    skipped: dict[str, str] = {}
    jobs = [
        (steps.Job(shape, steps.DTYPES[dtype], case == "noise", options.device), case, dtype)
        for shape in options.shapes
        for dtype in options.dtypes
        for case in options.cases
    ]
    for number, (job, case, dtype) in enumerate(jobs):
        if options.budget and session.seconds > options.budget:
            skipped["points"] = (
                f"the last {len(jobs) - number} of {len(jobs)} points: --budget {options.budget:g} is spent"
            )
            break
        where = f"[{session.seconds:.0f} s, {number + 1}/{len(jobs)}]"
        print(f"{where} {job.shape} {dtype} {case}", file=sys.stderr, flush=True)
        torch._dynamo.reset()  # fixed shapes: each point is compiled afresh, which must not count as recompilation
        for cold in (False, True) if options.device == "cuda" else (False,):
            with torch.inference_mode():
                points.append(run(job, case, dtype, cold, options, skipped))
            gc.collect()
            for program, config, figures in report.figures(points[-1]):
                session.add(program, case, config, figures)
        session.facts["skipped"] = skipped
        session.promised = report.must_reach(points, session.facts)
        session.save()
    print(report.text(points, session.facts))
    return session.end(plot)


def run(
    job: steps.Job, case: str, dtype: str, cold: bool, options: argparse.Namespace, skipped: dict[str, str]
) -> report.Point:
    """All programs at one point, in turn."""
    copies = 1
    if cold:
        cache = torch.cuda.get_device_properties(0).L2_cache_size
        copies = max(1, min(COPIES, -(-2 * cache // (3 * job.state_bytes))))
    programs: dict[str, list[steps.Program]] = {}
    for name in [*steps.YARDSTICKS, *options.programs]:
        if not steps.applies(name, job) or (name in options.small_only and job.numel > options.small_limit):
            continue
        if name == "reference" and job.numel > options.reference_limit:
            skipped[name] = f"more than {options.reference_limit} elements: readable, not fast"
            continue
        try:
            programs[name] = steps.build(name, job, copies)
        except steps.UnavailableError as error:
            skipped[name] = str(error)
    timed = {name: Timed(tuple(p.advance for p in made), made[0].active) for name, made in programs.items()}
    times = measure(timed, options.device, options.min_time)
    hosts = {
        name: times[name] if options.device == "cpu" else host_time(one, options.device)
        for name, one in timed.items()
        if options.device == "cuda" or job.numel <= steps.SMALL
    }
    peaks = {
        name: peak_bytes(one.copies[0], one.active, options.device)
        for name, one in timed.items()
        if name in steps.OURS or job.numel <= PEERS_PEAK
    }
    return report.Point(job, case, dtype, cold, copies * 3 * job.state_bytes, times, hosts, peaks)


def parse(argv: Sequence[str] | None) -> argparse.Namespace:
    known = [*steps.OURS, steps.CHECKED, *steps.PEERS]
    p = member.parser("update", __doc__, "less than a minute: float32, the promised figures only")
    p.add_argument("--sizes", type=_sizes, help="numbers of elements, as 2^8,2^16 or 1000 (default 2^8 ... 2^24)")
    p.add_argument("--shapes", type=_shapes, help=f"shapes, as 1x4x8x8,16x4x128x128 (default {_text(SHAPES)})")
    p.add_argument("--dtypes", type=_names(list(steps.DTYPES)), help="float32,bfloat16")
    p.add_argument("--cases", type=_names(["deterministic", "noise"]), help="deterministic,noise")
    p.add_argument("--programs", type=_names(known), default=known, help=",".join(known))
    p.add_argument("--budget", type=float, help="seconds after which no further point begins (default 130 with --gpu)")
    o = member.parse(p, argv, 0.1, 0.05, 0.05)
    chosen = o.sizes is not None or o.shapes is not None
    if not chosen:
        o.shapes = SHAPES[::2] if o.quick else SHAPES
        o.sizes = [2**24] if o.quick else [2**k for k in ((24, 16, 20, 26, 12, 8) if o.gpu else (8, 12, 16, 20, 24))]
    o.shapes = [*(o.shapes or ()), *((1, n) for n in o.sizes or ())]
    o.budget = o.budget if o.budget is not None else (130.0 if o.gpu else 0.0)
    o.dtypes = o.dtypes or (["float32"] if o.quick else list(steps.DTYPES))
    o.cases = o.cases or ["deterministic", "noise"]
    # beyond the limit a quick run keeps what the promised figures need: ours and the yardsticks
    o.small_only = ["reference", *steps.PEERS] if o.quick and not chosen else []
    o.small_limit = 2**20
    o.reference_limit = 2**16 if o.device == "cpu" and not chosen else sys.maxsize
    return o


def _number(text: str) -> int:
    match = re.fullmatch(r"(\d+)(?:\^(\d+))?", text.strip())
    if not match or int(match[1]) < 1:
        raise argparse.ArgumentTypeError(f"got {text!r}, allowed are whole numbers and powers such as 2^16")
    base, power = int(match[1]), int(match[2] or 1)
    return int(base**power)


def _sizes(text: str) -> list[int]:
    return [_number(part) for part in text.split(",")]


def _shapes(text: str) -> list[tuple[int, ...]]:
    return [tuple(_number(n) for n in part.split("x")) for part in text.split(",")]


def _text(shapes: Sequence[tuple[int, ...]]) -> str:
    return ",".join("x".join(map(str, shape)) for shape in shapes)


def _names(allowed: list[str]) -> Any:
    def read(text: str) -> list[str]:
        wrong = [name for name in text.split(",") if name not in allowed]
        if wrong:
            raise argparse.ArgumentTypeError(f"got {', '.join(wrong)}, allowed are {', '.join(allowed)}")
        return text.split(",")

    return read


if __name__ == "__main__":
    sys.exit(main())
