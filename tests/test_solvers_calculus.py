"""The coefficient calculus: unit values, identities, quadrature, polynomials."""

from __future__ import annotations

import itertools
import math
from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fastsample.path import Level
from fastsample.solvers.calculus import VARIANTS, adams, moments, phi, solve_nodes


def vp(lam: float) -> Level:
    return Level(1 / math.sqrt(1 + math.exp(-2 * lam)), 1 / math.sqrt(1 + math.exp(2 * lam)), 0.0)


START, END = vp(0.0), vp(1.0)
COLUMNS = (("x0", 0.0), ("x0", 1.0), ("eps", 0.0))
S = (-0.8, -1.5, -2.1)

# 40-digit quadrature, VP, lambda 0 -> 1, past calls at -0.8, -1.5, -2.1: weights of the current call, -1, -2, -3 and
# with a corrector of the new point first
UNIT = {
    ((), "exact"): ("0.5932501380835", "0.8114946673566", "-0.5932501380835"),
    (S[:1], "mid"): (
        "0.9640314743857, -0.3707813363022",
        "1.318678834454, -0.5071841670979",
        "-0.9640314743857, 0.3707813363022",
    ),
    (S[:1], "exact"): (
        "1.024822340223, -0.4315722021395",
        "1.477445375003, -0.6659507076461",
        "-0.9032406085484, 0.3099904704649",
    ),
    (S[:1], "bh1"): (
        "1.179817575455, -0.586567437372",
        "1.9846295421, -1.173134874744",
        "-0.8090362391533, 0.2157861010698",
    ),
    (S[:2], "3m"): (
        "1.358324338186, -1.146219340631, 0.3811451405288",
        "2.00168047478, -1.78931163574, 0.5991258283168",
        "-1.131371772393, 0.7988429644177, -0.2607213301082",
    ),
    (S[:2], "exact"): (
        "1.461654495007, -1.367641105249, 0.4992367483249",
        "2.170741863812, -2.15158604081, 0.7923388443541",
        "-1.194174685323, 0.9334206349822, -0.3324960877426",
    ),
    (S, "exact"): (
        "1.929599951511, -2.987452300838, 2.371018574339, -0.7199160869284",
        "2.925669818605, -4.764798192016, 3.812050663525, -1.161427622758",
        "-1.492264424373, 1.965269731693, -1.524855043941, 0.458599598538",
    ),
    ((1.0,), "exact"): (
        "0.3452577617116, 0.2479923763719",
        "0.5327605661169, 0.2787341012397",
        "-0.2479923763719, -0.3452577617116",
    ),
    ((1.0, *S[:1]), "exact"): (
        "0.2912214365229, 0.3695741080465, -0.06754540648592",
        "0.4621976592065, 0.4375006417879, -0.0882036336379",
        "-0.1939560511832, -0.4668394933863, 0.06754540648592",
    ),
    ((1.0, *S[:2]), "exact"): (
        "0.2620494556419, 0.4789690363501, -0.1977774639901, 0.05000911008161",
        "0.422759654684, 0.5853931587474, -0.2642661538278, 0.06760800775292",
        "-0.1669302538678, -0.5681862333188, 0.188196287358, -0.04632993825487",
    ),
}


def equal_to_printed(value: float, text: str) -> bool:
    """Equal to within one unit of the last digit of a 13-digit figure."""
    return abs(value - float(text)) <= 10.0 ** (math.floor(math.log10(abs(float(text)))) - 12)


@pytest.mark.parametrize("column", range(3))
@pytest.mark.parametrize("row", UNIT, ids=str)
def test_unit_values(row, column):
    (nodes, variant), (form, tau2) = row, COLUMNS[column]
    a, b, c = adams(form, START, END, nodes, variant, tau2)
    if nodes and nodes[0] == 1.0:
        b = [b[1], b[0], *b[2:]]
    expected = UNIT[row][column].split(", ")
    assert len(b) == len(expected)
    assert all(equal_to_printed(value, text) for value, text in zip(b, expected, strict=True)), (b, expected)
    assert equal_to_printed(a, ("0.4882682091272", "0.1796238359155", "1.327250600285")[column])
    assert (c == 0.0) if tau2 == 0.0 else equal_to_printed(c, "0.3210460415698")


@given(st.floats(-30.0, 30.0), st.integers(1, 5))
def test_phi_against_exact_rationals(x, count):
    for k, value in enumerate(phi(x, count), 1):
        term, total, m = Fraction(1, math.factorial(k)), Fraction(0), 0
        while m < 40 or abs(term) > Fraction(1, 10**25):
            total += term
            m += 1
            term = term * Fraction(x) / (m + k)
        assert abs(Fraction(value) - total) <= abs(total) * Fraction(4, 10**15)


def test_phi_has_no_gap_where_the_series_ends():
    for sign in (-1, 1):
        below, above = phi(sign * 2.0 * (1 - 1e-15), 4), phi(sign * 2.0 * (1 + 1e-15), 4)
        np.testing.assert_allclose(below, above, rtol=1e-14)


nodes_of = st.lists(st.sampled_from((-3.1, -2.4, -1.7, -1.0, -0.45, 0.4, 1.0)), unique=True, max_size=3)


@settings(max_examples=200)
@given(
    st.floats(-8.0, 6.0),
    st.floats(1e-7, 5.0),
    st.floats(0.1, 3.0),
    nodes_of,
    st.sampled_from((0.0, 0.36, 1.0)),
    st.sampled_from(VARIANTS),
)
def test_identities(lam, h, scale, nodes, tau2, variant):
    """A constant D = mu moves alpha mu to alpha' mu; the noise level ends at sigma'; for any pair (alpha, sigma)."""
    if len(nodes) != {"mid": 1, "bh1": 1, "3m": 2, "3m-diffusers": 2, "3s-diffusers": 2}.get(variant, len(nodes)):
        variant = "exact"
    start, end = vp(lam), vp(lam + h)
    end = Level(scale * end.alpha, scale * end.sigma, 0.0)
    a, b, c = adams("x0", start, end, nodes, variant, tau2)
    size = sum(map(abs, b)) + end.alpha
    assert abs(sum(b) + start.alpha * a - end.alpha) <= 1e-13 * size
    assert abs(a**2 * start.sigma**2 + c**2 - end.sigma**2) <= 1e-13 * end.sigma**2
    if tau2 == 0.0 and not variant.endswith("diffusers"):
        a, b, c = adams("eps", start, end, nodes, variant)
        assert c == 0.0
        assert abs(sum(b) + start.sigma * a - end.sigma) <= 1e-13 * (sum(map(abs, b)) + a * start.sigma)


@pytest.mark.parametrize(("form", "tau2"), COLUMNS)
@pytest.mark.parametrize("count", [1, 2, 3, 4])
@pytest.mark.parametrize("h", [0.01, 0.7, 3.0])
def test_exact_variant_integrates_polynomials(form, tau2, count, h):
    """D a polynomial in lambda of degree < K: the step equals the variation-of-constants integral."""
    start, end = vp(-1.0), vp(-1.0 + h)
    nodes = [-0.9, -1.7, -2.2][: count - 1]
    points, weights = np.polynomial.legendre.leggauss(64)
    s = 0.5 * (points + 1.0)  # position in the step
    a, b, _ = adams(form, start, end, nodes, "exact", tau2)
    for degree in range(count):
        step = sum(bj * p**degree for bj, p in zip(b, [0.0, *nodes], strict=True))
        if form == "x0":
            kernel = end.alpha * (1 + tau2) * np.exp(-(1 + tau2) * h * (1 - s))
        else:
            kernel = -end.sigma * np.exp(h * (1 - s))
        integral = 0.5 * h * np.sum(weights * kernel * s**degree)
        assert abs(step - integral) <= 1e-13 * max(1.0, sum(map(abs, b)))
    assert a > 0


def test_low_variants_are_exact_only_to_one_degree_less():
    h, nodes = 1.0, [-0.8, -1.5]
    for variant, count in (("mid", 2), ("bh1", 2), ("3m", 3)):
        exact, low = moments("exact", count, "x0", h), moments(variant, count, "x0", h)
        assert low[: count - 1] == exact[: count - 1]
        assert abs(low[-1] - exact[-1]) > 1e-2
        betas = solve_nodes(nodes[: count - 1], low)
        for k in range(count):
            assert abs(sum(b * s**k for b, s in zip(betas, [0.0, *nodes], strict=False)) - low[k]) < 1e-14


def test_one_step_in_two_forms_is_the_same_ddim():
    for lam, h in itertools.product((-5.0, 0.0, 4.0), (1e-6, 0.3, 4.0)):
        start, end = vp(lam), vp(lam + h)
        a, (b,), _ = adams("x0", start, end)
        a_eps, (b_eps,), _ = adams("eps", start, end)
        # eps = (x - alpha x0) / sigma
        assert a_eps + b_eps / start.sigma == pytest.approx(a, rel=1e-12)
        assert -b_eps * start.alpha / start.sigma == pytest.approx(b, rel=1e-12)


def test_scaling_the_state_changes_coefficients_only_by_alpha():
    start, end = vp(-0.5), vp(0.4)
    flat = [Level(1.0, level.rho, 0.0) for level in (start, end)]
    for tau2 in (0.0, 0.5):
        a, b, c = adams("x0", start, end, [-1.1], "exact", tau2)
        a_ve, b_ve, c_ve = adams("x0", *flat, [-1.1], "exact", tau2)
        assert a_ve == pytest.approx(a * start.alpha / end.alpha, rel=1e-14)
        assert b_ve == pytest.approx([v / end.alpha for v in b], rel=1e-14)
        assert c_ve == pytest.approx(c / end.alpha, rel=1e-14)


def test_infinite_step_is_the_limit():
    far = moments("exact", 4, "x0", 1e9)
    assert moments("exact", 4, "x0", math.inf) == pytest.approx(far, rel=1e-8)


def test_a_variant_that_does_not_fit_is_refused():
    with pytest.raises(ValueError, match="'mid' does not exist for 3 nodes"):
        moments("mid", 3, "x0", 1.0)
