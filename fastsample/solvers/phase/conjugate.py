"""Conjugate integrators: Euler in a linearly moved space, written back in the space of (x, m).

With ``z^_t = A_t z_t`` and A_t the flow of ``B - F`` one Euler step of z^ is, in z, with Q = B - F and beta constant,

    z' = e^{delta Q} (1 - delta B) z - 1/2 int_{t'}^{t} e^{(s - t') Q} GG^T K(s) ds  eps        (delta = t - t')

B = 0 freezes eps and solves the rest exactly.  Pandey, Rudolph, Mandt 2024, arXiv 2310.07894, section 3.
"""

from __future__ import annotations

import itertools

import numpy as np

from fastsample.path import Array, Path
from fastsample.solvers.phase.process import PhaseSpace
from fastsample.solvers.phase.stage import Stage, exponential, integral
from fastsample.solvers.registry import check_choice, check_range

KINDS = ("I", "1")


def constant_beta(process: PhaseSpace, name: str) -> float:
    """beta, which this solver needs constant."""
    if not process.constant:
        raise ValueError(f"beta: {name!r} needs a constant one, got {process.beta0:g} to {process.beta1:g}")
    return process.beta0


def shape_of(kind: str) -> Array:
    """B over lambda: the identity (lambda-DDIM-I), or the matrix of ones (lambda-DDIM-II)."""
    kind = str(kind)
    check_choice("kind", kind, KINDS)
    return np.eye(2) if kind == "I" else np.ones((2, 2))


def conjugate_step(process: PhaseSpace, start: float, end: float, F: Array, GG: Array, B: Array) -> tuple[Array, Array]:
    """A and E of one step from ``start`` to ``end`` for a drift F, half of whose noise is ``GG / 2``."""
    delta, Q = start - end, B - F
    A = exponential(delta * Q) @ (np.eye(2) - delta * B)
    E = integral(lambda s: exponential((s - end)[:, None, None] * Q) @ GG @ process.K(s), start, end)
    return A, -0.5 * E


def lambda_ddim(path: Path, process: PhaseSpace, *, lam: float, kind: str) -> list[Stage]:
    """One conjugate Euler step per network call; ``lam`` in units of 1/time."""
    beta = constant_beta(process, "lambda-ddim-psld")
    F, GG = process.drift(beta), process.diffusion(beta)
    B = check_range("lam", lam, -np.inf) * shape_of(kind)
    levels, stages = path.levels(), []
    for i, (start, end) in enumerate(itertools.pairwise(levels)):
        A, E = conjugate_step(process, start.t, end.t, F, GG, B)
        stages.append(Stage(i, A, E, at=start))
    return stages
