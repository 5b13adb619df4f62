"""A pilot run: what the levels of a ladder differ by along a run, and the probabilities that follow."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from fastsample.models.ladder import Ladder
from fastsample.multilevel.base import Base
from fastsample.path import Array, Path
from fastsample.solvers.multilevel import at_cost, optimum


@dataclass(frozen=True, eq=False)
class Pilot:
    """``variances`` ``(N, K + 1)``: mean of ``|e_k - e_{k-1}|^2`` of a sample (e_{-1} = 0) in each step; ``b``
    ``(N,)``; ``costs`` of the levels; ``gains`` ``(N,)``: root mean square growth of a perturbation of no preferred
    direction from after step i to the end, or None if they were not measured."""

    variances: Array
    b: Array
    costs: tuple[float, ...]
    gains: Array | None = None

    def probabilities(self, budget: float, gains: Array | None = None, draws: str = "independent") -> Array:
        """The table ``(N, K + 1)`` of least variance whose expected cost is ``budget`` times that of the last level in
        every step.

        ``gains`` ``(N,)``: growth of a perturbation from after step i to the end, in place of the measured one (1 if
        there is none).  Hand the table to the solver as ``p``.  Raises ``ValueError`` for a budget below the cost of
        the first level.
        """
        steps = len(self.b)
        made = optimum(self.variances, self.costs, self.b, self.gains if gains is None else gains)
        return at_cost(made, budget * steps * self.costs[-1], self.costs, steps, draws)


@torch.no_grad()
def pilot(
    ladder: Ladder,
    shape: Sequence[int],
    path: Path,
    *,
    table: str = "ddpm-small",
    eta: float = 0.0,
    cond: Any = None,
    gains: bool = False,
    seed: int = 0,
    dtype: torch.dtype = torch.float32,
) -> Pilot:
    """Run the base solver once with the last level, ask all levels in every step, and measure their differences.

    ``shape`` ``(B, ...)`` of the pilot's samples; ``gains``: measure how perturbations grow too, which keeps all states
    and takes one gradient of the last level per step; the rest as in the solver ``"ml-em"``.  Raises as `fine_table`.
    """
    base = Base(ladder, path, table, eta, cond)
    generator = torch.Generator().manual_seed(seed)
    x = base.start(shape, generator, dtype)
    variances = np.zeros((path.steps, len(ladder.levels)))
    states = []
    for i in range(path.steps):
        before = torch.zeros_like(x)
        if gains:
            states.append(x)
        for k in range(len(ladder.levels)):
            eps = base.eps(i, x, k)
            variances[i, k] = float((eps - before).square().flatten(1).sum(1).double().mean())
            before = eps
        x = base.step(i, x, before, torch.randn(*shape, generator=generator, dtype=dtype))
    growth = _gains(base, states, generator) if gains else None
    return Pilot(variances, base.weights, ladder.costs, growth)


def _gains(base: Base, states: Sequence[Tensor], generator: torch.Generator) -> Array:
    """Random vectors pulled back through the steps: with w standard normal and J the derivative of the end by the state
    after step i, ``E|J^T w|^2 = |J|_F^2``, and ``|J|_F^2 / d`` is the mean square growth over directions."""
    w = torch.randn(states[0].shape, generator=generator, dtype=states[0].dtype)
    made = np.ones(len(states))
    for i in range(len(states) - 1, 0, -1):
        with torch.enable_grad():
            x = states[i].clone().requires_grad_()
            (w,) = torch.autograd.grad(base.step(i, x, base.eps(i, x, -1), None), x, w)
        made[i - 1] = float(w.square().double().mean().sqrt())
    return made
