"""First-order one-step samplers as tables: ``x_{j+1} = a_j x_j + b_j eps_hat(x_j, t_j) + s_j xi`` per step of a path.

What methods are built on that imitate many fine steps by few calls (Poisson midpoint) or by cheap ones (multilevel
Euler-Maruyama).  From a level t to a level s of a path, with ``r = alpha_t / alpha_s``, ``h`` the step in half log-SNR
and ``v = sigma_t^2 - r^2 sigma_s^2 = sigma_t^2 (1 - e^{-2h})`` the variance of the forward kernel ``N(r x_s, v)``:

    table            a              b                                       s
    ddpm-small       1/r            -v / (r sigma_t)                        sqrt(v) sigma_s / sigma_t
    ddpm-large       1/r            -v / (r sigma_t)                        sqrt(v)
    frozen-score     1/r            -v / (r^2 sigma_t)                      sqrt(v) / r
    exponential      1/r            -2 sigma_s (e^h - 1)                    sigma_s sqrt(e^{2h} - 1)
    euler-maruyama   1 - log r      -v / sigma_t                            sqrt(v)
    ddim             1/r            sqrt(sigma_s^2 - s^2) - sigma_t / r     eta sqrt(v) sigma_s / sigma_t

Every difference is formed with expm1 of h, so that close levels lose no digits.  A step into clean data adds no noise.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from fastsample.path import Array, Level, Path, step_size
from fastsample.solvers.first_order import pairs, same
from fastsample.solvers.registry import check_choice, check_range

Coefficients = tuple[float, float, float]


@dataclass(frozen=True, eq=False)
class FineTable:
    """``a``, ``b``, ``s``: float64 ``(M,)``, one entry per step of ``path``, which has M steps."""

    path: Path
    a: Array
    b: Array
    s: Array

    def __post_init__(self) -> None:
        for name in ("a", "b", "s"):
            values = np.array(getattr(self, name), dtype=np.float64)
            if values.shape != (self.path.steps,) or not np.isfinite(values).all():
                raise ValueError(f"{name}: got shape {values.shape}, allowed are {self.path.steps} finite numbers")
            values.flags.writeable = False
            object.__setattr__(self, name, values)

    def __len__(self) -> int:
        return len(self.a)


def _ddpm_small(start: Level, end: Level, h: float, eta: float) -> Coefficients:
    """Ho, Jain, Abbeel 2020, arXiv 2006.11239, algorithm 2 with the variance of the posterior."""
    a = end.alpha / start.alpha
    return a, a * start.sigma * math.expm1(-2.0 * h), end.sigma * math.sqrt(-math.expm1(-2.0 * h))


def _ddpm_large(start: Level, end: Level, h: float, eta: float) -> Coefficients:
    """The same with the variance of the forward step."""
    a, b, _ = _ddpm_small(start, end, h, eta)
    return a, b, start.sigma * math.sqrt(-math.expm1(-2.0 * h))


def _frozen_score(start: Level, end: Level, h: float, eta: float) -> Coefficients:
    """The reverse kernel ``p(x_s | x_t) ~ exp(score . x_s) N(x_t; r x_s, v)`` of a score that does not change."""
    a, b, s = _ddpm_large(start, end, h, eta)
    return a, a * b, a * s


def _exponential(start: Level, end: Level, h: float, eta: float) -> Coefficients:
    """SDE-DPM-Solver-1: Lu et al. 2022, arXiv 2211.01095."""
    return end.alpha / start.alpha, -2.0 * end.sigma * math.expm1(h), end.sigma * math.sqrt(math.expm1(2.0 * h))


def _euler_maruyama(start: Level, end: Level, h: float, eta: float) -> Coefficients:
    """Song et al. 2020, arXiv 2011.13456, equation 6, with the increments of the path: the integral of f is
    ``log r`` and that of ``g^2``, weighted to the start of the step, is v."""
    v = -math.expm1(-2.0 * h) * start.sigma**2
    return 1.0 + math.log(end.alpha / start.alpha), -v / start.sigma, math.sqrt(v)


def _ddim(start: Level, end: Level, h: float, eta: float) -> Coefficients:
    """Song, Meng, Ermon 2020, arXiv 2010.02502, equation 12."""
    less = eta * eta * math.expm1(-2.0 * h)  # -s^2 / sigma_s^2
    b = end.sigma * (less / (1.0 + math.sqrt(1.0 + less)) - math.expm1(h))
    return end.alpha / start.alpha, b, eta * end.sigma * math.sqrt(-math.expm1(-2.0 * h))


TABLES: dict[str, Callable[[Level, Level, float, float], Coefficients]] = {
    "ddpm-small": _ddpm_small,
    "ddpm-large": _ddpm_large,
    "frozen-score": _frozen_score,
    "exponential": _exponential,
    "euler-maruyama": _euler_maruyama,
    "ddim": _ddim,
}


def fine_table(path: Path, table: str = "ddpm-small", eta: float = 0.0) -> FineTable:
    """The table of a path.

    Args:
        path: from noise to data, alpha > 0; to sigma > 0 for ``"exponential"``.
        table: a name of ``TABLES``.
        eta: of ``"ddim"``, in [0, 1]: 0 is deterministic, 1 is ``"ddpm-small"``.

    Raises:
        ValueError: an unknown table, eta out of range or given to another table, a path that the table cannot run.
    """
    check_choice("table", table, tuple(TABLES))
    eta = check_range("eta", eta, 0.0, 1.0)
    if eta and table != "ddim":
        raise ValueError(f"eta: got {eta} for the table {table!r}, it belongs to 'ddim' alone")
    levels = pairs(path, "a fine table")
    if levels[0][1].alpha == 0.0:
        raise ValueError("path: a fine table works on eps_hat and needs alpha > 0 at the start")
    if table == "exponential" and path[-1].sigma == 0.0:
        raise ValueError("path: the table 'exponential' needs sigma > 0 at the end (log-SNR is infinite at 0)")
    rows = np.empty((len(levels), 3))
    for j, start, end in levels:
        if same(start, end):
            rows[j] = 1.0, 0.0, 0.0
        elif end.sigma == 0.0:  # to x0_hat; Euler-Maruyama, whose drift has no limit there, makes the exact step
            a = end.alpha / start.alpha
            b = -a * start.sigma
            rows[j] = a, a * b if table == "frozen-score" else b, 0.0
        else:
            rows[j] = TABLES[table](start, end, step_size(start, end), eta)
    return FineTable(path, *rows.T)
