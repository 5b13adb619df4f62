"""Poisson midpoint for diffusion models as a plan: windows of fine steps whose midpoints the whole batch shares.

The calls of a window are one at its start and one per midpoint; see ``poisson_windows`` for the moves between them.
Samples that share midpoints are each distributed as they should be, but not independent of each other;
the procedure "poisson-midpoint" draws them per sample.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from typing import Any

from fastsample import noise
from fastsample.grids import training_grid, training_steps
from fastsample.path import Path
from fastsample.solvers.fine_tables import fine_table
from fastsample.solvers.poisson_windows import Indices, Move, Window, Windows, asked, check_seed
from fastsample.solvers.registry import Solver, add
from fastsample.solvers.step import Mix, Step

FROZEN, REFINED = "eps0", "refined"  # kept tensors: the prediction of the window's start, and the refined state


def start_step(windows: Windows, window: Window, q: int) -> Step:
    """The first move of a window, to ``q``; the prediction is kept if the window goes on."""
    move = windows.move(window, window.start, q)
    kept: dict[str, Mix] = {}
    if q < window.end:
        kept[FROZEN] = {0: 1.0}
    return _step(windows, window, move, a=move.a, b=(move.b,), keep=kept)


def midpoint_step(windows: Windows, window: Window, i: int, q: int, first: bool) -> Step:
    """The move from midpoint ``i`` to ``q``; ``first``: it is the window's first, so that both states are one yet."""
    move = windows.move(window, i, q)
    # (B - c) eps_0 + c eps_i: the difference of the two predictions is never rounded to the state's dtype
    old = move.b - move.c
    before = "x" if first else REFINED
    if q < window.end:  # the network sees the cheap path
        mix: Mix = {before: move.a, 0: move.c, FROZEN: old, "xi": move.s}
        return _step(windows, window, move, a=move.a, b=(0.0,), saved={FROZEN: move.b}, keep={REFINED: mix})
    if first:
        return _step(windows, window, move, a=move.a, b=(move.c,), saved={FROZEN: old})
    return _step(windows, window, move, a=0.0, b=(move.c,), saved={FROZEN: old, REFINED: move.a})


def _step(windows: Windows, window: Window, move: Move, **weights: Any) -> Step:
    at = windows.table.path[move.i]
    # the noise is the one of the fine step where the move begins, whatever the midpoints are
    return Step(window.start, at, c=move.s, form="eps", draw=1 + move.i, **weights)


def window_steps(windows: Windows, window: Window, midpoints: Sequence[int]) -> list[Step]:
    """The calls of a window whose midpoints (rising, after its start) are known."""
    stops = [*midpoints, window.end]
    steps = [start_step(windows, window, stops[0])]
    for n, (i, q) in enumerate(pairwise(stops)):
        steps.append(midpoint_step(windows, window, i, q, first=n == 0))
    return steps


def poisson_midpoint(
    path: Path,
    *,
    window: int,
    windows: Sequence[int] | str | None,
    midpoints: str | int,
    table: str,
    eta: float,
    midpoint_seed: int,
) -> list[Step]:
    """Poisson midpoint with midpoints that the batch shares.

    Args:
        window, windows, midpoints: see ``Windows``.
        table, eta: see ``fine_table``.
        midpoint_seed: a whole number in [0, 2^63); the noise of the run does not depend on it.
    """
    made = Windows(fine_table(path, table, eta), window, windows, midpoints)
    return shared_steps(made, made.draw(noise.keys(check_seed(midpoint_seed), 1)))


def shared_steps(windows: Windows, drawn: Sequence[Indices]) -> list[Step]:
    """All calls, with the midpoints that ``Windows.draw`` has drawn for one sample."""
    steps: list[Step] = []
    for window, chosen in zip(windows, drawn, strict=True):
        steps += window_steps(windows, window, asked(window, chosen)[0].tolist())
    return steps


PAPER = "Kandasamy, Nagaraj 2024, arXiv 2405.17068; Srinivasan, Nagaraj et al. 2025, arXiv 2506.07614"
OPTIONS: dict[str, Any] = {
    "window": 25,
    "windows": "safe",
    "midpoints": "one",
    "table": "ddpm-small",
    "eta": 0.0,
    "midpoint_seed": 0,
}
USUAL: dict[str, Any] = {"steps": training_steps, "grid": training_grid}

add(
    Solver(
        "poisson-midpoint-shared",
        poisson_midpoint,
        "windows of K fine steps with a frozen prediction and random corrections, midpoints shared by the batch",
        PAPER,
        order=1,
        nfe="2/K",
        stochastic=True,
        options=OPTIONS,
        usual=USUAL,
        warns=True,
    )
)
