"""Few-step samplers: exact laws on Gaussian data, reductions, their paths, bad input."""

from __future__ import annotations

import math

import numpy as np
import pytest

from fastsample.few_step import karras_index_path, lcm_path, lcm_rows, tcd_stops, tdm_path, trig_path
from fastsample.path import Level, Path
from fastsample.plan import make_plan
from fastsample.schedules import DiscreteVP

from .exact import Mixture
from .golden_cases import Replay

MIXTURE = Mixture()


def variance(plan, network):
    """Variance of the end of a linear run, by unit noises."""
    unit = np.eye(plan.draws)
    end = Replay(plan, unit[0], network, lambda n: unit[n], start="noise").x
    return end @ end


S = 0.7  # standard deviation of Gaussian data, for which every map is a factor


@pytest.mark.parametrize("name", ["lcm", "cm", "scm", "tcd"])
def test_exact_jumps_to_clean_data_have_the_law_of_every_level(name):
    options = {
        "lcm": {"timestep_scaling": None},
        "cm": {"sigma_min": 0.0, "boundary": False},
        "scm": {},
        "tcd": {"eta": 1.0},
    }
    rng = np.random.default_rng(0)
    lam = np.cumsum([-2.0, *rng.uniform(0.1, 1.0, 5)])
    path = Path(1 / np.sqrt(1 + np.exp(-2 * lam)), 1.4 / np.sqrt(1 + np.exp(2 * lam)), np.linspace(1, 0, 6))
    total = np.sqrt(path.alpha**2 * S**2 + path.sigma**2)
    for n in range(1, 6):
        plan = make_plan(name, path[: n + 1], prediction="x0", init_sigma=float(total[0]), **options[name])
        assert variance(plan, lambda i, x: S / total[i] * x) == pytest.approx(total[n] ** 2, rel=1e-14)


@pytest.mark.parametrize("indices", [[0, 39], [0, 7, 11, 30, 39]])
def test_the_exact_consistency_map_keeps_the_law(indices):
    """Network returning f(x, t) = x sqrt((s^2 + e^2)/(s^2 + t^2)): the variance of the end is s^2 + e^2."""
    path, low = karras_index_path(indices), S**2 + 0.002**2
    start = math.sqrt(S**2 + 80.0**2)
    plan = make_plan("cm", path, prediction="x0", boundary=False, init_sigma=start)
    end = variance(plan, lambda i, x: x * math.sqrt(low / (S**2 + path.sigma[i] ** 2)))
    assert end == pytest.approx(low, rel=1e-14)


@pytest.mark.parametrize("variant", ["code", "paper"])
@pytest.mark.parametrize("gamma", [0.0, 0.2, 0.5, 0.95, 1.0])
def test_exact_jumps_of_two_times_keep_the_law(gamma, variant):
    """G(x, t, s) = x sqrt((S^2 + s^2)/(S^2 + t^2)), the network told both times."""
    path = karras_index_path([0, 9, 16, 30, 39])
    start = math.sqrt(S**2 + 80.0**2)
    plan = make_plan("ctm", path, gamma=gamma, variant=variant, outer="network", init_sigma=start)
    t, s = plan.t, plan.targets
    if variant == "paper":
        np.testing.assert_allclose(s, math.sqrt(1 - gamma**2) * path.sigma[1:], rtol=1e-14)
    end = variance(plan, lambda i, x: x * math.sqrt((S**2 + s[i] ** 2) / (S**2 + t[i] ** 2)))
    assert end == pytest.approx(S**2 + 0.002**2, rel=1e-13)


def test_reductions():
    """CTM with gamma 0 and TCD with eta 0 are DDIM, gamma and eta 1 are the re-noising samplers, TDM is DDIM."""
    path = Path(np.ones(5), [5.0, 1.5, 0.4, 0.1, 0.0])
    x, e = np.random.default_rng(1).standard_normal((2, 4, 3))
    draws = np.random.default_rng(2).standard_normal((5, 3))

    def end(name, **options):
        return Replay(make_plan(name, path, prediction="x0", **options), x[0], e, draws).x

    for other in (end("ctm", gamma=0.0), end("tcd", eta=0.0), end("tdm")):
        np.testing.assert_allclose(other, end("ddim"), rtol=1e-13)
    renoised = [end("tcd", eta=1.0), end("ctm", gamma=1.0, sigma_min=0.0), end("lcm", timestep_scaling=None)]
    for other in (*renoised, end("cm", sigma_min=0.0, boundary=False), end("euler", renoise=True)):
        np.testing.assert_allclose(other, end("scm"), rtol=1e-13)
    # the last prediction of CTM is told s = t, so that its jump is the denoiser's
    plan = make_plan("ctm", path, gamma=0.5)
    assert plan.targets[-1] == plan.t[-1] == 0.1
    assert make_plan("ctm", path, gamma=0.5, variant="paper").targets[-1] == 0.0


def test_ctm_with_the_ideal_denoiser_is_of_first_order():
    x = np.random.default_rng(3).standard_normal((64, 4))
    ends = []
    for steps in (80, 160, 1280):
        sigma = np.exp(np.linspace(math.log(10.0), math.log(0.1), steps + 1))
        plan = make_plan("ctm", Path(np.ones(steps + 1), sigma), gamma=0.0, prediction="x0")
        ends.append(Replay(plan, 10.0 * x, lambda i, y, sigma=sigma: MIXTURE.x0(y, 1.0, sigma[i])).x)
    errors = [np.abs(end - ends[2]).mean() for end in ends[:2]]
    # against 1280 steps of the same method: (1/80 - 1/1280) / (1/160 - 1/1280) = 2.14
    assert errors[0] / errors[1] == pytest.approx(15 / 7, rel=0.1)


@pytest.mark.parametrize("outer", ["variance", "mixed"])
def test_outer_scalings_of_ctm(outer):
    """By hand: G = c_skip x + (1 - s/t) g."""
    path = Path([1.0, 1.0], [3.0, 1.0])
    plan = make_plan("ctm", path, gamma=0.6, outer=outer, prediction="x0")
    s = 0.8 * (1.0 - 0.002) + 0.002
    skip = math.sqrt(((s - 0.002) ** 2 + 0.25) / ((3.0 - 0.002) ** 2 + 0.25))
    skip = skip if outer == "variance" else (s + skip) / 4.0
    end = Replay(plan, np.array([2.0]), [np.array([0.3])], lambda n: np.array([0.7])).x
    assert end == pytest.approx(skip * 2.0 + (1 - s / 3.0) * 0.3 + math.sqrt(1.0 - s * s) * 0.7, rel=1e-14)


def test_trigflow_is_a_consistency_model_in_other_coordinates():
    """sigma = sigma_data tan t, x_EDM = x / cos t."""
    path = trig_path(times=[1.5, 1.1, 0.6, 0.2], sigma_data=0.5)
    np.testing.assert_allclose(path.rho, 0.5 * np.tan(path.t), rtol=1e-14)
    x, noise = np.random.default_rng(4).standard_normal((2, 4, 3))

    def flow(i, y):  # of the trigonometric state
        return np.cos(path.t[i]) * np.sin(y) - np.sin(path.t[i]) * np.cos(y)

    def same_x0(i, y):
        y = y * path.alpha[i]
        return np.cos(path.t[i]) * y - np.sin(path.t[i]) * flow(i, y)

    trig = Replay(make_plan("scm", path, prediction="flow"), x[0], flow, lambda n: noise[n - 1]).x
    plan = make_plan("cm", path.ve(), prediction="x0", sigma_min=0.0, boundary=False)
    other = Replay(plan, x[0] / path.alpha[0], same_x0, lambda n: noise[n - 1]).x
    np.testing.assert_allclose(trig / path.alpha[-1], other, rtol=1e-12)


def test_rows_and_stops():
    assert lcm_rows(1000, 4).tolist() == [999, 759, 499, 259]
    assert lcm_rows(1000, 1).tolist() == [999]
    assert lcm_rows(1000, 2, strength=0.5).tolist() == [499, 259]
    assert tdm_path(DiscreteVP.linear(900), 4).t[:-1].tolist() == [899, 674, 449, 224]
    assert tdm_path(DiscreteVP.linear(), rows=[999, 856, 665, 399]).t[:-1].tolist() == [999, 856, 665, 399]
    table = DiscreteVP.linear()
    for eta in np.arange(10) / 10:  # the product in float32 is the exact floor; in double it is not
        stop = tcd_stops(table, float(eta))
        for t in range(0, 1000, 37):
            row = int(np.floor(np.float32(1 - eta) * np.float32(t)))
            level = Level(float(table.alpha(t)), float(table.sigma(t)), float(t))
            assert stop(level) == pytest.approx(float(np.exp(-table.lam(row))), rel=1e-14)
    assert tcd_stops(table, 0.3)(Level(0.9, 0.4, 90.0)) == pytest.approx(float(np.exp(-table.lam(63.0))), rel=1e-14)
    assert math.floor(0.7 * 90) == 62


VE = Path([1.0, 1.0, 1.0], [5.0, 1.0, 0.1])


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: make_plan("tcd", VE, eta=1.5), "eta: got 1.5"),
        (lambda: make_plan("tcd", VE, stops=[2.0, 0.0]), "stops: got 2.0 for step 0"),
        (lambda: make_plan("tcd", VE, stops=[0.1]), "stops: got 1 numbers for 2 steps"),
        (lambda: make_plan("tcd", VE, stops="x"), "stops: got 'x'"),
        (lambda: make_plan("lcm", VE, record=1), "record: got 1"),
        (lambda: make_plan("lcm", VE.reversed()), "path: 'lcm' runs from noise to data"),
        (lambda: make_plan("cm", VE, sigma_min=-1.0), "sigma_min: got -1.0"),
        (lambda: make_plan("ctm", VE, variant="other"), "variant: got 'other'"),
        (lambda: make_plan("ctm", Path([0.6, 0.8], [0.8, 0.6], [1, 0])), "time: 't' is nan where the jump"),
        (lambda: make_plan("ctm", VE, outer="network", clip=1.0), "clip: this solver combines raw outputs"),
        (lambda: make_plan("ctm", VE, denoise=True), "denoise: a network of two times"),
        (lambda: lcm_path("flow"), "schedule: got RectifiedFlow"),
        (lambda: lcm_path(DiscreteVP.linear(), 51), "steps: got 51"),
        (lambda: lcm_path(DiscreteVP.linear(), final="end"), "final: got 'end'"),
        (lambda: karras_index_path([0, 39], 39), "indices: got"),
        (lambda: karras_index_path([3, 1]), "indices: got"),
        (lambda: trig_path(times=[2.0, 0.0]), "times: got"),
    ],
)
def test_bad_input(call, message):
    with pytest.raises(ValueError, match=message):
        call()


def test_ctm_tells_both_times_in_one_unit():
    path = Path([0.6, 0.8, 0.9], [0.8, 0.6, 0.3], [3, 2, 1])
    plan = make_plan("ctm", path, gamma=0.6, variant="paper", time="sigma")
    np.testing.assert_allclose(plan.t, path.rho[:-1], rtol=1e-15)
    np.testing.assert_allclose(plan.targets, 0.8 * path.rho[1:], rtol=1e-14)
    plan = make_plan("ctm", path, gamma=0.6, variant="paper", time=lambda level: 250 * math.log(level.rho))
    np.testing.assert_allclose(plan.targets, 250 * np.log(0.8 * path.rho[1:]), rtol=1e-14)


def test_the_boundary_of_lcm_follows_the_unit_of_time():
    """10 per row of a table of 1000 rows, however the rows are told; none where t is sigma/alpha."""
    rows = lcm_path(DiscreteVP.linear(), 4)
    unit = Path(rows.alpha, rows.sigma, rows.t / 1000)
    tables = [make_plan("lcm", p, prediction="x0").table[:, :32] for p in (rows, unit)]
    np.testing.assert_allclose(*tables, rtol=1e-13)
    assert make_plan("lcm", rows, prediction="x0").table[3, 1] == pytest.approx(0.25 / (2590.0**2 + 0.25), rel=1e-12)
    assert not make_plan("lcm", VE, prediction="x0").table[:, 1].any()
