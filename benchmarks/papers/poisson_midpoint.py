"""Poisson midpoint against its peers: quality over network calls, on an exact mixture and on the digit network.

    python -m benchmarks.papers.poisson_midpoint [--part mixture|digits] [--number N] [--out FOLDER]

Claim (Kandasamy and Nagaraj 2024, arXiv 2405.17068): the quality of 1000-step DDPM with 50 to 80 network calls, where
solvers of the ODE do not reach it; at very few calls these win.

Mixture: four dimensions, five modes; root mean square distance between the quantiles of 40,000 samples and of 400,000
exact ones, over 64 directions.  Digits: digit-FID of 200 samples, 20 of each class.  Points that the CSV holds are not
measured again, so that a run that was stopped goes on.  Writes poisson_midpoint-PART.csv and poisson_midpoint.png.
"""

from __future__ import annotations

import argparse
import csv
import math
import sys
import time
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

if __package__ in (None, ""):  # run as a file
    sys.path.insert(0, str(Path(__file__).resolve().parent.parent.parent))

import torch
from torch import Tensor

from fastsample import GaussianMixture, sample
from fastsample.models.loading import load_model

COLUMNS = ("part", "label", "solver", "options", "number", "nfe", "distance", "largest", "seconds")
BATCH = {"mixture": 40_000, "digits": 50}
NUMBER = {"mixture": 40_000, "digits": 200}
SCHEDULE = {"mixture": "ddpm-linear", "digits": "vp-linear"}
GRID = {"mixture": "trailing", "digits": "sgm-uniform"}  # even in time, as the fine steps are
CHUNKS = 40  # batches that share midpoints
TITLES = {"mixture": "quantile distance (mixture)", "digits": "digit-FID"}

Options = dict[str, Any]
Measure = Callable[[Tensor], float]


def cases(part: str) -> Iterator[tuple[str, str, Options]]:
    """Label of the line, solver, options; schedule and grid are added where a solver has no usual path."""
    even = {"grid": GRID[part]}
    steps = (20, 40, 80)
    yield "DDPM, 1000 steps", "ddpm", {"steps": 1000, **even}
    for k in steps:
        yield "DDPM", "ddpm", {"steps": k, **even}
    for k in (100, 50, 25):
        yield "PMM one", "poisson-midpoint", {"window": k}
    for k in steps:
        yield "DPM-Solver++ 2M", "dpmpp-2m", {"steps": k}
    for k in steps:
        yield "DDIM", "ddim", {"steps": k, **even}
    for k in steps:
        yield "SA-Solver", "sa", {"steps": k}
    if part == "digits":
        for k in (50, 25):
            yield "PMM one, even windows", "poisson-midpoint", {"window": k, "windows": None}
        # how much another seed changes
        yield "PMM one", "poisson-midpoint", {"window": 25, "seed": 1}
        yield "DPM-Solver++ 2M", "dpmpp-2m", {"steps": 40, "seed": 1}
        yield "DDPM", "ddpm", {"steps": 80, **even, "seed": 1}
        return
    for k in steps:
        yield "DDPM, large variance", "ddpm", {"steps": k, "variance": "large", **even}
    for k in (50, 25):
        yield "PMM one, even windows, large variance", "poisson-midpoint", {
            "window": k, "windows": None, "table": "ddpm-large"
        }  # fmt: skip
    for k in (100, 75, 60, 50, 40, 25, 12):
        yield "PMM one, even windows", "poisson-midpoint", {"window": k, "windows": None}
    even_windows: Options = {"windows": None}
    cosine = {"window": 25, "schedule": "cosine"}
    yield "PMM one, cosine schedule, even windows", "poisson-midpoint", {**cosine, **even_windows}
    yield "PMM one, cosine schedule", "poisson-midpoint", cosine
    for k in (100, 50, 25):
        options = {"window": k, **even_windows, "midpoints": "bernoulli"}
        yield "PMM bernoulli, even windows, shared", "poisson-midpoint", {**options, "shared": True}
        yield "PMM bernoulli, even windows", "poisson-midpoint", options
    for k in (50, 25):
        yield "PMM one, even windows, shared", "poisson-midpoint", {"window": k, **even_windows, "shared": True}
    yield "PMM two, even windows", "poisson-midpoint", {"window": 50, **even_windows, "midpoints": 2}


def mixture() -> GaussianMixture:
    """Five modes in four dimensions, of the same seed as the recorded runs of the tests."""
    g = torch.Generator().manual_seed(0)
    double = {"generator": g, "dtype": torch.float64}
    means = 1.5 * torch.randn(5, 4, **double)  # type: ignore[call-overload]
    spread = 0.2 + 0.4 * torch.rand(5, **double)  # type: ignore[call-overload]
    return GaussianMixture(means, spread, 0.5 + torch.rand(5, **double))  # type: ignore[call-overload]


def quantile_distance(exact: Tensor, number: int, directions: int = 64) -> Measure:
    """Root mean square difference of the quantiles of projections; ``exact`` (M, D), M a multiple of ``number``."""
    g = torch.Generator().manual_seed(1)
    way = torch.randn(directions, exact.shape[1], generator=g, dtype=torch.float64)
    way /= way.norm(dim=1, keepdim=True)
    wanted = (exact.double() @ way.T).sort(0).values.reshape(number, -1, directions).mean(1)
    return lambda x: float(((x.double() @ way.T).sort(0).values - wanted).square().mean().sqrt())


def draw(part: str, network: Any, solver: str, options: Options, number: int, seed: int) -> tuple[Tensor, float]:
    """Samples, and network calls per sample (its own, without waiting for others of the batch)."""
    shape, batch = network.shape, BATCH[part]
    options = {"schedule": SCHEDULE[part], "seed": seed, **options}
    shared = bool(options.get("shared"))
    size = number // CHUNKS if shared else batch
    parts, calls = [], []
    for first in range(0, number, size):
        ids = torch.arange(first, min(first + size, number))
        stats: dict[str, Any] = {}
        cond = None if network.null_class is None else ids % 10
        given = {**options, "sample_ids": ids, "cond": cond, "stats": stats}
        if shared:
            given["midpoint_seed"] = first
        parts.append(sample(network, (len(ids), *shape), solver=solver, **given))
        calls.append(len(ids) * float(stats.get("nfe_per_sample", stats["nfe"])))
    return torch.cat(parts), sum(calls) / number


def run(part: str, number: int, seed: int, folder: Path) -> None:
    """Measure what the CSV does not hold yet."""
    path = folder / f"poisson_midpoint-{part}.csv"
    known = {(r["label"], r["options"]) for r in read(path)}
    measure: Measure
    if part == "mixture":
        target = mixture()
        network = target.network("eps")
        measure = quantile_distance(target.sample(10 * number, seed=99), number)
        if not known:
            for k in range(3):
                write(path, part, "exact samples", "", {"seed": k}, number, 0, measure(target.sample(number, seed=k)))
    else:
        from fastsample.metrics import digit_fid

        network, measure = load_model("digits", torch.device("cpu")), digit_fid
    for label, solver, options in cases(part):
        if (label, text(options)) in known:
            continue
        begin = time.perf_counter()
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # large windows are part of the picture
            x, calls = draw(part, network, solver, options, number, seed)
        spent = time.perf_counter() - begin
        value = measure(x)
        write(path, part, label, solver, options, number, calls, value, float(x.abs().max()), spent)
        print(f"{label:40} {calls:7.1f} calls  {value:9.4f}  {spent:7.1f} s", flush=True)


def text(options: Options) -> str:
    return " ".join(f"{name}={value}" for name, value in options.items()).replace(",", "")


def write(
    path: Path,
    part: str,
    label: str,
    solver: str,
    options: Options,
    number: int,
    calls: float,
    value: float,
    largest: float = math.nan,
    spent: float = math.nan,
) -> None:
    new = not path.exists()
    with path.open("a", newline="") as file:
        writer = csv.writer(file)
        if new:
            writer.writerow(COLUMNS)
        numbers = (f"{calls:.2f}", f"{value:.5f}", f"{largest:.2f}", f"{spent:.1f}")
        writer.writerow((part, label, solver, text(options), number, *numbers))


def read(path: Path) -> list[dict[str, str]]:
    """The rows of a CSV, none if it is not there."""
    if not path.exists():
        return []
    with path.open() as file:
        return list(csv.DictReader(file))


def plot(folder: Path) -> None:
    """Both panels from the CSVs that are there."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot as plt

    parts = {part: rows for part in NUMBER if (rows := read(folder / f"poisson_midpoint-{part}.csv"))}
    figure, axes = plt.subplots(1, len(parts), figsize=(6.5 * len(parts), 4.8), squeeze=False)
    shown = (
        "DDPM",
        "DDIM",
        "DPM-Solver++ 2M",
        "SA-Solver",
        "PMM one",
        "PMM one, even windows",
        "PMM bernoulli, even windows",
    )
    for axis, (part, rows) in zip(axes[0], parts.items(), strict=True):
        for number, label in enumerate(shown):
            points = sorted(
                (float(r["nfe"]), float(r["distance"]))
                for r in rows
                if r["label"] == label and "seed" not in r["options"]
            )
            if points:
                axis.plot(*zip(*points, strict=True), marker="os^DvPX"[number], color=f"C{number}", label=label)
        for label, style in (("DDPM, 1000 steps", "--"), ("exact samples", ":")):
            values = [float(r["distance"]) for r in rows if r["label"] == label]
            if values:
                axis.axhline(sum(values) / len(values), linestyle=style, color="0.4", label=label)
        axis.set(xscale="log", yscale="log", xlabel="network calls per sample", ylabel=TITLES[part])
        axis.grid(True, which="both", alpha=0.3)
        axis.legend(fontsize=8)
    figure.tight_layout()
    figure.savefig(folder / "poisson_midpoint.png", dpi=110)
    plt.close(figure)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--part", choices=tuple(NUMBER), help="only this one")
    parser.add_argument("--number", type=int, help="samples per point")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "results")
    arguments = parser.parse_args()
    arguments.out.mkdir(parents=True, exist_ok=True)
    for part in NUMBER if arguments.part is None else (arguments.part,):
        run(part, arguments.number or NUMBER[part], arguments.seed, arguments.out)
    plot(arguments.out)


if __name__ == "__main__":
    main()
