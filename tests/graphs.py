"""How often torch.compile compiled: the counters of Dynamo around a block, from a clean start."""

from __future__ import annotations

import contextlib

import torch
from torch._dynamo.utils import counters


class Count:
    """Graphs compiled, breaks of graphs and recompilations so far in the block."""

    @property
    def graphs(self) -> int:
        return counters["stats"]["unique_graphs"]

    @property
    def breaks(self) -> dict[str, int]:
        return dict(counters["graph_break"])


@contextlib.contextmanager
def counted():
    """A `Count` of the block; Dynamo forgets everything before and after it."""
    torch._dynamo.reset()
    counters.clear()
    try:
        yield Count()
    finally:
        torch._dynamo.reset()
        counters.clear()
