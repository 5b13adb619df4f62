"""Laws of the kernels, exact: on linear forces a step is a matrix and a factor, found by asking for its columns."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
import scipy.linalg
import torch

from fastsample import langevin
from fastsample.langevin.ou import move

from .langevin_cases import collapsed, collapsed_pairs

GAMMA, H = 1.7, 0.35


def columns(kernel: str, draws: int, stiffness: float = 1.0, **options) -> tuple[np.ndarray, np.ndarray]:
    """``x' = A x + G xi`` of one step under the force ``-stiffness x``: A (s, s), G (s, draws) of state (x) or (x, v).

    One chain per column, all in one run.
    """
    velocity = "friction" in options
    size = 1 + velocity
    start = torch.eye(size + draws, size, dtype=torch.float64)
    noise = {1 + k: torch.eye(size + draws, dtype=torch.float64)[:, size + k : size + k + 1] for k in range(draws)}
    if velocity:
        options["velocity"] = start[:, 1:]
    run = langevin.sample(
        langevin.Score(lambda x: -stiffness * x),
        start[:, :1].contiguous(),
        kernel=kernel,
        steps=1,
        noise=lambda n: noise.get(n, torch.zeros(size + draws, 1, dtype=torch.float64)),
        **options,
    )
    end = torch.cat([run.x, run.velocity], 1) if velocity else run.x
    return end[:size].T.numpy(), end[size:].T.numpy()


def stationary(a: np.ndarray, g: np.ndarray) -> np.ndarray:
    return scipy.linalg.solve_discrete_lyapunov(a, g @ g.T)


@pytest.mark.parametrize("u", [0.1, 0.5, 1.0])
def test_lmc_has_the_known_stationary_variance(u):
    assert stationary(*columns("lmc", 1, step_size=u)).item() == pytest.approx(1 / (1 - u / 2), rel=1e-13)


def plmc_variance(u: float, size: int) -> float:
    """Closed form for N(0, 1) and Bernoulli midpoints."""
    rho = 1 - u + u * u * (size - 1) / (2 * size)
    squares = (size - 1) * (2 * size - 1) / (6 * size**2)
    q = u**4 * (1 - 1 / size) * squares
    n = 2 * u * (1 - u * (size - 1) / size + u * u * squares) + u**3 * (1 - 1 / size) * (size - 1) / size
    return n / (1 - rho**2 - q)


def test_closed_form_has_the_numbers_of_the_spec():
    table = {(0.25, 1): 1.14286, (0.25, 4): 1.05165, (0.25, 32): 1.03470, (1.0, 32): 3.57797}
    table |= {(0.5, 1): 1.33333, (0.5, 4): 1.17701, (0.5, 32): 1.19732}
    for (u, size), value in table.items():
        assert plmc_variance(u, size) == pytest.approx(value, abs=5e-6)


@pytest.mark.parametrize(("u", "size"), [(0.25, 1), (0.25, 4), (0.5, 4), (0.5, 6)])
def test_overdamped_poisson_midpoint_has_the_stationary_variance_of_its_closed_form(u, size):
    """Mean over all 2^K choices of midpoints, each with its probability."""
    square, noise = 0.0, 0.0
    for chosen in itertools.product([0, 1], repeat=size):
        weight = math.prod(1 / size if h else 1 - 1 / size for h in chosen)
        offsets = [[i for i in range(size) if chosen[i]]]
        a, g = columns("plmc", size, step_size=u, window=size, midpoints=offsets)
        square, noise = square + weight * a.item() ** 2, noise + weight * (g @ g.T).item()
    assert noise / (1 - square) == pytest.approx(plmc_variance(u, size), rel=1e-12)


@pytest.mark.parametrize("mode", ["bernoulli", "one", 3])
def test_drawn_midpoints_have_the_mean_drift_of_all_fine_steps(mode):
    """Means over 4000 windows; five standard errors: false alarm below 1e-5 (fixed seed)."""
    size, u, count = 8, 0.5, 4000
    zero = torch.zeros(count, 1, dtype=torch.float64)
    run = langevin.sample(
        langevin.Score(lambda x: -x),
        zero + 1.0,
        kernel="plmc",
        steps=1,
        step_size=u,
        window=size,
        midpoints=mode,
        noise=lambda n: zero,
        seed=11,
    )
    fine = 1 - u + (u / size) ** 2 * size * (size - 1) / 2  # the cheap path is 1 - i u / K
    error = (run.x.mean() - fine).item() / (run.x.std().item() / math.sqrt(count))
    assert abs(error) < 5 and run.x.std() > 0


def van_loan(gamma: float, h: float) -> tuple[np.ndarray, np.ndarray]:
    """Mean matrix of (x, v, g) with g constant, and the covariance of (x, v), by matrix exponentials."""
    drift = np.array([[0.0, 1.0, 0.0], [0.0, -gamma, -1.0], [0.0, 0.0, 0.0]])
    f, q = drift[:2, :2], np.diag([0.0, 2 * gamma])
    block = scipy.linalg.expm(h * np.block([[-f, q], [np.zeros((2, 2)), f.T]]))
    return scipy.linalg.expm(h * drift)[:2], block[2:, 2:].T @ block[:2, 2:]


def test_uld_has_the_mean_and_covariance_of_a_frozen_force():
    stiffness = 2.3
    a, g = columns("uld", 2, stiffness, step_size=H, friction=GAMMA)
    mean, covariance = van_loan(GAMMA, H)
    expected = mean[:, :2] + np.outer(mean[:, 2], [stiffness, 0.0])
    np.testing.assert_allclose(a, expected, rtol=0, atol=1e-14)
    np.testing.assert_allclose(g @ g.T, covariance, rtol=0, atol=1e-14)


@pytest.mark.parametrize("theta", [0.0, 1e-6, 0.3, 0.999999, 1.0])
def test_randomized_midpoint_has_the_noise_of_a_whole_step(theta):
    """For every theta the sum of the parts has the exact covariance."""
    _, g = columns("rlmc", 2, 0.0, step_size=H, theta=[theta])
    np.testing.assert_allclose(g @ g.T, 2 * H, rtol=1e-15)
    _, g = columns("rlmc-underdamped", 4, 0.0, step_size=H, friction=GAMMA, theta=[theta])
    one = move(GAMMA, H)
    np.testing.assert_allclose(g @ g.T, [[one.var_x, one.cov], [one.cov, one.var_v]], rtol=0, atol=1e-15)


def test_randomized_midpoint_is_a_better_integrator():
    """Mean square error of one step against the exact Ornstein-Uhlenbeck mean, averaged over theta."""
    exact = scipy.linalg.expm(0.1 * np.array([[0.0, 1.0], [-1.0, -GAMMA]]))
    thetas = (np.arange(50) + 0.5) / 50
    steps = {"step_size": 0.1, "friction": GAMMA}
    mean = np.mean([columns("rlmc-underdamped", 4, theta=[t], **steps)[0] for t in thetas], axis=0)
    frozen, _ = columns("uld", 2, **steps)
    assert np.abs(mean - exact).max() < 0.02 * np.abs(frozen - exact).max()


def literal(x, v, z, selected, size, gamma, h, grad):
    """Poisson midpoint as published: K steps on both lines; ``gamma`` None: overdamped.  ``selected`` (K, B)."""
    start, cheap = (x.copy(), v.copy()), (x.copy(), v.copy())
    g0, weight = grad(start[0]), size
    one = None if gamma is None else move(gamma, h)
    for i in range(size):
        g = g0 + weight * selected[i][:, None] * (grad(cheap[0]) - g0)
        made = []
        for (p, q), force in ((start, g), (cheap, g0)):
            if one is None:
                made.append((p - h * force + math.sqrt(2 * h) * z[0][i], q))
            else:
                p_new = p + one.p1 * q - one.p2 * force + one.l_1 * z[0][i] + one.l_2 * z[1][i]
                made.append((p_new, one.e * q - one.p1 * force + one.l_v * z[0][i]))
        start, cheap = made
    return start


@pytest.mark.parametrize("shared", [True, False])
@pytest.mark.parametrize("kernel", ["plmc", "plmc-underdamped"])
def test_windows_are_the_loops_that_they_stand_for(kernel, shared):
    """Bernoulli midpoints, none to many in a window, per chain or shared, on a force that is not linear."""
    size, chains, windows = 12, 10, 25 if shared else 8
    rng = np.random.default_rng(3)
    z = rng.standard_normal((2, windows * size, chains, 3))
    x0, v0 = rng.standard_normal((2, chains, 3))
    options = {"friction": GAMMA, "velocity": torch.from_numpy(v0)} if kernel != "plmc" else {}
    gamma = GAMMA if options else None
    h = 0.3 / size
    picked = chosen(size, windows, chains, shared)
    noise: dict[int, torch.Tensor] = {}
    for b in range(chains):  # noise of a move depends on where the chain's own midpoints lie
        mine = picked[:, b].reshape(-1)
        if gamma is None:
            made = collapsed(z[0][:, b : b + 1], mine, size)
        else:
            made = collapsed_pairs(z[0][:, b : b + 1], z[1][:, b : b + 1], mine, size, gamma, h)
        for draw, xi in made.items():
            noise.setdefault(draw, torch.zeros(chains, 3, dtype=torch.float64))[b] = xi[0]
    grad = lambda x: x + np.sin(2 * x)  # noqa: E731
    run = langevin.sample(
        langevin.Score(lambda x: -(x + torch.sin(2 * x))),
        torch.from_numpy(x0),
        kernel=kernel,
        steps=windows,
        step_size=0.3,
        window=size,
        midpoints="bernoulli",
        shared=shared,
        seed=5,
        noise=lambda n: noise.get(n, torch.zeros(chains, 3, dtype=torch.float64)),
        trace=True,
        **options,
    )
    x, v = x0, v0
    for w in range(windows):
        part = slice(w * size, (w + 1) * size)
        x, v = literal(x, v, z[:, part], picked[w].T, size, gamma, h, grad)
        np.testing.assert_allclose(run.trace[w].numpy(), x, rtol=1e-12, atol=1e-12)
    if gamma is not None:
        np.testing.assert_allclose(run.velocity.numpy(), v, rtol=1e-12, atol=1e-12)
    counts = picked[:, :, 1:].sum(2)
    assert counts.max() >= 3 and counts.min() == 0
    assert run.report.calls == windows + int(counts.max(1).sum())


def chosen(size: int, windows: int, chains: int, shared: bool) -> np.ndarray:
    """The midpoints that a run with seed 5 draws: bool (windows, chains, size)."""
    from fastsample import noise
    from fastsample.langevin.random_times import midpoint_offsets

    key = torch.tensor([[5, 0]], dtype=torch.int64).view(torch.uint64) if shared else noise.keys(5, chains)
    draw, _, weight = midpoint_offsets(key, size, "bernoulli")
    assert weight == size
    picked = np.zeros((windows, chains, size + 1), dtype=bool)
    for w in range(windows):
        np.put_along_axis(picked[w], np.broadcast_to(draw(w), (chains, draw(w).shape[1])), True, axis=1)
    return picked[:, :, :size]


@pytest.mark.parametrize("offset", [1, 3, 7])
def test_one_midpoint_is_the_randomized_midpoint_on_a_grid(offset):
    """The corrections of a window sum to the whole force at the midpoint: theta = offset / K."""
    a = columns("plmc", 2, step_size=H, window=8, midpoints=[[offset]])
    b = columns("rlmc", 2, step_size=H, theta=[offset / 8])
    for x, y in zip(a, b, strict=True):
        np.testing.assert_allclose(x, y, rtol=0, atol=1e-14)


def test_bias_of_the_randomized_midpoint_at_equal_cost():
    """Stationary variance on N(0, 1), integrated over theta: far nearer to 1 than LMC's at half the step."""
    thetas, weights = np.polynomial.legendre.leggauss(4)
    square = noise = 0.0
    for theta, weight in zip((thetas + 1) / 2, weights / 2, strict=True):
        a, g = columns("rlmc", 2, step_size=0.25, theta=[theta])
        square, noise = square + weight * a.item() ** 2, noise + weight * (g @ g.T).item()
    u = 0.25
    closed = u * ((1 - u) ** 2 + 1) / (1 - (1 - u) ** 2 - u * u * (1 - u) - u**4 / 3)
    assert noise / (1 - square) == pytest.approx(closed, rel=1e-13)
    assert closed - 1 < 0.1 * (1 / (1 - u / 4) - 1)


@pytest.mark.parametrize(("kernel", "plain"), [("plmc", "lmc"), ("plmc-underdamped", "uld")])
def test_windows_of_one_step_are_the_plain_sampler(kernel, plain):
    options = {"friction": GAMMA} if plain == "uld" else {}
    target = langevin.Score(lambda x: -(x**3 + x))
    x = torch.linspace(-1, 1, 30).reshape(5, 6)
    for mode in ("bernoulli", "one", 1):
        a = langevin.sample(
            target, x, kernel=kernel, steps=20, step_size=0.1, seed=3, window=1, midpoints=mode, **options
        )
        b = langevin.sample(target, x, kernel=plain, steps=20, step_size=0.1, seed=3, **options)
        assert torch.equal(a.x, b.x) and a.report.calls == 20


def test_no_midpoints_is_one_step_with_a_frozen_force():
    target = langevin.Score(lambda x: -(x**3 + x))
    x = torch.linspace(-1, 1, 30, dtype=torch.float64).reshape(5, 6)
    for kernel, plain, options in (("plmc", "lmc", {}), ("plmc-underdamped", "uld", {"friction": GAMMA})):
        shared = {"steps": 1, "step_size": 0.4, "seed": 3, **options}
        a = langevin.sample(target, x, kernel=kernel, window=7, midpoints=[[]], **shared)
        b = langevin.sample(target, x, kernel=plain, **shared)
        torch.testing.assert_close(a.x, b.x, rtol=1e-14, atol=1e-14)


def test_number_of_calls_is_binomial():
    """Calls of 400 windows of 16 with shared Bernoulli midpoints: five standard deviations, false alarm below 1e-6."""
    size, windows = 16, 400
    run = langevin.sample(
        langevin.Score(lambda x: -x),
        torch.zeros(1, 1),
        kernel="plmc",
        steps=windows,
        step_size=0.1,
        window=size,
        midpoints="bernoulli",
        shared=True,
        seed=2,
    )
    mean, spread = windows * 15 / 16, math.sqrt(windows * 15 / 16 * 15 / 16)
    assert abs(run.report.calls - windows - mean) < 5 * spread
