"""Digit-FID over network calls for every sampler that runs on the shipped digit network, and the error of its path.

    python -m benchmarks.quality [--quick] [--gpu] [--names ddim,sa] [--fresh] [--out FOLDER]

Labels 0 to 9 in turn, no guidance, the same start noise for all.  A point that is done is appended to
quality-cpu.partial, from which a later start of the same command goes on (``--fresh``: begins anew); at the end all go
to quality-cpu.csv, .json and .png.
"""

from __future__ import annotations

import argparse
import csv
import json
import math
import sys
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

if __package__ in (None, ""):  # run as a file
    sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import numpy as np
from torch import Tensor

from benchmarks import quality_jobs, schema
from benchmarks.harness import COLUMNS, Record
from benchmarks.member import Figure, Run, parse, parser
from benchmarks.quality_jobs import Job
from fastsample.choosing import plan_for
from fastsample.metrics import digit_fid

FINE = "dpmpp-3m"  # for the solution of the probability flow
SPREAD = "dpmpp-2m"  # the solver that is run with several seeds
SPREAD_NFE = 10
COLUMNS_NFE = (5, 10, 20, 50, 100, 200, 500, 1000)  # what is said of a point is the first that holds its calls
X = ("nfe", "network calls per sample, at most")


@dataclass(frozen=True)
class Size:
    """How much is run.  ``fine_steps``: of the reference for ``few`` samples; it is checked with half as many.

    ``longer``: some solvers at more calls too."""

    number: int
    budgets: tuple[int, ...]
    seeds: int
    few: int
    fine_steps: int
    longer: bool = True
    batch: int = 50


FULL = Size(250, quality_jobs.BUDGETS, 5, 50, 200)
QUICK = Size(100, quality_jobs.BUDGETS, 3, 20, 100, longer=False)


def main(argv: Sequence[str] | None = None) -> int:
    """Run the benchmark; exit code 0 whatever the figures are."""
    options = _options(argv)
    size = _size(options)
    out, skipped = Run("quality", options), dict[str, str]()
    done = Partial(out.path(".partial"), options.fresh)
    if done.records:
        print(f"going on after {len(done.records)} lines of {done.path}")
    fine, own = _reference(size, options.device)
    print(f"fine solution: {FINE}, {size.fine_steps} steps; half as many are {own:.2g} rms away")
    out.facts |= {"number": size.number, "few": size.few, "fine_steps": size.fine_steps, "reference_error": own}
    out.facts["skipped"] = skipped
    for job in quality_jobs.jobs(options.device, options.names, size.budgets, size.longer, skipped):
        config = {**job.facts, "number": size.number, "few": size.few, "fine_steps": size.fine_steps, "seed": 0}
        if not done.has(job.name, config):
            try:
                done.append(_measure(out, job, config, size, options.device, fine))
            except (ValueError, FloatingPointError) as error:
                skipped[f"{job.name} {json.dumps(dict(job.arguments))}"] = str(error)
                continue
        records = done.of(job.name, config)
        out.records += records
        print("  ".join(_words(records)), flush=True)
    spread = _spread(out, done, size, options.device)
    out.facts["digit_fid_over_seeds"] = spread
    print(
        f"digit-FID of {SPREAD} with {SPREAD_NFE} calls over {size.seeds} seeds: "
        f"{spread['mean']:.3f}, standard deviation {spread['deviation']:.3f}"
    )
    for what, why in skipped.items():
        print(f"left out: {what}: {why}")
    out.end(plot)
    done.path.unlink(missing_ok=True)
    return 0


def _measure(out: Run, job: Job, config: dict[str, Any], size: Size, device: str, fine: Tensor) -> list[Record]:
    """The lines of one point."""
    made = quality_jobs.draw(job, size.number, 0, size.batch, device)
    mode, x = ("noise" if job.noisy else "deterministic"), (*X, column(made.nfe))
    figures: list[Figure] = [("digit_fid", "1", (digit_fid(made.x),) * 3)]
    if not job.noisy:
        figures.append(("error", "rms", (_distance(made.x[: size.few], fine),) * 3))
    return _lines(out, job.name, mode, {**config, "nfe": made.nfe}, figures, x)


def column(nfe: float) -> int:
    """The budget that so many calls belong to; the exact number is in the configuration."""
    return next((budget for budget in COLUMNS_NFE if nfe <= budget), math.ceil(nfe))


def _lines(
    out: Run, name: str, mode: str, config: dict[str, Any], figures: list[Figure], x: tuple[str, str, int]
) -> list[Record]:
    """Lines that are not kept yet."""
    before = len(out.records)
    out.add(name, mode, config, figures, x=x)
    made, out.records[before:] = out.records[before:], []
    return made


def _distance(x: Tensor, y: Tensor) -> float:
    return float((x - y).double().square().mean().sqrt())


def _reference(size: Size, device: str) -> tuple[Tensor, float]:
    """The solution of the probability flow from the same noise, and how far half as many steps are from it."""
    plans = [
        plan_for(quality_jobs.network(device), solver=FINE, steps=steps, **quality_jobs.COMMON)
        for steps in (size.fine_steps, size.fine_steps // 2)
    ]
    fine, half = (quality_jobs.draw(Job(FINE, False, plan), size.few, 0, size.batch, device).x for plan in plans)
    return fine, _distance(fine, half)


def _spread(out: Run, done: Partial, size: Size, device: str) -> dict[str, Any]:
    """Digit-FID of one solver over several seeds: what differences between solvers mean."""
    plan = plan_for(quality_jobs.network(device), solver=SPREAD, steps=SPREAD_NFE, **quality_jobs.COMMON)
    job, values = Job(SPREAD, False, plan), []
    for seed in range(size.seeds):
        config = {**job.facts, "number": size.number, "seed": seed, "spread": True}
        if not done.has(SPREAD, config):
            value = digit_fid(quality_jobs.draw(job, size.number, seed, size.batch, device).x)
            figure: Figure = ("digit_fid", "1", (value,) * 3)
            done.append(_lines(out, SPREAD, "deterministic", config, [figure], (*X, SPREAD_NFE)))
        values.append(done.of(SPREAD, config)[0].y_value_50)
    low, middle, high = (float(q) for q in np.quantile(values, [0.2, 0.5, 0.8]))
    config = {**job.facts, "number": size.number, "seeds": size.seeds, "over_seeds": values}
    figure = ("digit_fid_over_seeds", "1", (middle, low, high))
    out.add(SPREAD, "deterministic", config, [figure], x=(*X, SPREAD_NFE))
    deviation = float(np.std(values, ddof=1)) if len(values) > 1 else math.nan
    return {
        "solver": SPREAD,
        "nfe": SPREAD_NFE,
        "values": values,
        "mean": float(np.mean(values)),
        "deviation": deviation,
    }


class Partial:
    """Lines that are done, in a file to which each new one is appended; found again by sampler and configuration."""

    def __init__(self, path: Path, fresh: bool) -> None:
        self.path, self.records = path, list[Record]()
        if fresh:
            path.unlink(missing_ok=True)
        if path.exists():
            whole, _, _ = path.read_bytes().rpartition(b"\n")  # the last line may have been cut off
            path.write_bytes(whole + b"\n")
            self.records = schema.read_csv(path)

    def append(self, records: Sequence[Record]) -> None:
        new = not self.path.exists()
        self.path.parent.mkdir(parents=True, exist_ok=True)
        with self.path.open("a", newline="") as file:
            writer = csv.DictWriter(file, COLUMNS)
            if new:
                writer.writeheader()
            writer.writerows(asdict(record) for record in records)
        self.records += records

    def of(self, name: str, config: dict[str, Any]) -> list[Record]:
        """The lines of a sampler whose configuration holds all of ``config``."""
        wanted = json.loads(json.dumps(config)).items()
        return [
            r for r in self.records
            if r.kernel_provider == name and wanted <= _config(r).items()
        ]  # fmt: skip

    def has(self, name: str, config: dict[str, Any]) -> bool:
        return bool(self.of(name, config))


def _words(records: Sequence[Record]) -> list[str]:
    first, calls = records[0], _config(records[0])["nfe"]
    return [
        f"{first.kernel_provider:24} {calls:>6.4g} calls",
        *(f"{r.metric_name} {r.y_value_50:.4g}" for r in records),
    ]


def plot(records: Sequence[Record], path: Path) -> None:
    """Digit-FID of samplers without noise, of those with noise, and the error of the former, over calls.

    The band is the mean and twice the standard deviation of one solver over seeds.
    """
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(1, 3, figsize=(18, 7))
    kinds = (("deterministic", "digit_fid"), ("noise", "digit_fid"), ("deterministic", "error"))
    for axis, (mode, metric) in zip(axes, kinds, strict=True):
        rows = [r for r in records if (r.kernel_operation_mode, r.metric_name) == (mode, metric)]
        for number, name in enumerate(dict.fromkeys(r.kernel_provider for r in rows)):
            points = sorted((_config(r)["nfe"], r.y_value_50) for r in rows if r.kernel_provider == name)
            style = ("-", "--", ":", "-.")[number // 10 % 4]
            axis.plot(*zip(*points, strict=True), style, marker="osv^D*PX"[number % 8], label=name, lw=1, ms=4)
        axis.set(
            xscale="log", yscale="log", xlabel="network calls per sample", title=f"{metric.replace('_', '-')}, {mode}"
        )
        axis.grid(True, which="both", alpha=0.3)
        if rows:
            axis.legend(fontsize=6, ncols=2)
    for r in records:
        if r.metric_name == "digit_fid_over_seeds":
            values = _config(r)["over_seeds"]
            mean, away = float(np.mean(values)), float(np.std(values, ddof=1)) if len(values) > 1 else 0.0
            axes[0].axhspan(mean - 2 * away, mean + 2 * away, color="black", alpha=0.15, lw=0)
    figure.tight_layout()
    figure.savefig(path, dpi=100)


def _config(r: Record) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(r.extra_benchmark_config_str)
    return found


def _options(argv: Sequence[str] | None) -> argparse.Namespace:
    made = parser("quality", __doc__, "five samplers, 100 samples")
    made.add_argument("--names", default="", help="samplers, separated by commas (default all)")
    made.add_argument("--number", type=int, help="samples per point")
    made.add_argument("--nfe", default="", help="budgets of network calls, as 5,10,20")
    made.add_argument("--fresh", action="store_true", help="forget what an interrupted run has left")
    options = parse(made, argv, full=0.0, quick=0.0, gpu=0.0)
    known = quality_jobs.samplers()
    options.names = [n for n in options.names.split(",") if n] or list(quality_jobs.QUICK if options.quick else known)
    unknown = set(options.names) - set(known)
    if unknown:
        made.error(f"--names: got {', '.join(sorted(unknown))}, allowed are {', '.join(known)}")
    if options.number is not None and options.number < 2:
        made.error(f"--number: got {options.number}, need 2 or more")
    try:
        options.nfe = tuple(int(n) for n in options.nfe.split(",") if n)
    except ValueError:
        made.error(f"--nfe: got {options.nfe!r}, need whole numbers separated by commas")
    if any(n < 1 for n in options.nfe):
        made.error(f"--nfe: got {options.nfe}, need 1 or more")
    return options


def _size(options: argparse.Namespace) -> Size:
    size = QUICK if options.quick else FULL
    number = options.number or size.number
    longer = size.longer and not options.nfe
    return replace(size, number=number, budgets=options.nfe or size.budgets, few=min(size.few, number), longer=longer)


if __name__ == "__main__":
    sys.exit(main())
