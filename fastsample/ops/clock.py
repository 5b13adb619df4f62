"""What ``update_`` writes beside its outputs: the network's time, and the counter of steps (docs/row.md)."""

from __future__ import annotations

import torch
from torch import Tensor

from .. import row


def finish(table: Tensor, step: Tensor, time: Tensor | None, clock: Tensor | None) -> None:
    """Write ``time`` and advance ``clock`` by ordinary tensor operations: the definition, and what empty states get."""
    if time is not None:
        if table.shape[0] == 0:
            time.fill_(torch.nan)
        else:
            inside = (step >= 0) & (step < table.shape[0])
            time.copy_(torch.where(inside, table[torch.where(inside, step, 0), row.TIME], torch.nan))
    if clock is not None:
        clock[:1].add_(1)  # last: step may be this number
