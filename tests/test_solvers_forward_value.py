"""Forward-value sampler: the authors' program, order one with the sign opposite to DDIM's, order two of the mean."""

from __future__ import annotations

import math

import numpy as np
import pytest

from fastsample.path import Path
from fastsample.plan import make_plan

from .exact import Mixture
from .golden_cases import GOLDEN, Replay

MIXTURE = Mixture()


def eps_at(path, shift=1):
    """Exact eps network of a plan whose call k is at level k + shift."""
    levels = path.levels()

    def network(i, x):
        at = levels[i + shift]
        return (x - at.alpha * MIXTURE.x0(x, at.alpha, at.sigma)) / at.sigma

    return network


def side_by_side(path):
    """The same for the plan of the mean: calls at 0, 1, 1, 2, 2, 3, ..."""
    now, ahead = eps_at(path, 0), eps_at(path, 1)
    return lambda i, x: (ahead if i % 2 else now)(i // 2, x)


def record(name):
    with np.load(GOLDEN / f"{name}.npz") as file:
        return {key: file[key] for key in file.files}


@pytest.mark.parametrize("order", [1, 2, 3])
@pytest.mark.parametrize("schedule", ["edm", "ldm", "vplinear"])
def test_authors_program(schedule, order):
    case = record(f"fdpm_{schedule}_n5_o{order}")
    path = Path(case["alphas"], case["sigmas"], case["t"])
    plan = make_plan("forward-value", path, order=order)
    run = Replay(plan, case["x_T"], case["eps"])
    np.testing.assert_allclose(run.asked, case["lookahead"], rtol=0, atol=1e-10)
    np.testing.assert_allclose(run.x, case["x_out"], rtol=0, atol=1e-10)
    np.testing.assert_array_equal(plan.t, case["t"][1:])


@pytest.mark.parametrize("steps", [5, 10])
@pytest.mark.parametrize("schedule", ["edm", "ldm", "vplinear"])
def test_mean_with_the_authors_ddim(schedule, steps):
    case = record(f"fdpm_ddimref_{schedule}_n{steps}")
    path = Path(case["alphas"], case["sigmas"], case["t"])
    run = Replay(make_plan("ddim", path), case["x_T"], case["eps"])
    np.testing.assert_allclose(run.x, case["x_out"], rtol=0, atol=1e-10)
    for order in (1, 2, 3):
        forward = Replay(make_plan("forward-value", path, order=order), case["x_T"], eps_at(path))
        both = make_plan("forward-value", path, order=order, average=True)
        assert both.nfe == 2 * steps
        mean = Replay(both, case["x_T"], side_by_side(path))
        np.testing.assert_allclose(mean.x, 0.5 * (run.x + forward.x), rtol=0, atol=1e-10)
        np.testing.assert_allclose(mean.asked[1::2], forward.asked, rtol=0, atol=1e-10)


def lambda_path(steps, ends=(-2.5, 2.5)):
    lam = np.linspace(*ends, steps + 1)
    return Path(1 / np.sqrt(1 + np.exp(-2 * lam)), 1 / np.sqrt(1 + np.exp(2 * lam)), np.linspace(1, 0, steps + 1))


def exact_end(x, steps=1000, ends=(-2.5, 2.5)):
    """End of the exact flow between two lambda by the classical Runge-Kutta method in x/sigma."""
    path = lambda_path(2 * steps, ends)
    lam, alpha, sigma = path.lam, path.alpha, path.sigma
    y, h = x / sigma[0], 2 * (lam[1] - lam[0])

    def slope(i, y):
        return np.exp(lam[i]) * MIXTURE.x0(y * sigma[i], alpha[i], sigma[i])

    for i in range(0, 2 * steps, 2):
        k1 = slope(i, y)
        k2 = slope(i + 1, y + 0.5 * h * k1)
        k3 = slope(i + 1, y + 0.5 * h * k2)
        y = y + h / 6 * (k1 + 2 * k2 + 2 * k3 + slope(i + 2, y + h * k3))
    return y * sigma[-1]


def test_first_order_with_the_opposite_sign_and_a_mean_of_second_order():
    """Errors and angle as listed for other 512 chains: within 3 %; the mean with DDIM has order two."""
    x = np.random.default_rng(0).standard_normal((512, 4))
    truth = exact_end(x)
    ddim, forward, second, mean = [], [], [], []
    for steps, cosine in ((160, -0.991), (320, -0.998)):
        path = lambda_path(steps)
        e = Replay(make_plan("ddim", path), x, eps_at(path, 0)).x - truth
        f = Replay(make_plan("forward-value", path), x, eps_at(path)).x - truth
        f2 = Replay(make_plan("forward-value", path, order=2), x, eps_at(path)).x - truth
        m = Replay(make_plan("forward-value", path, average=True), x, side_by_side(path)).x - truth
        for errors, error in ((ddim, e), (forward, f), (second, f2), (mean, m)):
            errors.append(np.sqrt((error**2).mean()))
        assert (e * f).sum() / np.sqrt((e**2).sum() * (f**2).sum()) == pytest.approx(cosine, abs=1e-3)
    np.testing.assert_allclose(ddim, [7.83e-3, 3.82e-3], rtol=0.03)
    np.testing.assert_allclose(forward, [6.77e-3, 3.55e-3], rtol=0.03)
    np.testing.assert_allclose(second, [7.00e-3, 3.61e-3], rtol=0.03)
    np.testing.assert_allclose(mean, [7.17e-4, 1.80e-4], rtol=0.03)
    assert math.log2(mean[0] / mean[1]) == pytest.approx(2.0, abs=0.03)


def edm_path(steps):
    sigma = (80.0 ** (1 / 7) + np.arange(steps + 1) / steps * (0.002 ** (1 / 7) - 80.0 ** (1 / 7))) ** 7
    alpha = 1 / np.sqrt(1 + sigma**2)
    return Path(alpha, sigma * alpha, sigma)


@pytest.mark.parametrize("order", [1, 2])
def test_authors_program_untouched(order):
    """In float32, with a table that ends at 0.002013 instead of 0.002: this alone moves the end by up to 1e-4."""
    case = record(f"fdpm_edm_n5_o{order}_f32raw")
    path = edm_path(5)
    run = Replay(make_plan("forward-value", path, order=order), case["x_T"], eps_at(path))
    np.testing.assert_allclose(run.x, case["x_out"], rtol=0, atol=2e-4)


def test_errors_of_few_calls():
    """Root mean square to the exact end, EDM grid: listed with two digits for 1000 other chains, so within 0.02."""
    x = np.random.default_rng(0).standard_normal((1000, 4))
    truth = exact_end(x, 1000, edm_path(1).lam)
    listed = {5: (0.51, 0.39, 0.60, 0.94), 10: (0.31, 0.08, 0.13, 0.33), 20: (0.19, 0.06, 0.10, 0.10)}
    for steps, values in listed.items():
        path = edm_path(steps)
        ends = [Replay(make_plan("ddim", path), x, eps_at(path, 0)).x]
        ends += [Replay(make_plan("forward-value", path, order=p), x, eps_at(path)).x for p in (1, 2, 3)]
        np.testing.assert_allclose([np.sqrt(((e - truth) ** 2).mean()) for e in ends], values, atol=0.02)


@pytest.mark.parametrize("average", [False, True])
@pytest.mark.parametrize("order", [1, 2, 3])
def test_scaled_state_repeated_levels_and_pure_noise(order, average):
    path = lambda_path(6)
    x = np.random.default_rng(1).standard_normal((8, 4))
    ends = []
    for p in (path, path.ve()):
        plan = make_plan("forward-value", p, order=order, average=average)
        ends.append(Replay(plan, x * p.alpha[0] / path.alpha[0], (side_by_side if average else eps_at)(p)).x)
    np.testing.assert_allclose(ends[0] / path.alpha[-1], ends[1], rtol=1e-11, atol=1e-11)
    # a level twice: nothing moves, the network is asked once more
    twice = Path(*(np.insert(v, 3, v[3]) for v in (path.alpha, path.sigma, path.t)))
    plan = make_plan("forward-value", twice, order=order, average=average)
    end = Replay(plan, x, (side_by_side if average else eps_at)(twice)).x
    assert np.isfinite(end).all()
    if order == 1 and not average:  # it differs from the run without only by the newer eps_hat of the lookahead
        np.testing.assert_allclose(end, ends[0], atol=0.2)
    # alpha = 0 at the start: a data point is found exactly
    flow = Path([0.0, 0.3, 0.6, 0.9], [1.0, 0.7, 0.4, 0.1], [1.0, 0.7, 0.4, 0.1])
    plan = make_plan("forward-value", flow, order=order, average=average, prediction="x0")
    np.testing.assert_allclose(Replay(plan, x, lambda i, y: 0.7 + 0.0 * y).x, 0.9 * 0.7 + 0.1 * x, atol=1e-14)


@pytest.mark.parametrize("prediction", ["x0", "v", "score"])
@pytest.mark.parametrize("clip", [None, 0.8])
def test_predictions_and_clipping(prediction, clip):
    path = lambda_path(6)
    x = np.random.default_rng(2).standard_normal((8, 4))
    ends = []
    for kind in ("eps", prediction):

        def network(i, y, kind=kind):
            at = path[i + 1]
            x0 = MIXTURE.x0(y, at.alpha, at.sigma)
            eps = (y - at.alpha * x0) / at.sigma
            return {"eps": eps, "x0": x0, "v": at.alpha * eps - at.sigma * x0, "score": -eps / at.sigma}[kind]

        ends.append(Replay(make_plan("forward-value", path, prediction=kind, clip=clip, order=2), x, network).x)
    np.testing.assert_allclose(*ends, rtol=1e-11, atol=1e-11)


@pytest.mark.parametrize(
    ("options", "message"), [({"order": 4}, "order: got 4"), ({"average": 1}, "average: got 1"), ({}, "sigma must be")]
)
def test_bad_input(options, message):
    path = lambda_path(3) if options else Path([0.5, 1.0], [0.5, 0.0], [1, 0])
    with pytest.raises(ValueError, match=message):
        make_plan("forward-value", path, **options)
