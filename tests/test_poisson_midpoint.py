"""Poisson midpoint with shared midpoints: recorded runs, the literal loop, laws in closed form, midpoints, refusals."""

from __future__ import annotations

import itertools
import math
import warnings

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from fastsample import noise, row
from fastsample.choosing import plan_for, usual_path
from fastsample.grids import make_path
from fastsample.models.mixture import GaussianMixture
from fastsample.path import Path
from fastsample.plan import make_plan
from fastsample.solvers import assemble
from fastsample.solvers.fine_tables import TABLES, fine_table
from fastsample.solvers.poisson_midpoint import window_steps
from fastsample.solvers.poisson_windows import LARGE, Window, Windows
from fastsample.solvers.step import Step

from .golden_cases import Replay
from .poisson_cases import STEMS, collapsed, eps_of, literal, mask_of, recorded

SHARED = "poisson-midpoint-shared"
pytestmark = pytest.mark.filterwarnings("ignore:window. in ")  # coarse tables do not matter here


def plan_of(windows, h):
    """The plan whose midpoints are h (M,) bool, and the level of each of its calls."""
    steps = []
    for window in windows:
        steps += window_steps(windows, window, [i for i in range(window.start + 1, window.end) if h[i]])
    shared = dict(assemble.DEFAULTS)
    plan = assemble.assemble(SHARED, windows.table.path, steps, options={}, prediction="eps", **shared)
    levels = list(zip(windows.table.path.alpha, windows.table.path.sigma, strict=True))
    return plan, [levels.index(step.at[:2]) for step in steps]


def run(windows, h, x, eps, draws):
    plan, at = plan_of(windows, h)
    return Replay(plan, x, lambda i, state: eps(at[i], state), draws)


@pytest.mark.parametrize("stem", STEMS)
def test_recorded_run(stem):
    """Window ends of the recorded loop; its normals of the moves are those that we find in the fine ones."""
    data, table = recorded(stem)
    windows = Windows(table, 10, None, "bernoulli")
    draws = collapsed(table, windows, data["H"][:, None].repeat(8, 1), data["Z"])
    # moves of no step (a midpoint at the start of its window) and of no noise are recorded with zeros
    ours = [draws[i] for i in sorted(draws) if draws[i].any()]
    np.testing.assert_allclose(ours, [xi for xi in data["collapsed_noise"] if xi.any()], rtol=0, atol=1e-12)
    result = run(windows, data["H"], data["x_T"], eps_of(table.path), draws)
    plan, _ = plan_of(windows, data["H"])
    states = [result.states[c] for c in range(plan.nfe) if _ends(plan, c)]
    np.testing.assert_allclose(states, data["states"][1:], rtol=0, atol=1e-11)
    np.testing.assert_allclose(result.x, data["x_out"], rtol=0, atol=1e-11)


def _ends(plan, call):
    return call + 1 == plan.nfe or plan.step_of[call + 1] != plan.step_of[call]


@pytest.mark.parametrize("name", TABLES)
@pytest.mark.parametrize("midpoints", ["bernoulli", "one", 3])
def test_collapsed_is_the_loop(name, midpoints):
    """All tables, uneven windows, the weights of every kind of midpoints: 1e-12 of the state."""
    path = make_path("ddpm-linear", "rows", 100, final="end")
    table = fine_table(path, name, 0.4 if name == "ddim" else 0.0)
    sizes = [7, 1, 20, 2, 30, 39, 1]
    windows = Windows(table, 25, sizes, midpoints)
    h = mask_of(windows, windows.draw(noise.keys(3, 1)))[:, 0]
    rng = np.random.default_rng(0)
    x, z = rng.standard_normal((5, 4)), rng.standard_normal((100, 5, 4))
    weights = [window.weight for window in windows]
    assert weights == [s / min(3, s) if midpoints == 3 else s for s in sizes]
    hs = h[:, None].repeat(5, 1)
    result = run(windows, h, x, eps_of(path), collapsed(table, windows, hs, z))
    expected = literal(table, eps_of(path), x, sizes, weights, hs, z)[-1]
    assert np.abs(result.x - expected).max() <= 1e-12 * np.abs(expected).max()


def test_no_midpoints_is_a_frozen_prediction():
    path = make_path("ddpm-linear", "rows", 20, final="end")
    table = fine_table(path)
    rng = np.random.default_rng(1)
    x, z = rng.standard_normal((3, 4)), rng.standard_normal((20, 3, 4))
    windows = Windows(table, 20, None, "one")
    none = np.zeros((20, 3), bool)
    ours = run(windows, none[:, 0], x, eps_of(path), collapsed(table, windows, none, z)).x
    eps0 = eps_of(path)(0, x)
    for j in range(20):
        x = table.a[j] * x + table.b[j] * eps0 + table.s[j] * z[j]
    np.testing.assert_allclose(ours, x, rtol=1e-13)


@pytest.mark.parametrize("name", TABLES)
def test_windows_of_one_are_the_fine_sampler(name):
    """Bit for bit the rows of the table, whatever is drawn."""
    path = make_path("ddpm-linear", "rows", 30, final="end")
    table = fine_table(path, name)
    plain = [
        Step(j, path[j], float(table.a[j]), (float(table.b[j]),), float(table.s[j]), form="eps") for j in range(30)
    ]
    expected = assemble.assemble("plain", path, plain, options={}, prediction="v", **assemble.DEFAULTS)
    for midpoints in ("bernoulli", "one", 2):
        plan = make_plan(SHARED, path, prediction="v", window=1, midpoints=midpoints, table=name)
        np.testing.assert_array_equal(plan.table, expected.table)
        assert plan.slots == expected.slots
        assert plan.draws == expected.draws


@pytest.mark.parametrize("variance", ["small", "large"])
def test_windows_of_one_are_ddpm(variance):
    path = make_path("ddpm-linear", "trailing", 40)
    rng = np.random.default_rng(2)
    x, draws, eps = rng.standard_normal((6, 4)), rng.standard_normal((41, 6, 4)), eps_of(path)
    ours = Replay(make_plan(SHARED, path, window=1, table=f"ddpm-{variance}"), x, eps, draws)
    known = Replay(make_plan("ddpm", path, variance=variance), x, eps, draws)
    np.testing.assert_allclose(ours.states, known.states, rtol=1e-12, atol=1e-12)


class Gaussian:
    """The window of fine steps 600 to 624 of the 1000-step DDPM table on data N(0.7, 0.4^2), from x = 1.3."""

    m, s, x = 0.7, 0.4, 1.3

    def __init__(self):
        rows = make_path("ddpm-linear", "trailing", 1000)
        self.path = rows[600:626]
        self.table = fine_table(self.path)
        alpha, sigma = self.path.alpha, self.path.sigma
        self.kappa = sigma / (alpha**2 * self.s**2 + sigma**2)

    def eps(self, j, x):
        return self.kappa[j] * (x - self.path.alpha[j] * self.m)

    def law(self):
        """Mean and variance of the fine chain and of Bernoulli midpoints: section 5 of our derivation."""
        a, b, s = self.table.a, self.table.b, self.table.s
        mean, var = self.x, 0.0
        for j in range(25):
            gain = a[j] + b[j] * self.kappa[j]
            mean, var = gain * mean - b[j] * self.kappa[j] * self.path.alpha[j] * self.m, gain**2 * var + s[j] ** 2
        eps0, k = self.eps(0, self.x), 25
        after = [math.prod(a[j + 1 :]) for j in range(25)]
        m, w, gaps, spreads = self.x, 0.0, [], []
        for j in range(25):
            gaps.append(self.eps(j, m) - eps0)
            spreads.append(w)
            m, w = a[j] * m + b[j] * eps0, a[j] ** 2 * w + s[j] ** 2
        c = [after[j] * b[j] for j in range(25)]
        mean_pmm = m + sum(c[j] * gaps[j] for j in range(25))
        fixed = sum(
            (after[j] * s[j] + sum(c[i] * self.kappa[i] * math.prod(a[j + 1 : i]) * s[j] for i in range(j + 1, 25)))
            ** 2
            for j in range(25)
        )
        extra = [c[i] ** 2 * (gaps[i] ** 2 + self.kappa[i] ** 2 * spreads[i]) for i in range(25)]
        one = k * sum(extra) - sum(
            c[i] * c[j] * (gaps[i] * gaps[j] + self.kappa[i] * self.kappa[j] * math.prod(a[min(i, j) : max(i, j)])
            * spreads[min(i, j)])
            for i, j in itertools.product(range(25), repeat=2)
        )  # fmt: skip
        return (mean, var), (mean_pmm, fixed + (k - 1) * sum(extra)), (mean_pmm, fixed + one)


def test_gaussian_law_in_closed_form():
    """The worked numbers, and the exact mean and variance of ``one`` from its 25 plans."""
    case = Gaussian()
    fine, bernoulli, one = case.law()
    assert fine == pytest.approx((1.201219, 0.170353), abs=6e-7)
    assert bernoulli == pytest.approx((1.202264, 0.173462), abs=6e-7)
    windows = Windows(case.table, 25, None, "one")
    means, variances = [], []
    for i in range(25):
        h = np.arange(25) == i
        basis = np.eye(1 + 25)  # the state is affine in the normals: its value at zero, and the slope in each of them

        def end(z, h=h):
            return run(windows, h, np.array([case.x]), case.eps, lambda draw: np.array([z[draw]])).x[0]

        still = end(np.zeros(26))
        means.append(still)
        variances.append(sum((end(basis[n]) - still) ** 2 for n in range(1, 26)))
    assert np.mean(means) == pytest.approx(one[0], rel=1e-12)
    assert np.mean(variances) + np.var(means) == pytest.approx(one[1], rel=1e-12)


def test_path_matters_only_through_log_snr():
    """VP state and VE state x/alpha: the same run."""
    path = make_path("ddpm-linear", "rows", 60, final="end")
    ends = []
    for p in (path, path.ve()):
        plan = make_plan(SHARED, p, window=20, windows=None, midpoints=2, midpoint_seed=4)
        at = [list(p.sigma).index(step.sigma) for step in _levels(plan)]
        draws = np.random.default_rng(5).standard_normal((61, 6, 4))
        ends.append(Replay(plan, p[0].sigma * draws[0], lambda c, x, p=p, at=at: eps_of(p)(at[c], x), draws).x)
    np.testing.assert_allclose(ends[0] / path.alpha[-1], ends[1], rtol=1e-10)


def _levels(plan):
    return [plan.path[int(np.flatnonzero(plan.path.t == t)[0])] for t in plan.t]


def test_draws_are_numbered_by_the_fine_step():
    """Noise belongs to where a move begins, so that other midpoints do not shift it."""
    path = make_path("ddpm-linear", "rows", 100)
    for seed in range(4):
        plan = make_plan(SHARED, path, window=25, windows=None, midpoints="bernoulli", midpoint_seed=seed)
        at = [int(np.flatnonzero(path.t == t)[0]) for t in plan.t]
        assert plan.table[:, row.DRAW].tolist() == [1.0 + j for j in at]
        assert {0, 25, 50, 75} <= set(at)
        assert plan.draws == 1 + max(plan.table[:, row.DRAW])


def test_plan_is_a_function_of_its_options():
    path = make_path("ddpm-linear", "trailing", 1000)
    plan = make_plan(SHARED, path, midpoints="bernoulli", midpoint_seed=7)
    assert plan == make_plan(SHARED, path, midpoints="bernoulli", midpoint_seed=7)
    assert plan != make_plan(SHARED, path, midpoints="bernoulli", midpoint_seed=8)
    assert plan == type(plan).from_json(plan.to_json())
    # kept tensors: the frozen prediction, and the refined state only where some window has two midpoints
    assert [slot.name for slot in plan.slots] == ["x", "eps0", "refined"]
    assert [slot.name for slot in make_plan(SHARED, path).slots] == ["x", "eps0"]


def test_usual_path_is_that_of_training():
    net = GaussianMixture.ring().network("eps")
    for schedule, last in (("ddpm-linear", 0.0), ("vp-linear", 0.0), ("edm", 0.0)):
        plan = plan_for(net, solver=SHARED, schedule=schedule)
        assert (plan.path.steps, plan.path[-1].sigma) == (1000, last)
    assert plan_for(net, solver=SHARED, schedule="ddpm-linear").path.t[:3].tolist() == [999.0, 998.0, 997.0]
    assert plan_for(net, solver=SHARED, schedule="ddpm-linear", steps=100, window=5).path.steps == 100
    # one midpoint per window: two calls, or one where the midpoint is the start
    assert 75 <= plan_for(net, solver=SHARED).nfe <= 87


def test_number_of_calls_is_binomial():
    """Midpoints of 400 seeds times 1000 fine steps: mean and spread; false alarm below 1e-4 (4 standard errors)."""
    path = make_path("ddpm-linear", "trailing", 1000)
    windows = Windows(fine_table(path), 25, None, "bernoulli")
    drawn = windows.draw(noise.keys(11, 400))
    counts = mask_of(windows, drawn).reshape(40, 25, 400).sum(1)
    assert abs(counts.mean() - 1.0) < 4 * math.sqrt(0.96 / counts.size)
    for n, p in ((0, 0.96**25), (1, 0.96**24), (2, 0.48 * 0.96**23)):
        share = (counts == n).mean()
        expected = p if n < 2 else 300 * 0.04**2 * 0.96**23
        assert abs(share - expected) < 4 * math.sqrt(expected * (1 - expected) / counts.size), n
    at_start = mask_of(windows, drawn)[::25]
    assert abs(at_start.mean() - 0.04) < 4 * math.sqrt(0.04 * 0.96 / at_start.size)
    # no two fine steps go together: variance of the number per sample is that of independent ones
    total = counts.sum(0)
    assert abs(total.var() / 38.4 - 1) < 4 * math.sqrt(2 / 400)


@pytest.mark.parametrize(("midpoints", "count"), [("one", 1), (1, 1), (3, 3), (25, 25), (40, 25)])
def test_fixed_numbers_of_midpoints(midpoints, count):
    """Always that many different ones, each place as likely as another; false alarm about 1e-3 in all."""
    path = make_path("ddpm-linear", "rows", 50)
    windows = Windows(fine_table(path), 25, None, midpoints)
    drawn = windows.draw(noise.keys(5, 2000))
    assert all(m.shape == (2000, count) and (np.diff(m, axis=1) > 0).all() for m in drawn)
    hits = mask_of(windows, drawn).sum(1)
    spread = math.sqrt(2000 * count / 25 * (1 - count / 25))
    assert (np.abs(hits - 80 * count) <= 4.5 * spread + 1e-9).all()


def test_midpoints_of_a_sample_are_its_own():
    path = make_path("ddpm-linear", "rows", 100)
    windows = Windows(fine_table(path), 25, None, "bernoulli")
    whole, part = (mask_of(windows, windows.draw(noise.keys(3, ids))) for ids in (9, torch.tensor([4, 8])))
    np.testing.assert_array_equal(whole[:, [4, 8]], part)


def test_warns_where_corrections_are_large():
    net = GaussianMixture.ring().network("eps")
    to_noise = make_path("ddpm-linear", "trailing", 1000)[:951]
    for window in (25, 50):
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            make_plan(SHARED, to_noise, window=window, windows=None)
    with pytest.warns(UserWarning, match=r"in 6 of 10 .*first in window 0, fine steps 0 to 99: 5.17 times"):
        make_plan(SHARED, to_noise, window=100, windows=None)
    with pytest.warns(UserWarning, match=r"in 1 of 40 .*first in window 39, fine steps 975 to 999: inf times"):
        plan_for(net, solver=SHARED, schedule="ddpm-linear", window=25, windows=None)
    with warnings.catch_warnings():  # smaller windows at both ends
        warnings.simplefilter("error")
        sizes = [*[25] * 16, *[50] * 11, 25, 13, 6, 4, 1, 1]
        plan_for(net, solver=SHARED, schedule="ddpm-linear", windows=sizes)
        plan_for(net, solver=SHARED, schedule="cosine", window=100)


@pytest.mark.parametrize("midpoints", ["bernoulli", "one", 2])
@pytest.mark.parametrize("schedule", ["ddpm-linear", "cosine", "edm"])
def test_safe_windows_are_as_large_as_they_may_be(schedule, midpoints):
    table = fine_table(usual_path(SHARED, schedule))
    for window in (25, 100):
        windows = list(Windows(table, window, "safe", midpoints))
        other = Windows(table, window, None, midpoints)
        assert sum(w.size for w in windows) == 1000
        for w in windows:
            assert other.gain(w) <= LARGE
            if w.size < window and w.end < 1000:
                assert other.gain(Window(w.start, w.end + 1, w.weight * (w.size + 1) / w.size)) > LARGE
    # where nothing is large the windows are those of the paper; towards clean data they are halved
    sizes = [w.size for w in Windows(fine_table(usual_path(SHARED, "ddpm-linear")), 50, "safe", "one")]
    assert sizes == [*[50] * 19, 26, 13, 6, 3, 1, 1]


@settings(max_examples=40, deadline=None)
@given(st.lists(st.integers(1, 30), min_size=1, max_size=8), st.sampled_from(["bernoulli", "one", 2]), st.data())
def test_windows_cover_the_fine_steps(sizes, midpoints, data):
    path = make_path("ddpm-linear", "rows", sum(sizes))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        windows = Windows(fine_table(path), 25, sizes, midpoints)
    assert [(w.start, w.end) for w in windows] == list(itertools.pairwise(np.cumsum([0, *sizes]).tolist()))
    window = data.draw(st.sampled_from(list(windows)))
    q = data.draw(st.integers(window.start + 1, window.end))
    middle = data.draw(st.integers(window.start, q - 1))
    whole = windows.move(window, window.start, q)
    if middle > window.start:  # two moves are one
        first, second = windows.move(window, window.start, middle), windows.move(window, middle, q)
        assert whole.a == pytest.approx(second.a * first.a, rel=1e-12)
        assert whole.b == pytest.approx(second.a * first.b + second.b, rel=1e-12)
        assert whole.s == pytest.approx(math.hypot(second.a * first.s, second.s), rel=1e-12)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"window": 0}, "window: got 0, allowed are whole numbers >= 1"),
        ({"window": 2.0}, "window: got 2.0"),
        ({"windows": [5, 4]}, r"windows: got \[5, 4\], allowed are .safe., None and a list .* sum 10"),
        ({"windows": [10, 0]}, r"windows: got \[10, 0\]"),
        ({"windows": 5}, "windows: got 5"),
        ({"midpoints": "two"}, "midpoints: got 'two', allowed are 'bernoulli', 'one' and whole numbers >= 1"),
        ({"midpoints": 0}, "midpoints: got 0"),
        ({"midpoints": True}, "midpoints: got True"),
        ({"table": "ddpm"}, "table: got 'ddpm', allowed are ddpm-small"),
        ({"eta": 0.5}, "eta: got 0.5 for the table 'ddpm-small'"),
        ({"midpoint_seed": -1}, r"midpoint_seed: got -1, allowed is a whole number in \[0, 2\^63\)"),
        ({"midpoint_seed": 1.5}, "midpoint_seed: got 1.5"),
        ({"hops": 3}, "has no option 'hops'"),
    ],
)
def test_refusals(options, message):
    with pytest.raises(ValueError, match=message):
        make_plan(SHARED, make_path("ddpm-linear", "rows", 10), **options)


def test_refused_paths():
    with pytest.raises(ValueError, match="path: a fine table works on eps_hat and needs alpha > 0"):
        make_plan(SHARED, make_path("flow", "uniform", 10))
    with pytest.raises(ValueError, match="from noise to data"):
        make_plan(SHARED, Path([0.9, 0.5], [0.1, 0.8], reverse=True))
