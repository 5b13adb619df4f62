"""Noise of a Brownian path: a query of ours against torchsde's tree, as the SDE samplers ask, and a plain normal draw.

    python -m benchmarks.brownian [--quick] [--gpu] [--out benchmarks/results/NAME]

Timed are whole 20-step Karras runs, all levels in turn, both trees at tolerance 1e-6; figures are per query.  A run
makes its tree anew, as samplers do, with another seed, and that time counts, as does ours to prepare.  Ours twice: with
weights made in the call, and prepared for the run.  torchsde is made as k-diffusion makes it and keeps its cache for
the run.  Writes NAME.csv and NAME.json.
"""

from __future__ import annotations

import argparse
import itertools
import json
import math
import sys
import time
import warnings
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

if __package__ in (None, ""):  # run as a file
    sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import torch

from benchmarks.harness import Record, Timed, device_name, machine, measure, now, ratio, write_csv
from fastsample.brownian import BrownianTreeNoiseSampler
from fastsample.integrations.k_diffusion.schedules import get_sigmas_karras

SHAPES = ((1, 4, 64, 64), (1, 4, 128, 128), (16, 4, 128, 128))
LOW, HIGH, STEPS, TOLERANCE = 0.0292, 14.6146, 20, 1e-6
PREPARED, OURS, PEER, DRAW = "fastsample", "fastsample-unprepared", "torchsde", "randn_like"
WANTED = 10.0  # times faster than torchsde at (1, 4, 128, 128)


def build(shape: Sequence[int], device: str) -> tuple[dict[str, Callable[[], Any]], float]:
    """Programs that make one run of STEPS - 1 queries, and the mean number of nodes in a query of ours."""
    x = torch.zeros(shape, device=device)
    levels = get_sigmas_karras(STEPS, LOW, HIGH)[:-1].double().tolist()
    between = list(itertools.pairwise(levels))
    seeds = itertools.count()

    def sampler() -> BrownianTreeNoiseSampler:
        return BrownianTreeNoiseSampler(x, LOW, HIGH, seed=next(seeds), tol=TOLERANCE)

    def prepared() -> Iterator[torch.Tensor]:
        made = sampler()
        made.prepare(levels)
        yield from map(made.at, range(len(between)))

    def plain() -> Iterator[torch.Tensor]:
        yield from itertools.starmap(sampler(), between)

    programs: dict[str, Callable[[], Any]] = {
        DRAW: lambda: all(torch.randn_like(x) is not None for _ in between),
        PREPARED: lambda: deque(prepared(), maxlen=0),
        OURS: lambda: deque(plain(), maxlen=0),
    }
    try:
        import torchsde
    except ImportError:
        print("torchsde is not installed: no peer in this run", file=sys.stderr)
    else:

        def peer() -> Iterator[torch.Tensor]:
            tree = torchsde.BrownianInterval(
                t0=LOW, t1=HIGH, size=x.shape, dtype=x.dtype, device=x.device, entropy=next(seeds), tol=TOLERANCE,
                pool_size=24, halfway_tree=True,
            )  # fmt: skip
            for start, end in between:
                yield tree(end, start) / math.sqrt(start - end)

        programs[PEER] = lambda: deque(peer(), maxlen=0)
    nodes = [len(sampler().motion.query(end, start)[0]) for start, end in between]
    return programs, sum(nodes) / len(nodes)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the benchmark; exit code 0 whatever the figures are."""
    warnings.simplefilter("ignore")
    options = parse(arguments)
    device = "cuda" if options.gpu else "cpu"
    torch.set_num_threads(options.threads)
    facts, timestamp, started = machine(device), now(), time.perf_counter()
    print(f"{facts['cpu']}, {options.threads} threads, torch {facts['torch']}, load {facts['load_average_at_start']}")
    records: list[Record] = []
    promised: list[dict[str, Any]] = []
    for shape in options.shapes:
        with torch.inference_mode():
            programs, nodes = build(shape, device)
            timed = {name: Timed((program,), torch.inference_mode) for name, program in programs.items()}
            times = measure(timed, device, options.min_time, min_rounds=5)
        numel = math.prod(shape)
        print(f"\n{'x'.join(map(str, shape))}: {nodes:.1f} nodes per query of ours")
        for name, of in times.items():
            per_query = [q / (STEPS - 1) for q in of.quantiles()]
            figures = [("time", "us", tuple(1e6 * q for q in per_query))]
            figures.append(("time_per_element", "ns", tuple(1e9 * q / numel for q in per_query)))
            if name != PREPARED:
                figures.append((f"time_over_{PREPARED}", "x", ratio(of, times[PREPARED])))
            print(f"  {name:22}" + "".join(f"  {what} {v[0]:.4g} {unit}" for what, unit, v in figures), flush=True)
            config = json.dumps({"shape": list(shape), "dtype": "float32", "threads": facts["threads"], "nodes": nodes})
            for what, unit, values in figures:
                axis = ("numel", "elements of the state", numel)
                made = (config, device_name(device), timestamp, facts["fastsample"])
                records.append(Record("brownian", name, "query", what, unit, *axis, *values, *made))
        if PEER in times:
            middle, low, high = ratio(times[PEER], times[PREPARED])
            figure = f"{middle:.1f}x (20-80 %: {low:.1f}-{high:.1f})"
            item = {"what": "x".join(map(str, shape)), "figure": figure, "wanted": WANTED, "reached": middle >= WANTED}
            promised.append(item)
        facts["seconds"] = round(time.perf_counter() - started, 1)
        write_csv(options.out.with_suffix(".csv"), records)
        content = {"timestamp": timestamp, **facts, "must_reach": promised}
        options.out.with_suffix(".json").write_text(json.dumps(content, indent=1) + "\n")
    print("\na query of torchsde over one of ours:")
    for item in promised:
        print(
            f"  {'reached' if item['reached'] else 'NOT reached':12} {item['what']}: {item['figure']}, wanted {WANTED}x"
        )
    return 0


def parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="smallest shape only, short")
    parser.add_argument("--gpu", action="store_true")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--min-time", type=float, default=0.5, help="seconds per program and shape")
    parser.add_argument("--out", type=Path, default=None)
    options = parser.parse_args(arguments)
    options.shapes = SHAPES[:1] if options.quick else SHAPES
    if options.quick:
        options.min_time = min(options.min_time, 0.05)
    if options.out is None:
        options.out = Path(__file__).parent / "results" / f"brownian-{'cuda' if options.gpu else 'cpu'}"
    options.out.parent.mkdir(parents=True, exist_ok=True)
    return options


if __name__ == "__main__":
    sys.exit(main())
