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
    ``inverted``: the network is told ``time_scale * (1 - t)`` and predicts x0 - eps (Mochi).
    """

    def __init__(self, shift: float = 1.0, t_min: float = 0.0, time_scale: float = 1.0, inverted: bool = False) -> None:
        for name, value in (("shift", shift), ("time_scale", time_scale)):
            if not 0 < value < math.inf:
                raise ValueError(f"{name}: got {value}, allowed are numbers > 0")
        self.shift, self.time_scale, self.inverted = float(shift), float(time_scale), bool(inverted)
        if not 0 <= t_min < 1:
            raise ValueError(f"t_min: got {t_min}, allowed are numbers in [0, 1)")
        self.t_min, self.t_max = float(t_min), 1.0

    @classmethod
    def of_mu(cls, mu: float, linear: bool = False, **options: Any) -> RectifiedFlow:
        """The shift exp(mu), or mu if ``linear``: both kinds of dynamic shifting of diffusers."""
        return cls(shift=float(mu) if linear else math.exp(mu), **options)

    @classmethod
    def dynamic(
        cls,
        tokens: float,
        linear: bool = False,
        low: tuple[float, float] = (256.0, 0.5),
        high: tuple[float, float] = (4096.0, 1.15),
        **options: Any,
    ) -> RectifiedFlow:
        """Shift by sequence length, as Flux does: ``of_mu`` with mu on the line through ``low`` and ``high``, each
        a number of tokens and its mu."""
        mu = low[1] + (tokens - low[0]) * (high[1] - low[1]) / (high[0] - low[0])
        return cls.of_mu(mu, linear, **options)

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

    def rates(self, t: ArrayLike) -> tuple[Array, Array] | None:
        one = np.ones_like(as_array(t))
        return (one, -one) if self.inverted else None

    def network_time(self, t: ArrayLike) -> Array:
        t = as_array(t)
        return as_array((1.0 - t if self.inverted else t) * self.time_scale)
