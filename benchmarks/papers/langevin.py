"""Langevin kernels: distance to the target over calls of its gradient, at the best of some step sizes.

    python -m benchmarks.papers.langevin [--part gaussian|mixture] [--chains N] [--out FOLDER]

Claims: the randomized midpoint has a smaller bias per call than LMC (Shen and Lee 2019, arXiv 1909.05503; He et al.
2020, arXiv 2011.03176), and so has the Poisson midpoint (Kandasamy and Nagaraj 2024, arXiv 2405.17068: calls in the
accuracy eps go as eps^-2/3 in place of eps^-2, underdamped as eps^-1/3 in place of eps^-1); underdamped kernels mix
faster.

``gaussian``: 8 axes with standard deviations even in logarithm from 1/4 to 1, chains from (2, ..., 2); distance W2 of
the Gaussians with the means and variances found.  ``mixture``: 5 modes in 4 dimensions at the level (0.6, 0.8) of a
diffusion, chains from N(0, I); distance: root mean square difference of quantiles over 64 directions to 200,000 exact
draws.  A run is measured on its way, whenever it has made 2^n calls.  ``exact draws`` is the distance that as many
exact draws have.  Runs that the CSV holds are not made again.  Writes langevin.csv and langevin.png.
"""

from __future__ import annotations

import argparse
import csv
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

if __package__ in (None, ""):  # run as a file
    sys.path.insert(0, str(Path(__file__).resolve().parent.parent.parent))

import numpy as np
import torch
from torch import Tensor

from fastsample import GaussianMixture, langevin

COLUMNS = ("part", "label", "theta", "chains", "calls", "distance", "acceptance", "seconds")
CALLS = tuple(2**n for n in range(3, 9))
STD = torch.logspace(-2, 0, 8, base=2.0, dtype=torch.float64)
ALPHA, SIGMA = 0.6, 0.8
TITLES = {"gaussian": "Gaussian, condition number 16", "mixture": "mixture of 5 modes at a noise level"}
OVER, UNDER = (0.1, 0.2, 0.4, 0.8, 1.2), (0.1, 0.2, 0.4, 0.8, 1.2)
# label, kernel, calls per step, options; theta is the step in units of 1 / L, or of 1 / sqrt(L) if underdamped
KERNELS: tuple[tuple[str, str, int, dict[str, Any]], ...] = (
    ("LMC", "lmc", 1, {}),
    ("RLMC", "rlmc", 2, {}),
    ("PLMC, K = 8, one midpoint", "plmc", 2, {"window": 8, "midpoints": "one"}),
    ("PLMC, K = 32, one midpoint", "plmc", 2, {"window": 32, "midpoints": "one"}),
    ("MALA, energy", "mala", 1, {"estimator": "energy"}),
    ("MALA, Simpson", "mala", 2, {"estimator": "simpson"}),
    ("MALA, trapezoid", "mala", 1, {"estimator": "trapezoid"}),
    ("ULD", "uld", 1, {}),
    ("RLMC underdamped", "rlmc-underdamped", 2, {}),
    ("PLMC underdamped, K = 8, one midpoint", "plmc-underdamped", 2, {"window": 8, "midpoints": "one"}),
    ("PLMC underdamped, K = 32, one midpoint", "plmc-underdamped", 2, {"window": 32, "midpoints": "one"}),
)


def mixture() -> GaussianMixture:
    """Five modes of widths 0.2 to 0.6 in four dimensions."""
    g = torch.Generator().manual_seed(0)
    double: dict[str, Any] = {"generator": g, "dtype": torch.float64}
    means, std = 1.5 * torch.randn(5, 4, **double), 0.2 + 0.4 * torch.rand(5, **double)
    return GaussianMixture(means, std, 0.5 + torch.rand(5, **double))


class Problem:
    """``start`` (chains, d), ``target``, curvature ``most``, ``friction``, ``distance(x)`` and that of exact draws."""

    def __init__(self, part: str, chains: int) -> None:
        self.part = part
        if part == "gaussian":
            self.start, self.most, self.friction = torch.full((chains, 8), 2.0), 16.0, 2.0
            std = STD.float()
            self.target: Any = langevin.Score(lambda x: -x / std**2, lambda x: 0.5 * (x.double() / STD).square().sum(1))
            self.distance: Callable[[Tensor], float] = _gaussian_distance
            self.draw = lambda seed: STD * torch.randn(chains, 8, generator=torch.Generator().manual_seed(seed))
            return
        m = mixture()
        directions = torch.randn(4, 64, generator=torch.Generator().manual_seed(1))
        directions /= directions.norm(dim=0)
        level: dict[str, Any] = {"alpha": ALPHA, "sigma": SIGMA}
        exact = (m.sample(200_000, seed=7, **level) @ directions).sort(0).values
        places = ((torch.arange(chains) + 0.5) / chains * len(exact)).long()
        quantiles = exact[places]
        self.start = torch.randn(chains, 4, generator=torch.Generator().manual_seed(2))
        variance = float((ALPHA**2 * m.std**2 + SIGMA**2).min())
        self.most, self.friction = 1.0 / variance, 2.0
        self.target = langevin.AtLevel(m.network("eps"), ALPHA, SIGMA)
        self.distance = lambda x: float(((x @ directions).sort(0).values - quantiles).square().mean().sqrt())
        self.draw = lambda seed: m.sample(chains, seed=seed, **level)


def _gaussian_distance(x: Tensor) -> float:
    x = x.double()
    return float((x.mean(0).square() + (x.std(0) - STD).square()).sum().sqrt())


def measure(problem: Problem, case: tuple[str, str, int, dict[str, Any]], theta: float) -> Iterator[tuple[Any, ...]]:
    """Distance whenever the run has made a power of two of calls."""
    label, kernel, per_step, options = case
    underdamped = kernel == "uld" or kernel.endswith("underdamped")
    found: dict[int, float] = {}

    def look(number: int, x: Tensor) -> None:
        calls = (number + 1) * per_step
        if calls in CALLS:
            found[calls] = problem.distance(x)

    begin = time.perf_counter()
    try:
        run = langevin.sample(
            problem.target,
            problem.start,
            kernel=kernel,
            steps=CALLS[-1] // per_step,
            step_size=theta / (problem.most**0.5 if underdamped else problem.most),
            seed=0,
            monitor=None,
            callback=look,
            check=False,
            **options,
            **({"friction": problem.friction} if underdamped else {}),
        )
    finally:
        spent = time.perf_counter() - begin
    rate = run.report.acceptance_mean
    for calls, distance in found.items():
        if np.isfinite(distance):
            yield (
                problem.part,
                label,
                theta,
                len(problem.start),
                calls,
                f"{distance:.5f}",
                "" if rate is None else f"{rate:.3f}",
                f"{spent:.1f}",
            )


def plot(file: Path, picture: Path) -> None:
    """The lowest distance over the step sizes, over calls."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    with file.open() as handle:
        lines = list(csv.DictReader(handle))
    figure, axes = plt.subplots(1, 2, figsize=(12, 4.8), layout="constrained")
    for axis, part in zip(axes, TITLES, strict=True):
        best = envelope(lines, part)
        for number, (label, points) in enumerate(best.items()):
            if label == "exact draws":
                axis.axhline(points[0], color="black", linewidth=0.8, linestyle=":", label=label)
                continue
            underdamped = label == "ULD" or "underdamped" in label
            style = {"linestyle": "--" if underdamped else "-", "color": f"C{number}", "marker": "o", "markersize": 3}
            axis.plot(list(points), list(points.values()), label=label, **style)
        axis.set(xscale="log", yscale="log", title=TITLES[part], xlabel="calls of the gradient per chain")
        axis.set_ylabel("distance to the target")
        axis.grid(alpha=0.3)
    axes[1].legend(fontsize=8)
    figure.savefig(picture, dpi=120)


def envelope(lines: list[dict[str, str]], part: str) -> dict[str, dict[int, float]]:
    """Label -> calls -> lowest distance over the step sizes."""
    best: dict[str, dict[int, float]] = {}
    for line in lines:
        if line["part"] == part:
            points, calls = best.setdefault(line["label"], {}), int(line["calls"])
            points[calls] = min(points.get(calls, np.inf), float(line["distance"]))
    return best


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--part", choices=list(TITLES), action="append")
    parser.add_argument("--chains", type=int, default=10_000)
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "results")
    arguments = parser.parse_args()
    arguments.out.mkdir(parents=True, exist_ok=True)
    file = arguments.out / "langevin.csv"
    known: set[tuple[str, str, str]] = set()
    if file.exists():
        with file.open() as handle:
            known = {(line["part"], line["label"], line["theta"]) for line in csv.DictReader(handle)}
    with file.open("a", newline="") as handle:
        writer = csv.writer(handle)
        if not known:
            writer.writerow(COLUMNS)
        for part in arguments.part or list(TITLES):
            problem = Problem(part, arguments.chains)
            if (part, "exact draws", "") not in known:
                floor = float(np.mean([problem.distance(problem.draw(seed)) for seed in range(10, 20)]))
                writer.writerow((part, "exact draws", "", arguments.chains, 0, f"{floor:.5f}", "", ""))
            for case in KERNELS:
                underdamped = case[1] == "uld" or case[1].endswith("underdamped")
                for theta in UNDER if underdamped else OVER:
                    if (part, case[0], str(theta)) in known:
                        continue
                    lines = list(measure(problem, case, theta))
                    writer.writerows(lines)
                    handle.flush()
                    last = lines[-1] if lines else ("", "", "", "", "", "diverged", "", "")
                    print(
                        f"{part:9} {case[0]:40} theta {theta:4}  {last[5]:>9}  {last[6]:6} {last[7]:>6} s", flush=True
                    )
    plot(file, arguments.out / "langevin.png")


if __name__ == "__main__":
    main()
