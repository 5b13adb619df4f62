"""A path: the noise levels that one run visits, and what the network calls them.

``x_i = alpha_i x0 + sigma_i eps`` for i = 0..N.  A sampling path runs from noise (i = 0) to data (i = N); a path with
``reverse=True`` runs from data to noise (inversion).  Everything else of a plan is a function of these numbers.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple, overload

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[np.float64]
ArrayLike = npt.ArrayLike

SAME_LEVEL = 1e-12  # half log-SNR steps below this are the identity


class Level(NamedTuple):
    """One noise level: ``x = alpha x0 + sigma eps``, and the time that belongs to it."""

    alpha: float
    sigma: float
    t: float

    @property
    def lam(self) -> float:
        """Half log-SNR ``log(alpha / sigma)``; ``inf`` for clean data, ``-inf`` for pure noise."""
        if self.sigma == 0.0:
            return math.inf
        return -math.inf if self.alpha == 0.0 else math.log(self.alpha / self.sigma)

    @property
    def rho(self) -> float:
        """``sigma / alpha``: the noise level of the state x / alpha."""
        return math.inf if self.alpha == 0.0 else self.sigma / self.alpha


def step_size(start: Level, end: Level) -> float:
    """``h = lam' - lam``, formed from one quotient so that close levels keep their digits."""
    up, down = end.alpha * start.sigma, start.alpha * end.sigma
    if up > 0.0 and down > 0.0:
        return math.log(up / down)
    return end.lam - start.lam


@dataclass(frozen=True, eq=False)
class Path:
    """Noise levels of a run.

    Args:
        alpha, sigma: ``(N+1,)``, converted to read-only float64 copies.  ``sigma`` may be 0 only at the data end and
            ``alpha`` may be 0 only at the noise end.
        t: ``(N+1,)`` times of the network at these levels; None means ``sigma / alpha`` (needs alpha > 0).
        rates: None, or ``(N+1, 2)`` with d alpha/dt, d sigma/dt: what a general flow network's velocity is made of.
        reverse: True for a path from data to noise.

    Raises:
        ValueError: an array is not one-dimensional, not finite, negative, or too short (at least 2 levels), both alpha
            and sigma are 0 at one level, or the log-SNR does not run in one direction (equal neighbours are allowed:
            such a step changes nothing).
        TypeError: an argument is not numeric.
    """

    alpha: Array
    sigma: Array
    t: Array = None  # type: ignore[assignment]
    rates: Array | None = None
    reverse: bool = False

    def __post_init__(self) -> None:
        alpha, sigma = _vector("alpha", self.alpha), _vector("sigma", self.sigma)
        if len(alpha) < 2:
            raise ValueError(f"alpha: got {len(alpha)} level(s), a path needs at least 2")
        for name, array in (("alpha", alpha), ("sigma", sigma)):
            if len(array) != len(alpha):
                raise ValueError(f"{name}: got {len(array)} levels, alpha has {len(alpha)}")
            if (array < 0).any():
                raise ValueError(f"{name}: got {array.min()}, allowed are values >= 0")
        noise, data = (-1, 0) if self.reverse else (0, -1)
        _only_at("alpha", alpha, noise, len(alpha))
        _only_at("sigma", sigma, data, len(alpha))
        if ((alpha == 0) & (sigma == 0)).any():
            raise ValueError("alpha: alpha and sigma are both 0 at one level")
        if self.t is None:
            if (alpha == 0).any():
                raise ValueError("t: must be given when alpha is 0 at the noise end (sigma / alpha is infinite there)")
            t = _vector("t", sigma / alpha)
        else:
            t = _vector("t", self.t)
        if len(t) != len(alpha):
            raise ValueError(f"t: got {len(t)} times, alpha has {len(alpha)} levels")
        rates = None if self.rates is None else _frozen("rates", self.rates)
        if rates is not None and rates.shape != (len(alpha), 2):
            raise ValueError(f"rates: got shape {rates.shape}, allowed is ({len(alpha)}, 2)")
        for name, value in (("alpha", alpha), ("sigma", sigma), ("t", t), ("rates", rates)):
            object.__setattr__(self, name, value)
        gain = -self._lam_differences() if self.reverse else self._lam_differences()
        if (gain < -SAME_LEVEL).any():
            i = int(np.argmax(gain < -SAME_LEVEL))
            way = "fall" if self.reverse else "rise"
            raise ValueError(
                f"alpha, sigma: the log-SNR must {way} along the path, but from level {i} to {i + 1} lambda goes "
                f"from {self.lam[i]:.6g} to {self.lam[i + 1]:.6g}" + ("" if self.reverse else "; see Path.reversed()")
            )

    def _lam_differences(self) -> Array:
        # alpha' sigma against alpha sigma' orders the levels without dividing by zero
        up, down = self.alpha[1:] * self.sigma[:-1], self.alpha[:-1] * self.sigma[1:]
        with np.errstate(divide="ignore"):
            return np.asarray(np.log(up) - np.log(down), dtype=np.float64)

    @property
    def steps(self) -> int:
        """Number of steps N (one less than the number of levels)."""
        return len(self.alpha) - 1

    @property
    def lam(self) -> Array:
        """Half log-SNR ``(N+1,)``; ``inf`` where sigma is 0, ``-inf`` where alpha is 0."""
        with np.errstate(divide="ignore"):
            return np.asarray(np.log(self.alpha) - np.log(self.sigma), dtype=np.float64)

    @property
    def rho(self) -> Array:
        """``sigma / alpha`` ``(N+1,)``; ``inf`` where alpha is 0."""
        with np.errstate(divide="ignore"):
            return np.asarray(self.sigma / self.alpha, dtype=np.float64)

    @functools.cached_property
    def normalised(self) -> bool:
        """Whether alpha^2 + sigma^2 is 1 at every level, to 1e-12."""
        return bool(np.allclose(self.alpha**2 + self.sigma**2, 1, rtol=0, atol=1e-12))

    def levels(self) -> tuple[Level, ...]:
        """All levels as plain Python floats."""
        return tuple(map(Level, self.alpha.tolist(), self.sigma.tolist(), self.t.tolist()))

    def reversed(self) -> Path:
        """The same levels in the other direction: data to noise for inversion, or back."""
        rates = None if self.rates is None else self.rates[::-1]
        return Path(self.alpha[::-1], self.sigma[::-1], self.t[::-1], rates, not self.reverse)

    def ve(self) -> Path:
        """The same log-SNR levels for the state ``x / alpha``: alpha = 1, sigma = rho (k-diffusion, EDM).

        Rates are dropped: a flow network speaks of its own state.
        """
        if (self.alpha == 0).any():
            raise ValueError("alpha: is 0 at the noise end; the state x / alpha does not exist there")
        return Path(np.ones_like(self.alpha), self.rho, self.t, reverse=self.reverse)

    def __len__(self) -> int:
        return len(self.alpha)

    @overload
    def __getitem__(self, index: int) -> Level: ...
    @overload
    def __getitem__(self, index: slice) -> Path: ...
    def __getitem__(self, index: int | slice) -> Level | Path:
        """``path[i]`` is a level; ``path[i:j]`` is a shorter path (start at a step: image-to-image)."""
        if isinstance(index, slice):
            if index.step not in (None, 1):
                raise ValueError(f"index: got step {index.step}, a slice of a path has step 1")
            rates = None if self.rates is None else self.rates[index]
            return Path(self.alpha[index], self.sigma[index], self.t[index], rates, self.reverse)
        return Level(float(self.alpha[index]), float(self.sigma[index]), float(self.t[index]))

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Path):
            return NotImplemented
        same = all(np.array_equal(getattr(self, n), getattr(other, n)) for n in ("alpha", "sigma", "t"))
        rates = (self.rates is None) == (other.rates is None)
        if rates and self.rates is not None and other.rates is not None:
            rates = np.array_equal(self.rates, other.rates)
        return same and rates and self.reverse == other.reverse

    def __hash__(self) -> int:
        return hash((self.alpha.tobytes(), self.sigma.tobytes(), self.t.tobytes(), self.reverse))

    def __reduce__(self) -> tuple[Any, ...]:
        return Path, (self.alpha, self.sigma, self.t, self.rates, self.reverse)


def _frozen(name: str, value: ArrayLike | Sequence[float]) -> Array:
    try:
        array = np.array(value, dtype=np.float64)
    except (TypeError, ValueError) as error:
        raise TypeError(f"{name}: got {type(value).__name__}, allowed are real numbers ({error})") from None
    if not np.isfinite(array).all():
        raise ValueError(f"{name}: got a value that is not finite ({array[~np.isfinite(array)][0]})")
    array.flags.writeable = False
    return array


def _vector(name: str, value: ArrayLike | Sequence[float]) -> Array:
    array = _frozen(name, value)
    if array.ndim != 1:
        raise ValueError(f"{name}: got shape {array.shape}, allowed is one dimension (N+1,)")
    return array


def _only_at(name: str, array: Array, end: int, length: int) -> None:
    zero = np.flatnonzero(array == 0)
    if len(zero) and (len(zero) > 1 or zero[0] != end % length):
        raise ValueError(f"{name}: is 0 at level {zero[0]}, allowed only at level {end % length} of {length}")
