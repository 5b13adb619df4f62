"""``fastsample::threshold_`` on Triton: from tensors to launches."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from ..ops.threshold import check, limit, place
from ..ops.update import compute_dtype
from .launch import layout, on
from .reduce_kernel import BINS, threshold_count_kernel, threshold_settle_kernel, threshold_small_kernel

SMALL = 4096  # elements of a sample that one program keeps in registers
AT_ONCE = 64  # samples whose counts are in memory together
_BLOCK, _TURNS, _WARPS = 1024, 4, 4


def threshold_(
    rows: Tensor, terms: Sequence[Tensor], table: Tensor, step: Tensor, ratio: float, low: float, high: float
) -> None:
    """Write the row of every sample; arguments as in ``fastsample.ops.threshold_``.

    A step outside the table gives a row of NaN.
    """
    check(rows, terms, table, step, ratio, low, high)
    batch = rows.shape[0]
    if batch == 0:
        return
    if table.shape[0] == 0:
        table = table.new_full((1, table.shape[1]), math.nan)
        step = step.new_full((), -1)
    if terms[0].numel() == 0:  # the quantile of nothing is the floor, which that of a zero is
        s = float(limit(torch.tensor(low, dtype=torch.float64), low, high))
        terms, low, high = [x.new_zeros((batch, 1)) for x in terms], s, s
    with on(rows.device):
        if terms[0][0].numel() <= SMALL:
            kernel, arguments, grid, warps = small(rows, terms, table, step, ratio, low, high)
            kernel[grid](*arguments, num_warps=warps, enable_fp_fusion=False)
            return
        wide_counts = terms[0][0].numel() >= 2**31
        for start in range(0, batch, AT_ONCE):
            part = slice(start, min(start + AT_ONCE, batch))
            count = part.stop - part.start
            steps = step[part] if step.dim() else step
            levels = 4 if compute_dtype(terms) == torch.float64 else 2
            bins = torch.zeros(
                levels, count, BINS, dtype=torch.int64 if wide_counts else torch.int32, device=rows.device
            )
            state = torch.zeros(count, 4, dtype=torch.int64, device=rows.device)
            parts = [x[part] for x in terms]
            for level in range(levels):
                for kernel, arguments, grid in passes(
                    rows[part], bins[level], state, parts, table, steps, ratio, low, high, level
                ):
                    kernel[grid](*arguments, num_warps=_WARPS, enable_fp_fusion=False)


def small(
    rows: Tensor, terms: Sequence[Tensor], table: Tensor, step: Tensor, ratio: float, low: float, high: float
) -> tuple[Any, tuple[Any, ...], tuple[int, ...], int]:
    """Kernel, arguments, grid and warps for samples that one program takes."""
    _, numel, sizes, strides = layout(terms, False, True)
    k, fraction = place(ratio, numel)
    block = max(32, triton.next_power_of_2(numel))
    wide = compute_dtype(terms) == torch.float64
    constants = (len(terms), wide, step.dim() == 1, len(sizes), block)
    arguments = (rows, tuple(terms), table, step, table.shape[0], numel - k, fraction, low, high)
    return threshold_small_kernel, (*arguments, numel, sizes, strides, *constants), (len(rows),), max(1, block // 512)


def passes(
    rows: Tensor, bins: Tensor, state: Tensor, terms: Sequence[Tensor], table: Tensor, step: Tensor,
    ratio: float, low: float, high: float, level: int,
) -> list[tuple[Any, tuple[Any, ...], tuple[int, ...]]]:  # fmt: skip
    """Kernel, arguments and grid of the two launches that settle a digit."""
    _, numel, sizes, strides = layout(terms, False, True)
    k, fraction = place(ratio, numel)
    wide, per_sample = compute_dtype(terms) == torch.float64, step.dim() == 1
    width = (63 if wide else 31) - 16 * level
    shift = max(width - 16, 0)
    index = tl.int32 if numel + _BLOCK * _TURNS < 2**31 else tl.int64
    count = (bins, state, tuple(terms), table, step, table.shape[0], numel, sizes, strides)
    constants = (shift, width, len(terms), wide, per_sample, len(sizes), index, _BLOCK, _TURNS)
    settle = (rows, bins, state, table, step, table.shape[0], numel - k, fraction, low, high)
    grid = (-(-numel // (_BLOCK * _TURNS)), len(rows), 1)
    return [
        (threshold_count_kernel, (*count, *constants), grid),
        (threshold_settle_kernel, (*settle, level == 0, shift, wide, per_sample), (len(rows),)),
    ]
