"""Forward-value sampler (F-DDIM): first order, one call per step, made at the *end* of the step.

DDIM holds x0_hat of the start of a step; here it is that of the end, at a lookahead point made of earlier eps_hat, so
that it costs no call.  The leading error is that of DDIM with the opposite sign: the mean of both is of second order.

The network sees the lookahead, so slot x holds it between calls and the state itself is kept in another slot; the last
row writes the state to x.  With x_k the state, y_k the lookahead and h the log-SNR step from k - 1 to k,

    x_k = (sigma_k/sigma_{k-1}) x_{k-1} + (1 - e^{-h}) (y_k - sigma_k eps_hat(y_k))
    y_{k+1} = (alpha_{k+1}/alpha_k) x_k + sum_j beta_j eps_hat(y_{k-j})          exponential Adams on eps_hat

and before the first call eps_hat is guessed as x / sqrt(alpha^2 + sigma^2).
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from itertools import pairwise

from fastsample.path import Level, Path, step_size
from fastsample.solvers.calculus import adams
from fastsample.solvers.first_order import same
from fastsample.solvers.predictor_corrector import check_count, check_flag
from fastsample.solvers.registry import Solver, add
from fastsample.solvers.step import Mix, Step


@dataclass(frozen=True)
class Lookahead:
    """``y_{k+1} = a x_k + sum_m b[m] eps_m``; eps_0 is the guess, eps_m that of the call at level m."""

    a: float
    b: dict[int, float]


def _lookahead(levels: tuple[Level, ...], k: int, order: int) -> Lookahead:
    start, end = levels[k], levels[k + 1]
    if same(start, end):
        return Lookahead(1.0, {})
    if start.alpha == 0.0:  # limit of the first lookahead: the guess is x / sigma and all of it is noise
        return Lookahead(0.0, {k: end.sigma})
    past: list[int] = []  # a repeated level says nothing new, pure noise is infinitely far away
    for m in range(k - 1, max(k - order, -1), -1):
        if levels[m].alpha > 0.0 and not any(same(levels[j], levels[m]) for j in (k, *past)):
            past.append(m)
    h = step_size(start, end)
    a, b, _ = adams("eps", start, end, [step_size(start, levels[m]) / h for m in past])
    return Lookahead(a, dict(zip((k, *past), b, strict=True)))


def forward_value(path: Path, *, order: int, average: bool) -> list[Step]:
    """The rows; the call of step k is told level k + 1.

    Args:
        order: of the lookahead, 1 to 3.  The sampler is of first order in any case; 1 is the paper's and the best.
        average: the mean with DDIM, which is of second order, at two calls per step.  Both runs go side by side.
    """
    check_count("order", order, 1, 3)
    check_flag("average", average)
    if path.reverse:
        raise ValueError("path: 'forward-value' runs from noise to data, got a path the other way; see Path.reversed()")
    if path.sigma[-1] == 0.0:
        raise ValueError(
            "path: 'forward-value' asks its network at the last level, where sigma must be > 0; end the path there "
            "(make_path with final='end' or t_min)"
        )
    levels = path.levels()
    ahead = [_lookahead(levels, k, order) for k in range(path.steps)]
    return _averaged(levels, ahead) if average else _alone(levels, ahead)


def _start(levels: tuple[Level, ...], first: Lookahead) -> tuple[float, float]:
    """``(scale, guess)``: the first lookahead is scale times x_0, the first eps_hat is guess times x_0."""
    guess = 1.0 / math.hypot(levels[0].alpha, levels[0].sigma)
    return first.a + guess * first.b.get(0, 0.0), guess


def _forward(start: Level, end: Level) -> tuple[float, float]:
    """Weights of x_{k-1} and of ``y - sigma eps_hat`` in x_k."""
    return end.sigma / start.sigma, -math.expm1(-step_size(start, end))


def _alone(levels: tuple[Level, ...], ahead: list[Lookahead]) -> list[Step]:
    scale, guess = _start(levels, ahead[0])
    steps: list[Step] = []
    n = len(ahead)
    for k in range(n):
        end = levels[k + 1]
        c, e = _forward(levels[k], end)
        # the state after this call by source; x is the lookahead, of which x_0 is a multiple
        state: dict[str | int, float] = {"x": e, 0: -e * end.sigma}
        if k == 0:
            state["x"] += c / scale
        else:
            state["state"] = c
        if k + 1 == n:
            steps.append(_step(k, end, state))
            continue
        new = {source: ahead[k + 1].a * weight for source, weight in state.items()}
        for m, weight in ahead[k + 1].b.items():
            if m > 0:
                new[k + 1 - m] = new.get(k + 1 - m, 0.0) + weight
            elif k == 0:
                new["x"] += weight * guess / scale
            else:  # k = 1: the first row made x_1 of x_0 and of the call before, so x_0 is known
                c1, e1 = _forward(levels[0], levels[1])
                share = weight * guess / (c1 + e1 * scale)
                new["state"] = new.get("state", 0.0) + share
                new[1] = new.get(1, 0.0) + share * e1 * levels[1].sigma
        steps.append(_step(k, end, new, {"state": state}))
    return [replace(steps[0], scale=scale), *steps[1:]]


def _averaged(levels: tuple[Level, ...], ahead: list[Lookahead]) -> list[Step]:
    """A call of DDIM at level k, one of the forward value at level k + 1, and so on; each makes room for the other."""
    scale, guess = _start(levels, ahead[0])
    needs_guess = any(0 in look.b for look in ahead[1:])
    steps: list[Step] = []
    for k, (start, end) in enumerate(pairwise(levels)):
        a = 1.0 if same(start, end) else end.sigma / start.sigma
        keep: dict[str, Mix] = {"ddim": {"x": a, 0: 0.0 if same(start, end) else end.alpha - start.alpha * a}}
        new: dict[str | int, float] = {"x": scale}
        if k == 0 and needs_guess:
            keep["guess"] = {"x": guess}
        if k > 0:
            new = {"state": ahead[k].a}
            for m, weight in ahead[k].b.items():  # the call of the forward value at level m is number 2 m - 1
                new["guess" if m == 0 else 2 * (k - m) + 1] = weight
        steps.append(_step(k, start, new, keep, form="x0"))
        c, e = _forward(start, end)
        state: dict[str | int, float] = {"x": e, 0: -e * end.sigma}
        if k == 0:
            state["x"] += c / scale
        else:
            state["state"] = c
        if k + 1 < len(ahead):
            steps.append(_step(k, end, {"ddim": 1.0}, {"state": state}))
        else:
            half = {source: 0.5 * weight for source, weight in state.items()}
            steps.append(_step(k, end, {**half, "ddim": 0.5}))
    return steps


def _step(index: int, at: Level, x: Mix, keep: dict[str, Mix] | None = None, form: str = "eps") -> Step:
    depth = max((j for j in x if isinstance(j, int)), default=0)
    b = tuple(x.get(j, 0.0) for j in range(depth + 1))
    saved = {name: weight for name, weight in x.items() if isinstance(name, str) and name != "x"}
    return Step(index, at, x.get("x", 0.0), b, form=form, saved=saved, keep=keep or {})


add(
    Solver(
        "forward-value",
        forward_value,
        "DDIM with x0_hat of the end of the step, at a lookahead; average=True: mean with DDIM, second order",
        "Jiao, Li, Cai, Li 2025, arXiv 2512.24927",
        order=1,
        aliases=("f-ddim", "f-dpm-solver"),
        options={"order": 1, "average": False},
        ends="noisy",
    )
)
