"""Multilevel Euler-Maruyama: cost against error, on an exact target and on a ladder of digit networks.

    python -m benchmarks.papers.multilevel [--part toy|digits] [--out FOLDER]

Claim (Jacot 2026, arXiv 2603.24594): where errors fall slowly with cost (gamma > 2), asking the best network now and
then costs a fraction of asking it in every step, at equal error; up to four times less on CelebA with gamma about 2.5.

Toy: a Gaussian in four dimensions, levels ``eps + 0.5 2^{-k} sin(W_k x + phi_k)`` at costs ``2^{2.5 k}``; error is the
root mean square distance, per sample, to the run with eps and the same noise.  Digits: two small networks and the
shipped one; error is the root mean square distance per pixel to the run with the shipped one in every step, and digit-FID.
Writes multilevel-PART.csv and multilevel.png.
"""

from __future__ import annotations

import argparse
import csv
import math
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

if __package__ in (None, ""):  # run as a file
    sys.path.insert(0, str(Path(__file__).resolve().parent.parent.parent))

import numpy as np
import torch
from torch import Tensor

from fastsample import Ladder, Network, sample
from fastsample.metrics import digit_fid
from fastsample.multilevel import pilot
from fastsample.path import Path as Levels

COLUMNS = ("part", "label", "steps", "cost", "nfe", "error", "fid", "seconds")
GAMMA, MEAN, STD = 2.5, (1.0, -0.5, 0.3, 2.0), 0.7
CHAINS = 256


def toy(levels: Sequence[float]) -> Ladder:
    """Levels k of the toy; ``inf`` is eps itself."""
    g = torch.Generator().manual_seed(0)
    w = torch.randn(8, 4, 4, generator=g, dtype=torch.float64)
    phase = 2 * math.pi * torch.rand(8, 4, generator=g, dtype=torch.float64)
    mean = torch.tensor(MEAN, dtype=torch.float64)

    def level(k: float) -> Network:
        def predict(x: Tensor, t: Tensor) -> Tensor:
            alpha = torch.exp(-t[:, None] / 2)
            sigma = torch.sqrt(-torch.expm1(-t[:, None]))
            eps = sigma * (x - alpha * mean) / (alpha**2 * STD**2 + sigma**2)
            if k == math.inf:
                return eps
            out: Tensor = eps + 0.5 * 2.0**-k * torch.sin(x @ w[int(k)].T + phase[int(k)])
            return out

        return Network(predict, "eps", shape=(4,))

    return Ladder([level(k) for k in levels], [2.0 ** (GAMMA * k) if k < math.inf else 1.0 for k in levels])


def even(steps: int) -> Levels:
    """Even times from 3 to 0.05 of the VP process with beta = 1."""
    t = np.linspace(3.0, 0.05, steps + 1)
    return Levels(np.exp(-t / 2), np.sqrt(-np.expm1(-t)), t)


def toy_rows() -> Iterator[dict[str, Any]]:
    references: dict[tuple[str, int], Tensor] = {}

    def run(label: str, ladder: Ladder, steps: int, table: str, **options: Any) -> dict[str, Any]:
        common = {"solver": "ml-em", "path": even(steps), "table": table, "seed": 0, "dtype": torch.float64}
        if (table, steps) not in references:
            references[table, steps] = sample(toy([math.inf]), (CHAINS, 4), p=[1.0], **common)
        stats: dict[str, Any] = {}
        begin = time.perf_counter()
        x = sample(ladder, (CHAINS, 4), stats=stats, shared=False, **common, **options)
        gap = (x - references[table, steps]).square().sum(1).mean().sqrt()
        seconds = time.perf_counter() - begin
        cells = (label, steps, stats["cost"], stats["nfe"], float(gap), math.nan, seconds)
        return dict(zip(COLUMNS, ("toy", *cells), strict=True))

    for table, name in (("euler-maruyama", "SDE"), ("ddim", "ODE")):
        for k in (2, 3, 4, 5):
            yield run(f"{name}: last level in every step", toy([k]), 1000, table, p=[1.0])
        for top, c in ((3, 2e3), (4, 1e4), (5, 4e4)):
            for steps in (250, 1000, 4000):
                rates = [c * 2.0 ** (-2.25 * k) for k in range(top + 1)]
                yield run(
                    f"{name}: ML-EM, fixed rates, {steps} steps", toy(list(range(top + 1))), steps, table, rates=rates
                )
        for budget in (0.1, 0.2, 0.4):
            ladder = toy(list(range(6)))
            measured = pilot(ladder, (CHAINS, 4), even(1000), table=table, dtype=torch.float64)
            p = measured.probabilities(budget).tolist()
            yield run(f"{name}: ML-EM, optimum of a pilot run, 1000 steps", ladder, 1000, table, p=p)


def digit_rows(number: int, steps: int) -> Iterator[dict[str, Any]]:
    from fastsample.models.loading import digit_ladder

    ladder = digit_ladder()
    labels = torch.arange(number) % 10
    common = {"schedule": "cosine", "seed": 0, "cond": labels}
    reference: dict[str, Tensor] = {}

    def run(label: str, n: int, model: Any, cost: float, **options: Any) -> dict[str, Any]:
        stats: dict[str, Any] = {}
        begin = time.perf_counter()
        x = sample(model, number, steps=n, stats=stats, **common, **options)
        seconds = time.perf_counter() - begin
        x0 = reference.setdefault("x", x)
        gap = (x - x0).square().mean().sqrt()
        cells = (label, n, stats.get("cost", cost) / ladder.costs[-1], stats["nfe"], float(gap), digit_fid(x), seconds)
        return dict(zip(COLUMNS, ("digits", *cells), strict=True))

    top = ladder.costs[-1]
    yield run("last level in every step", steps, ladder, steps * top, solver="ddim")
    for k in (0, 1):
        yield run(f"level {k} in every step", steps, ladder.levels[k], steps * ladder.costs[k], solver="ddim")
    for n in (steps // 10, steps // 4, steps // 2):
        yield run("last level, fewer steps (DDIM)", n, ladder, n * top, solver="ddim")
    from fastsample.choosing import usual_path

    path = usual_path("ddim", "cosine", None, steps)
    measured = pilot(ladder, (20, 1, 28, 28), path, table="ddim", cond=labels[:20])
    for budget in (0.3, 0.4, 0.6):
        for shared, name in ((True, "one draw per batch"), (False, "a draw per sample")):
            p = measured.probabilities(budget).tolist()
            yield run(f"ML-EM, {name}", steps, ladder, 0.0, solver="ml-em", table="ddim", p=p, shared=shared, final=3)


def plot(folder: Path, path: Path) -> None:
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot as plt

    files = [folder / f"multilevel-{part}.csv" for part in ("toy", "digits")]
    files = [file for file in files if file.exists()]
    figure, axes = plt.subplots(1, len(files), figsize=(6.5 * len(files), 4.8), squeeze=False)
    for axis, file in zip(axes[0], files, strict=True):
        rows = list(csv.DictReader(file.open()))
        for label in dict.fromkeys(row["label"] for row in rows):
            points = sorted((float(r["cost"]), float(r["error"])) for r in rows if r["label"] == label)
            points = [p for p in points if p[1] > 0]
            if points:
                axis.plot(*zip(*points, strict=True), "o-", label=label, ms=4, lw=1)
        axis.set(xscale="log", yscale="log", xlabel="cost of a sample", ylabel="error to the run with the best network")
        axis.set_title(file.stem)
        axis.legend(fontsize=6)
    figure.tight_layout()
    figure.savefig(path, dpi=110)


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--part", choices=("toy", "digits"), action="append")
    parser.add_argument("--number", type=int, default=100, help="samples of the digit part")
    parser.add_argument("--steps", type=int, default=200, help="steps of the digit part")
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "results")
    options = parser.parse_args(arguments)
    options.out.mkdir(parents=True, exist_ok=True)
    for part in options.part or ("toy", "digits"):
        rows = []
        for made in toy_rows() if part == "toy" else digit_rows(options.number, options.steps):
            rows.append(made)
            print("  ".join(f"{v:.4g}" if isinstance(v, float) else str(v) for v in made.values()), flush=True)
            with (options.out / f"multilevel-{part}.csv").open("w", newline="") as file:
                writer = csv.DictWriter(file, COLUMNS)
                writer.writeheader()
                writer.writerows(rows)
    plot(options.out, options.out / "multilevel.png")
    return 0


if __name__ == "__main__":
    sys.exit(main())
