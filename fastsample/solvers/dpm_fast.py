"""DPM-Solver "fast" of k-diffusion: groups of three, two and one calls, even in log-SNR between the path's ends.

Of the path only the number of its steps (the network calls) and its ends count: the groups and their stages lie where
log-SNR is even, r = 1/2 in a group of two, 1/3 and 2/3 in a group of three.  The rows are those of ``dpm-3s``.
"""

from __future__ import annotations

import dataclasses
import math
from itertools import pairwise

import numpy as np

from fastsample.path import Level, Path, step_size
from fastsample.solvers.calculus import adams
from fastsample.solvers.first_order import ancestral_noise, identity, pairs, same, transfer
from fastsample.solvers.registry import Solver, add, check_range
from fastsample.solvers.singlestep import order_list
from fastsample.solvers.stages import Inside, Stage, stages
from fastsample.solvers.step import Step


def dpm_fast(path: Path, *, eta: float, s_noise: float, schedule: str | None, anchored: bool) -> list[Step]:
    """``path.steps`` calls from its first level to its last; a last level of clean data takes the last call alone.

    Args:
        eta: each group ends below its level, where noise brings it back up (0: the probability flow).
        s_noise: factor of that noise.
        schedule: of the levels between those of the path, see ``stages.Between``.
        anchored: keep the start of a group instead of recovering it from the stages.
    """
    check_range("eta", eta, 0.0)
    check_range("s_noise", s_noise, 0.0)
    pairs(path, "dpm-fast")
    levels = path.levels()
    calls = path.steps - (levels[-1].sigma == 0.0)
    if levels[0].alpha == 0.0:
        raise ValueError("path: dpm-fast needs alpha > 0 at the start of the path")
    steps: list[Step] = []
    if calls:
        orders, floor = order_list(3, calls), levels[calls].lam
        inside = Inside(path, schedule)
        bounds = np.linspace(levels[0].lam, floor, len(orders) + 1)[1:-1]
        ends = [levels[0], *(inside(float(lam)) for lam in bounds), levels[calls]]
        for order, (start, end) in zip(orders, pairwise(ends), strict=True):
            steps += _group(len(steps), order, start, end, floor, eta, s_noise, inside, anchored)
    if calls < path.steps:
        steps.append(transfer(calls, levels[calls], levels[-1]))
    return steps


def even_group(form: str, order: int, start: Level, end: Level, inside: Inside) -> tuple[list[Stage], Stage]:
    """Stages and end of one DPM-Solver step of ``order`` calls, its stages even in log-SNR."""
    inner: list[Stage] = []
    for k in range(1, order):
        at = inside(start.lam + k / order * step_size(start, end))
        a, b, _ = adams(form, start, at, [] if k == 1 else [1.0 / k])
        inner.append(Stage(at, a, b))
    # the last row uses the first call and the latest one
    nodes = [] if order == 1 else [(order - 1) / order]
    a, b, _ = adams(form, start, end, nodes, "mid" if order == 2 else "exact")
    return inner, Stage(end, a, b if order < 3 else [b[0], 0.0, b[1]])


def below(start: Level, end: Level, eta: float, floor: float) -> tuple[Level, float]:
    """Where an ancestral step ends before its noise, at the scale of ``end`` and not below the half log-SNR ``floor``
    (there the network may know nothing), and the standard deviation of the noise that leads to ``end``."""
    if eta == 0.0:
        return end, 0.0
    up = min(end.sigma, ancestral_noise(start, end, eta))
    rho = max(math.sqrt(max(end.sigma**2 - up * up, 0.0)) / end.alpha, math.exp(-floor))
    down = Level(end.alpha, end.alpha * rho, end.t)
    return down, math.sqrt(max(end.sigma**2 - down.sigma**2, 0.0))


def _group(
    first: int,
    order: int,
    start: Level,
    end: Level,
    floor: float,
    eta: float,
    s_noise: float,
    inside: Inside,
    anchored: bool,
) -> list[Step]:
    if same(start, end):
        return [identity(first + k, start, "eps") for k in range(order)]
    down, up = below(start, end, eta, floor)
    inner, last = even_group("eps", order, start, down, inside)
    rows = stages(first, start, inner, last, "eps", anchored)
    rows = [dataclasses.replace(row, index=first + k) for k, row in enumerate(rows)]
    return [*rows[:-1], dataclasses.replace(rows[-1], c=s_noise * up)]


add(
    Solver(
        "dpm-fast",
        dpm_fast,
        "exponential Runge-Kutta on eps_hat, groups of three calls even in log-SNR",
        "Lu et al. 2022, arXiv 2206.00927, section 3.4, in the form of k-diffusion",
        order=2,
        options={"eta": 0.0, "s_noise": 1.0, "schedule": None, "anchored": False},
    )
)
