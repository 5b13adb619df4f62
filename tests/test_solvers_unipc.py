"""UniPC: the authors' program and that of diffusers, orders of convergence, the exact Gaussian law, reductions."""

from __future__ import annotations

import numpy as np
import pytest

from fastsample.grids import make_path
from fastsample.path import Path
from fastsample.plan import make_plan

from .exact import Mixture
from .follow import follow
from .golden_cases import Case, Replay, cases
from .orders import VP, order
from .test_solvers_law import run_mixture

FORM = {"data": "x0", "noise": "eps", True: "x0", False: "eps"}


@pytest.mark.parametrize("anchored", [False, True], ids=["chained", "anchored"])
@pytest.mark.parametrize("case", cases("unipc_official"), ids=str)
def test_authors_program(case, anchored):
    cfg = case.cfg
    options = {"order": cfg["order"], "variant": cfg["variant"], "form": FORM[cfg["form"]], "anchored": anchored}
    follow(case, make_plan("unipc", Path(case["alpha"], case["sigma"], case["t"]), **options))


@pytest.mark.parametrize("anchored", [False, True], ids=["chained", "anchored"])
@pytest.mark.parametrize("case", cases("unipc_diffusers"), ids=str)
def test_diffusers(case, anchored):
    cfg = case.cfg
    prediction = "flow" if cfg["prediction"] == "u" else cfg["prediction"]
    options = {"order": cfg["order"], "variant": cfg["solver_type"], "form": FORM[cfg["predict_x0"]]}
    path = Path(case["alpha"], case["sigma"], np.append(case["t"], 0.0))
    follow(case, make_plan("unipc", path, prediction=prediction, anchored=anchored, **options))


def varied(case: Case) -> float:
    path = Path(case["alpha"], case["sigma"], case["t"])
    plan = make_plan("unipc", path, order=case.cfg["order"], variant="exact")
    mixture, levels = Mixture(), path.levels()

    def eps(i, x):
        return (x - levels[i].alpha * mixture.x0(x, levels[i].alpha, levels[i].sigma)) / levels[i].sigma

    return float(np.abs(Replay(plan, case["x_T"], eps).x - case["x_0"]).max())


@pytest.mark.parametrize("case", cases("unipc_varycoeff_asis"), ids=str)
def test_varying_coefficients_as_published_drop_terms(case):
    """Order 1 of the authors' program is the exact system; from order 2 on its corrector is another, wrong one."""
    if case.cfg["order"] == 1:
        assert varied(case) < 1e-12
    else:
        assert varied(case) > 1e-2


# without lowering at the end; the first step (error h^3 after its correction) limits all to 3 in the end
ORDERS = {
    (1, "bh1"): 2.01,
    (1, "bh2"): 2.00,
    (1, "exact"): 2.00,
    (2, "bh1"): 3.11,
    (2, "bh2"): 3.06,
    (2, "exact"): 3.08,
    (3, "bh1"): 3.30,
    (3, "bh2"): 3.49,
    (3, "exact"): 3.59,
}


@pytest.mark.parametrize(("row", "expected"), ORDERS.items(), ids=str)
def test_order_of_convergence(row, expected):
    p, variant = row
    assert order("unipc", order=p, variant=variant, lower_order_final=False) == pytest.approx(expected, abs=0.02)


def test_lowering_at_the_end_costs_an_order():
    """The last step is of first order and is not corrected: error h^2 there, whatever p."""
    for p in (2, 3, 4):
        assert order("unipc", order=p) == pytest.approx(2.0, abs=0.03)


@pytest.mark.parametrize(("p", "form", "uncorrected", "corrected"), [(3, "x0", 2.09, 3.15), (3, "eps", 2.09, 3.00)])
def test_the_first_step_alone_corrected_frees_a_multistep_predictor(p, form, uncorrected, corrected):
    options = {"order": p, "form": form, "variant": "exact", "lower_order_final": False}
    assert order("unipc", corrector="none", **options) == pytest.approx(uncorrected, abs=0.02)
    assert order("unipc", corrector="first", **options) == pytest.approx(corrected, abs=0.02)


def test_gaussian_law():
    """Data N(0, 1/4), x_T ~ N(0, 1), orders lowered at the end: the variance of the output."""
    expected = {(2, 10): 0.171193146907, (2, 20): 0.231531604779, (3, 10): 0.172259059655, (3, 20): 0.232387013864}
    for (p, steps), value in expected.items():
        path = make_path(VP, "uniform", steps)
        variance = 0.25 * path.alpha**2 + path.sigma**2
        plan = make_plan("unipc", path, order=p)
        end = Replay(plan, np.ones(1), lambda i, x, path=path, v=variance: path.sigma[i] / v[i] * x).x
        assert end[0] ** 2 == pytest.approx(value, abs=1e-12)


PAIRS = [
    ({"order": 1, "corrector": "none"}, ("ddim", {})),
    ({"order": 2, "corrector": "none"}, ("dpmpp-2m", {"lower_order_final": True})),
    ({"order": 2, "variant": "bh1", "corrector": "none"}, ("dpmpp-2m", {"solver_type": "bh1"})),
    ({"order": 3, "corrector": "none", "form": "eps", "variant": "exact"}, ("deis", {})),
    ({"order": 3, "disable_corrector": list(range(9))}, ("unipc", {"order": 3, "corrector": "none"})),
    ({"order": 3, "disable_corrector": list(range(1, 9))}, ("unipc", {"order": 3, "corrector": "first"})),
]


@pytest.mark.parametrize(("options", "other"), PAIRS, ids=str)
def test_reductions(options, other):
    path = make_path(VP, "log-snr", 9)
    ends = [run_mixture(name, path, **given) for name, given in (("unipc", options), other)]
    np.testing.assert_allclose(*ends, rtol=1e-11, atol=1e-11)


@pytest.mark.parametrize("form", ["x0", "eps"])
@pytest.mark.parametrize("variant", ["bh1", "bh2", "exact"])
@pytest.mark.parametrize("prediction", ["flow", "v"])
def test_from_pure_noise_to_clean_data(form, variant, prediction):
    """alpha = 0 at the start, sigma = 0 at the end: the limits of the rows are finite, chained and anchored alike."""
    path, mixture = make_path("flow", "uniform", 6), Mixture()
    levels, ends = path.levels(), []

    def network(i, x):
        x0 = mixture.x0(x, *levels[i][:2])
        eps = (x - levels[i].alpha * x0) / levels[i].sigma
        return eps - x0 if prediction == "flow" else levels[i].alpha * eps - levels[i].sigma * x0

    for anchored in (False, True):
        plan = make_plan("unipc", path, prediction=prediction, order=3, form=form, variant=variant, anchored=anchored)
        ends.append(Replay(plan, np.random.default_rng(1).standard_normal((8, 4)), network).x)
    np.testing.assert_allclose(*ends, rtol=0, atol=1e-12)
    assert np.abs(ends[0]).max() < 5.0


def test_a_nearly_pure_start_is_the_limit_of_a_pure_one():
    sigma = np.array([1.0, 0.8, 0.5, 0.3, 0.1])
    pure, nearly = (np.concatenate([[first], sigma[1:]]) for first in (1.0, 1.0 - 1e-9))
    outputs = np.random.default_rng(3).standard_normal((4, 5))
    # order 1: nodes that lie far back would say less and less like 1/h only
    runs = [
        Replay(make_plan("unipc", Path(1 - s, s, s), prediction="flow", order=1), np.ones(5), outputs)
        for s in (pure, nearly)
    ]
    np.testing.assert_allclose(runs[0].x, runs[1].x, rtol=0, atol=1e-7)


@pytest.mark.parametrize(
    ("option", "value"),
    [
        ("order", 0),
        ("order", 5),
        ("order", "2"),
        ("variant", "bh3"),
        ("form", "v"),
        ("corrector", True),
        ("disable_corrector", 3),
        ("disable_corrector", [-1]),
        ("disable_corrector", [1.0]),
        ("lower_order_final", 1),
        ("anchored", None),
    ],
)
def test_bad_options(option, value):
    with pytest.raises(ValueError, match=f"^{option}: got"):
        make_plan("unipc", make_path(VP, "log-snr", 8), **{option: value})


def test_memory():
    """Chained: the state and p values of D; anchored: one tensor more, with guidance at most the 8 terms of a row."""
    path = make_path(VP, "log-snr", 10)
    for p in (1, 2, 3, 4):
        assert len(make_plan("unipc", path, order=p, guidance=2.0).slots) == 1 + p
        plan = make_plan("unipc", path, order=p, guidance=2.0, anchored=True)
        assert len(plan.slots) == 2 + p
        assert max(len(call.terms) for call in plan.calls) == 4 + p
