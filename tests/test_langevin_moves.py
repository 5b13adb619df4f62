"""Exact moves of underdamped Langevin dynamics against decimal arithmetic, composition and limits."""

from __future__ import annotations

import math
from decimal import Decimal, localcontext

import numpy as np
import pytest

from fastsample.langevin.ou import Move, move

ULPS = 16 * 2.0**-53
NAMES = ("e", "p1", "p2", "var_x", "cov", "var_v", "l_v", "l_1", "l_2")


def exact(gamma: float, h: float) -> dict[str, float]:
    """The textbook forms with 120 digits, each rounded once."""
    with localcontext() as context:
        context.prec = 120
        g, t = Decimal(gamma), Decimal(h)
        a = g * t
        e = (-a).exp()
        p1 = (1 - e) / g
        var_v, cov = 1 - e * e, g * p1 * p1
        var_x = (2 * a - 3 + 4 * e - e * e) / g**2
        l_v = var_v.sqrt()
        l_1 = cov / l_v
        values = (e, p1, (t - p1) / g, var_x, cov, var_v, l_v, l_1, (var_x - l_1 * l_1).sqrt())
        return {name: float(value) for name, value in zip(NAMES, values, strict=True)}


SIZES = np.concatenate([np.logspace(-12, math.log10(50), 400), [0.05, 1.0, 2.9999, 3.0, 3.0001]])


@pytest.mark.parametrize("gamma", [1.0, 2.0**-7, 64.0])  # powers of two: gamma h is exact
def test_every_moment_keeps_all_digits(gamma):
    worst = dict.fromkeys(NAMES, 0.0)
    for a in SIZES:
        got, want = move(gamma, a / gamma), exact(gamma, a / gamma)
        for name in NAMES:
            worst[name] = max(worst[name], abs(getattr(got, name) / want[name] - 1.0))
    assert all(error < ULPS for error in worst.values()), worst


def test_any_friction_to_the_rounding_of_its_product():
    rng = np.random.default_rng(0)
    for gamma, a in zip(rng.uniform(0.01, 30, 200), 10 ** rng.uniform(-12, 1.7, 200), strict=True):
        got, want = move(gamma, a / gamma), exact(gamma, a / gamma)
        for name in NAMES:  # exp(-a) has the relative error of a itself times a
            assert abs(getattr(got, name) / want[name] - 1.0) < ULPS + 2.0**-52 * a, (name, gamma, a)


def test_free_flight_is_the_limit():
    assert move(0.0, 0.7) == Move(0.0, 0.7, 1.0, 0.7, 0.7 * 0.7 / 2, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0)
    tiny = move(1e-30, 0.7)
    assert (tiny.p1, tiny.p2) == (0.7, 0.7 * 0.7 / 2) and 0 < tiny.l_2 < tiny.l_1 < tiny.l_v < 1e-14


def linear(m: Move) -> np.ndarray:
    return np.array([[1.0, m.p1], [0.0, m.e]])


def factor(m: Move) -> np.ndarray:
    """Rows x, v; columns xi_0, xi_1."""
    return np.array([[m.l_1, m.l_2], [m.l_v, 0.0]])


def test_many_lengths_at_once():
    lengths = SIZES / 1.7
    many = move(1.7, lengths)
    for name in NAMES:
        one = [getattr(move(1.7, h), name) for h in lengths[::40]]
        np.testing.assert_allclose(getattr(many, name)[::40], one, rtol=4e-16)


@pytest.mark.parametrize("a", [1e-9, 1e-3, 0.2, 4.0])
def test_moves_compose_like_matrix_powers(a):
    one, count = move(1.7, a / 1.7), 25
    power, force, cov = np.eye(2), np.zeros(2), np.zeros((2, 2))
    for _ in range(count):
        power, force = linear(one) @ power, linear(one) @ force + (one.p2, one.p1)
        cov = linear(one) @ cov @ linear(one).T + factor(one) @ factor(one).T
    many = move(1.7, count * a / 1.7)
    np.testing.assert_allclose(linear(many), power, rtol=1e-13)
    np.testing.assert_allclose((many.p2, many.p1), force, rtol=1e-13)
    np.testing.assert_allclose([[many.var_x, many.cov], [many.cov, many.var_v]], cov, rtol=1e-13)
    np.testing.assert_allclose(factor(many) @ factor(many).T, cov, rtol=1e-13)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [((-1.0, 0.1), "gamma: got -1.0"), ((1.0, -0.1), "h: got -0.1"), ((math.nan, 1.0), "gamma: got nan")],
)
def test_bad_arguments(arguments, message):
    with pytest.raises(ValueError, match=message):
        move(*arguments)
