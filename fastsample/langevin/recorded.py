"""Chains whose iterations are recordings: a CUDA graph, or on the CPU a list of calls.  See docs/graphs.md.

Two iterations are of one kind if they call the target at the same memory and apply rows to the same memory.  What
differs between them lies on the device: the rows in a table that stays, and counters that pick them, which the
recording itself moves on.  So other seeds, starts and step sizes are copies; nothing is recorded again.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Hashable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any, Protocol

import torch
from torch import Tensor

from ..errors import CaptureError
from ..graph import lent
from ..graph.auto import saves
from ..graph.recorders import BusyError, Recorder, Recording, Turn, recorder_for
from ..graph.request import ambient, layout
from ..graph.store import STORE
from .targets import Target

MODES = ("off", "on", "auto")
KINDS = 16  # of iterations, that are recorded


class Chains(Protocol):
    """What a recording needs of a run, which is ``RowRun`` or ``MalaRun``."""

    call: Any

    @property
    def state(self) -> Tensor: ...

    def memory(self) -> list[Tensor]:
        """All tensors that an iteration reads or writes, in an order that runs of one shape share."""

    def structure(self) -> Hashable:
        """What two runs must share, beside the shape of the state, for one to use the memory of the other."""

    def table_shape(self) -> tuple[int, int]:
        """Of the most rows that are uploaded at once."""

    def keep(self, recorded: Recorded) -> None:
        """Pick rows by its counters, and let it do the iterations."""

    def adopt(self, other: Any) -> None:
        """Take the numbers on the host of a run that has begun."""


class Recorded:
    """The run that is recorded, its table and its recordings by kind; ``captures`` and ``replays`` count."""

    def __init__(self, run: Chains, keys: Tensor, recorder: Recorder, name: str) -> None:
        x = run.state
        self.run, self.keys = run, keys
        self.table = torch.zeros(run.table_shape(), dtype=torch.float64, device=x.device)
        self._first = torch.arange(len(self.table), device=x.device)
        self.counters = self._first.clone()
        self._recorder, self.kind, self.turn, self._name = recorder, recorder.name, Turn(recorder), name
        self._recordings: dict[Hashable, tuple[Recording, int] | str] = {}  # or why there is none
        self.captures = self.replays = 0
        self.mode = "on"
        self.why: str | None = None
        run.keep(self)

    @property
    def bytes(self) -> int:
        """Memory held: that of the run and of the recordings."""
        mine = [*self.run.memory(), self.table, self._first, self.counters, self.keys]
        held = sum(made[0].bytes for made in self._made())
        return held + sum(x.numel() * x.element_size() for x in mine)

    def _made(self) -> list[tuple[Recording, int]]:
        return [made for made in self._recordings.values() if not isinstance(made, str)]

    def facts(self) -> dict[str, Any]:
        """What this is, as JSON values."""
        x = self.run.state
        counts = {"recordings": len(self._made()), "captures": self.captures, "replays": self.replays}
        dtype = str(x.dtype).removeprefix("torch.")
        return {"network": self._name, "kind": self.kind, "shape": list(x.shape), "dtype": dtype, **counts}

    def begin(self, fresh: Chains, keys: Tensor) -> None:
        """Take over a run that has begun."""
        for kept, new in zip(self.run.memory(), fresh.memory(), strict=True):
            kept.copy_(new)
        self.keys.view(torch.int64).copy_(keys.view(torch.int64))
        self.run.adopt(fresh)

    def load(self, table: Tensor) -> Tensor:
        """Copy the rows of some iterations; the counters stand at the first."""
        self.table[: len(table)].copy_(table)
        self.counters.copy_(self._first)
        return self.table

    def iterate(self, kind: Hashable, rows: int, body: Callable[[], None]) -> None:
        """Do an iteration of ``rows`` rows, recorded if it can be."""
        if kind not in self._recordings:
            self._recordings[kind] = self._record(rows, body)
        made = self._recordings[kind]
        if isinstance(made, str):
            self.why = made
            body()
            self.counters.add_(rows)
            return
        made[0].replay()
        self.run.call.calls += made[1]
        self.replays += 1

    def _record(self, rows: int, body: Callable[[], None]) -> tuple[Recording, int] | str:
        if len(self._recordings) >= KINDS:
            return f"kernel: its iterations are of more than {KINDS} kinds; the others run eagerly"
        memory, call = [*self.run.memory(), self.counters], self.run.call
        saved, calls = [x.clone() for x in memory], call.calls

        def before() -> None:
            call.calls = calls
            for x, value in zip(memory, saved, strict=True):
                x.copy_(value)

        def whole() -> None:
            body()
            self.counters.add_(rows)

        try:
            made = self._recorder.record(whole, before), call.calls - calls
        except CaptureError as error:
            if self.mode != "auto":
                raise
            return str(error)
        finally:
            before()
        self.captures += 1
        return made


class Served:
    """Which run is driven: ``run``; what recordings had to do with it: ``stats()``."""

    def __init__(self, mode: str, run: Chains, recorded: Recorded | None, why: str | None) -> None:
        self.run: Any = run if recorded is None else recorded.run
        self._mode, self._recorded, self._why = mode, recorded, why
        self._before = (0, 0) if recorded is None else (recorded.captures, recorded.replays)

    def own(self, x: Tensor) -> Tensor:
        """``x`` as memory that no later run writes to."""
        return x if self._recorded is None else x.clone()

    def stats(self) -> dict[str, Any]:
        """As ``stats["graph"]`` of `fastsample.sample`."""
        made = self._recorded
        counts = (0, 0) if made is None else (made.captures - self._before[0], made.replays - self._before[1])
        used, why = (None, self._why) if made is None else (made.kind if counts[1] else None, made.why)
        return {"mode": self._mode, "used": used, "why": why, "captures": counts[0], "replays": counts[1]}


@contextmanager
def served(
    mode: str, target: Target, run: Chains, keys: Tensor | None, why: str | None, begin: Callable[..., Chains]
) -> Iterator[Served]:
    """Serve a run that has begun; within this context the memory of its recordings is its own.

    ``why`` it cannot be recorded, if that is known.  ``begin(target, x, keys)`` begins another.  Raises `CaptureError`
    where nothing can be recorded; ``"auto"`` says why instead.
    """
    device = run.state.device
    if why is None and device.type not in ("cpu", "cuda"):
        why = f"device {device.type} has no graphs here"
    if mode == "auto" and why is None and not saves(device):
        why = f"{device.type}: a recorded call list saves nothing"
    if mode == "on" and why is not None:
        raise CaptureError(f"graph={mode!r}: {why}")
    if mode == "off" or why is not None or keys is None:
        yield Served(mode, run, None, why)
        return
    name = ("langevin", type(run), run.structure(), _parts(target), layout(run.state), ambient(device))
    kept: Any = STORE.find(target, name)
    if kept is None:
        own = copy.copy(target)  # what a target keeps for a batch is let go of when it meets another one
        keys_kept, x = keys.clone(), run.state.clone()
        made = begin(own, x, keys_kept)
        own.evaluate(x, False)  # what a target makes at its first call is no part of a recording
        kept = Recorded(made, keys_kept, recorder_for(device), type(target).__name__)
    with ExitStack() as stack:
        try:
            stack.enter_context(kept.turn)
        except BusyError as error:
            if mode != "auto":
                raise
            yield Served(mode, run, None, str(error))
            return
        kept.mode, kept.why = mode, None
        kept.begin(run, keys)
        try:
            yield Served(mode, run, kept, None)
        finally:
            if kept.captures:
                STORE.put(target, name, kept)


def _parts(target: Any) -> Hashable:
    """Where the weights lie of what a target calls."""
    called = getattr(target, "called", None)
    if called is None:  # a target of the caller's own
        called = (target, *(value for value in getattr(target, "__dict__", {}).values() if callable(value)))
    return tuple(lent.places_of(fn) for fn in called)
