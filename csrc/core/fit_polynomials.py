"""Where the constants of csrc/core/normal.h come from: weighted minimax fits (Lawson's iteration), rounded to float32.

Coefficients are rounded one by one from the lowest power up, and the rest is fitted again each time, so that a later
coefficient absorbs the rounding of an earlier one.  Run it to print the tables.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[np.float64]


def lawson(x: Array, y: Array, weight: Array, powers: list[int]) -> Array:
    """Coefficients c minimising max |weight * (y - sum c_k x^powers_k)|."""
    basis = np.stack([x**k for k in powers], axis=1) * weight[:, None]
    target = y * weight
    mass = np.full_like(x, 1.0 / x.size)
    best, best_error = np.zeros(len(powers)), np.inf
    for _ in range(300):
        root = np.sqrt(mass)[:, None]
        c = np.linalg.lstsq(basis * root, target * root[:, 0], rcond=None)[0]
        error = np.abs(target - basis @ c)
        if error.max() < best_error:
            best, best_error = c, error.max()
        mass = mass * error
        mass /= mass.sum()
    return best


def fit32(
    f: Callable[[Array], Array], weight: Callable[[Array], Array], lo: float, hi: float, terms: int
) -> list[float]:
    """Float32 coefficients (lowest power first) of a polynomial with ``terms`` terms on [lo, hi]."""
    x = 0.5 * (lo + hi) - 0.5 * (hi - lo) * np.cos(np.linspace(0, np.pi, 4001))
    x = x[np.abs(x) > 1e-3 * (hi - lo)]
    y, wt = f(x), weight(x)
    fixed: list[float] = []
    for k in range(terms):
        rest = y - sum(c * x**i for i, c in enumerate(fixed))
        fixed.append(float(np.float32(lawson(x, rest, wt, list(range(k, terms)))[0])))
    approx = sum(c * x**i for i, c in enumerate(fixed))
    print(f"  max weighted error {np.abs((y - approx) * wt).max():.2e}")
    return fixed


def show(name: str, coefficients: list[float]) -> None:
    print(name, ", ".join(f"{c!r} = {c.hex()}" for c in coefficients))


if __name__ == "__main__":
    # -2 log(1 + f) = -2 f + f^2 p(f); error relative to the value
    p = fit32(lambda f: (-2 * np.log1p(f) + 2 * f) / f**2, lambda f: np.abs(f**2 / (2 * np.log1p(f))), -1 / 3, 1 / 3, 8)
    show("log", p)
    # t = f^2, |f| <= 1/8:  cos(2 pi f) = 1 + t c(t),  sin(2 pi f) = f s(t)
    show("cos", fit32(lambda t: (np.cos(2 * np.pi * np.sqrt(t)) - 1) / t, lambda t: t, 0.0, 1 / 64, 4))
    s = fit32(lambda t: np.sin(2 * np.pi * np.sqrt(t)) / np.sqrt(t), lambda t: 1 / (2 * np.pi) + 0 * t, 0.0, 1 / 64, 4)
    show("sin", s)
