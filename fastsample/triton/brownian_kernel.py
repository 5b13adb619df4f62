"""The Triton kernel of ``fastsample::brownian``: one block of elements of one sample per program."""

# Triton compiles this source text itself: it has no Python types.
# mypy: ignore-errors
from __future__ import annotations

import triton
import triton.language as tl

from .kernel import _at, row_of
from .normal import normals, normals_wide


@triton.jit(do_not_specialize=["rows", "width"], do_not_specialize_on_alignment=["nodes", "weights", "step", "key"])
def brownian_kernel(
    out,
    key,  # (batch, 2) uint64
    nodes,  # (rows, width) int64; a 0 ends a query
    weights,  # (rows, width) float64
    step,  # () or (batch,) int64
    rows,
    width,
    numel,  # elements of a sample
    sizes,  # NDIM sizes of a sample's collapsed dimensions, outermost first
    strides,  # from sample to sample, then NDIM strides
    WIDE: tl.constexpr,  # compute in float64
    PER_SAMPLE: tl.constexpr,  # a step per sample
    NDIM: tl.constexpr,  # 0: the tensor is dense
    INDEX: tl.constexpr,  # integer type of an index inside a sample
    BLOCK: tl.constexpr,
):
    S: tl.constexpr = tl.float64 if WIDE else tl.float32
    LANES: tl.constexpr = 2 if WIDE else 4  # normals of a counter
    sample = tl.program_id(1).to(tl.int64)
    block = tl.program_id(0).to(INDEX)
    valid, at = row_of(step, rows, sample, PER_SAMPLE)
    row = at * width
    seed = tl.load(key + 2 * sample)
    first = tl.load(key + 2 * sample + 1) + (block * (BLOCK // LANES)).to(tl.uint64)
    counter = first + tl.arange(0, BLOCK // LANES).to(tl.uint64)
    total = tl.broadcast_to(tl.where(valid, 0.0, float("nan")).to(S), (BLOCK,))
    live = valid
    for n in range(width):
        node = tl.load(nodes + row + n).to(tl.uint64)
        live = live & (node != 0)
        if live:
            weight = tl.broadcast_to(tl.load(weights + row + n).to(S), (BLOCK,))
            if WIDE:  # noqa: SIM108
                z = normals_wide(seed, counter, node)
            else:
                z = normals(seed, counter, node)
            total = tl.fma(weight, z, total)
    i = block * BLOCK + tl.arange(0, BLOCK).to(INDEX)
    tl.store(_at(out, sample, i, numel, sizes, strides, NDIM), total.to(out.dtype.element_ty), mask=i < numel)
