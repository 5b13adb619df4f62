"""Split R-hat and effective sample size: known values of AR(1) chains, a direct evaluation, edges; reports."""

from __future__ import annotations

import json
import math

import numpy as np
import pytest
import torch
from scipy import stats

from fastsample import langevin
from fastsample.langevin import bulk_ess, split_rhat

from .langevin_cases import gaussian


def ar1(phi: float, draws: int, chains: int, seed: int = 0) -> np.ndarray:
    rng = np.random.default_rng(seed)
    x = np.empty((draws, chains))
    x[0] = rng.standard_normal(chains)
    for i in range(1, draws):
        x[i] = phi * x[i - 1] + math.sqrt(1 - phi * phi) * rng.standard_normal(chains)
    return x


def direct(x: np.ndarray) -> tuple[float, float]:
    """R-hat and bulk effective size by the formulas, without transforms."""
    half = len(x) // 2
    halves = np.concatenate([x[:half], x[len(x) - half :]], axis=1)

    def scores(y):
        return stats.norm.ppf((stats.rankdata(y).reshape(y.shape) - 0.375) / (y.size + 0.25))

    def rhat(y):
        within, between = y.var(0, ddof=1).mean(), y.mean(0).var(ddof=1)
        return math.sqrt(((half - 1) / half * within + between) / within)

    z = scores(halves)
    within, total = z.var(0, ddof=1).mean(), (half - 1) / half * z.var(0, ddof=1).mean() + z.mean(0).var(ddof=1)
    centred = z - z.mean(0)
    rho = [1 - (within - (centred[: half - t] * centred[t:]).sum(0).mean() / half) / total for t in range(half)]
    rho[0], tau, last = 1.0, -1.0, math.inf
    for t in range(0, half - 1, 2):
        pair = rho[t] + rho[t + 1]
        if pair <= 0:
            break
        last = min(last, pair)
        tau += 2 * last
    return max(rhat(z), rhat(scores(np.abs(halves - np.median(halves))))), z.size / max(tau, 1 / math.log10(z.size))


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize(("draws", "chains", "phi"), [(50, 4, 0.5), (51, 1, 0.0), (80, 3, -0.6), (8, 5, 0.9)])
def test_against_the_formulas(draws, chains, phi, seed):
    x = np.exp(ar1(phi, draws, chains, seed))  # ranks do not see the exponential
    x[3] = x[2]  # ties
    rhat, ess = direct(x)
    assert split_rhat(x) == pytest.approx(rhat, rel=1e-12)
    assert bulk_ess(x) == pytest.approx(ess, rel=1e-9)


@pytest.mark.parametrize("phi", [0.0, 0.5, 0.9, -0.5])
def test_effective_size_of_ar1(phi):
    """S (1 - phi) / (1 + phi); the estimator's own spread here is some 4 %, the seed is fixed."""
    draws, chains = 4000, 8
    ess = float(bulk_ess(ar1(phi, draws, chains)))
    known = draws * chains * (1 - phi) / (1 + phi)
    assert ess == pytest.approx(min(known, draws * chains * math.log10(draws * chains)), rel=0.15)
    assert split_rhat(ar1(phi, draws, chains)) < 1.01


def test_chains_that_disagree_are_told():
    x = ar1(0.3, 1000, 4)
    moved, wide, drifting = x.copy(), x.copy(), x + np.linspace(0, 3, 1000)[:, None]
    moved[:, 0] += 2
    wide[:, 0] *= 4
    for bad in (moved, wide, drifting):
        assert split_rhat(bad) > 1.1
    assert split_rhat(np.stack([x, moved, wide], 2)).shape == (3,)


def test_nothing_to_say():
    for x in (np.zeros((20, 4)), np.zeros((3, 4)), np.full((20, 2), np.nan), np.ones((0, 3))):
        assert np.isnan(split_rhat(x)) and np.isnan(bulk_ess(x))
    with pytest.raises(ValueError, match=r"draws: got shape \(5,\)"):
        split_rhat(np.zeros(5))


def test_a_run_reports_an_ar1_chain_as_what_it_is():
    """LMC on N(0, 1) is AR(1) with phi = 1 - h; thinned, phi^thin."""
    for thin in (1, 5):
        run = langevin.sample(
            gaussian(), torch.zeros(20, 1), kernel="lmc", steps=4000, warmup=50, thin=thin, step_size=0.2, seed=0
        )
        phi = 0.8**thin
        assert run.report.draws == 4000 // thin and run.report.watched == ("x[0]",)
        assert run.report.ess[0] == pytest.approx(20 * 4000 / thin * (1 - phi) / (1 + phi), rel=0.15)
        assert run.report.rhat[0] < 1.01


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
def test_large_states_are_watched_in_any_dtype(dtype):
    x = torch.zeros(2, 3, 20, dtype=dtype)
    score = langevin.Score(lambda y: -y)
    run = langevin.sample(score, x, kernel="lmc", steps=9, step_size=0.1, seed=0, trace=True)
    seen = run.trace.double().square().mean((2, 3))
    assert run.report.rhat[1] == pytest.approx(split_rhat(seen.numpy()), rel=1e-3)


def test_what_is_watched_and_said():
    x = torch.zeros(6, 3, 20)
    run = langevin.sample(gaussian(), x, steps=40, step_size=0.1, seed=0)
    assert run.report.watched[:2] == ("mean", "mean square") and len(run.report.watched) == 10
    assert run.report.watched[2] == "x[0]" and run.report.watched[-1] == "x[59]"
    own = langevin.sample(gaussian(), x, steps=40, step_size=0.1, seed=0, monitor=lambda y: y[:, 0, :2])
    assert own.report.watched == ("monitor[0]", "monitor[1]") and own.report.ess.shape == (2,)
    json.dumps(own.report.to_dict(), allow_nan=False)
    assert "acceptance" in str(own.report) and "mala: 0 + 40 steps, 41 calls" in str(own.report)
    none = langevin.sample(gaussian(), x, kernel="lmc", steps=4, step_size=0.1, seed=0, monitor=None)
    assert none.report.watched == () and none.report.acceptance is None and none.report.acceptance_mean is None
    json.dumps(none.report.to_dict(), allow_nan=False)
    with pytest.raises(ValueError, match=r"monitor: returned \(3,\)"):
        langevin.sample(gaussian(), x, steps=4, step_size=0.1, monitor=lambda y: y[:3, 0, 0])
    with pytest.raises(ValueError, match="monitor: got 'all'"):
        langevin.sample(gaussian(), x, steps=4, step_size=0.1, monitor="all")
