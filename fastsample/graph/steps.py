"""The loop of plans as recordings: one per kind of call, network and fused update together.

Everything that differs between two calls of a kind lies on the device: the row, found by a counter that the recording
itself advances, the time told, keys and conditions.  So other steps, grids, seeds, weights of guidance and solvers of
the same memory are copies of tables, and no recording is made again.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Sequence
from typing import Any

import torch
from torch import Tensor

from ..given import NOISE_WEIGHTS, check_output
from ..models.network import Network
from ..plan import STARTS, Plan, output_of
from ..reductions import Reductions
from ..run import PlanRun, _parts
from . import lent, trees
from .kinds import Kind, kinds_of
from .memory import Memory
from .recorders import Recorder, Recording


class Replayed(PlanRun):
    """What hooks see of a run that is replayed: the state is memory of the recording."""

    def __init__(self, plan: Plan, slots: list[Tensor]) -> None:
        names = [slot.name for slot in plan.slots]
        self.plan, self.calls, self.guided, self.grad = plan, plan.nfe, plan.guided, False
        self._slots, self._denoised = slots, names.index("x0") if "x0" in names else None

    def asks(self) -> Any:
        raise RuntimeError("a replayed run asks no network")


class Steps:
    """Memory and recordings of the plans of one network on states of one kind.

    Args:
        network: the network; not kept, see `lent.Borrowed`.
        x: the state as `PlanRun` takes it, for its shape, dtype, layout and device.
        plan: the first plan, for what all plans served must agree in (`fits`).
        start: as `PlanRun`.
        conds: of `lent.joined`.
        recorder: makes the recordings.

    ``captures`` and ``replays`` count what was done since it was made.
    """

    def __init__(self, network: Network, x: Tensor, plan: Plan, start: str, conds: Any, recorder: Recorder) -> None:
        like = _parts(plan, x, start)[0]
        self._borrowed = lent.Borrowed(network)
        self._fits, self._guided, self._parts = fits(plan), plan.guided, plan.parts
        self.memory = Memory(
            like,
            parts=plan.parts,
            input_dtype=network.dtype,
            targets=plan.targets is not None,
            conds=trees.fixed(conds),
        )
        self._predict: Any = None
        self._recorder = recorder
        self._recordings: dict[Hashable, tuple[Recording, Any]] = {}
        self.captures = self.replays = 0

    @property
    def bytes(self) -> int:
        """Memory held: that of `Memory` and of the recordings."""
        return self.memory.bytes + sum(recording.bytes for recording, _ in self._recordings.values())

    def __len__(self) -> int:
        return len(self._recordings)

    def fits(self, plan: Plan) -> bool:
        """Whether a plan can be run here."""
        return fits(plan) == self._fits

    def begin(
        self, network: Network, plan: Plan, x: Tensor, start: str, key: Tensor | None, conds: Any, whole: bool
    ) -> tuple[Replayed, Callable[[Sequence[Callable[[int], Any]]], int]]:
        """The run of a plan: what hooks see, and what drives it as `fastsample.loop.drive` does.

        Records what has no recording yet.  Raises `CaptureError` where that is not possible.
        """
        kinds = kinds_of(plan)
        with torch.inference_mode():
            if self.memory.grow(plan.nfe):
                self._recordings.clear()
            trees.refill(self.memory.conds, conds)
            self.memory.load(plan, key)
            slots = [self.memory.slot((j, slot.role)) for j, slot in enumerate(plan.slots)]
            missing = [kinds] if whole else list(dict.fromkeys(kinds))
            missing = [name for name in missing if name not in self._recordings]
            self._start(plan, x, start, slots)
            if missing:
                with self._borrowed.given(network):
                    for name in missing:
                        self._record(plan, name, kinds)
                self.memory.rewind()
                self._start(plan, x, start, slots)  # warm-ups have moved it
        names: list[Hashable] = [kinds] if whole else list(kinds)
        replays = [self._recordings[name][0].replay for name in names]
        return Replayed(plan, slots), self._driver(replays, plan.nfe)

    def _driver(self, replays: list[Callable[[], None]], calls: int) -> Callable[..., int]:
        def drive(hooks: Sequence[Callable[[int], Any]] = ()) -> int:
            from ..loop import StopSampling

            self.replays += len(replays)
            if not hooks:
                for replay in replays:
                    replay()
                return calls
            for call, replay in enumerate(replays):
                replay()
                try:
                    for hook in hooks:
                        hook(call)
                except StopSampling:
                    return call + 1
            return calls

        return drive

    def _start(self, plan: Plan, x: Tensor, start: str, slots: list[Tensor]) -> None:
        """Write the start of a run: the prologue's row, applied at once."""
        number = STARTS.index(start)
        noisy = bool(plan.starts[number][NOISE_WEIGHTS].any())
        rows = plan.to(self.memory.device)
        outs = [slots[j] for j in plan.prologue.outputs]
        key = self.memory.key if noisy else None
        torch.ops.fastsample.update_(outs, list(_parts(plan, x, start)), rows.starts, rows.steps[number], key, [])

    def _record(self, plan: Plan, name: Any, kinds: tuple[Kind, ...]) -> None:
        memory = self.memory
        if self._predict is None:
            seen = memory.asked(kinds[0].ask)
            self._predict = lent.predictor(self._borrowed.network, self._guided, memory.conds, seen, memory.t)
        calls = [kinds.index(name)] if isinstance(name, Kind) else list(range(len(kinds)))
        reduce = Reductions.of(plan, memory.slot((0, plan.slots[0].role)))
        said = {output_of(j, plan.parts)[1] for call in plan.calls for j in call.terms if j < 0}
        also = memory.shape if plan.parts == 2 and len(said) == 1 else None  # one part alone, as in `PlanRun`

        def body() -> None:
            for call in calls:
                self._call(kinds[call], call, reduce, also)

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
        torch.ops.fastsample.update_.default(outs, terms, table, step, key, [])
        memory.step.add_(1)
        if kind.keep:  # a copy: memory of its own would make the kind depend on the kind before
            for branch, out in enumerate(said):
                memory.before(branch, out).copy_(out)

    def _output(self, term: int, said: list[Tensor]) -> Tensor:
        """A part of what the network said, now or at the call before."""
        branch, part, back = output_of(term, self._parts)
        out = self.memory.before(branch, said[branch]) if back else said[branch]
        count = self.memory.shape[1]
        return out if self._parts == 1 or out.shape[1] == count else out.narrow(1, part * count, count)


def fits(plan: Plan) -> Hashable:
    """What plans must agree in to share memory."""
    return plan.parts, plan.guided, plan.targets is not None
