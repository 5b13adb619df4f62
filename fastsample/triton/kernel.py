"""The Triton kernel of ``fastsample::update``: docs/row.md, one block of elements of one sample per program."""

# Triton compiles this source text itself: it has no Python types, and tuples grow by + alone.
# mypy: ignore-errors
# ruff: noqa: RUF005
from __future__ import annotations

import triton
import triton.language as tl

from .normal import normals, normals_pairs, normals_wide

# Columns of a row (fastsample/row.py).
_COLUMNS = tl.constexpr(48)
_LO = tl.constexpr(32)
_HI = tl.constexpr(36)
_DRAW = tl.constexpr(44)


@triton.jit
def _at(pointer, sample, i, numel, sizes, strides, NDIM: tl.constexpr):
    """Addresses of elements ``i`` of a sample."""
    if NDIM == 0:  # every tensor is dense, and all are laid out alike
        offset = sample * numel + i
    else:
        offset = sample * strides[0]
        for d in tl.static_range(NDIM - 1):
            offset += (i % sizes[NDIM - 1 - d]).to(tl.int64) * strides[NDIM - d]
            i = i // sizes[NDIM - 1 - d]
        offset += i.to(tl.int64) * strides[1]
    return pointer + offset


@triton.jit
def _normals(seed, first, WIDE: tl.constexpr, PAIRS: tl.constexpr, BLOCK: tl.constexpr):
    """``BLOCK`` normals from counter ``first`` on."""
    STRIDE: tl.constexpr = 2 if PAIRS else 1
    LANES: tl.constexpr = 2 if WIDE else 4 * STRIDE
    counter = first + STRIDE * tl.arange(0, BLOCK // LANES).to(tl.uint64)
    if WIDE:
        xi = normals_wide(seed, counter)
    elif PAIRS:
        xi = normals_pairs(seed, counter)
    else:
        xi = normals(seed, counter)
    return xi


@triton.jit(
    do_not_specialize=["rows"],
    do_not_specialize_on_alignment=["table", "step", "key"],
)
def update_kernel(
    outs,  # tuple of N pointers; may be memory of terms
    terms,  # tuple of K pointers
    noise,  # tuple of R pointers, unused with a key
    table,  # (rows, 48) float64
    step,  # () or (batch,) int64
    key,  # (batch, 2) uint64, or None
    rows,
    numel,  # elements of a sample
    chunks,  # counters that one draw of a sample takes
    sizes,  # NDIM sizes of a sample's collapsed dimensions, outermost first
    out_strides,  # per tensor: stride from sample to sample, then NDIM strides
    term_strides,
    noise_strides,
    K: tl.constexpr,
    N: tl.constexpr,
    R: tl.constexpr,
    WIDE: tl.constexpr,  # compute in float64
    PAIRS: tl.constexpr,  # a thread makes the noise of two neighbouring chunks
    PER_SAMPLE: tl.constexpr,  # a step per sample
    NDIM: tl.constexpr,  # 0: every tensor is dense, and all are laid out alike
    INDEX: tl.constexpr,  # integer type of an index inside a sample
    BLOCK: tl.constexpr,
    ROUNDS: tl.constexpr,  # blocks of a program, one after the other
):
    S: tl.constexpr = tl.float64 if WIDE else tl.float32
    LANES: tl.constexpr = 2 if WIDE else 4  # normals of a counter
    sample = tl.program_id(1).to(tl.int64)
    at = tl.load(step + sample) if PER_SAMPLE else tl.load(step)
    valid = (at >= 0) & (at < rows)
    row = table + tl.where(valid, at, 0) * _COLUMNS

    # All weights in the compute type.  A weight that rounds to 0 is 0.
    use_d = False
    d_weights = ()
    for k in tl.static_range(N):
        w = tl.load(row + _LO + 1 + k).to(S)
        d_weights = d_weights + (w,)
        use_d = use_d | (w != 0)
    weights = ()  # a term's side by side: P_j, W_0j, ...
    ends = ()  # of the elements to read: none of a term without weight
    for j in tl.static_range(K):
        w = tl.where(use_d, tl.load(row + 4 * j).to(S), 0.0)
        weights = weights + (w,)
        needed = w != 0
        for k in tl.static_range(N):
            w = tl.load(row + 4 * j + 1 + k).to(S)
            weights = weights + (w,)
            needed = needed | (w != 0)
        ends = ends + (tl.where(needed, numel, 0),)
    g_weights = ()
    g_needs = ()
    g_ends = ()
    starts = ()  # the counter at which a draw of this sample begins
    seed = 0
    if key is not None:
        seed = tl.load(key + 2 * sample)
    for r in tl.static_range(R):
        needed = False
        for k in tl.static_range(N):
            w = tl.load(row + _HI + 4 * r + 1 + k).to(S)
            g_weights = g_weights + (w,)
            needed = needed | (w != 0)
        g_needs = g_needs + (needed,)
        g_ends = g_ends + (tl.where(needed, numel, 0),)
        if key is not None:
            draw = tl.load(row + _DRAW + r).to(tl.int64)
            starts = starts + (tl.load(key + 2 * sample + 1) + (draw * chunks).to(tl.uint64),)
    lo, hi = tl.load(row + _LO).to(S), tl.load(row + _HI).to(S)
    limited = use_d & ((lo > float("-inf")) | (hi < float("inf")))
    # The sum of a step out of range starts at NaN and stays there.
    start = tl.where(valid, 0.0, float("nan")).to(S)

    for turn in range(ROUNDS):
        block = tl.program_id(0).to(INDEX) * ROUNDS + turn
        i = block * BLOCK + tl.arange(0, BLOCK).to(INDEX)
        # A predicate instead of a branch: a term without weight is not read, and all loads go out together.
        raw = ()
        for j in tl.static_range(K):
            where = _at(terms[j], sample, i, numel, sizes, term_strides[j] if NDIM > 0 else (), NDIM)
            raw = raw + (tl.load(where, mask=i < ends[j], other=0.0),)
        # Noise is made while the loads are on their way.
        xis = ()
        for r in tl.static_range(R):
            if key is None:
                where = _at(noise[r], sample, i, numel, sizes, noise_strides[r] if NDIM > 0 else (), NDIM)
                xi = tl.load(where, mask=i < g_ends[r], other=0.0).to(S)
            else:
                xi = tl.zeros((BLOCK,), S)
                if g_needs[r]:
                    first = starts[r] + (block * (BLOCK // LANES)).to(tl.uint64)
                    xi = _normals(seed, first, WIDE, PAIRS, BLOCK)
            xis = xis + (xi,)

        xs = ()
        for j in tl.static_range(K):
            xs = xs + (raw[j].to(S),)
        d = tl.zeros((BLOCK,), S)
        for j in tl.static_range(K):
            if weights[j * (N + 1)] != 0:
                d = tl.fma(tl.broadcast_to(weights[j * (N + 1)], (BLOCK,)), xs[j], d)
        if limited:
            d = tl.where(d < lo, lo, tl.where(d > hi, hi, d))  # a NaN stays

        # An output may be the memory of a term, whose elements other threads have to have read.
        tl.debug_barrier()
        for k in tl.static_range(N):
            out = tl.broadcast_to(start, (BLOCK,))
            for j in tl.static_range(K):
                if weights[j * (N + 1) + 1 + k] != 0:
                    out = tl.fma(tl.broadcast_to(weights[j * (N + 1) + 1 + k], (BLOCK,)), xs[j], out)
            if d_weights[k] != 0:
                out = tl.fma(tl.broadcast_to(d_weights[k], (BLOCK,)), d, out)
            for r in tl.static_range(R):
                if g_weights[r * N + k] != 0:
                    out = tl.fma(tl.broadcast_to(g_weights[r * N + k], (BLOCK,)), xis[r], out)
            where = _at(outs[k], sample, i, numel, sizes, out_strides[k] if NDIM > 0 else (), NDIM)
            tl.store(where, out.to(outs[k].dtype.element_ty), mask=i < numel)
