"""Shapes of the launch of ``fastsample::update`` on CUDA, measured: which one should be chosen where.

    python -m benchmarks.variants --gpu [--sizes 8:29] [--budget 90] [--out benchmarks/results]

One step of DPM-Solver++ 2M, with and without noise, at every size, in a stream and (up to 2^20 elements) in a captured
graph, under every variant of csrc/cuda/variants.h.  Prints the rule that the measurements give, next to the one in the
library, and writes ``variants.csv``.  A variant takes the place of the library's where it is faster by 3 % in the
median and faster in 80 % of the rounds.  Exit code 2: there is no CUDA device, or no compiled library for it.
"""

from __future__ import annotations

import argparse
import ctypes
import json
import sys
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch

from benchmarks import steps
from benchmarks.harness import QUEUE, Record, Timed, Times, device_name, measure, now, ratio, write_csv

RESULTS = Path(__file__).resolve().parent / "results"
CHOSEN = "strided"  # what csrc/cuda/variants.h chooses
GAIN = 1.03  # below that, the library's choice stays
ROUNDS = 7  # of every variant at least
GRAPH_SIZES = 2**20  # beyond, launches are hidden behind the kernels
SHAPES = {  # threads of a block, threads a processor gets before any takes a second piece, most pieces of a thread
    "strided": (128, 2048, 8),
    "small": (64, 2048, 8),
    "large": (256, 2048, 8),
    "plain": (128, 2048, 1),
    "persistent": (128, 1024, 0),
}
NAMES = (*SHAPES, *(f"{name}+early" for name in SHAPES))
Force = Callable[[int, int, int, int], int]


@dataclass(frozen=True)
class Point:
    """Times of every variant for one job; ``where``: "stream" or "graph"."""

    dtype: str
    noise: bool
    where: str
    size: int
    times: dict[str, Times]

    def best(self) -> str:
        """The variant that the rule takes here."""
        gains = {name: ratio(self.times[CHOSEN], t) for name, t in self.times.items() if name != CHOSEN}
        better = {name: middle for name, (middle, low, _) in gains.items() if middle >= GAIN and low > 1}
        return max(better, key=lambda name: better[name]) if better else CHOSEN


def rule(points: Iterable[Point]) -> list[tuple[str, bool, str, int, int, str]]:
    """dtype, noise, where, smallest and largest size, variant: neighbouring sizes with one choice together."""
    found: list[tuple[str, bool, str, int, int, str]] = []
    for p in sorted(points, key=lambda p: (p.dtype, p.noise, p.where, p.size)):
        last = found[-1] if found else None
        if last and last[:3] == (p.dtype, p.noise, p.where) and last[5] == p.best():
            found[-1] = (*last[:4], p.size, last[5])
        else:
            found.append((p.dtype, p.noise, p.where, p.size, p.size, p.best()))
    return found


def text(points: Sequence[Point]) -> str:
    """The rule as a table, then what each choice gains."""
    lines = [
        f"{'dtype':10} {'noise':6} {'where':7} {'elements':17} variant   (the library takes {CHOSEN!r} everywhere)"
    ]
    for dtype, noise, where, low, high, name in rule(points):
        sizes = f"{low}" if low == high else f"{low} to {high}"
        lines.append(f"{dtype:10} {'yes' if noise else 'no':6} {where:7} {sizes:17} {name}")
    won = [p for p in points if p.best() != CHOSEN]
    lines.append(f"\nfaster than {CHOSEN!r} at {len(won)} of {len(points)} points")
    for p in won:
        gain, low, high = ratio(p.times[CHOSEN], p.times[p.best()])
        what = f"{p.dtype} {'noise' if p.noise else 'no noise'} {p.where} {p.size}"
        lines.append(f"  {what}: {p.best()} {gain:.3f}x ({low:.3f} to {high:.3f})")
    return "\n".join(lines)


def records(points: Sequence[Point], gpu: str, stamp: str, version: str) -> list[Record]:
    lines = []
    for p in points:
        for name, times in p.times.items():
            middle, low, high = times.quantiles()
            config = {"dtype": p.dtype, "where": p.where, "chosen_by_rule": p.best()}
            mode = "noise" if p.noise else "deterministic"
            lines.append(
                Record("update-variant", name, mode, "time", "ms", "elements", "elements of the state", p.size,
                       middle * 1e3, low * 1e3, high * 1e3, json.dumps(config), gpu, stamp, version)
            )  # fmt: skip
    return lines


def library() -> Force:
    """The switch of the loaded CUDA library.  Raises ``steps.UnavailableError`` where there is none."""
    for path in torch.ops.loaded_libraries:
        if Path(path).name == "libfastsample_cuda.so":
            return ctypes.CDLL(path).fastsample_force_variant  # type: ignore[no-any-return]
    raise steps.UnavailableError("no compiled CUDA library is loaded")


def forced(force: Force, name: str) -> None:
    """From here on, this variant."""
    shape = SHAPES[name.removesuffix("+early")]
    if not force(*shape, int(name.endswith("+early"))):
        raise ValueError(f"variant {name!r}: the library does not have it")


def point(force: Force, dtype: str, noise: bool, size: int, min_time: float) -> list[Point]:
    """All variants of one job, in a stream and in a graph of QUEUE steps."""
    job = steps.Job((1, size), steps.DTYPES[dtype], noise, "cuda")
    program = steps.build("native", job)[0]
    early = torch.cuda.get_device_capability() >= (9, 0)
    names = [name for name in NAMES if early or not name.endswith("+early")]
    stream, graphs = {}, {}
    for name in names:

        def advance(name: str = name) -> None:
            forced(force, name)
            program.advance()

        stream[name] = Timed((advance,), program.active)
        if size <= GRAPH_SIZES:
            graphs[name] = Timed((_recorded(advance, program),), program.active)
    found = [Point(dtype, noise, "stream", size, measure(stream, "cuda", min_time, ROUNDS))]
    if graphs:
        replayed = measure(graphs, "cuda", min_time, ROUNDS)
        per_step = {name: Times(t.samples / QUEUE, t.rounds) for name, t in replayed.items()}
        found.append(Point(dtype, noise, "graph", size, per_step))
    return found


def _recorded(advance: Callable[[], None], program: steps.Program) -> Callable[[], None]:
    """QUEUE steps as one graph."""
    with program.active():
        advance()
        torch.cuda.synchronize()
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            for _ in range(QUEUE):
                advance()
    return graph.replay  # type: ignore[no-any-return]


def main(arguments: Sequence[str] | None = None) -> int:
    options = parse(arguments)
    if not options.gpu:
        print("a GPU is needed: run with --gpu on a machine that has one")
        return 2
    if not torch.cuda.is_available():
        print("no CUDA device: variants can only be measured on one")
        return 2
    import fastsample

    try:
        steps.build("native", steps.Job((1, 256), device="cuda"))
        force = library()
    except steps.UnavailableError as error:
        print(f"no compiled CUDA library: {error}")
        return 2
    started, points = time.perf_counter(), []
    jobs = [(size, dtype, noise) for size in options.sizes for dtype in steps.DTYPES for noise in (False, True)]
    try:
        for number, (size, dtype, noise) in enumerate(jobs):
            if time.perf_counter() - started > options.budget:
                print(f"the last {len(jobs) - number} of {len(jobs)} jobs are left out: the budget is spent")
                break
            with torch.inference_mode():
                points += point(force, dtype, noise, size, options.min_time)
    finally:
        force(0, 0, 0, 0)
    print(text(points))
    options.out.mkdir(parents=True, exist_ok=True)
    path = options.out / "variants.csv"
    write_csv(path, records(points, device_name("cuda"), now(), fastsample.__version__))
    print(f"written: {path}")
    return 0


def parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    p = argparse.ArgumentParser(prog="python -m benchmarks.variants", description=(__doc__ or "").splitlines()[0])
    p.add_argument("--gpu", action="store_true", help="measure; without it the exit code is 2")
    p.add_argument("--sizes", type=_sizes, default=_sizes("8:29"), help="powers of 2, as 8:29 or 8,16,24 (8:29)")
    p.add_argument("--budget", type=float, default=90.0, help="seconds after which no further job begins (90)")
    p.add_argument("--min-time", type=float, default=0.01, help="seconds per variant and job (0.01)")
    p.add_argument("--out", type=Path, default=RESULTS, help="folder of variants.csv")
    options = p.parse_args(arguments)
    if options.budget <= 0 or options.min_time <= 0:
        p.error(f"--budget, --min-time: got {options.budget}, {options.min_time}, allowed are numbers above 0")
    return options


def _sizes(given: str) -> list[int]:
    """Elements, the most telling sizes first, so that a spent budget leaves the others out."""
    try:
        begin, colon, end = given.partition(":")
        powers = list(range(int(begin), int(end))) if colon else [int(part) for part in given.split(",")]
    except ValueError:
        powers = []
    if not powers or min(powers) < 2 or max(powers) > 30:
        raise argparse.ArgumentTypeError(f"got {given!r}, allowed are powers of 2 from 2 to 30, as 8:29 or 8,16,24")
    return [2**power for power in sorted(powers, key=lambda power: (power % 4, power))]


if __name__ == "__main__":
    sys.exit(main())
