"""What the samplers by reverse transition kernels share: memory, rows, times, guidance, previews, the protocol."""

from __future__ import annotations

from collections.abc import Generator, Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor

from fastsample import row
from fastsample.path import Array, Level
from fastsample.plan import STARTS
from fastsample.plan_memory import NOISE_WEIGHTS
from fastsample.procedures.kernel_moves import move
from fastsample.procedures.kernel_target import STARTS as LAWS
from fastsample.procedures.kernel_target import denoised, segments
from fastsample.procedures.registry import Setting
from fastsample.profiling.ranges import ranged
from fastsample.run import Output, Recorded, StepInfo, check_output
from fastsample.solvers.assemble import _guidance, _positive, _starts, _times
from fastsample.solvers.express import Network
from fastsample.solvers.registry import check_choice
from fastsample.solvers.step import Step

Ask = Generator[tuple[Tensor, Tensor], Output, list[Tensor]]


class Rows:
    """Rows of one width, made on the host before the run: ``add`` all, then ``upload``, then look them up by number."""

    def __init__(self, setting: Setting, recorded: Recorded | None) -> None:
        self._key, self._recorded, self._like = setting.key, recorded, setting.x
        self._values: list[Array] = []
        self._noise: list[list[Tensor]] = []

    def add(self, values: Array) -> int:
        self._values.append(values)
        return len(self._values) - 1

    def upload(self) -> None:
        device = self._like.device
        self._table = torch.tensor(np.array(self._values), dtype=torch.float64, device=device)
        self._steps = torch.arange(len(self._values), dtype=torch.int64, device=device).unbind(0)
        needs = [len(values) > row.COLUMNS or values[NOISE_WEIGHTS].any() for values in self._values]
        self._keys = [self._key if need else None for need in needs]
        late = self._recorded is not None and self._recorded.late
        self._noise = [] if late else [self._noises(values) for values in self._values]

    def __getitem__(self, number: int) -> tuple[Tensor, Tensor, Tensor | None, list[Tensor]]:
        """Table, step, key and noise of a row, as the ops take them."""
        noise = self._noise[number] if self._noise else self._noises(self._values[number])
        return self._table, self._steps[number], self._keys[number], noise

    def course(self) -> tuple[bool, ...]:
        """Which rows take a key."""
        return tuple(key is not None for key in self._keys)

    def _noises(self, values: Array) -> list[Tensor]:
        return [] if self._recorded is None else self._recorded.of_row(values, self._like)


class KernelRun:
    """A run through the segments of a path.

    Subclasses say how many calls they make and write ``asks``.  They find here ``segments``; ``x`` and ``z``, memory
    for the condition and the chain; ``input``, memory for what the network is fed, or None where that is the chain
    itself; ``rows`` of ``update_``, to which they add their own before ``_ready``.

    Args:
        setting: what the run is made of.
        inner: moves of a chain, S.
        init: law of the start of a chain, see ``Segment.begin``.
        width: the data are nowhere narrower than this standard deviation (None: what the model says, else 0).
        calls: of a segment, but for those at its noisier level.
        again: whether a start that needs the score at the noisier level asks for it in every segment, not in the first
            alone.
        finish: whether a last x0_hat takes a call of its own.
        draws: of a segment.
        wide: never feed the network in less than the precision of the state.

    Raises:
        ValueError, TypeError: as ``make_plan``, ``segments``; limits on x0_hat, gradients through the run.
    """

    def __init__(
        self,
        setting: Setting,
        *,
        inner: int,
        init: str,
        width: float | None,
        calls: int,
        again: bool,
        finish: bool,
        draws: int,
        wide: bool = False,
    ) -> None:
        check_choice("init", init, LAWS)
        shared, path = setting.network, setting.path
        if setting.grad:
            raise ValueError("grad: no gradient passes through the chains of reverse kernels; allowed is False")
        for name in ("clip", "threshold", "rescale"):
            if shared[name] is not None:
                raise ValueError(
                    f"{name}: got {shared[name]!r}, allowed is None: a limited x0_hat is the score of no law"
                )
        if setting.key is None and setting.noise is None:
            raise ValueError("key, noise: give one of them")
        scaling, sigma_data = shared["input_scaling"], _positive("sigma_data", shared["sigma_data"])
        self.net = Network(shared["prediction"], scaling, sigma_data, path.rates, path.levels())
        narrow = setting.width if width is None else width
        self.segments = segments(path, self.net, 0.0 if narrow is None else narrow)
        self.inner, self.law, self._setting = inner, init, setting
        self._update = ranged("update", torch.ops.fastsample.update_.default)
        self.denoise = bool(shared["denoise"]) and path[-1].sigma > 0.0

        at: list[tuple[int, Level]] = []  # step of the path and level of every call
        for k, segment in enumerate(self.segments):
            if segment.needs_score(init) and (again or k == 0):
                at.append((segment.index, segment.start))
            at += [(segment.index, segment.end)] * calls
        if self.denoise and finish:
            at.append((path.steps, path[-1]))
        if not at:
            raise ValueError(f"inner: got {inner}, and init={init!r} makes no call either; take one move or more")
        steps = [Step(i, level, a=0.0, b=(1.0,)) for i, level in at]
        self.calls, self._step_of = len(at), [i for i, _ in at]
        self._told_t = _times(shared["time"], steps)
        shares = _guidance(shared["guidance"], len(at))
        self.guided, self.shares = shares is not None, shares or [1.0] * len(at)
        self.outputs = ("e", "e-") if self.guided else ("e",)

        like, precise = setting.x, setting.x.dtype == torch.float64
        times = torch.tensor(self._told_t, dtype=torch.float64 if precise else torch.float32, device=like.device)
        self._t = times[:, None].expand(-1, len(like)).contiguous().unbind(0)
        fed = like.dtype if setting.input_dtype is None or wide else setting.input_dtype
        self.scaled = scaling != "none" or fed != like.dtype
        self.x, self.z = (torch.empty_like(like, requires_grad=False) for _ in range(2))
        self.input = torch.empty_like(like, dtype=fed, requires_grad=False) if self.scaled else None
        recorded = None if setting.noise is None else Recorded(setting.noise, 1 + draws * len(self.segments))
        self.recorded, self.rows = recorded, Rows(setting, recorded)
        self.told, self._state = 0, self.x
        self._preview = torch.empty_like(like, requires_grad=False) if shared["denoised"] else None
        if self._preview is not None:
            self._preview_rows = [self.rows.add(self._preview_row(n, i, level)) for n, (i, level) in enumerate(at)]

    @property
    def state(self) -> Tensor:
        return self._state

    def ends_step(self, call: int) -> bool:
        return call + 1 == self.calls or self._step_of[call + 1] != self._step_of[call]

    def info(self, call: int) -> StepInfo:
        steps, t = self._setting.path.steps, self._told_t[call]
        return StepInfo(call, self._step_of[call], self.calls, steps, t, self.state, self._preview)

    def stats(self) -> Mapping[str, Any]:
        """What the run says of itself; reads the device."""
        return {"segments": len(self.segments), "inner": self.inner, "init": self.law, "nfe": self.told}

    def course(self) -> tuple[Any, ...]:
        """What decides which ops run, and on memory of which size: runs of one course differ in numbers alone."""
        asked = tuple(segment.needs_score(self.law) for segment in self.segments)
        preview = self._preview is not None
        return asked, self.inner, self.denoise, self.outputs, self.scaled, preview, self.calls, self.rows.course()

    def kappa(self, at: Level) -> float:
        """Factor of the network's input."""
        return self.net.kappa(at)

    def fed(self, at: Level, state: Mapping[str, float], *others: Mapping[str, float]) -> list[dict[str, float]]:
        """The outputs of a row: a state at a level, what else, and what the network is fed if that is apart."""
        kappa = self.kappa(at)
        return [
            dict(state),
            *(dict(other) for other in others),
            *([{source: kappa * weight for source, weight in state.items()}] if self.scaled else []),
        ]

    def memory(self, *states: Tensor) -> list[Tensor]:
        """The memory that the outputs of ``fed`` go to."""
        return [*states, *([] if self.input is None else [self.input])]

    def new_rows(self) -> Rows:
        """Rows apart from ``rows``: of another width, or of a segment whose step is not known before it begins."""
        return Rows(self._setting, self.recorded)

    def seen(self, state: Tensor) -> Tensor:
        """What the network is asked at: ``state``, or ``input`` where there is one."""
        return state if self.input is None else self.input

    def apply(self, number: int, outs: list[Tensor], terms: list[Tensor]) -> None:
        """Apply a row of ``rows``."""
        self._update(outs, terms, *self.rows[number])

    def begin(self) -> None:
        """Upload the rows and write the start of the run to ``x``: the end of ``__init__``, which refuses before."""
        setting, path = self._setting, self._setting.path
        kappa = self.kappa(path[0]) if self.scaled else None
        starts = _starts(path, Step(0, path[0], a=0.0, b=(1.0,)), kappa, setting.network["init_sigma"], 0.0)
        number = self.rows.add(starts[STARTS.index(setting.start)])
        self.rows.upload()
        self.apply(number, self.memory(self.x), [setting.x])

    def ask(self, point: Tensor) -> Ask:
        """The network's output at ``point``, or both outputs under guidance."""
        call = self.told
        told = yield point, self._t[call]
        if call == 0:
            check_output(told, self.x, guided=self.guided)
        self.told += 1
        outputs: list[Tensor] = [told[0], told[1]] if self.guided else [told]  # type: ignore[list-item]  # checked
        if self._preview is not None:
            self.apply(self._preview_rows[call], [self._preview], [point, *outputs])
        return outputs

    def _preview_row(self, call: int, index: int, at: Level) -> Array:
        made, kappa = denoised(self.net, index, at, "x"), self.kappa(at)
        seen = {source: weight / kappa if source == "x" else weight for source, weight in made.items()}
        return move(("x", *self.outputs), [seen], share=self.shares[call])


def whole(name: str, value: Any, low: int = 1) -> int:
    """``value`` as a whole number; raises ``ValueError`` that names the option."""
    if isinstance(value, bool) or not isinstance(value, int) or value < low:
        raise ValueError(f"{name}: got {value!r}, allowed are whole numbers >= {low}")
    return value
