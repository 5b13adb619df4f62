"""A procedure of fixed course as one recording: all its network calls and everything between them.

A run is begun on the host for every sample call, which makes its rows, times and start; what it made is copied into the
memory of the run that was recorded, tensor by tensor, and the recording is replayed.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

from ..procedures.registry import Setting
from ..profiling.ranges import range_of
from ..protocol import Run
from . import lent, trees
from .drive import Drive
from .recorders import Recorder, Turn
from .request import Request


class WholeRun:
    """The recording of one procedure at one course; see the module.  ``captures`` and ``replays`` count."""

    def __init__(self, request: Request, conds: Any, recorder: Recorder) -> None:
        self._borrowed, self._conds = lent.Borrowed(request.network), trees.fixed(conds)
        self._recorder, self.kind, self.turn = recorder, recorder.name, Turn(recorder)
        self._shape, self._dtype = list(request.x.shape), str(request.x.dtype).removeprefix("torch.")
        self._recording: Any = None
        self.captures = self.replays = 0

    @property
    def bytes(self) -> int:
        """Memory held by the recording and by the run that it belongs to."""
        if self._recording is None:
            return 0
        return int(self._recording.bytes) + sum(memory.nbytes() for memory in self._memories)

    def facts(self) -> dict[str, Any]:
        """What this is, as JSON values."""
        counts = {"recordings": self.captures, "captures": self.captures, "replays": self.replays}
        name, kind = self._borrowed.network.name, self.kind
        return {"network": name, "kind": kind, "shape": self._shape, "dtype": self._dtype, **counts}

    def begin(self, request: Request, conds: Any, whole: bool = True) -> tuple[Run, Drive]:
        """As `Steps.begin`."""
        with torch.inference_mode():
            trees.refill(self._conds, conds)
        if self._recording is None:
            self._record(request)
        fresh: Any = request.run
        fill = list(zip(self._memories, memories(fresh), strict=True))

        def restart() -> None:
            with torch.inference_mode():
                for kept, new in fill:
                    kept.copy_(new, False)

        def count(number: int) -> None:
            self.replays += number

        restart()
        vars(self._run).update((name, vars(fresh)[name]) for name in self._plain)
        if hasattr(self._run, "adopt"):
            self._run.adopt(fresh)
        return self._run, Drive([self._recording.replay], self._made, restart, count)

    def _record(self, request: Request) -> None:
        from ..loop import drive

        assert request.begin is not None
        network, x = self._borrowed.network, request.x
        with torch.inference_mode(False), torch.no_grad(), self._borrowed.given(request.network):
            x = torch.zeros((), dtype=x.dtype, device=x.device).expand(x.shape) if 0 in x.stride() else x.clone()
            key = None if request.key is None else request.key.clone()
            energy = network.energy_given(None if request.guided else self._conds)
            run: Any = request.begin(
                x, energy=energy, start=request.start, key=key, noise=None, input_dtype=network.dtype, grad=False
            )
            self._memories = list(memories(run))
            predict = lent.predictor(network, request.guided, self._conds)
            begun = {name: list(value) if type(value) is list else value for name, value in vars(run).items()}

            def again() -> None:  # what a run has learned of itself must not be there when it begins
                vars(run).update({k: list(v) if type(v) is list else v for k, v in begun.items()})

            def body() -> None:
                self._made = drive(run, predict)

            with torch.inference_mode(), range_of(f"capture {type(run).__name__}", self.captures):
                self._recording = self._recorder.record(body, again)
        # numbers on the host that no call has changed, for reports: those of the run whose numbers are used
        same = [name for name, value in vars(run).items() if _same(value, begun[name])]
        self._plain = [name for name in same if next(_tensors(begun[name], set()), None) is None]
        self._run = run
        self.captures += 1


def _same(value: Any, begun: Any) -> bool:
    if type(value) is list:
        return len(value) == len(begun) and all(a is b for a, b in zip(value, begun, strict=True))
    return value is begun


def memories(run: Any) -> Iterator[torch.UntypedStorage]:
    """The memory that a run has of its own, each once, in an order that runs of one course share."""
    seen = {run._setting.x.untyped_storage()._cdata}
    for tensor in _tensors(vars(run), set()):
        memory = tensor.untyped_storage()
        if memory._cdata not in seen:
            seen.add(memory._cdata)
            yield memory


def _tensors(value: Any, been: set[int]) -> Iterator[Tensor]:
    if isinstance(value, Tensor):
        yield value
    elif isinstance(value, Setting):  # of which a run goes on to use the key alone
        yield from _tensors(value.key, been)
    elif isinstance(value, (tuple, list)):
        for part in value:
            yield from _tensors(part, been)
    elif isinstance(value, dict):
        for part in value.values():
            yield from _tensors(part, been)
    elif type(value).__module__.startswith("fastsample.") and hasattr(value, "__dict__") and id(value) not in been:
        been.add(id(value))
        yield from _tensors(vars(value), been)
