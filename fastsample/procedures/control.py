"""Step size control: how large the next step in half log-SNR is, and whether the last one counts."""

from __future__ import annotations

import math
from typing import Protocol

from fastsample.solvers.registry import check_range


class Control(Protocol):
    """``h`` is the size of the step to try next."""

    h: float

    def __call__(self, error: float, used: float) -> bool:
        """Whether a step of size ``used`` (at most ``h``) with this error is accepted; sets the next ``h``."""


class Classic:
    """Accept where E <= 1; next h is theta h E^(-1/order).  Lu et al. 2022, arXiv 2206.00927, appendix C."""

    def __init__(self, order: int, h_init: float, theta: float) -> None:
        self.h, self._order = positive("h_init", h_init), order
        self._theta = positive("theta", theta)

    def __call__(self, error: float, used: float) -> bool:
        self.h = self._theta * used * inverse_root(error, self._order)
        return error <= 1.0


class Pid:
    """Proportional, integral and derivative control of the inverse error, as k-diffusion has it.

    The factor of h is v_0^b1 v_-1^b2 v_-2^b3 with v = 1/(E + 1e-8), limited by 1 + atan(f - 1); v_-1 and v_-2 belong to
    the last accepted steps.  Accepted where the limited factor is at least ``accept_safety``.
    """

    def __init__(
        self, order: float, h_init: float, pcoeff: float, icoeff: float, dcoeff: float, accept_safety: float
    ) -> None:
        self.h = positive("h_init", h_init)
        p, i, d = (check_range(name, v, -math.inf) for name, v in zip(_TERMS, (pcoeff, icoeff, dcoeff), strict=True))
        self._powers = ((p + i + d) / order, -(p + 2.0 * d) / order, d / order)
        self._safety = positive("accept_safety", accept_safety)
        self._inverses: list[float] = []

    def __call__(self, error: float, used: float) -> bool:
        inverse = 1.0 / (error + 1e-8)
        past = self._inverses or [inverse, inverse]
        factor = math.prod(v**power for v, power in zip([inverse, *past], self._powers, strict=True))
        factor = 1.0 + math.atan(factor - 1.0)
        accepted = factor >= self._safety
        self._inverses = [inverse, past[0]] if accepted else past
        self.h *= factor
        return accepted


_TERMS = ("pcoeff", "icoeff", "dcoeff")


def inverse_root(error: float, order: int) -> float:
    """E^(-1/order); infinite where there is no error."""
    return error ** (-1.0 / order) if error > 0.0 else math.inf


def positive(name: str, value: float) -> float:
    """``value`` as a float above 0; raises ``ValueError`` that names the option."""
    if check_range(name, value, 0.0) == 0.0:
        raise ValueError(f"{name}: got {value!r}, allowed are numbers > 0")
    return float(value)
