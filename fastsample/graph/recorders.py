"""Who records: CUDA graphs on a GPU, a list of calls on the CPU.  Both have one interface."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Protocol

import torch

from ..errors import CaptureError
from .call_list import CallListRecorder
from .cuda import CudaRecorder


class Recording(Protocol):
    """Work that can be done again on the same memory."""

    bytes: int
    """Memory that it holds beside what it was recorded on."""

    def replay(self) -> None:
        """Do it again."""


class Recorder(Protocol):
    """Makes recordings that may share memory with each other, but hold none of the results of others."""

    name: str

    def record(self, body: Callable[[], Any], before: Callable[[], Any]) -> Recording:
        """Run ``body`` to warm up, then record it; ``before`` is run before each of these, and not recorded.

        ``body`` takes nothing, reads and writes tensors that outlive the recording, and may be run any number of times.
        Raises `CaptureError` if it cannot be recorded, and whatever ``body`` raises.
        """


def recorder_for(device: torch.device) -> Recorder:
    """A recorder for a device; raises `CaptureError` if there is none."""
    if device.type == "cuda":
        return CudaRecorder(device)
    if device.type == "cpu":
        return CallListRecorder()
    raise CaptureError(f"device {device.type} has no graphs here; allowed are cuda and cpu")
