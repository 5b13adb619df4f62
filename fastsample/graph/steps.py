"""The loop of plans as recordings: one per kind of call, network and fused update together.

Everything that differs between two calls of a kind lies on the device: the row, found by a counter that the recording
itself advances, the time told, keys and conditions.  So other steps, grids, seeds, weights of guidance and solvers of
the same memory are copies of tables, and no recording is made again.
"""

from __future__ import annotations

from collections.abc import Hashable
from typing import Any

import torch
from torch import Tensor

from ..given import check_output
from ..plan import STARTS, Plan, output_of
from ..profiling.ranges import range_of
from ..reductions import Reductions
from ..run import PlanRun, _parts
from . import lent, trees
from .drive import Drive
from .kinds import Kind, kinds_of
from .memory import Memory
from .recorders import Recorder, Recording, Turn
from .request import Request


class Replayed(PlanRun):
    """What hooks see of a run that is replayed: the state is memory of the recording."""

    def __init__(self, plan: Plan, slots: list[Tensor]) -> None:
        self.plan, self.calls, self.guided, self.grad = plan, plan.nfe, plan.guided, False
        self._slots = slots

    def asks(self) -> Any:
        raise RuntimeError("a replayed run asks no network")


class Steps:
    """Memory and recordings of the plans of one network on states of one kind.

    Args:
        request: the first run, for what all runs served must agree in, see ``Request.name``.
        conds: its conditions.
        recorder: makes the recordings.

    ``captures`` and ``replays`` count what was done since it was made.
    """

    def __init__(self, request: Request, conds: Any, recorder: Recorder) -> None:
        network, plan = request.network, request.plan
        assert plan is not None
        like = _parts(plan, request.x, request.start)[0]
        self._borrowed = lent.Borrowed(network)
        self._guided, self._parts = plan.guided, plan.parts
        self.memory = Memory(
            like,
            parts=plan.parts,
            input_dtype=network.dtype,
            targets=plan.targets is not None,
            conds=trees.fixed(conds),
        )
        self._predict: Any = None
        self._seen: tuple[Plan, tuple[Kind, ...]] | None = None
        self._recorder, self.kind = recorder, recorder.name
        self.turn = Turn(recorder)
        self._recordings: dict[Hashable, tuple[Recording, Any]] = {}
        self.captures = self.replays = 0

    @property
    def bytes(self) -> int:
        """Memory held: that of `Memory` and of the recordings."""
        return self.memory.bytes + sum(recording.bytes for recording, _ in self._recordings.values())

    def __len__(self) -> int:
        return len(self._recordings)

    def facts(self) -> dict[str, Any]:
        """What this is, as JSON values."""
        shape, dtype = list(self.memory.shape), str(self.memory.dtype).removeprefix("torch.")
        counts = {"recordings": len(self), "captures": self.captures, "replays": self.replays}
        return {"network": self._borrowed.network.name, "kind": self.kind, "shape": shape, "dtype": dtype, **counts}

    def begin(self, request: Request, conds: Any, whole: bool) -> tuple[Replayed, Drive]:
        """The run of a plan: what hooks see, and what drives it as `fastsample.loop.drive` does.

        Records what has no recording yet: the calls of a kind, or with ``whole`` all calls of the plan as one.  Hold
        ``turn`` until the result is copied.  Raises `CaptureError` where recording is not possible.
        """
        plan, x, start = request.plan, request.x, request.start
        assert plan is not None
        if self._seen is None or self._seen[0] is not plan:
            self._seen = plan, kinds_of(plan)
        kinds = self._seen[1]
        with torch.inference_mode():
            if self.memory.grow(plan.nfe):
                self._recordings.clear()
            trees.refill(self.memory.conds, conds)
            self.memory.load(plan, request.key)
            slots = [self.memory.slot((j, slot.role)) for j, slot in enumerate(plan.slots)]
            wanted: list[Hashable] = [kinds] if whole else list(dict.fromkeys(kinds))
            missing = [name for name in wanted if name not in self._recordings]
            self._start(plan, x, start, slots)
            if missing:
                with self._borrowed.given(request.network):
                    for name in missing:
                        self._record(plan, name, kinds)
                self.memory.rewind()
                self._start(plan, x, start, slots)  # warm-ups have moved it
        names: list[Hashable] = [kinds] if whole else list(kinds)
        replays = [self._recordings[name][0].replay for name in names]

        def restart() -> None:
            self.memory.rewind()
            self._start(plan, x, start, slots)

        def count(number: int) -> None:
            self.replays += number

        return Replayed(plan, slots), Drive(replays, plan.nfe, restart, count)

    def _start(self, plan: Plan, x: Tensor, start: str, slots: list[Tensor]) -> None:
        """Write the start of a run: the prologue's row, applied at once."""
        number = STARTS.index(start)
        noisy = plan.noisy_starts[number]
        rows = plan.to(self.memory.device)
        outs = [slots[j] for j in plan.prologue.outputs]
        key = self.memory.key if noisy else None
        torch.ops.fastsample.update_(outs, list(_parts(plan, x, start)), rows.starts, rows.steps[number], key, [])

    def _record(self, plan: Plan, name: Any, kinds: tuple[Kind, ...]) -> None:
        memory = self.memory
        if self._predict is None:
            self._predict = lent.predictor(self._borrowed.network, self._guided, memory.conds)
        calls = [kinds.index(name)] if isinstance(name, Kind) else list(range(len(kinds)))
        reduce = Reductions.of(plan, memory.slot((0, plan.slots[0].role)))
        also = memory.shape if plan.parts == 2 and len(plan.said) == 1 else None  # one part alone, as in `PlanRun`

        def body() -> None:
            for call in calls:
                self._call(kinds[call], call, reduce, also)

        with range_of(f"capture {plan.solver}", self.captures):
            recording = self._recorder.record(body, lambda: memory.rewind(calls[0]))
        self._recordings[name] = recording, reduce  # its tables belong to the recording
        self.captures += 1

    def _call(self, kind: Kind, call: int, reduce: Reductions | None, also: tuple[int, ...] | None) -> None:
        """Network, then update: what is recorded."""
        memory = self.memory
        if not kind.told:
            where = memory.clock[:1].expand(memory.batch)
            torch.index_select(memory.times, 0, where, out=memory.t)
        asked = memory.asked(kind.ask)
        told = self._predict(asked, memory.t)
        check_output(told, asked, guided=self._guided, also=also)
        said = list(told) if self._guided else [told]
        terms = [memory.slot(j) if isinstance(j, tuple) else self._output(j, said) for j in kind.terms]
        table, step = memory.table, memory.step
        if reduce is not None:
            table, step = reduce(call, terms, table, step)
        outs, key = [memory.slot(j) for j in kind.outputs], memory.key if kind.noisy else None
        time = memory.t if kind.told else None
        torch.ops.fastsample.advance_.default(outs, terms, table, step, key, [], time, memory.clock)
        if kind.keep:  # a copy: memory of its own would make the kind depend on the kind before
            for branch, out in enumerate(said):
                memory.before(branch, out).copy_(out)

    def _output(self, term: int, said: list[Tensor]) -> Tensor:
        """A part of what the network said, now or at the call before."""
        branch, part, back = output_of(term, self._parts)
        out = self.memory.before(branch, said[branch]) if back else said[branch]
        count = self.memory.shape[1]
        return out if self._parts == 1 or out.shape[1] == count else out.narrow(1, part * count, count)
