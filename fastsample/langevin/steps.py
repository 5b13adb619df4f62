"""Step sizes of a run: one number, or one per iteration."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, TypeVar

Steps = Callable[[int], float]
Made = TypeVar("Made")


def step_sizes(step_size: Any) -> Steps:
    """Iteration -> step size, of a number or a function of the iteration.

    Raises ``ValueError`` for one that is not finite or not above 0, ``TypeError`` for anything else.
    """

    def check(value: Any) -> float:
        if isinstance(value, bool) or not isinstance(value, (int, float)):
            raise TypeError(
                f"step_size: got {type(value).__name__}, allowed is a number > 0 or a function that gives it"
            )
        if not 0.0 < value < math.inf:
            raise ValueError(f"step_size: got {value!r}, allowed are finite numbers > 0")
        return float(value)

    if callable(step_size):
        function = step_size
        return lambda number: check(function(number))
    constant = check(step_size)
    return lambda number: constant


def remembered(make: Callable[[float], Made]) -> Callable[[float], Made]:
    """``make`` that keeps what it made last: most runs have one step size."""
    kept: list[tuple[float, Made]] = []

    def get(value: float) -> Made:
        if not kept or kept[0][0] != value:
            kept[:] = [(value, make(value))]
        return kept[0][1]

    return get
