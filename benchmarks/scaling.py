"""Time against the size of the state, the batch, the number of steps and the threads: slopes and knees.

    python -m benchmarks.scaling [--quick] [--gpu] [--parts size,steps] [--out FOLDER]

``size``: one update of DPM-Solver++ 2M, with and without noise, on one thread; ``batch``: the same elements cut into
samples; ``steps``: whole runs with a network that does nothing; ``threads``: the update on 1 to ``--threads`` threads.
A line ``fixed + slope * size`` is fitted to relative errors; the knee is where its two parts are equal.
"""

from __future__ import annotations

import argparse
import contextlib
import gc
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

if __package__ in (None, ""):  # run as a file
    sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import torch

from benchmarks import loop_programs, scaling_plot, steps
from benchmarks.harness import Timed, Times, measure
from benchmarks.loop_cases import CASES, job
from benchmarks.member import Run, Values, parse, parser
from benchmarks.scaling_fit import line, pays_from

CACHED = 2**17  # up to here the tensors of an update fit into the cache of a core
LARGE = 2**22  # from here on they fit into none
NOISE = {"deterministic": False, "noise": True}
RUNS = (loop_programs.OURS, loop_programs.STOCK, loop_programs.BY_HAND)

plot = scaling_plot.plot


def main(argv: Sequence[str] | None = None) -> int:
    """Run the benchmark; exit code 0 whatever the figures are."""
    options = _options(argv)
    out = Run("scaling", options)
    skipped: dict[str, str] = {}
    out.facts["skipped"] = skipped
    parts = {"size": sizes, "batch": batches, "steps": runs, "threads": threads}
    for name in options.parts:
        with torch.inference_mode():
            parts[name](out, options, skipped)
        out.save()
        gc.collect()
    for what, why in skipped.items():
        print(f"left out: {what}: {why}")
    return out.end(plot)


def sizes(out: Run, options: argparse.Namespace, skipped: dict[str, str]) -> None:
    """Updates of states of every size; slope, fixed cost and knee."""
    for mode, stochastic in NOISE.items():
        for dtype, kind in steps.DTYPES.items():
            found: dict[int, Values] = {}
            for n in options.sizes:
                made = steps.Job((1, n), kind, stochastic, options.device)
                if why := too_large(made, options.room):
                    skipped[f"2^{n.bit_length() - 1} elements, {dtype}"] = why
                    break
                times = measure({"": _update(made, 1)}, options.device, options.min_time, clock=options.clock)[""]
                found[n] = times.quantiles()
                out.add(f"update {dtype}", mode, {}, [("time", "us", _us(found[n]))], "scaling size", _elements(n))
                gc.collect()
            _fits(out, f"update {dtype}", mode, found)
            out.save()


def _fits(out: Run, name: str, mode: str, found: dict[int, Values]) -> None:
    cached = {n: t[0] for n, t in found.items() if n <= CACHED}
    if len(cached) < 2:
        return
    fixed, slope = line(list(cached), list(cached.values()))
    lines = [("fixed_cost", "us", 1e6 * fixed), ("per_element_in_cache", "ns", 1e9 * slope)]
    if slope > 0:
        lines.append(("knee", "elements", fixed / slope))
    largest = max(found)
    if largest >= LARGE:
        lines.append(("per_element_in_memory", "ns", 1e9 * found[largest][0] / largest))
    out.add(name, mode, {}, [(what, unit, (v,) * 3) for what, unit, v in lines], "scaling size", _elements(largest))
    print(f"{name}, {mode}: " + ", ".join(f"{what} {value:.4g} {unit}" for what, unit, value in lines), flush=True)


def batches(out: Run, options: argparse.Namespace, skipped: dict[str, str]) -> None:
    """The same number of elements as one sample or as many."""
    for mode, stochastic in NOISE.items():
        shapes = {b: (b, options.total // b) for b in options.batches}
        programs = {
            str(b): _update(steps.Job(shape, torch.float32, stochastic, options.device), 1)
            for b, shape in shapes.items()
        }
        times = measure(programs, options.device, options.min_time, clock=options.clock)
        for b, shape in shapes.items():
            x = ("batch", f"samples of {options.total} elements in all", b)
            figure = ("time_of_batch", "us", _us(times[str(b)].quantiles()))
            out.add("update float32", mode, {"shape": list(shape)}, [figure], "scaling batch", x)
        ends = [1e6 * times[str(b)].quantiles()[0] for b in (min(shapes), max(shapes))]
        print(
            f"{options.total} elements, {mode}: {min(shapes)} sample {ends[0]:.4g} us, {max(shapes)} {ends[1]:.4g} us"
        )


def runs(out: Run, options: argparse.Namespace, skipped: dict[str, str]) -> None:
    """Whole runs of few and many steps: time per step and set-up of a run."""
    found: dict[str, dict[int, Times]] = {}
    for number in options.steps:
        here = job(CASES[0], options.device, number)
        programs = {}
        for name in RUNS:
            try:
                programs[name] = loop_programs.build(name, here)
            except steps.UnavailableError as error:
                skipped[name] = str(error)
                continue
            loop_programs.check(programs[name], here)
        timed = {name: Timed((_waiting(p, options.device),), torch.inference_mode) for name, p in programs.items()}
        for name, times in measure(timed, "cpu", options.min_time, clock=options.clock).items():
            found.setdefault(name, {})[number] = times
            figure = ("time_of_run", "us", _us(times.quantiles()))
            out.add(name, "deterministic", {}, [figure], "scaling steps", ("steps", "steps of a run", number))
    for name, by_steps in found.items():
        setup, step = line(list(by_steps), [times.quantiles()[0] for times in by_steps.values()])
        x = ("steps", "steps of a run, at most", max(by_steps))
        figures = [("per_step", "us", (1e6 * step,) * 3), ("setup_of_run", "us", (1e6 * setup,) * 3)]
        out.add(name, "deterministic", {}, figures, "scaling steps", x)
        print(f"{name}: {1e6 * step:.4g} us a step, {1e6 * setup:.4g} us to begin a run", flush=True)


def _waiting(program: loop_programs.Program, device: str) -> Callable[[], None]:
    def wait() -> None:
        program.run()
        if device == "cuda":
            torch.cuda.synchronize()

    return wait


def threads(out: Run, options: argparse.Namespace, skipped: dict[str, str]) -> None:
    """The update on one and on more threads, and from where on more are faster."""
    counts = [1, *(k for k in (2, 4, 8, 16, 32, 64) if k < options.threads), options.threads]
    if options.device != "cpu" or options.threads == 1:
        skipped["threads"] = "needs a CPU and --threads 2 or more"
        return
    for mode, stochastic in NOISE.items():
        found: dict[int, dict[int, float]] = {k: {} for k in counts}
        for n in (n for n in options.sizes if 2**10 <= n <= 2**24):
            made = steps.Job((1, n), torch.float32, stochastic)
            if why := too_large(made, options.room / len(counts)):
                skipped[f"threads, 2^{n.bit_length() - 1} elements"] = why
                break
            times = measure({str(k): _update(made, k) for k in counts}, "cpu", options.min_time, clock=options.clock)
            for k in counts:
                found[k][n] = times[str(k)].quantiles()[0]
                figure = ("time_on_threads", "us", _us(times[str(k)].quantiles()))
                out.add(f"{k} threads", mode, {}, [figure], "scaling threads", _elements(n))
        for k in counts[1:]:
            begin = pays_from(found[1], found[k])
            print(f"{k} threads, {mode}: " + (f"faster than one from {begin} elements" if begin else "never faster"))
            if begin:
                figure = ("threads_pay_from", "elements", (float(begin),) * 3)
                out.add(f"{k} threads", mode, {}, [figure], "scaling threads", _elements(max(found[k])))


def _update(made: steps.Job, count: int) -> Timed:
    """The update on so many threads of a CPU."""
    program = _fastest(made)

    @contextlib.contextmanager
    def active() -> Iterator[None]:
        before = torch.get_num_threads()
        torch.set_num_threads(count)
        try:
            with program.active():
                yield
        finally:
            torch.set_num_threads(before)

    return Timed((program.advance,), active)


def _fastest(made: steps.Job) -> steps.Program:
    """The update on the backend that users get."""
    for name in steps.OURS:
        try:
            return steps.ours(name, made)
        except steps.UnavailableError:
            continue
    raise RuntimeError("no backend runs here, not even the reference")


def too_large(made: steps.Job, room: float) -> str:
    """Why a job does not fit into ``room`` bytes, or nothing.  While it is made, one float32 copy more is alive."""
    needed = 3 * made.state_bytes + 8 * made.numel
    return f"needs {needed / 2**30:.2g} GiB, half of the free memory is {room / 2**30:.2g} GiB" if needed > room else ""


def half_of_free(device: str) -> float:
    """Bytes: half of what is free now; without a limit where that is not known."""
    if device == "cuda":
        return torch.cuda.mem_get_info()[0] / 2
    try:
        lines = Path("/proc/meminfo").read_text().splitlines()
    except OSError:
        return float("inf")
    free = [int(text.split()[1]) for text in lines if text.startswith("MemAvailable:")]
    return 512.0 * free[0] if free else float("inf")


def _us(values: Values) -> Values:
    return 1e6 * values[0], 1e6 * values[1], 1e6 * values[2]


def _elements(n: int) -> tuple[str, str, int]:
    return "numel", "elements of the state", n


def _options(argv: Sequence[str] | None) -> argparse.Namespace:
    known = ["size", "batch", "steps", "threads"]
    made = parser("scaling", __doc__, "states up to 2^20, 200 steps")
    made.add_argument("--parts", default=",".join(known), help=f"of {','.join(known)}")
    made.add_argument("--cpu-time", action="store_true", help="clock of the thread, for one thread on a busy machine")
    made.add_argument("--largest", type=int, help="power of two of the largest state")
    options = parse(made, argv, full=0.2, quick=0.03, gpu=0.05)
    options.parts = options.parts.split(",")
    wrong = [name for name in options.parts if name not in known]
    if wrong:
        made.error(f"--parts: got {', '.join(wrong)}, allowed are {', '.join(known)}")
    largest = options.largest if options.largest is not None else 20 if options.quick else 28
    if not 10 <= largest <= 34:
        made.error(f"--largest: got {largest}, allowed are 10 to 34")
    options.sizes = [2**k for k in range(8, largest + 1, 2 if options.quick else 1)]
    options.total = 2 ** min(20, largest)
    options.batches = [1, 16, 256] if options.quick else [1, 2, 4, 8, 16, 32, 64, 128, 256]
    # 999: a grid of 1000 steps visits one of the 1000 trained levels twice
    options.steps = [1, 5, 20, 50, 200] if options.quick else [1, 2, 5, 10, 20, 50, 100, 200, 500, 999]
    if options.cpu_time and (options.threads != 1 or options.gpu):
        made.error("--cpu-time: counts the time of one thread, needs --threads 1 and a CPU")
    options.clock = time.thread_time if options.cpu_time else time.perf_counter
    options.room = half_of_free(options.device)
    return options


if __name__ == "__main__":
    sys.exit(main())
