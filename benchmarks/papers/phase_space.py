"""Phase-space samplers: error to the exact probability flow, and distance of samples to the law, over network calls.

    python -m benchmarks.papers.phase_space [--part ode|gauss|law] [--out FOLDER]

Claims (Pandey, Rudolph, Mandt 2024, arXiv 2310.07894, on images): conjugate splitting is the best deterministic
sampler, reduced splitting (ROBA) with lambda_s the best stochastic one, both far better than Euler-Maruyama and SSCS of
Pandey, Mandt 2023, arXiv 2303.01748, at 50 to 100 calls.

Data: five Gaussians in four dimensions, exact phase-space network, Gamma 0.01, nu 4.01, beta 8, quadratic grid.
``ode``: median distance of 64 positions to the exact solution at t = 0.002 from the same start, float64.
``gauss``: W2 of the law of x to that of data N(1, 0.5^2), both exact: the network is affine, so a row maps normal laws
to normal laws, and nothing is sampled.
``law``: sliced W1 (64 directions) of 6000 samples to 6000 exact ones, mean of three seeds; next to them samplers of the
ordinary VP-linear diffusion of the same data.

Points that the CSV holds are not measured again.  Writes phase_space.csv and .png.
"""

from __future__ import annotations

import argparse
import functools
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

if __package__ in (None, ""):  # run as a file
    sys.path.insert(0, str(Path(__file__).resolve().parent.parent.parent))

import csv

import numpy as np
import torch
from torch import Tensor

from fastsample import GaussianMixture, PhaseSpace, make_path, make_plan, row, sample
from fastsample.plan import output_of
from fastsample.solvers import solvers
from fastsample.solvers.phase import moments

COLUMNS = ("part", "label", "solver", "options", "steps", "nfe", "value", "spread", "seconds")
PROCESS = PhaseSpace()
ODE_END, NUMBER, SEEDS, DIRECTIONS = 0.002, 6000, 3, 64
TITLES = {
    "ode": "error to the exact probability flow",
    "gauss": "exact distance of laws, data N(1, 0.5^2)",
    "law": "distance of samples to the data",
}
MEASURES = {"ode": "median distance", "gauss": "W2", "law": "sliced W1"}
BUDGETS = {"ode": (12, 24, 48, 96, 192), "gauss": (25, 50, 100, 200, 400, 800), "law": (25, 50, 100, 200)}

Options = dict[str, Any]

ODE: tuple[tuple[str, str, Options], ...] = (
    ("Euler", "psld-euler", {}),
    ("lambda-DDIM, 0", "lambda-ddim-psld", {"lam": 0.0}),
    ("lambda-DDIM-II, 0.5", "lambda-ddim-psld", {"lam": 0.5, "kind": "1"}),
    ("NSE", "nse", {}),
    ("RSE", "rse", {}),
    ("NVV", "nvv", {}),
    ("RVV", "rvv", {}),
    ("RVV, position first", "rvv", {"first": "x"}),
    ("CSE, 0", "cse", {}),
    ("CVV, 0 (I)", "cvv", {}),
    ("CVV, 0.5 (ones)", "cvv", {"lam": 0.5, "kind": "1"}),
    ("whitened, order 1", "psld-whitened", {"order": 1}),
    ("whitened, order 2", "psld-whitened", {"order": 2}),
)
PAPER_LAMBDA_S = {50: 1.16, 100: 0.36, 200: 0.16}  # recalled from the paper, window="mean"
LAW: tuple[tuple[str, str, Options], ...] = (
    ("EM", "psld-em", {}),
    ("SSCS", "sscs", {}),
    ("NOBA", "noba", {}),
    ("ROBA", "roba", {}),
    ("ROBA, paper's lambda_s", "roba", {"window": "mean"}),
    ("RBAO", "rbao", {}),
    ("ROBAB", "robab", {}),
    ("COBA, 0", "coba", {}),
    ("RVV", "rvv", {}),
    ("CVV, 0 (I)", "cvv", {}),
    ("whitened, order 2", "psld-whitened", {"order": 2}),
    ("VP: DDPM", "ddpm", {}),
    ("VP: DDIM", "ddim", {}),
    ("VP: DPM-Solver++ 2M", "dpmpp-2m", {}),
)


def data() -> GaussianMixture:
    """Five modes in four dimensions."""
    g = torch.Generator().manual_seed(0)
    double: Options = {"generator": g, "dtype": torch.float64}
    means = 1.5 * torch.randn(5, 4, **double)
    std = 0.2 + 0.4 * torch.rand(5, **double)
    return GaussianMixture(means, std, 0.5 + torch.rand(5, **double))


DATA = data()
NETWORK = DATA.phase_space(PROCESS)


@functools.cache
def exact_flow(steps: int = 1500) -> tuple[Tensor, Tensor]:
    """64 starts, and where the probability flow brings them: classical Runge-Kutta in the root of time."""
    g = torch.Generator().manual_seed(1)
    x, m = (torch.randn(64, 4, generator=g, dtype=torch.float64) for _ in range(2))
    z = start = torch.cat([x, PROCESS.M**0.5 * m], 1)
    F = torch.tensor(PROCESS.drift(8.0))

    def slope(v: float, z: Tensor) -> Tensor:
        pull = torch.tensor(0.5 * PROCESS.diffusion(8.0) @ PROCESS.K(v * v))
        eps = NETWORK.fn(z, torch.full((64,), v * v, dtype=torch.float64))
        both = torch.einsum("rs,bsd->brd", F, z.view(64, 2, 4)) + torch.einsum("rs,bsd->brd", pull, eps.view(64, 2, 4))
        return 2.0 * v * both.reshape(64, 8)

    h = (ODE_END**0.5 - 1.0) / steps
    for i in range(steps):
        v = 1.0 + i * h
        k1 = slope(v, z)
        k2 = slope(v + 0.5 * h, z + 0.5 * h * k1)
        k3 = slope(v + 0.5 * h, z + 0.5 * h * k2)
        z = z + h / 6.0 * (k1 + 2.0 * k2 + 2.0 * k3 + slope(v + h, z + h * k3))
    return start, z[:, :4]


def flow_error(solver: str, steps: int, options: Options) -> tuple[int, float]:
    """Network calls and median distance to the exact solution."""
    path = make_path(PROCESS, "quadratic", steps, t_min=ODE_END)
    plan = make_plan(solver, path, **{**PROCESS.options, "last": "none", **options})
    start, exact = exact_flow()
    x = sample(NETWORK, start, plan=plan, seed=0)
    return plan.nfe, float((x - exact).norm(dim=1).median())


def gauss_distance(solver: str, steps: int, options: Options, mu: float = 1.0, s: float = 0.5) -> tuple[int, float]:
    """Network calls and W2 of the law of x at the end; (x, m) and the eps of the call before are normal throughout."""
    plan = make_plan(solver, make_path(PROCESS, "quadratic", steps), **{**PROCESS.options, **options})
    start = plan.start("noise")
    mean, cov = np.zeros(4), np.diag([start[row.g(k, 0)] ** 2 + start[row.g(k, 1)] ** 2 for k in range(2)] + [0.0, 0.0])
    for t, call, values in zip(plan.t.tolist(), plan.calls, plan.table, strict=True):
        b = PROCESS.b(t)
        law = moments.covariance(PROCESS.Gamma, PROCESS.nu, b, s * s, PROCESS.gamma * PROCESS.M)
        H = PROCESS.root(t).T @ np.linalg.inv([[law.xx, law.xm], [law.xm, law.mm]])  # eps = H (z - c)
        c = PROCESS.flow(b)[:, 0] * mu
        T, E, N = np.zeros((4, 4)), np.zeros((4, 2)), np.zeros((4, 2))
        T[:2, :2], E[2:] = np.eye(2), np.eye(2)
        for k, slot in enumerate(call.outputs):
            T[slot] = 0.0
            N[slot] = [values[row.g(k, r)] for r in range(2)]
            for j, term in enumerate(call.terms):
                weight = values[row.w(k, j)]
                if term >= 0:
                    T[slot, term] = weight
                else:
                    _, part, back = output_of(term, 2)
                    (T if back else E)[slot, part + 2 * back] = weight
        T[:, :2] += E @ H
        mean, cov = T @ mean - E @ H @ c, T @ cov @ T.T + N @ N.T
    return plan.nfe, float(np.hypot(mean[0] - mu, cov[0, 0] ** 0.5 - s))


def sliced(x: Tensor, y: Tensor) -> float:
    """Mean over directions of W1 between projections."""
    g = torch.Generator().manual_seed(0)
    unit = torch.randn(x.shape[1], DIRECTIONS, generator=g, dtype=torch.float64)
    unit = unit / unit.norm(dim=0)
    a, b = ((z.double() @ unit).sort(dim=0).values for z in (x, y))
    return float((a - b).abs().mean())


def law_distance(solver: str, steps: int, options: Options, seed: int) -> tuple[int, float]:
    """Network calls and sliced W1."""
    stats: Options = {}
    vp = solvers()[solver].model == ""
    network = DATA.network("eps") if vp else NETWORK
    x = sample(network, NUMBER, solver=solver, steps=steps, seed=seed, stats=stats, dtype=torch.float64, **options)
    return stats["nfe"], sliced(x, DATA.sample(NUMBER, seed=100 + seed, dtype=torch.float64))


def cases(part: str) -> Iterator[tuple[str, str, Options, int]]:
    """Label, solver, options, steps: as many as a budget of calls allows."""
    for label, solver, options in ODE if part == "ode" else LAW:
        per_step = int(solvers()[solver].nfe)
        if part == "gauss" and label.startswith("VP"):
            continue
        for budget in BUDGETS[part]:
            if "paper" in label:
                if budget not in PAPER_LAMBDA_S:
                    continue
                options = {**options, "lambda_s": PAPER_LAMBDA_S[budget]}
            last = 1 if part != "ode" and solvers()[solver].stochastic and not label.startswith("VP") else 0
            yield label, solver, options, (budget - last) // per_step


def run(part: str, file: Path) -> None:
    """Measure what the CSV does not hold yet."""
    known = {(r["part"], r["label"], r["steps"]) for r in read(file)}
    if part == "law" and (part, "exact samples", "0") not in known:
        sets = [DATA.sample(NUMBER, seed=seed, dtype=torch.float64) for seed in range(10, 16)]
        values = [sliced(a, b) for a, b in zip(sets[::2], sets[1::2], strict=True)]
        write(file, (part, "exact samples", "", "", 0, 0, *summary(values), ""))
    for label, solver, options, steps in cases(part):
        if (part, label, str(steps)) in known:
            continue
        begin = time.perf_counter()
        if part != "law":
            nfe, value = (flow_error if part == "ode" else gauss_distance)(solver, steps, options)
            values = [value]
        else:
            runs = [law_distance(solver, steps, options, seed) for seed in range(SEEDS)]
            nfe, values = runs[0][0], [value for _, value in runs]
        spent = time.perf_counter() - begin
        text = " ".join(f"{name}={value}" for name, value in options.items())
        write(file, (part, label, solver, text, steps, nfe, *summary(values), f"{spent:.1f}"))
        print(f"{part:4} {label:26} {nfe:4} calls  {summary(values)[0]:9.5f}  {spent:6.1f} s", flush=True)


def summary(values: list[float]) -> tuple[float, float]:
    """Mean and half the range."""
    return sum(values) / len(values), 0.5 * (max(values) - min(values))


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


def plot(file: Path) -> None:
    """A panel per part from the CSV."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot as plt

    rows = read(file)
    parts = [part for part in TITLES if any(r["part"] == part for r in rows)]
    figure, axes = plt.subplots(1, len(parts), figsize=(6.6 * len(parts), 5.2), squeeze=False)
    for axis, part in zip(axes[0], parts, strict=True):
        for number, (label, _, _) in enumerate(ODE if part == "ode" else LAW):
            found = [r for r in rows if r["part"] == part and r["label"] == label]
            points = sorted((float(r["nfe"]), float(r["value"])) for r in found)
            if points:
                style = ":" if label.startswith("VP") else "-"
                axis.plot(*zip(*points, strict=True), style, marker="os^DvPX*hpd<>8"[number], ms=5, label=label)
        exact = [float(r["value"]) for r in rows if r["part"] == part and r["label"] == "exact samples"]
        if exact:
            axis.axhline(exact[0], linestyle="--", color="0.4", label="two exact sets")
            axis.set_ylim(0.6 * exact[0], 0.4)
        axis.set(xscale="log", yscale="log", xlabel="network calls", ylabel=MEASURES[part], title=TITLES[part])
        axis.grid(True, which="both", alpha=0.3)
        axis.legend(fontsize=7)
    figure.tight_layout()
    figure.savefig(file.with_suffix(".png"), dpi=100)
    plt.close(figure)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--part", choices=tuple(TITLES), help="only this one")
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "results")
    arguments = parser.parse_args()
    arguments.out.mkdir(parents=True, exist_ok=True)
    file = arguments.out / "phase_space.csv"
    for part in TITLES if arguments.part is None else (arguments.part,):
        run(part, file)
    plot(file)


if __name__ == "__main__":
    main()
