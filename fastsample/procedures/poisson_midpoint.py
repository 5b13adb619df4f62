"""Poisson midpoint with midpoints of its own for each sample: one batch, different rows and network times in a call.

Which fine steps of a window are midpoints is drawn per sample, from its key, before the run begins; all rows, row
numbers and times are made then and uploaded once.  Call l of a window serves the l-th midpoint of every sample that has
one; a sample that has none keeps its state through an identity row.  Samples are then independent, and do not depend on
how the batch was cut.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from fastsample import noise, row
from fastsample.errors import CaptureError
from fastsample.plan import STARTS
from fastsample.procedures.poisson_rows import Call, Numbers, Rows, batch_calls
from fastsample.procedures.registry import Procedure, Setting, add
from fastsample.profiling.ranges import ranged
from fastsample.run import Asks, PlanRun, Recorded, Run, StepInfo, check_output
from fastsample.solvers import assemble as plans
from fastsample.solvers.fine_tables import fine_table
from fastsample.solvers.poisson_midpoint import (
    FROZEN,
    OPTIONS,
    PAPER,
    REFINED,
    USUAL,
    shared_steps,
)
from fastsample.solvers.poisson_windows import Indices, Window, Windows, asked, check_seed
from fastsample.solvers.step import Step


class PoissonMidpoint:
    """The run; see the module.  ``asks`` and the rest as in `fastsample.run.Run`.

    Raises:
        ValueError: an option that is not allowed, thresholding or rescaled guidance, guidance or times per call.
    """

    def __init__(self, setting: Setting, windows: Windows, midpoint_seed: int) -> None:
        network = dict(setting.network)
        _check(network)
        self._setting, self._windows = setting, windows
        self._update = ranged("update", torch.ops.fastsample.update_.default)
        self.guided = network["guidance"] is not None
        x, path = setting.x, windows.table.path
        self._noise = None if setting.noise is None else Recorded(setting.noise, 1 + path.steps)
        preview, scaled = bool(network["denoised"]), network["input_scaling"] != "none"
        keys = noise.keys(0, len(x)) if setting.key is None else setting.key.cpu()
        self._drawn = windows.draw(noise.fold_in(keys, midpoint_seed))
        plan = [asked(window, drawn) for window, drawn in zip(windows, self._drawn, strict=True)]
        self._asked = sum(_count(window, m) for window, m in zip(windows, plan, strict=True))
        most = max(m.shape[1] for m in plan)
        held = ["x", *([FROZEN] if most else []), *([REFINED] if most > 1 else []), *(["x0"] if preview else [])]
        self._held, extra = held, (*(["input"] if scaled else []), *(["x0"] if preview else []))
        rows = Rows(windows, network, held)
        self._calls = batch_calls(windows, plan, rows, extra)
        if network["denoise"] and path[-1].sigma > 0.0:
            outputs, end = ("x", *extra), np.full(len(x), path.steps)
            last = Window(path.steps, path.steps, 0.0)
            self._calls.append(Call(outputs, np.full(len(x), rows.denoised(outputs)), end, last, True))
        if max(len(call.outputs) for call in self._calls) > row.MAX_OUTPUTS:
            raise ValueError(
                f"denoised: a row with kept tensors, scaled input and x0 preview would have "
                f"{max(len(call.outputs) for call in self._calls)} outputs, allowed are {row.MAX_OUTPUTS}; let the "
                "network scale its own input (input_scaling='none')"
            )
        self.calls = len(self._calls)
        self._upload(rows, network)
        self._begin(rows, network)

    def _upload(self, rows: Rows, network: dict[str, Any]) -> None:
        x, path = self._setting.x, self._windows.table.path
        table = rows.table
        row.check_table(table)
        self._rows = len(table)
        self._draws = [table[call.rows, row.DRAW].astype(np.int64) for call in self._calls]
        self._noisy = [bool(table[call.rows][:, row.HI + 1 : row.HI + 4].any()) for call in self._calls]
        levels, time = path.levels(), network["time"]
        used = np.unique([call.fine for call in self._calls]) if self._calls else np.zeros(0, np.int64)
        told = np.zeros(path.steps + 1)
        steps = [Step(int(i), levels[i], 0.0, ()) for i in used]
        told[used] = plans._times(time, steps)
        self._told = np.stack([told[call.fine] for call in self._calls])
        wide = torch.float64 if x.dtype == torch.float64 else torch.float32
        with torch.inference_mode(False):
            # one size for most tables of a course, so that a recording can take the rows of another seed
            room = row.blank(1 << max(0, len(table) - 1).bit_length())
            room[: len(table)] = table
            self._table = torch.tensor(room, dtype=torch.float64, device=x.device)
            numbers = np.stack([call.rows for call in self._calls])
            self._steps = torch.tensor(numbers, dtype=torch.int64, device=x.device).unbind(0)
            self._t = torch.tensor(self._told, dtype=wide, device=x.device).unbind(0)

    def _begin(self, rows: Rows, network: dict[str, Any]) -> None:
        s, path = self._setting, self._windows.table.path
        kappa = rows.kappa(0) if "input" in self._calls[0].outputs else None
        first = Step(0, path[0], 0.0, ())
        starts = plans._starts(path, first, kappa, network["init_sigma"], 0.0)[STARTS.index(s.start)]
        self._bank: dict[str, Tensor] = {name: torch.empty_like(s.x, requires_grad=False) for name in self._held}
        if kappa is not None:
            self._bank["input"] = torch.empty_like(s.x, dtype=s.input_dtype, requires_grad=False)
        self._ask = "x" if kappa is None else "input"
        names = ("x",) if kappa is None else ("x", "input")
        table = torch.tensor(starts[None], dtype=torch.float64, device=s.x.device)
        step = torch.zeros((), dtype=torch.int64, device=s.x.device)
        noisy = bool(starts[row.HI + 1 : row.HI + 4].any())
        key, given = self._noises(np.zeros(len(s.x), np.int64)) if noisy else (None, [])
        self._apply(names, [s.x], table, step, key, given)

    @property
    def state(self) -> Tensor:
        return self._bank["x"]

    def ends_step(self, call: int) -> bool:
        return self._calls[call].last

    def info(self, call: int) -> StepInfo:
        """``t`` is the mean of what the samples of the batch were told."""
        t, step = float(self._told[call].mean()) if len(self.state) else 0.0, self._calls[call].window.start
        steps = self._windows.table.path.steps
        return StepInfo(call, step, self.calls, steps, t, self.state, self._bank.get("x0"))

    def stats(self) -> dict[str, Any]:
        batch = max(len(self.state), 1)
        return {
            "fine_steps": len(self._windows.table),
            "windows": len(self._windows),
            "midpoints": self._windows.midpoints,
            "midpoints_per_sample": sum(_count(w, m) for w, m in zip(self._windows, self._drawn, strict=True)) / batch,
            "nfe_per_sample": len(self._windows) + self._asked / batch,  # without waiting for others
            "rows": self._rows,
        }

    def course(self) -> tuple[Any, ...]:
        """What decides which ops run, and on memory of which size: runs of one course differ in numbers alone."""
        if self._windows.midpoints == "bernoulli":
            raise CaptureError(
                "midpoints: 'bernoulli' makes another number of network calls for every seed; take midpoints='one'"
            )
        outputs = tuple(call.outputs for call in self._calls)
        return tuple(self._held), outputs, tuple(self._noisy), len(self._table), self._ask

    def asks(self) -> Asks:
        for number, call in enumerate(self._calls):
            told = yield self._bank[self._ask], self._t[number]
            if number == 0:
                check_output(told, self.state, guided=self.guided)
            terms = [self._bank[name] for name in self._held]
            terms += [told] if isinstance(told, Tensor) else list(told)
            key, given = self._noises(self._draws[number]) if self._noisy[number] else (None, [])
            self._apply(call.outputs, terms, self._table, self._steps[number], key, given)
            del told, terms  # the outputs of old calls must not stay in memory

    def _apply(
        self,
        names: Sequence[str],
        terms: list[Tensor],
        table: Tensor,
        step: Tensor,
        key: Tensor | None,
        given: list[Tensor],
    ) -> None:
        outs = [self._bank[name] for name in names]
        if not self._setting.grad:
            self._update(outs, terms, table, step, key, given)
            return
        dtypes = [out.dtype for out in outs]
        same = all(dtype == terms[0].dtype for dtype in dtypes)
        made = torch.ops.fastsample.update.default(terms, table, step, key, given, len(outs), [] if same else dtypes)
        self._bank.update(zip(names, made, strict=True))

    def _noises(self, draws: Numbers) -> tuple[Tensor | None, list[Tensor]]:
        if self._noise is None:
            return self._setting.key, []
        x = self._setting.x
        mixed = torch.empty_like(x, requires_grad=False)
        for draw in np.unique(draws).tolist():
            of = torch.from_numpy(np.flatnonzero(draws == draw)).to(x.device)
            mixed[of] = self._noise(draw, x)[of].to(x.dtype)
        return None, [mixed]


def _count(window: Window, midpoints: Indices) -> int:
    return int((midpoints < window.end).sum())


def _check(network: dict[str, Any]) -> None:
    for name in ("threshold", "rescale"):
        if network[name] is not None:
            raise ValueError(
                f"{name}: got {network[name]!r}, but 'poisson-midpoint' with midpoints per sample has rows per sample "
                "already; allowed is None, or shared=True"
            )
    for name, kinds in (("guidance", (int, float, type(None))), ("time", (str,))):
        value = network[name]
        if (not isinstance(value, kinds) and not callable(value)) or isinstance(value, bool):
            raise ValueError(
                f"{name}: got {value!r}; how many calls there are depends on the midpoints, so it cannot be one per "
                "call"
            )


class Shared(PlanRun):
    """The plan of "poisson-midpoint-shared" as a run that reports."""

    windows: Windows
    drawn: list[Indices]

    def stats(self) -> dict[str, Any]:
        return {
            "fine_steps": len(self.windows.table),
            "windows": len(self.windows),
            "midpoints": self.windows.midpoints,
            "midpoints_per_sample": sum(_count(w, m) for w, m in zip(self.windows, self.drawn, strict=True)),
            "nfe_per_sample": self.plan.nfe,
            "rows": self.plan.nfe,
        }


def poisson_midpoint(
    setting: Setting,
    *,
    window: int,
    windows: Sequence[int] | str | None,
    midpoints: str | int,
    table: str,
    eta: float,
    midpoint_seed: int,
    shared: bool,
) -> Run:
    """Begin a run; ``shared``: with the midpoints of the plan "poisson-midpoint-shared", the same for all samples."""
    if not isinstance(shared, bool):
        raise ValueError(f"shared: got {shared!r}, allowed are True and False")
    made = Windows(fine_table(setting.path, table, eta), window, windows, midpoints)
    check_seed(midpoint_seed)
    if not shared:
        return PoissonMidpoint(setting, made, midpoint_seed)
    drawn = made.draw(noise.keys(midpoint_seed, 1))
    steps = shared_steps(made, drawn)
    plan = plans.assemble("poisson-midpoint-shared", setting.path, steps, options={}, **setting.network)
    s = setting
    run = Shared(plan, s.x, start=s.start, key=s.key, noise=s.noise, input_dtype=s.input_dtype, grad=s.grad)
    run.windows, run.drawn = made, drawn
    return run


add(
    Procedure(
        "poisson-midpoint",
        poisson_midpoint,
        "windows of K fine steps with a frozen prediction and random corrections, midpoints per sample",
        PAPER,
        order=1,
        nfe="2/K",
        stochastic=True,
        aliases=("pmm",),
        options={**OPTIONS, "shared": False},
        usual=USUAL,
    )
)
