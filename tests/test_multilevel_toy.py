"""Multilevel Euler-Maruyama where the answer is known: cost and error, growth of perturbations, bits of samples."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from benchmarks.papers.multilevel import even, toy
from fastsample import Ladder, Network, sample
from fastsample.multilevel import pilot
from fastsample.solvers.fine_tables import fine_table

CHAINS = 512
COMMON = {"solver": "ml-em", "seed": 1, "dtype": torch.float64, "table": "euler-maruyama"}


def error_and_cost(ladder, steps, **options):
    """Root mean square distance per coordinate to the run with exact eps and the same noise, and the cost."""
    stats: dict = {}
    path = even(steps)
    exact = sample(toy([math.inf]), (CHAINS, 4), path=path, p=[1.0], **COMMON)
    made = sample(ladder, (CHAINS, 4), path=path, stats=stats, shared=False, **COMMON, **options)
    return float((made - exact).square().mean().sqrt()), stats["cost"]


def test_at_fixed_rates_cost_and_error_do_not_depend_on_the_number_of_steps():
    """512 samples of their own draws: the relative standard error of an error is about 3 %, the seed is fixed."""
    rates = [1e4 * 2.0 ** (-2.25 * k) for k in range(5)]
    few, many = (error_and_cost(toy(range(5)), steps, rates=rates) for steps in (200, 800))
    assert many[0] == pytest.approx(few[0], rel=0.3)
    assert many[1] < 1.7 * few[1]  # four times the steps; what the first levels cost is still growing


def test_less_cost_at_equal_error():
    """Measured: 0.016 at 0.1 of the cost; level 4 in every step has 0.023 at 0.18, level 5 0.0145 at 1."""
    steps, ladder = 400, toy(range(6))
    measured = pilot(ladder, (64, 4), even(steps), table="euler-maruyama", gains=True, dtype=torch.float64)
    mine, cost = error_and_cost(ladder, steps, p=measured.probabilities(0.12))
    below, dear = error_and_cost(toy([4]), steps, p=[1.0])
    assert mine < below
    assert cost < 0.75 * dear


def test_gains_are_the_growth_of_perturbations():
    """A linear network: the derivative of each step is a + b lambda, the estimate |w| / sqrt(n) times their product.

    With 2,000 elements 6 standard errors are 10 %; the seed is fixed.
    """
    rate, path = 0.3, even(20)
    ladder = Ladder([Network(lambda x, t, r=r: r * x, "eps", shape=(4,)) for r in (0.1, rate)], [1.0, 2.0])
    measured = pilot(ladder, (500, 4), path, table="euler-maruyama", gains=True, dtype=torch.float64)
    fine = fine_table(path, "euler-maruyama")
    steps = fine.a + fine.b * rate
    exact = np.array([np.prod(steps[i + 1 :]) for i in range(20)])
    assert measured.gains / np.abs(exact) == pytest.approx(1.0, rel=0.1)
    assert pilot(ladder, (4, 4), path, dtype=torch.float64).gains is None


def test_gains_lower_the_error_at_equal_cost():
    """Late errors are not forgotten any more: measured 0.79 of the error without gains; 512 samples leave 4 %."""
    ladder, steps = toy(range(4)), 100
    errors = []
    for gains in (False, True):
        measured = pilot(ladder, (64, 4), even(steps), table="euler-maruyama", gains=gains, dtype=torch.float64)
        made = sample(ladder, (CHAINS, 4), path=even(steps), shared=False, p=measured.probabilities(0.2), **COMMON)
        best = sample(toy([3]), (CHAINS, 4), path=even(steps), p=[1.0], **COMMON)
        errors.append(float((made - best).square().mean().sqrt()))
    assert errors[1] < 0.92 * errors[0]


@pytest.mark.parametrize("draws", ["independent", "nested", "systematic"])
def test_samples_have_the_same_bits_however_the_batch_is_cut(draws):
    ladder = Ladder([Network(lambda x, t, r=r: r * x, shape=(5,)) for r in (0.1, 0.2, 0.25)], [1.0, 3.0, 9.0])
    common = {"solver": "ml-em", "steps": 40, "seed": 3, "shared": False, "budget": 0.4, "draws": draws}
    whole = sample(ladder, 9, **common)
    parts = [sample(ladder, len(ids), sample_ids=ids, **common) for ids in ([0], [1, 2, 3, 4], [5, 6, 7, 8])]
    assert torch.equal(whole, torch.cat(parts))
    assert not torch.equal(whole, sample(ladder, 9, level_seed=1, **common))


@pytest.mark.parametrize("draws", ["independent", "nested", "systematic"])
def test_the_cost_of_a_run_is_the_expected_one(draws):
    """The mean of 2,000 samples; 6 standard errors of the dearest level's count are below 3 %."""
    stats: dict = {}
    ladder = Ladder([Network(lambda x, t: 0.1 * x, shape=(2,))] * 4, [1.0, 3.0, 9.0, 27.0])
    sample(ladder, 2000, solver="ml-em", steps=60, seed=0, shared=False, budget=0.3, draws=draws, stats=stats)
    assert stats["cost"] == pytest.approx(stats["expected_cost"], rel=0.03)
    assert stats["expected_cost"] == pytest.approx(0.3 * stats["cost_of_last_level"], rel=1e-3)


def test_the_last_steps_can_be_those_of_the_last_level():
    stats: dict = {}
    ladder = Ladder([Network(lambda x, t, r=r: r * x, shape=(2,)) for r in (0.1, 0.2)], [1.0, 10.0])
    common = {"solver": "ml-em", "steps": 10, "seed": 0, "p": [1.0, 1e-9], "stats": stats}
    sample(ladder, 2, **common)
    assert stats["calls_per_level"] == [10.0, 0.0]
    sample(ladder, 2, final=3, **common)
    assert stats["calls_per_level"] == [7.0, 3.0]


def test_steps_that_ask_nothing_are_steps_of_a_zero_prediction():
    """p_0 below 1: no level at all in most steps; then x' = a x + s xi."""
    ladder = Ladder([Network(lambda x, t: torch.full_like(x, math.nan), shape=(2,))], [1.0])
    stats: dict = {}
    x = torch.randn(3, 2, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    path = even(8)
    made = sample(ladder, x, solver="ml-em", path=path, table="ddim", p=[1e-12], seed=0, stats=stats)
    assert stats["nfe"] == 0
    assert torch.allclose(made, float(np.prod(fine_table(path, "ddim").a)) * x, rtol=1e-12)
