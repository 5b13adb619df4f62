"""Reverse transition kernels against their exact law: identities on the host, and Kolmogorov-Smirnov distances.

Statistical tests have fixed seeds; a distance of n independent chains to the law they follow exceeds 1.95 / sqrt(n)
once in a thousand.
"""

from __future__ import annotations

import numpy as np
import pytest
import torch
from scipy.linalg import expm

from fastsample import GaussianMixture
from fastsample.langevin import estimators
from fastsample.loop import drive
from fastsample.path import Path
from fastsample.procedures import kernel_moves, kernel_target
from fastsample.solvers.express import Network as Predicts

from .kernels import ExactKernel, begin, ks, mixture_cdf, network_of, ou, recorded_mixture

CHAINS = 20000
CRITICAL = 1.95 / CHAINS**0.5  # 0.0138
SIX = GaussianMixture.ring(6, 4.0, 0.3)
REVERSIBLE = ("energy", "trapezoid", "simpson", "line(1)", "line(2)", "line(3)")


def distances(name, path=None, chains=CHAINS, **options):
    """Distances of both coordinates of one kernel of the six modes, at x = (0.9, 0.35), and the acceptance."""
    path = ou([0.8, 0.5]) if path is None else path
    x = torch.tensor([[0.9, 0.35]], dtype=torch.float64).expand(chains, 2).clone()
    fn, energy = network_of(SIX, path)
    run = begin(name, path, x, energy=energy, **{"init": "prior", "width": 0.0, **options})
    drive(run, fn)
    weights, means, variances = ExactKernel(SIX, path[0], path[1]).at(x[:1].numpy())
    laws = [mixture_cdf(weights[0], means[0, :, i], variances) for i in range(2)]
    found = [ks(run.state[:, i].numpy(), law) for i, law in enumerate(laws)]
    return max(found), run.stats().get("acceptance")


@pytest.mark.parametrize(("theta", "acceptance"), [(0.3, 0.954), (1.0, 0.77)])
def test_mala_draws_from_the_kernel(theta, acceptance):
    """60 moves from the prior, exact energies: no bias at either step; false alarm 4e-3 for the two."""
    distance, rate = distances("rtk-mala", inner=60, theta=theta, estimator="energy")
    assert distance < CRITICAL
    assert rate == pytest.approx(acceptance, abs=0.004)


def test_estimators_of_the_energy():
    """Simpson and line(2) are as good as the energy; the free ones leave the bias of the unadjusted chain, 0.09.

    False alarm 4e-3; the standard deviation of the large distances at 8000 chains is 0.006."""
    found = {name: distances("rtk-mala", inner=60, theta=1.0, estimator=name)[0] for name in ("simpson", "line(2)")}
    assert max(found.values()) < CRITICAL
    for name in ("trapezoid", "taylor1"):
        assert 0.05 < distances("rtk-mala", chains=8000, inner=60, theta=1.0, estimator=name)[0] < 0.1
    assert 0.06 < distances("rtk-ula", chains=8000, inner=60, theta=1.0)[0] < 0.11


def test_the_bias_of_uld_follows_the_step():
    found = [distances("rtk-uld", inner=60, theta=theta)[0] for theta in (0.3, 0.6, 1.0)]
    assert found[0] < 0.02 < found[2] < 0.045
    assert found == sorted(found)


@pytest.mark.parametrize(("solver", "options"), [("rtk-uld", {"theta": 0.15}), ("rtk-ula", {"theta": 0.08})])
def test_long_chains_of_small_steps_end_in_the_law(solver, options):
    """Bias below 0.005 of what remains; false alarm 2e-3 at 5000 chains."""
    inner = int(60 / options["theta"] ** (1 if solver == "rtk-uld" else 0.8))
    assert distances(solver, chains=5000, inner=inner, **options)[0] < 1.95 / 5000**0.5 + 0.005


def test_the_step_of_high_dimensions():
    """The usual theta on a Gaussian of 1000 dimensions that starts in its law: the acceptance of the theory, 0.574."""
    path = Path([0.0, 0.6], [1.0, 0.8], [1.0, 0.8])
    x = torch.zeros(400, 1000, dtype=torch.float64)
    run = begin("rtk-mala", path, x, energy=lambda x, t: 0.5 * x.square().sum(1), width=1.0, inner=4)
    drive(run, lambda x, t: -x)
    assert run.stats()["theta"] == [pytest.approx(0.136)]
    assert run.stats()["acceptance"] == pytest.approx(0.574, abs=0.03)


def test_chained_exact_draws_are_exact():
    """The reference itself: kernels in a row, from p at t = 5, give p at t = 0.1; false alarm 2e-3."""
    path, rng = ou([5.0, 2.0, 0.8, 0.1]), np.random.default_rng(0)
    x = SIX.sample(CHAINS, seed=1, alpha=path[0].alpha, sigma=path[0].sigma, dtype=torch.float64).numpy()
    for i in range(path.steps):
        x = ExactKernel(SIX, path[i], path[i + 1]).draw(x, rng)
    end = path[-1]
    variance = np.full(6, (0.3 * end.alpha) ** 2 + end.sigma**2)
    for i in range(2):
        law = mixture_cdf(np.full(6, 1.0 / 6.0), end.alpha * SIX.means.numpy()[:, i], variance)
        assert ks(x[:, i], law) < CRITICAL


def test_whole_runs_end_in_the_data():
    """Two kernels in a row from the exact law at t = 0.8 to data at sigma = 0; false alarm 2e-3."""
    path = ou([0.8, 0.4, 0.0])
    x = SIX.sample(CHAINS, seed=1, alpha=path[0].alpha, sigma=path[0].sigma, dtype=torch.float64)
    fn, energy = network_of(SIX, path)
    run = begin("rtk-mala", path, x, energy=energy, width=0.3, inner=30)
    drive(run, fn)
    for i in range(2):
        law = mixture_cdf(np.full(6, 1.0 / 6.0), SIX.means.numpy()[:, i], np.full(6, 0.09))
        assert ks(run.state[:, i].numpy(), law) < CRITICAL


def pieces(name, tau=0.3):
    """A kernel of the recorded mixture and the log-ratio of two points, direct and as a row of the op has it."""
    path, mixture = ou([1.0, 0.5]), recorded_mixture()
    segment = kernel_target.segments(path, Predicts("score", levels=path.levels()), 0.0)[0]
    at = (path[1].alpha, path[1].sigma)
    how = estimators.estimator(name)
    combos = kernel_moves.ratio(segment, how)

    def reduced(z, z1, x):
        values = {"z": z, "z1": z1, "x": x, "e": mixture.score(z, *at), "f": mixture.score(z1, *at)}
        for k, node in enumerate(how.nodes, 1):
            values[f"e{k}"] = mixture.score(z + node * (z1 - z), *at)
        q, g, h = (sum((w * values[s] for s, w in combo.items()), torch.zeros_like(z)) for combo in combos)
        energies = mixture.log_prob(z1, *at) - mixture.log_prob(z, *at) if how.energy else 0.0
        return energies + ((z1 - z) * q + tau / 4.0 * (g - h) * (g + h)).sum(1)

    def potential(z, x):
        return -mixture.log_prob(z, *at) + (x - segment.r * z).square().sum(1) / (2.0 * segment.v)

    def gradient(z, x):
        return -mixture.score(z, *at) + segment.r / segment.v * (segment.r * z - x)

    def direct(z, z1, x):
        there = (z1 - z + tau * gradient(z, x)).square().sum(1)
        back = (z - z1 + tau * gradient(z1, x)).square().sum(1)
        return potential(z, x) - potential(z1, x) + (there - back) / (4.0 * tau)

    return reduced, direct


def points():
    g = torch.Generator().manual_seed(9)
    return [torch.randn(50, 4, generator=g, dtype=torch.float64) for _ in range(3)]


def test_the_reduced_log_ratio_is_the_direct_one():
    reduced, direct = pieces("energy")
    z, z1, x = points()
    torch.testing.assert_close(reduced(z, z1, x), direct(z, z1, x), rtol=0, atol=5e-12)


def test_log_ratios_change_sign_with_direction():
    z, z1, x = points()
    for name in REVERSIBLE:
        reduced, _ = pieces(name)
        torch.testing.assert_close(reduced(z, z1, x), -reduced(z1, z, x), rtol=0, atol=1e-11)
    reduced, _ = pieces("taylor1")
    assert (reduced(z, z1, x) + reduced(z1, z, x)).abs().min() > 1e-3


def test_estimators_converge_to_the_energy():
    """The error of a difference of energies at the distance h: order 3 for the trapezoid, 5 for Simpson, 7, ..."""
    z, z1, x = points()
    _, direct = pieces("energy")
    for name, order in (("trapezoid", 3), ("line(1)", 3), ("simpson", 5), ("line(2)", 5), ("line(3)", 7)):
        reduced, _ = pieces(name)
        errors = []
        for h in (0.1, 0.05):
            near = z + h * (z1 - z)
            errors.append(float((reduced(z, near, x) - direct(z, near, x)).square().mean().sqrt()))
        assert np.log2(errors[0] / errors[1]) == pytest.approx(order, abs=0.7)


@pytest.mark.parametrize("name", [*REVERSIBLE, "taylor1"])
def test_small_steps_are_all_accepted(name):
    _, rate = distances("rtk-mala", chains=2000, inner=5, theta=1e-4, estimator=name)
    assert rate > 0.999


def test_without_a_condition_a_chain_is_plain_mala():
    """r = 0: by hand on p_s, with the noise and the uniforms of the run."""
    path = Path([0.0, 0.6], [1.0, 0.5], [1.0, 0.5])
    mixture, g = recorded_mixture(), torch.Generator().manual_seed(0)
    xi = torch.randn(4, 6, 4, generator=g, dtype=torch.float64)
    u = torch.rand(1, 3, 6, generator=g, dtype=torch.float64)
    fn, energy = network_of(mixture, path)
    run = begin("rtk-mala", path, xi[0], recorded=[None, *xi], energy=energy, inner=3, theta=0.5, uniforms=u)
    drive(run, fn)
    at, tau = (0.6, 0.5), 0.5 * 0.25
    z = np.hypot(0.6, 0.5) * xi[0]
    for j in range(3):
        grad = -mixture.score(z, *at)
        new = z - tau * grad + np.sqrt(2 * tau) * xi[1 + j]
        back = z - new - tau * mixture.score(new, *at)
        ratio = mixture.log_prob(new, *at) - mixture.log_prob(z, *at)
        ratio += ((new - z + tau * grad).square().sum(1) - back.square().sum(1)) / (4 * tau)
        z = torch.where((u[0, j].log() < ratio)[:, None], new, z)
    torch.testing.assert_close(run.state, z, rtol=0, atol=1e-12)


def test_a_kick_is_the_exact_solution_under_a_constant_force():
    """Mean and covariance of the linear SDE du = -gamma u dt - grad g dt + sqrt(2 gamma) dB, dz = u dt (Van Loan)."""
    path = ou([1.0, 0.5])
    segment = kernel_target.segments(path, Predicts("eps", levels=path.levels()), 0.0)[0]
    gamma, tau = 1.7, 0.6
    z, u = kernel_moves.kick(segment, gamma, tau)
    drift = np.array([[0.0, 1.0, 0.0], [0.0, -gamma, -1.0], [0.0, 0.0, 0.0]])  # of z, u and the force
    noise = np.diag([0.0, 2.0 * gamma, 0.0])
    flow = expm(tau * drift)
    block = expm(tau * np.block([[-drift, noise], [np.zeros((3, 3)), drift.T]]))
    covariance = (block[3:, 3:].T @ block[:3, 3:])[:2, :2]
    for source in ("z", "x", "e"):
        start = np.array([float(source == "z"), 0.0, segment.force[source]])
        np.testing.assert_allclose(
            [z[source], u[source]] if source in u else [z[source], 0], (flow @ start)[:2], atol=1e-14
        )
    np.testing.assert_allclose([z["u"], u["u"]], flow[:2, 1], atol=1e-14)
    factor = np.array([[z["xi0"], z["xi1"]], [u["xi0"], 0.0]])
    np.testing.assert_allclose(factor @ factor.T, covariance, atol=1e-14)


def test_the_figure_of_the_paper():
    """benchmarks/papers/reverse_kernel.py, three points of it: 25 calls against 20 and 80 of DDPM even in time.

    The standard deviation of an accuracy is 0.002; the limits are 4 or more of them away."""
    from benchmarks.papers import reverse_kernel as figure

    def point(label, solver, n, **options):
        x, stats = figure.draw("even-time", figure.six_modes(), (label, solver, n, options), 10000)
        return figure.accuracy(x), stats["nfe"]

    assert figure.accuracy(figure.SIX.sample(10000, seed=1)) > 0.97
    kernels, calls = point("", "rtk-mala", 5, inner=4, init="prior", theta=1.0)
    assert kernels > 0.97
    assert calls == 25
    assert point("", "ddpm", 20)[0] < 0.7
    assert point("", "ddpm", 80)[0] < 0.8
