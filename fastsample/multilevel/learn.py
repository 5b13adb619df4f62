"""Learned probabilities: how often to ask each level at each time, by gradient descent on error plus cost.

The error is the squared distance of the last state to that of the last level alone, with the same start and noise
(Jacot 2026, arXiv 2603.24594).  Its gradient has two parts: the Bernoullis depend on p, by the score factor
``(B - p) / (p (1 - p))``; and so do the weights ``B / p`` on a given draw, by the derivative of the trajectory.  The
second is taken forwards, along random directions of the parameters, with a difference of two network calls in place of
each derivative of a network: nothing of a trajectory is stored and any network will do.  An offline tool: the solver
gets a table.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from fastsample.models.ladder import Ladder
from fastsample.multilevel.base import Base
from fastsample.path import Array, Path

LEAST = 1e-3  # probabilities stay above it, so that no draw weighs more than 1 / LEAST


@dataclass(frozen=True, eq=False)
class Learned:
    """``p`` ``(N, K + 1)`` for the solver; ``history``: (error, cost) of every step of the descent."""

    p: Array
    history: tuple[tuple[float, float], ...]


def learn(
    ladder: Ladder,
    shape: Sequence[int],
    path: Path,
    *,
    price: float,
    start: Sequence[float],
    knots: int = 4,
    rounds: int = 200,
    directions: int = 4,
    rate: float = 0.1,
    table: str = "ddpm-small",
    eta: float = 0.0,
    cond: Any = None,
    seed: int = 0,
    dtype: torch.dtype = torch.float64,
) -> Learned:
    """Descend on ``mean |x_N - x_N(last level)|^2 + price * cost``; log-odds are linear between knots.

    Args:
        ladder, path, table, eta, cond: as in the solver ``"ml-em"``.
        shape: ``(B, ...)`` of the states of one round; each sample draws its own levels.
        price: error that a unit of cost is worth.
        start: probabilities of the levels ``(K + 1,)`` to begin with; that of level 0 is 1 and stays.
        knots: number of times, evenly over the steps, at which every level has a parameter.
        rounds, directions, rate: steps of Adam, random directions per step, and its learning rate.
        seed: of states, noise, levels and directions.

    Raises:
        ValueError: a start, price or number that is not allowed; as `fine_table`.
    """
    count = len(ladder.levels)
    if len(start) != count or not all(0 < q <= 1 for q in start) or start[0] != 1.0:
        raise ValueError(f"start: got {list(start)}, need {count} probabilities, that of level 0 being 1")
    if not (price > 0 and math.isfinite(price)):
        raise ValueError(f"price: got {price}, allowed are numbers above 0")
    for name, value in (("knots", knots), ("rounds", rounds), ("directions", directions)):
        if isinstance(value, bool) or not isinstance(value, int) or value < 1:
            raise ValueError(f"{name}: got {value!r}, allowed are whole numbers >= 1")
    base, steps = Base(ladder, path, table, eta, cond), path.steps
    generator = torch.Generator().manual_seed(seed)
    costs = torch.tensor(ladder.costs, dtype=torch.float64)
    hats = _hats(steps, knots)
    odds = torch.tensor(start[1:], dtype=torch.float64).clamp(LEAST, 1 - LEAST).logit()
    theta = odds.repeat(knots, 1)
    first, second, baseline = torch.zeros_like(theta), torch.zeros_like(theta), None
    history = []
    for turn in range(1, rounds + 1):
        error, cost, gradient, baseline = _round(
            base, hats, theta, costs, shape, directions, price, generator, dtype, baseline
        )
        history.append((error, cost))
        first = 0.9 * first + 0.1 * gradient
        second = 0.99 * second + 0.01 * gradient.square()
        pace = rate * min(1.0, 2.0 * (1.0 - turn / (rounds + 1)))
        theta = theta - pace * (first / (1 - 0.9**turn)) / ((second / (1 - 0.99**turn)).sqrt() + 1e-12)
    return Learned(_table(hats, theta).numpy(), tuple(history))


def _hats(steps: int, knots: int) -> Tensor:
    """Weights ``(N, knots)`` of linear interpolation."""
    if knots == 1:
        return torch.ones(steps, 1, dtype=torch.float64)
    place = torch.linspace(0, knots - 1, steps, dtype=torch.float64)
    return (1 - (place[:, None] - torch.arange(knots)).abs()).clamp_min(0)


def _table(hats: Tensor, theta: Tensor) -> Tensor:
    inner = LEAST + (1 - LEAST) * torch.sigmoid(hats @ theta)
    return torch.cat([torch.ones(len(hats), 1, dtype=torch.float64), inner], dim=1)


def _cost(p: Tensor, costs: Tensor) -> Tensor:
    """Expected cost of a run; a pair that collapses exactly has probability zero here."""
    after = torch.cat([p[:, 1:], torch.zeros(len(p), 1, dtype=p.dtype)], dim=1)
    return ((p + after - p * after) * costs).sum()


def _round(
    base: Base, hats: Tensor, theta: Tensor, costs: Tensor, shape: Sequence[int], directions: int, price: float,
    generator: torch.Generator, dtype: torch.dtype, baseline: float | None,
) -> tuple[float, float, Tensor, float]:  # fmt: skip
    """Error, cost and an estimate of the gradient of their sum, and the running mean of errors."""
    ways = torch.randn(directions, *theta.shape, generator=generator, dtype=theta.dtype)
    p = _table(hats, theta)
    slopes = torch.stack([torch.func.jvp(lambda q: _table(hats, q), (theta,), (way,))[1] for way in ways])
    wide = (directions * shape[0], *[1] * (len(shape) - 1))
    x = top = base.start(shape, generator, dtype)
    moved = torch.zeros_like(x).repeat(directions, *[1] * (len(shape) - 1))
    score = torch.zeros(directions, len(x), dtype=torch.float64)
    with torch.no_grad():
        for i in range(base.path.steps):
            flags = (torch.rand(len(x), p.shape[1], generator=generator, dtype=torch.float64) < p[i]).double()
            xi = torch.randn(*shape, generator=generator, dtype=dtype)
            factor = (flags - p[i]) / (p[i] * (1 - p[i])).clamp_min(1e-300)
            score += (factor * slopes[:, None, i])[:, :, 1:].sum(2)
            share = flags / p[i]
            weights, turned = _omega(share), _omega(-share / p[i] * slopes[:, None, i])
            made, tangents = torch.zeros_like(x), torch.zeros_like(moved)
            for k in range(p.shape[1]):
                if not bool(weights[:, k].any() | turned[:, :, k].any()):
                    continue
                eps, tangent = _along(base, i, k, x, moved)
                weight = weights[:, k].to(dtype)
                tangents += weight.repeat(directions).reshape(wide) * tangent
                tangents += turned[:, :, k].to(dtype).reshape(wide) * eps.repeat(directions, *[1] * (x.ndim - 1))
                made += weight.reshape(-1, *wide[1:]) * eps
            moved = base.step(i, moved, tangents, None)
            top = base.step(i, top, base.eps(i, top, -1), xi)
            x = base.step(i, x, made, xi)
        gap = x - top
        errors = gap.square().flatten(1).sum(1).double()
        centre = float(errors.mean()) if baseline is None else baseline
        gradient, parts = torch.zeros_like(theta), moved.split(len(x))
        for n, way in enumerate(ways):
            change = 2 * (gap * parts[n]).flatten(1).sum(1).double() + (errors - centre) * score[n]
            dear = torch.func.jvp(lambda q: _cost(_table(hats, q), costs), (theta,), (way,))[1]
            gradient += (float(change.mean()) + price * float(dear)) * way / directions
    error = float(errors.mean())
    return error, float(_cost(p, costs)), gradient, 0.9 * centre + 0.1 * error


def _along(base: Base, i: int, level: int, x: Tensor, moved: Tensor) -> tuple[Tensor, Tensor]:
    """eps_hat at ``x``, and its derivatives along ``moved``, which holds directions for several copies of ``x``."""
    directions = len(moved) // max(1, len(x))
    copies = x.repeat(directions, *[1] * (x.ndim - 1))
    flat = tuple(range(1, x.ndim))
    size = moved.square().mean(flat, keepdim=True).sqrt()
    small = torch.finfo(x.dtype).eps ** 0.5 / size.clamp_min(torch.finfo(x.dtype).tiny)
    small = torch.where(size > 0, small, torch.zeros_like(small))
    index = torch.arange(len(x), device=x.device).repeat(1 + directions)
    both = base.eps(i, torch.cat([x, copies + small * moved]), level, index)
    eps, shifted = both[: len(x)], both[len(x) :]
    gap = shifted - eps.repeat(directions, *[1] * (x.ndim - 1))
    return eps, torch.where(size > 0, gap / small.clamp_min(torch.finfo(x.dtype).tiny), torch.zeros_like(gap))


def _omega(share: Tensor) -> Tensor:
    """``omega`` of the shares ``B / p``, or of their derivatives."""
    out = share.clone()
    out[..., :-1] -= share[..., 1:]
    return out
