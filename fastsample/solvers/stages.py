"""Stages inside a step: the levels between those of a path, and Runge-Kutta steps in rows of one state tensor."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from fastsample.path import Level, Path
from fastsample.schedules import Schedule, make_schedule
from fastsample.solvers.step import Mix, Step

CLOSE = 1e-9  # how well a path must fit a law (alpha^2 + sigma^2 = 1, ...) to be continued by it


class Between:
    """Levels between those of a path.

    With a ``schedule`` (or the name of one) its alpha, sigma and t.  Without: alpha and sigma follow the law that the
    path's own levels obey (alpha^2 + sigma^2 = 1, alpha = 1 or alpha + sigma = 1); t is exact where it is
    proportional to sigma/alpha or sigma, and else interpolated through the path's nearest four levels.

    Raises ``ValueError`` for a path that obeys none of these laws, and for a schedule whose levels are others.
    """

    def __init__(self, path: Path, schedule: str | Schedule | None = None) -> None:
        self.path, self.levels = path, path.levels()
        self.schedule = None if schedule is None else make_schedule(schedule)
        alpha, sigma = path.alpha, path.sigma
        laws = {"vp": np.hypot(alpha, sigma) - 1.0, "ve": alpha - 1.0, "flow": alpha + sigma - 1.0}
        fitting = [law for law, gap in laws.items() if (np.abs(gap) < CLOSE).all()]
        self.law = fitting[0] if fitting else ""
        self._finite = [k for k, level in enumerate(self.levels) if math.isfinite(level.lam)]
        if self.schedule is not None:
            made, _ = self.schedule.levels(path.lam[self._finite])
            if not np.allclose(made, alpha[self._finite], rtol=1e-6, atol=1e-12):
                raise ValueError(f"schedule: got {schedule!r}, whose alpha at the path's log-SNR is another")

    def __call__(self, i: int, lam: float) -> Level:
        """The level of half log-SNR ``lam`` in step i."""
        for end in (self.levels[i], self.levels[i + 1]):
            if lam == end.lam:
                return end
        if self.schedule is not None:
            alpha, sigma = (float(value) for value in self.schedule.levels(lam))
            return Level(alpha, sigma, self.t(i, lam))
        if self.law == "vp":
            alpha, sigma = math.exp(-0.5 * np.logaddexp(0.0, -2.0 * lam)), math.exp(-0.5 * np.logaddexp(0.0, 2.0 * lam))
        elif self.law == "ve":
            alpha, sigma = 1.0, math.exp(-lam)
        elif self.law == "flow":
            alpha, sigma = math.exp(-np.logaddexp(0.0, -lam)), math.exp(-np.logaddexp(0.0, lam))
        else:
            raise ValueError(
                "path: this solver asks between the levels, which are known where alpha^2 + sigma^2 = 1, alpha = 1 or "
                "alpha + sigma = 1; for another path give the option schedule"
            )
        t = self._proportional(alpha, sigma)
        return Level(alpha, sigma, self.t(i, lam) if t is None else t)

    def t(self, i: int, lam: float) -> float:
        """The path's time at half log-SNR ``lam`` in step i."""
        if self.schedule is not None:
            return float(self.schedule.network_time(self.schedule.t_of_lam(lam)))
        start, end = self.levels[i], self.levels[i + 1]
        if not math.isfinite(start.lam + end.lam):  # no log-SNR at one end: along the smaller of rho and 1/rho
            where = [math.exp(-v) if math.isinf(end.lam) else math.exp(v) for v in (start.lam, lam, end.lam)]
            return start.t + (end.t - start.t) * (where[1] - where[0]) / (where[2] - where[0])
        finite = self._finite
        first = min(max(i - finite[0] - 1, 0), max(len(finite) - 4, 0))  # only ends of a path are infinite
        near: list[Level] = []
        for k in finite[first : first + 4]:
            if not near or self.levels[k].lam != near[-1].lam:
                near.append(self.levels[k])
        logs = all(level.t > 0.0 for level in near)  # log t is close to a line in log-SNR where t is small
        value = 0.0
        for level in near:
            weight = math.log(level.t) if logs else level.t
            for other in near:
                if other is not level:
                    weight *= (lam - other.lam) / (level.lam - other.lam)
            value += weight
        value = math.exp(value) if logs else value
        return min(max(value, min(start.t, end.t)), max(start.t, end.t))

    def _proportional(self, alpha: float, sigma: float) -> float | None:
        path = self.path
        if (path.alpha > 0).all() and np.allclose(path.t, path.rho, rtol=CLOSE, atol=0.0):
            return sigma / alpha
        factor = path.t[0] / path.sigma[0] if path.sigma[0] > 0 else math.nan
        return float(factor) * sigma if np.allclose(path.t, factor * path.sigma, rtol=CLOSE, atol=0.0) else None


class Inside:
    """Levels anywhere on a path, by half log-SNR; see ``Between``."""

    def __init__(self, path: Path, schedule: str | Schedule | None = None) -> None:
        self._lam, self._between = path.lam, Between(path, schedule)

    def __call__(self, lam: float) -> Level:
        step = int(np.searchsorted(self._lam, lam, side="right")) - 1
        return self._between(min(max(step, 0), len(self._lam) - 2), lam)


@dataclass(frozen=True)
class Stage:
    """``y = a x + sum_j weights[j] D_j + c xi``: the state at the level ``at``, made of the step's start and its calls.

    Each stage has a noise of its own.
    """

    at: Level
    a: float
    weights: Sequence[float]
    c: float = 0.0


def stages(
    i: int, start: Level, inner: Sequence[Stage], end: Stage, form: str = "eps", anchored: bool = False
) -> list[Step]:
    """The rows of one Runge-Kutta step: calls at the start and at every inner stage.

    The start is recovered from the stage's own state, x = (y - sum_j weights_j D_j - c xi) / a with the noise made
    again, so that nothing else is kept; ``anchored`` keeps it (the same numbers unless somebody edits the state between
    the calls); with one inner stage, what the last row needs of the start and of its call is one tensor.
    """
    if anchored and len(inner) == 1:
        middle = inner[0]
        whole: dict[str, Mix] = {"anchor": {"x": end.a, 0: end.weights[0]}}
        first = Step(i, start, middle.a, (middle.weights[0],), middle.c, form, keep=whole)
        return [first, Step(i, middle.at, 0.0, (end.weights[1],), end.c, form, saved={"anchor": 1.0})]
    steps = []
    before = Stage(start, 1.0, ())
    for m, after in enumerate([*inner, end]):
        ratio = 0.0 if anchored and m else after.a / before.a
        b = [after.weights[j] if j < len(after.weights) else 0.0 for j in range(m + 1)]
        for j, weight in enumerate(before.weights):
            b[j] -= ratio * weight
        saved = {"anchor": after.a} if anchored and m else {}
        keep: dict[str, Mix] = {"anchor": {"x": 1.0}} if anchored and not m and inner else {}
        mixed = tuple(reversed(b))
        steps.append(Step(i, before.at, ratio, mixed, after.c, form, saved=saved, keep=keep, past=-ratio * before.c))
        before = after
    return steps
