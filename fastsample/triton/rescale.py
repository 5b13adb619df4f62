"""``fastsample::rescale_`` on Triton: from tensors to launches."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
import triton.language as tl
from torch import Tensor

from ..ops.rescale import check
from ..ops.update import compute_dtype
from .launch import layout, on
from .moments import LANES, ROUNDS
from .reduce_kernel import rescale_blocks_kernel, rescale_rows_kernel
from .update import _MAX_BATCH


def rescale_(
    rows: Tensor,
    terms: Sequence[Tensor],
    table: Tensor,
    step: Tensor,
    cond: int,
    uncond: int,
) -> None:
    """Write the row of every sample; arguments as in ``fastsample.ops.rescale_``.

    A step outside the table gives a row of NaN.
    """
    check(rows, terms, table, step, cond, uncond)
    if table.shape[0] == 0:
        table = table.new_full((1, table.shape[1]), math.nan)
        step = step.new_full((), -1)
    for start in range(0, rows.shape[0], _MAX_BATCH):
        part = slice(start, start + _MAX_BATCH)
        steps = step[part] if step.dim() else step
        launches = describe(rows[part], [x[part] for x in terms], table, steps, cond, uncond)
        with on(rows.device):
            for kernel, arguments, grid in launches:
                kernel[grid](*arguments, num_warps=4, enable_fp_fusion=False)


def describe(
    rows: Tensor, terms: Sequence[Tensor], table: Tensor, step: Tensor, cond: int, uncond: int
) -> list[tuple[Any, tuple[Any, ...], tuple[int, ...]]]:
    """Kernel, arguments and grid of the launches of a well-formed call."""
    _, numel, sizes, strides = layout(terms, False, True)
    both = (strides[cond], strides[uncond]) if strides else ()
    blocks = -(-numel // (LANES * ROUNDS))
    moments = torch.empty(len(rows), blocks, 4, dtype=torch.float64, device=rows.device)
    index = tl.int32 if numel + LANES * ROUNDS < 2**31 else tl.int64
    wide = compute_dtype(terms) == torch.float64
    known, each = (table, step, table.shape[0]), step.dim() == 1
    sums = (moments, terms[cond], terms[uncond], *known, blocks, numel, sizes, both, wide, each, len(sizes), index)
    row = (rows, moments, *known, cond, uncond, blocks, numel, each)
    launches = [(rescale_blocks_kernel, sums, (blocks, len(rows), 1)), (rescale_rows_kernel, row, (len(rows),))]
    return launches if blocks > 0 else launches[1:]  # type: ignore[return-value]
