"""What a run on a small state leaves to the next one: its memory, and its updates bound to it.

Most of a short run of a small network is its set-up, some thirty calls of torch.  So a finished run hands its memory
on, and the next run of the same plan, shape and dtypes begins at once.  Memory that anybody else holds by then (a
network that kept its input, a callback, a view, an array) or has changed in kind is let go: no run ever writes to it.
"""

from __future__ import annotations

import ctypes
from collections.abc import Hashable
from sys import getrefcount
from typing import TYPE_CHECKING, Any
from weakref import getweakrefcount

import torch
from torch import Tensor

from .ops import bound
from .plan import STARTS
from .repeats import Repeats

if TYPE_CHECKING:
    from .plan import Plan
    from .plan_memory import DevicePlan

BYTES = 1 << 18  # of the slots together, and of the times; beyond, a set-up is nothing beside the steps
_storage_users = getattr(torch._C, "_storage_Use_Count", None)
_users = Tensor._use_count  # type: ignore[attr-defined]


def place_of(plan: Plan, x: Tensor, key: Tensor | None, input_dtype: torch.dtype | None) -> Hashable | None:
    """What runs that may share memory have in common; None for a run that leaves none."""
    if type(x) is not Tensor or not x.is_cpu or plan.parts > 1 or key is None or _storage_users is None:
        return None
    size, told = x.numel() * x.element_size() * len(plan.slots), plan.nfe * x.shape[0] * 16
    return (x.shape, x.dtype, x.stride(), input_dtype) if 0 < size <= BYTES and told <= BYTES else None


class Kept:
    """Memory and prepared calls of a run.

    Args:
        plan, device: the plan, and its tensors.
        slots, asked, prepared, key: of a run that has not begun, see `PlanRun`; ``prepared`` uses ``key``.
        times: ``(calls, batch, ...)``; a run has views of its own, so that nothing hangs on them from run to run.
        said: dtype that the network's outputs had in an earlier run; of other dtypes they go through the op.
    """

    def __init__(
        self,
        plan: Plan,
        device: DevicePlan,
        slots: list[Tensor],
        asked: dict[int, Tensor],
        times: Tensor,
        prepared: list[tuple[Any, ...]],
        key: Tensor,
        said: torch.dtype,
    ) -> None:
        self.slots, self.asked, self.prepared, self.key = slots, asked, prepared, key
        self.repeats = Repeats(plan, device.steps)
        told = torch.empty(slots[0].shape, dtype=said)
        for call, first in enumerate(plan.alike):
            if call == first:
                _, outs, terms, step, used, _, _, _ = prepared[call]
                self.repeats.prepare(call, outs, [told if x is None else x for x in terms], device.table, step, used)
        # neither the plan nor its tensors as a whole, which hold this
        self._outputs, self._rows, self._steps = plan.prologue.outputs, device.starts, device.steps[: len(STARTS)]
        self._starts: dict[str, bound.Bound | None] = {}
        self._key_at, self._key_bytes = key.data_ptr(), key.numel() * key.element_size()
        self._times, self._times_at = times, times.data_ptr()
        self._times_bytes = int(times.untyped_storage().nbytes()) - int(times.storage_offset()) * times.element_size()
        self._told = ctypes.string_at(self._times_at, self._times_bytes)
        root = times if times._base is None else times._base
        self._watched = [*slots, root]
        self._storages = [x.untyped_storage() for x in self._watched]
        self._shared = [storage._cdata for storage in self._storages]
        del root
        self._alone = self._look()

    def load(self, key: Tensor) -> tuple[list[Tensor], dict[int, Tensor], tuple[Tensor, ...], list[Any], Tensor]:
        """Slots, what is asked, times, calls and keys for a run with these keys."""
        if key.is_contiguous():
            ctypes.memmove(self._key_at, key.data_ptr(), self._key_bytes)
        else:
            self.key.copy_(key)
        with torch.inference_mode(False):  # a compiled network tells inference tensors from others
            times = self._times.unbind(0)
        return self.slots, self.asked, times, self.prepared, self.key

    def begin(self, x: Tensor, start: str, key: Tensor | None) -> bool:
        """Do the prologue; False where it must go through the op."""
        if start not in self._starts:
            self._starts[start] = self._bind(x, start, key)
        call = self._starts[start]
        if call is None:
            return False
        if start != "noise":
            if not bound.usual(x):
                return False
            call.addresses[2 + len(self._outputs)] = x.data_ptr()
        return call()

    def _bind(self, x: Tensor, start: str, key: Tensor | None) -> bound.Bound | None:
        outs, number = [self.slots[j] for j in self._outputs], STARTS.index(start)
        like = outs[0] if start == "noise" else x  # noise reads no state
        return bound.bind(outs, [like], self._rows, self._steps[number], key)

    def unheld(self) -> bool:
        """Whether nobody else holds this memory, and it is of the kind that it was."""
        return self._look() == self._alone and ctypes.string_at(self._times_at, self._times_bytes) == self._told

    def _look(self) -> Any:
        watched = self._watched
        return (
            list(map(getrefcount, watched)),
            list(map(_users, watched)),
            list(map(getweakrefcount, watched)),
            any(map(vars, watched)),
            [(x.data_ptr(), x.shape, x.stride(), x.dtype, x.requires_grad) for x in watched],
            self._times.data_ptr(),
            self._times._version,
            list(map(getrefcount, self._storages)),  # what Python holds of them is not among their users
            list(map(_storage_users, self._shared)),  # type: ignore[arg-type]  # `place_of` has looked
            [storage.nbytes() for storage in self._storages],
        )
