"""Who records: CUDA graphs on a GPU, a list of calls on the CPU.  Both have one interface."""

from __future__ import annotations

import threading
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

    def begin(self) -> None:
        """Let the work that follows here wait for that of the last turn."""

    def end(self) -> None:
        """A turn has queued all of its work."""


class BusyError(CaptureError):
    """Recordings are in use by a run that this one is a part of; says nothing of later runs."""


class Turn:
    """One run at a time on the memory of recordings: a context, for threads and for streams."""

    def __init__(self, recorder: Recorder) -> None:
        self._recorder, self._lock, self._busy = recorder, threading.RLock(), False

    def __enter__(self) -> None:
        self._lock.acquire()
        if self._busy:
            self._lock.release()
            raise BusyError("a run on these recordings is under way, and asks for another one (a callback?)")
        try:
            self._recorder.begin()
        except BaseException:
            self._lock.release()
            raise
        self._busy = True

    def __exit__(self, *error: Any) -> None:
        self._recorder.end()
        self._busy = False
        self._lock.release()


def recorder_for(device: torch.device) -> Recorder:
    """A recorder for a device; raises `CaptureError` if there is none."""
    if device.type == "cuda":
        return CudaRecorder(device)
    if device.type == "cpu":
        return CallListRecorder()
    raise CaptureError(f"device {device.type} has no graphs here; allowed are cuda and cpu")
