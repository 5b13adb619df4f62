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
_TIME = tl.constexpr(40)
_DRAW = tl.constexpr(44)


@triton.jit
def row_of(step, rows, sample, PER_SAMPLE: tl.constexpr):
    """Whether the step of a sample exists, and its row, 0 if not."""
    at = tl.load(step + sample) if PER_SAMPLE else tl.load(step)
    valid = (at >= 0) & (at < rows)
    return valid, tl.where(valid, at, 0)


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
def rounded(x, type: tl.constexpr):
    """To the dtype of a tensor; from float64 to 16 bits by way of float32, as in torch."""
    if type.primitive_bitwidth == 16:
        x = x.to(tl.float32)
    return x.to(type)


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


@triton.jit
def weights_of(row, K: tl.constexpr, N: tl.constexpr, R: tl.constexpr, WIDE: tl.constexpr):
    """A row in the compute type, where a weight that rounds to 0 is 0, and which terms and noises it reads."""
    S: tl.constexpr = tl.float64 if WIDE else tl.float32
    use_d = False
    of_d = ()
    for k in tl.static_range(N):
        w = tl.load(row + _LO + 1 + k).to(S)
        of_d = of_d + (w,)
        use_d = use_d | (w != 0)
    of_terms = ()  # a term's side by side: P_j, W_0j, ...
    reads = ()
    for j in tl.static_range(K):
        w = tl.where(use_d, tl.load(row + 4 * j).to(S), 0.0)
        of_terms = of_terms + (w,)
        needed = w != 0
        for k in tl.static_range(N):
            w = tl.load(row + 4 * j + 1 + k).to(S)
            of_terms = of_terms + (w,)
            needed = needed | (w != 0)
        reads = reads + (needed,)
    of_noise = ()
    reads_noise = ()
    for r in tl.static_range(R):
        needed = False
        for k in tl.static_range(N):
            w = tl.load(row + _HI + 4 * r + 1 + k).to(S)
            of_noise = of_noise + (w,)
            needed = needed | (w != 0)
        reads_noise = reads_noise + (needed,)
    lo, hi = tl.load(row + _LO).to(S), tl.load(row + _HI).to(S)
    limited = use_d & ((lo > float("-inf")) | (hi < float("inf")))
    return of_terms, of_d, of_noise, (lo, hi, limited), reads, reads_noise


@triton.jit
def draws_of(row, key, sample, chunks, R: tl.constexpr):
    """The seed of a sample, and the counters at which its draws begin."""
    seed = 0
    starts = ()
    if key is not None:
        seed = tl.load(key + 2 * sample)
        for r in tl.static_range(R):
            draw = tl.load(row + _DRAW + r).to(tl.int64)
            starts = starts + (tl.load(key + 2 * sample + 1) + (draw * chunks).to(tl.uint64),)
    return seed, starts


@triton.jit
def noise_of(noise, key, seed, starts, reads, sample, block, i, numel, sizes, strides, R: tl.constexpr,
             WIDE: tl.constexpr, PAIRS: tl.constexpr, NDIM: tl.constexpr, BLOCK: tl.constexpr):  # fmt: skip
    """The noises of one block, given or made; 0 where the row reads none."""
    S: tl.constexpr = tl.float64 if WIDE else tl.float32
    LANES: tl.constexpr = 2 if WIDE else 4  # normals of a counter
    xis = ()
    for r in tl.static_range(R):
        if key is None:
            where = _at(noise[r], sample, i, numel, sizes, strides[r] if NDIM > 0 else (), NDIM)
            xi = tl.load(where, mask=i < tl.where(reads[r], numel, 0), other=0.0).to(S)
        else:
            xi = tl.zeros((BLOCK,), S)
            if reads[r]:
                first = starts[r] + (block * (BLOCK // LANES)).to(tl.uint64)
                xi = _normals(seed, first, WIDE, PAIRS, BLOCK)
        xis = xis + (xi,)
    return xis


@triton.jit
def prediction(xs, of_terms, limits, zero, K: tl.constexpr, N: tl.constexpr):
    """D of a block."""
    d = zero
    for j in tl.static_range(K):
        if of_terms[j * (N + 1)] != 0:
            d = tl.fma(tl.broadcast_to(of_terms[j * (N + 1)], zero.shape), xs[j], d)
    lo, hi, limited = limits
    if limited:
        d = tl.where(d < lo, lo, tl.where(d > hi, hi, d))  # a NaN stays
    return d


@triton.jit
def store_outputs(outs, xs, d, xis, of_terms, of_d, of_noise, start, sample, i, numel, sizes, strides,
                  K: tl.constexpr, N: tl.constexpr, R: tl.constexpr, NDIM: tl.constexpr):  # fmt: skip
    """Sums and stores the outputs of a block, each from ``start`` on."""
    for k in tl.static_range(N):
        out = tl.broadcast_to(start, d.shape)
        for j in tl.static_range(K):
            if of_terms[j * (N + 1) + 1 + k] != 0:
                out = tl.fma(tl.broadcast_to(of_terms[j * (N + 1) + 1 + k], d.shape), xs[j], out)
        if of_d[k] != 0:
            out = tl.fma(tl.broadcast_to(of_d[k], d.shape), d, out)
        for r in tl.static_range(R):
            if of_noise[r * N + k] != 0:
                out = tl.fma(tl.broadcast_to(of_noise[r * N + k], d.shape), xis[r], out)
        where = _at(outs[k], sample, i, numel, sizes, strides[k] if NDIM > 0 else (), NDIM)
        tl.store(where, rounded(out, outs[k].dtype.element_ty), mask=i < numel)


@triton.jit
def write_times(time, table, step, rows, samples, PER_SAMPLE: tl.constexpr):
    """What the network of each sample is told after its row.  The programs share the samples, whatever their grid."""
    WIDTH: tl.constexpr = 32
    programs = tl.num_programs(0) * tl.num_programs(1)
    program = tl.program_id(1) * tl.num_programs(0) + tl.program_id(0)
    for first in range(program * WIDTH, samples, programs * WIDTH):
        b = first + tl.arange(0, WIDTH)
        if PER_SAMPLE:
            at = tl.load(step + b, mask=b < samples, other=-1)
        else:
            at = tl.load(step) + tl.zeros((WIDTH,), tl.int64)
        valid = (at >= 0) & (at < rows)
        found = tl.load(table + tl.where(valid, at, 0) * _COLUMNS + _TIME, mask=valid, other=float("nan"))
        tl.store(time + b, found.to(time.dtype.element_ty), mask=b < samples)


@triton.jit
def pass_step(clock):
    """Count a program that has read its step; the last one moves the clock."""
    programs = tl.num_programs(0) * tl.num_programs(1)
    if tl.atomic_add(clock + 1, 1) == programs - 1:
        tl.store(clock + 1, 0)
        tl.store(clock, tl.load(clock) + 1)


@triton.jit(
    do_not_specialize=["rows"],
    do_not_specialize_on_alignment=["table", "step", "key", "time", "clock"],
)
def update_kernel(
    outs,  # tuple of N pointers; may be memory of terms
    terms,  # tuple of K pointers
    noise,  # tuple of R pointers, unused with a key
    table,  # (rows, 48) float64
    step,  # () or (batch,) int64
    key,  # (batch, 2) uint64, or None
    time,  # (samples,) float32 or float64, or None
    clock,  # (2,) int64, or None
    rows,
    samples,  # before any are folded into one
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
    sample = tl.program_id(1).to(tl.int64)
    valid, at = row_of(step, rows, sample, PER_SAMPLE)
    row = table + at * _COLUMNS

    of_terms, of_d, of_noise, limits, reads, reads_noise = weights_of(row, K, N, R, WIDE)
    ends = ()  # of the elements to read: none of a term without weight
    for j in tl.static_range(K):
        ends = ends + (tl.where(reads[j], numel, 0),)
    seed, starts = draws_of(row, key, sample, chunks, R)
    if time is not None:
        write_times(time, table, step, rows, samples, PER_SAMPLE)
    if clock is not None:  # here rather than at the end, where its address would have to be kept
        tl.debug_barrier()  # every thread has read the step
        pass_step(clock)
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
        xis = noise_of(noise, key, seed, starts, reads_noise, sample, block, i, numel, sizes, noise_strides, R, WIDE,
                       PAIRS, NDIM, BLOCK)  # fmt: skip
        xs = ()
        for j in tl.static_range(K):
            xs = xs + (raw[j].to(S),)
        d = prediction(xs, of_terms, limits, tl.zeros((BLOCK,), S), K, N)
        # An output may be the memory of a term, whose elements other threads have to have read.
        tl.debug_barrier()
        store_outputs(outs, xs, d, xis, of_terms, of_d, of_noise, start, sample, i, numel, sizes, out_strides, K, N, R,
                      NDIM)  # fmt: skip
