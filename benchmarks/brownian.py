"""Noise of a Brownian path: a query of ours against torchsde's tree, as the SDE samplers ask, and a plain normal draw.

    python -m benchmarks.brownian [--quick] [--gpu] [--out FOLDER]

Timed are whole 20-step Karras runs, all levels in turn, both trees at tolerance 1e-6; figures are per query.  A run
makes its tree anew, as samplers do, with another seed, and that time counts, as does ours to prepare.  Ours twice: with
weights made in the call, and prepared for the run.  torchsde is made as k-diffusion makes it and keeps its cache for
the run.
"""

from __future__ import annotations

import itertools
import math
import sys
import warnings
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

if __package__ in (None, ""):  # run as a file
    sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import torch

from benchmarks import member, plots
from benchmarks.harness import Timed, measure, ratio
from fastsample.brownian import BrownianTreeNoiseSampler
from fastsample.integrations.k_diffusion.schedules import get_sigmas_karras

SHAPES = ((1, 4, 64, 64), (1, 4, 128, 128), (16, 4, 128, 128))
LOW, HIGH, STEPS, TOLERANCE = 0.0292, 14.6146, 20, 1e-6
PREPARED, OURS, PEER, DRAW = "fastsample", "fastsample-unprepared", "torchsde", "randn_like"
WANTED = 10.0  # times faster than torchsde at (1, 4, 128, 128)
plot = plots.ratios


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


def main(argv: Sequence[str] | None = None) -> int:
    """Run the benchmark; exit code 0 whatever the figures are."""
    warnings.simplefilter("ignore")
    options = member.parse(member.parser("brownian", __doc__, "smallest shape only, short"), argv, 0.5, 0.05, 0.3)
    run = member.Run("brownian", options)
    for shape in SHAPES[:1] if options.quick else SHAPES:
        with torch.inference_mode():
            programs, nodes = build(shape, options.device)
            timed = {name: Timed((program,), torch.inference_mode) for name, program in programs.items()}
            times = measure(timed, options.device, options.min_time, min_rounds=5)
        name, numel = "x".join(map(str, shape)), math.prod(shape)
        print(f"\n{name}: {nodes:.1f} nodes per query of ours")
        for program, of in times.items():
            middle, low, high = (q / (STEPS - 1) for q in of.quantiles())
            lines: list[member.Figure] = [("time", "us", (1e6 * middle, 1e6 * low, 1e6 * high))]
            lines.append(("time_per_element", "ns", (1e9 * middle / numel, 1e9 * low / numel, 1e9 * high / numel)))
            if program != PREPARED:
                lines.append((f"time_over_{PREPARED}", "x", ratio(of, times[PREPARED])))
            print(f"  {program:22}" + "".join(f"  {what} {v[0]:.4g} {unit}" for what, unit, v in lines), flush=True)
            run.add(program, "query", {"shape": list(shape), "dtype": "float32", "nodes": nodes}, lines)
        if PEER in times:
            run.promise(f"{name}: a query of torchsde over one of ours", WANTED, ratio(times[PEER], times[PREPARED]))
        run.save()
    return run.end(plot)


if __name__ == "__main__":
    sys.exit(main())
