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
from typing import Any

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[np.float64]
Number = Any  # a float, or float64 (n,): lengths and all that is made of them

_SERIES = 3.0  # above it the closed forms cancel less than two bits
_POWERS = range(2, 34)  # 3^34 / 34! is below 2^-62
_P2 = np.array([(n - 1) / math.factorial(n) for n in _POWERS][::-1])
_VAR_X = np.array([(2 * n - 3 - (-1) ** n) / math.factorial(n) for n in _POWERS][::-1])
_REST = np.array([2 * k / math.factorial(2 * k + 1) for k in range(1, 16)][::-1])


@dataclass(frozen=True)
class Move:
    """What a move of length ``h`` at friction ``gamma`` is made of: float64 numbers, names as in the module.

    ``e`` is without unit, ``p1`` a time, ``p2`` a time squared.  ``var_x``, ``cov``, ``var_v``: covariance of the
    noise of (x, v).  ``l_v``, ``l_1``, ``l_2``: its triangular factor, the noise of v being ``l_v xi_0`` and that of x
    ``l_1 xi_0 + l_2 xi_1``.
    """

    gamma: float
    h: Number
    e: Number
    p1: Number
    p2: Number
    var_x: Number
    cov: Number
    var_v: Number
    l_v: Number
    l_1: Number
    l_2: Number


def move(gamma: float, h: float | Array) -> Move:
    """The moments of a move of length ``h >= 0`` at friction ``gamma >= 0``, each to a few units of the last digit.

    ``h``: one length, or float64 ``(n,)`` for as many moves at once.  Raises ``ValueError`` unless all are finite and
    not negative.
    """
    lengths = np.asarray(h, dtype=np.float64)
    for name, value in (("gamma", np.asarray(gamma)), ("h", lengths)):
        if not ((value >= 0.0) & (value < np.inf)).all():
            raise ValueError(f"{name}: got {gamma if name == 'gamma' else h!r}, allowed are finite numbers >= 0")
    gamma = float(gamma)
    a = gamma * lengths
    y, t, var_v = -np.expm1(-a), np.tanh(0.5 * a), -np.expm1(-2.0 * a)
    p1 = np.where(a > 0.0, y / (gamma or 1.0), lengths)
    moments = {
        "h": lengths,
        "e": np.exp(-a),
        "p1": p1,
        "p2": lengths**2 * _p2(a),
        "var_x": lengths**2 * _var_x(a),
        "cov": p1 * y,
        "var_v": var_v,
        "l_v": np.sqrt(var_v),
        "l_1": p1 * np.sqrt(t),
        "l_2": lengths * np.sqrt(_rest(a)),
    }
    return Move(gamma, **{k: v if lengths.ndim else float(v) for k, v in moments.items()})


def _p2(a: Array) -> Array:
    """p2 / h^2 = (a - 1 + e^-a) / a^2."""
    small, large = np.minimum(a, _SERIES), np.maximum(a, _SERIES)
    series = np.exp(-small) * np.polyval(_P2, small)
    return np.where(a > _SERIES, (large + np.expm1(-large)) / large / large, series)


def _var_x(a: Array) -> Array:
    """Var x / h^2 = (2a - 3 + 4 e^-a - e^-2a) / a^2."""
    small, large = np.minimum(a, _SERIES), np.maximum(a, _SERIES)
    e = np.exp(-large)
    series = np.exp(-small) * np.polyval(_VAR_X, small)
    return np.where(a > _SERIES, (2.0 * large - 3.0 + e * (4.0 - e)) / large / large, series)


def _rest(a: Array) -> Array:
    """l_2^2 / h^2 = 2 (a - 2 tanh(a/2)) / a^2, the variance of x that v does not tell."""
    b, large = 0.5 * np.minimum(a, _SERIES), np.maximum(a, _SERIES)
    series = b * np.polyval(_REST, b * b) / np.cosh(b)
    return np.where(a > _SERIES, 2.0 * (large - 2.0 * np.tanh(0.5 * large)) / large / large, series)
