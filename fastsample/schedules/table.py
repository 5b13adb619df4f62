"""Schedules given by a table of noise levels, as most trained models have."""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from fastsample.path import Array, ArrayLike, _vector

from .base import as_array
from .vp import VP


class DiscreteVP(VP):
    """A table of T noise levels; t is the row, 0 (almost data) to T - 1 (noise), and may be fractional.

    Args:
        alphas_cumprod: ``(T,)`` alpha^2, falling.
        interpolation: between rows ``"log-alpha"`` (DPM-Solver's), ``"log-snr"`` or ``"sigma"`` (linear in
            sigma/alpha, as diffusers does) is linear in t.
    """

    INTERPOLATIONS = ("log-alpha", "log-snr", "sigma")

    def __init__(self, alphas_cumprod: ArrayLike, interpolation: str = "log-alpha") -> None:
        table = _vector("alphas_cumprod", alphas_cumprod)
        if len(table) < 2 or not ((table > 0) & (table < 1)).all() or not (np.diff(table) < 0).all():
            raise ValueError("alphas_cumprod: allowed are at least 2 falling numbers in (0, 1)")
        if interpolation not in self.INTERPOLATIONS:
            raise ValueError(f"interpolation: got {interpolation!r}, allowed are {', '.join(self.INTERPOLATIONS)}")
        self.alphas_cumprod, self.interpolation = table, interpolation
        self.rows = len(table)
        self.t_min, self.t_max = 0.0, float(self.rows - 1)
        lam = 0.5 * (np.log(table) - np.log1p(-table))
        self._values = {"log-alpha": 0.5 * np.log(table), "log-snr": lam, "sigma": np.exp(-lam)}[interpolation]

    @classmethod
    def from_alphas_cumprod(cls, alphas_cumprod: ArrayLike, interpolation: str = "log-alpha") -> DiscreteVP:
        """From alpha^2 of every row."""
        return cls(alphas_cumprod, interpolation)

    @classmethod
    def from_betas(cls, betas: ArrayLike, interpolation: str = "log-alpha") -> DiscreteVP:
        """From beta of every row: alpha^2 is the running product of 1 - beta."""
        betas = _vector("betas", betas)
        if not ((betas > 0) & (betas < 1)).all():
            raise ValueError("betas: allowed are numbers in (0, 1)")
        return cls(np.cumprod(1.0 - betas), interpolation)

    @classmethod
    def linear(cls, rows: int = 1000, beta_min: float = 1e-4, beta_max: float = 0.02, **options: Any) -> DiscreteVP:
        """The DDPM table."""
        return cls.from_betas(np.linspace(beta_min, beta_max, rows), **options)

    @classmethod
    def scaled_linear(
        cls, rows: int = 1000, beta_min: float = 0.00085, beta_max: float = 0.012, **options: Any
    ) -> DiscreteVP:
        """The Stable Diffusion table: sqrt(beta) is linear."""
        return cls.from_betas(np.linspace(beta_min**0.5, beta_max**0.5, rows) ** 2, **options)

    @classmethod
    def cosine(cls, rows: int = 1000, s: float = 0.008, beta_cap: float = 0.999, **options: Any) -> DiscreteVP:
        """The table of Nichol and Dhariwal 2021, arXiv 2102.09672: beta from the cosine curve, capped."""
        curve = np.cos((np.arange(rows + 1) / rows + s) / (1.0 + s) * (math.pi / 2.0)) ** 2
        return cls.from_betas(np.minimum(1.0 - curve[1:] / curve[:-1], beta_cap), **options)

    def _lam(self, t: ArrayLike) -> Array:
        values = _lines(as_array(t), np.arange(self.rows, dtype=np.float64), self._values)
        if self.interpolation == "sigma":
            return as_array(-np.log(values))
        if self.interpolation == "log-snr":
            return values
        return as_array(values - 0.5 * np.log(-np.expm1(2.0 * values)))

    def log_alpha(self, t: ArrayLike) -> Array:
        if self.interpolation == "log-alpha":
            return _lines(as_array(t), np.arange(self.rows, dtype=np.float64), self._values)
        return as_array(-0.5 * np.logaddexp(0.0, -2.0 * self._lam(t)))

    def lam(self, t: ArrayLike) -> Array:
        return self._lam(t)

    def t_of_lam(self, lam: ArrayLike) -> Array:
        lam = as_array(lam)
        wanted = {
            "log-alpha": -0.5 * np.logaddexp(0.0, -2.0 * lam),
            "log-snr": lam,
            "sigma": np.exp(-lam),
        }[self.interpolation]
        rows = np.arange(self.rows, dtype=np.float64)
        if self.interpolation == "sigma":
            return _lines(wanted, self._values, rows)
        return _lines(wanted, self._values[::-1], rows[::-1])

    def clock(self, t: ArrayLike) -> Array:
        return as_array((as_array(t) + 1.0) / self.rows)

    def of_clock(self, u: ArrayLike) -> Array:
        return as_array(as_array(u) * self.rows - 1.0)


def _lines(x: Array, xs: Array, ys: Array) -> Array:
    """Piecewise linear through rising ``xs``, continued by the first and last line."""
    i = np.clip(np.searchsorted(xs, x, side="right") - 1, 0, len(xs) - 2)
    w = (x - xs[i]) / (xs[i + 1] - xs[i])
    return as_array(ys[i] + w * (ys[i + 1] - ys[i]))
