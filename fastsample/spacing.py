"""How levels lie between two ends: laws that know no schedule."""

from __future__ import annotations

import math

import numpy as np

from fastsample.path import Array


def log_power_law(first: float, last: float, points: int, rho: float = 7.0) -> Array:
    """log of ``points`` levels whose 1/rho-th powers are even.  Karras et al. 2022, arXiv 2206.00364, equation 5."""
    positive("rho", rho)
    ramp = np.linspace(0.0, 1.0, points)
    return np.asarray(rho * np.log(first ** (1.0 / rho) + ramp * (last ** (1.0 / rho) - first ** (1.0 / rho))))


def beta_law(first: float, last: float, points: int, a: float = 0.6, b: float = 0.6) -> Array:
    """Quantiles of a Beta(a, b) law; needs SciPy.  Lee et al. 2024, arXiv 2407.12173."""
    try:
        from scipy.stats import beta as law  # type: ignore[import-untyped,unused-ignore]
    except ImportError:
        raise ValueError("grid: 'beta' needs SciPy, which is not installed; choose another grid") from None
    quantiles = law.ppf(1.0 - np.linspace(0.0, 1.0, points), positive("a", a), positive("b", b))
    return pinned(np.asarray(last + (first - last) * quantiles), (first, last))


def pinned(values: Array, ends: tuple[float, float]) -> Array:
    """The ends exactly, whatever a function and its inverse round."""
    values = np.array(values, dtype=np.float64)
    values[0] = ends[0]
    if len(values) > 1:
        values[-1] = ends[1]
    return values


def positive(name: str, value: float) -> float:
    """``value`` as a float; raises ``ValueError`` that names it unless 0 < value < inf."""
    if not 0 < value < math.inf:
        raise ValueError(f"{name}: got {value!r}, allowed are numbers > 0")
    return float(value)
