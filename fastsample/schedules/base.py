"""What every schedule has: alpha, sigma, the log-SNR and its inverse, a clock, the time that a network is told."""

from __future__ import annotations

import math

import numpy as np

from fastsample.path import Array, ArrayLike


class Schedule:
    """Base class: give ``alpha``, ``sigma``, ``t_min`` and ``t_max`` and the rest follows."""

    t_min: float = 0.0
    t_max: float = 1.0

    def alpha(self, t: ArrayLike) -> Array:
        """Weight of the data at time t."""
        raise NotImplementedError

    def sigma(self, t: ArrayLike) -> Array:
        """Weight of the noise at time t."""
        raise NotImplementedError

    def rates(self, t: ArrayLike) -> tuple[Array, Array] | None:
        """d alpha/dt, d sigma/dt at t for networks that predict a general flow velocity; None if not known."""
        return None

    def lam(self, t: ArrayLike) -> Array:
        """Half log-SNR log(alpha / sigma); inf where sigma is 0."""
        with np.errstate(divide="ignore"):
            return as_array(np.log(self.alpha(t)) - np.log(self.sigma(t)))

    def t_of_lam(self, lam: ArrayLike) -> Array:
        """Time of a half log-SNR, here by bisection to the last bit; lam must be within the schedule."""
        target = as_array(lam)
        low, high = np.full_like(target, self.t_min), np.full_like(target, self.t_max)
        if (target > self.lam(low) + 1e-9).any() or (target < self.lam(high) - 1e-9).any():
            raise ValueError(
                f"lam: got {target.min():g} .. {target.max():g}, allowed is {float(self.lam(self.t_max)):g} .. "
                f"{float(self.lam(self.t_min)):g}"
            )
        for _ in range(1080):
            middle = 0.5 * (low + high)
            if ((middle == low) | (middle == high)).all():
                break
            noisier = self.lam(middle) < target
            low, high = np.where(noisier, low, middle), np.where(noisier, middle, high)
        return as_array(0.5 * (low + high))

    def levels(self, lam: ArrayLike) -> tuple[Array, Array]:
        """alpha, sigma of a half log-SNR; classes that can do it without t give lam exactly, whatever t rounds."""
        t = self.t_of_lam(lam)
        return self.alpha(t), self.sigma(t)

    def clock(self, t: ArrayLike) -> Array:
        """Position in [0, 1] in which "uniform" grids are uniform."""
        return as_array(t)

    def of_clock(self, u: ArrayLike) -> Array:
        """Inverse of ``clock``."""
        return as_array(u)

    def network_time(self, t: ArrayLike) -> Array:
        """What the network is told at t."""
        return as_array(t)


def as_array(value: ArrayLike) -> Array:
    """A float64 array or number, not copied if it is one."""
    return np.asarray(value, dtype=np.float64)


def checked_ends(t_min: float, t_max: float, below: float = math.inf) -> tuple[float, float]:
    """The ends of a schedule's time as floats; raises ``ValueError`` unless 0 < t_min < t_max <= below."""
    if not 0 < t_min < t_max < math.inf or t_max > below:
        raise ValueError(f"t_min, t_max: got {t_min}, {t_max}, allowed are 0 < t_min < t_max <= {below}")
    return float(t_min), float(t_max)
