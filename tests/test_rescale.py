"""fastsample::rescale_: the factor of Lin et al. on every backend, stable sums, and stock rescale_noise_cfg."""

from __future__ import annotations

import math
from fractions import Fraction

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from fastsample import native, row
from fastsample.ops import rescale_, threshold_, update_, use_backend
from tests.reductions import ZERO, layouts, table_of, told, values


@pytest.fixture(params=["native", "reference"])
def backend(request):
    if request.param == "native" and not native.load_for("cpu"):
        pytest.skip(f"no native CPU library: {native.why_not('cpu')}")
    with use_backend(request.param):
        yield request.param


def rows_of(terms, table, step=ZERO, cond=0, uncond=1, guidance=7.5, phi=0.7):
    rows = torch.full((len(terms[0]), row.COLUMNS), math.nan, dtype=torch.float64)
    rescale_(rows, terms, told(table, guidance, phi), step, cond, uncond)
    return rows


def factors(c, u, guidance=7.5, phi=0.7):
    return rows_of([c, u], table_of(1.0, 1.0), guidance=guidance, phi=phi)[:, row.p(0)]


def float64_factors(c, u, guidance, phi):
    c, u = (x.double().reshape(len(c), -1) for x in (c, u))
    e = u + guidance * (c - u)
    return phi * c.std(1) / e.std(1) + 1 - phi


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16, torch.float64])
@pytest.mark.parametrize("n", [2, 3, 17, 511, 512, 513, 4096, 4097, 70001])
def test_against_float64(backend, dtype, n):
    u = values("normal", (3, n), dtype)
    c = (u.double() + 0.3 * values("normal", (3, n), torch.float64, 1)).to(dtype)
    got, expected = factors(c, u), float64_factors(c, u, 7.5, 0.7)
    # e is rounded (twice in the reference) to float32, relative to its terms; the spread of e moves by no more
    size = 2.0**-23 if dtype != torch.float64 else 2.0**-50
    terms = (u.double().abs() + 7.5 * (c.double() - u.double()).abs()).square().sum(1).sqrt()
    e = u.double() + 7.5 * (c.double() - u.double())
    spread = (e - e.mean(1, keepdim=True)).square().sum(1).sqrt()
    assert ((got - expected).abs() <= 4 * size * terms / spread * expected.abs() + 1e-14).all()


def test_update_then_equals_the_tensor_formula(backend):
    """What pipelines do with tensors (equation 16): the guided prediction times the ratio of spreads, mixed by phi."""
    c, u = values("normal", (3, 4, 16, 16), torch.float32), values("normal", (3, 4, 16, 16), torch.float32, 1)
    e = u + 5.0 * (c - u)
    ratio = c.std(dim=[1, 2, 3], keepdim=True) / e.std(dim=[1, 2, 3], keepdim=True)
    expected = 0.6 * (e * ratio) + 0.4 * e
    table = torch.from_numpy(row.make_row(outputs=[{0: 5.0, 1: -4.0}])[None])
    out = torch.empty_like(c)
    update_([out], [c, u], rows_of([c, u], table, guidance=5.0, phi=0.6), torch.arange(3))
    assert (out - expected).abs().max() <= 20 * 2.0**-24 * (5 * c.abs() + 5 * u.abs()).max()


def test_the_row(backend):
    """P and W of both terms times the factor, zeros stay; the rest to the bit."""
    terms = [values("normal", (4, 60), torch.float32, i) for i in range(3)]
    table, step = table_of(0.5, -2.0, 1.5, rows=3), torch.tensor([2, 0, 1, 2])
    rows = rows_of(terms, table, step, cond=2, uncond=0)
    table = told(table)
    f = rows[:, row.p(2)] / table[step, row.p(2)]
    assert ((f - float64_factors(terms[2], terms[0], 7.5, 0.7)).abs() < 1e-5).all()
    expected = table[step].clone()
    for j in (0, 2):
        expected[:, 4 * j : 4 * j + 4] *= f[:, None]
    assert torch.allclose(rows, expected, rtol=1e-14)
    same = [*range(4, 8), *range(12, row.COLUMNS)]
    assert torch.equal(rows[:, same], table[step][:, same])


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_a_large_mean_does_not_cancel(backend, dtype):
    """Mean 10^4 spreads: the factor is that of exact rational arithmetic to float64 rounding (guidance 1: e = c)."""
    c = 1e4 + values("normal", (1, 3000), torch.float64)
    u = 1e4 + 3 * values("normal", (1, 3000), torch.float64, 1)
    c, u = c.to(dtype), u.to(dtype)

    def variance(x):
        numbers = [Fraction(v) for v in x[0].tolist()]
        mean = sum(numbers) / len(numbers)
        return sum((v - mean) ** 2 for v in numbers)

    expected = math.sqrt(variance(c) / variance(u))
    assert float(factors(c, u, guidance=0.0, phi=1.0)) == pytest.approx(expected, rel=1e-12)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64])
def test_each_row_has_its_guidance_and_phi(backend, dtype):
    """Samples at other steps are told other numbers, those of their own rows: the bits of a call for each."""
    c, u = values("normal", (4, 5000), dtype), values("normal", (4, 5000), dtype, 1)
    asked = [(2.0, 0.5), (7.5, 0.7), (-3.0, 1.0), (4.0, 0.0)]
    table = table_of(1.0, 1.0, rows=4)
    for i, (guidance, phi) in enumerate(asked):
        table[i] = told(table, guidance, phi)[i]
    step = torch.tensor([2, 0, 3, 1])
    rows = torch.full((4, row.COLUMNS), math.nan, dtype=torch.float64)
    rescale_(rows, [c, u], table, step, 0, 1)
    for b, i in enumerate(step.tolist()):
        one = slice(b, b + 1)
        alone = rows_of([c[one], u[one]], table[i : i + 1], guidance=asked[i][0], phi=asked[i][1])
        assert torch.equal(rows[one], alone)
        assert (rows[b, 0] == table[i, 0]) == (asked[i][1] == 0)


def test_a_number_that_is_not_finite_stays_in_its_sample(backend):
    c, u = values("normal", (3, 100), torch.float32), values("normal", (3, 100), torch.float32, 1)
    table = told(table_of(1.0, 1.0, rows=3))
    expected = torch.empty(3, row.COLUMNS, dtype=torch.float64)
    rescale_(expected, [c, u], table, torch.arange(3), 0, 1)
    table[1, row.GUIDANCE] = math.nan
    rows = torch.empty_like(expected)
    rescale_(rows, [c, u], table, torch.arange(3), 0, 1)
    assert rows[1, 0].isnan()
    assert torch.equal(rows[[0, 2]], expected[[0, 2]])


def test_phi_zero_and_constant_predictions(backend):
    x = values("normal", (2, 40), torch.float32)
    same = torch.full((2, 40), 3.0)
    assert (factors(same, same, phi=0.0) == 1).all()
    assert factors(same, same, phi=0.5).isnan().all()  # 0 / 0, as in the formula
    assert (factors(x, same, guidance=0.0) == math.inf).all()
    assert factors(x[:, :1], x[:, :1]).isnan().all()  # one element has no spread, as in torch.std


def test_nan_stays_in_its_sample(backend):
    c, u = values("normal", (3, 5000), torch.float32), values("normal", (3, 5000), torch.float32, 1)
    c[1, 77] = math.nan
    f = factors(c, u)
    assert f[1].isnan() and f[[0, 2]].isfinite().all()


@pytest.mark.parametrize("shape", [(0, 3), (2, 0)])
def test_empty(backend, shape):
    x = torch.zeros(shape)
    assert rows_of([x, x], table_of(1.0, 1.0)).shape == (shape[0], 48)


def test_any_strides(backend):
    c, u = values("normal", (3, 4, 9, 11), torch.float32), values("normal", (3, 4, 9, 11), torch.bfloat16, 1)
    expected = factors(c, u)
    for x in layouts(c):
        assert torch.allclose(factors(x, u), expected, rtol=1e-13)  # sums in the order of memory


def test_bits_do_not_depend_on_threads_or_batch():
    if not native.load_for("cpu"):
        pytest.skip("no native CPU library")
    c, u = values("normal", (3, 100_003), torch.float32), values("normal", (3, 100_003), torch.float32, 1)
    found = []
    for threads in (1, 2, 3):
        torch.set_num_threads(threads)
        found.append(factors(c, u))
    assert torch.equal(found[0], found[1]) and torch.equal(found[0], found[2])
    for b in range(3):
        assert torch.equal(factors(c[b : b + 1], u[b : b + 1]), found[0][b : b + 1])


def test_then_threshold_reads_the_rows(backend):
    """Both: rescale writes a table of one row per sample, threshold reads it, update uses the second."""
    c, u = values("normal", (3, 500), torch.float32), values("normal", (3, 500), torch.float32, 1)
    table, samples = table_of(5.0, -4.0), torch.arange(3)
    first = rows_of([c, u], table, guidance=5.0)
    second = torch.empty_like(first)
    threshold_(second, [c, u], first, samples, 0.9, 2.0**-20)
    f = float64_factors(c, u, 5.0, 0.7)
    y = f[:, None] * (5 * c.double() - 4 * u.double())
    s = torch.quantile(y.abs(), 0.9, dim=1)
    assert torch.allclose(second[:, 0], 5 * f / s, rtol=1e-5)
    assert (second[:, row.HI] == 1).all()


@settings(max_examples=40, deadline=None)
@given(
    n=st.integers(2, 700),
    seed=st.integers(0, 10**6),
    guidance=st.floats(-20, 20),
    phi=st.floats(0, 1),
    scale=st.floats(1e-3, 1e3),
)
def test_a_common_scale_changes_nothing(n, seed, guidance, phi, scale):
    c, u = values("normal", (2, n), torch.float64, seed), values("normal", (2, n), torch.float64, seed + 1)
    one, other = factors(c, u, guidance, phi), factors(scale * c, scale * u, guidance, phi)
    assert torch.allclose(one, other, rtol=1e-9)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"cond": 2}, "cond, uncond: got 2, 1"),
        ({"uncond": -1}, "cond, uncond: got 0, -1"),
        ({"cond": 1}, "cond, uncond: got 1, 1"),
        ({"step": torch.tensor(5)}, "step: got 5"),
        ({"rows": torch.zeros(2, 47, dtype=torch.float64)}, "rows: got shape"),
    ],
)
def test_bad_arguments_are_named(backend, changes, message):
    x = torch.zeros(2, 3)
    arguments = {"rows": torch.zeros(2, 48, dtype=torch.float64), "terms": [x, x], "table": table_of(1.0, 1.0)}
    arguments |= {"step": ZERO, "cond": 0, "uncond": 1} | changes
    with pytest.raises(ValueError, match=message):
        rescale_(**arguments)


def test_opcheck():
    x, rows = torch.randn(2, 6), torch.empty(2, 48, dtype=torch.float64)
    arguments = (rows, [x, 2 * x], told(table_of(1.0, 2.0)), ZERO, 0, 1)
    torch.library.opcheck(torch.ops.fastsample.rescale_, arguments)
    with pytest.raises(RuntimeError, match="passes no gradient"):
        rows_of([x.clone().requires_grad_(), x], table_of(1.0, 1.0))
