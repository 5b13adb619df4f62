"""The fused step behind every drop-in scheduler: rows of a run on a device, and one launch that applies one of them."""

from __future__ import annotations

import contextlib
import functools
from collections import OrderedDict
from collections.abc import Callable, Hashable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

import fastsample.ops  # noqa: F401  (defines torch.ops.fastsample)
from fastsample import row
from fastsample.path import Array, Level
from fastsample.solvers.express import Combo, Network, Outputs, express, predict, write
from fastsample.solvers.step import Step

from .draws import Pending
from .quick import Quick, new_like
from .spare import Spare

SAMPLE, MODEL = 0, 1  # terms of every row: the state, the network's output, then what the class remembers
PREDICTIONS = {
    "epsilon": "eps",
    "sample": "x0",
    "original_sample": "x0",
    "v_prediction": "v",
    "flow_prediction": "flow",
}
_KEPT_TABLES = 64
_below_autograd = torch._C._AutoDispatchBelowAutograd
_update = torch.ops.fastsample.update_.default._op  # a Python frame less than the overload itself


@dataclass(frozen=True)
class Recipe:
    """A row before it is a row: the step, the order of its outputs and of what it reads beside state and output.

    ``writes``: ``"x"`` the new state, ``"x0"`` the limited x0_hat, ``"D"`` the history quantity, or a name of
    ``step.keep``; ``scaled`` > 0 adds one more output, that factor times the new state.  ``reads``: history numbers
    j > 0 and names of kept tensors.  ``limit``: of x0_hat; 1 where the threshold is found per sample.  ``lift``:
    standard deviation of the noise that the state gets before everything else (churn as diffusers applies it, after
    the network was called).  ``threshold``: ratio, floor and ceiling of dynamic thresholding.  ``base``: of the power
    that a learned variance is.
    """

    step: Step
    network: Network
    writes: tuple[str, ...] = ("x",)
    reads: tuple[str | int, ...] = ()
    limit: float | None = None
    scaled: float = 0.0
    lift: float = 0.0
    draw: int = 0
    threshold: tuple[float, float, float] | None = None
    base: float = 1.0

    def row(self) -> Array:
        """The row ``(48,)``."""
        limited = self.limit is not None
        made = express(self.network, self.step, limited, "D" in self.writes, "x0" in self.writes)
        columns: dict[str | int, list[tuple[int, float]]] = {"x": [(SAMPLE, 1.0)], "e": [(MODEL, 1.0)]}
        columns.update((name, [(2 + place, 1.0)]) for place, name in enumerate(self.reads))
        values = row.blank()
        predict(values, made.y, columns)
        for k, name in enumerate(self.writes):
            write(values, k, self._lifted(_output(made, name)), columns)
        if self.scaled:
            write(values, len(self.writes), self._lifted(made.x), columns, self.scaled)
        if self.limit is not None:
            values[row.LO], values[row.HI] = -self.limit, self.limit
        values[row.DRAW] = self.draw
        return values

    def _lifted(self, combo: Combo) -> Combo:
        if not self.lift:
            return combo
        return {**combo, "xi": combo.get("xi", 0.0) + self.lift * combo.get("x", 0.0)}

    @functools.cached_property
    def noisy(self) -> bool:
        """Whether the row needs noise."""
        return bool(self.step.c or self.lift)


def _output(made: Outputs, name: str) -> Combo:
    return {"x": made.x, "x0": made.x0, "D": made.kept}[name] if name in ("x", "x0", "D") else made.keep[name]


class Found(NamedTuple):
    """A row on a device: ``table``, the 0-dim ``step`` of the row, what it was made of, and its calls on a CPU."""

    table: Tensor
    step: Tensor
    recipe: Recipe
    quick: Quick | None


class Rows:
    """Rows by key, made when first asked for and then kept; a table per device that grows when a new row comes."""

    def __init__(self, make: Callable[[Any], Recipe]) -> None:
        self._make = make
        self._places: dict[Hashable, int] = {}
        self.recipes: list[Recipe] = []
        self._values = row.blank(16)
        self._devices: dict[torch.device, tuple[Tensor, tuple[Tensor, ...], Quick | None]] = {}
        self._seen: set[torch.device] = set()
        self._last: torch.device | None = None  # the device of the rows below
        self._found: dict[Hashable, Found] = {}

    def prepare(self, keys: Sequence[Hashable], device: torch.device | None = None) -> None:
        """Make the rows of ``keys`` and bring them to ``device`` (and to where they were): no host work is left.

        A row that cannot be made is left out, and its error is raised by the step that needs it, as in diffusers.
        """
        for key in keys:
            with contextlib.suppress(Exception):
                self._place(key)
        for known in {*self._seen, *([] if device is None else [device])}:
            if known not in self._devices:
                self._on(known)

    def find(self, key: Hashable, device: torch.device, family: Callable[[Any], Sequence[Hashable]]) -> Found:
        """A row on a device.  A new row is made together with its ``family(key)``."""
        if device != self._last:
            self._last, self._found = device, {}
        found = self._found.get(key)
        if found is None:
            if key not in self._places:
                self.prepare(family(key))
            place = self._place(key)
            table, steps, quick = self._devices.get(device) or self._on(device)
            found = self._found[key] = Found(table, steps[place], self.recipes[place], quick)
        return found

    def _place(self, key: Hashable) -> int:
        if key not in self._places:
            recipe = self._make(key)
            place = len(self.recipes)
            if place == len(self._values):
                self._values = np.concatenate([self._values, row.blank(place)])
            self._values[place] = recipe.row()
            self.recipes.append(recipe)
            self._places[key] = place
            self._devices.clear()
            self._found.clear()
        return self._places[key]

    def _on(self, device: torch.device) -> tuple[Tensor, tuple[Tensor, ...], Quick | None]:
        with torch.inference_mode(False):  # kept for later runs, which may want gradients
            table = torch.tensor(self._values, dtype=torch.float64, device=device)
            steps = torch.arange(len(self._values), dtype=torch.int64, device=device).unbind(0)
        self._seen.add(device)
        self._devices[device] = (table, steps, Quick(table) if table.is_cpu else None)
        return self._devices[device]


_tables: OrderedDict[Hashable, Rows] = OrderedDict()


def rows_for(signature: Hashable, make: Callable[[Any], Recipe]) -> Rows:
    """The rows of a configuration, shared by all schedulers that have the same (least recently used go first)."""
    rows = _tables.get(signature)
    if rows is None:
        rows = _tables[signature] = Rows(make)
        if len(_tables) > _KEPT_TABLES:
            _tables.popitem(last=False)
    else:
        _tables.move_to_end(signature)
    return rows


@contextlib.contextmanager
def own_tables() -> Iterator[None]:
    """Rows and tables made in this block are not kept, and those of before are not seen."""
    global _tables, _samples
    before = _tables, _samples
    _tables, _samples = OrderedDict(), {}
    try:
        yield
    finally:
        _tables, _samples = before


def apply(
    found: Found,
    terms: list[Tensor],
    dtypes: Sequence[torch.dtype],
    noise: Tensor | Pending | None = None,
    key: Tensor | None = None,
    spare: Spare | None = None,
) -> list[Tensor]:
    """Apply a row (one launch, two if its limits are found per sample first); its outputs, of ``dtypes``, are new
    tensors, their memory from ``spare`` where that has some."""
    table, step, recipe, quick = found
    noises: list[Tensor] = []
    graded = torch.is_grad_enabled() and any(x.requires_grad for x in terms)
    pending = None
    if isinstance(noise, Pending):
        if recipe.noisy and recipe.threshold is None and not graded:
            pending, noise = noise, None
        else:
            noise = noise.tensor()  # a row without noise leaves the generator as diffusers does
    if not recipe.noisy:
        key = None
    elif noise is not None:
        noises = [noise]
    if recipe.threshold is not None:
        step, table = _thresholded(terms, table, step, recipe.threshold)
    if graded:
        made: list[Tensor] = torch.ops.fastsample.update.default(
            terms, table, step, key, noises, len(dtypes), list(dtypes)
        )
        return made
    if recipe.threshold is not None:
        quick = None
    outs = None if quick is None else quick(step, terms, tuple(dtypes), key, noises, spare, pending)
    if outs is None:
        # New memory needs no version counter and nothing here needs a gradient: the op's check costs more than it
        with _below_autograd():
            noises = noises if pending is None else [pending.tensor()]
            outs = new_like(terms[0], dtypes, spare)
            _update(outs, terms, table, step, key, noises)
        if quick is not None:
            quick.learn(step, outs, terms, key, noises, pending)
    return outs


def samples(batch: int, device: torch.device) -> Tensor:
    """``0 .. B-1``: the steps of a table with a row per sample."""
    found = _samples.get((batch, device))
    if found is None:
        with torch.inference_mode(False):
            found = _samples[batch, device] = torch.arange(batch, device=device)
    return found


_samples: dict[tuple[int, torch.device], Tensor] = {}  # of the batch sizes in use


def _thresholded(
    terms: list[Tensor], table: Tensor, step: Tensor, threshold: tuple[float, float, float]
) -> tuple[Tensor, Tensor]:
    if torch.is_grad_enabled() and any(x.requires_grad for x in terms):
        rows = _differentiable_rows(terms, table[step], threshold)
    else:
        rows = torch.empty(len(terms[0]), row.COLUMNS, dtype=torch.float64, device=table.device)
        torch.ops.fastsample.threshold_.default(rows, terms, table, step, *threshold)
    return samples(len(terms[0]), table.device), rows


def _differentiable_rows(terms: list[Tensor], one: Tensor, threshold: tuple[float, float, float]) -> Tensor:
    """What ``threshold_`` writes, with a gradient through the quantile."""
    ratio, low, high = threshold
    dtype = torch.float64 if any(x.dtype == torch.float64 for x in terms) else torch.float32
    predict = [row.p(j) for j in range(row.MAX_TERMS)]
    parts = [torch.where(one[c] == 0, 0.0, one[c] * x.to(dtype)) for c, x in zip(predict, terms, strict=False)]
    s = torch.quantile(sum(parts, torch.zeros((), dtype=dtype)).abs().flatten(1), ratio, dim=1).clamp(low, high)
    rows = one.expand(len(s), -1).clone()
    rows[:, predict] = rows[:, predict] / s[:, None].double()
    rows[:, row.LO], rows[:, row.HI] = -1.0, 1.0
    return rows


def ve_level(sigma: float, t: float = 0.0) -> Level:
    """Level of a state x / alpha."""
    return Level(1.0, sigma, t)


def vp_level(rho: float, t: float = 0.0) -> Level:
    """Level of a variance-preserving state from sigma / alpha."""
    alpha = 1.0 / (1.0 + rho * rho) ** 0.5
    return Level(alpha, rho * alpha, t)


def flow_level(sigma: float, t: float = 0.0) -> Level:
    """Level of a rectified flow."""
    return Level(1.0 - sigma, sigma, t)


def table_level(squared: float, t: float = 0.0) -> Level:
    """Level of ``alphas_cumprod``.  A 0 becomes so small a number that x0_hat of eps_hat is still a number to clip."""
    if not 0.0 <= squared <= 1.0:
        raise ValueError(f"alphas_cumprod: got {squared} at time {t:g}, allowed are 0..1")
    return Level(max(squared, 2.0**-120) ** 0.5, (1.0 - squared) ** 0.5, t)
