"""USF: identities with the plain solvers, orders of convergence, documents, bad input."""

from __future__ import annotations

import math

import numpy as np
import pytest

from fastsample.grids import make_path
from fastsample.path import Path
from fastsample.plan import make_plan
from fastsample.schedules import VPLinear
from fastsample.solvers import usf

from .exact import Mixture, exact_flow
from .golden_cases import Replay

MIXTURE = Mixture()
VP = VPLinear()


def network_of(path, prediction="eps"):
    levels = path.levels()

    def network(i, x):
        at = levels[i]
        x0 = MIXTURE.x0(x, at.alpha, at.sigma)
        eps = (x - at.alpha * x0) / at.sigma
        return {"eps": eps, "x0": x0, "v": at.alpha * eps - at.sigma * x0, "score": -eps / at.sigma}[prediction]

    return network


IDENTITIES = [
    ("ddim", {}, "ddim", {}),
    ("ddim", {"form": "eps"}, "ddim", {}),
    ("dpmpp-2m", {}, "dpmpp-2m", {"lower_order_final": True}),
    ("dpmpp-2m", {"lower_order_final": False}, "dpmpp-2m", {"lower_order_final": False}),
    ("dpmpp-2m-taylor", {}, "dpmpp-2m", {"lower_order_final": True, "solver_type": "heun"}),
    ("dpm-2m", {}, "dpm-2m", {"lower_order_final": True}),
    ("dpm-2m-taylor", {}, "dpm-2m", {"lower_order_final": True, "solver_type": "heun"}),
    ("dpmpp-3m", {}, "dpmpp-3m", {"lower_order_final": True, "solver_type": "heun", "third": "exact"}),
    ("dpm-3m", {}, "dpm-3m", {"lower_order_final": True, "solver_type": "heun", "third": "exact"}),
    ("dpm-2s", {}, "dpm-2s", {"fixed": True}),
    ("dpm-2s-taylor", {}, "dpm-2s", {"fixed": True, "solver_type": "heun"}),
    ("dpm-3s", {}, "dpm-3s", {"fixed": True, "solver_type": "heun"}),
    *(
        (f"unipc-{order}-{variant}", {"form": form}, "unipc", {"order": order, "variant": variant, "form": form})
        for order in (2, 3, 4)
        for variant in ("bh1", "bh2", "exact")
        for form in ("x0", "eps")
    ),
]


@pytest.mark.parametrize(("name", "choices", "solver", "options"), IDENTITIES, ids=str)
def test_known_solvers(name, choices, solver, options):
    # six steps of whole groups, uniform in lambda, as the sub-steps of the singlestep solvers are
    steps, grid = (6, "log-snr") if name.startswith(("dpm-2s", "dpm-3s")) else (8, "uniform")
    path = make_path(VP, grid, steps)
    x = np.random.default_rng(0).standard_normal((8, 4))
    document = usf.known(name, steps, **choices)
    if name.endswith(("bh1", "bh2")):  # the framework does not relax correctors, UniPC those of two nodes
        for step in document["steps"]:
            if step["corrector"] is not None and step["corrector"]["order"] == 2:
                step["corrector"]["derivatives"][0]["relaxation"] = f"unipc-{name[-3:]}"
    mine = Replay(make_plan("usf", path, schedule=document), x, network_of(path))
    plain = Replay(make_plan(solver, path, **options), x, network_of(path))
    np.testing.assert_allclose(mine.asked, plain.asked, rtol=0, atol=1e-12)
    np.testing.assert_allclose(mine.x, plain.x, rtol=0, atol=1e-12)


def lambda_path(steps):
    lam = np.linspace(-3.0, 3.0, steps + 1)
    return Path(1 / np.sqrt(1 + np.exp(-2 * lam)), 1 / np.sqrt(1 + np.exp(2 * lam)), np.linspace(1, 0, steps + 1))


@pytest.fixture(scope="module")
def truth():
    x = np.random.default_rng(4).standard_normal((64, 4))
    times = [float(VP.t_of_lam(lam)) for lam in (-3.0, 3.0)]
    return x, exact_flow(MIXTURE.x0, VP, *times, x, 1280)


def document(steps, order, form="x0", relaxation=None, coefficient=0.0, corrector=None, low=False):
    made = []
    for i in range(steps):
        p = min(order, i + 1)
        items = []
        for k in range(1, p):
            points = [-2] if low and k == 1 else [-2 - j for j in range(p - 1)]
            items.append({"points": points, "relaxation": relaxation if k == 1 else None, "coefficient": coefficient})
        now = form if form != "alternating" else ("x0", "eps")[i % 2]
        fix = corrector if i + 1 < steps else None
        made.append({"form": now, "order": p, "derivatives": items, "corrector": fix})
    return {"steps": made}


ORDERS = [
    ({"order": 1}, 1.0),
    ({"order": 2}, 2.0),
    ({"order": 2, "form": "eps"}, 2.0),
    ({"order": 2, "form": "alternating"}, 2.0),
    ({"order": 1, "corrector": "pseudo"}, 2.0),
    ({"order": 2, "corrector": "pseudo"}, 3.0),
    *(
        ({"order": 2, "relaxation": r, "form": f}, 2.0)
        for r in ("dpmsolver-2", "unipc-bh1", "0.5exp")
        for f in ("x0", "eps")
    ),
    ({"order": 3, "low": True}, 2.0),
]


def slope(truth, choices, exact_start=0):
    """Order between 160 and 320 steps of the median error; the first ``exact_start`` states are exact."""
    x, states = truth
    errors = []
    for steps in (160, 320):
        path, stride = lambda_path(steps), 1280 // steps

        def replaced(i, state, stride=stride):
            return states[(i + 1) * stride] if i < exact_start else state

        plan = make_plan("usf", path, prediction="x0", schedule=document(steps, **choices))
        run = Replay(plan, x, network_of(path, "x0"), replace=replaced)
        errors.append(np.median(np.linalg.norm(run.x - states[-1], axis=1)))
    return math.log2(errors[0] / errors[1])


@pytest.mark.parametrize(("choices", "order"), ORDERS, ids=str)
def test_order_of_convergence(choices, order, truth):
    assert slope(truth, choices) == pytest.approx(order, abs=0.12)


@pytest.mark.parametrize(("order", "form"), [(3, "x0"), (3, "eps"), (4, "x0")])
def test_higher_orders_need_an_exact_start(order, form, truth):
    """From a first-order step the order tends to 2 whatever comes after; from exact points it is that of the update."""
    assert slope(truth, {"order": order, "form": form}) < 2.8
    assert slope(truth, {"order": order, "form": form}, exact_start=order - 1) == pytest.approx(order, abs=0.2)


def mixed(steps):
    """Forms that alternate, orders to 3, a relaxation, correctors at every other step."""
    made = document(steps, 3, form="alternating", relaxation="linear", coefficient=-0.1)
    for i, step in enumerate(made["steps"][:-1]):
        step["corrector"] = "pseudo" if i % 2 else None
    return made


@pytest.mark.parametrize("clip", [None, 0.8])
@pytest.mark.parametrize("prediction", ["x0", "v", "score"])
def test_predictions_give_the_same_run(prediction, clip):
    path = make_path(VP, "log-snr", 7)
    x = np.random.default_rng(1).standard_normal((8, 4))
    ends = [
        Replay(make_plan("usf", path, prediction=p, clip=clip, schedule=mixed(7)), x, network_of(path, p)).x
        for p in ("eps", prediction)
    ]
    np.testing.assert_allclose(*ends, rtol=0, atol=1e-10)


def test_scaled_state_gives_the_same_run():
    path = make_path(VP, "log-snr", 7)
    x = np.random.default_rng(2).standard_normal((8, 4))
    ends = []
    for p in (path, path.ve()):
        plan = make_plan("usf", p, prediction="x0", schedule=mixed(7))
        start = x * p.alpha[0] / path.alpha[0]
        ends.append(Replay(plan, start, network_of(p, "x0")).x / p.alpha[-1])
    np.testing.assert_allclose(*ends, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("corrector", [None, "pseudo"])
def test_the_first_call_may_be_guessed(corrector):
    """The same numbers as a network that answers its first call with x (VP) or x / sigma."""
    path, made = make_path(VP, "log-snr", 6), document(6, 3, corrector=corrector)
    x = np.random.default_rng(3).standard_normal((8, 4))
    for p in (path, path.ve()):
        network = network_of(p)
        guess = x / p.sigma[0] if p.alpha[0] == 1.0 else x
        full = Replay(make_plan("usf", p, schedule=made), x, lambda i, y, n=network, g=guess: n(i, y) if i else g)
        plan = make_plan("usf", p, schedule=made, afs="zero-x0")
        run = Replay(plan, x, lambda i, y, n=network: n(i + 1, y))
        assert plan.nfe == 5
        np.testing.assert_allclose(run.asked, full.asked[1:], rtol=0, atol=1e-11)
        np.testing.assert_allclose(run.x, full.x, rtol=0, atol=1e-11)


def test_a_corrector_at_the_last_step_costs_a_call():
    """One DDIM step and its trapezoidal correction, by hand."""
    path = Path([0.6, 0.8], [0.8, 0.6], [1.0, 0.5])
    plan = make_plan("usf", path, prediction="x0", schedule={"steps": [{"corrector": "pseudo"}]})
    assert plan.nfe == 2
    x, d0, d1 = np.random.default_rng(4).standard_normal((3, 5))
    h = path.lam[1] - path.lam[0]
    run = Replay(plan, x, [d0, d1])
    first = -math.expm1(-h)
    np.testing.assert_allclose(run.asked[1], 0.75 * x + 0.8 * first * d0, rtol=1e-14)
    np.testing.assert_allclose(run.x, 0.75 * x + 0.8 * (first * d0 + (1 - first / h) * (d1 - d0)), rtol=1e-13)


def test_no_relaxation_is_linear_with_zero():
    path = make_path(VP, "log-snr", 6)
    plans = [make_plan("usf", path, schedule=document(6, 3, relaxation=r)) for r in (None, "linear")]
    np.testing.assert_array_equal(plans[0].table, plans[1].table)
