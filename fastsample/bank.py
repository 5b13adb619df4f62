"""The bank: the few state tensors of a run, allocated once."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor

if TYPE_CHECKING:
    from .plan import Plan
    from .traced import RunPattern


class Bank:
    """One tensor per slot of a plan, all shaped and laid out like the state.

    ``tensors[0]`` is the state x. Slots of role ``"input"`` have the dtype of the network, all others that of the
    state. The memory is not initialised: a row reads no slot that no earlier row wrote.

    In a plan of two parts ``like`` is shaped like the data ``(B, C, ...)``, and ``tensors`` are views of the halves of
    packed tensors ``(B, 2 C, ...)``. ``asked[j]`` is what the network sees when slot j is asked: the whole of it.
    """

    def __init__(self, plan: Plan | RunPattern, like: Tensor, input_dtype: torch.dtype | None = None) -> None:
        self.names = tuple(slot.name for slot in plan.slots)
        self.tensors: list[Tensor] = []
        self.asked: dict[int, Tensor] = {}
        for j, slot in enumerate(plan.slots):
            dtype = input_dtype if slot.role == "input" else None
            if plan.parts == 1 or slot.role == "x0":
                self.tensors.append(torch.empty_like(like, dtype=dtype, requires_grad=False))
                self.asked[j] = self.tensors[j]
            elif j % 2 == 0:
                self.asked[j] = packed_like(like)
                self.tensors += halves(self.asked[j])

    def __getitem__(self, name: str) -> Tensor:
        """The tensor of the slot ``name``; ``KeyError`` if the plan has none of that name."""
        if name not in self.names:
            raise KeyError(f"slot: got {name!r}, this bank has {', '.join(self.names)}")
        return self.tensors[self.names.index(name)]

    @property
    def bytes(self) -> int:
        """Memory of the bank."""
        return sum(x.numel() * x.element_size() for x in self.tensors)


def halves(x: Tensor) -> tuple[Tensor, Tensor]:
    """Position and momentum ``(B, C, ...)``: views of a packed tensor ``(B, 2 C, ...)``."""
    count = x.shape[1] // 2
    return x.narrow(1, 0, count), x.narrow(1, count, count)


def packed_like(x: Tensor) -> Tensor:
    """Memory ``(B, 2 C, ...)`` for data ``(B, C, ...)``, not initialised; channels last where those of ``x`` are."""
    last = x.dim() == 4 and x.shape[1] > 1 and x.stride(1) == 1
    shape = (x.shape[0], 2 * x.shape[1], *x.shape[2:])
    layout = torch.channels_last if last else torch.contiguous_format
    return torch.empty(shape, dtype=x.dtype, device=x.device, memory_format=layout)
