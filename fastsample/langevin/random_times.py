"""Random times inside a step: drawn on the host from a stream of their own, so that normals never shift.

With ``shared`` all chains take the same ones, which follow from the seed alone; else each chain has its own, which
follow from its key alone.  Either way they do not depend on how a batch was cut.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
from torch import Tensor

from .. import noise
from ..solvers.poisson_windows import check_midpoints, pick_midpoints, rising, uniforms_of

STREAM = 0x4C4D43  # of the keys that random times are drawn from
_BLOCK = 1 << 14  # uniforms drawn at once

Array = npt.NDArray[np.float64]
Thetas = Callable[[int], Any]  # iteration -> a number, or (B,)
Offsets = npt.NDArray[np.int64]  # (1 or B, n), rising, filled up with the size of the window
Midpoints = Callable[[int], Offsets]


def uniform_times(key: Tensor, given: Sequence[float] | None) -> Thetas:
    """theta of an iteration, uniform in [0, 1).

    ``key``: ``(1 or B, 2)`` uint64 on the host.  ``given``: theirs, one number per iteration, in place of drawn ones.
    """
    if given is not None:
        times = np.asarray(given, dtype=np.float64)
        if times.ndim != 1 or not ((times >= 0.0) & (times <= 1.0)).all():
            raise ValueError(f"theta: got {given!r}, allowed are numbers in [0, 1], one per iteration")
        return lambda number: float(_nth("theta", times, number))
    uniforms = _Uniforms(key, 1)

    def draw(number: int) -> Any:
        u = uniforms(number)[:, 0]
        return u if len(u) > 1 else float(u[0])

    return draw


def midpoint_offsets(key: Tensor, window: int, midpoints: Any) -> tuple[Midpoints, int, float]:
    """Midpoints of a window, the most that one can have beyond offset 0, and the weight of a correction.

    ``midpoints``: ``"bernoulli"``, ``"one"``, a number of them, or the offsets of each window, shared, which then weigh
    ``window`` each.
    """
    if not isinstance(window, int) or isinstance(window, bool) or window < 1:
        raise ValueError(f"window: got {window!r}, allowed are whole numbers >= 1")
    if isinstance(midpoints, (list, tuple)):
        lists = [np.unique(np.asarray(offsets, dtype=np.int64)) for offsets in midpoints]
        if any(len(m) and not 0 <= m[0] <= m[-1] < window for m in lists):
            raise ValueError(f"midpoints: got offsets outside 0..{window - 1}")
        return lambda number: _nth("midpoints", lists, number)[None], window - 1, float(window)
    mode = check_midpoints(midpoints)
    if isinstance(mode, int) and mode > window:
        raise ValueError(f"midpoints: got {mode}, allowed are at most the fine steps of a window, {window}")
    uniforms = _Uniforms(key, uniforms_of(window, mode))
    most = window - 1 if mode == "bernoulli" else min(window - 1, 1 if mode == "one" else int(mode))
    weight = window / (1 if isinstance(mode, str) else mode)
    return lambda number: pick_midpoints(uniforms(number), window, mode), most, weight


def _nth(name: str, values: Any, number: int) -> Any:
    if number >= len(values):
        raise ValueError(f"{name}: got {len(values)}, the run has more iterations")
    return values[number]


class _Uniforms:
    """``(1 or B, each)`` uniforms per iteration, drawn for many iterations at once."""

    def __init__(self, key: Tensor, each: int) -> None:
        self._stream, self._each = noise.fold_in(key, STREAM), each
        self._size = max(1, _BLOCK // max(1, len(key) * each))
        self._begin, self._block = -1, np.empty((0, 0, 0))

    def __call__(self, number: int) -> Array:
        begin = number - number % self._size
        if begin != self._begin:
            drawn = noise.fine_uniform(self._stream, begin * self._each, self._size * self._each)
            self._begin, self._block = begin, drawn.numpy().reshape(-1, self._size, self._each)
        u: Array = self._block[:, number - begin]
        return u


class Window:
    """The midpoints of one window as moves: move l goes from the l-th midpoint (0: the start) to the next (or the end).

    ``calls``: moves, each after a call.  ``length(l)``: fine steps of move l, 0 where it is not there; ``live(l)``:
    whether it is.  Both ``(1,)``, or ``(B,)`` where each chain has its own.
    """

    def __init__(self, offsets: Offsets, size: int) -> None:
        later = rising(np.where(offsets == 0, size, offsets), size)  # at the window's start the correction is zero
        ends = np.broadcast_to(np.array([0, size]), (len(later), 2))
        self._stops = np.concatenate([ends[:, :1], later, ends[:, 1:]], axis=1)
        self._counts, self.calls = (later < size).sum(axis=1), 1 + later.shape[1]

    def length(self, move: int) -> npt.NDArray[np.int64]:
        lengths: npt.NDArray[np.int64] = self._stops[:, move + 1] - self._stops[:, move]
        return lengths

    def live(self, move: int) -> npt.NDArray[np.bool_]:
        alive: npt.NDArray[np.bool_] = self._counts >= move
        return alive
