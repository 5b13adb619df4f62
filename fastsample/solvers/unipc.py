"""UniPC: exponential Adams predictor and corrector on x0_hat or eps_hat, one network call per step."""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import pairwise
from typing import Any

from fastsample.path import Path, step_size
from fastsample.solvers.first_order import same
from fastsample.solvers.predictor_corrector import (
    Move,
    chain,
    check_count,
    check_flag,
    check_forward,
    exponential,
    first_order,
    from_noise,
    identity_move,
    past,
)
from fastsample.solvers.registry import Solver, add, check_choice
from fastsample.solvers.step import Step

# B(h) of the paper cancels wherever a system is solved; it is left where two nodes are given the weight 1/2
VARIANTS = {"bh1": "bh1", "bh2": "mid", "exact": "exact"}


def unipc(
    path: Path,
    *,
    order: int,
    variant: str,
    form: str,
    corrector: str,
    disable_corrector: Sequence[int],
    lower_order_final: bool,
    anchored: bool,
) -> list[Step]:
    """UniPC of order p: the predictor looks at p values of D, the corrector at the one after the step too.

    The value that the corrector waits for is that of the next step's own call, so the last step is not corrected.
    Order of convergence: p + 1, at most 3 (the first step), without ``lower_order_final``; 2 with it, since the last
    step is then one of first order.

    Args:
        order: 1 to 4; it rises over the first steps.
        variant: weights where there are two values: "bh1", "bh2" (one half of B(h)) or "exact" (varying
            coefficients; the corrector of the authors' program for these drops terms and is not reproduced).
        form: what is interpolated: "x0" or "eps".
        corrector: "all" steps, the "first" alone (it lifts the order of any multistep predictor, whose first step is
            of first order, at no cost), or "none".
        disable_corrector: steps that are not corrected, counted from the start of this path.
        lower_order_final: order at most N - i.  A step to sigma = 0 is of first order in any case.
        anchored: for callers that edit the state between the calls (inpainting masks): every step restarts from the
            saved corrected state, as in stock programs.  One more tensor; the same numbers otherwise.
    """
    check_count("order", order, 1, 4)
    check_choice("variant", variant, tuple(VARIANTS))
    check_choice("form", form, ("x0", "eps"))
    check_choice("corrector", corrector, ("all", "first", "none"))
    check_flag("lower_order_final", lower_order_final)
    check_flag("anchored", anchored)
    skipped = check_steps("disable_corrector", disable_corrector)
    levels, n, two = check_forward(path), path.steps, VARIANTS[variant]
    moves = []
    for i, (start, end) in enumerate(pairwise(levels)):
        if same(start, end):
            moves.append(identity_move(i))
            continue
        if form == "eps" and start.alpha == 0.0:
            moves.append(from_noise(levels))
            continue
        if end.sigma == 0.0:
            moves.append(first_order(form, start, end, i))
            continue
        limit = min(order, n - i) if lower_order_final else order
        before = past(levels, i, limit - 1)
        a, predict, _ = exponential(form, levels, i, before, two)
        correct = None
        wanted = i not in skipped and (corrector == "all" or (corrector == "first" and i == 0))
        # bh1 has no limit for an infinite step
        possible = math.isfinite(step_size(start, end)) or two != "bh1"
        if wanted and possible and i + 1 < n:
            correct = exponential(form, levels, i, [i + 1, *before], two)[1]
        moves.append(Move(a, predict, correct=correct))
    return chain(path, moves, form, anchored=anchored)


def check_steps(name: str, value: Any) -> frozenset[int]:
    """Step numbers as a set; ``ValueError`` that names the option for anything but whole numbers >= 0."""
    listed = isinstance(value, (list, tuple, range, set, frozenset))
    if not listed or not all(isinstance(i, int) and not isinstance(i, bool) and i >= 0 for i in value):
        raise ValueError(f"{name}: got {value!r}, allowed is a list of step numbers >= 0")
    return frozenset(value)


add(
    Solver(
        "unipc",
        unipc,
        "predictor-corrector in log-SNR on x0_hat or eps_hat",
        "Zhao, Bai, Rao, Zhou, Lu 2023, arXiv 2302.04867, algorithms 5 to 8",
        order=2,
        aliases=("uni-pc",),
        options={
            "order": 2,
            "variant": "bh2",
            "form": "x0",
            "corrector": "all",
            "disable_corrector": (),
            "lower_order_final": True,
            "anchored": False,
        },
    )
)
