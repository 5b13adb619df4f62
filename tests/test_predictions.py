from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fastsample.predictions import PREDICTIONS, input_scale, to_eps, to_x0

levels = st.tuples(st.floats(0.05, 3.0), st.floats(0.05, 9.0))
value = st.floats(-2.0, 2.0)


def raw(prediction, alpha, sigma, x0, eps, kappa, sigma_data, rates):
    """What a perfect network of this kind returns, from the definitions."""
    x = alpha * x0 + sigma * eps
    rho = sigma / alpha
    skip, out = sigma_data**2 / (rho**2 + sigma_data**2), rho * sigma_data / math.sqrt(rho**2 + sigma_data**2)
    return x, {
        "eps": eps,
        "x0": x0,
        "v": kappa * (alpha * eps - sigma * x0),
        "score": -eps / sigma,
        "flow": (rates or (-1.0, 1.0))[0] * x0 + (rates or (-1.0, 1.0))[1] * eps,
        "edm": (x0 - skip * x / alpha) / out,
    }[prediction]


@given(st.sampled_from(PREDICTIONS), levels, value, value, st.sampled_from(["none", "vp", "edm"]), st.floats(0.3, 2.0))
def test_perfect_networks_give_x0_and_eps(prediction, level, x0, eps, scaling, sigma_data):
    alpha, sigma = level
    if prediction == "flow":
        scaling = "none"
    kappa = input_scale(scaling, alpha, sigma, sigma_data)
    x, e = raw(prediction, alpha, sigma, x0, eps, kappa, sigma_data, None)
    for to, truth in ((to_x0, x0), (to_eps, eps)):
        p, q = to(prediction, alpha, sigma, kappa=kappa, sigma_data=sigma_data)
        assert abs(p * x + q * e - truth) <= 1e-12 * (abs(p * x) + abs(q * e) + abs(x) / min(alpha, sigma) + 1)


@given(levels, value, value, st.tuples(st.floats(-3.0, -0.1), st.floats(0.1, 3.0)))
def test_flow_of_any_rates(level, x0, eps, rates):
    x, u = raw("flow", *level, x0, eps, 1.0, 0.5, rates)
    for to, truth in ((to_x0, x0), (to_eps, eps)):
        p, q = to("flow", *level, rates=rates)
        assert abs(p * x + q * u - truth) <= 1e-12 * (abs(p * x) + abs(q * u) + 1)


def test_input_scales():
    assert input_scale("none", 0.3, 4.0) == 1.0
    assert input_scale("vp", 0.6, 0.8) == pytest.approx(1.0, rel=1e-15)
    assert input_scale("edm", 1.0, 3.0, 0.5) == pytest.approx(1 / math.sqrt(9.25), rel=1e-15)
    assert input_scale("edm", 0.5, 1.5, 0.5) == pytest.approx(2 / math.sqrt(9.25), rel=1e-15)


def test_scaled_v_network_in_the_ve_state():
    """x0 = x/(1 + rho^2) - rho v / sqrt(1 + rho^2)."""
    rho = 2.5
    p, q = to_x0("v", 1.0, rho, kappa=input_scale("vp", 1.0, rho))
    assert (p, q) == pytest.approx((1 / (1 + rho**2), -rho / math.sqrt(1 + rho**2)), rel=1e-15)


def test_where_a_prediction_says_nothing():
    for prediction in ("eps", "score"):
        with pytest.raises(ValueError, match="alpha = 0"):
            to_x0(prediction, 0.0, 1.0)
    for prediction in ("x0", "edm"):
        with pytest.raises(ValueError, match="sigma = 0"):
            to_eps(prediction, 1.0, 0.0)
    assert to_x0("flow", 0.0, 1.0) == (1.0, -1.0)
    assert to_x0("v", 0.0, 1.0) == (0.0, -1.0)
    assert to_x0("edm", 0.0, 1.0) == (0.0, 0.5)


def test_bad_input():
    for to in (to_x0, to_eps):
        with pytest.raises(ValueError, match="prediction: got 'noise', allowed are eps"):
            to("noise", 0.5, 0.5)
        with pytest.raises(ValueError, match="a flow network is fed the state itself"):
            to("flow", 0.5, 0.5, kappa=0.3)
        with pytest.raises(ValueError, match="does not determine x0"):
            to("flow", 0.5, 0.5, rates=(1.0, 1.0))
    with pytest.raises(ValueError, match="input_scaling: got 've'"):
        input_scale("ve", 0.5, 0.5)
