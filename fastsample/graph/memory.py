"""What the recordings of one configuration read and write: tensors whose addresses never change."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from .. import row
from ..bank import halves, packed_like
from ..plan import Plan
from .kinds import Named

ROOM = 32  # rows that a table has room for at first


class Memory:
    """The bank, the table, the times, the counter of steps, the keys and the conditions.

    Args:
        like: the data ``(B, ...)``, or any tensor of their shape, dtype, layout and device.
        parts: of the plans, 1 or 2.
        input_dtype: of slots of role ``"input"``; None: that of ``like``.
        targets: whether the network is told two times.
        conds: conditions, see `fastsample.graph.trees`; already tensors of its own.
    """

    def __init__(self, like: Tensor, *, parts: int, input_dtype: torch.dtype | None, targets: bool, conds: Any) -> None:
        self._like = torch.empty_like(like, device="meta", requires_grad=False)
        self.dtype, self.device, self.shape, self.batch, self._parts = (
            like.dtype,
            like.device,
            like.shape,
            len(like),
            parts,
        )
        self._input_dtype = input_dtype or like.dtype
        self._wide = torch.float64 if like.dtype == torch.float64 else torch.float32
        self._slots: dict[Named, Tensor] = {}
        self._asked: dict[Named, Tensor] = {}
        self._before: dict[int, Tensor] = {}
        self.conds, self._loaded = conds, None
        two = (2,) if targets else ()
        self.t = self._zeros(len(like), *two, dtype=self._wide)
        self.clock = self._zeros(2, dtype=torch.int64)
        self.step = self.clock[0]
        self.key = self._zeros(len(like), 2, dtype=torch.int64).view(torch.uint64)
        self._two, self.room = two, 0
        self.grow(ROOM)

    @property
    def bytes(self) -> int:
        """Of all tensors but the conditions."""
        mine = [*self._slots.values(), *self._before.values(), self.t, self.table, self.times, self.key]
        return sum(x.numel() * x.element_size() for x in mine)

    def grow(self, rows: int) -> bool:
        """Make room for a table of so many rows; whether the old one had to go, and with it all recordings."""
        if rows <= self.room:
            return False
        self.room = max(ROOM, 1 << (rows - 1).bit_length())
        self.table = self._zeros(self.room, row.COLUMNS, dtype=torch.float64)
        self.times = self._zeros(self.room + 1, *self._two, dtype=self._wide)  # the clock ends behind the last row
        self._loaded = None
        return True

    def slot(self, name: Named) -> Tensor:
        """A tensor of the bank; made at first use."""
        if name not in self._slots:
            j, role = name
            if self._parts == 1 or role == "x0":
                dtype = self._input_dtype if role == "input" else self._like.dtype
                like = torch.empty_like(self._like, dtype=dtype)
                self._slots[name] = self._asked[name] = self._fill(torch.empty_like(like, device=self.device))
            else:
                even = (j - j % 2, role)
                packed = self._fill(packed_like(torch.empty_like(self._like, device=self.device)))
                for part, half in enumerate(halves(packed)):
                    self._slots[even[0] + part, role] = half
                    self._asked[even[0] + part, role] = packed
        return self._slots[name]

    def asked(self, name: Named) -> Tensor:
        """What the network sees when a slot is asked: of two parts, both."""
        self.slot(name)
        return self._asked[name]

    def before(self, branch: int, like: Tensor) -> Tensor:
        """Memory for the output of the call before."""
        if branch not in self._before:
            with torch.inference_mode(False):
                self._before[branch] = torch.zeros_like(like, requires_grad=False)
        return self._before[branch]

    def load(self, plan: Plan, key: Tensor | None) -> None:
        """Copy the numbers of a run; the counter stands at its first call.  The table must have room."""
        if key is not None:
            self.key.view(torch.int64).copy_(key.view(torch.int64))
        if self._loaded is not plan:
            with torch.inference_mode(False):  # kept by the plan for later runs, which may want gradients
                rows = plan.to(self.device)
            self.table[: plan.nfe].copy_(rows.table)
            self.times[: plan.nfe].copy_(rows.told)
            self._loaded = plan  # type: ignore[assignment]
        self.rewind()

    def rewind(self, call: int = 0) -> None:
        """Put the counter to a call, and the time to what is told there."""
        self.clock[0].fill_(call)
        self.t.copy_(self.times[call])

    def _zeros(self, *shape: int, dtype: torch.dtype) -> Tensor:
        with torch.inference_mode(False):
            return torch.zeros(shape, dtype=dtype, device=self.device)

    def _fill(self, x: Tensor) -> Tensor:
        return x.zero_()  # warm-ups read slots that no row has written
