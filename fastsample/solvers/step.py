"""One abstract update of a linear solver, before it knows the network."""

from __future__ import annotations

from dataclasses import dataclass

from fastsample.path import Level


@dataclass(frozen=True)
class Step:
    """``x' = a x + b[0] D + sum_j b[j] D_{-j} + raw eps_hat + c xi`` after one network call.

    Args:
        index: step of the path that the call belongs to.
        at: level of the state that the network sees, and the time it is told.
        a, b, c: weights of the state, of D of this call and of the calls before it, of the noise.
        form: what D is, ``"x0"`` or ``"eps"``; the same in all steps of a run that look back.
        raw: weight of eps_hat made of the network's output *before* x0_hat was limited (DDIM keeps it).
        lift: standard deviation of the noise added to the state before the call (churn); folded into the row before.
    """

    index: int
    at: Level
    a: float
    b: tuple[float, ...]
    c: float = 0.0
    form: str = "x0"
    raw: float = 0.0
    lift: float = 0.0
