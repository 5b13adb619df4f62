"""Continuous schedules that preserve variance: alpha^2 + sigma^2 = 1."""

from __future__ import annotations

import math

import numpy as np

from fastsample.path import Array, ArrayLike

from .base import Schedule, as_array, checked_ends


class VP(Schedule):
    """Variance preserving, alpha^2 + sigma^2 = 1: give ``log_alpha``."""

    def log_alpha(self, t: ArrayLike) -> Array:
        """log alpha(t)."""
        raise NotImplementedError

    def alpha(self, t: ArrayLike) -> Array:
        return as_array(np.exp(self.log_alpha(t)))

    def sigma(self, t: ArrayLike) -> Array:
        return as_array(np.sqrt(-np.expm1(2.0 * self.log_alpha(t))))

    def levels(self, lam: ArrayLike) -> tuple[Array, Array]:
        lam = as_array(lam)
        return as_array(np.exp(-0.5 * np.logaddexp(0.0, -2.0 * lam))), as_array(
            np.exp(-0.5 * np.logaddexp(0.0, 2.0 * lam))
        )


class VPLinear(VP):
    """Continuous VP schedule with linear beta(t), t in (0, 1].  Song et al. 2020, arXiv 2011.13456, equation 33."""

    def __init__(self, beta_min: float = 0.1, beta_max: float = 20.0, t_min: float = 1e-3) -> None:
        if not 0 < beta_min < beta_max < math.inf:
            raise ValueError(f"beta_min, beta_max: got {beta_min}, {beta_max}, allowed are 0 < beta_min < beta_max")
        self.beta_min, self.beta_max = float(beta_min), float(beta_max)
        self.t_min, self.t_max = checked_ends(t_min, 1.0)

    def log_alpha(self, t: ArrayLike) -> Array:
        t = as_array(t)
        return as_array(-0.25 * t * t * (self.beta_max - self.beta_min) - 0.5 * t * self.beta_min)

    def rates(self, t: ArrayLike) -> tuple[Array, Array]:
        slope = -0.5 * (self.beta_min + as_array(t) * (self.beta_max - self.beta_min))
        return _vp_rates(slope, self.alpha(t), self.sigma(t))

    def t_of_lam(self, lam: ArrayLike) -> Array:
        gain = np.logaddexp(0.0, -2.0 * as_array(lam))  # -2 log alpha
        slope = self.beta_max - self.beta_min
        return as_array(2.0 * gain / (np.sqrt(self.beta_min**2 + 2.0 * slope * gain) + self.beta_min))


class VPCosine(VP):
    """Continuous cosine schedule.  Nichol and Dhariwal 2021, arXiv 2102.09672, equation 17; t_max as in DPM-Solver."""

    def __init__(self, s: float = 0.008, t_min: float = 1e-3, t_max: float = 0.9946) -> None:
        if not 0 < s < 1:
            raise ValueError(f"s: got {s}, allowed are numbers in (0, 1)")
        self.s = float(s)
        self.t_min, self.t_max = checked_ends(t_min, t_max, below=1.0)

    def _angle(self, t: ArrayLike) -> Array:
        return as_array((as_array(t) + self.s) / (1.0 + self.s) * (math.pi / 2.0))

    def log_alpha(self, t: ArrayLike) -> Array:
        return as_array(np.log(np.cos(self._angle(t))) - math.log(math.cos(float(self._angle(0.0)))))

    def rates(self, t: ArrayLike) -> tuple[Array, Array]:
        slope = -np.tan(self._angle(t)) * (math.pi / 2.0) / (1.0 + self.s)
        return _vp_rates(slope, self.alpha(t), self.sigma(t))

    def t_of_lam(self, lam: ArrayLike) -> Array:
        log_cos = -0.5 * np.logaddexp(0.0, -2.0 * as_array(lam)) + math.log(math.cos(float(self._angle(0.0))))
        return as_array(np.arccos(np.exp(log_cos)) * (2.0 / math.pi) * (1.0 + self.s) - self.s)


def _vp_rates(slope: Array, alpha: Array, sigma: Array) -> tuple[Array, Array]:
    """From d log(alpha)/dt with alpha^2 + sigma^2 = 1."""
    return as_array(slope * alpha), as_array(-slope * alpha * alpha / sigma)
