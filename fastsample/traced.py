"""The run of a plan as torch can trace it: tables, keys and times are tensors, the pattern of memory is Python.

`Loop` is that run as a module, for ``torch.compile`` (the whole run is one graph) and ``torch.export``.  `sample` comes
here too when it is traced.  See docs/compile.md.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from .bank import Bank
from .choosing import check_fit
from .given import check_output
from .models.network import Network, Predictor, as_network
from .plan import STARTS, Call, Plan, Slot, output_of
from .reductions import Facts, Reductions
from .run import _parts

__all__ = ["Loop", "RunPattern", "Tables", "run_traced"]


class RunPattern(NamedTuple):
    """What a graph is compiled for: plans of one pattern share it, whatever their numbers."""

    slots: tuple[Slot, ...]
    parts: int
    guided: bool
    noisy: bool
    """Whether the updates make noise; that of the start is apart."""
    outputs: tuple[int, ...]
    """Slots that the start writes."""
    calls: tuple[Call, ...]
    facts: Facts | None
    """Thresholding and rescaled guidance, which have numbers of their own; None: none."""

    @classmethod
    def of(cls, plan: Plan) -> RunPattern:
        """The pattern of a plan.  Reads no array, so that it can be traced."""
        # what a plan has cached takes a lock, which torch cannot trace
        guided = any(output_of(j, plan.parts)[0] for call in plan.calls for j in call.terms if j < 0)
        slots = tuple(Slot(str(n), slot.role) for n, slot in enumerate(plan.slots))  # names make no graph
        return cls(
            slots, plan.parts, guided, plan.draws > plan.parts, plan.prologue.outputs, plan.calls, Facts.of(plan)
        )


class Tables(NamedTuple):
    """The numbers of a run on its device: ``table`` ``(calls, 48)`` and ``starts`` ``(3, 48)`` float64, ``times``
    ``(calls,)`` or ``(calls, 2)`` float64, ``steps`` int64 ``(calls,)``, at least 3: 0, 1, 2, ..."""

    table: Tensor
    starts: Tensor
    times: Tensor
    steps: Tensor

    @classmethod
    def of(cls, plan: Plan, device: torch.device | str) -> Tables:
        """Copies; kept by nobody."""
        told = plan.t if plan.targets is None else np.stack([plan.t, plan.targets], axis=-1)
        tensor: Any = torch.as_tensor if torch.compiler.is_compiling() else torch.tensor
        table, starts, times = (tensor(a, dtype=torch.float64, device=device) for a in (plan.table, plan.starts, told))
        return cls(table, starts, times, torch.arange(max(plan.nfe, len(STARTS)), device=device))


def run_traced(
    pattern: RunPattern,
    tables: Tables,
    predict: Predictor,
    x: Tensor,
    key: Tensor | None,
    *,
    start: str = "noise",
    grad: bool = False,
    input_dtype: torch.dtype | None = None,
) -> Tensor:
    """The samples of a run, a new tensor ``(B, ...)``; arguments as those of `PlanRun`.

    Without ``grad`` the updates write the bank in place, which Inductor keeps (docs/compile.md); with it each makes new
    tensors.
    """
    terms: list[Any] = list(_parts(pattern, x, start))
    like = terms[0]
    bank = Bank(pattern, like, input_dtype)
    slots, parts, ops = bank.tensors, pattern.parts, torch.ops.fastsample
    if grad:  # a weight of zero has a gradient too, which must not be made of memory that holds anything
        slots = [torch.zeros_like(slot) for slot in slots]
    dtypes = [slot.dtype for slot in slots]
    noise_key = key if pattern.noisy else None
    wide = torch.float64 if like.dtype == torch.float64 else torch.float32
    times = tables.times.to(wide)[:, None].expand(-1, like.shape[0], *tables.times.shape[1:]).contiguous()
    reduce = None if pattern.facts is None else Reductions(pattern.facts, like)

    def update(outputs: tuple[int, ...], table: Tensor, step: Tensor, key: Tensor | None) -> None:
        if not grad:
            ops.update_([slots[j] for j in outputs], terms, table, step, key, [])
            return
        made = ops.update(terms, table, step, key, [], len(outputs), [dtypes[j] for j in outputs])
        for j, value in zip(outputs, made, strict=True):
            slots[j] = value

    update(pattern.outputs, tables.starts, tables.steps[STARTS.index(start)], key)
    before: Any = None
    for i, call in enumerate(pattern.calls):
        if not grad:
            asked = bank.asked[call.ask]
        else:
            asked = slots[call.ask] if parts == 1 else torch.cat(slots[call.ask : call.ask + parts], dim=1)
        told: Any = predict(asked, times[i])
        if i == 0:
            check_output(told, asked, guided=pattern.guided, also=like.shape if parts == 2 else None)
        told = told if pattern.guided else (told, told)
        terms = [slots[j] if j >= 0 else _output(j, told, before, like, parts) for j in call.terms]
        table, step = tables.table, tables.steps[i]
        if reduce is not None:
            table, step = reduce(i, terms, table, step)
        update(call.outputs, table, step, noise_key)
        before = told
    return slots[0] if parts == 1 or grad else slots[0].clone()  # not half of a tensor


def run_in_graph(
    plan: Plan, network: Network, x: Tensor, key: Tensor | None, cond: Any, uncond: Any, *, start: str, grad: bool
) -> Tensor:
    """What `sample` does of a plan while torch traces it."""
    with torch.set_grad_enabled(grad):
        pattern, tables, fed = RunPattern.of(plan), Tables.of(plan, x.device), network.dtype
        predict = predictor(network, pattern.guided, cond, uncond, x)
        return run_traced(pattern, tables, predict, x, key, start=start, grad=grad, input_dtype=fed)


def predictor(network: Network, guided: bool, cond: Any, uncond: Any, x: Tensor) -> Predictor:
    """What a run of `sample` asks: of both branches under guidance."""
    from .asked import conditions_of

    cond, uncond = conditions_of(network, guided, cond, uncond, x)
    return network.guided(cond, uncond) if guided and cond is not None else network.given(cond)


def check(procedure: Any, **arguments: Any) -> None:
    """Raise ``ValueError`` if `sample` is asked, while torch traces it, for what has no place in a graph."""
    refused = [name for name, value in arguments.items() if value is not None and value is not False]
    if procedure is not None:
        outside(_refuse, f"solver: {procedure.name!r} decides while it runs, which torch.compile cannot trace")
    if refused:
        outside(_refuse, f"{', '.join(refused)}: cannot be given where torch.compile traces sample")


def _refuse(text: str) -> None:
    raise ValueError(f"{text}; compile the model alone, or keep sample out of it with torch.compiler.disable")


def outside(function: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
    """Call a function that no graph can hold: the graph ends before it, and another begins after it."""
    return torch.compiler.disable(function)(*args, **kwargs)  # type: ignore[no-untyped-call]


outside._torchdynamo_disable = True  # type: ignore[attr-defined]  # torch's decorator would import the compiler
outside._torchdynamo_disable_msg = (  # type: ignore[attr-defined]
    "one graph of fastsample.sample needs plan=fastsample.make_plan(...), and no callback, progress, trajectory, "
    "stats, denoised or noise"
)


def _output(term: int, told: Any, before: Any, like: Tensor, parts: int) -> Tensor:
    """The part of this or the last output that a negative term stands for."""
    branch, part, back = output_of(term, parts)
    out: Tensor = (before if back else told)[branch]
    count = like.shape[1]
    return out if parts == 1 or out.shape[1] == count else out.narrow(1, part * count, count)


class Planned(torch.nn.Module):
    """A network and the numbers of a plan as a module: what `Loop` and `StepLoop` share.

    The numbers are buffers outside of the ``state_dict``; they move with the module and stay float64.
    """

    table: Tensor
    starts: Tensor
    times: Tensor
    steps: Tensor

    def __init__(self, model: Any, plan: Plan, *, start: str = "noise") -> None:
        super().__init__()
        if not isinstance(plan, Plan):
            raise TypeError(f"plan: got {type(plan).__name__}, need a Plan (see make_plan)")
        if start not in STARTS:
            raise ValueError(f"start: got {start!r}, allowed are {', '.join(STARTS)}")
        self.network: Network = as_network(model)
        check_fit(plan, model, self.network)
        if isinstance(self.network.fn, torch.nn.Module):
            self.net = self.network.fn  # its parameters are those of this module
        self.pattern, self.start = RunPattern.of(plan), start

    def hold(self, tables: Tables) -> None:
        """Take these as the buffers."""
        for name, value in tables._asdict().items():
            self.register_buffer(name, value, persistent=False)

    @property
    def tables(self) -> Tables:
        return Tables(self.table, self.starts, self.times, self.steps)

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Any:
        before = self.tables
        super()._apply(fn, recurse)  # type: ignore[no-untyped-call]
        for name, value in before._asdict().items():
            setattr(self, name, value.to(getattr(self, name).device))
        return self

    def check(self, x: Tensor, key: Tensor | None) -> None:
        """Raise ``ValueError`` where the run needs keys and has none."""
        if key is None and (self.pattern.noisy or self.start != "state"):
            raise ValueError("key: got none, need keys (B, 2), such as fastsample.keys(seed, B)")

    def extra_repr(self) -> str:
        return f"calls={len(self.pattern.calls)}, slots={len(self.pattern.slots)}, start={self.start!r}"


class Loop(Planned):
    """A whole run, ``sample(model, x, plan=plan)``, as a module that torch traces into one graph.

    ``torch.compile(Loop(model, plan), fullgraph=True)`` has one graph for every seed, grid, guidance weight and solver
    of the same pattern (number of calls and memory, `RunPattern`), also if each is a `Loop` of its own; `load` changes
    the numbers of one.  ``torch.export`` takes it too.  The bits are those of `sample`, as far as the network has them.

    Args:
        model: as in `sample`.
        plan: what to run.
        start: ``"noise"``, ``"state"`` (x is at the plan's first level) or ``"data"`` (x is brought there).
        grad: let gradients pass through the run, to x, conditions, parameters and ``table``.

    Raises:
        TypeError, ValueError: a plan that is none, or that contradicts what the model says.
    """

    def __init__(self, model: Any, plan: Plan, *, start: str = "noise", grad: bool = False) -> None:
        super().__init__(model, plan, start=start)
        if grad and self.pattern.facts is not None:
            raise ValueError("grad: no gradient passes through thresholding or rescaled guidance")
        self.grad = grad
        self.hold(Tables.of(plan, self.network.device or "cpu"))

    def load(self, plan: Plan) -> None:
        """Take the numbers of another plan of the same pattern; nothing is compiled again.

        Raises ``ValueError`` if its pattern differs, and says in what.
        """
        other = RunPattern.of(plan)
        for name, mine, its in zip(RunPattern._fields, self.pattern, other, strict=True):
            if mine != its:
                raise ValueError(f"plan: its {name} are {its!r}, this loop was made for {mine!r}; make a new Loop")
        for held, new in zip(self.tables, Tables.of(plan, self.table.device), strict=True):
            held.copy_(new)

    def forward(self, x: Tensor, key: Tensor | None = None, cond: Any = None, uncond: Any = None) -> Tensor:
        """Samples ``(B, ...)`` from ``x``, a tensor of their shape, dtype and device (not read for a start from noise).

        ``key``: ``(B, 2)`` uint64 of `fastsample.keys`; needed where noise is.  ``cond``, ``uncond`` as in `sample`.
        """
        self.check(x, key)
        with torch.set_grad_enabled(self.grad):
            predict = predictor(self.network, self.pattern.guided, cond, uncond, x)
            dtype = self.network.dtype
            return run_traced(
                self.pattern, self.tables, predict, x, key, start=self.start, grad=self.grad, input_dtype=dtype
            )
