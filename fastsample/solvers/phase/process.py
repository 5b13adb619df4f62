"""The phase-space diffusion: data with a momentum, both noised, only weakly or not at all through the position."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from fastsample.path import Array, ArrayLike, Path
from fastsample.schedules import Schedule
from fastsample.solvers.phase import moments
from fastsample.solvers.phase.moments import Covariance, Factor
from fastsample.solvers.registry import check_choice, check_range

OPTIONS: Mapping[str, Any] = {
    "Gamma": 0.01,
    "nu": 4.01,
    "beta": 8.0,
    "gamma": 0.04,
    "factor": "lower",
    "jitter": 0.0,
}
"""What a process is made of, and the values of the PSLD networks of CIFAR-10 and AFHQv2."""


class PhaseSpace(Schedule):
    """Critically damped phase-space Langevin diffusion of a state z = (x, m), each shaped like the data.

    ``dz = beta/2 [[-Gamma, 1/M], [-1, -nu]] z dt + sqrt(beta) diag(sqrt(Gamma), sqrt(M nu)) dw`` with
    ``1/M = (Gamma - nu)^2 / 4``.  At data m is ``N(0, gamma M I)``, at noise x is ``N(0, I)`` and m is ``N(0, M I)``.
    With Sigma the covariance of z given the data, ``Sigma = L L^T``, a network predicts eps with
    ``score = -L^-T eps``.  Pandey, Mandt 2023, arXiv 2303.01748, equations 12 and 13; Gamma = 0 is CLD (Dockhorn,
    Vahdat, Kreis 2022, arXiv 2112.07068).

    As a schedule: alpha is the mean of x per unit of data, sigma its standard deviation, t the network's time, and
    grids are even in ``(t - t_min) / (t_max - t_min)``: ``"uniform"`` and ``"quadratic"`` are those of the paper.

    Args:
        Gamma, nu: friction in position and momentum, >= 0, not equal.
        beta: noise rate, a number or the pair (at 0, at 1) between which it is linear in t.
        gamma: variance of the momentum at data over M, > 0.
        factor: ``"lower"`` or ``"upper"``: which triangular L the network was trained with.
        jitter: added to both variances, as the authors' program does (1e-9); default 0.
        t_min, t_max: ends of the time of a run.

    Raises:
        ValueError: a value out of range.
    """

    def __init__(
        self,
        Gamma: float = 0.01,
        nu: float = 4.01,
        beta: float | Sequence[float] = 8.0,
        gamma: float = 0.04,
        factor: str = "lower",
        jitter: float = 0.0,
        *,
        t_min: float = 1e-3,
        t_max: float = 1.0,
    ) -> None:
        self.Gamma, self.nu = check_range("Gamma", Gamma, 0.0), check_range("nu", nu, 0.0)
        if self.Gamma == self.nu:
            raise ValueError(f"nu: got {nu!r}, which is Gamma; critical damping needs them to differ")
        pair = [beta, beta] if np.ndim(beta) == 0 else list(beta)  # type: ignore[arg-type]  # a sequence then
        if len(pair) != 2:
            raise ValueError(f"beta: got {beta!r}, allowed are a number or the pair of its values at t = 0 and 1")
        self.beta0, self.beta1 = (check_range("beta", value, 1e-12) for value in pair)
        self.gamma, self.jitter = check_range("gamma", gamma, 1e-12), check_range("jitter", jitter, 0.0)
        check_choice("factor", factor, ("lower", "upper"))
        self.factor = factor
        if not 0 < t_min < t_max < math.inf:
            raise ValueError(f"t_min, t_max: got {t_min}, {t_max}, allowed are 0 < t_min < t_max")
        self.t_min, self.t_max = float(t_min), float(t_max)
        self.c, self.d = 0.25 * (self.nu + self.Gamma), 0.25 * (self.nu - self.Gamma)
        self.M = 1.0 / (4.0 * self.d * self.d)

    @property
    def options(self) -> dict[str, Any]:
        """The arguments that rows depend on, as options of a phase-space solver (JSON values)."""
        beta = self.beta0 if self.constant else [self.beta0, self.beta1]
        return {
            "Gamma": self.Gamma,
            "nu": self.nu,
            "beta": beta,
            "gamma": self.gamma,
            "factor": self.factor,
            "jitter": self.jitter,
        }

    @property
    def constant(self) -> bool:
        """Whether beta does not depend on t."""
        return self.beta0 == self.beta1

    def __repr__(self) -> str:
        return f"PhaseSpace({', '.join(f'{name}={value!r}' for name, value in self.options.items())})"

    def __eq__(self, other: object) -> bool:
        return self.options == other.options if isinstance(other, PhaseSpace) else NotImplemented

    def __hash__(self) -> int:
        return hash(repr(self))

    # The process.

    def beta(self, t: ArrayLike) -> Array:
        """Noise rate at t."""
        return np.asarray(self.beta0 + np.asarray(t, dtype=np.float64) * (self.beta1 - self.beta0))

    def b(self, t: Any) -> Any:
        """Integral of beta from 0 to t (numpy or torch)."""
        return t * (self.beta0 + 0.5 * t * (self.beta1 - self.beta0))

    def passed(self, start: float, end: float) -> float:
        """``b(end) - b(start)``, of which nothing cancels."""
        return (end - start) * (self.beta0 + 0.5 * (start + end) * (self.beta1 - self.beta0))

    def drift(self, beta: float = 1.0) -> Array:
        """F ``(2, 2)`` at a noise rate."""
        return 0.5 * beta * np.array([[-self.Gamma, 1.0 / self.M], [-1.0, -self.nu]])

    def diffusion(self, beta: float = 1.0) -> Array:
        """G G^T ``(2, 2)`` at a noise rate."""
        return beta * np.diag([self.Gamma, self.M * self.nu])

    @property
    def stationary(self) -> Array:
        """Covariance ``(2, 2)`` of the start."""
        return np.diag([1.0, self.M])

    def flow(self, b: Any) -> Array:
        """Psi ``(..., 2, 2)`` of the drift over the integral b ``(...)`` of beta; b < 0 is the way back."""
        return matrix(moments.flow(self.c, self.d, np.asarray(b, dtype=np.float64)))

    def covariance(self, t: ArrayLike) -> Covariance:
        """Sigma of z given the data at t; the momentum of the data is not given."""
        s = moments.covariance(self.Gamma, self.nu, self.b(np.asarray(t, dtype=np.float64)), 0.0, self.gamma * self.M)
        return Covariance(s.xx + self.jitter, s.xm, s.mm + self.jitter)

    def root(self, t: ArrayLike) -> Array:
        """L ``(..., 2, 2)`` at t, triangular as the network was trained with."""
        return matrix(self._root(t))

    def K(self, t: ArrayLike) -> Array:
        """``L^-T`` ``(..., 2, 2)`` at t: score = -K eps."""
        return matrix(moments.inverse_transposed(self._root(t)))

    def _root(self, t: ArrayLike) -> Factor:
        return (moments.lower if self.factor == "lower" else moments.upper)(self.covariance(t))

    # As a schedule.

    def alpha(self, t: ArrayLike) -> Array:
        return np.asarray(moments.flow(self.c, self.d, self.b(np.asarray(t, dtype=np.float64))).xx)

    def sigma(self, t: ArrayLike) -> Array:
        return np.asarray(np.sqrt(self.covariance(t).xx - self.jitter))

    def clock(self, t: ArrayLike) -> Array:
        return np.asarray((np.asarray(t, dtype=np.float64) - self.t_min) / (self.t_max - self.t_min))

    def of_clock(self, u: ArrayLike) -> Array:
        return np.asarray(self.t_min + (self.t_max - self.t_min) * np.asarray(u, dtype=np.float64))


def matrix(f: Factor) -> Array:
    """``(..., 2, 2)`` of the entries of a factor."""
    entries = np.broadcast_arrays(*f)
    return np.stack(entries, axis=-1).reshape(*np.shape(entries[0]), 2, 2)


def process_of(options: Mapping[str, Any]) -> PhaseSpace:
    """The process of a solver's options."""
    return PhaseSpace(**{name: options[name] for name in OPTIONS if name in options})


def check_path(path: Path, process: PhaseSpace, name: str) -> None:
    """Raise ``ValueError`` unless the levels of a path are those of the process at its times."""
    if path.reverse or (path.t <= 0).any():
        raise ValueError(f"path: {name!r} runs from noise to data and ends at a time t > 0")
    made = process.alpha(path.t), process.sigma(path.t)
    if not all(np.allclose(a, b, rtol=1e-6, atol=1e-12) for a, b in zip(made, (path.alpha, path.sigma), strict=True)):
        raise ValueError(
            f"path: its levels are not those of {process!r} at its times; make it of that process, as "
            "make_path(PhaseSpace(...), 'quadratic', steps)"
        )
