"""A plan: the rows of one run, the memory they use, what the network is told.  Immutable, equal on every backend."""

from __future__ import annotations

import functools
import hashlib
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

import numpy as np

from fastsample.path import Array, Path, _frozen
from fastsample.plan_memory import COND as COND
from fastsample.plan_memory import NOISE_WEIGHTS, Pattern, patterns_of, shown_by
from fastsample.plan_memory import UNCOND as UNCOND
from fastsample.plan_memory import Call as Call
from fastsample.plan_memory import DevicePlan as DevicePlan
from fastsample.plan_memory import Slot as Slot
from fastsample.plan_memory import output_of as output_of
from fastsample.plan_memory import output_term as output_term

if TYPE_CHECKING:
    import torch

VERSION = 1
STARTS = ("noise", "state", "data")
ROLES = ("state", "input", "x0")


@dataclass(frozen=True, eq=False)
class Plan:
    """The rows of one run; make it with ``make_plan``.

    Args:
        solver, options: what made it; ``options`` is a read-only mapping of JSON values and includes every argument of
            ``make_plan`` that was not left at its default.
        path: the noise levels.
        prediction: what the network predicts.
        slots: the bank; slot 0 is the state ``x``.
        prologue: the call-like start, no network is asked: ``terms`` and ``outputs`` of the rows ``starts``.
        starts: ``(3, 48)``, see ``start``.
        calls, table, t, step_of: per network call: its memory, its row ``(calls, 48)``, the time told ``(calls,)``, and
            the step of the path it belongs to (N for a final denoising call).
        targets: None, or the second time told at each call ``(calls,)``, to networks of two times.
        draws: number of draws of the run.  Draw 0 is the start; noise r of call i is draw 1 + i, or 1 + 2i + r in a
            plan with two noises per row, 2 + 2i + r in one of two parts, whose start takes draws 0 and 1.  A row may
            make the noise of the call before again, as its noise 1.
        parts: 1, or 2: the network sees and returns ``(B, 2 C, ...)`` for data ``(B, C, ...)``; slots 0 and 1, then 2
            and 3, ... are the halves of one packed tensor along dimension 1, and rows are written in terms of halves.
            The result is slot 0.  A slot of role ``"x0"`` has the shape of the data.

    Raises:
        ValueError: anything in it contradicts something else.
    """

    solver: str
    options: Mapping[str, Any]
    path: Path
    prediction: str
    slots: tuple[Slot, ...]
    prologue: Call
    starts: Array
    calls: tuple[Call, ...]
    table: Array
    t: Array
    step_of: tuple[int, ...]
    draws: int
    targets: Array | None = None
    parts: int = 1
    _devices: dict[Any, DevicePlan] = field(default_factory=dict, init=False, repr=False)
    _text: list[str] = field(default_factory=list, init=False, repr=False)

    def __post_init__(self) -> None:
        from fastsample.plan_checks import check_plan, checked_table

        for name in ("table", "starts"):
            object.__setattr__(self, name, checked_table(name, getattr(self, name)))
        object.__setattr__(self, "t", _frozen("t", self.t))
        object.__setattr__(self, "targets", None if self.targets is None else _frozen("targets", self.targets))
        # through JSON and back: a private copy, of JSON values only
        object.__setattr__(self, "options", MappingProxyType(json.loads(json.dumps(dict(self.options)))))
        check_plan(self)

    @property
    def nfe(self) -> int:
        """Number of network calls of a run."""
        return len(self.calls)

    @property
    def previews(self) -> tuple[Slot, ...]:
        """Slots of role ``"x0"``."""
        return tuple(slot for slot in self.slots if slot.role == "x0")

    @functools.cached_property
    def shown(self) -> tuple[int, ...]:
        """Per call the slot that holds its x0_hat afterwards; none in a plan without previews.

        The slot of role ``"x0"``, or where a row has no output left for it, the slot of the history, to which it writes
        D itself: what the next call reads, so that a callback must not change it.
        """
        return shown_by(self.calls, self.table, self.slots.index(self.previews[0])) if self.previews else ()

    @functools.cached_property
    def guided(self) -> bool:
        """Whether rows use a conditional and an unconditional output."""
        return any(branch for pattern in self.patterns for _, branch, _, _ in pattern.places)

    @functools.cached_property
    def said(self) -> frozenset[int]:
        """Which parts of the network's output the rows read."""
        return frozenset(part or 0 for pattern in self.patterns for _, _, part, _ in pattern.places)

    @functools.cached_property
    def patterns(self) -> tuple[Pattern, ...]:
        """Per call its memory."""
        return patterns_of(self.calls, self.parts, [bool(weights.any()) for weights in self.table[:, NOISE_WEIGHTS]])

    @functools.cached_property
    def alike(self) -> tuple[int, ...]:
        """Per call the number of the first call of the same pattern."""
        first: dict[Pattern, int] = {}
        return tuple(first.setdefault(pattern, i) for i, pattern in enumerate(self.patterns))

    @functools.cached_property
    def noisy_starts(self) -> tuple[bool, ...]:
        """Per start whether its row uses noise."""
        return tuple(bool(weights.any()) for weights in self.starts[:, NOISE_WEIGHTS])

    @property
    def hash(self) -> str:
        """First 16 hex digits of the SHA-256 of ``to_json()``: names the plan in reports."""
        return hashlib.sha256(self.to_json().encode()).hexdigest()[:16]

    def start(self, kind: str) -> Array:
        """Row ``(48,)`` of the prologue.

        ``"noise"``: x = sigma_0 xi.  ``"state"``: x is already at the level of ``path[0]``.  ``"data"``: x holds clean
        data, which is brought to the level of ``path[0]``.  Raises ``ValueError`` for another kind.
        """
        if kind not in STARTS:
            raise ValueError(f"start: got {kind!r}, allowed are {', '.join(STARTS)}")
        start: Array = self.starts[STARTS.index(kind)]
        return start

    def with_denoised(self) -> Plan:
        """The same plan with a slot ``"x0"`` that every call fills with its x0_hat (after clipping), see ``shown``.

        Raises ``ValueError`` for rows that are not those of its solver, and where a row has no output left.
        """
        if any(slot.role == "x0" for slot in self.slots):
            return self
        options = dict(self.options)
        options.update(prediction=self.prediction, denoised=True)
        try:
            plain = make_plan(self.solver, self.path, **{**options, "denoised": False})
        except (TypeError, ValueError):
            plain = None
        if plain != self:
            raise ValueError("plan: its rows are not those of its solver, so the row of x0_hat is not known either")
        return make_plan(self.solver, self.path, **options)

    def to(self, device: torch.device | str) -> DevicePlan:
        """The table, the starts and the step indices as tensors on ``device``; made once per device."""
        import torch

        if device in self._devices:  # a torch.device of before
            return self._devices[device]
        key = torch.device(device)
        if key not in self._devices:
            with torch.inference_mode(False):  # for runs that want gradients too
                steps = torch.arange(max(self.nfe, len(STARTS)), dtype=torch.int64, device=device)
                told = self.t if self.targets is None else np.stack([self.t, self.targets], axis=-1)
                self._devices[key] = DevicePlan(
                    torch.tensor(self.table, dtype=torch.float64, device=device),
                    torch.tensor(self.starts, dtype=torch.float64, device=device),
                    tuple(steps.unbind(0)),
                    torch.tensor(told, dtype=torch.float64, device=device),
                )
        return self._devices[key]

    def to_json(self) -> str:
        """The whole plan as JSON; float64 survives exactly.  Rows are stored as their non-default columns."""
        if not self._text:
            from fastsample import plan_text

            self._text.append(plan_text.write(self))
        return self._text[0]

    @staticmethod
    def from_json(text: str) -> Plan:
        """Read ``to_json()`` back and check it.  Raises ``ValueError`` for anything else."""
        from fastsample import plan_text

        return plan_text.read(text)

    def __str__(self) -> str:
        from fastsample.show import show_plan

        return show_plan(self)

    def __repr__(self) -> str:
        return f"Plan({self.solver!r}, steps={self.path.steps}, nfe={self.nfe}, hash={self.hash!r})"

    def __eq__(self, other: object) -> bool:
        return self.to_json() == other.to_json() if isinstance(other, Plan) else NotImplemented

    def __hash__(self) -> int:
        return hash(self.to_json())

    def __reduce__(self) -> tuple[Any, ...]:
        return Plan.from_json, (self.to_json(),)


def make_plan(
    solver: str,
    path: Path,
    *,
    prediction: str = "eps",
    guidance: float | Sequence[float] | None = None,
    time: str | Sequence[float] | Callable[..., Any] = "t",
    input_scaling: str = "none",
    clip: float | tuple[float, float] | None = None,
    threshold: float | tuple[float, float, float] | None = None,
    rescale: float | None = None,
    sigma_data: float = 0.5,
    init_sigma: float | None = None,
    denoise: bool = False,
    denoised: bool = False,
    **options: Any,
) -> Plan:
    """The rows of one run: a pure function of its arguments.

    Args:
        solver: a name of ``fastsample.solvers.names()``.
        path: the noise levels (``fastsample.grids.make_path``).
        prediction: ``"eps" | "x0" | "v" | "score" | "flow" | "edm"``, see ``fastsample.predictions``.
        guidance: None for one network output; else the weight w (or one per call) of
            ``e = w e_cond + (1 - w) e_uncond``: the calls then have the terms -1 and -2.
        time: what the network is told: ``"t"`` (the path's t), ``"log-snr"`` (log alpha/sigma), ``"sigma"``
            (sigma/alpha), ``"log-sigma"`` (ln(sigma/alpha)/4, EDM's c_noise), ``"index"`` (t rounded to a whole
            number), one number per call, or a callable of the level at each call.
        input_scaling: ``"none"``, ``"vp"`` (the network is fed x/sqrt(alpha^2 + sigma^2)) or ``"edm"`` (c_in).
        clip: limits of x0_hat: None, r for (-r, r), or (lo, hi).
        threshold: dynamic thresholding of x0_hat: the ratio p, or (p, low, high): per sample s is the p-quantile of
            |x0_hat| within [low, high] (default [1, inf]) and x0_hat becomes clamp(x0_hat / s, -1, 1).  Saharia et al.
            2022, arXiv 2205.11487, section 2.3.  One more pass over what x0_hat is made of.
        rescale: phi in [0, 1]: the guided output times phi std(cond) / std(guided) + 1 - phi, per sample.  Lin et al.
            2023, arXiv 2305.08891, section 3.4.  One more pass over the network's outputs.
        sigma_data: of the EDM scalings.
        init_sigma: standard deviation of the start from noise; default sigma_0.
        denoise: one more call at the last level, whose x0_hat is the result.
        denoised: write x0_hat of every call to a slot ``"x0"`` (``Plan.shown``).
        **options: the solver's own, see ``fastsample.solvers.describe(name)``.  A callable of a ``Level`` stands for
            its values at the levels of the path.

    Raises:
        ValueError: an unknown name or option (the message lists what there is), a value out of range, a prediction
            that does not determine what the solver needs.
        TypeError: an argument of the wrong type.
    """
    from fastsample.solvers import assemble, registry
    from fastsample.solvers.phase import assemble as phase_assemble

    if not isinstance(path, Path):
        raise TypeError(f"path: got {type(path).__name__}, allowed is a fastsample Path (see make_path)")
    entry = registry.find(solver)
    for name, option in options.items():
        if callable(option):
            options[name] = [float(option(level)) for level in path.levels()]
    values = registry.complete(entry, options)
    shared: dict[str, Any] = {
        "options": options,
        "prediction": prediction,
        "guidance": guidance,
        "time": time,
        "input_scaling": input_scaling,
        "clip": clip,
        "threshold": threshold,
        "rescale": rescale,
        "sigma_data": sigma_data,
        "init_sigma": init_sigma,
        "denoise": denoise,
        "denoised": denoised,
    }
    make = assemble.assemble if entry.model != "phase-space" else phase_assemble.assemble
    try:
        return make(entry.name, path, entry.steps(path, **values), **shared)
    except assemble.RowFullError:
        if not entry.lean or not all(values[name] is None for name in entry.lean):
            raise
        return make(entry.name, path, entry.steps(path, **{**values, **entry.lean}), **shared)
