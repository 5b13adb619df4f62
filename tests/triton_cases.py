"""The Triton backend of update against the C++ core, the compiled CPU op and float64.

Not collected by itself: tests/test_triton_update.py runs this file in a process with TRITON_INTERPRET=1 (Triton reads
the variable once, at import), and it may be run as it is on a machine with a GPU.
"""

from __future__ import annotations

import math
import os
from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest
import torch
import triton
import triton.language as tl

from fastsample import native, noise, ops, row
from fastsample.building import BuildError
from fastsample.triton import kernel, launch, normal
from fastsample.triton import update as backend
from tests.rows import ULP, bound, model64, random_call

INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1"
DEVICE = "cpu" if INTERPRETED else "cuda"
GOLDEN = np.load(Path(__file__).parent / "golden" / "philox_stateless_golden.npz")
ZERO = torch.zeros((), dtype=torch.int64)


def exact_fma(a, b, c):
    """float32 fma of numpy arrays: exact product, sum in float64 rounded to odd, so that the last rounding is right."""
    product, c = a.astype(np.float64) * b.astype(np.float64), c.astype(np.float64)
    total = product + c
    part = total - product
    error = (product - (total - part)) + (c - part)
    bits = total.view(np.int64)
    toward = np.where((error > 0) == (total > 0), 1, -1)
    odd = np.where((error != 0) & (bits & 1 == 0) & np.isfinite(total), bits + toward, bits)
    return odd.view(np.float64).astype(np.float32)


@triton.jit
def _fma_kernel(a, b, c, out, BLOCK: tl.constexpr):
    i = tl.arange(0, BLOCK)
    tl.store(out + i, tl.fma(tl.load(a + i), tl.load(b + i), tl.load(c + i)))


def _run_fma(a, b, c):
    out = torch.empty(len(a), device=DEVICE)
    _fma_kernel[(1,)](*(torch.from_numpy(x).to(DEVICE) for x in (a, b, c)), out, BLOCK=len(a))
    return out.cpu().numpy()


@pytest.fixture(autouse=True, scope="session")
def fused():
    """An interpreter whose fma rounds twice, as older ones do, gets the exact one: a GPU has it."""
    one = np.float32(1 + 2.0**-12)
    if INTERPRETED and _run_fma(*(np.full(4, x, np.float32) for x in (one, one, -(1 + 2.0**-11))))[0] != 2.0**-24:
        from triton.runtime.interpreter import InterpreterBuilder, TensorHandle

        unfused = InterpreterBuilder.create_fma

        def create_fma(self, x, y, z):
            if z.data.dtype != np.float32:
                return unfused(self, x, y, z)
            return TensorHandle(exact_fma(*np.broadcast_arrays(x.data, y.data, z.data)), z.dtype.scalar)

        InterpreterBuilder.create_fma = create_fma


@pytest.fixture(scope="module")
def core():
    try:
        return native.core()
    except BuildError as error:
        pytest.skip(f"no compiler or pybind11: {error}")


@pytest.fixture
def small_tiles(monkeypatch):
    """One warp and several blocks per program, so that small tensors take every path."""
    monkeypatch.setattr(backend, "_TILES", ((math.inf, (1, 3)),))
    monkeypatch.setattr(backend, "_launches", {})


def apply(call):
    """Outputs of the Triton kernel, which start as NaN, on the CPU."""

    def move(x):
        return torch.empty_strided(x.shape, x.stride(), dtype=x.dtype, device=DEVICE).copy_(x)

    outs = [torch.full(call.shape, math.nan, dtype=t, device=DEVICE) for t in call.out_dtypes]
    key = None if call.key is None else call.key.to(DEVICE)
    table, step = call.table.to(DEVICE), call.step.to(DEVICE)
    backend.update_(outs, [move(x) for x in call.terms], table, step, key, [move(x) for x in call.noise])
    return [x.cpu() for x in outs]


def test_fma_is_fused():
    g = np.random.default_rng(0)
    a, b, c = (g.standard_normal(4096).astype(np.float32) for _ in range(3))
    c[::2] = -(a * b)[::2] * np.float32(1 + 2.0**-22)  # cancellation shows the second rounding
    got = _run_fma(a, b, c)
    assert np.array_equal(got, exact_fma(a, b, c))
    for i in range(0, 4096, 16):
        assert Fraction(float(got[i])) == _nearest(
            Fraction(float(a[i])) * Fraction(float(b[i])) + Fraction(float(c[i]))
        )
    assert not np.array_equal(got, a * b + c)


def _nearest(x):
    """The float32 nearest to a normal-sized rational, ties to even."""
    e = math.floor(math.log2(abs(x))) if x else 0
    e += (abs(x) >= Fraction(2) ** (e + 1)) - (abs(x) < Fraction(2) ** e)
    unit = Fraction(2) ** (e - 23)
    return round(x / unit) * unit


@triton.jit
def _words_kernel(key, out, BLOCK: tl.constexpr):
    i = tl.arange(0, BLOCK)
    r0, r1, r2, r3 = normal.philox(tl.load(key), tl.load(key + 1) + i.to(tl.uint64))
    tl.store(out + 4 * i, r0)
    tl.store(out + 4 * i + 1, r1)
    tl.store(out + 4 * i + 2, r2)
    tl.store(out + 4 * i + 3, r3)


@triton.jit
def _box_muller_kernel(words, out, BLOCK: tl.constexpr):
    i = tl.arange(0, BLOCK)
    z0, z1, z2, z3 = normal.box_muller(
        tl.load(words + 4 * i), tl.load(words + 4 * i + 1), tl.load(words + 4 * i + 2), tl.load(words + 4 * i + 3)
    )
    tl.store(out + 4 * i, z0)
    tl.store(out + 4 * i + 1, z1)
    tl.store(out + 4 * i + 2, z2)
    tl.store(out + 4 * i + 3, z3)


@triton.jit
def _normals_kernel(key, out, pairs, wide, BLOCK: tl.constexpr):
    seed, first = tl.load(key), tl.load(key + 1)
    i = tl.arange(0, BLOCK)
    tl.store(out + i, kernel._normals(seed, first, False, False, BLOCK))
    tl.store(pairs + i, kernel._normals(seed, first, False, True, BLOCK))
    tl.store(wide + i, kernel._normals(seed, first, True, False, BLOCK))


@pytest.mark.parametrize("i", range(len(GOLDEN["keys"])))
def test_golden_words_and_normals(i, core):
    key = torch.from_numpy(GOLDEN["keys"][i]).to(DEVICE)
    words = torch.zeros(256, 4, dtype=torch.uint32, device=DEVICE)
    _words_kernel[(1,)](key, words, BLOCK=256)
    expected = GOLDEN[f"words_{i}"]
    assert np.array_equal(words.cpu().numpy()[: len(expected)], expected)

    z, pairs, wide = (torch.zeros(1024, dtype=t, device=DEVICE) for t in (torch.float32, torch.float32, torch.float64))
    _normals_kernel[(1,)](key, z, pairs, wide, BLOCK=1024)
    seed, offset = (int(v) for v in GOLDEN["keys"][i])
    assert np.array_equal(z.cpu().numpy(), core.normals(seed, offset, 1024))
    assert torch.equal(z, pairs)
    assert np.abs(wide.cpu().numpy()[:1003] - GOLDEN[f"normal_f64_{i}"]).max() <= 1e-14


def test_box_muller_bits_equal_the_core(core):
    """2^18 random words, and every pair of words near 0, 2^32, the quadrant borders and m = 2/3, 4/3."""
    borders = [
        0,
        1 << 29,
        1 << 30,
        3 << 29,
        1 << 31,
        5 << 29,
        3 << 30,
        7 << 29,
        1 << 32,
        (1 << 33) // 3,
        (1 << 32) // 3,
    ]
    edges = np.array(sorted({(b + d) % (1 << 32) for b in borders for d in (-513, -256, -2, -1, 0, 1, 2, 129, 512)}))
    pairs = np.stack(np.meshgrid(edges, edges), axis=-1).reshape(-1, 2)
    words = np.random.default_rng(1).integers(0, 1 << 32, (1 << 16, 4), dtype=np.uint64)
    words[: len(pairs), :2] = pairs
    words[: len(pairs), 2:] = pairs[::-1]
    words = words.astype(np.uint32)
    z = torch.zeros(words.shape, device=DEVICE)
    _box_muller_kernel[(1,)](torch.from_numpy(words).to(DEVICE), z, BLOCK=len(words))
    assert np.array_equal(z.cpu().numpy().view(np.uint32), core.box_muller(words).view(np.uint32))


@pytest.mark.parametrize("seed", [s for s in range(50) if s % 10 != 6])  # 6: 65537 elements, below
def test_against_float64(seed):
    call = random_call(seed)
    expected, magnitude = model64(call)
    for k, out in enumerate(apply(call)):
        limit = bound(call, magnitude[k], expected[k], out.dtype)
        if INTERPRETED and out.dtype == torch.bfloat16:  # the interpreter cuts off instead of rounding
            limit = limit + ULP[torch.bfloat16] / 2 * (expected[k].abs() + limit)
        error = (out.double() - expected[k]).abs()
        assert not error.numel() or (error - limit).max() <= 0, f"output {k} {out.dtype}: error {error.max():.3g}"


@pytest.mark.parametrize("size", [0, 1, 3, 4, 5, 127, 1003])
@pytest.mark.parametrize("terms", range(1, 9))
def test_bits_equal_the_core(core, terms, size):
    """Every K with every size, one to three outputs, float32, clamp and keyed noise: the bits of the C++ core."""
    g = torch.Generator().manual_seed(1000 * terms + size)
    table = torch.from_numpy(row.blank(2))
    table[:, : row.DRAW] = torch.randn(2, row.DRAW, generator=g, dtype=torch.float64)
    table[:, row.LO], table[:, row.HI] = -0.7, 0.9
    table[:, row.DRAW], table[:, row.DRAW + 1] = 2, 9
    xs = [torch.randn(2, size, generator=g) for _ in range(terms)]
    key, step = noise.keys(5, 2), torch.tensor([1, 0])
    outs = [torch.full((2, size), math.nan, device=DEVICE) for _ in range(1 + size % 3)]
    backend.update_(outs, [x.to(DEVICE) for x in xs], table.to(DEVICE), step.to(DEVICE), key.to(DEVICE))
    chunks = -(-size // 4)
    for b in range(2):
        seed, offset = (int(v) for v in key[b].tolist())
        z = np.stack([core.normals(seed, (offset + draw * chunks) % 2**64, size) for draw in (2, 9)])
        expected = core.apply_row(table[step[b]].numpy(), np.stack([x[b].numpy() for x in xs]), z)
        for k, out in enumerate(outs):
            assert np.array_equal(out[b].cpu().numpy().view(np.int32), expected[k].view(np.int32))


@pytest.mark.parametrize("seed", [s for s in range(30) if s % 10 != 6 and s % 8 != 7])
def test_bits_equal_the_compiled_cpu_op(seed, small_tiles):
    """Any layout, mixed dtypes and steps: the same bits from several small blocks as from the C++ op."""
    if not native.load_for("cpu"):
        pytest.skip(f"no native CPU library: {native.why_not('cpu')}")
    call = random_call(seed, dtypes=[torch.float32, torch.float16])
    expected = [torch.full(call.shape, math.nan, dtype=t) for t in call.out_dtypes]
    with ops.use_backend("native"):
        ops.update_(expected, call.terms, call.table, call.step, call.key, call.noise)
    for got, want in zip(apply(call), expected, strict=True):
        assert torch.equal(got, want)


def _table(*rows):
    return torch.from_numpy(np.stack(rows)).to(DEVICE)


def test_a_nan_behind_a_zero_weight_reaches_nothing():
    nan, x = torch.full((2, 9), math.nan, device=DEVICE), torch.ones(2, 9, device=DEVICE)
    out, other = torch.empty_like(x), torch.empty_like(x)
    table = _table(row.make_row(D={0: 2.0, 1: 1e-60}, outputs=[{0: 1.0, "D": 1.0}, {1: 1.0}]))
    backend.update_([out, other], [x, nan, nan], table, ZERO.to(DEVICE))
    assert torch.equal(out, torch.full_like(x, 3.0))  # 1e-60 is zero in float32
    assert other.isnan().all()
    table = _table(row.make_row(D={1: 1.0}, outputs=[{0: 1.0}]))  # D has no weight, so its terms have none
    backend.update_([out], [x, nan], table, ZERO.to(DEVICE), None, [nan])
    assert torch.equal(out, x)


def test_a_nan_passes_the_clamp_and_infinities_are_clamped():
    x = torch.tensor([[math.nan, math.inf, -math.inf, 0.5]], device=DEVICE)
    out = torch.empty_like(x)
    backend.update_([out], [x], _table(row.make_row(D={0: 1.0}, outputs=[{"D": 1.0}], limits=(-1, 1))), ZERO.to(DEVICE))
    assert out[0, 0].isnan()
    assert out[0, 1:].tolist() == [1.0, -1.0, 0.5]


def test_float64_goes_to_16_bits_by_way_of_float32():
    x = torch.tensor([[1 + 2.0**-11 + 2.0**-40, 1.25, -math.inf]], dtype=torch.float64, device=DEVICE)
    for dtype in (torch.float16, torch.bfloat16):
        out = torch.empty(1, 3, dtype=dtype, device=DEVICE)
        backend.update_([out], [x], _table(row.make_row(outputs=[{0: 1.0}])), ZERO.to(DEVICE))
        assert out.tolist() == [[1.0, 1.25, -math.inf]]  # straight to float16 it would be 1 + 2^-10


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.float64])
def test_outputs_may_be_terms(dtype, small_tiles):
    g = torch.Generator().manual_seed(0)
    terms = [torch.randn(3, 5, 129, generator=g).to(dtype).to(DEVICE) for _ in range(3)]
    table = _table(row.make_row(D={0: 0.3, 1: -1.2}, outputs=[{0: 0.5, 2: 1.1, "D": 0.7}, {"D": 1.0}, {1: 2.0}]))
    expected = [torch.empty_like(x) for x in terms]
    backend.update_(expected, terms, table, ZERO.to(DEVICE))
    backend.update_([terms[0], terms[2], terms[1]], terms, table, ZERO.to(DEVICE))
    for got, want in zip([terms[0], terms[2], terms[1]], expected, strict=True):
        assert torch.equal(got, want)


def test_batch_split_layout_and_tiles_keep_the_bits(monkeypatch):
    g = torch.Generator().manual_seed(3)
    x, e = (torch.randn(5, 4, 6, 7, generator=g).to(DEVICE) for _ in range(2))
    table = _table(
        *(row.make_row(D={0: 0.4 + i}, outputs=[{1: 0.3, "D": 0.5, "xi0": 0.8}], draws=[i]) for i in range(2))
    )
    key, step = noise.keys(11, 5).to(DEVICE), torch.tensor([1, 0, 0, 1, 1], device=DEVICE)
    whole = torch.empty_like(x)
    backend.update_([whole], [x, e], table, step, key)
    for b in range(5):
        one = torch.empty_like(x[:1])
        backend.update_([one], [x[b : b + 1], e[b : b + 1]], table, step[b], key[b : b + 1])
        assert torch.equal(one, whole[b : b + 1])
    for change in ({"_MAX_BATCH": 2}, {"_TILES": ((math.inf, (1, 2)),)}):
        for name, value in change.items():
            monkeypatch.setattr(backend, name, value)
        monkeypatch.setattr(backend, "_launches", {})
        for layout in (torch.contiguous_format, torch.channels_last):
            out = torch.full_like(x, math.nan, memory_format=layout)
            backend.update_([out], [x.to(memory_format=layout), e], table, step, key)
            assert torch.equal(out, whole)


def test_memory_around_the_outputs_is_not_touched(small_tiles):
    for n in (1, 3, 16, 31, 127, 300):
        memory = torch.full((3, n + 64), math.nan, device=DEVICE)
        view = memory[:, 32 : 32 + n]
        table = _table(row.make_row(outputs=[{0: 1.0, "xi0": 1.0}], draws=[0]))
        backend.update_([view], [torch.zeros(3, n, device=DEVICE)], table, ZERO.to(DEVICE), noise.keys(0, 3).to(DEVICE))
        assert view.isfinite().all()
        assert memory[:, :32].isnan().all()
        assert memory[:, 32 + n :].isnan().all()


def test_step_out_of_range_gives_nan():
    x = torch.ones(3, 5, device=DEVICE)
    table, out = _table(row.make_row(outputs=[{0: 2.0}])), torch.empty(3, 5, device=DEVICE)
    backend.update_([out], [x], table, torch.tensor([0, 1, -1], device=DEVICE))
    assert (out[0] == 2).all()
    assert out[1:].isnan().all()
    for step in (7, -1):
        backend.update_([out.zero_()], [x], table, torch.tensor(step, device=DEVICE))
        assert out.isnan().all()
    backend.update_([out.zero_()], [x], table[:0], ZERO.to(DEVICE))
    assert out.isnan().all()


def test_launches_are_remembered_and_bad_calls_refused(monkeypatch):
    monkeypatch.setattr(backend, "_launches", {})
    table = _table(*(row.make_row(outputs=[{0: 2.0 + i}]) for i in range(3)))
    x, out = torch.ones(2, 8, device=DEVICE), torch.empty(2, 8, device=DEVICE)
    for i in range(3):
        backend.update_([out], [x], table, torch.tensor(i, device=DEVICE))
        assert (out == 2 + i).all()
    assert len(backend._launches) == 1
    with pytest.raises(ValueError, match=r"terms\[0\]: got shape \(2, 7\)"):
        backend.update_([out], [x[:, :7]], table, ZERO.to(DEVICE))
    zero, keys = ZERO.to(DEVICE), noise.keys(0, 2).to(DEVICE)
    backend.update_([out], [x], table, zero, keys)
    for other_table, other_keys, name in ((table, keys[:1], "key"), (table[:, :47], keys, "table")):
        with pytest.raises(ValueError, match=f"{name}: got shape"):
            backend.update_([out], [x], other_table, zero, other_keys)
    assert len(backend._launches) == 2


def test_collapse_merges_what_lies_side_by_side():
    contiguous, last = (64, 16, 4, 1), (64, 1, 16, 4)
    shape = (2, 4, 4, 4)
    assert launch.collapse(shape, [contiguous] * 2, False, False) == (1, (128,), [(0, 1)] * 2)
    assert launch.collapse(shape, [contiguous] * 2, True, True) == (2, (64,), [(64, 1)] * 2)
    assert launch.collapse(shape, [last] * 2, False, False) == (1, (128,), [(0, 1)] * 2)
    assert launch.collapse(shape, [last], True, True) == (2, (4, 16), [(64, 1, 4)])  # noise needs the logical order
    assert launch.collapse(shape, [contiguous, last], False, False) == (1, (2, 4, 16), [(0, 64, 16, 1), (0, 64, 1, 4)])
    assert launch.collapse((1, 1), [(1, 1)], False, False) == (1, (1,), [(0, 1)])


def test_the_dispatcher_reaches_triton():
    x = torch.ones(2, 8, device=DEVICE)
    with ops.use_backend("triton"):
        (out,) = ops.update([x], _table(row.make_row(outputs=[{0: 3.0}])), ZERO.to(DEVICE))
    assert (out == 3).all()
