"""DEIS, LMS, iPNDM and rhoRK: recorded runs, exactness on polynomials, orders of convergence."""

from __future__ import annotations

import math

import numpy as np
import pytest

from fastsample.grids import make_path
from fastsample.path import Path
from fastsample.plan import make_plan
from fastsample.schedules import CustomSchedule, VPLinear
from fastsample.solvers.assemble import DEFAULTS, assemble
from fastsample.solvers.deis import adams_bashforth, lms, tab
from fastsample.solvers.rho_rk import TABLEAUX, rho_rk
from fastsample.solvers.stages import Between

from .exact import Mixture
from .follow import follow
from .golden_cases import Replay, cases
from .orders import VP, error, order
from .test_solvers_law import run_mixture

# the schedules of the recorded runs; that cosine is not scaled to alpha(0) = 1
COSINE = CustomSchedule(
    lambda t: np.cos(np.pi / 2 * (t + 0.008) / 1.008), lambda t: np.sin(np.pi / 2 * (t + 0.008) / 1.008), 1e-4, 0.99
)
NAMES = {
    "2heun": "heun-2",
    "3kutta": "kutta-3",
    "3ral": "ralston-3",
    "3heun": "heun-3",
    "3vdh": "vdh-3",
    "3ssprk": "ssp-3",
    "4rk": "rk4",
}


def schedule_of(case):
    return VPLinear() if case.cfg["schedule"] == "vp_linear" else COSINE


def path_of(case) -> Path:
    return Path(case["alpha"], case["sigma"], case["t"])


def plan_of(path: Path, steps):
    return assemble("steps", path, steps, options={}, prediction="eps", **DEFAULTS)


@pytest.mark.parametrize("case", cases("deis_ipndm"), ids=str)
def test_ipndm(case):
    follow(case, make_plan("ipndm", path_of(case)))


@pytest.mark.parametrize("anchored", [False, True], ids=["chained", "anchored"])
@pytest.mark.parametrize("case", cases("deis_rhork"), ids=str)
def test_runge_kutta(case, anchored):
    path = path_of(case)
    steps = rho_rk(path, tableau=NAMES[case.cfg["rk"]], schedule=schedule_of(case), anchored=anchored)
    follow(case, plan_of(path, steps))


@pytest.mark.parametrize("case", cases("deis_diffusers"), ids=str)
def test_diffusers(case):
    # on the cosine table (first alpha 5e-5) the closed forms of that program lose digits
    atol = 1e-9 if "cosine" in case.cfg["schedule"] else 1e-10
    path = Path(case["alpha"], case["sigma"], np.append(case["t"], 0.0))
    follow(case, make_plan("deis", path, prediction=case.cfg["prediction"], order=case.cfg["order"]), atol=atol)


def left_sums(case, coordinate: str, points: int):
    """Weights of the authors' program, whose integrals are sums over 10000 left ends."""
    schedule, levels = schedule_of(case), path_of(case).levels()

    def weights(i, past):
        start, end = levels[i], levels[i + 1]
        first, last = (start.t, end.t) if coordinate == "t" else (start.rho, end.rho)
        y = np.linspace(first, last, points + 1)[:-1]
        rate = np.full(points, (last - first) / points)
        if coordinate == "t":  # d rho/dt = -rho d lambda/dt = -(rho/sigma^2) d log alpha/dt
            alpha, sigma = schedule.alpha(y), schedule.sigma(y)
            slope = -np.tan(np.pi / 2 * (y + 0.008) / 1.008) * np.pi / 2 / 1.008
            if isinstance(schedule, VPLinear):
                slope = -0.5 * (schedule.beta_min + y * (schedule.beta_max - schedule.beta_min))
            rate *= -slope / (alpha * sigma)
        nodes = [first, *(levels[k].t if coordinate == "t" else levels[k].rho for k in past)]
        found = []
        for node in nodes:
            basis = np.prod([(y - other) / (node - other) for other in nodes if other != node] or [y**0], axis=0)
            found.append(float(end.alpha * (basis * rate).sum()))
        return found

    return weights


@pytest.mark.parametrize("case", [*cases("deis_tab"), *cases("deis_rhoab")], ids=str)
def test_adams_bashforth(case):
    """With the authors' sums their run to 1e-10; the limit of these sums is what our exact integrals give."""
    path, values = path_of(case), case.cfg["ab_order"] + 1
    in_t = case.cfg["method"] == "t_ab"
    sums = [left_sums(case, "t" if in_t else "rho", points) for points in (10000, 20000)]
    follow(case, plan_of(path, adams_bashforth(path, values, sums[0])))
    steps = tab(path, order=values, schedule=schedule_of(case)) if in_t else lms(path, order=values)
    for i, step in enumerate(steps):
        coarse, fine = (s(i, list(range(i - 1, max(i - values, -1), -1))) for s in sums)
        limit = 2 * np.array(fine) - np.array(coarse)  # the first order in 1/points is gone, the second is below 1e-5
        np.testing.assert_allclose(step.b, limit, rtol=0, atol=1e-5 * np.abs(limit).sum())
        assert sum(step.b) == pytest.approx(path.sigma[i + 1] - step.a * path.sigma[i], rel=1e-12)


@pytest.mark.parametrize("case", [c for c in cases("kdiffusion_ode") if c.cfg["sampler"] == "lms"], ids=str)
def test_lms_of_k_diffusion(case):
    path = Path(np.ones_like(case["sigmas"]), case["sigmas"])
    follow(case, make_plan("lms", path, prediction="x0", order=case.cfg["order"]))


@pytest.mark.parametrize("case", [c for c in cases("kdiffusion_ode") if c.cfg["sampler"] == "heun"], ids=str)
def test_heun_of_k_diffusion_is_a_tableau(case):
    path = Path(np.ones_like(case["sigmas"]), case["sigmas"])
    follow(case, make_plan("rho-heun-2", path, prediction="x0"))


@pytest.mark.parametrize(
    "case", [c for c in cases("euler_family_diffusers") if c.cfg["scheduler"].startswith("LMS")], ids=str
)
def test_lms_of_diffusers(case):
    rho = case["sched_sigmas"]
    path = Path(np.ones_like(rho), rho, np.append(case["t"], 0.0))
    follow(case, make_plan("lms", path, prediction=case.cfg["prediction"], input_scaling="vp"))


def test_ipndm_of_diffusers():
    """Its first level is pure noise, where it takes x0_hat for 0."""
    torch, diffusers = pytest.importorskip("torch"), pytest.importorskip("diffusers")
    scheduler = diffusers.IPNDMScheduler(1000)
    scheduler.set_timesteps(8)
    scheduler.betas = torch.sin(torch.linspace(1, 0, 9, dtype=torch.float64) * math.pi / 2)  # single precision there
    scheduler.alphas = (1 - scheduler.betas**2).sqrt()
    alpha, sigma = scheduler.alphas.numpy(), scheduler.betas.numpy()
    assert alpha[0] == 0.0
    rng = np.random.default_rng(0)
    outputs, start = rng.standard_normal((8, 3, 4)), rng.standard_normal((3, 4))
    x = torch.tensor(start)
    for t, v in zip(scheduler.timesteps, outputs, strict=True):
        x = scheduler.step(torch.tensor(v), t, x).prev_sample
    plan = make_plan("ipndm", Path(alpha, sigma, np.linspace(1, 0, 9)), prediction="v", from_noise="diffusers")
    np.testing.assert_allclose(Replay(plan, start, outputs).x, x.numpy(), rtol=0, atol=1e-13)


def polynomial(name: str, path: Path, power: int, coordinate, **options) -> float:
    """Error of a run whose eps_hat is coordinate**power, against the integral over rho."""
    plan = make_plan(name, path, **options)
    outputs = [np.array([float(coordinate(level)) ** power]) for level in path.levels()[:-1]]
    exact = np.polynomial.Polynomial([0.0] * power + [1.0]).integ()
    x = np.array([0.7])
    given = {
        k: x * path.alpha[k] / path.alpha[0] + path.alpha[k] * (exact(path.rho[k]) - exact(path.rho[0]))
        for k in range(len(path))
    }
    warm = plan.options.get("order", 4) - 1
    run = Replay(plan, x, outputs, replace=lambda i, x: given[i + 1] if i < warm else x)
    return float(np.abs(run.x - given[path.steps])[0])


@pytest.mark.parametrize("values", [1, 2, 3, 4])
def test_lms_integrates_polynomials_in_rho(values):
    """Exact up to the degree values - 1, from exact starting states, also in the last step to sigma = 0."""
    path = make_path("edm", "karras", 8, sigma_max=3.0, sigma_min=0.1)
    for power in range(values + 1):
        wrong = polynomial("lms", path, power, lambda level: level.rho, order=values)
        assert (wrong < 1e-14) == (power < values)


def test_tab_is_lms_where_time_is_sigma():
    path = make_path("edm", "karras", 8, sigma_max=3.0, sigma_min=0.1, final="end")
    ends = [run_mixture(name, path) for name in ("deis-tab", "lms")]
    np.testing.assert_allclose(*ends, rtol=0, atol=1e-12)


ORDERS = {
    ("deis-tab", 2): 1.98,
    ("deis-tab", 4): 2.06,
    ("lms", 2): 1.97,
    ("lms", 4): 2.21,
    ("deis", 2): 1.99,
    ("deis", 3): 2.09,
    ("ipndm", 2): 1.99,
    ("ipndm", 4): 2.01,
}


@pytest.mark.parametrize(("row", "expected"), ORDERS.items(), ids=str)
def test_order_of_convergence(row, expected):
    """The first step is Euler's: no more than order 2 in the end, whatever the number of values."""
    name, values = row
    assert order(name, order=values) == pytest.approx(expected, abs=0.02)


def test_a_corrected_first_step_lifts_deis_to_three():
    assert order("deis", order=3, corrector="first") == pytest.approx(3.0, abs=0.02)
    assert error("deis", 160, order=3, corrector="first") < 0.3 * error("deis", 160, order=3)


@pytest.mark.parametrize("tableau", TABLEAUX)
def test_order_of_runge_kutta(tableau):
    expected = TABLEAUX[tableau][3]
    assert order(f"rho-{tableau}") == pytest.approx(expected, abs=0.06)


@pytest.mark.parametrize("tableau", TABLEAUX)
def test_order_conditions(tableau):
    nodes, matrix, weights, p = TABLEAUX[tableau]
    a = np.zeros((len(weights), len(weights)))
    for m, row in enumerate(matrix):
        a[m + 1, : len(row)] = row
    b, c = np.array(weights), np.array([0.0, *nodes])
    np.testing.assert_allclose(a.sum(1), c, atol=1e-15)
    for k in range(p):
        assert b @ c**k == pytest.approx(1 / (k + 1), abs=1e-15)
    if p >= 3:
        assert b @ a @ c == pytest.approx(1 / 6, abs=1e-15)
    if p >= 4:
        assert b @ (c * (a @ c)) == pytest.approx(1 / 8, abs=1e-15)
        assert b @ a @ c**2 == pytest.approx(1 / 12, abs=1e-15)
        assert b @ a @ a @ c == pytest.approx(1 / 24, abs=1e-15)


def test_levels_between():
    lam = 0.37
    for schedule, grid in (("vp-linear", "log-snr"), ("edm", "exponential"), ("flow", "uniform")):
        path = make_path(schedule, grid, 10, final="end", **({"t_min": 0.05} if schedule == "flow" else {}))
        i = int(np.searchsorted(path.lam, lam)) - 1
        told, guessed = Between(path, schedule)(i, lam), Between(path)(i, lam)
        assert guessed[:2] == pytest.approx(told[:2], rel=1e-13)
        # the time is a guess for VP alone, good to half a percent on ten steps
        assert guessed.t == pytest.approx(told.t, rel=5e-3 if schedule == "vp-linear" else 1e-13)
        assert Between(path)(i, path[i].lam) == path[i]
        assert Between(path)(i, path[i + 1].lam) == path[i + 1]
    guess = Between(make_path("vp-linear", "exponential", 10)).t(9, 8.0)  # the last step ends at sigma = 0
    assert 0.0 < guess < 1e-3


def test_what_cannot_run():
    odd = Path([0.5, 0.7, 0.9], [1.0, 0.8, 0.3], [1.0, 0.5, 0.1])
    with pytest.raises(ValueError, match="give the option schedule"):
        make_plan("rho-rk4", odd)
    make_plan("rho-heun-2", odd)  # its stage lies at a level of the path
    with pytest.raises(ValueError, match="known at the levels of the path"):
        make_plan("rho-rk4", make_path(VP, "log-snr", 4), prediction="flow")
    with pytest.raises(ValueError, match="schedule: got 'flow', whose alpha"):
        make_plan("rho-rk4", make_path(VP, "log-snr", 4), schedule="flow")
    with pytest.raises(ValueError, match="schedule: got 'vpp'"):
        make_plan("rho-rk4", make_path(VP, "log-snr", 4), schedule="vpp")
    for name in ("lms", "deis", "deis-tab", "ipndm", "rho-rk4"):
        with pytest.raises(ValueError, match="from noise to data"):
            make_plan(name, make_path(VP, "log-snr", 4).reversed())
        if name != "rho-rk4":
            with pytest.raises(ValueError, match="order: got 5"):
                make_plan(name, make_path(VP, "log-snr", 4), order=5)
    with pytest.raises(ValueError, match="corrector: got 'all'"):
        make_plan("deis", make_path(VP, "log-snr", 4), corrector="all")
    with pytest.raises(ValueError, match="lower_order_final: got -1"):
        make_plan("deis", make_path(VP, "log-snr", 4), lower_order_final=-1)
    with pytest.raises(ValueError, match="from_noise: got 'zero'"):
        make_plan("ipndm", make_path(VP, "log-snr", 4), from_noise="zero")
    with pytest.raises(ValueError, match="times that differ"):
        make_plan("deis-tab", Path([1.0] * 3, [3.0, 2.0, 1.0], [1.0, 1.0, 0.5]))


def test_general_flow_networks_are_converted_at_the_level_of_the_call():
    """A stage at the end of a step has the rates of that level, not those of the step's start."""
    path, mixture = make_path(VP, "log-snr", 6), Mixture()
    ends = []
    for kind in ("x0", "flow"):
        at = [level for pair in zip(range(6), range(1, 7), strict=True) for level in pair]  # Heun's calls

        def network(i, x, kind=kind, at=at):
            level, rates = path[at[i]], path.rates[at[i]]
            x0 = mixture.x0(x, level.alpha, level.sigma)
            return x0 if kind == "x0" else rates[0] * x0 + rates[1] * (x - level.alpha * x0) / level.sigma

        ends.append(Replay(make_plan("rho-heun-2", path, prediction=kind), np.ones((8, 4)), network).x)
    np.testing.assert_allclose(*ends, rtol=1e-11)
    assert math.isfinite(ends[0].sum())
