"""Sums over a sample in the fixed order of csrc/core/moments.h."""

# Triton compiles this source text itself: it has no Python types, and tuples grow by + alone.
# mypy: ignore-errors
# ruff: noqa: RUF005
from __future__ import annotations

import triton
import triton.language as tl

LANES, ROUNDS, STRANDS = 512, 8, 128
_LANES = tl.constexpr(LANES)
_ROUNDS = tl.constexpr(ROUNDS)
_STRANDS = tl.constexpr(STRANDS)


@triton.jit
def fold(x, N: tl.constexpr):
    """The sum of N numbers, folded in halves."""
    for k in tl.static_range(12):
        if (N >> k) > 1:
            x = tl.sum(tl.reshape(x, (2, N >> (k + 1))), 0)
    return tl.sum(x)


@triton.jit
def fold_blocks(source, blocks, M: tl.constexpr):
    """M sums of a sample from those of its blocks ``(blocks, M)`` float64, the same in every program."""
    strand = tl.arange(0, _STRANDS)
    sums = ()
    for _ in tl.static_range(M):
        sums = sums + (tl.zeros((_STRANDS,), tl.float64),)
    for first in range(0, blocks, _STRANDS):
        there = first + strand < blocks
        more = ()
        for m in tl.static_range(M):
            more = more + (sums[m] + tl.load(source + (first + strand) * M + m, mask=there, other=0.0),)
        sums = more
    totals = ()
    for m in tl.static_range(M):
        totals = totals + (fold(sums[m], _STRANDS),)
    return totals
