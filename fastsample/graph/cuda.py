"""CUDA graphs: warm-up on a side stream, capture into one pool of memory that all graphs of a recorder share."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Any

import torch

from ..errors import CaptureError
from .traps import trapped

WARM_UPS = 3  # libraries choose their algorithms and take their workspaces in the first calls
_one_at_a_time = threading.RLock()  # captures, in the whole process; a network may sample within one


class CudaRecording:
    """A captured graph; ``replay()`` launches it on the current stream."""

    def __init__(self, graph: Any, size: int) -> None:
        self._graph, self.bytes = graph, size
        self.replay: Callable[[], None] = graph.replay


class CudaRecorder:
    """Records on one device.  Graphs of one recorder must not run at the same time: they share temporary memory."""

    name = "cuda graph"

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._stream = torch.cuda.Stream(device)
        self._pool: Any = torch.cuda.graph_pool_handle()
        self._held = 0
        self._last = torch.cuda.Event()

    def begin(self) -> None:
        """The last turn may have been on another stream."""
        torch.cuda.current_stream(self._device).wait_event(self._last)

    def end(self) -> None:
        self._last.record(torch.cuda.current_stream(self._device))

    def record(self, body: Callable[[], Any], before: Callable[[], Any]) -> CudaRecording:
        """As `Recorder.record`.  What ``body`` allocates belongs to the pool and is free again at its end."""
        with _one_at_a_time, torch.cuda.device(self._device):
            current = torch.cuda.current_stream(self._device)
            self._warm_up(body, before, current)
            graph = torch.cuda.CUDAGraph()
            try:
                # other threads may use the device meanwhile: only what this one does must be allowed in a capture
                with torch.cuda.graph(graph, pool=self._pool, stream=self._stream, capture_error_mode="thread_local"):
                    body()
            except RuntimeError as error:
                torch.cuda.set_stream(current)  # torch does not go back to it where the end of a capture fails
                self._after_failure()
                raise CaptureError(f"the capture failed: {str(error).splitlines()[0]}") from error
            return CudaRecording(graph, self._growth())

    def _warm_up(self, body: Callable[[], Any], before: Callable[[], Any], current: Any) -> None:
        self._stream.wait_stream(current)
        with torch.cuda.stream(self._stream):
            for n in range(WARM_UPS):
                before()
                # the first without traps: a compiled network must see its first call as it is
                trapped(body) if n == 1 else body()
        current.wait_stream(self._stream)

    def _growth(self) -> int:
        """Bytes by which the pool has grown since the last recording."""
        pool = tuple(self._pool)
        held = sum(
            int(part["total_size"])
            for part in torch.cuda.memory_snapshot()
            if tuple(part.get("segment_pool_id", ())) == pool
        )
        grown, self._held = max(0, held - self._held), max(held, self._held)
        return grown

    def _after_failure(self) -> None:
        """A capture that broke off leaves its pool in doubt: the next one gets another."""
        self._pool, self._held = torch.cuda.graph_pool_handle(), 0
        self._stream = torch.cuda.Stream(self._device)
        torch.cuda.synchronize(self._device)
