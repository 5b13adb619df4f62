"""SA-Solver: stochastic exponential Adams predictor and corrector with a free noise level tau.

The reverse SDEs of all tau have the same marginals: tau = 0 is the probability flow, tau = 1 the usual SDE.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import pairwise
from typing import Any

from fastsample.path import Level, Path, step_size
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
from fastsample.solvers.registry import Solver, add, check_choice, check_range
from fastsample.solvers.step import Step

Tau = float | Sequence[float]


def sa_solver(
    path: Path,
    *,
    predictor_order: int,
    corrector_order: int,
    form: str,
    tau: Tau,
    tau_window: Sequence[float] | None,
    tau_at: str,
    mode: str,
    evaluate: str,
    lower_order_final: bool,
    anchored: bool,
) -> list[Step]:
    """SA-Solver(p, c).

    Args:
        predictor_order: p, number of values of D that the predictor looks at, 1 to 4.
        corrector_order: c, number of values of the corrector with the one at the end of the step, 1 to 4; 0 for none.
        form: what is interpolated: "x0" (data prediction, recommended) or "eps".
        tau: noise level: a number, one number per step, or one per level of the path.
        tau_window: None, or (low, high): tau is 0 where the path's t is outside [low, high].
        tau_at: where a step reads tau and the window: its "end" (the authors' program) or its "start" (diffusers).
        mode: "few_steps": the weights of two values in the x0 form are those of bh1, the last step is of first order
            without noise.  "more_steps": exact weights, a correction at the end and one call more whose x0_hat is the
            result (N + 2 calls; a path to sigma = 0 ends there without them).  "diffusers": as few_steps, with noise
            in the last step if its tau is not 0.
        evaluate: "PEC", or "PECE": one call more on every corrected state.
        lower_order_final: orders at most N - i and N - i + 1 (the authors' program always does that).
        anchored: every step restarts from the saved corrected state with its noise (one more tensor), for callers
            that edit the state between the calls; the same numbers otherwise.
    """
    p, c = check_count("predictor_order", predictor_order, 1, 4), check_count("corrector_order", corrector_order, 0, 4)
    check_choice("form", form, ("x0", "eps"))
    check_choice("mode", mode, ("few_steps", "more_steps", "diffusers"))
    check_choice("evaluate", evaluate, ("PEC", "PECE"))
    check_choice("tau_at", tau_at, ("end", "start"))
    check_flag("lower_order_final", lower_order_final)
    check_flag("anchored", anchored)
    levels, n = check_forward(path), path.steps
    noise = noise_levels(levels, tau, tau_window, tau_at)
    more = mode == "more_steps" and levels[-1].sigma > 0.0
    two = "bh1" if form == "x0" and mode != "more_steps" else "exact"
    moves = []
    for i, (start, end) in enumerate(pairwise(levels)):
        if same(start, end):
            moves.append(identity_move(i))
            continue
        if form == "eps" and start.alpha == 0.0:
            moves.append(from_noise(levels, noise[i] ** 2))
            continue
        if end.sigma == 0.0 or (mode == "few_steps" and i + 1 == n):
            moves.append(first_order(form, start, end, i))
            continue
        # while the orders rise the authors' program does not lower them
        lower = lower_order_final and i + 1 >= max(p, c - 1)
        most, most_c = (min(p, n - i), min(c, n - i + 1)) if lower else (p, c)
        before = past(levels, i, max(most - 1, most_c - 2))
        tau2 = noise[i] ** 2
        a, predict, strength = exponential(form, levels, i, before[: most - 1], two, tau2)
        correct = None
        possible = math.isfinite(step_size(start, end)) or two != "bh1"  # bh1 has no limit for an infinite step
        if c > 0 and possible and (i + 1 < n or more):
            if most_c == 1:  # the new value alone
                correct = {i + 1: sum(exponential(form, levels, i, (), two, tau2)[1].values())}
            else:
                correct = exponential(form, levels, i, [i + 1, *before[: most_c - 2]], two, tau2)[1]
        moves.append(Move(a, predict, strength, correct))
    return chain(path, moves, form, anchored=anchored, again=evaluate == "PECE", denoise=more)


def noise_levels(levels: Sequence[Level], tau: Tau, window: Sequence[float] | None, at: str) -> list[float]:
    """tau of every step.  Raises ``ValueError`` that names ``tau`` or ``tau_window``."""
    n = len(levels) - 1
    first = 1 if at == "end" else 0
    read = levels[first : first + n]
    if isinstance(tau, (int, float)):
        values = [check_range("tau", tau, 0.0)] * n
    elif not isinstance(tau, (list, tuple)) or len(tau) not in (n, n + 1):
        raise ValueError(f"tau: got {tau!r}, allowed are a number, {n} numbers (steps) or {n + 1} (levels)")
    else:
        values = [check_range("tau", value, 0.0) for value in tau]
        if len(values) == n + 1:
            values = values[first : first + n]
    if window is None:
        return values
    try:
        low, high = (float(value) for value in window)
    except (TypeError, ValueError):
        raise ValueError(f"tau_window: got {window!r}, allowed are None or (low, high)") from None
    if not low <= high:
        raise ValueError(f"tau_window: got {window!r}, allowed are None or (low, high) with low <= high")
    return [value if low <= level.t <= high else 0.0 for value, level in zip(values, read, strict=True)]


OPTIONS: dict[str, Any] = {
    "predictor_order": 3,
    "corrector_order": 4,
    "form": "x0",
    "tau": 1.0,
    "tau_window": None,
    "tau_at": "end",
    "mode": "few_steps",
    "evaluate": "PEC",
    "lower_order_final": True,
    "anchored": False,
}

add(
    Solver(
        "sa",
        sa_solver,
        "stochastic predictor-corrector in log-SNR with a free noise level",
        "Xue, Yi, Luo, Zhang, Sun, Li, Ma 2023, arXiv 2309.05019, algorithm 1",
        order=2,
        stochastic=True,
        aliases=("sa-solver",),
        options=OPTIONS,
    )
)
