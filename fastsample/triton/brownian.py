"""``fastsample::brownian_`` on Triton: from tensors to a launch."""

from __future__ import annotations

import math
from typing import Any

import torch
import triton.language as tl
from torch import Tensor

from ..ops.brownian import check
from .brownian_kernel import brownian_kernel
from .launch import layout, on
from .update import _MAX_BATCH

_SMALL = 1 << 16  # elements of a call below which there are as many programs as there can be


def brownian_(out: Tensor, key: Tensor, nodes: Tensor, weights: Tensor, step: Tensor) -> None:
    """Write query ``step`` of a table into ``out``; arguments as in ``fastsample.ops.brownian_``.

    A step outside the table fills the output with NaN.
    """
    check(out, key, nodes, weights, step)
    if out.numel() == 0:
        return
    if nodes.shape[0] == 0:
        out.fill_(math.nan)
        return
    for start in range(0, out.shape[0], _MAX_BATCH):
        part = slice(start, start + _MAX_BATCH)
        arguments, grid, warps = describe(out[part], step)
        tensors = (out[part], key[part].contiguous(), nodes.contiguous(), weights.contiguous())
        steps = (step[part] if step.dim() else step).contiguous()
        with on(out.device):
            brownian_kernel[grid](*tensors, steps, *nodes.shape, *arguments, num_warps=warps, enable_fp_fusion=False)


def describe(out: Tensor, step: Tensor) -> tuple[tuple[Any, ...], tuple[int, int, int], int]:
    """The kernel's arguments from ``numel`` on, the grid and the warps of a well-formed call."""
    batch, numel, sizes, strides = layout([out], True, True)
    wide = out.dtype == torch.float64
    warps = 1 if out.numel() < _SMALL else 4
    block = 32 * warps * (2 if wide else 4)
    index = tl.int32 if numel + block < 2**31 else tl.int64
    own = strides[0] if strides else ()
    arguments = (numel, sizes, own, wide, step.dim() == 1, len(sizes), index, block)
    return arguments, (-(-numel // block), batch, 1), warps
