from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from fastsample.schedules import (
    SCHEDULES,
    VE,
    CustomSchedule,
    DiscreteVP,
    RectifiedFlow,
    VPCosine,
    VPLinear,
    make_schedule,
)

from .golden_cases import cases

ALL = [
    *(make() for make in SCHEDULES.values()),
    DiscreteVP.scaled_linear(interpolation="log-snr"),
    DiscreteVP.scaled_linear(interpolation="sigma"),
    RectifiedFlow(shift=3.0),
    CustomSchedule(lambda t: 1 - t, lambda t: t, 0.01, 0.99),
]


def inside(schedule, n=41):
    """Times away from the ends where the log-SNR may be infinite."""
    margin = 1e-3 * (schedule.t_max - schedule.t_min)
    return np.linspace(schedule.t_min + margin, schedule.t_max - margin, n)


@pytest.mark.parametrize("schedule", ALL, ids=lambda s: type(s).__name__)
def test_time_of_log_snr_is_the_inverse(schedule):
    t = inside(schedule)
    np.testing.assert_allclose(schedule.lam(schedule.t_of_lam(schedule.lam(t))), schedule.lam(t), rtol=0, atol=1e-9)
    assert (np.diff(schedule.lam(t)) < 0).all()
    np.testing.assert_allclose(schedule.of_clock(schedule.clock(t)), t, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("schedule", ALL, ids=lambda s: type(s).__name__)
def test_levels_have_the_log_snr_asked_for(schedule):
    lam = schedule.lam(inside(schedule))
    alpha, sigma = schedule.levels(lam)
    np.testing.assert_allclose(np.log(alpha / sigma), lam, rtol=0, atol=1e-11)
    np.testing.assert_allclose(alpha, schedule.alpha(schedule.t_of_lam(lam)), rtol=1e-8)


@pytest.mark.parametrize("schedule", [s for s in ALL if s.rates(0.5) is not None], ids=lambda s: type(s).__name__)
def test_rates_are_the_derivatives(schedule):
    t = inside(schedule, 11)[1:-1]
    h = 1e-6 * (schedule.t_max - schedule.t_min)
    for rate, level in zip(schedule.rates(t), (schedule.alpha, schedule.sigma), strict=True):
        np.testing.assert_allclose(rate, (level(t + h) - level(t - h)) / (2 * h), rtol=1e-5, atol=1e-7)


def test_vp_linear_formula():
    """log alpha is minus half the integral of beta / 1 (trapezoid is exact for a line)."""
    schedule = VPLinear(0.1, 20.0)
    for t in (0.001, 0.3, 1.0):
        integral = t * (0.1 + 0.5 * t * 19.9)
        assert schedule.log_alpha(t) == pytest.approx(-0.5 * integral, rel=1e-15)
        assert schedule.alpha(t) ** 2 + schedule.sigma(t) ** 2 == pytest.approx(1.0, rel=1e-15)


def test_sigma_keeps_its_digits_near_the_data():
    t = 1e-9
    schedule = VPLinear(0.1, 20.0)
    assert schedule.sigma(t) == pytest.approx(math.sqrt(0.1 * t), rel=1e-7)


def test_cosine_formula():
    schedule = VPCosine()
    t = np.array([0.1, 0.5, 0.9])
    curve = np.cos((t + 0.008) / 1.008 * np.pi / 2) ** 2
    np.testing.assert_allclose(schedule.alpha(t) ** 2, curve / np.cos(0.008 / 1.008 * np.pi / 2) ** 2, rtol=1e-13)


def test_tables_equal_the_recorded_ones():
    """alphas_cumprod of the recorded runs (scaled-linear and cosine tables of 1000 rows)."""
    makers = {"VP scaled_linear 1000": DiscreteVP.scaled_linear, "VP cosine 1000": DiscreteVP.cosine}
    seen = set()
    for case in cases("ddim_diffusers"):
        table = makers[case.cfg["schedule"]]()
        np.testing.assert_allclose(table.alphas_cumprod, case["alphas_cumprod"], rtol=1e-13)
        seen.add(case.cfg["schedule"])
    assert len(seen) == 2


@pytest.mark.parametrize("interpolation", DiscreteVP.INTERPOLATIONS)
def test_rows_are_hit_exactly(interpolation):
    table = DiscreteVP.linear(100, interpolation=interpolation)
    rows = np.arange(100)
    np.testing.assert_allclose(table.alpha(rows) ** 2, table.alphas_cumprod, rtol=1e-13)
    half = table.lam(np.array([10.5]))
    assert table.lam(11.0) < half < table.lam(10.0)
    assert table.clock(99.0) == 1.0


def test_sigma_interpolation_is_linear_in_rho():
    table = DiscreteVP.scaled_linear(interpolation="sigma")
    rho = np.sqrt((1 - table.alphas_cumprod) / table.alphas_cumprod)
    assert np.exp(-table.lam(799.2)) == pytest.approx(0.8 * rho[799] + 0.2 * rho[800], rel=1e-13)


@given(st.floats(0.05, 20.0), st.floats(0.0, 1.0))
def test_shift_is_the_dynamic_shift(shift, u):
    """shift s is the exponential dynamic shift with mu = log s: e^mu / (e^mu + 1/u - 1)."""
    t = float(RectifiedFlow(shift).of_clock(u))
    if u > 1e-300:
        assert t == pytest.approx(shift / (shift + 1 / u - 1), rel=1e-12)
    assert RectifiedFlow(shift).clock(t) == pytest.approx(u, abs=1e-12)


def test_flow_by_sequence_length():
    assert RectifiedFlow.dynamic(256).shift == pytest.approx(math.exp(0.5))
    assert RectifiedFlow.dynamic(4096, linear=True).shift == pytest.approx(1.15)
    assert RectifiedFlow(time_scale=1000.0).network_time(0.25) == 250.0


def test_custom_schedule_by_bisection():
    own, flow = CustomSchedule(lambda t: 1 - t, lambda t: t, 0.01, 0.99), RectifiedFlow()
    lam = np.linspace(-4, 4, 9)
    np.testing.assert_allclose(own.t_of_lam(lam), flow.t_of_lam(lam), rtol=1e-13)
    with pytest.raises(ValueError, match="lam: got"):
        own.t_of_lam(9.0)


def test_names_and_aliases():
    assert isinstance(make_schedule("vp"), VPLinear)
    assert isinstance(make_schedule("edm", sigma_max=10.0), VE)
    own = VE()
    assert make_schedule(own) is own


@pytest.mark.parametrize(
    ("make", "error", "message"),
    [
        (lambda: make_schedule("vp-liner"), ValueError, "did you mean vp-linear"),
        (lambda: make_schedule("edm", rho=7), ValueError, "'edm' does not take"),
        (lambda: make_schedule(3), TypeError, "schedule: got int"),
        (lambda: make_schedule(VE(), sigma_max=1.0), ValueError, "already made"),
        (lambda: VPLinear(20.0, 0.1), ValueError, "beta_min"),
        (lambda: VE(1.0, 0.5), ValueError, "t_min, t_max"),
        (lambda: VPCosine(t_max=1.2), ValueError, "t_min, t_max"),
        (lambda: RectifiedFlow(shift=0.0), ValueError, "shift: got 0"),
        (lambda: RectifiedFlow(t_min=1.0), ValueError, "t_min: got 1"),
        (lambda: DiscreteVP([0.5, 0.6]), ValueError, "alphas_cumprod"),
        (lambda: DiscreteVP([0.6, 0.5], "cubic"), ValueError, "interpolation: got 'cubic'"),
        (lambda: DiscreteVP.from_betas([0.1, 1.0]), ValueError, "betas"),
        (lambda: CustomSchedule(1.0, lambda t: t), TypeError, "alpha: got float"),
        (lambda: CustomSchedule(lambda t: 0 * t + 1, lambda t: 1 - t / 2), ValueError, "must fall"),
    ],
)
def test_bad_input(make, error, message):
    with pytest.raises(error, match=message):
        make()
