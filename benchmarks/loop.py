"""Whole runs: time per step of ours and of what people run today, and what the network's own part of it is.

    python -m benchmarks.loop [--quick] [--gpu] [--cases null,digits] [--programs fastsample,diffusers] [--out FOLDER]

A run is everything from the start noise to the samples: ``set_timesteps`` or the beginning of ``sample`` too, divided
by the number of network calls.  On a GPU it ends when the device has finished.  Before anything is timed, all programs
must give the samples of a float64 loop; a case in which one does not is not reported, and the exit code is 1.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

if __package__ in (None, ""):  # run as a file
    sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import numpy as np
import torch

from benchmarks import loop_programs as programs
from benchmarks.harness import Record, Timed, Times, measure, ratio
from benchmarks.loop_cases import CASES, Job, job
from benchmarks.member import Run, Values, parse, parser
from benchmarks.steps import UnavailableError

NETWORK, NETWORK_GRAPH = "network", "network-graph"
LONG, LONGER = " long", 5  # the tiny loop also runs with so many times the steps
QUICK_CASES = ("null", "policy UNet, DDIM", "digits")


def main(argv: Sequence[str] | None = None) -> int:
    """Run the benchmark; exit code 1 if programs disagree, else 0 whatever the figures are."""
    options = _options(argv)
    out = Run("loop", options)
    skipped: dict[str, str] = {}
    out.facts["skipped"] = skipped
    refused = False
    for case in [case for case in CASES if case.name in options.cases]:
        torch._dynamo.reset()  # fixed shapes: each case is compiled afresh
        made = job(case, options.device, options.steps)
        longer = None if case is not CASES[0] else job(case, options.device, LONGER * len(made.times))
        with torch.inference_mode():
            try:
                times, errors = run(made, longer, options, skipped)
            except programs.DisagreementError as error:
                refused, skipped[f"{case.name} {case.shape}"] = True, str(error)
                print(f"refused: {error}", file=sys.stderr)
                continue
        more = {} if longer is None else added(times, len(longer.times) - len(made.times))
        report(out, made, times, errors, more)
        if longer is not None:
            promise(out, times, f"{len(made.times)} steps with their set-up")
            promise(out, more, "a further step")
        out.save()
    for what, why in skipped.items():
        print(f"left out: {what}: {why}")
    out.end(plot)
    return int(refused)


def run(
    job: Job, longer: Job | None, options: argparse.Namespace, skipped: dict[str, str]
) -> tuple[dict[str, Times], dict[str, float]]:
    """Times of whole runs and of the network alone, in seconds; error of each program in roundings.

    ``longer``: the same with more steps, timed in the same rounds; its names end with ``LONG``.

    Raises:
        DisagreementError: before anything is timed.
    """
    made = build(job, options.programs, skipped)
    errors = {program.name: programs.check(program, job) for program in made}
    runs: dict[str, Callable[[], Any]] = {program.name: program.run for program in made}
    if longer is not None:
        for program in build(longer, options.programs, skipped):
            programs.check(program, longer)
            runs[program.name + LONG] = program.run
    runs[NETWORK] = lambda: [job.net(job.x, told) for told in job.times]
    if options.device == "cuda":
        runs[NETWORK_GRAPH] = _captured(job)
    timed = {name: Timed((_finished(go, options.device),), torch.inference_mode) for name, go in runs.items()}
    # by the clock of the host on a GPU too: what a caller waits for
    clock = time.thread_time if options.cpu_time else time.perf_counter
    return measure(timed, "cpu", options.min_time, clock=clock), errors


def build(job: Job, names: Sequence[str], skipped: dict[str, str]) -> list[programs.Program]:
    made = []
    for name in names:
        try:
            made.append(programs.build(name, job))
        except UnavailableError as error:
            skipped[f"{name}, {job.case.name}"] = str(error)
    return made


def added(times: dict[str, Times], steps: int) -> dict[str, Times]:
    """Seconds of a further step: the longer run less the shorter one of the same round, over the steps between."""
    found = {}
    for name in [name for name in times if name + LONG in times]:
        short, long = times[name], times.pop(name + LONG)
        rounds, i, j = np.intersect1d(short.rounds, long.rounds, return_indices=True)
        found[name] = Times((long.samples[j] - short.samples[i]) / steps, rounds)
    return found


def _finished(go: Callable[[], Any], device: str) -> Callable[[], None]:
    def wait() -> None:
        go()
        if device == "cuda":
            torch.cuda.synchronize()

    return wait


def _captured(job: Job) -> Callable[[], None]:
    """The network's calls of a run, each a replay of one CUDA graph: the floor of a captured run."""
    x, told = job.x.clone(), job.times[0].clone()
    side = torch.cuda.Stream()
    with torch.cuda.stream(side):
        job.net(x, told)
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        job.net(x, told)

    def go() -> None:
        for _ in job.times:
            graph.replay()

    return go


def beyond(of: Times, floor: Times, calls: int) -> Values:
    """Seconds per step beyond the network, from runs of the same round: median, 20 %, 80 %."""
    _, i, j = np.intersect1d(of.rounds, floor.rounds, return_indices=True)
    middle, low, high = np.quantile((of.samples[i] - floor.samples[j]) / calls, [0.5, 0.2, 0.8])
    return float(middle), float(low), float(high)


def report(out: Run, job: Job, times: dict[str, Times], errors: dict[str, float], more: dict[str, Times]) -> None:
    """Add the lines of a case and print them; ``more``: times of a further step."""
    case, calls = job.case, len(job.times)
    config = {"shape": list(case.shape), "dtype": "float32", "solver": case.solver, "steps": calls}
    mode = "noise" if case.noisy else "deterministic"
    print(f"\n{case.name}, {case.solver}, {calls} steps, {'x'.join(map(str, case.shape))}: us per step")
    for name, of in times.items():
        floor = times[NETWORK_GRAPH if name in programs.MODES and NETWORK_GRAPH in times else NETWORK]
        figures: list[tuple[str, str, Values]] = [("time", "us", _scaled(of.quantiles(), 1e6 / calls))]
        if name in errors:
            over = beyond(of, floor, calls)
            figures.append(("beyond_network", "us", _scaled(over, 1e6)))
            if name == programs.GRAPH:
                out.promise_on_gpu(f"{case.name}: captured step beyond the network", 4, " us", figures[-1][2], True)
            share = ratio(floor, of)
            if name not in programs.NET_TOO or case.null:  # else their network is another one
                figures.append(("solver_share", "1", (1 - share[0], 1 - share[2], 1 - share[1])))
            if name in more:
                figures.append(("further_step", "us", _scaled(more[name].quantiles(), 1e6)))
            figures.append(("error", "roundings", (errors[name],) * 3))
            if name != programs.OURS and programs.OURS in times:
                figures.append((f"time_over_{programs.OURS}", "x", ratio(of, times[programs.OURS])))
        out.add(name, mode, config, figures, kernel=f"loop {case.name}")
        print("  " + f"{name:24}" + "".join(f"  {what} {values[0]:.4g}" for what, _, values in figures), flush=True)


def _scaled(values: Values, by: float) -> Values:
    return values[0] * by, values[1] * by, values[2] * by


def promise(out: Run, times: dict[str, Times], what: str) -> None:
    """The promised ratios of the tiny loop, against the fastest program of each kind."""
    for peers, wanted in ((programs.STOCK,), 12.0), (programs.COMPILED, 3.0):
        found = [name for name in peers if name in times and programs.OURS in times]
        best = min((ratio(times[name], times[programs.OURS]) for name in found), default=None)
        kind = "diffusers eager" if peers == (programs.STOCK,) else "its step under torch.compile (the fastest form)"
        out.promise(f"tiny loop {'x'.join(map(str, CASES[0].shape))}, DPM++ 2M, {what}, over {kind}", wanted, best)


def plot(records: Sequence[Record], path: Path) -> None:
    """Bars: microseconds per step of each program, a panel per case; the line is the network alone."""
    from matplotlib import pyplot

    rows = [r for r in records if r.metric_name == "time"]
    cases = list(dict.fromkeys((r.kernel_name, r.x_value) for r in rows))
    figure, axes = pyplot.subplots(1, max(1, len(cases)), figsize=(4.2 * max(1, len(cases)), 3.6), squeeze=False)
    for axis, (kernel, numel) in zip(axes[0], cases, strict=False):
        chosen = [r for r in rows if (r.kernel_name, r.x_value) == (kernel, numel)]
        bars = [r for r in chosen if r.kernel_provider not in (NETWORK, NETWORK_GRAPH)]
        spread = [[r.y_value_50 - r.y_value_20 for r in bars], [r.y_value_80 - r.y_value_50 for r in bars]]
        names = [r.kernel_provider for r in bars]
        colours = ["C0" if name.startswith("fastsample") else "C7" for name in names]
        axis.barh(names, [r.y_value_50 for r in bars], xerr=spread, color=colours, error_kw={"linewidth": 0.8})
        for r in chosen:
            if r.kernel_provider == NETWORK and r.y_value_50 > 1.0:
                axis.axvline(r.y_value_50, color="black", lw=0.8, ls="--")
        axis.invert_yaxis()
        axis.tick_params(labelsize=7)
        axis.set(xlabel="us per step", title=f"{kernel.removeprefix('loop ')}, {numel:,} elements")
    figure.tight_layout()
    figure.savefig(path, dpi=110)


def _options(argv: Sequence[str] | None) -> argparse.Namespace:
    names = list(dict.fromkeys(case.name for case in CASES))
    made = parser("loop", __doc__, "the small cases, no compiled networks or runs, less than a minute")
    made.add_argument("--cases", help=f"of {'; '.join(names)}, separated by semicolons")
    made.add_argument("--programs", help=f"of {','.join(programs.PROGRAMS)}")
    made.add_argument("--cpu-time", action="store_true", help="clock of the thread, for one thread on a busy machine")
    made.add_argument("--steps", type=int, help="another number of steps in all cases")
    options = parse(made, argv, full=0.5, quick=0.2, gpu=0.3)
    usual = [n for n in programs.PROGRAMS if n not in (programs.LOOP, *programs.NET_TOO) or not options.quick]
    options.programs = usual if options.programs is None else options.programs.split(",")
    options.cases = (
        (list(QUICK_CASES) if options.quick else names) if options.cases is None else options.cases.split(";")
    )
    for what, chosen, allowed in (
        ("--programs", options.programs, programs.PROGRAMS),
        ("--cases", options.cases, names),
    ):
        wrong = [name for name in chosen if name not in allowed]
        if wrong:
            made.error(f"{what}: got {', '.join(wrong)}, allowed are {', '.join(allowed)}")
    if options.cpu_time and (options.threads != 1 or options.gpu):
        made.error("--cpu-time: counts the time of one thread, needs --threads 1 and a CPU")
    if options.steps is not None and options.steps < 3:
        made.error(f"--steps: got {options.steps}, allowed are 3 and more")
    return options


if __name__ == "__main__":
    sys.exit(main())
