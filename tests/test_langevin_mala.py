"""MALA: against a plain loop, detailed balance, exactness; energies and estimators."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from scipy import stats

from fastsample import langevin
from fastsample.langevin.estimators import ESTIMATORS, estimator

from .langevin_cases import gaussian, mixture

ALPHA, SIGMA = 0.6, 0.8
CRITICAL = 1.949  # of sqrt(n) times the Kolmogorov-Smirnov distance: false alarm 0.1 %


def level_targets():
    """The mixture at a level: by score and energy, and as networks, one of which mixes state and output."""
    m = mixture()
    yield langevin.Score(lambda x: m.score(x, ALPHA, SIGMA), lambda x: -m.log_prob(x, ALPHA, SIGMA))
    yield langevin.AtLevel(m.network("eps"), ALPHA, SIGMA)
    yield langevin.AtLevel(m.network("v"), ALPHA, SIGMA)
    yield langevin.AtLevel(m.network("x0"), 2 * ALPHA, 2 * SIGMA)  # kappa is not 1


def plain(target_level, x, noise, uniforms, tau, name):
    """The textbook chain, with the proposal densities written out."""
    m, (alpha, sigma) = mixture(), target_level
    how = estimator(name)
    grad = lambda y: -m.score(y, alpha, sigma)  # noqa: E731
    energy = lambda y: -m.log_prob(y, alpha, sigma)  # noqa: E731
    states, ratios = [], []
    for xi, u in zip(noise, uniforms, strict=True):
        g = grad(x)
        y = x - tau * g + math.sqrt(2 * tau) * xi
        d, h = y - x, grad(y)
        if how.energy:
            df = energy(y) - energy(x)
        else:
            line = how.ends[0] * g + how.ends[1] * h
            for c, w in zip(how.nodes, how.weights, strict=True):
                line = line + w * grad(x + c * d)
            df = (d * line).sum(1)
        ratio = -df + ((d + tau * g).square().sum(1) - (tau * h - d).square().sum(1)) / (4 * tau)
        x = torch.where((torch.log(u) < ratio)[:, None], y, x)
        states.append(x)
        ratios.append(ratio)
    return torch.stack(states), torch.stack(ratios)


@pytest.mark.parametrize("name", ESTIMATORS)
def test_runs_are_the_textbook_loop(name):
    generator = torch.Generator().manual_seed(4)
    steps, batch, tau = 30, 6, 0.25
    x = torch.randn(batch, 4, generator=generator, dtype=torch.float64)
    noise = torch.randn(steps, batch, 4, generator=generator, dtype=torch.float64)
    u = torch.rand(steps, batch, generator=generator, dtype=torch.float64)
    given = {1 + n: xi for n, xi in enumerate(noise)} | {1 + steps: noise[0]}
    for number, target in enumerate(level_targets()):
        level = (2 * ALPHA, 2 * SIGMA) if number == 3 else (ALPHA, SIGMA)
        states, _ = plain(level, x, noise, u, tau, name)
        run = langevin.sample(
            target,
            x,
            steps=steps,
            step_size=tau,
            estimator=name,
            noise=given,
            uniforms=u,
            trace=True,
        )
        torch.testing.assert_close(run.trace, states, rtol=0, atol=1e-11)
        moved = (states != torch.cat([x[None], states[:-1]])).any(2).double().mean(0)
        np.testing.assert_allclose(run.report.acceptance, moved.numpy(), atol=1e-12)
        assert run.report.calls == 1 + steps * (1 + len(estimator(name).nodes))


def test_steps_and_the_warm_up_may_change_the_step():
    """Steps that depend on the iteration: the choice uses that of its proposal."""
    generator = torch.Generator().manual_seed(5)
    x = torch.randn(4, 4, generator=generator, dtype=torch.float64)
    noise = torch.randn(9, 4, 4, generator=generator, dtype=torch.float64)
    u = torch.rand(8, 4, generator=generator, dtype=torch.float64)
    taus = [0.3 / (1 + n) for n in range(9)]
    states, y = [], x
    for n in range(8):
        made, _ = plain((ALPHA, SIGMA), y, noise[n : n + 1], u[n : n + 1], taus[n], "energy")
        y = made[0]
        states.append(y)
    run = langevin.sample(
        next(level_targets()),
        x,
        steps=5,
        warmup=3,
        step_size=lambda n: taus[n],
        noise={1 + n: xi for n, xi in enumerate(noise)},
        uniforms=u,
        trace=True,
    )
    torch.testing.assert_close(run.trace, torch.stack(states[3:]), rtol=0, atol=1e-12)
    assert run.report.step_size == taus[7] and run.report.calls_warmup == 4


def distance(samples, cdf) -> float:
    return math.sqrt(len(samples)) * stats.kstest(samples, cdf).statistic


def test_a_gaussian_stays_what_it_is_at_any_step():
    """From exact draws, 20 steps with acceptance near 0.8 and 0.3: KS at 0.1 % each; LMC at such a step fails."""
    x = torch.randn(20000, 1, generator=torch.Generator().manual_seed(0))
    for tau, low, high in ((1.0, 0.7, 0.85), (3.0, 0.05, 0.5)):
        run = langevin.sample(gaussian(), x, steps=20, step_size=tau, seed=1, monitor=None)
        assert low < run.report.acceptance_mean < high
        assert distance(run.x[:, 0].numpy(), "norm") < CRITICAL
    run = langevin.sample(gaussian(), x, kernel="lmc", steps=20, step_size=1.0, seed=1, monitor=None)
    assert distance(run.x[:, 0].numpy(), "norm") > 5 * CRITICAL


def test_detailed_balance():
    """In equilibrium E[a(x_0) b(x_n)] = E[b(x_0) a(x_n)]; five standard errors, false alarm below 1e-6 per pair."""
    x = torch.randn(40000, 1, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    functions = [torch.sign, lambda y: y**3, lambda y: (y > 1).double(), lambda y: torch.exp(-(y**2))]
    for steps, tau in ((1, 1.5), (4, 1.0)):
        run = langevin.sample(gaussian(), x, steps=steps, step_size=tau, seed=2, monitor=None)
        for i, a in enumerate(functions):
            for b in functions[:i]:
                gap = a(x) * b(run.x) - b(x) * a(run.x)
                assert abs(gap.mean()) < 5 * gap.std() / math.sqrt(len(x))


@pytest.mark.parametrize(
    ("name", "keeps"), [("energy", True), ("simpson", True), ("line(3)", True), ("trapezoid", False)]
)
def test_a_mixture_stays_what_it_is(name, keeps):
    """12000 exact draws of the recorded mixture, 40 steps with acceptance near 0.8: KS of a coordinate at 0.1 %.

    The estimator that costs nothing corrects almost nothing: it must fail here.
    """
    m, count = mixture(), 12000
    x = m.sample(count, seed=3, alpha=ALPHA, sigma=0.3, dtype=torch.float64)
    target = langevin.AtLevel(m.network("eps"), ALPHA, 0.3)
    run = langevin.sample(target, x, steps=40, step_size=0.06, seed=1, estimator=name, monitor=None)
    spread = torch.sqrt(ALPHA**2 * m.std**2 + 0.09).numpy()

    def cdf(y, k):
        z = (y[:, None] - ALPHA * m.means[:, k].numpy()) / spread
        return stats.norm.cdf(z) @ m.weights.numpy()

    worst = max(distance(run.x[:, k].numpy(), lambda y, k=k: cdf(y, k)) for k in range(4))
    assert 0.7 < run.report.acceptance_mean < 0.99
    assert worst < CRITICAL if keeps else worst > CRITICAL, worst


def test_energies_by_autograd_by_pair_and_in_float64_agree():
    x = torch.linspace(-1, 1, 30, dtype=torch.float64).reshape(5, 6)
    fn = lambda y: (y**4 / 4 + torch.cos(y)).sum(1)  # noqa: E731
    targets = [
        langevin.Energy(fn),
        langevin.Energy(fn, lambda y: y**3 - torch.sin(y)),
        langevin.Energy(fn, wide=True),
        langevin.Score(lambda y: -(y**3) + torch.sin(y), fn),
    ]
    runs = [langevin.sample(t, x, steps=30, step_size=0.2, seed=0, monitor=None) for t in targets]
    for run in runs[1:]:
        torch.testing.assert_close(run.x, runs[0].x, rtol=1e-12, atol=1e-12)
    low = [
        langevin.sample(t, x.float(), steps=30, step_size=0.2, seed=0, monitor=None) for t in (targets[0], targets[2])
    ]
    torch.testing.assert_close(low[0].x, low[1].x, rtol=1e-3, atol=1e-3)
    assert low[0].x.dtype == torch.float32


def test_radii_hold_the_chain():
    x = torch.zeros(50, 2)
    run = langevin.sample(gaussian(), x, steps=100, step_size=1.0, seed=0, radii=(None, 1.0), trace=True, monitor=None)
    assert run.trace.norm(dim=2).max() <= 1.0 and run.trace.norm(dim=2).max() > 0.9
    free = langevin.sample(gaussian(), x, steps=100, step_size=1.0, seed=0, trace=True, monitor=None)
    assert free.trace.norm(dim=2).max() > 1.5


def test_adaptation_reaches_the_rate():
    x = torch.randn(64, 10, generator=torch.Generator().manual_seed(0))
    for start in (1e-3, 5.0):
        run = langevin.sample(
            gaussian(), x, steps=300, warmup=200, step_size=start, target_acceptance=0.574, seed=0, monitor=None
        )
        assert abs(run.report.acceptance_mean - 0.574) < 0.04
        # the best step of d like coordinates is about 1.36 d^(-1/3)
        assert 0.4 < run.report.step_size < 1.2
    each = langevin.sample(
        gaussian(),
        x,
        steps=300,
        warmup=400,
        step_size=0.1,
        target_acceptance=0.574,
        adapt_each=True,
        seed=0,
        monitor=None,
    )
    assert each.report.step_size.shape == (64,)
    assert abs(each.report.acceptance_mean - 0.574) < 0.08 and np.abs(each.report.acceptance - 0.574).max() < 0.3
