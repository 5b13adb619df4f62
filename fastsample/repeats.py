"""Updates of a run on a small state on the CPU, repeated past the dispatcher.

Calls of one memory pattern differ in the row and in where the network's output lies: such a call is bound once, at its
first turn, and the later ones set a few addresses.  Whatever is unusual goes through the op.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from .ops import bound

if TYPE_CHECKING:
    from .plan import Plan
    from .plan_memory import Pattern

_inference = torch.is_inference_mode_enabled
LARGE = 1 << 18  # elements of the state: a few microseconds per step are nothing beyond
FEW = 3  # calls of a pattern that are not worth binding


class Repeats:
    """The calls of a run; call it before each update, and do the update if it says False.

    Args:
        plan: the plan.
        steps: the 0-dim int64 tensors of the calls, entries of one tensor.
    """

    def __init__(self, plan: Plan, steps: Sequence[Tensor]) -> None:
        self._patterns, self._alike = plan.patterns, plan.alike
        self._kinds: dict[int, _Kind | None] = {}
        self._steps = steps[0].data_ptr()

    @staticmethod
    def of(plan: Plan, steps: Sequence[Tensor], x: Tensor) -> Repeats | None:
        """None where the updates of a run must go through the dispatcher."""
        wanted = type(x) is Tensor and x.is_cpu and x.numel() <= LARGE and plan.nfe > FEW
        return Repeats(plan, steps) if wanted and bound.free() else None

    def prepare(
        self, call: int, outs: list[Tensor], terms: list[Tensor], table: Tensor, step: Tensor, key: Tensor | None
    ) -> None:
        """Bind the calls of the pattern of ``call`` now, with examples of the network's outputs."""
        made = bound.bind(outs, terms, table, step, key)
        self._kinds[self._alike[call]] = None if made is None else _Kind(made, outs, self._patterns[call], terms)

    def __call__(
        self, call: int, outs: list[Tensor], terms: list[Any], table: Tensor, step: Tensor, key: Tensor | None
    ) -> bool:
        """Whether the update of this call is done."""
        if not _inference():  # whoever may want gradients needs the op, which refuses them and counts versions
            return False
        alike = self._alike[call]
        try:
            kind = self._kinds[alike]
        except KeyError:  # its first turn
            pattern = self._patterns[call]
            if self._alike.count(alike) > FEW and all(map(bound.usual, (terms[n] for n, *_ in pattern.places))):
                self.prepare(call, outs, terms, table, step, key)
            kind = self._kinds.setdefault(alike, None)
        return kind is not None and kind(self._steps + 8 * call, terms)


class _Kind:
    """The bound call of a pattern: where the network's outputs go, and what they must be."""

    __slots__ = ("_addresses", "_bound", "_kept", "_shape", "_watched")

    def __init__(self, call: bound.Bound, outs: list[Tensor], pattern: Pattern, terms: list[Tensor]) -> None:
        self._bound, self._addresses, self._shape = call, call.addresses, terms[0].shape
        told = [n for n, *_ in pattern.places]
        self._watched = tuple((n, 2 + len(outs) + n, terms[n].dtype) for n in told)
        slots = (*outs, *(x for n, x in enumerate(terms) if n not in told))
        self._kept = tuple((x, x.data_ptr()) for x in slots)

    def __call__(self, step: int, terms: list[Tensor]) -> bool:
        addresses, shape = self._addresses, self._shape
        for x, address in self._kept:
            if x.data_ptr() != address:  # a callback gave the live state other memory
                return False
        for n, place, dtype in self._watched:
            x = terms[n]
            if not (bound.usual(x) and x.dtype is dtype and x.shape == shape):
                return False
            addresses[place] = x.data_ptr()
        addresses[0] = step
        return self._bound()
