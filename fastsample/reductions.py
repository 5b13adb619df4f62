"""Per-sample reductions between a network call and its row: rescaled guidance and dynamic thresholding."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

import torch
from torch import Tensor

from . import row
from .plan import COND, UNCOND

if TYPE_CHECKING:
    from .plan import Call, Plan


class Facts(NamedTuple):
    """What a plan says of them beside its rows, which hold the weight of guidance and phi: ratio, low and high of the
    threshold; whether guidance is rescaled."""

    threshold: tuple[float, ...] | None
    rescaled: bool
    calls: tuple[Call, ...]

    @classmethod
    def of(cls, plan: Plan) -> Facts | None:
        """None for a plan that needs nothing of this."""
        threshold, phi = plan.options.get("threshold"), plan.options.get("rescale")
        if threshold is None and phi is None:
            return None
        threshold = None if threshold is None else tuple(float(v) for v in threshold)
        return cls(threshold, phi is not None, plan.calls)


class Reductions:
    """What is found per sample before a row is applied: the scale of guidance, the threshold of x0_hat.

    Each writes a table of one row per sample, made of the row of the plan; the update then takes row b for sample b.
    """

    def __init__(self, facts: Facts, x: Tensor) -> None:
        self._facts, rows = facts, (x.shape[0], row.COLUMNS)
        self._rescaled, self._limited = (torch.empty(rows, dtype=torch.float64, device=x.device) for _ in range(2))
        self._samples = torch.arange(x.shape[0], device=x.device)

    @classmethod
    def of(cls, plan: Plan, x: Tensor) -> Reductions | None:
        """None for a plan that needs nothing of this."""
        facts = Facts.of(plan)
        return None if facts is None else cls(facts, x)

    def __call__(self, call: int, terms: list[Tensor], table: Tensor, step: Tensor) -> tuple[Tensor, Tensor]:
        """Table and step for the update of a call."""
        ops, facts = torch.ops.fastsample, self._facts
        if facts.rescaled:
            names = facts.calls[call].terms
            ops.rescale_(self._rescaled, terms, table, step, names.index(COND), names.index(UNCOND))
            table, step = self._rescaled, self._samples
        if facts.threshold is not None:
            ops.threshold_(self._limited, terms, table, step, *facts.threshold)
            table, step = self._limited, self._samples
        return table, step
