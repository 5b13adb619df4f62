"""Whole runs against mathematics: point masses, the exact Gaussian law, orders of convergence, reductions."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from fastsample.grids import make_path
from fastsample.path import Path
from fastsample.plan import make_plan
from fastsample.schedules import VPLinear
from fastsample.solvers import names, solvers

from .exact import Mixture, exact_flow
from .golden_cases import Replay

VP = VPLinear()
# their networks obey a boundary condition at the smallest level, or have two times (test_solvers_consistency_law.py)
DISTILLED = ("lcm", "cm", "ctm")
WINDOWED = ("poisson-midpoint-shared",)  # one call for many steps of the path (test_poisson_midpoint.py)
SAMPLERS = [name for name in names("") if name != "ddim-inverse" and name not in (*DISTILLED, *WINDOWED)]
NOISY_END = ("forward-value",)  # besides dpm- and sde-dpm-: no last step to sigma = 0
RENOISING = ("tcd", "scm")  # a repeated level gets fresh noise
ODE = ["euler", "ddim", "dpmpp-1", "dpmpp-2m", "dpmpp-3m", "dpm-1", "dpm-2m", "dpm-3m"]


def draws_of(seed, shape):
    rng = np.random.default_rng(seed)
    table = {}
    return lambda n: table.setdefault(n, rng.standard_normal(shape))


@pytest.mark.parametrize(
    "name", [n for n in SAMPLERS if n not in ("euler-maruyama",) and not n.startswith(("dpm-", "sde-dpm-"))]
)
def test_point_mass(name):
    """A network that always says mu: x_N = alpha_N mu + (prod a)(x_T - alpha_0 mu) + noise; the noise has its law."""
    path = make_path(VP, "log-snr", 7)
    plan = make_plan(name, path, prediction="x0")
    mu, x = np.array([0.7, -1.3]), np.array([1.1, 0.2])
    silent = Replay(plan, x, lambda i, state: mu, lambda n: np.zeros(2)).x
    gain = (silent - path.alpha[-1] * mu) / (x - path.alpha[0] * mu)
    if not solvers()[name].stochastic:
        assert gain == pytest.approx(np.full(2, path.sigma[-1] / path.sigma[0]), rel=1e-11)
    # variance of the end from unit noises: started at sigma_0 it must end at sigma_N (but for DDPM's large variance)
    unit = np.eye(plan.draws)
    ends = Replay(plan, path.sigma[0] * unit[0], lambda i, state: 0.0 * state, lambda n: unit[n]).x
    assert np.linalg.norm(ends) == pytest.approx(path.sigma[-1], rel=1e-12)
    assert gain[0] == pytest.approx(gain[1], rel=1e-11)


GAUSSIAN = {
    ("ddim", ()): (0.140153679741, 0.188305301932),
    ("ddpm", ()): (0.111194119614, 0.153427110030),
    ("sde-dpmpp-1", ()): (0.111194119614, 0.153427110030),
    ("dpmpp-2m", ("midpoint",)): (0.472713805311, 0.374314281688),
    ("dpmpp-2m", ("heun",)): (0.704089858470, 0.461600024595),
    ("dpmpp-3m", ()): (0.740010326146, 0.221123247943),
    ("sde-dpmpp-2m", ("midpoint",)): (0.692056273305, 0.560529384529),
    # exponential Adams on eps_hat with exact moments is the log-rho DEIS
    ("dpm-3m", ("heun", "exact")): (0.349093598108, 0.269731427989),
}


def gaussian_plan(name, choices, steps, **more):
    options = dict(zip(("solver_type", "third"), choices, strict=False))
    if name not in ("ddim", "ddpm"):
        options["lower_order_final"] = False
    path = make_path(VP, "uniform", steps)
    # exact network of data N(0, 1/4)
    variance = 0.25 * path.alpha**2 + path.sigma**2
    return make_plan(name, path, **options, **more), lambda i, x: path.sigma[i] / variance[i] * x


@pytest.mark.parametrize(("row", "values"), GAUSSIAN.items(), ids=str)
@pytest.mark.parametrize("which", [0, 1])
def test_exact_gaussian_law(row, values, which):
    """The end as a linear map of (x_T, xi_1, ...): its variance is known to 12 digits (true 0.2500824580)."""
    plan, network = gaussian_plan(*row, steps=(10, 20)[which])
    unit = np.eye(plan.draws)
    end = Replay(plan, unit[0], network, lambda n: unit[n]).x
    assert end @ end == pytest.approx(values[which], abs=6e-13 * 10)


def test_monte_carlo_agrees_with_the_law():
    """20000 samples within 4 sqrt(2/n) relative: false alarm 6e-5; the seed is fixed."""
    n = 20000
    plan, network = gaussian_plan("ddpm", (), 10)
    draw = draws_of(20, n)
    end = Replay(plan, draw(0), network, draw).x
    assert abs(end.var() / 0.111194119614 - 1) < 4 * math.sqrt(2 / n)


# order between N = 160 and 320, error at N = 160; exact starting values (S) and warm-up by low orders (W)
ORDERS = {
    ("ddim", ()): ((1.00, 8.8e-3), (1.00, 8.8e-3)),
    ("dpmpp-2m", ("midpoint",)): ((1.98, 5.8e-5), (1.97, 4.3e-5)),
    ("dpmpp-2m", ("heun",)): ((2.01, 8.8e-5), (2.01, 6.9e-5)),
    ("dpmpp-2m", ("bh1",)): ((2.01, 1.6e-4), (2.01, 1.4e-4)),
    ("dpmpp-3m", ("midpoint", "published")): ((2.00, 1.7e-5), (2.09, 5.7e-6)),
    ("dpmpp-3m", ("midpoint", "exact")): ((3.09, 2.7e-6), (2.04, 2.0e-5)),
}


@pytest.fixture(scope="module")
def truth():
    """Exact flow of the mixture at 2560 lambda-uniform levels (its own error is below 1e-11)."""
    noise = torch.randn(8, 4, generator=torch.Generator().manual_seed(7), dtype=torch.float64).numpy()
    mixture = Mixture()
    return mixture, exact_flow(mixture.x0, VP, 0.6, 0.05, noise * float(VP.sigma(0.6)), 2560)


@pytest.mark.parametrize(("row", "expected"), ORDERS.items(), ids=str)
@pytest.mark.parametrize("exact_start", [True, False], ids=["S", "W"])
def test_order_of_convergence(row, expected, exact_start, truth):
    mixture, states = truth
    name, choices = row
    options = dict(zip(("solver_type", "third"), choices, strict=False))
    if name != "ddim":
        options["lower_order_final"] = 0
    warm = int(name[6]) - 1 if exact_start and name != "ddim" else 0  # calls whose state is given
    errors = []
    for steps in (160, 320):
        path, stride = make_path(VP, "log-snr", steps, t_max=0.6, t_min=0.05), 2560 // steps
        plan = make_plan(name, path, prediction="x0", **options)
        run = Replay(
            plan,
            states[0],
            lambda i, x, path=path: mixture.x0(x, path.alpha[i], path.sigma[i]),
            replace=lambda i, x, stride=stride: states[(i + 1) * stride] if i < warm else x,
        )
        errors.append(np.abs(run.x - states[-1]).max())
    order, error = expected[0 if exact_start else 1]
    assert math.log2(errors[0] / errors[1]) == pytest.approx(order, abs=0.03)
    assert errors[0] == pytest.approx(error, rel=0.04)


def test_inversion_and_back_converges_at_first_order(truth):
    mixture, states = truth
    errors = []
    for steps in (200, 400):
        path = make_path(VP, "log-snr", steps, t_max=0.6, t_min=0.05)
        back = path.reversed()

        def eps(x, level):
            return (x - level.alpha * mixture.x0(x, level.alpha, level.sigma)) / level.sigma

        # the inversion asks at the time of the level it goes to
        up = Replay(make_plan("ddim-inverse", back), states[-1], lambda i, x, back=back: eps(x, back[i + 1])).x
        down = Replay(make_plan("ddim", path), up, lambda i, x, path=path: eps(x, path[i])).x
        errors.append(np.abs(down - states[-1]).max())
    assert errors[0] < 0.05
    assert math.log2(errors[0] / errors[1]) == pytest.approx(1.0, abs=0.15)


def run_mixture(name, path, seed=3, prediction="x0", **options):
    mixture, plan = Mixture(), make_plan(name, path, prediction=prediction, **options)
    levels = path.levels()
    draw = draws_of(seed, (8, 4))
    x = levels[0].sigma * draw(0)
    return Replay(plan, x, lambda i, x: mixture.x0(x, levels[i].alpha, levels[i].sigma), draw).x


PAIRS = [
    (("ddim", {}), ("euler", {})),
    (("ddim", {}), ("dpmpp-1", {"lower_order_final": 0})),
    (("ddim", {}), ("dpm-1", {})),
    (("ddim", {"eta": 1.0}), ("ddpm", {})),
    (("ddim", {"eta": 1.0}), ("sde-dpmpp-1", {})),
    (("ddim", {"eta": 0.3, "use_clipped": True}), ("ddim", {"eta": 0.3})),
    (("dpmpp-2m", {}), ("sde-dpmpp-2m", {"eta": 0.0})),
    (("dpmpp-3m", {}), ("sde-dpmpp-3m", {"eta": 0.0})),
    (("dpmpp-1", {}), ("dpmpp-3m", {"lower_order_final": 0, "euler_at_final": True})),
]


@pytest.mark.parametrize(("one", "other"), PAIRS, ids=str)
def test_reductions(one, other):
    path = make_path(VP, "log-snr", 1 if other[1].get("euler_at_final") else 9)
    ends = [run_mixture(name, path, **options) for name, options in (one, other)]
    np.testing.assert_allclose(*ends, rtol=1e-12, atol=1e-12)


def test_ddim_eta_of_an_sde_noise_level():
    """tau^2 = -ln(1 - eta^2 (1 - e^{-2h})) / (2h) turns DDIM(eta) into SDE-DPM-Solver++ 1."""
    path = make_path(VP, "log-snr", 6)
    h, eta = path.lam[1] - path.lam[0], 0.6
    tau2 = -math.log(1 - eta**2 * -math.expm1(-2 * h)) / (2 * h)
    ends = [run_mixture("ddim", path, eta=eta), run_mixture("sde-dpmpp-1", path, eta=tau2)]
    np.testing.assert_allclose(*ends, rtol=1e-11)


# Euler-Maruyama discretises the drift of the state's own coordinates; the others see only the log-SNR
@pytest.mark.parametrize("name", [n for n in SAMPLERS if n != "euler-maruyama"])
def test_scaled_state_gives_the_same_run(name):
    """VP state x and VE state x/alpha on the same log-SNR levels."""
    path = make_path(VP, "log-snr", 8)
    mixture = Mixture()
    ends = []
    for p in (path, path.ve()):
        draw = draws_of(5, (8, 4))
        plan, solver = make_plan(name, p, prediction="x0"), solvers()[name]
        at = [step.at for step in solver.steps(p, **solver.options)]  # per call, stages too
        run = Replay(plan, p[0].sigma * draw(0), lambda i, x, at=at: mixture.x0(x, at[i].alpha, at[i].sigma), draw)
        ends.append(run.x / p[-1].alpha)
    np.testing.assert_allclose(*ends, rtol=1e-10, atol=1e-11)


@pytest.mark.parametrize("name", ODE)
@pytest.mark.parametrize("prediction", ["eps", "v", "score", "flow"])
def test_predictions_give_the_same_run(name, prediction):
    """The same exact network in every parametrisation, clipped or not, collapsed rows or not."""
    path, mixture = make_path(VP, "log-snr", 6), Mixture()
    levels = path.levels()
    draw = draws_of(1, (8, 4))
    for clip in (None, 1.0):
        ends = []
        for kind in ("x0", prediction):

            def network(i, x, kind=kind):
                at = levels[i]
                x0 = mixture.x0(x, at.alpha, at.sigma)
                eps = (x - at.alpha * x0) / at.sigma
                rates = path.rates[i]
                return {
                    "x0": x0,
                    "eps": eps,
                    "v": at.alpha * eps - at.sigma * x0,
                    "score": -eps / at.sigma,
                    "flow": rates[0] * x0 + rates[1] * eps,
                }[kind]

            plan = make_plan(name, path, prediction=kind, clip=clip)
            shown = Replay(plan.with_denoised(), draw(0), network)
            end = Replay(plan, draw(0), network)
            np.testing.assert_allclose(shown.x, end.x, rtol=1e-11, atol=1e-11)
            if clip is None:
                expected = [mixture.x0(x, a.alpha, a.sigma) for x, a in zip(shown.asked, levels[:-1], strict=True)]
                np.testing.assert_allclose(shown.previews, expected, atol=1e-9)
            else:
                assert np.abs(shown.previews).max() == 1.0
            ends.append(end.x)
        np.testing.assert_allclose(*ends, rtol=1e-9, atol=1e-9)


def test_euler_maruyama_reaches_the_law_of_the_data():
    """Data N(0, 1/4): the variance of the end tends to the truth with the number of steps, at first order."""
    errors = []
    for steps in (200, 400):
        path = make_path(VP, "log-snr", steps)
        variance = 0.25 * path.alpha**2 + path.sigma**2
        plan = make_plan("euler-maruyama", path)
        unit = np.eye(plan.draws)
        end = Replay(plan, unit[0], lambda i, x, p=path, v=variance: p.sigma[i] / v[i] * x, lambda n, u=unit: u[n]).x
        errors.append(end @ end - variance[-1])
    assert abs(errors[1]) < 0.02
    assert errors[0] / errors[1] == pytest.approx(2.0, abs=0.1)


# these keep their order in a step to sigma = 0
FULL_ORDER = ("lms", "ipndm", "f-pndm", "s-pndm", "plms", "rho-ralston-3", "rho-heun-3", "rho-vdh-3")


@pytest.mark.parametrize(
    "name", [n for n in SAMPLERS if not n.startswith(("dpm-", "sde-dpm-")) and n not in (*FULL_ORDER, *NOISY_END)]
)
def test_final_zero_returns_the_last_prediction(name):
    path = make_path(VP, "karras", 6)
    assert path.sigma[-1] == 0.0
    plan = make_plan(name, path, prediction="x0")
    x = np.full(3, 0.3)
    silent = plan.nfe  # the last call's draw
    run = Replay(
        plan, x, lambda i, x: np.full(3, float(i)), lambda n: np.full(3, math.nan) if n == silent else np.zeros(3)
    )
    np.testing.assert_allclose(run.x, np.full(3, plan.nfe - 1.0), rtol=1e-14)


# the slot x of a forward-value run holds its lookahead (test_solvers_forward_value.py); usf refuses repeated levels;
# dpm-fast has levels of its own
@pytest.mark.parametrize("name", [n for n in SAMPLERS if n not in (*RENOISING, "forward-value", "usf", "dpm-fast")])
def test_repeated_level_changes_nothing(name):
    sigma = [3.0, 1.0, 1.0, 0.4, 0.1, 0.1]
    # the correction of the step before is part of the row at a repeated level
    uncorrected = {"unipc": {"corrector": "none"}, "sa": {"corrector_order": 0}}
    plan = make_plan(name, Path(np.ones(6), sigma), prediction="x0", **uncorrected.get(name, {}))
    rng = np.random.default_rng(0)
    outputs = rng.standard_normal((plan.nfe, 4))
    run = Replay(plan, rng.standard_normal(4), outputs, lambda n: np.ones(4))
    after = dict(zip(plan.step_of, run.states, strict=True))  # the last call of a step ends it
    np.testing.assert_array_equal(after[1], after[0])
    np.testing.assert_array_equal(after[4], after[3])
    assert np.isfinite(run.x).all()


@pytest.mark.parametrize(
    "name",
    [n for n in SAMPLERS if not n.startswith(("dpm-", "sde-dpm-")) and n not in ("euler-maruyama", "usf", *NOISY_END)],
)
def test_pure_noise_start(name):
    """alpha = 0 (rectified flow at t = 1): the first step is x' = alpha' x0_hat + what is left of the noise."""
    path = make_path("flow", "uniform", 5)
    plan = make_plan(name, path, prediction="flow")
    x, u = np.array([0.4, -0.8]), np.array([1.0, 0.5])
    run = Replay(plan, x, [u] * plan.nfe, lambda n: np.zeros(2))
    if not solvers()[name].stochastic:
        np.testing.assert_allclose(run.states[0], x - 0.2 * u, atol=1e-15)
    assert np.isfinite(run.x).all()
    with pytest.raises(ValueError, match="alpha = 0"):
        make_plan(name, path, prediction="eps")
