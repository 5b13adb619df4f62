"""rhoRK-DEIS: explicit Runge-Kutta steps for x/alpha in rho = sigma/alpha, where d(x/alpha)/d rho = eps_hat."""

from __future__ import annotations

import math
from itertools import pairwise
from typing import Any

from fastsample.path import Path
from fastsample.solvers.first_order import identity, same, transfer
from fastsample.solvers.predictor_corrector import check_flag, check_forward
from fastsample.solvers.registry import Solver, add
from fastsample.solvers.stages import Between, Stage, stages
from fastsample.solvers.step import Step

# name -> (nodes after the first, rows of the matrix, weights, order)
TABLEAUX: dict[str, tuple[tuple[float, ...], tuple[tuple[float, ...], ...], tuple[float, ...], int]] = {
    "heun-2": ((1.0,), ((1.0,),), (1 / 2, 1 / 2), 2),
    "kutta-3": ((1 / 2, 1.0), ((1 / 2,), (-1.0, 2.0)), (1 / 6, 4 / 6, 1 / 6), 3),
    "ralston-3": ((1 / 2, 3 / 4), ((1 / 2,), (0.0, 3 / 4)), (2 / 9, 1 / 3, 4 / 9), 3),
    "heun-3": ((1 / 3, 2 / 3), ((1 / 3,), (0.0, 2 / 3)), (1 / 4, 0.0, 3 / 4), 3),
    "vdh-3": ((8 / 15, 2 / 3), ((8 / 15,), (1 / 4, 5 / 12)), (1 / 4, 0.0, 3 / 4), 3),
    "ssp-3": ((1.0, 1 / 2), ((1.0,), (1 / 4, 1 / 4)), (1 / 6, 1 / 6, 2 / 3), 3),
    "rk4": ((1 / 2, 1 / 2, 1.0), ((1 / 2,), (0.0, 1 / 2), (0.0, 0.0, 1.0)), (1 / 6, 1 / 3, 1 / 3, 1 / 6), 4),
}
TITLES = {
    "vdh-3": "van der Houwen's third",
    "ssp-3": "strong-stability-preserving third",
    "rk4": "the classical fourth",
}


def rho_rk(path: Path, *, tableau: str, schedule: str | None, anchored: bool) -> list[Step]:
    """Runge-Kutta steps on eps_hat.

    A step to sigma = 0 is of first order if a stage would be asked there (x0_hat is its limit), and so is one from
    alpha = 0.

    Args:
        tableau: a name of ``TABLEAUX``.
        schedule: None, or the name of the schedule that the path was made of: levels and times of the stages between
            the path's levels (``stages.Between``).
        anchored: keep the start of every step instead of recovering it from the stages.
    """
    nodes, matrix, weights, _ = TABLEAUX[tableau]
    check_flag("anchored", anchored)
    check_forward(path)
    between = Between(path, schedule)
    steps = []
    for i, (start, end) in enumerate(pairwise(path.levels())):
        if same(start, end):
            steps.append(identity(i, start, "eps"))
            continue
        if start.alpha == 0.0 or (end.sigma == 0.0 and 1.0 in nodes):
            steps.append(transfer(i, start, end))
            continue
        gap = end.rho - start.rho
        inner = []
        for c, row in zip(nodes, matrix, strict=True):
            at = end if c == 1.0 else between(i, -math.log(start.rho + c * gap))
            inner.append(Stage(at, at.alpha / start.alpha, [at.alpha * gap * value for value in row]))
        final = Stage(end, end.alpha / start.alpha, [end.alpha * gap * value for value in weights])
        steps += stages(i, start, inner, final, anchored=anchored)
    return steps


def _register(tableau: str) -> None:
    def steps(path: Path, **options: Any) -> list[Step]:
        return rho_rk(path, tableau=tableau, **options)

    nodes, _, _, order = TABLEAUX[tableau]
    title = TITLES.get(tableau, f"{tableau[:-2].capitalize()}'s {'second' if order == 2 else 'third'}")
    add(
        Solver(
            f"rho-{tableau}",
            steps,
            f"{title} order Runge-Kutta method in sigma/alpha",
            "Zhang, Chen 2022, arXiv 2204.13902, section 4 (rhoRK)",
            order=order,
            nfe=1 + len(nodes),
            options={"schedule": None, "anchored": False},
        )
    )


for _name in TABLEAUX:
    _register(_name)
