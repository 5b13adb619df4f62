"""The bank: the few state tensors of a run, allocated once."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor

if TYPE_CHECKING:
    from .plan import Plan


class Bank:
    """One tensor per slot of a plan, all shaped and laid out like the state.

    ``tensors[0]`` is the state x. Slots of role ``"input"`` have the dtype of the network, all others that of the
    state. The memory is not initialised: a row reads no slot that no earlier row wrote.
    """

    def __init__(self, plan: Plan, like: Tensor, input_dtype: torch.dtype | None = None) -> None:
        self.names = tuple(slot.name for slot in plan.slots)
        self.tensors = [
            torch.empty_like(like, dtype=input_dtype if slot.role == "input" else None, requires_grad=False)
            for slot in plan.slots
        ]

    def __getitem__(self, name: str) -> Tensor:
        """The tensor of the slot ``name``; ``KeyError`` if the plan has none of that name."""
        if name not in self.names:
            raise KeyError(f"slot: got {name!r}, this bank has {', '.join(self.names)}")
        return self.tensors[self.names.index(name)]

    @property
    def bytes(self) -> int:
        """Memory of the bank."""
        return sum(x.numel() * x.element_size() for x in self.tensors)
