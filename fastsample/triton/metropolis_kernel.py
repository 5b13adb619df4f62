"""The Triton kernels of ``fastsample::metropolis_``: docs/metropolis.md.

The first writes to a workspace what every block of a sample adds to the log-ratio.  In the second each program folds
those sums, so that all programs of a sample come to one choice, and only then moves its elements.  The numbers of a
chain that the choice overwrites are read in the first.
"""

# Triton compiles this source text itself: it has no Python types, and tuples grow by + alone.
# mypy: ignore-errors
# ruff: noqa: RUF005
from __future__ import annotations

import triton
import triton.language as tl

from .kernel import _at, draws_of, noise_of, prediction, rounded, row_of, store_outputs, weights_of
from .moments import _LANES, _ROUNDS, fold, fold_blocks
from .normal import philox, unit_wide

# Columns of a row (fastsample/decision.py) and of the numbers of a chain.
_COLUMNS = tl.constexpr(96)
_RATIO = tl.constexpr(48)
_KAPPA = tl.constexpr(80)
_ENERGY = tl.constexpr(81)
_RADIUS = tl.constexpr(82)
_DRAW = tl.constexpr(84)
_CHAIN = tl.constexpr(5)
_THIRD = tl.constexpr(1 << 30)  # word of the counter of a choice
SUMS, HEAD = 3, 2  # of a block: log-ratio, squares of the way, squares of the proposal; of a sample: energies, log U
_SUMS = tl.constexpr(SUMS)
_HEAD = tl.constexpr(HEAD)


@triton.jit
def _head(to, row, chain, key, uniform, sample):
    """What a log-ratio gets from the energies, which are read only if the row asks for them, and log U."""
    w = tl.load(row + _ENERGY)
    energy = tl.load(chain + sample * _CHAIN, mask=w != 0, other=0.0)
    proposed = tl.load(chain + sample * _CHAIN + 1, mask=w != 0, other=0.0)
    tl.store(to, tl.where(w != 0, w * (energy - proposed), 0.0))
    if uniform is None:
        draw = tl.load(row + _DRAW).to(tl.int64).to(tl.uint64)
        r0, r1, _, _ = philox(tl.load(key + 2 * sample), tl.load(key + 2 * sample + 1) + draw, third=_THIRD)
        u = unit_wide(r0, r1)
    else:
        u = tl.load(uniform + sample)
    tl.store(to + 1, tl.log(u))


@triton.jit(
    do_not_specialize=["rows", "blocks"],
    do_not_specialize_on_alignment=["work", "chain", "table", "step", "key", "uniform"],
)
def metropolis_sums_kernel(
    operands,  # tuple of K pointers: state, proposal, cache, fresh, terms
    work,  # (batch, SUMS * blocks + HEAD) float64
    chain,  # (batch, 5) float64
    table,  # (rows, 96) float64
    step,  # () or (batch,) int64
    key,  # (batch, 2) uint64, or None
    uniform,  # (batch,) float64, or None
    rows,
    blocks,
    numel,
    sizes,  # as in update_kernel
    strides,
    K: tl.constexpr,
    WIDE: tl.constexpr,
    PER_SAMPLE: tl.constexpr,
    NDIM: tl.constexpr,
    INDEX: tl.constexpr,
):
    """The sums of one block of a sample, and once a sample what does not depend on its elements."""
    S: tl.constexpr = tl.float64 if WIDE else tl.float32
    sample = tl.program_id(1).to(tl.int64)
    _, at = row_of(step, rows, sample, PER_SAMPLE)
    row = table + at * _COLUMNS
    near, inner = tl.load(row + _RADIUS) < float("inf"), tl.load(row + _RADIUS + 1) < float("inf")
    weights = ()  # an operand's side by side: A_j, G_j, H_j
    reads = ()
    has_q = False
    for j in tl.static_range(K):
        needed = False
        for k in tl.static_range(3):
            w = tl.load(row + _RATIO + 4 * j + k).to(S)
            weights = weights + (w,)
            needed = needed | (w != 0)
        has_q = has_q | (weights[3 * j] != 0)
        reads = reads + (needed,)
    ends = ()  # of the elements to read
    for j in tl.static_range(K):
        needed = reads[j]
        if j < 2:
            needed = needed | has_q | near
        if j == 1:
            needed = needed | inner
        ends = ends + (tl.where(needed, numel, 0),)
    kappa = tl.load(row + _KAPPA).to(S)

    ratio = tl.zeros((_LANES,), tl.float64)
    way = tl.zeros((_LANES,), tl.float64)
    length = tl.zeros((_LANES,), tl.float64)
    for turn in range(_ROUNDS):
        i = (tl.program_id(0).to(INDEX) * _ROUNDS + turn) * _LANES + tl.arange(0, _LANES).to(INDEX)
        raw = ()
        for j in tl.static_range(K):
            where = _at(operands[j], sample, i, numel, sizes, strides[j] if NDIM > 0 else (), NDIM)
            raw = raw + (tl.load(where, mask=i < ends[j], other=0.0),)
        q = tl.zeros((_LANES,), S)
        g = tl.zeros((_LANES,), S)
        h = tl.zeros((_LANES,), S)
        for j in tl.static_range(K):
            if weights[3 * j] != 0:
                q = tl.fma(tl.broadcast_to(weights[3 * j], (_LANES,)), raw[j].to(S), q)
            if weights[3 * j + 1] != 0:
                g = tl.fma(tl.broadcast_to(weights[3 * j + 1], (_LANES,)), raw[j].to(S), g)
            if weights[3 * j + 2] != 0:
                h = tl.fma(tl.broadcast_to(weights[3 * j + 2], (_LANES,)), raw[j].to(S), h)
        proposal = raw[1].to(S)
        d = proposal - raw[0].to(S)
        s = tl.fma(kappa * (g - h), g + h, tl.where(has_q, d * q, 0.0))
        ratio += tl.where(i < numel, s.to(tl.float64), 0.0)
        if near:
            way += (d * d).to(tl.float64)
        if inner:
            length += (proposal * proposal).to(tl.float64)
    own = work + sample * (_SUMS * blocks + _HEAD)
    sums = own + _SUMS * tl.program_id(0)
    tl.store(sums, fold(ratio, _LANES))
    tl.store(sums + 1, fold(way, _LANES))
    tl.store(sums + 2, fold(length, _LANES))
    if tl.program_id(0) == 0:
        _head(own + _SUMS * blocks, row, chain, key, uniform, sample)


@triton.jit
def _choice(work, row, valid, sample, blocks):
    """The log-ratio of a sample, and whether it accepts; a NaN in any comparison rejects."""
    own = work + sample * (_SUMS * blocks + _HEAD)
    sums = fold_blocks(own, blocks, _SUMS)
    ratio = tl.load(own + _SUMS * blocks) + sums[0]
    ratio = tl.where(valid, ratio, float("nan"))
    accept = tl.load(own + _SUMS * blocks + 1) < ratio
    for k in tl.static_range(2):
        radius = tl.load(row + _RADIUS + k)
        accept = accept & ((radius == float("inf")) | (sums[1 + k] <= radius * radius))
    return ratio, accept


@triton.jit
def _record(chain, sample, ratio, accept):
    """Writes the choice into the numbers of a chain."""
    numbers = chain + sample * _CHAIN
    tl.store(numbers, tl.load(numbers + 1, mask=accept, other=0.0), mask=accept)
    tl.store(numbers + 2, ratio)
    tl.store(numbers + 3, tl.where(accept, 1.0, 0.0).to(tl.float64))
    tl.store(numbers + 4, tl.load(numbers + 4, mask=accept, other=0.0) + 1.0, mask=accept)


@triton.jit(
    do_not_specialize=["rows", "blocks"],
    do_not_specialize_on_alignment=["work", "chain", "table", "step", "key"],
)
def metropolis_move_kernel(
    kept,  # state, cache
    offered,  # proposal, fresh
    outs,  # tuple of N pointers; may be memory of the proposal
    terms,  # tuple of K pointers
    noise,  # tuple of R pointers, unused with a key
    work,  # of metropolis_sums_kernel
    chain,
    table,
    step,
    key,
    rows,
    blocks,  # of the sums
    numel,
    chunks,  # counters that one draw of a sample takes
    sizes,  # as in update_kernel
    kept_strides,
    offered_strides,
    out_strides,
    term_strides,
    noise_strides,
    K: tl.constexpr,
    N: tl.constexpr,
    R: tl.constexpr,
    WIDE: tl.constexpr,
    PAIRS: tl.constexpr,
    PER_SAMPLE: tl.constexpr,
    NDIM: tl.constexpr,
    INDEX: tl.constexpr,
    BLOCK: tl.constexpr,
    ROUNDS: tl.constexpr,
):
    """The choice of a sample, then ROUNDS blocks of it: what is kept, and the row of the move."""
    S: tl.constexpr = tl.float64 if WIDE else tl.float32
    sample = tl.program_id(1).to(tl.int64)
    valid, at = row_of(step, rows, sample, PER_SAMPLE)
    row = table + at * _COLUMNS
    ratio, accept = _choice(work, row, valid, sample, blocks)
    if tl.program_id(0) == 0:
        _record(chain, sample, ratio, accept)

    of_terms, of_d, of_noise, limits, reads, reads_noise = weights_of(row, 2 + K, N, R, WIDE)
    seed, starts = draws_of(row, key, sample, chunks, R)
    start = tl.where(valid, 0.0, float("nan")).to(S)  # of an output's sum
    taken = tl.where(accept, numel, 0)
    for turn in range(ROUNDS):
        block = tl.program_id(0).to(INDEX) * ROUNDS + turn
        i = block * BLOCK + tl.arange(0, BLOCK).to(INDEX)
        old = ()
        new = ()
        raw = ()
        for j in tl.static_range(2):
            where = _at(offered[j], sample, i, numel, sizes, offered_strides[j] if NDIM > 0 else (), NDIM)
            new = new + (tl.load(where, mask=i < taken, other=0.0),)
            where = _at(kept[j], sample, i, numel, sizes, kept_strides[j] if NDIM > 0 else (), NDIM)
            old = old + (tl.load(where, mask=i < tl.where(reads[j], numel - taken, 0), other=0.0),)
        for j in tl.static_range(K):
            where = _at(terms[j], sample, i, numel, sizes, term_strides[j] if NDIM > 0 else (), NDIM)
            raw = raw + (tl.load(where, mask=i < tl.where(reads[2 + j], numel, 0), other=0.0),)
        xis = noise_of(noise, key, seed, starts, reads_noise, sample, block, i, numel, sizes, noise_strides, R, WIDE,
                       PAIRS, NDIM, BLOCK)  # fmt: skip
        xs = ()
        for j in tl.static_range(2):
            xs = xs + (tl.where(accept, new[j].to(S), old[j].to(S)),)
        for j in tl.static_range(K):
            xs = xs + (raw[j].to(S),)
        d = prediction(xs, of_terms, limits, tl.zeros((BLOCK,), S), 2 + K, N)
        # An output may be the memory of the proposal, whose elements other threads have to have read.
        tl.debug_barrier()
        for j in tl.static_range(2):
            where = _at(kept[j], sample, i, numel, sizes, kept_strides[j] if NDIM > 0 else (), NDIM)
            tl.store(where, rounded(xs[j], kept[j].dtype.element_ty), mask=i < taken)
        store_outputs(outs, xs, d, xis, of_terms, of_d, of_noise, start, sample, i, numel, sizes, out_strides, 2 + K, N,
                      R, NDIM)  # fmt: skip
