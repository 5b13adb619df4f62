"""The phase-space diffusion: moments without lost digits, roots, the flow, arguments."""

from __future__ import annotations

from decimal import Decimal, getcontext

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from fastsample import PhaseSpace, make_path
from fastsample.models.phase_mixture import expected_eps
from fastsample.solvers.phase import moments

from .phase_cases import mixture

PSLD = PhaseSpace()


VALUES = {
    0.1: ((0.22801074474796, 0.12882510610682, 0.21603119092706), (2.09422019583767, -1.49281030558394, 2.64216191882)),
    1e-3: ((8.31904373867e-5, 2.19167302637e-4, 1.75762245088e-2), (109.638553262, -20.2065854861, 7.66991546847)),
}


@pytest.mark.parametrize("t", VALUES)
def test_values(t):
    sigma, K = VALUES[t]
    np.testing.assert_allclose(PSLD.covariance(t), sigma, rtol=2e-12)
    np.testing.assert_allclose(PSLD.K(t), [[K[0], K[1]], [0.0, K[2]]], rtol=2e-11)


def exact_noise(Gamma: float, nu: float, b: float) -> list[float]:
    """The textbook formulas with 60 digits."""
    getcontext().prec = 60
    G, n, b = Decimal(Gamma), Decimal(nu), Decimal(b)
    c, d = (n + G) / 4, (n - G) / 4
    u, decay = 2 * d * b, (-2 * c * b).exp()
    xx = 1 - decay * (1 + u + u * u / 2)
    mm = (1 - decay * (1 - u + u * u / 2)) / (4 * d * d)
    return [float(xx), float(d * b * b * decay), float(mm)]


@pytest.mark.parametrize(("Gamma", "nu"), [(0.01, 4.01), (0.0, 4.0), (0.02, 4.02), (4.0, 0.0), (3.0, 1.0)])
@pytest.mark.parametrize("t", [1e-7, 1e-5, 1e-3, 0.05, 0.0612, 0.3, 1.0])
def test_no_digit_is_lost_at_any_time(Gamma, nu, t):
    got = moments.noise(Gamma, nu, 8.0 * t)
    np.testing.assert_allclose(got, exact_noise(Gamma, nu, 8.0 * t), rtol=3e-15)
    single = moments.noise(Gamma, nu, torch.tensor(8.0 * t, dtype=torch.float32), torch)
    np.testing.assert_allclose([float(v) for v in single], got, rtol=3e-5 if Gamma > nu else 3e-6)


processes = st.builds(
    lambda Gamma, gap, beta, gamma, factor: PhaseSpace(Gamma, Gamma + gap, beta, gamma, factor),
    st.floats(0.0, 2.0), st.floats(0.5, 5.0), st.tuples(st.floats(0.5, 10.0), st.floats(0.5, 10.0)),
    st.floats(0.01, 1.0), st.sampled_from(["lower", "upper"]),
)  # fmt: skip


@settings(max_examples=60, deadline=None)
@given(processes, st.floats(1e-3, 1.0), st.floats(1e-3, 1.0))
def test_laws(process, s, t):
    cov = process.covariance(t)
    S = np.array([[cov.xx, cov.xm], [cov.xm, cov.mm]])
    L, K = process.root(t), process.K(t)
    np.testing.assert_allclose(L @ L.T, S, rtol=1e-10, atol=1e-15)
    np.testing.assert_allclose(K.T @ L, np.eye(2), atol=1e-9)
    assert L[(0, 1) if process.factor == "lower" else (1, 0)] == 0.0
    # the flow is one: from s to t and on is from s; and Sigma obeys it
    there, back = process.flow(process.passed(s, t)), process.flow(process.passed(t, s))
    np.testing.assert_allclose(there @ back, np.eye(2), atol=1e-8)
    assert process.passed(s, t) == pytest.approx(process.b(t) - process.b(s), rel=1e-6, abs=1e-12)
    if s < t:
        before = process.covariance(s)
        noise = moments.noise(process.Gamma, process.nu, process.passed(s, t))
        made = there @ np.array([[before.xx, before.xm], [before.xm, before.mm]]) @ there.T
        made += np.array([[noise.xx, noise.xm], [noise.xm, noise.mm]])
        np.testing.assert_allclose(made, S, rtol=1e-9, atol=1e-14)


def test_the_flow_and_the_noise_solve_their_equations():
    process, t, h = PhaseSpace(0.3, 2.0, (2.0, 9.0)), 0.4, 1e-5
    slope = (process.flow(process.b(t + h)) - process.flow(process.b(t - h))) / (2 * h)
    F = process.drift(float(process.beta(t)))
    np.testing.assert_allclose(slope, F @ process.flow(process.b(t)), rtol=1e-8)
    S, up, down = (np.array([[s.xx, s.xm], [s.xm, s.mm]]) for s in map(process.covariance, (t, t + h, t - h)))
    drift = F @ S + S @ F.T + process.diffusion(float(process.beta(t)))
    np.testing.assert_allclose((up - down) / (2 * h), drift, rtol=1e-7, atol=1e-9)


def test_the_prior_is_stationary():
    stationary = PSLD.stationary
    F, GG = PSLD.drift(8.0), PSLD.diffusion(8.0)
    np.testing.assert_allclose(F @ stationary + stationary @ F.T + GG, 0.0, atol=1e-14)


def test_grids_are_those_of_the_paper():
    n, end = 9, 1e-3
    i = np.arange(n + 1)
    uniform, quadratic = (make_path(PSLD, grid, n) for grid in ("uniform", "quadratic"))
    np.testing.assert_allclose(uniform.t, 1 - (1 - end) * i / n, atol=1e-15)
    np.testing.assert_allclose(quadratic.t, 1 - (1 - end) * (1 - ((n - i) / n) ** 2), atol=1e-15)
    np.testing.assert_allclose(quadratic.alpha, PSLD.flow(PSLD.b(quadratic.t))[:, 0, 0])
    np.testing.assert_allclose(quadratic.sigma**2, PSLD.covariance(quadratic.t).xx)


@pytest.mark.parametrize("factor", ["lower", "upper"])
@pytest.mark.parametrize("Gamma", [0.0, 0.01])
def test_the_exact_network_is_the_gradient_of_the_log_density(factor, Gamma):
    process, data = PhaseSpace(Gamma, 4.0, factor=factor), mixture()
    t = 0.2
    psi, noise = process.flow(process.b(t)), moments.noise(Gamma, 4.0, process.b(t))
    z = torch.randn(3, 8, generator=torch.Generator().manual_seed(0), dtype=torch.float64).requires_grad_()
    logs = []
    for mean, std in zip(data.means, data.std, strict=True):
        S = psi @ np.diag([float(std) ** 2, process.gamma * process.M]) @ psi.T
        S = torch.tensor(S + np.array([[noise.xx, noise.xm], [noise.xm, noise.mm]]))
        gap = z.reshape(3, 2, 4) - torch.tensor(psi[:, 0])[:, None] * mean
        logs.append(-0.5 * torch.einsum("brd,rs,bsd->b", gap, torch.linalg.inv(S), gap) - 2.0 * torch.logdet(S))
    log_density = torch.logsumexp(torch.stack(logs, 1) + data.weights.log(), 1)
    (score,) = torch.autograd.grad(log_density.sum(), z)
    eps = expected_eps(data, process, z.detach(), torch.full((3,), t, dtype=torch.float64))
    made = -torch.einsum("rs,bsd->brd", torch.tensor(process.K(t)), eps.reshape(3, 2, 4))
    torch.testing.assert_close(made.reshape(3, 8), score, rtol=1e-11, atol=1e-12)


def test_the_exact_network_in_float32_and_bfloat16():
    data = mixture().phase_space()
    z = torch.randn(5, 8, generator=torch.Generator().manual_seed(1))
    for t in (1.0, 0.3, 1e-3):
        time = torch.full((5,), t)
        wide = data.fn(z.double(), time.double())
        torch.testing.assert_close(data.fn(z, time), wide.float(), rtol=2e-5, atol=2e-6)
        assert data.fn(z.bfloat16(), time).dtype == torch.bfloat16
    with pytest.raises(ValueError, match=r"x: got shape \(5, 4\), need \(B, 8\)"):
        data.fn(z[:, :4], torch.ones(5))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"Gamma": -1.0}, "Gamma: got -1.0"),
        ({"Gamma": 4.01}, "critical damping"),
        ({"beta": 0.0}, "beta: got 0.0"),
        ({"beta": (1.0, 2.0, 3.0)}, "the pair of its values"),
        ({"gamma": 0.0}, "gamma: got 0.0"),
        ({"factor": "full"}, "factor: got 'full'"),
        ({"jitter": "no"}, "jitter: got 'no'"),
        ({"t_min": 0.0}, "t_min, t_max: got 0.0"),
    ],
)
def test_arguments(arguments, message):
    with pytest.raises(ValueError, match=message):
        PhaseSpace(**arguments)
