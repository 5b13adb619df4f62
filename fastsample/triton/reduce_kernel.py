"""The Triton kernels of ``fastsample::threshold_`` and ``fastsample::rescale_``: csrc/core/select.h and moments.h."""

# Triton compiles this source text itself: it has no Python types, and tuples grow by + alone.
# mypy: ignore-errors
from __future__ import annotations

import triton
import triton.language as tl

from .kernel import _at, row_of
from .moments import _LANES, _ROUNDS, fold, fold_blocks

_COLUMNS = tl.constexpr(48)
_PREDICTION = tl.constexpr(32)  # columns of terms end here
_LO = tl.constexpr(32)
_HI = tl.constexpr(36)
_DRAW = tl.constexpr(44)
_GUIDANCE = tl.constexpr(46)
_PHI = tl.constexpr(47)
BINS = 1 << 16  # of a digit
_BINS = tl.constexpr(BINS)
_CHUNK = tl.constexpr(4096)  # digits looked at together when one is settled


@triton.jit
def _patterns(terms, row, valid, sample, i, numel, sizes, strides, K: tl.constexpr, WIDE: tl.constexpr,
              NDIM: tl.constexpr):  # fmt: skip
    """Magnitudes of the prediction as whole numbers, int32 or int64; those from numel on are of no use."""
    S: tl.constexpr = tl.float64 if WIDE else tl.float32
    y = tl.zeros(i.shape, S)
    for j in tl.static_range(K):
        w = tl.where(valid, tl.load(row + 4 * j).to(S), 0.0)
        if w != 0:
            where = _at(terms[j], sample, i, numel, sizes, strides[j] if NDIM > 0 else (), NDIM)
            x = tl.load(where, mask=i < numel, other=0.0).to(S)
            y = tl.fma(tl.broadcast_to(w, i.shape), x, y)
    if WIDE:  # noqa: SIM108
        x = y.to(tl.int64, bitcast=True) & 0x7FFFFFFFFFFFFFFF
    else:
        x = y.to(tl.int32, bitcast=True) & 0x7FFFFFFF
    return x


@triton.jit
def _value(pattern, WIDE: tl.constexpr):
    if WIDE:
        v = pattern.to(tl.int64).to(tl.float64, bitcast=True)
    else:
        v = pattern.to(tl.int32).to(tl.float32, bitcast=True).to(tl.float64)
    return v


@triton.jit
def _write_threshold(rows, table, sample, at, valid, low_value, high_value, nan, fraction, low, high):
    """The row of a sample from v_k and v_k+1."""
    fraction = tl.full((), fraction, tl.float64)
    low, high = tl.full((), low, tl.float64), tl.full((), high, tl.float64)
    between = low_value + fraction * (high_value - low_value)
    q = tl.where((fraction == 0) | (low_value == high_value), low_value, between)
    q = tl.where(nan, float("nan"), q)
    s = tl.where(q < low, low, q)
    s = tl.where(s > high, high, s)
    c = tl.arange(0, 64)
    v = tl.load(table + at * _COLUMNS + c, mask=c < tl.where(valid, _COLUMNS, 0), other=0.0)
    scaled = (c < _PREDICTION) & (c % 4 == 0) & (v != 0)
    v = tl.where(scaled, v / tl.where(scaled, s, 1.0), v)
    v = tl.where(c == _LO, -1.0, tl.where(c == _HI, 1.0, v))
    v = tl.where(valid | (c >= _DRAW), v, float("nan"))
    tl.store(rows + sample * _COLUMNS + c, v, mask=c < _COLUMNS)


@triton.jit(
    do_not_specialize=["table_rows", "from_top"],
    do_not_specialize_on_alignment=["rows", "table", "step"],
)
def threshold_small_kernel(
    rows,  # (batch, 48) float64
    terms,  # tuple of K pointers
    table,  # (table_rows, 48) float64
    step,  # () or (batch,) int64
    table_rows,
    from_top,  # v_k is the from_top-th largest
    fraction: tl.float64,
    low: tl.float64,
    high: tl.float64,
    numel,
    sizes,
    strides,
    K: tl.constexpr,
    WIDE: tl.constexpr,
    PER_SAMPLE: tl.constexpr,
    NDIM: tl.constexpr,
    BLOCK: tl.constexpr,  # at least numel
):
    """One program per sample, all of it in registers; v_k bit by bit."""
    BITS: tl.constexpr = 63 if WIDE else 31
    sample = tl.program_id(0).to(tl.int64)
    valid, at = row_of(step, table_rows, sample, PER_SAMPLE)
    i = tl.arange(0, BLOCK)
    x = _patterns(terms, table + at * _COLUMNS, valid, sample, i, numel, sizes, strides, K, WIDE, NDIM)
    x = tl.where(i < numel, x, -1)
    value = tl.zeros((), x.dtype)
    one = value + 1
    for k in range(BITS):
        wish = value | (one << (BITS - 1 - k))
        value = tl.where(tl.sum((x >= wish).to(tl.int32)) >= from_top, wish, value)
    last = (one << (BITS - 1)) | ((one << (BITS - 1)) - 1)
    greater = tl.min(tl.where(x > value, x, last))
    above = tl.sum((x > value).to(tl.int32))
    following = tl.where(above >= from_top - 1, greater, value)
    following = tl.where(from_top > 1, following, greater)
    top = tl.max(x)
    v = _value(top, WIDE)
    _write_threshold(rows, table, sample, at, valid, _value(value, WIDE), _value(following, WIDE), v != v, fraction,
                     low, high)  # fmt: skip


@triton.jit(do_not_specialize=["table_rows"], do_not_specialize_on_alignment=["table", "step"])
def threshold_count_kernel(
    bins,  # (batch, BINS) int32 or int64, zero at first
    state,  # (batch, 4) int64: digits known, rank, last - least pattern above, whether there is a NaN
    terms,
    table,
    step,
    table_rows,
    numel,
    sizes,
    strides,
    SHIFT: tl.constexpr,  # of the digit
    WIDTH: tl.constexpr,  # bits of the range
    K: tl.constexpr,
    WIDE: tl.constexpr,
    PER_SAMPLE: tl.constexpr,
    NDIM: tl.constexpr,
    INDEX: tl.constexpr,
    BLOCK: tl.constexpr,
    TURNS: tl.constexpr,  # blocks of a program
):
    """Counts a digit of the elements that share the digits known."""
    BITS: tl.constexpr = 63 if WIDE else 31
    sample = tl.program_id(1).to(tl.int64)
    valid, at = row_of(step, table_rows, sample, PER_SAMPLE)
    lo = tl.load(state + 4 * sample)
    one = tl.full((), 1, tl.int64)
    hi = lo + (((one << (WIDTH - 1)) - 1) | (one << (WIDTH - 1)))
    last = ((one << (BITS - 1)) - 1) | (one << (BITS - 1))
    least = last
    most = tl.zeros((), tl.int64)
    for turn in range(TURNS):
        i = (tl.program_id(0).to(INDEX) * TURNS + turn) * BLOCK + tl.arange(0, BLOCK).to(INDEX)
        x = _patterns(terms, table + at * _COLUMNS, valid, sample, i, numel, sizes, strides, K, WIDE, NDIM).to(tl.int64)
        there = i < tl.where(valid, numel, 0)
        counted = there & (x >= lo) & (x <= hi)
        digit = tl.where(counted, (x - lo) >> SHIFT, 0)
        tl.atomic_add(bins + sample * _BINS + digit, tl.full((BLOCK,), 1, bins.dtype.element_ty), mask=counted,
                      sem="relaxed")  # fmt: skip
        least = tl.minimum(least, tl.min(tl.where(there & (x > hi), x, last)))
        most = tl.maximum(most, tl.max(tl.where(there, x, 0)))
    tl.atomic_max(state + 4 * sample + 2, last - least, sem="relaxed")
    v = _value(most, WIDE)
    tl.atomic_max(state + 4 * sample + 3, (v != v).to(tl.int64), sem="relaxed")


@triton.jit(do_not_specialize=["table_rows", "from_top"], do_not_specialize_on_alignment=["rows", "table", "step"])
def threshold_settle_kernel(
    rows,
    bins,
    state,
    table,
    step,
    table_rows,
    from_top,  # of the first digit
    fraction: tl.float64,
    low: tl.float64,
    high: tl.float64,
    FIRST: tl.constexpr,
    SHIFT: tl.constexpr,
    WIDE: tl.constexpr,
    PER_SAMPLE: tl.constexpr,
):
    """Settles a digit from its counts; after the last one writes the row."""
    BITS: tl.constexpr = 63 if WIDE else 31
    sample = tl.program_id(0).to(tl.int64)
    valid, at = row_of(step, table_rows, sample, PER_SAMPLE)
    wanted = tl.zeros((), tl.int64) + from_top if FIRST else tl.load(state + 4 * sample + 1)
    wanted = tl.where(valid, wanted, 0)  # then no digit is looked for
    first = tl.full((), _BINS, tl.int64)
    above = tl.zeros((), tl.int64)  # elements with a greater digit than the chunk
    seen = tl.zeros((), tl.int64)  # those and the chunk's
    following = tl.full((), _BINS, tl.int64)  # the least digit above the chunk that occurs
    low_digits = following
    d = tl.arange(0, _CHUNK).to(tl.int64)
    while seen < wanted:
        first -= _CHUNK
        above = seen
        following = low_digits
        n = tl.load(bins + sample * _BINS + first + d).to(tl.int64)
        seen += tl.sum(n)
        low_digits = tl.minimum(low_digits, tl.min(tl.where(n > 0, first + d, _BINS)))
    first = tl.minimum(first, _BINS - _CHUNK)
    n = tl.load(bins + sample * _BINS + first + d).to(tl.int64)
    suffix = above + tl.sum(n) - tl.cumsum(n, 0) + n  # elements with this digit or a greater one
    digit = tl.max(tl.where(suffix >= wanted, first + d, 0))
    wanted -= above + tl.sum(tl.where(first + d > digit, n, 0))
    following = tl.minimum(following, tl.min(tl.where((first + d > digit) & (n > 0), first + d, _BINS)))
    lo = tl.load(state + 4 * sample)
    value = lo + (digit << SHIFT)
    if SHIFT > 0:
        tl.store(state + 4 * sample, value)
        tl.store(state + 4 * sample + 1, wanted)
        tl.store(state + 4 * sample + 2, 0)
    else:
        one = tl.full((), 1, tl.int64)
        last = ((one << (BITS - 1)) - 1) | (one << (BITS - 1))
        higher = tl.where(following < _BINS, lo + following, last - tl.load(state + 4 * sample + 2))
        higher = tl.where(wanted > 1, value, higher)
        nan = tl.load(state + 4 * sample + 3) != 0
        _write_threshold(rows, table, sample, at, valid, _value(value, WIDE), _value(higher, WIDE), nan, fraction,
                         low, high)  # fmt: skip


@triton.jit(
    do_not_specialize=["table_rows", "blocks"],
    do_not_specialize_on_alignment=["table", "step"],
)
def rescale_blocks_kernel(
    moments,  # (batch, blocks, 4) float64
    cond,
    uncond,
    table,
    step,
    table_rows,
    blocks,
    numel,
    sizes,
    strides,  # of the two terms
    WIDE: tl.constexpr,
    PER_SAMPLE: tl.constexpr,
    NDIM: tl.constexpr,
    INDEX: tl.constexpr,
):
    """The moments of one block of a sample."""
    S: tl.constexpr = tl.float64 if WIDE else tl.float32
    sample = tl.program_id(1).to(tl.int64)
    valid, at = row_of(step, table_rows, sample, PER_SAMPLE)
    guidance = tl.where(valid, tl.load(table + at * _COLUMNS + _GUIDANCE), 0.0)
    lane = tl.arange(0, _LANES).to(INDEX)
    w = tl.broadcast_to(guidance.to(S), (_LANES,))
    zero = tl.zeros((_LANES,), INDEX)
    c0 = tl.load(_at(cond, sample, zero, numel, sizes, strides[0] if NDIM > 0 else (), NDIM)).to(S)
    u0 = tl.load(_at(uncond, sample, zero, numel, sizes, strides[1] if NDIM > 0 else (), NDIM)).to(S)
    e0 = tl.fma(w, c0 - u0, u0).to(tl.float64)
    sc = tl.zeros((_LANES,), tl.float64)
    scc = tl.zeros((_LANES,), tl.float64)
    se = tl.zeros((_LANES,), tl.float64)
    see = tl.zeros((_LANES,), tl.float64)
    for turn in range(_ROUNDS):
        i = (tl.program_id(0).to(INDEX) * _ROUNDS + turn) * _LANES + lane
        there = i < numel
        c = tl.load(_at(cond, sample, i, numel, sizes, strides[0] if NDIM > 0 else (), NDIM), mask=there, other=0.0)
        u = tl.load(_at(uncond, sample, i, numel, sizes, strides[1] if NDIM > 0 else (), NDIM), mask=there, other=0.0)
        c, u = c.to(S), u.to(S)
        dc = tl.where(there, c.to(tl.float64) - c0.to(tl.float64), 0.0)
        de = tl.where(there, tl.fma(w, c - u, u).to(tl.float64) - e0, 0.0)
        sc += dc
        scc += dc * dc
        se += de
        see += de * de
    to = moments + (sample * blocks + tl.program_id(0)) * 4
    tl.store(to, fold(sc, _LANES))
    tl.store(to + 1, fold(scc, _LANES))
    tl.store(to + 2, fold(se, _LANES))
    tl.store(to + 3, fold(see, _LANES))


@triton.jit(do_not_specialize=["blocks", "table_rows", "numel", "cond", "uncond"])
def rescale_rows_kernel(
    rows,
    moments,
    table,
    step,
    table_rows,
    cond,
    uncond,
    blocks,
    numel,
    PER_SAMPLE: tl.constexpr,
):
    """The strands of a sample, then its row."""
    sample = tl.program_id(0).to(tl.int64)
    valid, at = row_of(step, table_rows, sample, PER_SAMPLE)
    mc, mcc, me, mee = fold_blocks(moments + sample * blocks * 4, blocks, 4)
    phi = tl.where(valid, tl.load(table + at * _COLUMNS + _PHI), 0.0)
    count = (tl.zeros((), tl.int64) + numel).to(tl.float64)
    degrees = count - 1.0
    c = (mcc - mc * mc / count) / degrees
    e = (mee - me * me / count) / degrees
    ratio = tl.sqrt(tl.where(c < 0, 0.0, c)) / tl.sqrt(tl.where(e < 0, 0.0, e))
    factor = tl.where(phi == 0, 1.0, phi * ratio + (1.0 - phi))
    k = tl.arange(0, 64)
    v = tl.load(table + at * _COLUMNS + k, mask=k < tl.where(valid, _COLUMNS, 0), other=0.0)
    scaled = ((k // 4 == cond) | (k // 4 == uncond)) & (v != 0)
    v = tl.where(scaled, v * factor, v)
    v = tl.where(valid | (k >= _DRAW), v, float("nan"))
    tl.store(rows + sample * _COLUMNS + k, v, mask=k < _COLUMNS)
