"""Mean and covariance of (x, m) in closed form, for numpy arrays and torch tensors alike, without lost digits."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np

SERIES = 18  # terms of the series of `tail` within |u| < 1: the next one is below 1e-17


class Covariance(NamedTuple):
    """Entries of a symmetric 2x2 matrix; arrays of one shape."""

    xx: Any
    xm: Any
    mm: Any

    @property
    def det(self) -> Any:
        return self.xx * self.mm - self.xm * self.xm


class Factor(NamedTuple):
    """Entries of a 2x2 matrix, row by row; arrays of one shape."""

    xx: Any
    xm: Any
    mx: Any
    mm: Any


def tail(u: Any, xp: Any = np) -> Any:
    """``1 - e^-u (1 + u + u^2 / 2)``, of which nothing cancels near u = 0; any sign of u.

    For u > 0 it is the regularised lower incomplete gamma function P(3, u).
    """
    near = xp.where(abs(u) < 1.0, u, 0.0 * u)
    total = 1.0 + 0.0 * near
    for n in range(3 + SERIES, 3, -1):
        total = 1.0 + near / n * total
    series = xp.exp(-near) * near**3 / 6.0 * total
    return xp.where(abs(u) < 1.0, series, 1.0 - xp.exp(-u) * (1.0 + u + 0.5 * u * u))


def flow(c: float, d: float, b: Any, xp: Any = np) -> Factor:
    """The flow of the drift over the integral b of beta; b < 0 is the flow back."""
    decay = xp.exp(-c * b)
    return Factor(decay * (1.0 + d * b), decay * (2.0 * d * d * b), decay * (-0.5 * b), decay * (1.0 - d * b))


def noise(Gamma: float, nu: float, b: Any, xp: Any = np) -> Covariance:
    """Covariance at b of what began as a point.  Pandey, Mandt 2023, arXiv 2303.01748, appendix B, in other words.

    ``xx = 1 - e^{-2cb}(1 + u + u^2/2)`` with u = 2 d b is the difference of near equal numbers where b is small; it is
    ``-expm1(-Gamma b) + e^{-Gamma b} tail(u)``, and mm likewise with nu and -u.
    """
    c, d = 0.25 * (nu + Gamma), 0.25 * (nu - Gamma)
    u = 2.0 * d * b
    xx = -xp.expm1(-Gamma * b) + xp.exp(-Gamma * b) * tail(u, xp)
    mm = -xp.expm1(-nu * b) + xp.exp(-nu * b) * tail(-u, xp)
    return Covariance(xx, d * b * b * xp.exp(-2.0 * c * b), mm / (4.0 * d * d))


def covariance(Gamma: float, nu: float, b: Any, var_x: Any, var_m: Any, xp: Any = np) -> Covariance:
    """Covariance at b of what began with independent variances ``var_x`` and ``var_m``."""
    psi = flow(0.25 * (nu + Gamma), 0.25 * (nu - Gamma), b, xp)
    xx, xm, mm = noise(Gamma, nu, b, xp)
    return Covariance(
        psi.xx * psi.xx * var_x + psi.xm * psi.xm * var_m + xx,
        psi.xx * psi.mx * var_x + psi.xm * psi.mm * var_m + xm,
        psi.mx * psi.mx * var_x + psi.mm * psi.mm * var_m + mm,
    )


def lower(s: Covariance, xp: Any = np) -> Factor:
    """L with L L^T = s, lower triangular."""
    one = xp.sqrt(s.xx)
    return Factor(one, 0.0 * one, s.xm / one, xp.sqrt(s.det / s.xx))


def upper(s: Covariance, xp: Any = np) -> Factor:
    """U with U U^T = s, upper triangular."""
    one = xp.sqrt(s.mm)
    return Factor(xp.sqrt(s.det / s.mm), s.xm / one, 0.0 * one, one)


def inverse_transposed(f: Factor) -> Factor:
    """``f^-T`` of a triangular factor: K with score = -K eps."""
    det = f.xx * f.mm - f.xm * f.mx
    return Factor(f.mm / det, -f.mx / det, -f.xm / det, f.xx / det)
