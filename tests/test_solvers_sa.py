"""SA-Solver: recorded runs, its reductions, the exact variance of the output by linear propagation."""

from __future__ import annotations

import math

import numpy as np
import pytest

from fastsample.grids import make_path
from fastsample.path import Path
from fastsample.plan import Plan, make_plan
from fastsample.schedules import VPLinear
from fastsample.solvers import find
from fastsample.solvers.registry import complete

from .exact import Mixture
from .golden_cases import Replay, cases
from .test_solvers_law import run_mixture

VP = VPLinear()


def scale(form: str, case) -> float:
    """The noise form is run on states of up to 6e4: 1e-12 of the largest; the x0 form to 1e-10 absolute."""
    return 1e-10 if form == "x0" else 1e-12 * max(1.0, float(np.abs(case["eval_x"]).max()))


@pytest.mark.parametrize("anchored", [False, True], ids=["chained", "anchored"])
@pytest.mark.parametrize("case", cases("sasolver_official"), ids=str)
def test_authors_program(case, anchored):
    cfg = case.cfg
    form = {"data": "x0", "noise": "eps"}[cfg["form"]]
    plan = make_plan(
        "sa",
        Path(case["alpha"], case["sigma"], case["t"]),
        prediction=cfg["prediction"],
        predictor_order=cfg["predictor_order"],
        corrector_order=cfg["corrector_order"],
        form=form,
        tau=case["tau_at_grid"].tolist(),
        mode=cfg["mode"],
        evaluate=cfg["pc_mode"],
        anchored=anchored,
    )
    calls = list(range(len(case["eval_x"])))
    if cfg["mode"] == "more_steps" and cfg["corrector_order"] == 0:
        del calls[cfg["steps"]]  # that program asks twice for the same and drops the first answer
    asked, outputs = case["eval_x"][calls], case["eval_out"][calls]
    # its first draw is thrown away, the step to t_i uses draw i
    run = Replay(plan, case["x_T"], outputs, lambda n: case["noise"][plan.step_of[n - 1] + 1])
    np.testing.assert_allclose(run.asked, asked, rtol=0, atol=scale(form, case))
    np.testing.assert_allclose(run.x, case["x_0"], rtol=0, atol=scale(form, case))


@pytest.mark.parametrize("anchored", [False, True], ids=["chained", "anchored"])
@pytest.mark.parametrize("case", cases("sasolver_diffusers"), ids=str)
def test_diffusers(case, anchored):
    cfg = case.cfg
    form = {"data_prediction": "x0", "noise_prediction": "eps"}[cfg["form"]]
    window = cfg["tau"] == "1 on 200..800"  # their default, a function of the time at the start of the step
    plan = make_plan(
        "sa",
        Path(case["alpha"], case["sigma"], np.append(case["t"], 0.0)),
        predictor_order=cfg["predictor_order"],
        corrector_order=cfg["corrector_order"],
        form=form,
        tau=1.0 if window else case["tau_at_step"].tolist(),
        tau_window=(200, 800) if window else None,
        tau_at="start",
        mode="diffusers",
        anchored=anchored,
    )
    run = Replay(plan, case["x_T"], case["eval_out"], lambda n: case["noise"][n - 1])
    np.testing.assert_allclose(run.asked, case["eval_x"], rtol=0, atol=10 * scale(form, case))
    np.testing.assert_allclose(run.x, case["x_0"], rtol=0, atol=10 * scale(form, case))


ZERO = {"lower_order_final": False}
EXACT = {"mode": "more_steps", **ZERO}  # on a path to sigma = 0: exact weights, and no call more
REDUCTIONS = [
    (("sa", {"tau": 0.0, "predictor_order": k, "corrector_order": k + 1}), ("unipc", {"order": k, "variant": "bh1"}))
    for k in (1, 2, 3)
] + [
    (("sa", {"predictor_order": 1, "corrector_order": 0, "mode": "diffusers"}), ("ddpm", {})),
    (("sa", {"predictor_order": 1, "corrector_order": 0, "tau": 0.0}), ("ddim", {})),
    (
        ("sa", {"predictor_order": 2, "corrector_order": 0, "tau": 0.7, **EXACT}),
        ("sde-dpmpp-2m", {"solver_type": "heun", "eta": 0.7**2, **ZERO}),
    ),
    (
        ("sa", {"predictor_order": 3, "corrector_order": 0, "tau": 0.0, **EXACT}),
        ("dpmpp-3m", {"solver_type": "heun", "third": "exact", **ZERO}),
    ),
    (
        ("sa", {"predictor_order": 2, "corrector_order": 0, "tau": 0.0, "form": "eps", **EXACT}),
        ("unipc", {"order": 2, "variant": "exact", "form": "eps", "corrector": "none", **ZERO}),
    ),
]


@pytest.mark.parametrize(("one", "other"), REDUCTIONS, ids=str)
def test_reductions(one, other):
    path = make_path(VP, "exponential", 9)
    ends = [run_mixture(name, path, **options) for name, options in (one, other)]
    np.testing.assert_allclose(*ends, rtol=1e-11, atol=1e-11)


def variance(path: Path, start: float, call: int, **options) -> tuple[float, Plan]:
    """Exact variance of the state after a call; data N(0, 1/4), exact network."""
    v = 0.25 * path.alpha**2 + path.sigma**2
    plan = make_plan("sa", path, **options)
    unit, at = np.eye(plan.draws), plan.step_of
    run = Replay(plan, math.sqrt(start) * unit[0], lambda i, x: path.sigma[at[i]] / v[at[i]] * x, lambda n: unit[n])
    return float(run.states[call] @ run.states[call]), plan


FEW = {(2, 2, 1.0): (0.2116736993, 0.3338740878), (3, 4, 1.0): (0.2057925898, 0.3333567623)}
FEW[3, 4, 0.5] = (0.1847566983, 0.2534269613)


@pytest.mark.parametrize("which", [0, 1], ids=["N10", "N20"])
def test_exact_variance(which):
    path = make_path(VP, "uniform", (10, 20)[which])
    for (p, c, tau), expected in FEW.items():
        value, plan = variance(path, 1.0, -1, predictor_order=p, corrector_order=c, tau=tau)
        assert value == pytest.approx(expected[which], abs=1e-10)
        assert plan.nfe == path.steps
    value, plan = variance(path, 1.0, -2, predictor_order=3, corrector_order=4, mode="more_steps")
    assert value == pytest.approx((0.1696759540, 0.2815316352)[which], abs=1e-10)
    assert plan.nfe == path.steps + 2


# errors of the variance at N = 128 and 256, full order to the end with a correction there
WEAK = {
    (1, 0, 1.0): (6.63e-3, 3.34e-3),
    (2, 0, 1.0): (7.72e-5, 1.93e-5),
    (3, 0, 1.0): (2.32e-5, 5.20e-6),
    (1, 2, 1.0): (2.14e-4, 5.37e-5),
    (2, 3, 1.0): (2.16e-5, 5.03e-6),
    (3, 4, 1.0): (1.87e-5, 4.65e-6),
    (3, 4, 0.3): (7.31e-7, 1.80e-7),
    (3, 4, 0.0): (1.51e-8, 1.27e-9),
}


@pytest.mark.parametrize(("row", "expected"), WEAK.items(), ids=str)
def test_weak_order(row, expected):
    p, c, tau = row
    options = {"predictor_order": p, "corrector_order": c, "tau": tau, **EXACT}
    for steps, error in zip((128, 256), expected, strict=True):
        path = make_path(VP, "log-snr", steps, t_max=0.6, t_min=0.05)
        truth = 0.25 * path.alpha**2 + path.sigma**2
        assert abs(variance(path, truth[0], -2, **options)[0] - truth[-1]) == pytest.approx(error, rel=4e-3)


def test_strong_order():
    """First order against the fine path of the same Brownian motion, for any (p, c); higher orders have a better
    constant.  Medians over 256 samples (a few switch mode) of a fixed seed."""
    fine_steps, tau = 1280, 0.3
    fine, mixture = make_path(VP, "log-snr", fine_steps, t_max=0.6, t_min=0.05), Mixture()
    noise = np.random.default_rng(0).standard_normal((fine_steps + 1, 256, 4))
    gap = float(fine.lam[1] - fine.lam[0])

    def run(steps, p, c):
        path, k = make_path(VP, "log-snr", steps, t_max=0.6, t_min=0.05), fine_steps // steps
        # what each fine increment leaves at the end of the coarse step, sigma' e^{-tau^2 (lam' - lam_k)}, normalised
        weights = np.exp(-(tau**2) * gap * np.arange(k - 1, -1, -1.0))
        weights /= np.linalg.norm(weights)
        plan = make_plan("sa", path, prediction="x0", predictor_order=p, corrector_order=c, tau=tau, mode="diffusers")
        return Replay(
            plan,
            path.sigma[0] * noise[0],
            lambda i, x: mixture.x0(x, path.alpha[i], path.sigma[i]),
            lambda n: np.tensordot(weights, noise[1 + (n - 1) * k : 1 + n * k], axes=1),
        ).x

    truth = run(fine_steps, 3, 4)
    errors = {
        row: [float(np.median(np.linalg.norm(run(steps, *row) - truth, axis=1))) for steps in (20, 80)]
        for row in ((1, 0), (3, 4))
    }
    for coarse, finer in errors.values():
        assert math.log2(coarse / finer) / 2 == pytest.approx(1.0, abs=0.15)
    assert errors[3, 4][0] < 0.5 * errors[1, 0][0]


@pytest.mark.parametrize("anchored", [False, True])
def test_the_correction_is_silent_when_the_network_always_says_the_same(anchored):
    """The corrector reuses the noise of its step: with a constant D it changes nothing."""
    path = make_path(VP, "log-snr", 8)
    rng = np.random.default_rng(4)
    draws, x = rng.standard_normal((20, 3)), rng.standard_normal(3)
    plans = [make_plan("sa", path, prediction="x0", corrector_order=c, anchored=anchored) for c in (0, 4)]
    runs = [Replay(plan, x, lambda i, x: np.full(3, 0.3), draws) for plan in plans]
    np.testing.assert_allclose(runs[0].states, runs[1].states, rtol=0, atol=2e-15)
    again = make_plan("sa", path, prediction="x0", evaluate="PECE", anchored=anchored)
    twice = Replay(again, x, lambda i, x: np.full(3, 0.3), lambda n: draws[1 + again.step_of[n - 1]])
    np.testing.assert_allclose(twice.x, runs[0].x, rtol=0, atol=2e-15)


def test_no_noise_no_draws():
    path = make_path(VP, "log-snr", 8)
    assert make_plan("sa", path, tau=0.0).draws == 1
    assert make_plan("sa", path, tau=1.0, tau_window=(2.0, 3.0)).draws == 1
    assert make_plan("sa", path, tau=1.0).draws == 9


def test_an_edit_between_calls_is_dropped_by_the_anchored_corrector_alone():
    path = make_path(VP, "log-snr", 4)
    for name in ("sa", "unipc"):
        ends = []
        for anchored in (False, True):
            plan = make_plan(name, path, prediction="x0", anchored=anchored)
            edited = [
                Replay(
                    plan,
                    np.ones(2),
                    np.ones((4, 2)),
                    lambda n: np.zeros(2),
                    replace=lambda i, x, by=by: x + by * (i == 1),
                ).x
                for by in (0.0, 1.0)
            ]
            ends.append(edited[1] - edited[0])
        assert np.abs(ends[0]).min() > 1e-4
        assert np.abs(ends[1]).max() == 0.0


def test_tau_by_level_step_window_and_function():
    path = make_path(VP, "uniform", 5)
    inside = [0.2 <= t <= 0.8 for t in path.t]
    by_level = [0.5 if i else 0.0 for i in inside]
    plans = [
        make_plan("sa", path, tau=0.5, tau_window=(0.2, 0.8)),
        make_plan("sa", path, tau=by_level),
        make_plan("sa", path, tau=by_level[1:]),
        make_plan("sa", path, tau=lambda level: 0.5 if 0.2 <= level.t <= 0.8 else 0.0),
    ]
    for plan in plans[1:]:
        np.testing.assert_array_equal(plan.table, plans[0].table)
    assert plans[3] == Plan.from_json(plans[3].to_json()) == plans[1]
    starts = make_plan("sa", path, tau=0.5, tau_window=(0.2, 0.8), tau_at="start")
    np.testing.assert_array_equal(starts.table, make_plan("sa", path, tau=by_level[:-1]).table)
    assert not np.array_equal(starts.table, plans[0].table)


@pytest.mark.parametrize(
    ("option", "value"),
    [
        ("predictor_order", 0),
        ("predictor_order", 5),
        ("predictor_order", 2.0),
        ("predictor_order", True),
        ("corrector_order", -1),
        ("corrector_order", 5),
        ("form", "v"),
        ("tau", -0.1),
        ("tau", math.nan),
        ("tau", "1"),
        ("tau", [1.0, 1.0]),
        ("tau_window", (0.8, 0.2)),
        ("tau_window", 0.3),
        ("tau_at", "middle"),
        ("mode", "many"),
        ("evaluate", "PE"),
        ("lower_order_final", 10),
        ("anchored", 1),
    ],
)
def test_bad_options(option, value):
    with pytest.raises(ValueError, match=f"^{option}: got"):
        make_plan("sa", make_path(VP, "log-snr", 8), **{option: value})


def test_paths_it_cannot_run():
    with pytest.raises(ValueError, match="from noise to data"):
        make_plan("sa", make_path(VP, "log-snr", 8).reversed())
    assert complete(find("sa-solver"), {})["predictor_order"] == 3
