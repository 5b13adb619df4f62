"""fastsample::threshold_: the exact quantile on native and reference, the row it makes, thresholding of diffusers."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from fastsample import native, noise, row
from fastsample.ops import threshold_, update_, use_backend
from fastsample.ops.threshold import quantile
from tests.reductions import KINDS, ZERO, layouts, prediction, table_of, values

RATIOS = (0.0, 0.001, 0.5, 0.9, 0.995, 1.0)
TINY = 2.0**-1000  # a floor below every value


@pytest.fixture(params=["native", "reference"])
def backend(request):
    if request.param == "native" and not native.load_for("cpu"):
        pytest.skip(f"no native CPU library: {native.why_not('cpu')}")
    with use_backend(request.param):
        yield request.param


def rows_of(terms, table, step=ZERO, ratio=0.995, low=1.0, high=math.inf):
    rows = torch.full((len(terms[0]), row.COLUMNS), math.nan, dtype=torch.float64)
    threshold_(rows, terms, table, step, ratio, low, high)
    return rows


def scales(terms, ratio, low=TINY, high=math.inf, weight=1.0):
    """s of every sample, read from the row: P / (P / s) with P a power of two is exact up to one rounding of 1 / s."""
    table = table_of(weight, *[1.0] * (len(terms) - 1))
    return weight / rows_of(terms, table, ZERO, ratio, low, high)[:, 0]


def numpy_quantile(y, ratio):
    y = y.detach().abs().double().reshape(len(y), -1).numpy()
    with np.errstate(invalid="ignore"):
        q = np.quantile(y, ratio, axis=1)
    k = ratio * (y.shape[1] - 1)
    low, high = (np.sort(y, axis=1)[:, int(f)] for f in (math.floor(k), math.ceil(k)))
    # numpy and torch make NaN of inf - inf: between two infinities, and between a number and an infinity from half on
    return torch.from_numpy(np.where(low == high, low, np.where(np.isinf(high), high, q)))


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16, torch.float64])
def test_exact_quantile(backend, kind, dtype):
    for n, seed in ((1, 0), (2, 1), (3, 2), (17, 3), (1000, 4), (4096, 5), (4097, 6), (9001, 7)):
        x = values(kind, (3, n), dtype, seed)
        for ratio in RATIOS:
            expected = numpy_quantile(x, ratio)
            got = scales([x], ratio)
            # 1 / s and back: two roundings; a zero quantile becomes the floor, an infinite one no weight
            assert torch.allclose(got, expected.clamp(min=TINY), rtol=2.0**-50, atol=0), (n, ratio)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_prediction_of_terms_is_that_of_update(dtype):
    """The quantile is of the same bits that update_ clamps: order statistics must be elements."""
    if not native.load_for("cpu"):
        pytest.skip("no native CPU library")
    xs = [values("normal", (2, 3, 5000), t, i) for i, t in enumerate((dtype, torch.bfloat16, torch.float16))]
    table = table_of(0.9, -1.3, 0.4)
    y = prediction(xs, table).abs().double().reshape(2, -1)
    for ratio in (0.0, 0.5, 1.0):
        rows = rows_of(xs, table, ZERO, ratio, TINY)
        expected = quantile(y, ratio)
        assert torch.equal(rows[:, row.p(0)], 0.9 / expected)


def test_torch_quantile_agrees(backend):
    x = values("normal", (4, 3, 50, 50), torch.float64)
    assert torch.allclose(scales([x], 0.995), torch.quantile(x.abs().reshape(4, -1), 0.995, dim=1), rtol=1e-14)


def test_the_row(backend):
    """P / s, limits -1 and 1; the rest of the row to the bit, per sample."""
    xs = [values("normal", (4, 100), torch.float32, i) for i in range(2)]
    table, step = table_of(1.0, -2.0, rows=3), torch.tensor([2, 0, 1, 2])
    rows = rows_of(xs, table, step, 0.9, 0.5)
    q = quantile(prediction(xs, table, step).abs(), 0.9)
    for b in range(4):
        expected = table[step[b]].clone()
        expected[[row.p(0), row.p(1)]] /= q[b].clamp(min=0.5)
        expected[row.LO], expected[row.HI] = -1, 1
        assert torch.allclose(rows[b], expected, rtol=1e-6)
        same = [c for c in range(row.COLUMNS) if c not in (row.p(0), row.p(1))]
        assert torch.equal(rows[b, same], expected[same])


@pytest.mark.parametrize(
    ("low", "high", "expected"), [(1, math.inf, 2.5), (3, math.inf, 3), (1, 2, 2), (1, 1, 1), (1, 0.5, 0.5)]
)
def test_limits_of_the_scale(backend, low, high, expected):
    x = torch.full((2, 9), -2.5)
    assert scales([x], 0.5, low, high).tolist() == pytest.approx([expected] * 2, rel=1e-15)


def test_nan_stays_in_its_sample(backend):
    for n in (5, 5000):
        x = values("normal", (3, n), torch.float32)
        x[1, n // 2] = math.nan
        rows = rows_of([x], table_of(1.0))
        assert rows[1, 0].isnan()
        assert not rows[[0, 2], 0].isnan().any()
        out = torch.empty_like(x)
        update_([out], [x], rows, torch.arange(3))
        assert out[1].isnan().all() and not out[[0, 2]].isnan().any()


def test_an_infinite_scale_makes_d_zero(backend):
    x = torch.full((1, 8), math.inf)
    rows = rows_of([x], table_of(1.0))
    assert rows[0, 0] == 0


def test_terms_without_weight_are_not_read(backend):
    x = values("normal", (2, 300), torch.float32)
    nan = torch.full_like(x, math.nan)
    got = rows_of([x, nan, nan], table_of(1.0, 0.0, 1e-60), ZERO, 0.5, TINY)
    assert torch.equal(got[:, 0], rows_of([x], table_of(1.0), ZERO, 0.5, TINY)[:, 0])


@pytest.mark.parametrize("shape", [(0, 3), (2, 0), (0, 0), (3, 4, 0, 2)])
def test_empty(backend, shape):
    rows = rows_of([torch.zeros(shape)], table_of(2.0), low=4.0)
    assert rows.shape == (shape[0], 48)
    assert (rows[:, 0] == 0.5).all()


def test_any_strides(backend):
    x = values("normal", (3, 4, 9, 11), torch.float32)
    e = values("normal", (3, 4, 9, 11), torch.bfloat16, 1)
    table = table_of(0.7, 1.1)
    expected = rows_of([x, e], table, ratio=0.97, low=TINY)
    for y in layouts(x):
        assert torch.equal(y, x)
        assert torch.equal(rows_of([y, e], table, ratio=0.97, low=TINY), expected)
    for y, z in zip(layouts(x), layouts(e), strict=True):
        assert torch.equal(rows_of([y, z], table, ratio=0.97, low=TINY), expected)


@pytest.mark.parametrize("kind", ["normal", "constant", "neighbours", "falling"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_threads_and_parts_give_the_same_bits(kind, dtype):
    if not native.load_for("cpu"):
        pytest.skip("no native CPU library")
    x = values(kind, (1, 300_001), dtype)
    for ratio in (0.0, 0.5, 0.995, 1.0):
        expected = numpy_quantile(x, ratio)
        found = []
        for threads in (1, 2, 3):
            torch.set_num_threads(threads)
            found.append(rows_of([x], table_of(1.0), ZERO, ratio, TINY))
        assert torch.equal(found[0], found[1]) and torch.equal(found[0], found[2])
        assert torch.allclose(1 / found[0][:, 0], expected, rtol=2.0**-50)


def test_a_batch_is_its_samples(backend):
    x = values("normal", (9, 5000), torch.float32)
    whole = rows_of([x], table_of(1.0))
    for b in range(9):
        assert torch.equal(whole[b : b + 1], rows_of([x[b : b + 1]], table_of(1.0)))


@pytest.mark.slow
def test_more_elements_than_torch_quantile_takes():
    if not native.load_for("cpu"):
        pytest.skip("no native CPU library")
    n = 2**24 + 11
    x = torch.randn(1, n, generator=torch.Generator().manual_seed(0))
    with pytest.raises(RuntimeError, match="too large"):
        torch.quantile(x, 0.995)
    at = 0.995 * (n - 1)
    low, high = (float(x.abs().kthvalue(int(at) + k, dim=1).values) for k in (1, 2))
    assert low < high
    expected = low + (at - int(at)) * (high - low)
    assert float(scales([x], 0.995)) == pytest.approx(expected, rel=2.0**-50)


@settings(max_examples=60, deadline=None)
@given(
    ratio=st.floats(0, 1),
    shape=st.tuples(st.integers(1, 3), st.integers(1, 40), st.integers(1, 9)),
    seed=st.integers(0, 10**6),
    levels=st.integers(1, 50),
)
def test_any_ratio_with_ties(ratio, shape, seed, levels):
    """Few levels make ties everywhere; native and reference write the same bits, both are numpy's quantile."""
    g = torch.Generator().manual_seed(seed)
    x = torch.randint(-levels, levels + 1, shape, generator=g).float() / 8
    found = []
    for name in ("native", "reference") if native.load_for("cpu") else ("reference",):
        with use_backend(name):
            found.append(rows_of([x], table_of(1.0), ZERO, ratio, 2.0**-20))
    assert all(torch.equal(found[0], f) for f in found)
    expected = numpy_quantile(x, ratio).clamp(min=2.0**-20)
    assert torch.allclose(1 / found[0][:, 0], expected, rtol=1e-13)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("maximum", [1.5, 100.0])
def test_update_then_equals_diffusers(backend, dtype, maximum):
    """D of update_ with the row is stock's thresholded sample, which is limited to s first and then divided by it."""
    diffusers = pytest.importorskip("diffusers")
    stock = diffusers.DPMSolverMultistepScheduler(thresholding=True, sample_max_value=maximum)
    x = 2 * values("normal", (3, 4, 16, 16), dtype)
    expected = stock._threshold_sample(x).double()
    table = torch.from_numpy(row.make_row(D={0: 1.0}, outputs=[{"D": 1.0}])[None])
    rows, out = rows_of([x], table, high=maximum), torch.empty_like(x)
    update_([out], [x], rows, torch.arange(3))
    ulp = 2.0**-23 if dtype == torch.float32 else 2.0**-8
    # 1 / s, its product with x, stock's quantile at a float32 place between two elements and its quotient
    assert (out.double() - expected).abs().max() <= 6 * 2.0**-23 + ulp


@pytest.mark.parametrize(
    ("changes", "error", "message"),
    [
        ({"rows": torch.zeros(2, 48)}, ValueError, r"rows: got shape \(2, 48\) torch.float32"),
        ({"rows": torch.zeros(3, 48, dtype=torch.float64)}, ValueError, "rows: got shape"),
        ({"rows": torch.zeros(48, 2, dtype=torch.float64).T}, ValueError, "rows: got shape"),
        ({"terms": []}, ValueError, "terms: got none"),
        ({"terms": [torch.zeros(2, 3)] * 9}, ValueError, "at most 3, 8, 2"),
        ({"terms": [torch.zeros(2, 3), torch.zeros(2, 4)]}, ValueError, r"terms\[1\]: got shape \(2, 4\)"),
        ({"terms": [torch.zeros(2, 3, dtype=torch.int32)]}, TypeError, r"terms\[0\]: got torch.int32"),
        ({"table": torch.zeros(1, 48)}, ValueError, "table: got shape"),
        ({"step": torch.zeros(3, dtype=torch.int64)}, ValueError, "step: got shape"),
        ({"step": torch.ones((), dtype=torch.int64)}, ValueError, "step: got 1"),
        ({"ratio": -0.1}, ValueError, "ratio: got -0.1"),
        ({"ratio": math.nan}, ValueError, "ratio: got nan"),
        ({"ratio": 1.01}, ValueError, "ratio: got 1.01"),
        ({"low": 0.0}, ValueError, "low: got 0.0"),
        ({"low": math.inf}, ValueError, "low: got inf"),
        ({"high": 0.0}, ValueError, "high: got 0.0"),
        ({"high": math.nan}, ValueError, "high: got nan"),
    ],
)
def test_bad_arguments_are_named(backend, changes, error, message):
    arguments = {"rows": torch.zeros(2, 48, dtype=torch.float64), "terms": [torch.zeros(2, 3)]}
    arguments |= {"table": table_of(1.0), "step": ZERO} | changes
    before = arguments["rows"].clone()
    with pytest.raises(error, match=message):
        threshold_(**arguments)
    assert torch.equal(arguments["rows"], before)


def test_rows_apart_from_the_table_and_gradients_refused(backend):
    table = table_of(1.0, rows=2)
    with pytest.raises(ValueError, match="rows: overlaps the memory of table"):
        threshold_(table, [torch.zeros(2, 3)], table, ZERO)
    with pytest.raises(RuntimeError, match="passes no gradient"):
        rows_of([torch.zeros(2, 3, requires_grad=True)], table)


def test_opcheck():
    x, rows = torch.randn(2, 6), torch.empty(2, 48, dtype=torch.float64)
    arguments = (rows, [x, x.bfloat16()], table_of(1.0, 2.0), ZERO, 0.9, 1.0, math.inf)
    torch.library.opcheck(torch.ops.fastsample.threshold_, arguments)


def test_compiles_into_one_graph():
    x, table = torch.randn(2, 50), table_of(1.0, rows=2)

    def step(x, table, rows, samples, at, key):
        torch.ops.fastsample.threshold_(rows, [x], table, at, 0.9, 1.0, math.inf)
        torch.ops.fastsample.update_([x], [x], rows, samples, key, [])
        return x * 1

    def run(f):
        rows = torch.empty(2, 48, dtype=torch.float64)
        return [f(x.clone(), table, rows, torch.arange(2), torch.tensor(i), noise.keys(0, 2)) for i in range(2)]

    compiled = torch.compile(step, fullgraph=True, backend="aot_eager")
    for a, b in zip(run(compiled), run(step), strict=True):
        assert torch.equal(a, b)
