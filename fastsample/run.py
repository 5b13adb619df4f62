"""A plan as a run: it asks for a network call, is told the output, applies one row, and asks again.

The protocol is that of every sampler here, plan or procedure: ``asks()`` is a generator that yields ``(x, t)``, is sent
the network's output (a pair under guidance), and returns when the state is final.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from . import ops as ops  # defines torch.ops.fastsample
from .bank import Bank, halves
from .given import Array as Array
from .given import Noise as Noise
from .given import Recorded as Recorded
from .given import check_apart
from .given import check_output as check_output
from .kept import Kept, place_of
from .ops import bound
from .plan import STARTS, output_of
from .plan_memory import NOISE_WEIGHTS
from .profiling.ranges import ranged
from .protocol import Asks as Asks
from .protocol import Output as Output
from .protocol import Run as Run
from .protocol import StepInfo as StepInfo
from .reductions import Reductions
from .repeats import Repeats

if TYPE_CHECKING:
    from .plan import Call, Plan
    from .traced import RunPattern


class PlanRun:
    """One run of a plan, every argument of every update made ready before the first network call.

    Args:
        plan: the plan.
        x: the state to start from, or for ``start="noise"`` any tensor of its shape, dtype and device. Never written.
            For a plan of two parts: data, or a tensor of its shape; for ``start="state"`` the packed state
            ``(B, 2 C, ...)``. The network sees and returns packed tensors; ``state`` is the position.
        start: ``"noise"`` (from nothing), ``"state"`` (``x`` is at the plan's first level) or ``"data"`` (``x`` is
            data, noised to that level).
        key: ``(B, 2)`` uint64, see `fastsample.noise.keys`.
        noise: noise in place of keys: recorded, one tensor like ``x`` per draw of the plan (draw 0 is the start), or a
            function of the number of the draw, called after the network, right before the update that uses it.
        input_dtype: of the slot that holds the network's scaled input. None: that of ``x``.
        grad: run the functional update, which gradients pass through, on new tensors in each step.
        reuse: take the memory that an earlier run has left, and have `finish` called at the end (`fastsample.kept`).

    Raises:
        ValueError: an unknown start, noise missing or of another shape.
    """

    def __init__(
        self,
        plan: Plan,
        x: Tensor,
        *,
        start: str = "noise",
        key: Tensor | None = None,
        noise: Noise | None = None,
        input_dtype: torch.dtype | None = None,
        grad: bool = False,
        reuse: bool = False,
    ) -> None:
        if start not in STARTS:
            raise ValueError(f"start: got {start!r}, allowed are {', '.join(STARTS)}")
        if (key is None) == (noise is None) and plan.draws:
            raise ValueError("key, noise: give one of them")
        self.plan, self.grad, self.calls = plan, grad, len(plan.calls)
        self.guided = plan.guided
        pair = _parts(plan, x, start)
        x = pair[0]
        self._key: Tensor | None = None
        self._t: tuple[Tensor, ...]
        self._noise = None if noise is None else Recorded(noise, plan.draws, plan.table)
        self._device = plan.to(x.device)
        # a network of one part alone will do where nothing is asked of the other
        self._also = x.shape if plan.parts == 2 and len(plan.said) == 1 else None
        self._reduce = Reductions.of(plan, x)
        if self._reduce is not None and grad:
            raise ValueError("grad: no gradient passes through thresholding or rescaled guidance")
        plain = reuse and not grad and noise is None and self._reduce is None
        self._place = place_of(plan, x, key, input_dtype) if plain else None
        left = None if self._place is None else self._device.kept.pop(self._place, None)
        self._held = left is False  # somebody did hold it, and will again
        self._kept = left if isinstance(left, Kept) else self._make(x, key, input_dtype, left or None)
        if self._kept is not None and key is not None:
            self._slots, self._asked, self._t, self._prepared, self._key = self._kept.load(key)
        self._said: torch.dtype | None = None
        self._begin(pair, start)

    def _make(
        self, x: Tensor, key: Tensor | None, input_dtype: torch.dtype | None, said: torch.dtype | None
    ) -> Kept | None:
        """New memory; to be kept, if it is known from an earlier run what the network says."""
        plan = self.plan
        wide = torch.float64 if x.dtype == torch.float64 else torch.float32
        with torch.inference_mode(False):  # kept for later runs, which may want gradients
            bank = Bank(plan, x, input_dtype)  # a compiled network tells inference tensors from others
            times = self._device.times(len(x), wide)
            lasting = said is not None and key is not None and bound.free()
            self._key = key.clone(memory_format=torch.contiguous_format) if lasting and key is not None else key
            self._slots, self._asked = bank.tensors, bank.asked
            self._prepared = [] if self.grad else self._prepare()
            if lasting and said is not None and self._key is not None:
                return Kept(plan, self._device, self._slots, self._asked, times, self._prepared, self._key, said)
            self._t = times.unbind(0)
        return None

    def finish(self) -> Tensor:
        """The state as a tensor of the caller; the run is over, and the next one may have its memory."""
        place, kept, state = self._place, self._kept, self._slots[0]
        if kept is not None:
            with torch.inference_mode(False):
                state = state.clone()
        if place is not None and self._said is not None:
            left = self._device.kept
            left.clear()  # of the last kind of run alone
            if kept is not None:
                self._t = ()
                self._held = not kept.unheld()
            left[place] = False if self._held else self._said if kept is None else kept
        self._kept = self._place = None
        return state

    @property
    def state(self) -> Tensor:
        return self._slots[0]

    @property
    def asked(self) -> Tensor:
        """What the network sees: the state, of a plan of two parts the whole of it ``(B, 2 C, ...)``."""
        return self._asked[self.plan.calls[0].ask]

    def slot(self, name: str) -> Tensor:
        """The tensor of the slot ``name`` as it is now; ``ValueError`` if the plan has none of that name."""
        names = [slot.name for slot in self.plan.slots]
        if name not in names:
            raise ValueError(f"name: got {name!r}, allowed are {', '.join(names)}")
        return self._slots[names.index(name)]

    def ends_step(self, call: int) -> bool:
        steps = self.plan.step_of
        return call + 1 == len(steps) or steps[call + 1] != steps[call]

    def info(self, call: int) -> StepInfo:
        return StepInfo(
            call=call,
            step=self.plan.step_of[call],
            calls=self.calls,
            steps=self.plan.path.steps,
            t=float(self.plan.t[call]),
            x=self.state,
            denoised=self._slots[self.plan.shown[call]] if self.plan.shown else None,
        )

    def asks(self) -> Asks:
        if self.grad:
            yield from self._functional()
            return
        op = torch.ops.fastsample.update_.default
        apply = ranged("update", op)
        table, reduce = self._device.table, self._reduce
        late = self._noise is not None and self._noise.late
        plain = apply is op and reduce is None and self._noise is None
        repeat: Repeats | None = None
        if plain and self._kept is not None:
            repeat = self._kept.repeats if bound.free() else None
        elif plain:
            repeat = Repeats.of(self.plan, self._device.steps, self.state)
        before: Any = None
        out: Any = None
        times = self._t
        for call, (x, outs, terms, step, key, noise, places, keep) in enumerate(self._prepared):
            told = yield x, times[call]
            if call == 0:
                self._check(told)
            if before is not None:
                check_apart(told, before)
            for term, branch, part, back in places:
                out = before if back else told
                if branch is not None:
                    out = out[branch]
                terms[term] = out if part is None else self._part(out, part)
            if late:
                noise = self.noises(self.plan.table[call])[1]
            if reduce is None:
                if repeat is None or not repeat(call, outs, terms, table, step, key):
                    apply(outs, terms, table, step, key, noise)
            else:
                apply(outs, terms, *reduce(call, terms, table, step), key, noise)
            for term, *_ in places:  # the outputs of old calls must not stay in memory
                terms[term] = None
            before, out = told if keep else None, None
            del told

    def _functional(self) -> Asks:
        slots, parts = self._slots, self.plan.parts
        apply = ranged("update", torch.ops.fastsample.update.default)
        before: Any = None
        for i, call in enumerate(self.plan.calls):
            ask = slots[call.ask] if parts == 1 else torch.cat(slots[call.ask : call.ask + parts], dim=1)
            told = yield ask, self._t[i]
            if i == 0:
                self._check(told)
            pair: Any = told if self.guided else (told, told)
            terms: list[Any] = []
            for j in call.terms:
                branch, part, back = output_of(j, parts) if j < 0 else (0, 0, 0)
                terms.append(slots[j] if j >= 0 else self._part((before if back else pair)[branch], part))
            before = pair
            key, noise = self.noises(self.plan.table[i])
            step, casts = self._device.steps[i], self._casts(terms, call)
            made = apply(terms, self._device.table, step, key, noise, len(call.outputs), casts)
            for j, value in zip(call.outputs, made, strict=True):
                slots[j] = value

    def _casts(self, terms: list[Tensor], call: Call) -> list[torch.dtype]:
        """Dtypes of the outputs of a call for the functional update; none if all are that of the first term."""
        dtypes = [self._slots[j].dtype for j in call.outputs]
        return [] if all(dtype == terms[0].dtype for dtype in dtypes) else dtypes

    def _check(self, told: Any) -> None:
        check_output(told, next(iter(self._asked.values())), guided=self.guided, also=self._also)
        self._said = told[0].dtype if self.guided else told.dtype

    def _part(self, out: Tensor, part: int) -> Tensor:
        """A part of what the network said: a view."""
        count = self._slots[0].shape[1]
        return out if out.shape[1] == count else out.narrow(1, part * count, count)

    def _begin(self, pair: tuple[Tensor, ...], start: str) -> None:
        outputs = self.plan.prologue.outputs
        row_number = STARTS.index(start)
        if self._kept is not None and bound.free():
            key = self._key if self.plan.noisy_starts[row_number] else None
            if self._kept.begin(pair[0], start, key):
                return
        key, noise = self.noises(self.plan.starts[row_number])
        table, step = self._device.starts, self._device.steps[row_number]
        if self.grad:
            dtypes = self._casts(list(pair), self.plan.prologue)
            made = torch.ops.fastsample.update(list(pair), table, step, key, noise, len(outputs), dtypes)
            for j, value in zip(outputs, made, strict=True):
                self._slots[j] = value
        else:
            with torch.inference_mode():  # past the look for gradients
                outs = [self._slots[j] for j in outputs]
                torch.ops.fastsample.update_.default(outs, list(pair), table, step, key, noise)

    def _prepare(self) -> list[tuple[Any, ...]]:
        """Per call: what is asked, and the arguments of the update with places for the network's outputs."""
        slots, steps, given = self._slots, self._device.steps, self._noise
        kinds: dict[int, tuple[Any, ...]] = {}  # calls of a pattern share their lists
        prepared = []
        for i, alike in enumerate(self.plan.alike):
            if alike not in kinds or given is not None:
                call, places, keep, noisy = self.plan.patterns[i]
                terms = [slots[j] if j >= 0 else None for j in call.terms]
                outs = [slots[j] for j in call.outputs]
                needs = noisy and not (given is not None and given.late)
                key, noise = self.noises(self.plan.table[i]) if needs else (None, [])
                kinds[alike] = self._asked[call.ask], outs, terms, key, noise, places, keep
            x, outs, terms, key, noise, places, keep = kinds[alike]
            prepared.append((x, outs, terms, steps[i], key, noise, places, keep))
        return prepared

    def noises(self, values: Array) -> tuple[Tensor | None, list[Tensor]]:
        """Key and noise tensors of a row; neither if it uses no noise."""
        if not values[NOISE_WEIGHTS].any():
            return None, []
        return (self._key, []) if self._noise is None else (None, self._noise.of_row(values, self._slots[0]))


def _parts(plan: Plan | RunPattern, x: Tensor, start: str) -> tuple[Tensor, ...]:
    """The terms of the start."""
    if plan.parts == 1:
        return (x,)
    if start != "state":  # m has weight zero and is not read
        return x, x
    if x.shape[1] % 2:
        raise ValueError(f"x: got shape {tuple(x.shape)}, need (B, 2 C, ...): position and momentum along dimension 1")
    return halves(x)
