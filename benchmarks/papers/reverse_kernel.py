"""Reverse transition kernels against DDPM: marginal accuracy on six modes, digit-FID, over network calls.

    python -m benchmarks.papers.reverse_kernel [--part even-time|even-snr|digits] [--number N] [--out FOLDER]

Claim (Huang, Zou, Dong, Zhang, Ma, Zhang 2024, arXiv 2405.16387): with the same number of calls, five kernels with a
few Langevin moves each follow a mixture of six Gaussians better than DDPM with many steps even in time.

Mixture: six modes of width 0.3 on a circle of radius 4, dx = -x dt + sqrt(2) dB up to T = 5, exact scores, down to
sigma = 0.  Marginal accuracy of 10,000 samples: 1 - (1 / 2d) sum over the d axes and 60 bins on [-6, 6] of the
differences of probability.  ``even-snr``: the same levels even in log-SNR, down to t = 0.001.  Digits: digit-FID of 200
samples, 20 of each class.  Points that the CSV holds are not measured again.  Writes reverse_kernel.csv and .png.
"""

from __future__ import annotations

import argparse
import csv
import math
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

if __package__ in (None, ""):  # run as a file
    sys.path.insert(0, str(Path(__file__).resolve().parent.parent.parent))

import numpy as np
import torch
from torch import Tensor

from fastsample import GaussianMixture, Network, sample
from fastsample.models.loading import load_model
from fastsample.path import Path as Levels

COLUMNS = ("part", "label", "solver", "segments", "options", "number", "nfe", "value", "acceptance", "seconds")
NUMBER = {"even-time": 10_000, "even-snr": 10_000, "digits": 200}
TITLES = {
    "even-time": "six modes, levels even in time",
    "even-snr": "six modes, levels even in log-SNR",
    "digits": "digits, levels even in time (2M SDE: in log-SNR)",
}
WIDTH, LAST, FIRST = 0.3, 5.0, 1e-3
SIX = GaussianMixture.ring(6, 4.0, WIDTH)
BINS = np.linspace(-6.0, 6.0, 61)
DIGITS_BATCH = 50

Options = dict[str, Any]
Case = tuple[str, str, int, Options]  # label, solver, segments or steps, options


def cases(part: str) -> Iterator[Case]:
    """What is measured."""
    digits = part == "digits"
    for n in (5, 10, 20, 40) if digits else (10, 20, 40, 80):
        yield "DDPM", "ddpm", n, {}
        if not digits:
            yield "DDPM, large variance", "ddpm", n, {"variance": "large"}
            yield "DDPM, frozen score", "rtk-ula", n, {"inner": 0, "init": "gaussian_rtk"}
    if part == "even-snr":
        for n in (10, 20, 40):
            yield "DPM-Solver++ 2M", "dpmpp-2m", n, {}
            yield "DPM-Solver++ 2M SDE", "sde-dpmpp-2m", n, {}
    if digits:
        for n in (5, 10, 20):
            yield "DPM-Solver++ 2M SDE", "sde-dpmpp-2m", n, {}
        for n, inner in ((2, 2), (5, 1), (5, 2), (5, 4), (10, 2)):
            yield "RTK-MALA", "rtk-mala", n, {"inner": inner, "denoise": True}
        yield "RTK-MALA, Simpson", "rtk-mala", 5, {"inner": 2, "estimator": "simpson", "denoise": True}
        yield "RTK-MALA, start: prior", "rtk-mala", 5, {"inner": 4, "init": "prior", "denoise": True}
        yield "RTK-ULA", "rtk-ula", 5, {"inner": 2, "theta": 0.15, "denoise": True}
        yield "RTK-ULD", "rtk-uld", 5, {"inner": 2, "theta": 0.4, "denoise": True}
        return
    moves = ((5, 1), (5, 2), (5, 4), (5, 8)) if part == "even-time" else ((5, 4), (10, 1), (10, 2), (20, 1), (20, 2))
    for label, options in (
        ("RTK-MALA, energy", {"estimator": "energy"}),
        ("RTK-MALA, trapezoid", {"estimator": "trapezoid"}),
        ("RTK-MALA, Simpson", {"estimator": "simpson"}),
        ("RTK-MALA, line(2)", {"estimator": "line(2)"}),
        ("RTK-ULA", {}),
    ):
        for law in ("prior", "posterior"):
            name = label if law == "prior" else f"{label}, posterior"
            for n, inner in moves:
                solver = "rtk-ula" if label == "RTK-ULA" else "rtk-mala"
                yield name, solver, n, {"inner": inner, "init": law, "theta": 1.0, **options}
    for law in ("prior", "posterior", "paper_uld"):
        name = "RTK-ULD" if law == "prior" else f"RTK-ULD, {law}"
        for n, inner in moves:
            theta = 1.5 if inner < 4 else 1.0
            yield name, "rtk-uld", n, {"inner": inner, "init": law, "theta": theta}
    for law in ("gaussian_rtk", "paper_mala"):
        for n, inner in moves:
            yield f"RTK-MALA, {law}", "rtk-mala", n, {"inner": inner, "init": law, "theta": 1.0, "estimator": "energy"}
    if part == "even-time":
        for n in (10, 20):
            for law in ("prior", "posterior"):
                options = {"inner": 2, "init": law, "theta": 1.0, "estimator": "energy"}
                yield f"RTK-MALA, {n} segments, {law}", "rtk-mala", n, options


def levels(part: str, steps: int) -> Levels:
    """The path of the paper's forward process."""
    if part == "even-time":
        times = np.linspace(LAST, 0.0, steps + 1)
        return Levels(np.exp(-times), np.sqrt(-np.expm1(-2.0 * times)), times)
    ends = [-t - 0.5 * math.log(-math.expm1(-2.0 * t)) for t in (LAST, FIRST)]
    lam = np.linspace(*ends, steps + 1)
    log_alpha = -0.5 * np.log1p(np.exp(-2.0 * lam))
    return Levels(np.exp(log_alpha), np.exp(log_alpha - lam), -log_alpha)


def six_modes() -> Network:
    """Exact score and energy, told the time of the forward process."""

    def at(t: Tensor) -> tuple[Tensor, Tensor]:
        return torch.exp(-t), torch.sqrt(-torch.expm1(-2.0 * t))

    def energy(x: Tensor, t: Tensor) -> Tensor:
        return -SIX.log_prob(x.double(), *at(t.double()))

    return Network(lambda x, t: SIX.score(x, *at(t)), "score", energy=energy, width=WIDTH, shape=SIX.shape)


def accuracy(x: Tensor) -> float:
    """Marginal accuracy of samples (N, 2)."""
    means, total = SIX.means.numpy(), 0.0
    for i in range(2):
        z = torch.from_numpy((BINS[:, None] - means[:, i]) / WIDTH)
        exact = np.diff(torch.special.ndtr(z).mean(1).numpy())
        found = np.histogram(x[:, i].double().numpy(), BINS)[0] / len(x)
        total += float(np.abs(exact - found).sum())
    return 1.0 - total / 4.0


def draw(part: str, network: Network, case: Case, number: int) -> tuple[Tensor, Options]:
    _, solver, steps, options = case
    stats: Options = {}
    if part != "digits":
        path = levels(part, steps)
        return sample(network, number, solver=solver, path=path, seed=0, stats=stats, **options), stats
    grid = {} if solver == "sde-dpmpp-2m" else {"grid": "uniform"}
    parts, rates = [], []
    for first in range(0, number, DIGITS_BATCH):
        ids = torch.arange(first, min(first + DIGITS_BATCH, number))
        shared: Options = {"seed": 0, "sample_ids": ids, "cond": ids % 10, "stats": stats}
        parts.append(sample(network, len(ids), solver=solver, steps=steps, **shared, **grid, **options))
        rates.append(stats.get("acceptance"))
    if rates[0] is not None:
        stats["acceptance"] = sum(rates) / len(rates)
    return torch.cat(parts), stats


def run(part: str, number: int, file: Path) -> None:
    """Measure what the CSV does not hold yet."""
    known = {(r["part"], r["label"], r["segments"], r["options"]) for r in read(file)}
    measure = accuracy
    if part == "digits":
        from fastsample.metrics import digit_fid as measure  # type: ignore[no-redef]

        network = load_model("digits", torch.device("cpu"))
    else:
        network = six_modes()
        if (part, "exact samples", "0", "seed=0") not in known:
            for seed in range(3):
                write(
                    file,
                    (part, "exact samples", "", 0, f"seed={seed}", number, 0, accuracy(SIX.sample(number, seed=seed))),
                )
    for case in cases(part):
        label, solver, steps, options = case
        text = " ".join(f"{name}={value}" for name, value in options.items())
        if (part, label, str(steps), text) in known:
            continue
        begin = time.perf_counter()
        x, stats = draw(part, network, case, number)
        spent, value, rate = time.perf_counter() - begin, measure(x), stats.get("acceptance")
        shown = "" if rate is None else f"{rate:.4f}"
        write(file, (part, label, solver, steps, text, number, stats["nfe"], value, shown, f"{spent:.1f}"))
        print(f"{part:10} {label:34} {stats['nfe']:4} calls  {value:8.4f}  {shown:7} {spent:7.1f} s", flush=True)


def write(file: Path, line: tuple[Any, ...]) -> None:
    new = not file.exists()
    with file.open("a", newline="") as handle:
        writer = csv.writer(handle)
        if new:
            writer.writerow(COLUMNS)
        writer.writerow([f"{v:.5f}" if isinstance(v, float) else v for v in line])


def read(file: Path) -> list[dict[str, str]]:
    """The rows of a CSV, none if it is not there."""
    if not file.exists():
        return []
    with file.open() as handle:
        return list(csv.DictReader(handle))


MIXTURE = ("DDPM", "DDPM, large variance", "DDPM, frozen score", "RTK-MALA, energy")
SHOWN = {
    "even-time": (*MIXTURE, "RTK-MALA, trapezoid", "RTK-MALA, Simpson", "RTK-ULD", "RTK-ULA"),
    "even-snr": (*MIXTURE, "RTK-MALA, energy, posterior", "RTK-MALA, trapezoid, posterior", "DPM-Solver++ 2M SDE"),
    "digits": ("DDPM", "DPM-Solver++ 2M SDE", "RTK-MALA", "RTK-MALA, Simpson", "RTK-ULA", "RTK-ULD"),
}


def plot(file: Path) -> None:
    """A panel per part from the CSV; scales are set by hand so that far points do not hide near ones."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot as plt

    rows = read(file)
    parts = [part for part in NUMBER if any(r["part"] == part for r in rows)]
    figure, axes = plt.subplots(1, len(parts), figsize=(6.2 * len(parts), 4.8), squeeze=False)
    for axis, part in zip(axes[0], parts, strict=True):
        for number, label in enumerate(SHOWN[part]):
            found = [r for r in rows if r["part"] == part and r["label"] == label]
            points = sorted((float(r["nfe"]), float(r["value"])) for r in found)
            if not points:
                continue
            if part != "digits":  # errors on a log scale: the distance to 1
                points = [(nfe, 1.0 - value) for nfe, value in points]
            chains = "none" if part == "even-snr" else ":"  # points there differ in segments and in moves
            joined = "-" if label.startswith(("DDPM", "DPM")) else chains
            axis.plot(
                *zip(*points, strict=True),
                linestyle=joined,
                marker="os^DvPX*h"[number],
                color=f"C{number}",
                label=label,
            )
        exact = [1.0 - float(r["value"]) for r in rows if r["part"] == part and r["label"] == "exact samples"]
        if exact:
            axis.axhline(sum(exact) / len(exact), linestyle="--", color="0.4", label="exact samples")
        measure = "digit-FID" if part == "digits" else "1 - marginal accuracy"
        axis.set(xscale="log", yscale="log", xlabel="network calls", ylabel=measure, title=TITLES[part])
        ticks = [5, 10, 20, 40, 80]
        axis.set_xticks(ticks, map(str, ticks))
        low, high = axis.get_ylim()
        values = [v for v in (0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1, 2, 5, 10, 20) if low <= v <= high]
        axis.set_yticks(values, map(str, values))
        axis.minorticks_off()
        axis.grid(True, alpha=0.3)
        axis.legend(fontsize=7)
    figure.tight_layout()
    figure.savefig(file.with_suffix(".png"), dpi=100)
    plt.close(figure)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--part", choices=tuple(NUMBER), help="only this one")
    parser.add_argument("--number", type=int, help="samples per point")
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "results")
    arguments = parser.parse_args()
    arguments.out.mkdir(parents=True, exist_ok=True)
    file = arguments.out / "reverse_kernel.csv"
    for part in NUMBER if arguments.part is None else (arguments.part,):
        run(part, arguments.number or NUMBER[part], file)
    plot(file)


if __name__ == "__main__":
    main()
