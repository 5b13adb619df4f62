"""Rows per sample of the Poisson midpoint method: what each sample of a batch does in each call, as one table.

A call has rows of several kinds: the first move of a window, the move from a midpoint, and the identity of samples that
have no further midpoint.  All rows of a call write the same outputs.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from fastsample import row
from fastsample.path import Array
from fastsample.solvers import assemble as plans
from fastsample.solvers.express import Network, express, predict, write
from fastsample.solvers.poisson_midpoint import FROZEN, REFINED, midpoint_step, start_step
from fastsample.solvers.poisson_windows import Indices, Window, Windows
from fastsample.solvers.step import Step

Numbers = npt.NDArray[np.int64]


@dataclass(frozen=True)
class Call:
    """One network call of the batch: outputs by name, row and fine step of each sample, which window, if its last."""

    outputs: tuple[str, ...]
    rows: Numbers
    fine: Numbers
    window: Window
    last: bool


class Rows:
    """The rows of a run, each made once, and what they write."""

    def __init__(self, windows: Windows, network: Mapping[str, Any], terms: Sequence[str]) -> None:
        self._windows, self._levels = windows, windows.table.path.levels()
        self._limits = plans._limits(network["clip"])
        scaling, sigma_data = network["input_scaling"], plans._positive("sigma_data", network["sigma_data"])
        path = windows.table.path
        self._network = Network(network["prediction"], scaling, sigma_data, path.rates, self._levels)
        self._columns: dict[str | int, list[tuple[int, float]]] = {name: [(j, 1.0)] for j, name in enumerate(terms)}
        weights = plans._guidance(network["guidance"], 1)
        shares = (1.0,) if weights is None else (weights[0], 1.0 - weights[0])
        self._columns["e"] = [(len(terms) + k, share) for k, share in enumerate(shares)]
        self._numbers: dict[Any, int] = {}
        self._made: list[Array] = []

    @property
    def table(self) -> Array:
        """``(R, 48)`` float64."""
        return np.stack(self._made) if self._made else row.blank(1)  # a batch of no samples needs none

    def kappa(self, level: int) -> float:
        """Factor of the network's input at a level."""
        return self._network.kappa(self._levels[level])

    def start(self, outputs: tuple[str, ...], window: Window, q: int) -> int:
        key = (outputs, window.start, q)
        return self._number(key, lambda: self._fill(start_step(self._windows, window, q), outputs, q))

    def midpoint(self, outputs: tuple[str, ...], window: Window, i: int, q: int, first: bool) -> int:
        key = (outputs, i, q, first)
        return self._number(key, lambda: self._fill(midpoint_step(self._windows, window, i, q, first), outputs, q))

    def denoised(self, outputs: tuple[str, ...]) -> int:
        last = len(self._levels) - 1
        step = Step(last, self._levels[last], a=0.0, b=(1.0,))
        return self._number("denoise", lambda: self._fill(step, outputs, last))

    def wait(self, outputs: tuple[str, ...], end: int) -> int:
        """A sample that is at the end of its window already."""

        def made() -> Array:
            values = row.blank()
            for k, name in enumerate(outputs):
                if name == "input":
                    values[row.w(k, 0)] = self.kappa(end)
                elif name != REFINED:
                    values[row.w(k, self._columns[name][0][0])] = 1.0
            return values

        return self._number((outputs, end), made)

    def _number(self, key: Any, make: Callable[[], Array]) -> int:
        if key not in self._numbers:
            self._numbers[key] = len(self._made)
            self._made.append(make())
        return self._numbers[key]

    def _fill(self, step: Step, outputs: tuple[str, ...], q: int) -> Array:
        made = express(self._network, step, self._limits is not None, False, "x0" in outputs)
        values = row.blank()
        predict(values, made.y, self._columns)
        for k, name in enumerate(outputs):
            if name in ("x", "input"):
                write(values, k, made.x, self._columns, self.kappa(q) if name == "input" else 1.0)
            elif name == "x0":
                write(values, k, made.x0, self._columns)
            else:  # nothing is kept by a sample whose window ends with this move
                write(values, k, made.keep.get(name, {}), self._columns)
        if self._limits is not None:
            values[row.LO], values[row.HI] = self._limits
        values[row.DRAW] = 0 if step.draw is None else step.draw
        return values


def batch_calls(windows: Windows, plan: Sequence[Indices], rows: Rows, extra: tuple[str, ...]) -> list[Call]:
    """The calls of the batch, window by window; ``plan``: per window the midpoints to ask at, see ``Windows.draw``."""
    calls = []
    for window, chosen in zip(windows, plan, strict=True):
        batch, most = chosen.shape
        end = np.full((batch, 1), window.end)
        stops = np.hstack([np.full((batch, 1), window.start), chosen, end])
        for n in range(most + 1):
            kept = REFINED if n else FROZEN  # the frozen prediction at the start, the refined state from then on
            outputs = ("x", *((kept,) if n < most else ()), *extra)

            def number(i: int, q: int, n: int = n, window: Window = window, outputs: Any = outputs) -> int:
                if i == window.end:
                    return rows.wait(outputs, i)
                return rows.midpoint(outputs, window, i, q, n == 1) if n else rows.start(outputs, window, q)

            # what is told for a sample that waits is not used
            fine = np.minimum(stops[:, n], window.end - 1)
            calls.append(Call(outputs, _numbers(stops[:, n : n + 2], number), fine, window, n == most))
    return calls


def _numbers(moves: Numbers, number: Callable[[int, int], int]) -> Numbers:
    """``number(i, q)`` of each move ``(B, 2)``, asked for once per different move."""
    different, which = np.unique(moves, axis=0, return_inverse=True)
    return np.array([number(int(i), int(q)) for i, q in different], dtype=np.int64)[which.reshape(-1)]
