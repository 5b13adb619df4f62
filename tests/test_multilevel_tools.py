"""Pilot runs and learned probabilities of multilevel Euler-Maruyama, and the ladder of digit networks."""

from __future__ import annotations

import math
import sys

import numpy as np
import pytest
import torch

from fastsample import Ladder, Network, sample
from fastsample.multilevel import learn, pilot
from fastsample.path import Path
from fastsample.solvers import multilevel as ml

MEAN = torch.tensor([1.0, -0.5, 0.3, 2.0], dtype=torch.float64)
COSTS = tuple(2.0 ** (2.5 * k) for k in range(3))


def ladder(bump: float = 1.8) -> Ladder:
    """Levels whose errors halve, and are large around t = 1 alone."""
    g = torch.Generator().manual_seed(0)
    w = torch.randn(3, 4, 4, generator=g, dtype=torch.float64)

    def level(k: int) -> Network:
        def predict(x, t):
            t = t[:, None]
            alpha, sigma = torch.exp(-t / 2), torch.sqrt(-torch.expm1(-t))
            size = 0.2 + bump * torch.exp(-(((t - 1.0) / 0.3) ** 2))
            eps = sigma * (x - alpha * MEAN) / (0.49 * alpha**2 + sigma**2)
            return eps + 0.5 * 2.0**-k * size * torch.sin(x @ w[k].T)

        return Network(predict, "eps", shape=(4,))

    return Ladder([level(k) for k in range(3)], COSTS)


def path(steps: int) -> Path:
    t = np.linspace(3.0, 0.05, steps + 1)
    return Path(np.exp(-t / 2), np.sqrt(-np.expm1(-t)), t)


def error(p, steps: int, batch: int = 4000) -> tuple[float, float]:
    """Mean squared distance to the run of the last level with the same noise, and the cost."""
    common = {"solver": "ml-em", "path": path(steps), "seed": 7, "dtype": torch.float64, "table": "euler-maruyama"}
    stats: dict = {}
    x = sample(ladder(), (batch, 4), p=p.tolist(), shared=False, stats=stats, **common)
    best = sample(ladder(), (batch, 4), p=[1.0] * 3, **common)
    return float((x - best).square().sum(1).mean()), stats["cost"]


def test_a_pilot_run_measures_the_differences_of_levels():
    measured = pilot(ladder(), (500, 4), path(30), table="euler-maruyama", dtype=torch.float64)
    assert measured.variances.shape == (30, 3)
    times = path(30).t[:-1]
    inside, outside = np.abs(times - 1) < 0.2, np.abs(times - 1) > 1
    assert measured.variances[inside, 1:].min() > 10 * measured.variances[outside, 1:].max()


def test_the_optimum_of_a_pilot_run_beats_the_law_at_equal_cost():
    """Measured: 0.24 to 0.5 of the error; 4,000 samples leave 5 % of noise in either."""
    steps, share = 40, 0.3
    p = pilot(ladder(), (500, 4), path(steps), table="euler-maruyama", dtype=torch.float64).probabilities(share)
    law = ml.at_cost(lambda c: ml.law(3, 2.5, c), share * steps * COSTS[-1], COSTS, steps)
    (mine, my_cost), (theirs, their_cost) = error(p, steps), error(law, steps)
    assert my_cost == pytest.approx(their_cost, rel=0.03)
    assert mine < 0.7 * theirs


def test_learned_probabilities_lower_error_and_cost_together():
    """From a start that asks too often early and too seldom at the bump; the same objective before and after."""
    steps, price = 20, 2e-5
    start = [1.0, 0.3, 0.3]
    made = learn(ladder(), (64, 4), path(steps), price=price, start=start, rounds=40, rate=0.3, table="euler-maruyama")
    assert made.p.shape == (steps, 3)
    assert (made.p[:, 0] == 1.0).all()
    (before, dear), (after, cheap) = error(np.tile(start, (steps, 1)), steps), error(made.p, steps)
    assert after + price * cheap < 0.85 * (before + price * dear)
    bump = np.abs(path(steps).t[:-1] - 1.0).argmin()
    assert made.p[bump, 1:].mean() > made.p[0, 1:].mean()  # it asks where the levels differ


def test_the_forward_gradient_is_that_of_the_objective():
    """One step, so that the expectation over all draws is exact: the mean estimate of many rounds against it.

    The tolerance is 5 standard errors of 400 rounds, 2e-5 over all components; seed fixed.
    """
    from fastsample.multilevel import base as bases

    module = sys.modules["fastsample.multilevel.learn"]

    levels, one, price = ladder(), path(2)[:2], 1e-3
    base = bases.Base(levels, one, "euler-maruyama", 0.0, None)
    hats, costs = module._hats(1, 1), torch.tensor(COSTS, dtype=torch.float64)
    theta = torch.tensor([[0.4, -0.3]], dtype=torch.float64)
    g = torch.Generator().manual_seed(3)
    rounds = [module._round(base, hats, theta, costs, (32, 4), 4, price, g, torch.float64, 0.0)[2] for _ in range(400)]
    estimates = torch.stack(rounds)[:, 0]

    x = base.start((20000, 4), g, torch.float64)
    eps = [base.eps(0, x, k) for k in range(3)]
    gaps = [float((eps[k] - eps[k - 1]).square().sum(1).mean()) * float(base.weights[0]) ** 2 for k in (1, 2)]
    free = theta.clone().requires_grad_()
    p = module._table(hats, free)
    objective = sum(gap * (1 / p[0, k] - 1) for k, gap in zip((1, 2), gaps, strict=True))
    exact = torch.autograd.grad(objective + price * module._cost(p, costs), free)[0][0]
    spread = estimates.std(0) / math.sqrt(len(estimates))
    assert (estimates.mean(0) - exact).abs().le(5 * spread + 0.02 * exact.abs()).all()


def test_conditions_are_those_of_the_samples():
    """A level that says its condition: the pilot and the copies of a round see the same one for the same sample."""
    seen = []

    def net(x, t, label):
        seen.append(label.reshape(-1, 3))
        return 0.1 * x + label[:, None]

    conditional = Ladder([Network(net, "eps", shape=(4,), classes=9)] * 2, [1.0, 2.0])
    labels = torch.tensor([4, 0, 7])
    common = {"cond": labels, "dtype": torch.float64}
    assert pilot(conditional, (3, 4), path(4), **common).variances[:, 1].max() == 0.0
    learn(conditional, (3, 4), path(4), price=1e-3, start=[1.0, 0.5], rounds=2, directions=2, **common)
    assert all((part == labels).all() for part in seen)
    assert max(map(len, seen)) == 3  # a sample, and one copy per direction


def test_refusals():
    with pytest.raises(TypeError, match="ladder: got Network"):
        pilot(Network(lambda x, t: x), (2, 4), path(3))
    for wrong in ({"price": 0.0}, {"start": [0.5, 0.5, 0.5]}, {"start": [1.0]}, {"knots": 0}, {"rounds": 1.5}):
        given = {"price": 1.0, "start": [1.0, 0.5, 0.5], **wrong}
        with pytest.raises(ValueError, match=f"{next(iter(wrong))}: got"):
            learn(ladder(), (2, 4), path(3), **given)
