"""Predictor-corrector steps as one row per network call.

Predictor and corrector of a step share the weight ``a`` of the state and the noise, so the corrected state is the
predicted one plus a combination of D:  x_i = x^p_i + sum_k (C_k - P_k) D_k.  The correction becomes known when the
network has answered on x^p_i, in the same row that predicts x^p_{i+1}: it is folded into that row, and neither the
corrected state nor the noise has to be kept.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from fastsample.path import Level, Path, step_size
from fastsample.solvers.calculus import adams
from fastsample.solvers.first_order import same
from fastsample.solvers.step import Mix, Step

Weights = Mapping[int, float]
"""Weights of D by the level of the path at which the network was asked."""


@dataclass(frozen=True)
class Move:
    """One step of the path: ``x' = a x + sum_k predict[k] D_k + c xi``; ``correct`` takes the place of ``predict``
    once the network was asked at the end of the step (None: it never does).  ``form``: that of D if it is another
    than that of the run, in a step that starts afresh and that no later one looks back to."""

    a: float
    predict: Weights
    c: float = 0.0
    correct: Weights | None = None
    form: str | None = None


def check_flag(name: str, value: Any) -> bool:
    """``value`` if it is a bool; else ``ValueError`` that names the option."""
    if not isinstance(value, bool):
        raise ValueError(f"{name}: got {value!r}, allowed are True and False")
    return value


def check_count(name: str, value: Any, low: int, high: int) -> int:
    """``value`` if it is a whole number in [low, high]; else ``ValueError`` that names the option."""
    if not isinstance(value, int) or isinstance(value, bool) or not low <= value <= high:
        raise ValueError(f"{name}: got {value!r}, allowed are whole numbers from {low} to {high}")
    return value


def check_forward(path: Path) -> tuple[Level, ...]:
    """Levels of a path from noise to data; ``ValueError`` for one the other way."""
    if path.reverse:
        raise ValueError("path: this solver runs from noise to data; see Path.reversed()")
    return path.levels()


def usable(levels: Sequence[Level], i: int, candidates: Iterable[int], count: int | None = None) -> list[int]:
    """The first ``count`` candidates whose levels differ from level i and from each other and are not infinitely far
    away."""
    found: list[int] = []
    for k in candidates:
        if len(found) == count:
            break
        gap = step_size(levels[i], levels[k])
        if math.isfinite(gap) and not any(same(levels[j], levels[k]) for j in (i, *found)):
            found.append(k)
    return found


def past(levels: Sequence[Level], i: int, count: int) -> list[int]:
    """The last ``count`` usable levels before level i, the nearest first."""
    return usable(levels, i, range(i - 1, -1, -1), max(count, 0))


def exponential(
    form: str, levels: Sequence[Level], i: int, others: Sequence[int], variant: str, tau2: float = 0.0
) -> tuple[float, dict[int, float], float]:
    """Exponential Adams step from level i to i + 1 on D at level i and at ``others`` (i + 1: a corrector).

    ``variant`` is that of two nodes (``calculus.moments``); more nodes are exact.
    """
    start, end = levels[i], levels[i + 1]
    h = step_size(start, end)
    # a corrector's node is 1 also where h is infinite
    places = [1.0 if k == i + 1 else step_size(start, levels[k]) / h for k in others]
    a, b, c = adams(form, start, end, places, variant if len(places) == 1 else "exact", tau2)
    return a, dict(zip((i, *others), b, strict=True)), c


def from_noise(levels: Sequence[Level], tau2: float = 0.0) -> Move:
    """The step from alpha = 0: of first order on x0_hat, since eps_hat says nothing of the data there."""
    a, predict, c = exponential("x0", levels, 0, (), "exact", tau2)
    return Move(a, predict, c, form="x0")


def first_order(form: str, start: Level, end: Level, i: int) -> Move:
    """The deterministic first-order step; the only one to sigma = 0."""
    a = end.sigma / start.sigma if form == "x0" else end.alpha / start.alpha
    return Move(a, {i: end.alpha - a * start.alpha if form == "x0" else end.sigma - a * start.sigma})


def chain(
    path: Path,
    moves: Sequence[Move],
    form: str,
    *,
    anchored: bool = False,
    again: bool = False,
    denoise: bool = False,
) -> list[Step]:
    """The rows of the moves.

    Args:
        anchored: restart every step from a saved tensor instead of the state that the network saw.  The numbers are
            the same unless somebody edits the state between the calls: then the corrector drops the edit.
        again: ask the network once more on every corrected state (PECE).
        denoise: correct the last state too and return its x0_hat (two more calls).
    """
    levels = path.levels()
    steps: list[Step] = []
    made: dict[int, int] = {}  # level -> the call that gave D there
    waiting: tuple[Weights, Weights] | None = None  # (correct, predict) of the step that led here

    def b(*parts: tuple[float, Weights]) -> tuple[float, ...]:
        weights = [0.0]
        for factor, part in parts:
            for level, weight in part.items():
                back = len(steps) - made[level]
                weights += [0.0] * (back + 1 - len(weights))
                weights[back] += factor * weight
        return tuple(weights)

    def difference(pair: tuple[Weights, Weights]) -> dict[int, float]:
        correct, predict = pair
        return {k: correct.get(k, 0.0) - predict.get(k, 0.0) for k in {**predict, **correct}}

    def corrected(i: int, pair: tuple[Weights, Weights]) -> Step:
        if anchored:
            return Step(i, levels[i], 0.0, b((1.0, pair[0])), form=form, saved={"anchor": 1.0})
        return Step(i, levels[i], 1.0, b((1.0, difference(pair))), form=form)

    for i, move in enumerate(moves):
        made[i] = len(steps)
        if again and waiting is not None:
            steps.append(corrected(i, waiting))
            made[i], waiting = len(steps), None
        follows = move.correct is not None
        keep: dict[str, Mix] = {}
        if waiting is None:
            if anchored and follows:
                keep["anchor"] = {"x": move.a, "xi": move.c}
            steps.append(Step(i, levels[i], move.a, b((1.0, move.predict)), move.c, move.form or form, keep=keep))
        elif anchored:
            if follows:
                mixed: Mix = {**dict(enumerate(b((move.a, waiting[0]))))}
                keep["anchor"] = {"anchor": move.a, "xi": move.c, **mixed}
            weights = b((1.0, move.predict), (move.a, waiting[0]))
            steps.append(Step(i, levels[i], 0.0, weights, move.c, form, saved={"anchor": move.a}, keep=keep))
        else:
            weights = b((1.0, move.predict), (move.a, difference(waiting)))
            steps.append(Step(i, levels[i], move.a, weights, move.c, form))
        waiting = None if move.correct is None else (move.correct, move.predict)
    if denoise:
        n = len(moves)
        made[n] = len(steps)
        if waiting is not None:
            steps.append(corrected(n, waiting))
        steps.append(Step(n, levels[n], 0.0, (1.0,)))
    return steps


def identity_move(i: int) -> Move:
    """A repeated level: nothing moves (a correction that waits is still made)."""
    return Move(1.0, {i: 0.0})
