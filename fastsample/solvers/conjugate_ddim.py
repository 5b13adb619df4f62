"""lambda-DDIM: the conjugate integrator of a scalar state, which scales the state by a factor that grows in time.

With ``z_t = e^{lam t} x / alpha`` the probability flow is ``dz = lam z dt + e^{lam t} eps_hat d rho`` with
rho = sigma/alpha, and one Euler step of z from t to t' is

    x' = e^{lam (t - t')} (1 - lam (t - t')) alpha'/alpha x + alpha' int e^{lam (s - t')} d rho  eps_hat.

lam = 0 is DDIM.  Pandey, Rudolph, Mandt 2024, arXiv 2310.07894, section 3; the program for VP is that of Pandey, Yang,
Mandt 2024, arXiv 2405.17673.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import numpy as np

from fastsample.path import Array, Level, Path
from fastsample.schedules import Schedule
from fastsample.solvers.first_order import identity, pairs, same, transfer
from fastsample.solvers.registry import Solver, add, check_range
from fastsample.solvers.stages import Between
from fastsample.solvers.step import Step

POINTS = 64  # of the Gauss-Legendre quadrature over one step
NEAR = 4  # levels that sigma/alpha between two of them is found from


def lambda_ddim(path: Path, *, lam: float, schedule: str | Schedule | None) -> list[Step]:
    """Steps ``a x + b eps_hat``.  A step from alpha = 0 or to sigma = 0 is DDIM's, which returns x0_hat there.

    Args:
        lam: in units of 1/time, the path's t.
        schedule: None, or the name of the schedule that the path was made of: sigma/alpha inside the steps.  Without
            it the levels near a step tell, exactly so for ``"vp-linear"``, ``"edm"`` and ``"flow"``.
    """
    check_range("lam", lam, -math.inf)
    inside = _by_schedule(path, schedule) if schedule is not None and lam else _by_levels(path)
    steps = []
    for i, start, end in pairs(path, "lambda-ddim"):
        if same(start, end):
            steps.append(identity(i, start, "eps"))
            continue
        if start.alpha == 0.0 or end.sigma == 0.0:
            steps.append(transfer(i, start, end))
            continue
        delta = start.t - end.t
        gap = (end.alpha * start.sigma - start.alpha * end.sigma) / (start.alpha * end.alpha)  # rho - rho'
        weight = gap if lam == 0.0 else inside(i, lam)
        a = math.exp(lam * delta) * (1.0 - lam * delta) * end.alpha / start.alpha
        steps.append(Step(i, start, a, (-end.alpha * weight,), form="eps"))
    return steps


Inside = Callable[[int, float], float]
"""``(step, lam)`` -> integral of ``e^{lam (s - t')} d rho`` from t' to t."""


def _by_schedule(path: Path, schedule: str | Schedule) -> Inside:
    between, levels = Between(path, schedule), path.levels()
    points, rule = np.polynomial.legendre.leggauss(POINTS)

    def weight(i: int, lam: float) -> float:
        start, end = levels[i], levels[i + 1]
        h = end.lam - start.lam
        at = start.lam + 0.5 * h * (points + 1.0)
        shares = 0.5 * h * rule * np.exp(-at)  # d rho = -rho d log-SNR
        times = np.array([between.t(i, value) for value in at])
        return float((shares * np.exp(lam * (times - end.t))).sum())

    return weight


def _by_levels(path: Path) -> Inside:
    law, levels = Between(path).law, path.levels()
    finite = [k for k, level in enumerate(levels) if math.isfinite(level.lam)]
    points, rule = np.polynomial.legendre.leggauss(POINTS)
    v = 0.5 * (points + 1.0)

    def weight(i: int, lam: float) -> float:
        start, end = levels[i], levels[i + 1]
        width = start.t - end.t
        if width == 0.0:
            raise ValueError(f"path: 'lambda-ddim' needs times that differ where levels do, got t = {start.t} twice")
        first = finite.index(i) - 1
        first = min(max(first, 0), max(len(finite) - NEAR, 0))
        near = [levels[k] for k in finite[first : first + NEAR]]
        s = end.t + width * v * v  # in the root of the time that is left, in which rho is smooth down to 0
        rho = _rho(law, near, s)
        inner = float((rule * v * width * np.exp(lam * (s - end.t)) * rho).sum())
        return math.exp(lam * width) * start.rho - end.rho - lam * inner  # by parts

    return weight


def _rho(law: str, near: Sequence[Level], s: Array) -> Array:
    """sigma/alpha at times s: of a polynomial in t, through the levels, for log alpha (VP), sigma (flow) or rho."""
    values = {
        at.t: -0.5 * math.log1p(at.rho**2) if law == "vp" else at.sigma if law == "flow" else at.rho for at in near
    }
    total = np.zeros_like(s)
    for t, value in values.items():
        factor = np.full_like(s, value)
        for other in values:
            if other != t:
                factor *= (s - other) / (t - other)
        total += factor
    if law == "vp":
        return np.asarray(np.sqrt(np.expm1(-2.0 * total)))
    return np.asarray(total / (1.0 - total)) if law == "flow" else total


add(
    Solver(
        "lambda-ddim",
        lambda_ddim,
        "DDIM conjugated by e^{lam t}: the state scaled in time before an Euler step",
        "Pandey, Rudolph, Mandt 2024, arXiv 2310.07894, section 3",
        order=1,
        options={"lam": 0.0, "schedule": None},
    )
)
