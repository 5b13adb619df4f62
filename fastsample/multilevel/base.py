"""The steps of multilevel Euler-Maruyama as plain tensors, for tools that run before sampling."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from fastsample.models.ladder import Ladder
from fastsample.path import Array, Path
from fastsample.solvers import assemble as plans
from fastsample.solvers.express import Network as Express
from fastsample.solvers.fine_tables import FineTable, fine_table
from fastsample.solvers.step import Step


class Base:
    """A ladder on a path: ``eps(i, x)`` of every level, and the coefficients of the base steps.

    Raises ``ValueError`` for what `fine_table` or the conversion to eps_hat refuses.
    """

    def __init__(self, ladder: Ladder, path: Path, table: str, eta: float, cond: Any) -> None:
        if not isinstance(ladder, Ladder):
            raise TypeError(f"ladder: got {type(ladder).__name__}, need a fastsample.Ladder")
        self.ladder, self.path = ladder, path
        self.fine: FineTable = fine_table(path, table, eta)
        self._predict = ladder.given(cond)
        steps = [Step(i, path[i], 1.0, (0.0,)) for i in range(path.steps)]
        self.told: Sequence[float] = plans._times(ladder.time, steps)
        express = Express(ladder.prediction, ladder.input_scaling, 0.5, path.rates, path.levels())
        self._mixes = [express.convert("eps", step) for step in steps]
        self._kappas = [express.kappa(step.at) for step in steps]

    def eps(self, i: int, x: Tensor, level: int, index: Tensor | None = None) -> Tensor:
        """eps_hat ``(B, ...)`` of a level at the state of step i; ``index``: whose conditions the rows of x have."""
        t = torch.full((len(x),), self.told[i], dtype=x.dtype, device=x.device)
        out: Any = self._predict(self._kappas[i] * x, t, level, index)  # type: ignore[call-arg]
        mix = self._mixes[i]
        made: Tensor = mix["x"] * x + mix["e"] * out
        return made

    def start(self, shape: Sequence[int], generator: torch.Generator, dtype: torch.dtype) -> Tensor:
        return self.path[0].sigma * torch.randn(*shape, generator=generator, dtype=dtype)

    def step(self, i: int, x: Tensor, eps: Tensor, xi: Tensor | None) -> Tensor:
        a, b, s = (float(values[i]) for values in (self.fine.a, self.fine.b, self.fine.s))
        made = a * x + b * eps
        return made if xi is None or s == 0.0 else made + s * xi

    @property
    def weights(self) -> Array:
        """``b`` ``(N,)``, the weight of eps_hat in each step."""
        return self.fine.b
