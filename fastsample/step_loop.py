"""The run of a plan whose steps are one module, to be compiled once for any number of steps.  See docs/compile.md."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor

from . import row
from .given import Array, check_output
from .models.network import Network
from .plan import STARTS, Plan
from .plan_memory import times_of, unpadded
from .traced import Planned, RunPattern, Tables, predictor

__all__ = ["Step", "StepLoop"]


class Step(torch.nn.Module):
    """One network call and the update after it, on memory that is handed in: what `StepLoop` repeats."""

    def __init__(self, network: Network, guided: bool) -> None:
        super().__init__()
        self.network, self.guided = network, guided
        if isinstance(network.fn, torch.nn.Module):
            self.net = network.fn

    def forward(
        self,
        asked: Tensor | None,
        terms: list[Tensor],
        written: list[Tensor],
        spare: list[Tensor],
        values: Tensor,
        index: Tensor,
        t: Tensor,
        key: Tensor | None,
        cond: Any = None,
        uncond: Any = None,
    ) -> None:
        """Ask the network and apply the row ``values`` ``(1, 48)``.

        ``terms``: the state and its history; term 0 is the state and is written in place.  ``asked``: what the network
        sees, if that is not the state.  ``written``, ``spare``: the other outputs, none of which is a term.
        """
        x = terms[0] if asked is None else asked
        told: Any = predictor(self.network, self.guided, cond, uncond, x)(x, t)
        check_output(told, x, guided=self.guided)
        outputs = list(told) if self.guided else [told]
        inputs = [*terms, *outputs]
        torch.ops.fastsample.update_([terms[0], *written, *spare], inputs, values, index, key, [])


class StepLoop(Planned):
    """A whole run as a Python loop over one module ``step``: network call and update, to be compiled once.

    ``loop.step.compile(fullgraph=True)`` compiles it; its one graph serves every step, any number of steps, every seed,
    grid and guidance weight, and every solver of the same memory (number of history tensors and outputs).  For this the
    ring of the history is turned by swapping tensors, with one more of them than `sample` has, and an output that a row
    lacks is written as zeros.  The bits are those of `sample`.

    Args:
        model, plan: as in `sample`.
        start: ``"noise"``, ``"state"`` (x is at the plan's first level) or ``"data"`` (x is brought there).

    Raises:
        TypeError, ValueError: a plan that is none, or that contradicts what the model says.
        ValueError: a plan of a phase-space solver, or with thresholding or rescaled guidance: these have no such form.
    """

    def __init__(self, model: Any, plan: Plan, *, start: str = "noise") -> None:
        super().__init__(model, plan, start=start)
        self.step = Step(self.network, self.pattern.guided)
        self._take(plan, self.network.device or "cpu")

    def load(self, plan: Plan) -> None:
        """Run another plan from now on: any that the model can run.  ``ValueError`` as the class."""
        self._take(plan, self.table.device)

    def _take(self, plan: Plan, device: torch.device | str) -> None:
        pattern = RunPattern.of(plan)
        if pattern.parts != 1 or pattern.facts is not None:
            what = "position and momentum" if pattern.parts != 1 else "thresholding or rescaled guidance"
            raise ValueError(f"plan: {plan.solver!r} has {what}, which a StepLoop does not do; use Loop or sample")
        memory = {j for call in plan.calls for j in call.terms if j >= 0}
        spares = [[j for j in call.outputs if j in memory and j != 0] for call in plan.calls]
        depth = max(map(len, spares))
        # per call: the slots asked, written in place, and written by way of a spare
        self.orders = tuple(
            (call.ask, tuple(j for j in call.outputs if j not in memory), tuple(spare))
            for call, spare in zip(plan.calls, spares, strict=True)
        )
        if any(0 not in call.outputs or call.terms[: len(memory)] != tuple(range(len(memory))) for call in plan.calls):
            raise ValueError(f"plan: {plan.solver!r} has a call that does not write the state; use Loop or sample")
        self.pattern, self.depth, self.memory = pattern, depth, len(memory)
        self.step.guided = pattern.guided
        table = np.stack(
            [
                _moved(values, [call.outputs.index(j) for j in (0, *written, *spare)])
                for values, call, (_, written, spare) in zip(plan.table, plan.calls, self.orders, strict=True)
            ]
        )
        tables = Tables.of(plan, device)
        self.hold(tables._replace(table=torch.from_numpy(table).to(device)))

    @torch.inference_mode(False)  # a compiled step tells inference tensors from others
    @torch.no_grad()
    def forward(self, x: Tensor, key: Tensor | None = None, cond: Any = None, uncond: Any = None) -> Tensor:
        """Samples ``(B, ...)``; arguments as those of `Loop`."""
        self.check(x, key)
        pattern, fed = self.pattern, self.network.dtype
        key = key.clone() if key is not None and key.is_inference() else key
        slots = [torch.empty_like(x, dtype=fed if s.role == "input" else None) for s in pattern.slots]
        spare = [torch.empty_like(x) for _ in range(self.depth)]
        wide = torch.float64 if x.dtype == torch.float64 else torch.float32
        times = unpadded(times_of(self.times.to(wide), len(x)), len(x), self.times.shape[1:]).unbind(0)
        first, noise_key = self.steps[0], key if pattern.noisy else None
        starts = self.starts[STARTS.index(self.start)][None]
        torch.ops.fastsample.update_([slots[j] for j in pattern.outputs], [x], starts, first, key, [])
        for i, (ask, written, kept) in enumerate(self.orders):
            asked = None if ask == 0 else slots[ask]
            now = [slots[j] for j in written]
            rows = self.table[i : i + 1]
            self.step(asked, slots[: self.memory], now, spare, rows, first, times[i], noise_key, cond, uncond)
            for n, j in enumerate(kept):
                slots[j], spare[n] = spare[n], slots[j]
        return slots[0]


def _moved(values: Array, places: list[int]) -> Array:
    """A row whose output k is output ``places[k]`` of another."""
    moved: Array = values.copy()
    for first in (*range(0, row.LO, 4), row.LO, row.HI, row.TIME):
        old = values[first + 1 : first + 1 + row.MAX_OUTPUTS]
        moved[first + 1 : first + 1 + row.MAX_OUTPUTS] = 0
        moved[first + 1 : first + 1 + len(places)] = old[places]
    return moved
