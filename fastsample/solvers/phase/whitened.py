"""Exponential steps on a quantity that changes slowly: eps whitened by the root R of Sigma that the flow carries along.

What a network predicts, eps = -L^T score, turns fast along a trajectory because the triangular L is no root that the
probability flow knows.  The one that it does know obeys ``dR/dt = (F + 1/2 GG^T Sigma^-1) R``: with it R^T K eps is
constant for data that are one point.  Both are roots of one Sigma, so ``R = L O`` with a rotation O(theta), and

    d theta/dt = -(beta / 2 L_xx) (L_mm / M + Gamma K_xm)        (L lower triangular)

is all that has to be integrated.  Freezing R^T K eps is a step with K(s) turned by theta(s) - theta(t) under the
integral of the exponential step; the second order puts a line through the last two values, in log t.  The idea is of
Zhang, Tao, Chen 2023, arXiv 2206.05564 (gDDIM, for CLD), which integrates R as an ODE.
"""

from __future__ import annotations

import itertools

import numpy as np

from fastsample.path import Array, Path
from fastsample.solvers.phase import moments
from fastsample.solvers.phase.process import PhaseSpace, matrix
from fastsample.solvers.phase.stage import Stage, nodes


def turning(process: PhaseSpace, t: Array) -> Array:
    """d theta/dt at times t ``(...)``."""
    L = moments.lower(process.covariance(t))
    K = moments.inverse_transposed(L)
    return np.asarray(-0.5 * process.beta(t) / L.xx * (L.mm / process.M + process.Gamma * K.xm))


def angles(process: PhaseSpace, s: Array, origin: float) -> Array:
    """theta(s) - theta(origin) for times s ``(n,)``: each by a rule of its own, smooth down to t = 0."""
    point, weight = np.polynomial.legendre.leggauss(48)
    low, high = np.sqrt(np.minimum(s, origin))[:, None], np.sqrt(np.maximum(s, origin))[:, None]
    v = low + 0.5 * (high - low) * (point + 1.0)  # d theta = turning 2 v dv with v^2 = time
    total = (turning(process, v * v) * v * weight).sum(axis=1) * (high - low)[:, 0]
    return np.asarray(np.where(s < origin, -total, total))


def rotation(theta: Array) -> Array:
    """``(..., 2, 2)``."""
    c, s = np.cos(theta), np.sin(theta)
    return matrix(moments.Factor(c, -s, s, c))


def whitened(path: Path, process: PhaseSpace, *, order: int) -> list[Stage]:
    """Steps of order 1 or 2; the first step of a run is of order 1."""
    if isinstance(order, bool) or order not in (1, 2):
        raise ValueError(f"order: got {order!r}, allowed are 1 and 2")
    levels, stages = path.levels(), []
    for i, (start, end) in enumerate(itertools.pairwise(levels)):
        s, weight = nodes(start.t, end.t)
        back = -(s - end.t) * (process.beta0 + 0.5 * (s + end.t) * (process.beta1 - process.beta0))
        GG = process.beta(s)[:, None, None] * process.diffusion()
        pull = -0.5 * weight[:, None, None] * (process.flow(back) @ GG @ _lower(process, s))
        before = levels[i - 1] if order == 2 and i > 0 and levels[i - 1].t != start.t else None
        share = np.zeros_like(s) if before is None else np.log(s / start.t) / np.log(before.t / start.t)
        E = ((1.0 - share)[:, None, None] * pull @ rotation(angles(process, s, start.t))).sum(axis=0)
        E = E @ _of_network(process, start.t)
        P = np.zeros((2, 2))
        if before is not None:
            P = (share[:, None, None] * pull @ rotation(angles(process, s, before.t))).sum(axis=0)
            P = P @ _of_network(process, before.t)
        A = process.flow(-process.passed(end.t, start.t))
        stages.append(Stage(i, A, E, P, at=start))
    return stages


def _lower(process: PhaseSpace, t: Array) -> Array:
    return matrix(moments.inverse_transposed(moments.lower(process.covariance(t))))


def _of_network(process: PhaseSpace, t: float) -> Array:
    """From what the network predicts to the eps of a lower triangular L: ``L^T K``."""
    if process.factor == "lower":
        return np.eye(2)
    return np.asarray(matrix(moments.lower(process.covariance(t))).T @ process.K(t))
