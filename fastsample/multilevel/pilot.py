"""A pilot run: what the levels of a ladder differ by along a run, and the probabilities that follow."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from fastsample.models.ladder import Ladder
from fastsample.multilevel.base import Base
from fastsample.path import Array, Path
from fastsample.solvers.multilevel import at_cost, optimum


@dataclass(frozen=True, eq=False)
class Pilot:
    """``variances`` ``(N, K + 1)``: mean of ``|e_k - e_{k-1}|^2`` of a sample (e_{-1} = 0) in each step; ``b``
    ``(N,)``; ``costs`` of the levels."""

    variances: Array
    b: Array
    costs: tuple[float, ...]

    def probabilities(self, budget: float, gains: Array | None = None, draws: str = "independent") -> Array:
        """The table ``(N, K + 1)`` of least variance whose expected cost is ``budget`` times that of the last level in
        every step.

        ``gains`` ``(N,)``: by how much a perturbation after step i grows until the end; 1 if None.  Hand it to the
        solver as ``p``.  Raises ``ValueError`` for a budget below the cost of the first level.
        """
        steps = len(self.b)
        made = optimum(self.variances, self.costs, self.b, gains)
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
    seed: int = 0,
    dtype: torch.dtype = torch.float32,
) -> Pilot:
    """Run the base solver once with the last level, ask all levels in every step, and measure their differences.

    ``shape`` ``(B, ...)`` of the pilot's samples; the rest as in the solver ``"ml-em"``.  Raises as `fine_table`.
    """
    base = Base(ladder, path, table, eta, cond)
    generator = torch.Generator().manual_seed(seed)
    x = base.start(shape, generator, dtype)
    variances = np.zeros((path.steps, len(ladder.levels)))
    for i in range(path.steps):
        before = torch.zeros_like(x)
        for k in range(len(ladder.levels)):
            eps = base.eps(i, x, k)
            variances[i, k] = float((eps - before).square().flatten(1).sum(1).double().mean())
            before = eps
        x = base.step(i, x, before, torch.randn(*shape, generator=generator, dtype=dtype))
    return Pilot(variances, base.weights, ladder.costs)
