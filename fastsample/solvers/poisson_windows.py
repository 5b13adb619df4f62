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
import torch
from torch import Tensor

from fastsample import noise
from fastsample.solvers.fine_tables import FineTable

MODES = ("bernoulli", "one")
STREAM = 0x504D4D  # of the keys that midpoints are drawn from
LARGE = 2.0  # weight of a correction, in standard deviations of the state, from which on a window is warned of

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
        windows: sizes in place of ``window``, which sum to the number of fine steps.
        midpoints: ``"bernoulli"`` (every fine step with probability 1/K, as published), ``"one"`` (one of them) or a
            number n (n different ones); the weights K, K and K/n make the mean drift that of K fine steps.

    Raises ``ValueError`` that names the option.  Warns where a correction can throw the state out of its law: where
    ``weight |b_i| A_{i+1 -> end}`` is above ``LARGE`` standard deviations ``sqrt(alpha^2 + sigma^2)`` at the end.
    """

    def __init__(
        self, table: FineTable, window: int | None, windows: Sequence[int] | None, midpoints: str | int
    ) -> None:
        self.table, self.midpoints = table, _midpoints(midpoints)
        self._reached: dict[tuple[int, int], list[tuple[float, float, float]]] = {}
        self._all: list[Window] = []
        start = 0
        for size in _sizes(len(table), window, windows):
            count = 1 if isinstance(self.midpoints, str) else min(self.midpoints, size)
            self._all.append(Window(start, start + size, size / count))
            start += size
        self._warn()

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
        worst, where = 0.0, 0
        for number, window in enumerate(self._all):
            if window.size == 1:
                continue  # its only midpoint is its start, where the correction is zero
            a = self.table.a[window.start : window.end]
            after = np.append(np.cumprod(a[::-1])[::-1], 1.0)[1:]
            end = self.table.path[window.end]
            sizes = window.weight * np.abs(self.table.b[window.start : window.end]) * after
            size = float(sizes[1:].max()) / math.hypot(end.alpha, end.sigma)
            if size > worst:
                worst, where = size, number
        if worst > LARGE:
            window = self._all[where]
            warnings.warn(
                f"window: a correction in window {where} (fine steps {window.start} to {window.end - 1}) weighs "
                f"{worst:.3g} standard deviations of the state, so that samples may fly off; up to {LARGE:g} is safe: "
                f"take windows of about {max(1, int(window.size * LARGE / worst))} steps there (option windows)",
                stacklevel=4,
            )

    def draw(self, key: Tensor) -> list[Indices]:
        """Midpoints of each window ``(B, n)``: fine indices, rising, filled up with the window's end.

        The window's start may be one of them.  ``key``: ``(B, 2)`` uint64 on the host.  Row b is a function of key b
        alone, but for n, the most that a sample of the batch has.
        """
        stream = noise.fold_in(key, STREAM).view(torch.int64)
        return [self._draw(window, stream) for window in self._all]

    def _draw(self, window: Window, stream: Tensor) -> Indices:
        size = window.size
        if self.midpoints == "one":
            place = np.floor(_uniforms(stream, window.start, 1) * size).astype(np.int64)
            return window.start + place
        u = _uniforms(stream, window.start, size)
        if self.midpoints == "bernoulli":
            chosen = np.where(u * size < 1.0, np.arange(window.start, window.end), window.end)
            return _rising(chosen, window.end)
        return window.start + np.sort(np.argsort(u, axis=1, kind="stable")[:, : self.midpoints], axis=1)


def asked(window: Window, midpoints: Indices) -> Indices:
    """The midpoints at which the network is asked: at the start of a window the correction is zero without it."""
    return _rising(np.where(midpoints == window.start, window.end, midpoints), window.end)


def _rising(midpoints: Indices, end: int) -> Indices:
    """Sorted, without the columns in which no sample has one."""
    most = int((midpoints < end).sum(axis=1).max(initial=0))
    return np.sort(midpoints, axis=1)[:, :most]


def _uniforms(stream: Tensor, first: int, count: int) -> npt.NDArray[np.float64]:
    """``(B, count)`` in [0, 1) with 53 bits: those of the fine steps from ``first`` on, one Philox block each."""
    counter = stream[:, 1:] + torch.arange(first, first + count)
    words = noise.words(stream[:, :1], counter)
    return ((words[..., 0] << 21) | (words[..., 1] >> 11)).numpy() * 2.0**-53


def check_seed(seed: int) -> int:
    """``seed``; raises ``ValueError`` unless it is one that keys can be folded with."""
    if not isinstance(seed, int) or isinstance(seed, bool) or not 0 <= seed < 2**63:
        raise ValueError(f"midpoint_seed: got {seed!r}, allowed is a whole number in [0, 2^63)")
    return seed


def _midpoints(midpoints: str | int) -> str | int:
    if isinstance(midpoints, str) and midpoints in MODES:
        return midpoints
    if isinstance(midpoints, int) and not isinstance(midpoints, bool) and midpoints >= 1:
        return midpoints
    raise ValueError(f"midpoints: got {midpoints!r}, allowed are 'bernoulli', 'one' and whole numbers >= 1")


def _sizes(total: int, window: int | None, windows: Sequence[int] | None) -> list[int]:
    if windows is None:
        if window is None or not _whole(window):
            raise ValueError(f"window: got {window!r}, allowed are whole numbers >= 1")
        return [min(window, total - start) for start in range(0, total, window)]
    if not isinstance(windows, (list, tuple)) or not all(_whole(size) for size in windows) or sum(windows) != total:
        raise ValueError(
            f"windows: got {windows!r}, allowed are None and a list of whole numbers >= 1 with the sum {total}, the "
            "number of fine steps"
        )
    return list(windows)


def _whole(size: object) -> bool:
    return isinstance(size, int) and not isinstance(size, bool) and size >= 1
