"""Schedules whose sigma is the time: noise added to the data (EDM), and the straight line between both (flow)."""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from fastsample.path import Array, ArrayLike

from .base import Schedule, as_array, checked_ends


class VE(Schedule):
    """alpha = 1, sigma = t: the EDM and k-diffusion convention.  Karras et al. 2022, arXiv 2206.00364."""

    def __init__(self, sigma_min: float = 0.002, sigma_max: float = 80.0) -> None:
        self.t_min, self.t_max = checked_ends(sigma_min, sigma_max)

    def alpha(self, t: ArrayLike) -> Array:
        return np.ones_like(as_array(t))

    def sigma(self, t: ArrayLike) -> Array:
        return as_array(t)

    def rates(self, t: ArrayLike) -> tuple[Array, Array]:
        return np.zeros_like(as_array(t)), np.ones_like(as_array(t))

    def t_of_lam(self, lam: ArrayLike) -> Array:
        return as_array(np.exp(-as_array(lam)))

    def levels(self, lam: ArrayLike) -> tuple[Array, Array]:
        return np.ones_like(as_array(lam)), self.t_of_lam(lam)

    def clock(self, t: ArrayLike) -> Array:
        return as_array(as_array(t) / self.t_max)

    def of_clock(self, u: ArrayLike) -> Array:
        return as_array(as_array(u) * self.t_max)


EDM = VE


class RectifiedFlow(Schedule):
    """alpha = 1 - t, sigma = t; a network of u = eps - x0.  Liu et al. 2022, arXiv 2209.03003; Lipman et al. 2022.

    ``shift`` s moves grids towards the noise: a grid uniform in u has t = s u / (1 + (s - 1) u) (Esser et al. 2024,
    arXiv 2403.03206, equation 23).  ``time_scale``: the network is told ``time_scale * t`` (1000 for SD3 and Flux).
    """

    def __init__(self, shift: float = 1.0, t_min: float = 0.0, time_scale: float = 1.0) -> None:
        for name, value in (("shift", shift), ("time_scale", time_scale)):
            if not 0 < value < math.inf:
                raise ValueError(f"{name}: got {value}, allowed are numbers > 0")
        self.shift, self.time_scale = float(shift), float(time_scale)
        if not 0 <= t_min < 1:
            raise ValueError(f"t_min: got {t_min}, allowed are numbers in [0, 1)")
        self.t_min, self.t_max = float(t_min), 1.0

    @classmethod
    def dynamic(cls, tokens: float, linear: bool = False, **options: Any) -> RectifiedFlow:
        """Shift by sequence length, as Flux does: exp(mu), or mu if ``linear``, with mu on the line through
        (256 tokens, 0.5) and (4096 tokens, 1.15)."""
        mu = 0.5 + (tokens - 256.0) * (1.15 - 0.5) / (4096.0 - 256.0)
        return cls(shift=mu if linear else math.exp(mu), **options)

    def alpha(self, t: ArrayLike) -> Array:
        return as_array(1.0 - as_array(t))

    def sigma(self, t: ArrayLike) -> Array:
        return as_array(t)

    def t_of_lam(self, lam: ArrayLike) -> Array:
        return self.levels(lam)[1]

    def levels(self, lam: ArrayLike) -> tuple[Array, Array]:
        lam = as_array(lam)
        return as_array(np.exp(-np.logaddexp(0.0, -lam))), as_array(np.exp(-np.logaddexp(0.0, lam)))

    def clock(self, t: ArrayLike) -> Array:
        t = as_array(t)
        return as_array(t / (self.shift - (self.shift - 1.0) * t))

    def of_clock(self, u: ArrayLike) -> Array:
        u = as_array(u)
        return as_array(self.shift * u / (1.0 + (self.shift - 1.0) * u))

    def network_time(self, t: ArrayLike) -> Array:
        return as_array(as_array(t) * self.time_scale)
