"""Euler, Euler-Maruyama and the symmetric splitting of PSLD, and the last step that ends a run.

Pandey, Mandt 2023, arXiv 2303.01748, section 4 and appendix D; the symmetric splitting CLD sampler is of Dockhorn,
Vahdat, Kreis 2022, arXiv 2112.07068.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence

import numpy as np

from fastsample.path import Array, Level, Path
from fastsample.solvers.phase import moments
from fastsample.solvers.phase.process import PhaseSpace, matrix
from fastsample.solvers.phase.stage import Stage
from fastsample.solvers.registry import check_choice

LAST = ("none", "half", "full", "mean")


def euler_step(process: PhaseSpace, index: int, at: Level, delta: float, share: float, noisy: bool = False) -> Stage:
    """``A = I - delta F, E = -share delta GG^T K``, everything at the time of the call."""
    beta = float(process.beta(at.t))
    GG = process.diffusion(beta)
    N = np.sqrt(delta * GG) if noisy else np.zeros((2, 0))
    A = np.eye(2) - delta * process.drift(beta)
    return Stage(index, A, -share * delta * GG @ process.K(at.t), N=N, at=at)


def euler(path: Path, process: PhaseSpace) -> list[Stage]:
    """Euler on the probability flow."""
    levels = path.levels()
    return [
        euler_step(process, i, start, start.t - end.t, 0.5) for i, (start, end) in enumerate(itertools.pairwise(levels))
    ]


def euler_maruyama(path: Path, process: PhaseSpace) -> list[Stage]:
    """Euler-Maruyama on the reverse SDE."""
    levels = path.levels()
    return [
        euler_step(process, i, start, start.t - end.t, 1.0, noisy=True)
        for i, (start, end) in enumerate(itertools.pairwise(levels))
    ]


def half_flow(process: PhaseSpace, index: int, b: float) -> Stage:
    """Exact flow over b of the reverse SDE without its score part, which leaves diag(1, M) as it is.

    Its covariance ``diag(1, M) - A diag(1, M) A^T`` is that of the forward noise with the sign of x-m turned: the
    difference of near equal numbers is not formed.
    """
    psi = process.flow(b)
    A = psi * np.array([[1.0, -1.0], [-1.0, 1.0]])
    s = moments.noise(process.Gamma, process.nu, b)
    s = moments.Covariance(s.xx + process.jitter, -s.xm, s.mm + process.jitter)
    N = np.zeros((2, 2)) if s.xx == 0.0 else matrix(moments.lower(s))
    return Stage(index, A, N=N)


def symmetric_splitting(path: Path, process: PhaseSpace, *, strict: bool) -> list[Stage]:
    """SSCS: half a flow, a step of the score, half a flow.

    ``strict``: the second half flow over the second half of the step; else, as the authors do, as long as the first,
    which differs where beta does.  The network is told the time of the start of the step.
    """
    levels, stages = path.levels(), []
    for i, (start, end) in enumerate(itertools.pairwise(levels)):
        delta = start.t - end.t
        middle = start.t - 0.5 * delta
        first, second = process.passed(middle, start.t), process.passed(end.t, middle)
        GG = process.diffusion(float(process.beta(start.t)))
        A = np.eye(2) + delta * np.diag([GG[0, 0], GG[1, 1] / process.M])
        score = Stage(i, A, -delta * GG @ process.K(start.t), at=start)
        stages += [half_flow(process, i, first), score, half_flow(process, i, second if strict else first)]
    return stages


def last_step(process: PhaseSpace, index: int, at: Level, kind: str) -> list[Stage]:
    """The step from the end of the grid to data, without noise.

    ``"full"``: the mean of a step of Euler-Maruyama over the whole time that is left.  ``"half"``: Euler on the
    probability flow.  ``"mean"``: the expected data.  ``"none"``: the run ends where the grid does.
    """
    check_choice("last", kind, LAST)
    if kind == "none":
        return []
    if kind == "mean":
        A, E = expected_data(process, at)
        return [Stage(index, A, E, at=at)]
    return [euler_step(process, index, at, at.t, 1.0 if kind == "full" else 0.5)]


def expected_data(process: PhaseSpace, at: Level) -> tuple[Array, Array]:
    """Tables of ``E[(x_0, 0) | z] = Psi^-1 (z - L eps)``; what it says of the momentum is dropped."""
    back = process.flow(-process.b(at.t)) * np.array([[1.0], [0.0]])
    return back, -back @ process.root(at.t)


def merged_draws(
    path: Path, process: PhaseSpace, x: Sequence[Array], m: Sequence[Array], *, strict: bool = False
) -> tuple[list[Array], list[Array]]:
    """The draws of the joined rows of SSCS that stand for two recorded draws per step.

    The authors' program draws one pair (x, m) of unit normals for each half flow; here the half flow that ends a step
    and the one that begins the next are one row with one pair.  Given the recorded pairs (2 per step, in order), these
    are the unit normals with which the rows reproduce that run: one pair before the first call, then one per step.

    Raises:
        ValueError: the number of draws is not twice the number of steps.
    """
    flows = [s for s in symmetric_splitting(path, process, strict=strict) if s.at is None]
    if not len(x) == len(m) == len(flows):
        raise ValueError(f"x, m: got {len(x)} and {len(m)} draws, need {len(flows)}, two of each per step")
    from fastsample.solvers.phase.stage import triangular

    noises = [[(flows[0], 0)], *([(flows[k], k), (flows[k + 1], k + 1)] for k in range(1, len(flows) - 1, 2))]
    noises.append([(flows[-1], len(flows) - 1)])
    out_x, out_m = [], []
    for group in noises:
        added: list[Array] = [np.zeros_like(np.asarray(x[0])), np.zeros_like(np.asarray(x[0]))]
        columns = np.zeros((2, 0))
        for flow, k in group:
            xi = (np.asarray(x[k]), np.asarray(m[k]))
            added = [sum(flow.A[r, c] * added[c] + flow.N[r, c] * xi[c] for c in range(2)) for r in range(2)]
            columns = np.concatenate([flow.A @ columns, flow.N], axis=1)
        unit = np.linalg.inv(triangular(columns))
        out_x.append(unit[0, 0] * added[0] + unit[0, 1] * added[1])
        out_m.append(unit[1, 0] * added[0] + unit[1, 1] * added[1])
    return out_x, out_m
