"""Windows of many fine steps in a few moves: the coefficients of the Poisson midpoint method, and its midpoints.

A window of K fine steps ``x' = a_j x + b_j eps + s_j xi`` runs with the prediction eps_0 of its first state; at some of
its steps, the midpoints i, the true prediction eps_i on that cheap path m enters with a weight:

    m' = a_j m + b_j eps_0 + s_j xi,        x' = a_j x + b_j [eps_0 + H_j weight (eps_j - eps_0)] + s_j xi

Only the midpoints matter.  From one of them (or from the window's start) to the next (or to its end) both lines are one
move with one normal per element, whose coefficients are products and sums of the fine ones, in float64 on the host.
Kandasamy and Nagaraj 2024, arXiv 2405.17068; Srinivasan, Nagaraj et al. 2025, arXiv 2506.07614.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from torch import Tensor

from fastsample import noise
from fastsample.solvers.fine_tables import FineTable

MODES = ("bernoulli", "one")
STREAM = 0x504D4D  # of the keys that midpoints are drawn from
LARGE = 2.0  # weight of a correction over the noise at its window's end, from which on a window is warned of

Indices = npt.NDArray[np.int64]


@dataclass(frozen=True)
class Move:
    """From fine step ``i`` to ``q``: ``a, b, s`` of the state, of eps_0 and of the noise; ``c`` of the correction.

    The refined state gets ``c (eps_i - eps_0)`` if ``i`` is a midpoint.
    """

    i: int
    q: int
    a: float
    b: float
    s: float
    c: float


@dataclass(frozen=True)
class Window:
    """Fine steps ``start .. end - 1``; ``weight`` is that of a correction."""

    start: int
    end: int
    weight: float

    @property
    def size(self) -> int:
        return self.end - self.start


class Windows:
    """The windows of a table.

    Args:
        table: the fine steps.
        window: fine steps of a window; the last one takes what is left.
        windows: ``"safe"``: smaller windows where a correction would weigh more than ``LARGE``; None: all of the size
            ``window``, as published; or a list of sizes in its place, which sum to the number of fine steps.
        midpoints: ``"bernoulli"`` (every fine step with probability 1/K, as published), ``"one"`` (one of them) or a
            number n (n different ones); the weights K, K and K/n make the mean drift that of K fine steps.

    A correction weighs ``weight |b_i| A_{i+1 -> end}``, in units of sigma at the window's end.  One that is much larger
    than the noise that the next window expects throws samples out of their law at the noise end, where A is large, and
    leaves noise in them at the data end, where sigma vanishes: a warning says where.
    Raises ``ValueError`` that names the option.
    """

    def __init__(
        self, table: FineTable, window: int, windows: Sequence[int] | str | None, midpoints: str | int
    ) -> None:
        self.table, self.midpoints = table, check_midpoints(midpoints)
        self._reached: dict[tuple[int, int], list[tuple[float, float, float]]] = {}
        self._all: list[Window] = []
        if not _whole(window):
            raise ValueError(f"window: got {window!r}, allowed are whole numbers >= 1")
        sizes = None if windows is None or windows == "safe" else iter(_sizes(len(table), windows))
        start = 0
        while start < len(table):
            size = min(window, len(table) - start) if sizes is None else next(sizes)
            if windows == "safe":
                size = next(k for k in range(size, 0, -1) if self.gain(self._window(start, k)) <= LARGE)
            self._all.append(self._window(start, size))
            start += size
        self._warn()

    def _window(self, start: int, size: int) -> Window:
        count = 1 if isinstance(self.midpoints, str) else min(self.midpoints, size)
        return Window(start, start + size, size / count)

    def gain(self, window: Window) -> float:
        """The largest weight of a correction in a window, over sigma at its end; infinite where that is 0."""
        if window.size == 1:
            return 0.0  # its only midpoint is its start, where the correction is zero
        a = self.table.a[window.start + 1 : window.end]
        after = np.append(np.cumprod(a[:0:-1])[::-1], 1.0)  # A from i + 1 to the end, i > start
        largest = window.weight * float((np.abs(self.table.b[window.start + 1 : window.end]) * after).max())
        sigma = self.table.path[window.end].sigma
        return largest / sigma if sigma else math.inf

    def __iter__(self) -> Iterator[Window]:
        return iter(self._all)

    def __len__(self) -> int:
        return len(self._all)

    def move(self, window: Window, i: int, q: int) -> Move:
        """The move from i to q inside a window."""
        a, b, s = self._reach(window, i)[q - i]
        after = self._reach(window, i + 1)[q - i - 1][0]
        return Move(i, q, a, b, s, window.weight * float(self.table.b[i]) * after)

    def _reach(self, window: Window, i: int) -> list[tuple[float, float, float]]:
        """A, B, S from i to i, i + 1, .. and the window's end."""
        if (window.start, i) not in self._reached:
            a, b, s = 1.0, 0.0, 0.0
            reached = [(a, b, s)]
            fine = (x[i : window.end].tolist() for x in (self.table.a, self.table.b, self.table.s))
            for a_j, b_j, s_j in zip(*fine, strict=True):
                a, b, s = a_j * a, a_j * b + b_j, math.hypot(a_j * s, s_j)
                reached.append((a, b, s))
            self._reached[window.start, i] = reached
        return self._reached[window.start, i]

    def _warn(self) -> None:
        large = [(n, w, gain) for n, w in enumerate(self._all) if (gain := self.gain(w)) > LARGE]
        if large:
            number, window, gain = large[0]
            warnings.warn(
                f"window: in {len(large)} of {len(self)} windows a correction weighs more than {LARGE:g} times the "
                f"noise at the window's end (first in window {number}, fine steps {window.start} to {window.end - 1}: "
                f"{gain:.3g} times), so that samples fly off or stay noisy; take smaller windows there, or "
                "windows='safe'",
                stacklevel=4,
            )

    def draw(self, key: Tensor) -> list[Indices]:
        """Midpoints of each window ``(B, n)``: fine indices, rising, filled up with the window's end.

        The window's start may be one of them.  ``key``: ``(B, 2)`` uint64 on the host.  Row b is a function of key b
        alone, but for n, the most that a sample of the batch has.
        """
        stream = noise.fold_in(key, STREAM)
        return [self._draw(window, stream) for window in self._all]

    def _draw(self, window: Window, stream: Tensor) -> Indices:
        u = noise.fine_uniform(stream, window.start, uniforms_of(window.size, self.midpoints)).numpy()
        return window.start + pick_midpoints(u, window.size, self.midpoints)


def uniforms_of(size: int, midpoints: str | int) -> int:
    """How many uniforms the midpoints of a window of ``size`` fine steps are made of."""
    return 1 if midpoints == "one" else size


def pick_midpoints(u: npt.NDArray[np.float64], size: int, midpoints: str | int) -> Indices:
    """Midpoints of one window for each row of ``u`` ``(B, uniforms_of(size, midpoints))``.

    Offsets ``(B, n)``, rising, filled up with ``size``.
    """
    if midpoints == "one":
        return np.floor(u * size).astype(np.int64)
    if isinstance(midpoints, int):
        return np.sort(np.argsort(u, axis=1, kind="stable")[:, :midpoints], axis=1)
    return rising(np.where(u * size < 1.0, np.arange(size), size), size)


def asked(window: Window, midpoints: Indices) -> Indices:
    """The midpoints at which the network is asked: at the start of a window the correction is zero without it."""
    return rising(np.where(midpoints == window.start, window.end, midpoints), window.end)


def rising(midpoints: Indices, end: int) -> Indices:
    """Sorted, without the columns in which no sample has one."""
    most = int((midpoints < end).sum(axis=1).max(initial=0))
    return np.sort(midpoints, axis=1)[:, :most]


def check_seed(seed: int) -> int:
    """``seed``; raises ``ValueError`` unless it is one that keys can be folded with."""
    if not isinstance(seed, int) or isinstance(seed, bool) or not 0 <= seed < 2**63:
        raise ValueError(f"midpoint_seed: got {seed!r}, allowed is a whole number in [0, 2^63)")
    return seed


def check_midpoints(midpoints: str | int) -> str | int:
    """``midpoints``; raises ``ValueError`` unless it is one of ``MODES`` or a whole number >= 1."""
    if isinstance(midpoints, str) and midpoints in MODES:
        return midpoints
    if isinstance(midpoints, int) and not isinstance(midpoints, bool) and midpoints >= 1:
        return midpoints
    raise ValueError(f"midpoints: got {midpoints!r}, allowed are 'bernoulli', 'one' and whole numbers >= 1")


def _sizes(total: int, windows: object) -> list[int]:
    if not isinstance(windows, (list, tuple)) or not all(_whole(size) for size in windows) or sum(windows) != total:
        raise ValueError(
            f"windows: got {windows!r}, allowed are 'safe', None and a list of whole numbers >= 1 with the sum "
            f"{total}, the number of fine steps"
        )
    return list(windows)


def _whole(size: object) -> bool:
    return isinstance(size, int) and not isinstance(size, bool) and size >= 1
