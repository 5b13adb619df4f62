"""Stages: affine maps of (x, m) with normals, and how they join to one row per network call.

A stage is ``z' = A z + E eps + P eps_before + N xi``, all tables 2x2 float64, eps what the network said last and
eps_before what it said the call before.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field

import numpy as np

from fastsample.path import Array, Level

NODES = 32  # of the Gauss-Legendre rule of one step

_ZERO = np.zeros((2, 2))
_NONE = np.zeros((2, 0))


@dataclass(frozen=True, eq=False)
class Stage:
    """``z' = A z + E eps + P eps_before + N xi``; ``at``: the network is called first, at this level.

    A stage without ``at`` uses the eps of the call before it, or none.  ``index``: step of the path.  ``N`` has one
    column per normal, at most two where it stands alone.
    """

    index: int
    A: Array
    E: Array = field(default_factory=lambda: _ZERO)
    P: Array = field(default_factory=lambda: _ZERO)
    N: Array = field(default_factory=lambda: _NONE)
    at: Level | None = None

    def then(self, after: Stage) -> Stage:
        """This stage and ``after``, which makes no call of its own, as one; their normals side by side."""
        A = after.A
        noises = np.concatenate([A @ self.N, after.N], axis=1)
        return Stage(self.index, A @ self.A, A @ self.E + after.E, A @ self.P + after.P, noises, self.at)


def join(stages: Iterable[Stage]) -> tuple[Stage, list[Stage]]:
    """What comes before the first call, and one stage per network call with lower triangular N ``(2, 2)``.

    Noises of consecutive stages are added as covariances: same law, fewer draws.
    """
    lead, calls = Stage(0, np.eye(2)), []
    for stage in stages:
        if stage.at is not None:
            calls.append(stage)
        elif calls:
            calls[-1] = calls[-1].then(stage)
        else:
            lead = lead.then(stage)
    return lead, [Stage(s.index, s.A, s.E, s.P, triangular(s.N), s.at) for s in calls]


def triangular(N: Array) -> Array:
    """Lower triangular T ``(2, 2)``, diagonal >= 0, with ``T T^T = N N^T``: by QR, which squares nothing."""
    if N.shape[1] == 0:
        return np.zeros((2, 2))
    if N.shape == (2, 2) and N[0, 1] == 0.0 and (np.diag(N) >= 0).all():
        return N
    T = np.zeros((2, 2))
    R = np.asarray(np.linalg.qr(N.T, mode="r"))
    T[:, : len(R)] = R.T
    if T[0, 0] == 0.0:  # no noise in x: one normal is enough
        return np.array([[0.0, 0.0], [0.0, float(np.hypot(T[1, 0], T[1, 1]))]])
    T[0, 1] = 0.0
    return np.asarray(T * np.where(np.diag(T) < 0, -1.0, 1.0))


def exponential(X: Array) -> Array:
    """``e^X`` of matrices ``(..., 2, 2)``."""
    half = 0.5 * np.trace(X, axis1=-2, axis2=-1)[..., None, None]
    Y = X - half * np.eye(2)
    square = (Y[..., 0, 0] ** 2 + Y[..., 0, 1] * Y[..., 1, 0])[..., None, None]  # Y^2 = square I
    q = np.sqrt(np.abs(square))
    safe = np.where(q > 0.0, q, 1.0)
    slope = np.where(q > 0.0, np.where(square > 0.0, np.sinh(safe), np.sin(safe)) / safe, 1.0)
    return np.asarray(np.exp(half) * (np.where(square > 0.0, np.cosh(q), np.cos(q)) * np.eye(2) + slope * Y))


def nodes(start: float, end: float, count: int = NODES) -> tuple[Array, Array]:
    """Points s and weights of the integral over [end, start]: Gauss-Legendre in the root of ``s - end``.

    Whatever grows like ``s^-1/2`` towards s = 0, as L^-1 does, is smooth in that root.
    """
    point, weight = np.polynomial.legendre.leggauss(count)
    v, width = 0.5 * (point + 1.0), start - end
    return end + width * v * v, weight * v * width


def integral(f: Callable[[Array], Array], start: float, end: float) -> Array:
    """``(2, 2)`` integral over s in [end, start] of ``f(s)``, which maps ``(n,)`` to ``(n, 2, 2)``."""
    s, weight = nodes(start, end)
    return np.asarray((weight[:, None, None] * f(s)).sum(axis=0))
