"""Multilevel Euler-Maruyama: cost against error, on an exact target and on a ladder of digit networks.

    python -m benchmarks.papers.multilevel [--part toy|tables|digits] [--out FOLDER]

Claim (Jacot 2026, arXiv 2603.24594): where errors fall slowly with cost (gamma > 2), asking the best network now and
then costs a fraction of asking it in every step, at equal error; up to four times less on CelebA with gamma about 2.5.

Toy: a Gaussian in four dimensions, levels ``eps + 0.5 2^{-k} sin(W_k x + phi_k)`` at costs ``2^{2.5 k}``; error is the
root mean square distance, per coordinate, to the run with eps and the same noise.  Tables: the same target in 100
steps, levels 0 to 3, probabilities by the law, by the optimum of a pilot run, learned; error is the distance to the run
with level 3 in every step.  Digits: two small networks and the shipped one; error is the root mean square distance per
pixel to the run with the shipped one in every step; digit-FID too.  Costs of digit networks are measured times, that of
the shipped one is 1.  Points that the CSV holds are not measured again.  Writes multilevel-PART.csv and multilevel.png.
"""

from __future__ import annotations

import argparse
import csv
import functools
import math
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

if __package__ in (None, ""):  # run as a file
    sys.path.insert(0, str(Path(__file__).resolve().parent.parent.parent))

import numpy as np
import torch
from torch import Tensor

from fastsample import Ladder, Network, sample
from fastsample.choosing import usual_path
from fastsample.metrics import digit_fid
from fastsample.models.loading import digit_ladder
from fastsample.multilevel import Pilot, learn, pilot
from fastsample.path import Path as Levels

COLUMNS = ("part", "base", "label", "variant", "steps", "nfe", "cost", "error", "fid", "cpu_seconds")
GAMMA, MEAN, STD = 2.5, (1.0, -0.5, 0.3, 2.0), 0.7
TITLES = {
    "toy": "toy: rms distance per coordinate",
    "tables": "toy, 100 steps: rms distance per coordinate",
    "digits": "digits: rms distance per pixel",
}
TABLES = {(part, "ODE"): "ddim" for part in TITLES} | {
    ("toy", "SDE"): "euler-maruyama",
    ("tables", "SDE"): "euler-maruyama",
    ("digits", "SDE"): "ddpm-small",
}

Options = dict[str, Any]
Case = tuple[str, str, str, int, Callable[[], tuple[Ladder, Options]]]  # base, label, variant, steps, what to run


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


def toy_cases() -> Iterator[Case]:
    for base in ("SDE", "ODE"):
        for k in (2, 3, 4, 5):
            yield base, "one level in every step", f"level {k}", 1000, lambda k=k: (toy([k]), {"p": [1.0]})
        for top, c in ((3, 2e3), (4, 1e4), (5, 4e4)):
            rates = [c * 2.0 ** (-2.25 * k) for k in range(top + 1)]
            for steps in (250, 1000, 4000):

                def fixed(top: int = top, rates: list[float] = rates) -> tuple[Ladder, Options]:
                    return toy(range(top + 1)), {"rates": rates}

                yield base, f"ML-EM, fixed rates, {steps} steps", f"levels to {top}, C = {c:g}", steps, fixed
        for budget in (0.05, 0.1, 0.2, 0.4):

            def best(budget: float = budget, table: str = TABLES["toy", base]) -> tuple[Ladder, Options]:
                ladder = toy(range(6))
                measured = pilot(ladder, (256, 4), even(1000), table=table, gains=True, dtype=torch.float64)
                return ladder, {"p": measured.probabilities(budget)}

            yield base, "ML-EM, optimum of a pilot run, 1000 steps", f"budget {budget}", 1000, best


def table_cases() -> Iterator[Case]:
    """Where the probabilities come from: the SDE in 100 steps."""
    path, ladder, table = even(100), toy(range(4)), TABLES["tables", "SDE"]
    for budget in (0.1, 0.15, 0.2, 0.3, 0.4, 0.6):
        yield "SDE", "law of the paper", f"budget {budget}", 100, lambda q=budget: (ladder, {"budget": q})
        for gains, label in ((False, "optimum of a pilot run"), (True, "optimum of a pilot run, with gains")):

            def best(q: float = budget, gains: bool = gains) -> tuple[Ladder, Options]:
                measured = pilot(ladder, (256, 4), path, table=table, gains=gains, dtype=torch.float64)
                return ladder, {"p": measured.probabilities(q)}

            yield "SDE", label, f"budget {budget}", 100, best
    start = [1.0, 0.3, 0.1, 0.03]
    yield "SDE", "start of the learning", "constant", 100, lambda: (ladder, {"p": start})
    for price in (2e-5, 3e-6):

        def learned(price: float = price) -> tuple[Ladder, Options]:
            made = learn(ladder, (128, 4), path, price=price, start=start, rounds=200, rate=0.15, table=table)
            return ladder, {"p": made.p}

        yield "SDE", "learned", f"price {price:g}", 100, learned


def digit_path(steps: int) -> Levels:
    return usual_path("ml-em", "cosine", None, steps)


def digit_cases(steps: int) -> Iterator[Case]:
    ladder = digit_ladder()
    path = digit_path(steps)
    for base in ("ODE", "SDE"):
        for k, level in enumerate(ladder.levels):
            one = Ladder([level], ladder.costs[k : k + 1])
            yield base, "one level in every step", f"level {k}", steps, lambda one=one: (one, {"p": [1.0]})
        for n in (steps // 10, steps // 4, steps // 2) if base == "ODE" else ():
            one = Ladder(ladder.levels[-1:], ladder.costs[-1:])
            yield base, "last level, fewer steps", f"{n} steps", n, lambda one=one: (one, {"p": [1.0]})
        measured: list[Pilot] = []  # made at the first need

        def best(
            budget: float, shared: bool, table: str = TABLES["digits", base], kept: list[Pilot] = measured
        ) -> tuple[Ladder, Options]:
            if not kept:
                kept.append(pilot(ladder, (10, 1, 28, 28), path, table=table, cond=torch.arange(10)))
            return ladder, {"p": kept[0].probabilities(budget), "final": 3, "shared": shared}

        for budget, shared in ((0.3, False), (0.4, False), (0.6, False), (0.4, True)):
            label = "ML-EM, one draw per batch" if shared else "ML-EM, a draw per sample"
            yield base, label, f"budget {budget}", steps, functools.partial(best, budget, shared)


class Runs:
    """Runs of one part, each compared with the last level (or the exact eps) from the same start and noise."""

    def __init__(self, part: str, digit_steps: int, number: int) -> None:
        self._part, self._references = part, dict[tuple[str, int], Tensor]()
        self._finest = digit_steps
        self._common: Options = {"solver": "ml-em", "seed": 0}
        if part == "digits":
            self._shape: Any = number
            self._common |= {"cond": torch.arange(number) % 10}
        else:
            self._shape = (256 if part == "toy" else 2048, 4)
            self._common |= {"dtype": torch.float64, "shared": False}

    def _path(self, steps: int) -> Levels:
        return digit_path(steps) if self._part == "digits" else even(steps)

    def _reference(self, base: str, steps: int) -> Tensor:
        digits = self._part == "digits"
        place = base, self._finest if digits else steps
        if place not in self._references:
            model = (
                Ladder(digit_ladder().levels[-1:], [1.0])
                if digits
                else toy([3 if self._part == "tables" else math.inf])
            )
            given = {**self._common, "path": self._path(place[1]), "table": TABLES[self._part, base], "p": [1.0]}
            self._references[place] = sample(model, self._shape, **given)
        return self._references[place]

    def __call__(self, case: Case) -> tuple[Any, ...]:
        base, label, variant, steps, make = case
        model, options = make()
        reference = self._reference(base, steps)
        given = {**self._common, "path": self._path(steps), "table": TABLES[self._part, base], **options}
        stats: Options = {}
        begin = time.process_time()
        x = sample(model, self._shape, stats=stats, **given)
        seconds = time.process_time() - begin
        error = float((x - reference).square().mean().sqrt())
        fid = digit_fid(x) if self._part == "digits" else math.nan
        return self._part, base, label, variant, steps, stats["nfe"], stats["cost"], error, fid, seconds


def plot(folder: Path) -> None:
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot as plt

    files = {part: folder / f"multilevel-{part}.csv" for part in TITLES}
    tables = {part: read(file) for part, file in files.items() if file.exists()}
    panels = [(part, base) for part, rows in tables.items() for base in dict.fromkeys(row["base"] for row in rows)]
    columns = min(3, len(panels))
    lines = -(-len(panels) // columns)
    figure, axes = plt.subplots(lines, columns, figsize=(5.6 * columns, 4.2 * lines), squeeze=False)
    for axis in axes.flat[len(panels) :]:
        axis.axis("off")
    for axis, (part, base) in zip(axes.flat, panels, strict=False):
        rows = [row for row in tables[part] if row["base"] == base]
        for label in dict.fromkeys(row["label"] for row in rows):
            points = sorted((float(r["cost"]), float(r["error"])) for r in rows if r["label"] == label)
            points = [point for point in points if point[1] > 0]
            axis.plot(*zip(*points, strict=True), "o-", label=label, ms=4, lw=1)
        axis.set(xscale="log", yscale="log", xlabel="cost of a sample", title=f"{TITLES[part]} ({base})")
        axis.title.set_fontsize(9)
        axis.grid(alpha=0.3)
        axis.legend(fontsize=6)
    figure.tight_layout()
    figure.savefig(folder / "multilevel.png", dpi=100)


def read(file: Path) -> list[dict[str, str]]:
    with file.open(newline="") as source:
        return list(csv.DictReader(source))


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--part", choices=tuple(TITLES), action="append")
    parser.add_argument("--base", choices=("SDE", "ODE"), help="only this one")
    parser.add_argument("--number", type=int, default=100, help="samples of the digit part")
    parser.add_argument("--steps", type=int, default=200, help="steps of the digit part")
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "results")
    options = parser.parse_args(arguments)
    options.out.mkdir(parents=True, exist_ok=True)
    for part in options.part or TITLES:
        file, run = options.out / f"multilevel-{part}.csv", Runs(part, options.steps, options.number)
        known = {tuple(row[name] for name in COLUMNS[1:4]) for row in read(file)} if file.exists() else set()
        cases = {"toy": toy_cases, "tables": table_cases, "digits": lambda: digit_cases(options.steps)}[part]()
        for case in cases:
            if case[:3] in known or case[0] not in (options.base or case[0]):
                continue
            made = run(case)
            print("  ".join(f"{v:.4g}" if isinstance(v, float) else str(v) for v in made), flush=True)
            fresh = not file.exists()
            with file.open("a", newline="") as target:
                csv.writer(target).writerows([COLUMNS, made] if fresh else [made])
    plot(options.out)
    return 0


if __name__ == "__main__":
    sys.exit(main())
