"""Underdamped Langevin dynamics under a constant force, solved exactly: the moments of a move of any length.

    dx = v dt,    dv = -gamma v dt - g dt + sqrt(2 gamma) dB        unit mass and temperature, g the gradient

has after a time h, with ``a = gamma h`` and ``e = exp(-a)``, the Gaussian law

    x' = x + p1 v - p2 g + l_1 xi_0 + l_2 xi_1        p1 = (1 - e) / gamma      l_1 = p1 sqrt(tanh(a/2))
    v' = e v - p1 g + l_v xi_0                        p2 = (h - p1) / gamma     l_2 = sqrt(2 (a - 2 tanh(a/2))) / gamma
                                                                                l_v = sqrt(1 - e^2)

The textbook forms lose all digits for small a: ``gamma^2 Var x = 2a - 3 + 4e - e^2`` is 2a^3/3 there.  Multiplied by
e^a (or cosh(a/2)) each difference is a series of positive terms only, which loses none:

    e^a gamma^2 p2          = sum_{n>=2} (n - 1) a^n / n!
    e^a gamma^2 Var x       = sum_{n>=3} (2n - 3 - (-1)^n) a^n / n!
    cosh(b) gamma^2 l_2^2   = 4b sum_{k>=1} 2k b^{2k} / (2k + 1)!       b = a/2

and everything is written with h instead of 1/gamma, so that gamma = 0 (free flight) has its limit.

Moves compose: ``move(gamma, m h)`` is m moves of length h with one force, in mean and in covariance.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

_SERIES = 3.0  # above it the closed forms cancel less than two bits


@dataclass(frozen=True)
class Move:
    """What a move of length ``h`` at friction ``gamma`` is made of: float64 numbers, names as in the module.

    ``e`` is without unit, ``p1`` a time, ``p2`` a time squared.  ``var_x``, ``cov``, ``var_v``: covariance of the
    noise of (x, v).  ``l_v``, ``l_1``, ``l_2``: its triangular factor, the noise of v being ``l_v xi_0`` and that of x
    ``l_1 xi_0 + l_2 xi_1``.
    """

    gamma: float
    h: float
    e: float
    p1: float
    p2: float
    var_x: float
    cov: float
    var_v: float
    l_v: float
    l_1: float
    l_2: float


def move(gamma: float, h: float) -> Move:
    """The moments of a move of length ``h >= 0`` at friction ``gamma >= 0``, each to a few units of the last digit.

    Raises ``ValueError`` unless both are finite and not negative.
    """
    for name, value in (("gamma", gamma), ("h", h)):
        if not 0.0 <= value < math.inf:
            raise ValueError(f"{name}: got {value!r}, allowed are finite numbers >= 0")
    gamma, h = float(gamma), float(h)
    a = gamma * h
    e, y, t = math.exp(-a), -math.expm1(-a), math.tanh(0.5 * a)
    p1 = y / gamma if a > 0.0 else h
    var_v = -math.expm1(-2.0 * a)
    return Move(
        gamma=gamma,
        h=h,
        e=e,
        p1=p1,
        p2=h * h * _p2(a),
        var_x=h * h * _var_x(a),
        cov=p1 * y,
        var_v=var_v,
        l_v=math.sqrt(var_v),
        l_1=p1 * math.sqrt(t),
        l_2=h * math.sqrt(_rest(a)),
    )


def _p2(a: float) -> float:
    """p2 / h^2 = (a - 1 + e^-a) / a^2."""
    if a > _SERIES:
        return (a + math.expm1(-a)) / a / a
    total, term, n = 0.5, 0.5, 2  # term = a^(n-2) / n!
    while term * n > 1e-18 * total:
        n += 1
        term *= a / n
        total += (n - 1) * term
    return math.exp(-a) * total


def _var_x(a: float) -> float:
    """Var x / h^2 = (2a - 3 + 4 e^-a - e^-2a) / a^2."""
    if a > _SERIES:
        return (2.0 * a - 3.0 + math.exp(-a) * (4.0 - math.exp(-a))) / a / a
    total, term, n = 0.0, 0.5, 2
    while n == 2 or term * n > 1e-18 * total:
        n += 1
        term *= a / n
        total += (2 * n - 3 + (1 if n % 2 else -1)) * term
    return math.exp(-a) * total


def _rest(a: float) -> float:
    """l_2^2 / h^2 = 2 (a - 2 tanh(a/2)) / a^2, the variance of x that v does not tell."""
    if a > _SERIES:
        return 2.0 * (a - 2.0 * math.tanh(0.5 * a)) / a / a
    b = 0.5 * a
    total, term, k = 0.0, b, 1  # term = b^(2k-1) / (2k-1)!
    while k == 1 or 2 * k * term > 1e-18 * total:
        term /= 2 * k * (2 * k + 1)
        total += 2 * k * term
        term *= b * b
        k += 1
    return total / math.cosh(b)
