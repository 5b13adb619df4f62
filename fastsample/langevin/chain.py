"""Chains at work: memory, calls of the target, rows uploaded in pieces.  Nothing here reads from the device.

Memory of the size of the state is taken when a run begins; an iteration takes none (what the target returns is its
own).  Rows are made on the host for some hundred moves at a time, uploaded at once, and picked by number, so that the
device never waits for the host in between.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterator, Sequence
from functools import partial
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from .. import ops as ops  # defines torch.ops.fastsample
from .. import row
from ..profiling.ranges import ranged
from .moves import FED, Kernel, Move
from .targets import Target, check_energy, check_output

Array = npt.NDArray[np.float64]
Noise = Callable[[int], Tensor]  # number of a draw -> a tensor like x

_ROWS = 4096  # of one piece, at most (unless one iteration has more)
_MOVES = 512
_WEIGHTS = [[row.g(k, r) for k in range(row.MAX_OUTPUTS)] for r in range(row.MAX_NOISES)]


class Drive(NamedTuple):
    """Where the randomness of a run comes from: keys ``(B, 2)``, or noise given by the number of the draw."""

    key: Tensor | None
    noise: Noise | None

    def noises(self, rows: Array) -> tuple[Tensor | None, list[Tensor]]:
        """What the op takes for rows ``(1 or B, ..)`` of the same draws: the key, or the tensors that they use."""
        if self.noise is None:
            return self.key, []
        used = [bool(rows[:, columns].any()) for columns in _WEIGHTS]
        # a noise of weight zero is never read, so that of noise 1 may stand in the place of noise 0
        draws = [int(rows[0, row.DRAW + (r if used[r] else 1)]) for r in range(2 if used[1] else int(used[0]))]
        return None, [self.noise(draw) for draw in draws]


class Caller:
    """The target as it is called by a run: counts, and checks the first output before memory is written."""

    def __init__(self, target: Target, like: Tensor) -> None:
        self.target, self._like, self.calls = target, like, 0
        self._evaluate = ranged("network", target.evaluate)

    def __call__(self, fed: Tensor, energy: bool = False) -> tuple[Tensor, Tensor | None]:
        out, value = self._evaluate(fed, energy)
        if self.calls == 0:
            check_output(out, self._like)
        if energy:
            check_energy(value, len(self._like))
        self.calls += 1
        return out, value


class RowRun:
    """Chains of a kernel that is rows alone.  ``state``: where they are; ``slots``: all that they keep, by name."""

    def __init__(
        self, kernel: Kernel, target: Target, x: Tensor, drive: Drive, *, apart: bool, velocity: Tensor | None
    ) -> None:
        self.kernel, self._drive = kernel, drive
        self.slots = {"x": x, **{name: torch.empty_like(x) for name in kernel.slots}}
        if velocity is not None:
            self.slots["v"] = velocity
        if apart:
            self.slots[FED] = torch.empty_like(x, dtype=target.input_dtype)
            scaled_copy(self.slots[FED], x, target.kappa)
        self.call = Caller(target, x)
        self._numbers = torch.empty(0, dtype=torch.int64)
        self._singles: tuple[Tensor, ...] = ()
        self._update = ranged("update", torch.ops.fastsample.update_.default)
        self._recorded: Any = None

    @property
    def state(self) -> Tensor:
        return self.slots["x"]

    def advance(self, first: int, count: int) -> Iterator[int]:
        """Iterations ``first .. first + count - 1``; yields the number of each when it is done."""
        batch, device, recorded = len(self.state), self.state.device, self._recorded
        numbers = iter(range(first, first + count))
        while piece := self._gather(numbers, batch):
            host = np.concatenate([move.rows for _, moves in piece for move in moves])
            sizes = [sum(len(move.rows) for move in moves) for _, moves in piece]
            begins = np.repeat([1 + number * self.kernel.draws for number, _ in piece], sizes)
            host[:, row.DRAW : row.DRAW + row.MAX_NOISES] += begins[:, None]
            row.check_table(host)
            table, start = upload(host, device), 0
            if recorded is not None:
                table = recorded.load(table)
            for (number, moves), size in zip(piece, sizes, strict=True):
                if recorded is None:
                    self._iterate(moves, table, host, start)
                else:
                    kind = tuple((move.ask, move.outs, move.terms, len(move.rows)) for move in moves)
                    recorded.iterate(kind, size, partial(self._iterate, moves, table, host, 0))
                start += size
                yield number

    def _iterate(self, moves: Sequence[Move], table: Tensor, host: Array, start: int) -> None:
        """The moves of an iteration, whose rows begin with row ``start``."""
        slots = self.slots
        e: Tensor | None = None
        for move in moves:
            if move.ask is not None:
                e = None  # not one more tensor in memory during the call
                e, _ = self.call(slots[move.ask])
            terms = [e if name == "e" else slots[name] for name in move.terms]
            key, noise = self._drive.noises(host[start : start + len(move.rows)])
            step = self._step(start, len(move.rows))
            self._update([slots[k] for k in move.outs], terms, table, step, key, noise)
            start += len(move.rows)
            del terms

    def memory(self) -> list[Tensor]:
        return list(self.slots.values())

    def structure(self) -> Hashable:
        return tuple(self.slots), self.slots.get(FED, self.state).dtype, self.table_shape()

    def table_shape(self) -> tuple[int, int]:
        return max(_ROWS, self.kernel.most * len(self.state)), row.COLUMNS

    def keep(self, recorded: Any) -> None:
        self._recorded, self._numbers = recorded, recorded.counters
        self._singles = self._numbers[:_ROWS].unbind(0)

    def adopt(self, other: RowRun) -> None:
        self.kernel, self.call.calls = other.kernel, other.call.calls

    def _gather(self, numbers: Iterator[int], batch: int) -> list[tuple[int, Sequence[Move]]]:
        piece: list[tuple[int, Sequence[Move]]] = []
        rows = moves = 0
        most = self.kernel.most
        while not piece or (rows + most * batch <= _ROWS and moves + most <= _MOVES):
            number = next(numbers, None)
            if number is None:
                break
            made = self.kernel.iteration(number)
            piece.append((number, made))
            rows, moves = rows + sum(len(move.rows) for move in made), moves + len(made)
        return piece

    def _step(self, start: int, rows: int) -> Tensor:
        """The step ``start``, or ``start .. start + rows - 1``: views of a tensor that was made once."""
        if len(self._numbers) < start + rows:
            self._numbers = torch.arange(max(_ROWS, 2 * (start + rows)), device=self.state.device)
            self._singles = self._numbers[:_ROWS].unbind(0)
        if rows == 1:
            return self._singles[start] if start < _ROWS else self._numbers[start]
        return self._numbers[start : start + rows]


def upload(table: Array, device: torch.device) -> Tensor:
    """A host table on the device, without waiting for it."""
    made = torch.from_numpy(table)
    return made.pin_memory().to(device, non_blocking=True) if device.type == "cuda" else made.to(device)


def scaled_copy(out: Tensor, x: Tensor, factor: float) -> None:
    """``out = factor x``, by the row that later copies are made by, so that they have its bits."""
    table = torch.from_numpy(row.make_row(outputs=[{0: factor}])[None]).to(x.device)
    torch.ops.fastsample.update_([out], [x], table, torch.zeros((), dtype=torch.int64, device=x.device), None, [])
