"""Per-sample reductions between a network call and its row: rescaled guidance and dynamic thresholding."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from . import row
from .plan import COND, UNCOND

if TYPE_CHECKING:
    from .plan import Plan


class Reductions:
    """What is found per sample before a row is applied: the scale of guidance, the threshold of x0_hat.

    Each writes a table of one row per sample, made of the row of the plan; the update then takes row b for sample b.
    """

    def __init__(self, plan: Plan, x: Tensor) -> None:
        def numbers(name: str) -> Any:
            return plan.options.get(name)

        self._threshold = None if numbers("threshold") is None else [float(v) for v in numbers("threshold")]
        self._phi, weights = numbers("rescale"), numbers("guidance")
        self._weights = list(np.broadcast_to(0.0 if weights is None else weights, (plan.nfe,)).astype(float))
        self._calls = plan.calls
        rows = (len(x), row.COLUMNS)
        self._rescaled, self._limited = (torch.empty(rows, dtype=torch.float64, device=x.device) for _ in range(2))
        self._samples = torch.arange(len(x), device=x.device)

    @classmethod
    def of(cls, plan: Plan, x: Tensor) -> Reductions | None:
        """None for a plan that needs nothing of this."""
        if plan.options.get("threshold") is None and plan.options.get("rescale") is None:
            return None
        return cls(plan, x)

    def __call__(self, call: int, terms: list[Tensor], table: Tensor, step: Tensor) -> tuple[Tensor, Tensor]:
        """Table and step for the update of a call."""
        ops = torch.ops.fastsample
        if self._phi is not None:
            names = self._calls[call].terms
            cond, uncond, weight = names.index(COND), names.index(UNCOND), float(self._weights[call])
            ops.rescale_(self._rescaled, terms, table, step, cond, uncond, weight, float(self._phi))
            table, step = self._rescaled, self._samples
        if self._threshold is not None:
            ops.threshold_(self._limited, terms, table, step, *self._threshold)
            table, step = self._limited, self._samples
        return table, step
