"""The Gaussian mixture against plain numpy, against autograd, and its samples against its law."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from fastsample import GaussianMixture

LEVELS = [(1.0, 0.0), (0.9, 0.436), (0.3, 0.954), (0.01, 1.0), (0.0, 1.0), (1.0, 7.5)]


def mixture(shape=(3,), modes=5, seed=0) -> GaussianMixture:
    rng = np.random.default_rng(seed)
    return GaussianMixture(
        torch.from_numpy(rng.normal(size=(modes, *shape)) * 2), rng.uniform(0.1, 0.9, modes), rng.uniform(0.5, 2, modes)
    )


def by_hand(m: GaussianMixture, x: np.ndarray, alpha: float, sigma: float):
    """One sample, one mode at a time: log-density, E[x0 | x], E[eps | x]."""
    logs, data, noise = [], [], []
    for weight, mean, std in zip(m.weights.numpy(), m.means.numpy(), m.std.numpy(), strict=True):
        away, variance = x - alpha * mean, alpha**2 * std**2 + sigma**2
        logs.append(
            math.log(weight) - 0.5 * (away**2).sum() / variance - 0.5 * x.size * math.log(2 * math.pi * variance)
        )
        data.append(mean + alpha * std**2 / variance * away)
        noise.append(sigma / variance * away)
    top = max(logs)
    density = top + math.log(sum(math.exp(v - top) for v in logs))
    share = [math.exp(v - density) for v in logs]
    x0, eps = (sum(r * part for r, part in zip(share, parts, strict=True)) for parts in (data, noise))
    return density, x0, eps


@pytest.mark.parametrize(("alpha", "sigma"), LEVELS)
def test_against_numpy(alpha, sigma):
    m = mixture((2, 3))
    x = torch.from_numpy(np.random.default_rng(1).normal(size=(7, 2, 3)))
    hand = [by_hand(m, row, alpha, sigma) for row in x.numpy()]
    log_prob, x0, eps = (torch.from_numpy(np.stack(part)) for part in zip(*hand, strict=True))
    close = {"rtol": 1e-11, "atol": 1e-11}
    torch.testing.assert_close(m.log_prob(x, alpha, sigma), log_prob, **close)
    torch.testing.assert_close(m.x0(x, alpha, sigma), x0, **close)
    torch.testing.assert_close(m.eps(x, alpha, sigma), eps, **close)
    torch.testing.assert_close(m.v(x, alpha, sigma), alpha * eps - sigma * x0, **close)
    torch.testing.assert_close(m.flow(x, alpha, sigma), eps - x0, **close)
    if sigma:
        torch.testing.assert_close(m.score(x, alpha, sigma), -eps / sigma, **close)
    torch.testing.assert_close(alpha * m.x0(x, alpha, sigma) + sigma * m.eps(x, alpha, sigma), x, **close)


@pytest.mark.parametrize(("alpha", "sigma"), LEVELS)
def test_score_is_the_gradient_of_the_density(alpha, sigma):
    m = mixture()
    x = torch.from_numpy(np.random.default_rng(2).normal(size=(5, 3))).requires_grad_()
    (gradient,) = torch.autograd.grad(m.log_prob(x, alpha, sigma).sum(), x)
    torch.testing.assert_close(m.score(x, alpha, sigma), gradient, rtol=1e-10, atol=1e-10)


def test_density_has_mass_one():
    m = mixture((1,))
    x = torch.linspace(-30, 30, 200_001, dtype=torch.float64)[:, None]
    for alpha, sigma in LEVELS[:3]:
        mass = torch.trapezoid(m.log_prob(x, alpha, sigma).exp(), x[:, 0])
        assert abs(float(mass) - 1) < 1e-9


def test_levels_per_sample():
    m = mixture()
    x = torch.randn(len(LEVELS), 3, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    alpha, sigma = torch.tensor(LEVELS, dtype=torch.float64).T
    for name in ("eps", "x0", "v", "flow", "score", "log_prob", "responsibilities"):
        together = getattr(m, name)(x, alpha, sigma)
        alone = torch.cat([getattr(m, name)(x[i : i + 1], a, s) for i, (a, s) in enumerate(LEVELS)])
        torch.testing.assert_close(together, alone, rtol=1e-12, atol=1e-12)


def test_groups_of_modes_change_nothing(monkeypatch):
    m, x = mixture(modes=7), torch.randn(4, 3, generator=torch.Generator().manual_seed(0))
    whole = m.eps(x, 0.6, 0.8)
    monkeypatch.setattr("fastsample.models.mixture._CHUNK", 2 * x.numel())
    assert torch.equal(m.eps(x, 0.6, 0.8), whole)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_dtypes(dtype):
    """Computed in float32 from the rounded input: one rounding of the output on top."""
    m = mixture((4,))
    x = torch.randn(50, 4, generator=torch.Generator().manual_seed(0)).to(dtype)
    for name in ("eps", "x0", "v", "score"):
        got, want = getattr(m, name)(x, 0.8, 0.6), getattr(m, name)(x.double(), 0.8, 0.6)
        assert got.dtype == dtype
        # the responsibilities err by that of a log-density of size ~100, the means they weigh have size ~4
        bound = 100 * 2.0**-23 * 4 * (1 + want.abs()) + torch.finfo(dtype).eps * want.abs()
        assert bool(((got.double() - want).abs() <= bound).all())


def test_high_dimension_stays_finite():
    m = GaussianMixture.ring(4)
    big = GaussianMixture(torch.randn(4, 3, 64, 64, generator=torch.Generator().manual_seed(0)), 0.5)
    for model in (m, big):
        x = model.sample(3, seed=1, alpha=0.7, sigma=0.71)
        assert bool(model.eps(x, 0.7, 0.71).isfinite().all())
        assert bool(model.log_prob(x, 0.7, 0.71).isfinite().all())


def test_point_masses():
    """std 0: an empirical data set, whose ideal denoiser picks the nearest point as the noise vanishes."""
    data = torch.tensor([[0.0, 0.0], [1.0, 1.0]])
    m = GaussianMixture(data, 0.0)
    x = torch.tensor([[0.1, 0.2], [0.9, 0.7]])
    torch.testing.assert_close(m.x0(x, 1.0, 0.02), data)


def normal_cdf(x: np.ndarray) -> np.ndarray:
    return 0.5 * (1 + np.array([math.erf(v / math.sqrt(2)) for v in x.ravel()]).reshape(x.shape))


@pytest.mark.parametrize(("alpha", "sigma"), [(1.0, 0.0), (0.6, 0.8)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_samples_follow_the_law(alpha, sigma, dtype):
    """Projections on 4 directions: sup |F_n - F| by the Dvoretzky-Kiefer-Wolfowitz bound, false alarm 1e-6 each.

    The distance is taken on a grid of 400 points, which can only make it smaller.
    """
    m, n = mixture((2, 2)), 40_000
    x = m.sample(n, seed=3, alpha=alpha, sigma=sigma, dtype=dtype).double().flatten(1).numpy()
    limit = math.sqrt(math.log(2 / 1e-6) / (2 * n))
    std = np.sqrt(alpha**2 * m.std.numpy() ** 2 + sigma**2)
    for direction in np.random.default_rng(4).normal(size=(4, 4)):
        direction /= np.linalg.norm(direction)
        grid = np.linspace(-8, 8, 400)
        centre = alpha * m.means.flatten(1).numpy() @ direction
        truth = normal_cdf((grid[:, None] - centre) / std) @ m.weights.numpy()
        found = np.searchsorted(np.sort(x @ direction), grid, side="right") / n
        assert np.abs(found - truth).max() < limit


def test_samples_belong_to_seed_and_index():
    m = mixture()
    whole = m.sample(64, seed=5)
    assert torch.equal(whole[10:20], m.sample(sample_ids=range(10, 20), seed=5))
    assert not torch.equal(whole, m.sample(64, seed=6))
    assert not torch.equal(whole[:32], whole[32:])


def test_samples_are_independent_of_the_noise_of_a_run():
    """Same seed: the correlation with draw 0 is that of chance, |r| < 5.2 / sqrt(n) (false alarm 2e-7)."""
    from fastsample import noise

    m, n = GaussianMixture(torch.zeros(1, 1), 1.0), 20_000
    xi = noise.normal_like(torch.empty(n, 1), noise.keys(0, n))
    r = float(torch.corrcoef(torch.cat([m.sample(n, seed=0), xi], 1).T)[0, 1])
    assert abs(r) < 5.2 / math.sqrt(n)


@pytest.mark.parametrize("prediction", ["eps", "x0", "v", "flow"])
def test_network_is_the_prediction_at_its_level(prediction):
    m = mixture()
    network = m.network(prediction)
    x = torch.randn(4, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    t = torch.tensor([0.1, 0.3, 0.6, 0.9], dtype=torch.float64)
    if prediction == "flow":
        told, alpha, sigma = t, 1 - t, t
    else:
        angle = t * math.pi / 2
        told, alpha, sigma = -angle.tan().log(), angle.cos(), angle.sin()
    torch.testing.assert_close(network(x, told), getattr(m, prediction)(x, alpha, sigma), rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize(
    ("arguments", "error", "words"),
    [
        (("no",), TypeError, "means"),
        ((torch.zeros(3),), ValueError, r"means: got shape \(3,\)"),
        ((torch.zeros(0, 2),), ValueError, "means"),
        ((torch.full((1, 2), math.nan),), ValueError, "means: got NaN"),
        ((torch.zeros(2, 2), -1.0), ValueError, "std: got -1"),
        ((torch.zeros(2, 2), [1.0, 1.0, 1.0]), ValueError, "std: got shape"),
        ((torch.zeros(2, 2), 1.0, [1.0]), ValueError, "weights: got shape"),
        ((torch.zeros(2, 2), 1.0, [0.0, 0.0]), ValueError, "weights: need"),
    ],
)
def test_bad_mixtures(arguments, error, words):
    with pytest.raises(error, match=words):
        GaussianMixture(*arguments, *([1.0] if len(arguments) == 1 else []))


def test_bad_calls():
    m = mixture()
    with pytest.raises(TypeError, match="x: got"):
        m.eps(torch.zeros(2, 3, dtype=torch.int64), 1.0, 0.5)
    with pytest.raises(ValueError, match=r"x: got shape \(2, 4\), need \(B, 3\)"):
        m.eps(torch.zeros(2, 4), 1.0, 0.5)
    with pytest.raises(ValueError, match="sigma: got shape"):
        m.eps(torch.zeros(2, 3), 1.0, torch.ones(3))
    with pytest.raises(ValueError, match="count, sample_ids"):
        m.sample()
    for prediction in ("noise", "score"):
        with pytest.raises(ValueError, match=f"prediction: got '{prediction}', allowed are eps, x0, v, flow"):
            m.network(prediction)
