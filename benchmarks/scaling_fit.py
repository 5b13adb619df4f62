"""Straight lines through times, and where they bend."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np


def line(sizes: Sequence[float], seconds: Sequence[float]) -> tuple[float, float]:
    """Fixed cost a and slope b, neither below 0, of ``a + b size``, least in the squares of *relative* errors.

    Raises:
        ValueError: fewer than two sizes.
    """
    n, t = np.asarray(sizes, dtype=np.float64), np.asarray(seconds, dtype=np.float64)
    if len(n) < 2 or len(n) != len(t):
        raise ValueError(f"sizes: got {len(n)} with {len(t)} times, need at least 2 and as many")
    columns = np.stack([1.0 / t, n / t], axis=1)
    (a, b), *_ = np.linalg.lstsq(columns, np.ones(len(t)), rcond=None)
    if a >= 0 and b >= 0:
        return float(a), float(b)
    alone = [float(c.sum() / (c @ c)) for c in columns.T]
    errors = [float(np.square(c * k - 1.0).sum()) for c, k in zip(columns.T, alone, strict=True)]
    return (alone[0], 0.0) if errors[0] < errors[1] else (0.0, alone[1])


def pays_from(one: Mapping[int, float], many: Mapping[int, float], gain: float = 0.95) -> int | None:
    """The smallest size from which on, at all larger ones too, ``many`` takes less than ``gain`` of ``one``."""
    found = None
    for size in sorted(one.keys() & many.keys(), reverse=True):
        if many[size] >= gain * one[size]:
            break
        found = size
    return found
