"""DPM-Solver and DPM-Solver++ singlestep: groups of one to three calls, each group a Runge-Kutta step in log-SNR.

The path has one level per call: a group of order k covers k steps of it, and its stages are the levels between.  The
k-th call of a group leads from the group's start to the next level, by an exponential Adams row through the predictions
of the group: nodes are the places of the calls in the group, measured in the step.
Lu et al. 2022, arXiv 2206.00927 (algorithms 1 and 2) and 2211.01095 (algorithm 1).
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from itertools import pairwise
from typing import Any

from fastsample.path import SAME_LEVEL, Level, Path, step_size
from fastsample.solvers.calculus import adams
from fastsample.solvers.first_order import identity, pairs, same, transfer
from fastsample.solvers.registry import Solver, add, check_choice, check_range
from fastsample.solvers.stages import Stage, stages
from fastsample.solvers.step import Step

TYPES = {"midpoint": "mid", "heun": "exact"}


def order_list(order: int, calls: int, fixed: bool = False) -> list[int]:
    """Orders of the groups of a run of ``calls`` network calls, as in the authors' code.

    ``fixed``: groups of ``order`` as often as they fit, then one of what is left.
    """
    if fixed or order == 1:
        return [order] * (calls // order) + ([calls % order] if calls % order else [])
    if order == 2:
        return [2] * (calls // 2) + [1] * (calls % 2)
    full, rest = divmod(calls, 3)
    if rest == 0:
        return [3] * (full - 1) + [2, 1]
    return [3] * full + [rest]


def singlestep(
    path: Path,
    *,
    form: str,
    order: int,
    solver_type: str,
    inner: str,
    third: str,
    fixed: bool,
    orders: Sequence[int] | None,
    eta: float,
    anchored: bool | None,
) -> list[Step]:
    """Groups of up to ``order`` calls.

    Args:
        solver_type: "midpoint" (the authors' "dpmsolver") or "heun" ("taylor").
        inner: the second call of a group of three: "exact" as the authors, or "type" (by ``solver_type``, as
            diffusers).
        third: last call of a group of three in the stochastic heun form: "exact", or "diffusers" (its sign error).
        fixed: no lower orders at the end.
        orders: the orders of the groups themselves; their sum is the number of steps.  None: ``order_list``, with a
            last group of one where the path ends at sigma = 0.
        eta: tau^2, noise level of the SDE; fresh noise in every call, all from the start of the group.
        anchored: keep the start of a group instead of recovering it from the stages, for which the noise of the call
            before is made again.  None: with noise, if a row has an output for it.
    """
    check_choice("solver_type", solver_type, tuple(TYPES))
    check_choice("inner", inner, ("exact", "type"))
    check_choice("third", third, ("exact", "diffusers"))
    tau2, levels, n = check_range("eta", eta, 0.0), path.levels(), path.steps
    pairs(path, "singlestep")
    if form == "eps" and (levels[-1].sigma == 0.0 or levels[0].alpha == 0.0):
        raise ValueError("path: a solver on eps_hat needs alpha > 0 at its start and sigma > 0 at its end")
    groups = _groups(order, n, fixed, orders, levels[-1].sigma == 0.0)
    steps: list[Step] = []
    first = 0
    for size in groups:
        steps += _group(first, levels[first : first + size + 1], form, solver_type, inner, third, tau2, anchored)
        first += size
    return steps


def _groups(order: int, n: int, fixed: bool, orders: Sequence[int] | None, clean: bool) -> list[int]:
    if orders is None:
        return [*order_list(order, n - 1, fixed), 1] if clean and n > 1 else order_list(order, n, fixed)
    found = list(orders)
    if not all(isinstance(k, int) and 1 <= k <= order for k in found) or sum(found) != n:
        raise ValueError(f"orders: got {orders!r}, allowed are whole numbers 1..{order} whose sum is {n}")
    return found


def _group(
    first: int,
    levels: Sequence[Level],
    form: str,
    solver_type: str,
    inner: str,
    third: str,
    tau2: float,
    anchored: bool | None,
) -> list[Step]:
    start, size = levels[0], len(levels) - 1
    if size == 1 or start.alpha == 0.0 or levels[-1].sigma == 0.0 or _degenerate(levels):
        return [_single(first + k, levels[k], levels[k + 1], form, tau2) for k in range(size)]
    places = [step_size(start, level) for level in levels]  # in log-SNR from the start of the group
    made = []
    for k in range(1, size + 1):
        asked = _asked(k, size, solver_type)
        variant = _variant(k, size, solver_type, inner, third, tau2)
        a, b, c = adams(form, start, levels[k], [places[j] / places[k] for j in asked], variant, tau2)
        weights = [0.0] * k
        for j, weight in zip([0, *asked], b, strict=True):
            weights[j] = weight
        made.append(Stage(levels[k], a, weights, c))
    rows = stages(first, start, made[:-1], made[-1], form, tau2 > 0.0 if anchored is None else anchored)
    return [dataclasses.replace(row, index=first + k) for k, row in enumerate(rows)]


def _asked(k: int, size: int, solver_type: str) -> list[int]:
    """Which calls of the group, beside the first, the k-th row uses."""
    if k == 3 and solver_type == "heun":
        return [1, 2]
    return [] if k == 1 else [k - 1]


def _variant(k: int, size: int, solver_type: str, inner: str, third: str, tau2: float) -> str:
    if k == 2:
        return "exact" if size == 3 and inner == "exact" else TYPES[solver_type]
    if k == 3 and solver_type == "heun" and third == "diffusers" and tau2 > 0.0:
        return "3s-diffusers"
    return "exact"


def _degenerate(levels: Sequence[Level]) -> bool:
    return any(abs(step_size(a, b)) < SAME_LEVEL for a, b in pairwise(levels))


def _single(index: int, start: Level, end: Level, form: str, tau2: float) -> Step:
    if same(start, end):
        return identity(index, start, form)
    if end.sigma == 0.0 or start.alpha == 0.0:
        return transfer(index, start, end)
    a, b, c = adams(form, start, end, (), "exact", tau2)
    return Step(index, start, a, tuple(b), c, form)


def _family(name: str, form: str, stochastic: bool, orders: Sequence[int], paper: str) -> None:
    for order in orders:

        def steps(path: Path, order: int = order, **options: Any) -> list[Step]:
            return singlestep(path, form=form, order=order, **{"eta": 0.0, **options})

        options: dict[str, Any] = {
            "solver_type": "midpoint",
            "inner": "exact",
            "third": "exact",
            "fixed": False,
            "orders": None,
            "anchored": None,
        }
        if stochastic:
            options["eta"] = 1.0
        full = f"{name}-{order}s"
        quantity, kind = ("x0_hat" if form == "x0" else "eps_hat"), "SDE" if stochastic else "ODE"
        add(
            Solver(
                full,
                steps,
                f"exponential Runge-Kutta on {quantity} of the diffusion {kind}, {order} calls per group of levels",
                paper,
                order=1 if stochastic else order,
                stochastic=stochastic,
                aliases=(full.replace("dpm", "dpm-solver", 1),),
                options=options,
                ends="clean" if form == "x0" else "noisy",
                lean={"anchored": False} if stochastic else {},
            )
        )


_family("dpmpp", "x0", False, (2, 3), "Lu et al. 2022, arXiv 2211.01095, algorithm 1")
_family("dpm", "eps", False, (2, 3), "Lu et al. 2022, arXiv 2206.00927, algorithms 1 and 2")
_family("sde-dpmpp", "x0", True, (2, 3), "Lu et al. 2022, arXiv 2211.01095, in the form of diffusers")
