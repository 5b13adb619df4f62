"""Noise schedules: alpha and sigma as functions of time, and back.

A schedule has a *time* ``t``, from ``t_min`` (almost data) to ``t_max`` (noise), and a
*clock* ``u = clock(t)`` in which grids are uniform.  All functions take and return float64 numbers or arrays.
"""

from __future__ import annotations

import difflib
import math
from collections.abc import Callable
from typing import Any

import numpy as np

from fastsample.path import Array, ArrayLike, _vector


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
            return _f(np.log(self.alpha(t)) - np.log(self.sigma(t)))

    def t_of_lam(self, lam: ArrayLike) -> Array:
        """Time of a half log-SNR, here by bisection to the last bit; lam must be within the schedule."""
        target = _f(lam)
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
        return _f(0.5 * (low + high))

    def levels(self, lam: ArrayLike) -> tuple[Array, Array]:
        """alpha, sigma of a half log-SNR; classes that can do it without t give lam exactly, whatever t rounds."""
        t = self.t_of_lam(lam)
        return self.alpha(t), self.sigma(t)

    def clock(self, t: ArrayLike) -> Array:
        """Position in [0, 1] in which "uniform" grids are uniform."""
        return _f(t)

    def of_clock(self, u: ArrayLike) -> Array:
        """Inverse of ``clock``."""
        return _f(u)

    def network_time(self, t: ArrayLike) -> Array:
        """What the network is told at t."""
        return _f(t)


class VP(Schedule):
    """Variance preserving, alpha^2 + sigma^2 = 1: give ``log_alpha``."""

    def log_alpha(self, t: ArrayLike) -> Array:
        """log alpha(t)."""
        raise NotImplementedError

    def alpha(self, t: ArrayLike) -> Array:
        return _f(np.exp(self.log_alpha(t)))

    def sigma(self, t: ArrayLike) -> Array:
        return _f(np.sqrt(-np.expm1(2.0 * self.log_alpha(t))))

    def levels(self, lam: ArrayLike) -> tuple[Array, Array]:
        lam = _f(lam)
        return _f(np.exp(-0.5 * np.logaddexp(0.0, -2.0 * lam))), _f(np.exp(-0.5 * np.logaddexp(0.0, 2.0 * lam)))


class VPLinear(VP):
    """Continuous VP schedule with linear beta(t), t in (0, 1].  Song et al. 2020, arXiv 2011.13456, equation 33."""

    def __init__(self, beta_min: float = 0.1, beta_max: float = 20.0, t_min: float = 1e-3) -> None:
        if not 0 < beta_min < beta_max < math.inf:
            raise ValueError(f"beta_min, beta_max: got {beta_min}, {beta_max}, allowed are 0 < beta_min < beta_max")
        self.beta_min, self.beta_max = float(beta_min), float(beta_max)
        self.t_min, self.t_max = _ends(t_min, 1.0)

    def log_alpha(self, t: ArrayLike) -> Array:
        t = _f(t)
        return _f(-0.25 * t * t * (self.beta_max - self.beta_min) - 0.5 * t * self.beta_min)

    def rates(self, t: ArrayLike) -> tuple[Array, Array]:
        slope = -0.5 * (self.beta_min + _f(t) * (self.beta_max - self.beta_min))
        return _vp_rates(slope, self.alpha(t), self.sigma(t))

    def t_of_lam(self, lam: ArrayLike) -> Array:
        gain = np.logaddexp(0.0, -2.0 * _f(lam))  # -2 log alpha
        slope = self.beta_max - self.beta_min
        return _f(2.0 * gain / (np.sqrt(self.beta_min**2 + 2.0 * slope * gain) + self.beta_min))


class VPCosine(VP):
    """Continuous cosine schedule.  Nichol and Dhariwal 2021, arXiv 2102.09672, equation 17; t_max as in DPM-Solver."""

    def __init__(self, s: float = 0.008, t_min: float = 1e-3, t_max: float = 0.9946) -> None:
        if not 0 < s < 1:
            raise ValueError(f"s: got {s}, allowed are numbers in (0, 1)")
        self.s = float(s)
        self.t_min, self.t_max = _ends(t_min, t_max, below=1.0)

    def _angle(self, t: ArrayLike) -> Array:
        return _f((_f(t) + self.s) / (1.0 + self.s) * (math.pi / 2.0))

    def log_alpha(self, t: ArrayLike) -> Array:
        return _f(np.log(np.cos(self._angle(t))) - math.log(math.cos(float(self._angle(0.0)))))

    def rates(self, t: ArrayLike) -> tuple[Array, Array]:
        slope = -np.tan(self._angle(t)) * (math.pi / 2.0) / (1.0 + self.s)
        return _vp_rates(slope, self.alpha(t), self.sigma(t))

    def t_of_lam(self, lam: ArrayLike) -> Array:
        log_cos = -0.5 * np.logaddexp(0.0, -2.0 * _f(lam)) + math.log(math.cos(float(self._angle(0.0))))
        return _f(np.arccos(np.exp(log_cos)) * (2.0 / math.pi) * (1.0 + self.s) - self.s)


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
        values = _lines(_f(t), np.arange(self.rows, dtype=np.float64), self._values)
        if self.interpolation == "sigma":
            return _f(-np.log(values))
        if self.interpolation == "log-snr":
            return values
        return _f(values - 0.5 * np.log(-np.expm1(2.0 * values)))

    def log_alpha(self, t: ArrayLike) -> Array:
        if self.interpolation == "log-alpha":
            return _lines(_f(t), np.arange(self.rows, dtype=np.float64), self._values)
        return _f(-0.5 * np.logaddexp(0.0, -2.0 * self._lam(t)))

    def lam(self, t: ArrayLike) -> Array:
        return self._lam(t)

    def t_of_lam(self, lam: ArrayLike) -> Array:
        lam = _f(lam)
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
        return _f((_f(t) + 1.0) / self.rows)

    def of_clock(self, u: ArrayLike) -> Array:
        return _f(_f(u) * self.rows - 1.0)


class VE(Schedule):
    """alpha = 1, sigma = t: the EDM and k-diffusion convention.  Karras et al. 2022, arXiv 2206.00364."""

    def __init__(self, sigma_min: float = 0.002, sigma_max: float = 80.0) -> None:
        self.t_min, self.t_max = _ends(sigma_min, sigma_max)

    def alpha(self, t: ArrayLike) -> Array:
        return np.ones_like(_f(t))

    def sigma(self, t: ArrayLike) -> Array:
        return _f(t)

    def rates(self, t: ArrayLike) -> tuple[Array, Array]:
        return np.zeros_like(_f(t)), np.ones_like(_f(t))

    def t_of_lam(self, lam: ArrayLike) -> Array:
        return _f(np.exp(-_f(lam)))

    def levels(self, lam: ArrayLike) -> tuple[Array, Array]:
        return np.ones_like(_f(lam)), self.t_of_lam(lam)

    def clock(self, t: ArrayLike) -> Array:
        return _f(_f(t) / self.t_max)

    def of_clock(self, u: ArrayLike) -> Array:
        return _f(_f(u) * self.t_max)


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
        return _f(1.0 - _f(t))

    def sigma(self, t: ArrayLike) -> Array:
        return _f(t)

    def t_of_lam(self, lam: ArrayLike) -> Array:
        return self.levels(lam)[1]

    def levels(self, lam: ArrayLike) -> tuple[Array, Array]:
        lam = _f(lam)
        return _f(np.exp(-np.logaddexp(0.0, -lam))), _f(np.exp(-np.logaddexp(0.0, lam)))

    def clock(self, t: ArrayLike) -> Array:
        t = _f(t)
        return _f(t / (self.shift - (self.shift - 1.0) * t))

    def of_clock(self, u: ArrayLike) -> Array:
        u = _f(u)
        return _f(self.shift * u / (1.0 + (self.shift - 1.0) * u))

    def network_time(self, t: ArrayLike) -> Array:
        return _f(_f(t) * self.time_scale)


class CustomSchedule(Schedule):
    """Any pair of callables ``alpha(t)``, ``sigma(t)`` on float64 arrays, with falling alpha/sigma.

    ``rates``: optional callable that returns (d alpha/dt, d sigma/dt), for flow networks.
    """

    def __init__(
        self,
        alpha: Callable[[Array], ArrayLike],
        sigma: Callable[[Array], ArrayLike],
        t_min: float = 1e-3,
        t_max: float = 1.0,
        rates: Callable[[Array], tuple[ArrayLike, ArrayLike]] | None = None,
    ) -> None:
        for name, function in (("alpha", alpha), ("sigma", sigma)):
            if not callable(function):
                raise TypeError(f"{name}: got {type(function).__name__}, allowed is a callable of t")
        self._alpha, self._sigma, self._rates = alpha, sigma, rates
        self.t_min, self.t_max = _ends(t_min, t_max)
        with np.errstate(divide="ignore"):
            lam = self.lam(np.linspace(self.t_max, self.t_min, 101))
        if not (np.diff(lam) > 0).all():
            raise ValueError("alpha, sigma: log(alpha/sigma) must fall with t from t_min to t_max")

    def alpha(self, t: ArrayLike) -> Array:
        return np.broadcast_to(_f(self._alpha(_f(t))), np.shape(t))

    def sigma(self, t: ArrayLike) -> Array:
        return np.broadcast_to(_f(self._sigma(_f(t))), np.shape(t))

    def rates(self, t: ArrayLike) -> tuple[Array, Array] | None:
        if self._rates is None:
            return None
        alpha_dot, sigma_dot = self._rates(_f(t))
        return np.broadcast_to(_f(alpha_dot), np.shape(t)), np.broadcast_to(_f(sigma_dot), np.shape(t))


SCHEDULES: dict[str, Callable[..., Schedule]] = {
    "vp-linear": VPLinear,
    "cosine": VPCosine,
    "ddpm-linear": DiscreteVP.linear,
    "scaled-linear": DiscreteVP.scaled_linear,
    "ddpm-cosine": DiscreteVP.cosine,
    "edm": VE,
    "flow": RectifiedFlow,
}
ALIASES = {"vp": "vp-linear", "ve": "edm", "rectified-flow": "flow", "sd": "scaled-linear", "vp-cosine": "cosine"}


def make_schedule(schedule: str | Schedule, **options: Any) -> Schedule:
    """A schedule by name (``SCHEDULES``), with the arguments of its class; a ``Schedule`` is returned as it is.

    Raises ``ValueError`` for an unknown name or option and ``TypeError`` for anything that is not a schedule.
    """
    if isinstance(schedule, Schedule):
        if options:
            raise ValueError(f"options: got {', '.join(options)} for a schedule that is already made")
        return schedule
    if not isinstance(schedule, str):
        raise TypeError(f"schedule: got {type(schedule).__name__}, allowed is a name or a Schedule")
    name = ALIASES.get(schedule, schedule)
    if name not in SCHEDULES:
        close = difflib.get_close_matches(schedule, [*SCHEDULES, *ALIASES], n=1)
        hint = f"; did you mean {close[0]}?" if close else ""
        raise ValueError(f"schedule: got {schedule!r}, allowed are {', '.join(SCHEDULES)}{hint}")
    try:
        return SCHEDULES[name](**options)
    except TypeError as error:
        raise ValueError(f"schedule: {name!r} does not take these options ({error})") from None


def _f(value: ArrayLike) -> Array:
    return np.asarray(value, dtype=np.float64)


def _ends(t_min: float, t_max: float, below: float = math.inf) -> tuple[float, float]:
    if not 0 < t_min < t_max < math.inf or t_max > below:
        raise ValueError(f"t_min, t_max: got {t_min}, {t_max}, allowed are 0 < t_min < t_max <= {below}")
    return float(t_min), float(t_max)


def _vp_rates(slope: Array, alpha: Array, sigma: Array) -> tuple[Array, Array]:
    """From d log(alpha)/dt with alpha^2 + sigma^2 = 1."""
    return _f(slope * alpha), _f(-slope * alpha * alpha / sigma)


def _lines(x: Array, xs: Array, ys: Array) -> Array:
    """Piecewise linear through rising ``xs``, continued by the first and last line."""
    i = np.clip(np.searchsorted(xs, x, side="right") - 1, 0, len(xs) - 2)
    w = (x - xs[i]) / (xs[i + 1] - xs[i])
    return _f(ys[i] + w * (ys[i + 1] - ys[i]))
