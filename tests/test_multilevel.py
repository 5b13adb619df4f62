"""Multilevel Euler-Maruyama: which levels are asked, with what weight, and what comes of it."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from fastsample import GaussianMixture, Ladder, Network, make_path, noise, sample
from fastsample.loop import drive
from fastsample.path import Path
from fastsample.procedures import Setting
from fastsample.procedures.multilevel import Multilevel
from fastsample.solvers import multilevel as ml
from fastsample.solvers.assemble import DEFAULTS
from fastsample.solvers.fine_tables import FineTable

from .exact import Mixture
from .golden_cases import GOLDEN

COSTS = tuple(2.0 ** (2.5 * k) for k in range(5))
P = np.array([1.0, 0.6, 0.4, 0.25, 0.15, 0.1])


def setting(path, x, *, network=None, **given):
    facts = {**DEFAULTS, "prediction": "eps", **(network or {})}
    return Setting(path, None, facts, x, "state", None, None, None, False, **given)


@pytest.mark.parametrize("file", sorted(p.name for p in GOLDEN.glob("mlem_*.npz")))
def test_golden(file):
    data = np.load(GOLDEN / file)
    path = Path(data["alphas"], data["sigmas"], np.arange(len(data["alphas"]), dtype=float))
    mixture = Mixture()
    w, phase = torch.from_numpy(data["W"]), torch.from_numpy(data["phase"])
    z = torch.from_numpy(data["Z"])
    noises = {1 + i: z[i] for i in range(len(z))}
    begin = setting(path, torch.from_numpy(data["x_T"]))
    begin = type(begin)(**{**vars(begin), "noise": noises, "costs": COSTS})
    table = FineTable(path, data["a"], data["b"], data["s"])
    run = Multilevel(begin, table, data["p"], data["bernoulli"])

    def predict(x, t, level, index=None):
        i = int(t[0])
        alpha, sigma = float(data["alphas"][i]), float(data["sigmas"][i])
        eps = (x - alpha * torch.from_numpy(mixture.x0(x.numpy(), alpha, sigma))) / sigma
        return eps + float(data["pert_c"]) * 2.0**-level * torch.sin(x @ w[level].T + phase[level])

    states = [run.state.clone()]
    drive(run, predict, [lambda call: states.append(run.state.clone()) if run.ends_step(call) else None])
    assert torch.stack(states).numpy() == pytest.approx(data["states"], rel=1e-12, abs=1e-12)


def test_one_step_is_unbiased_and_has_the_variance_of_the_formula():
    """200,000 draws; a mean outside 5 standard errors has probability 6e-7 per element, 4e-6 for all; seed fixed."""
    generator = np.random.default_rng(0)
    levels = generator.normal(size=(6, 7)) * 2.0 ** -np.arange(6)[:, None]
    levels = np.cumsum(levels, axis=0)
    flags = ml.draw(P[None], generator.random((200_000, 1, 6)), "independent")
    made = ml.weights(flags, P)[:, 0] @ levels
    steps = np.diff(np.concatenate([np.zeros((1, 7)), levels]), axis=0)
    variance = ((1 / P - 1)[:, None] * steps**2).sum(0)
    assert (np.abs(made.mean(0) - levels[-1]) < 5 * np.sqrt(variance / 200_000)).all()
    assert made.var(0) == pytest.approx(variance, rel=0.02)


@pytest.mark.parametrize("kind", ml.DRAWS)
def test_every_kind_of_draw_has_the_probabilities_as_means(kind):
    """A binomial count outside 6 standard errors has probability 2e-9; systematic draws differ by less than one."""
    p = np.broadcast_to(P, (40, 6)) * np.linspace(0.5, 1.0, 40)[:, None]
    u = np.random.default_rng(1).random((5000, 40, 6))
    flags = ml.draw(p, u, kind)
    spread = np.sqrt(p * (1 - p) / 5000)
    assert (np.abs(flags.mean(0) - p) <= 6 * spread + 1e-12).all()
    if kind == "nested":
        assert (flags[..., 1:] <= flags[..., :-1]).all()
    if kind == "systematic":
        assert (np.abs(flags.sum(1) - p.sum(0)) < 1).all()


@settings(max_examples=50, deadline=None)
@given(st.lists(st.booleans(), min_size=1, max_size=6), st.integers(0, 2**31))
def test_weights_collapse_the_telescope(flags, seed):
    p = np.random.default_rng(seed).uniform(0.05, 1.0, len(flags))
    e = np.random.default_rng(seed + 1).normal(size=len(flags))
    direct = sum(b / q * (e[k] - (e[k - 1] if k else 0.0)) for k, (b, q) in enumerate(zip(flags, p, strict=True)))
    omega = ml.weights(np.array(flags), p)
    assert omega @ e == pytest.approx(direct, abs=1e-9)
    assert omega.sum() == pytest.approx(flags[0] / p[0])


def test_expected_cost_is_the_mean_cost_of_draws():
    """Two independent means of 40,000 draws agree within 1 %: more than 5 standard errors here."""
    p = np.tile(P[None, :5], (3, 1))
    p[1, 1] = 1.0  # equal to p_0: that pair collapses
    for kind in ("independent", "nested"):
        q = np.sort(p, axis=1)[:, ::-1].copy() if kind == "nested" else p
        flags = ml.draw(q, np.random.default_rng(2).random((40_000, 3, 5)), kind)
        cost = (ml.weights(flags, q) != 0).mean(0) @ np.array(COSTS)
        assert ml.expected_cost(q, COSTS, kind) == pytest.approx(cost.sum(), rel=0.02)


def test_probabilities_at_a_cost():
    made = ml.at_cost(lambda c: ml.law(5, 2.5, c), 20.0 * 100, COSTS, 100)
    assert made.shape == (100, 5)
    assert (made[:, 0] == 1.0).all()
    assert ml.expected_cost(made, COSTS) == pytest.approx(2000.0, rel=1e-3)
    assert (ml.at_cost(lambda c: ml.law(5, 2.5, c), 1e9, COSTS, 3) == 1.0).all()
    with pytest.raises(ValueError, match=r"budget: got 1 in units"):
        ml.at_cost(lambda c: ml.law(5, 2.5, c), 1.0, COSTS, 3)


def test_the_optimum_is_the_law_in_the_case_of_the_law_and_better_elsewhere():
    b = np.full(50, 0.1)
    halves = 4.0 ** -np.arange(5)
    law = ml.at_cost(lambda c: ml.law(5, 2.5, c), 3000.0, COSTS, 50)
    best = ml.at_cost(ml.optimum(halves, COSTS, b), 3000.0, COSTS, 50)
    assert best[:, 2:] / law[:, 2:] == pytest.approx(1.0, rel=0.1)  # pair costs of the first levels differ
    slow = np.array([1.0, 0.9, 0.8, 0.05, 1e-4])

    def variance(p):
        return (b[:, None] ** 2 * slow * (1 / p - 1)).sum()

    best = ml.at_cost(ml.optimum(slow, COSTS, b), 3000.0, COSTS, 50)
    assert variance(best) < 0.7 * variance(law)


def linear(rates, prediction="eps"):
    return Ladder(
        [Network(lambda x, t, rate=rate: rate * x, prediction, shape=(3,)) for rate in rates], COSTS[: len(rates)]
    )


@pytest.mark.parametrize("prediction", ["eps", "x0", "v", "score"])
def test_all_ones_is_the_base_solver_with_the_last_level(prediction):
    ladder = linear([0.1, 0.2, 0.3], prediction)
    path = make_path("cosine", "uniform", 7, final=None)
    stats: dict = {}
    common = {"path": path, "seed": 3}
    made = sample(ladder, (4, 3), solver="ml-em", p=[1.0] * 3, table="ddim", dtype=torch.float64, stats=stats, **common)
    plain = sample(ladder, (4, 3), solver="ddim", dtype=torch.float64, **common)
    assert torch.allclose(made, plain, rtol=1e-12, atol=1e-12)
    assert stats["nfe"] == 7
    assert stats["calls_per_level"] == [0.0, 0.0, 7.0]
    noisy = sample(ladder, (4, 3), solver="ml-em", p=[1.0] * 3, dtype=torch.float64, **common)
    assert torch.allclose(noisy, sample(ladder, (4, 3), solver="ddpm", dtype=torch.float64, **common), atol=1e-12)


@pytest.mark.parametrize("shared", [True, False])
def test_linear_levels_have_the_mean_and_variance_of_the_formula(shared):
    """One step of 60,000 samples (shared: of 800 batches); beyond 5 standard errors: 6e-7; seeds fixed."""
    rates, p = [0.3, 0.5, 0.9], np.array([1.0, 0.5, 0.2])
    path = make_path("cosine", "uniform", 4, final=None)[1:3]
    ladder, base = linear(rates), linear(rates[-1:])
    x = torch.full((60_000 if not shared else 1, 1), 1.7, dtype=torch.float64)
    common = {"path": path, "table": "ddim", "seed": 5, "dtype": torch.float64}
    if shared:
        runs = [sample(ladder, x, solver="ml-em", p=p.tolist(), level_seed=k, **common) for k in range(800)]
        made = torch.cat(runs)
    else:
        made = sample(ladder, x, solver="ml-em", p=p.tolist(), shared=False, **common)
    b = -torch.tensor(1.0).double()
    middle = sample(base, x[:1], solver="ml-em", p=[1.0], **common)
    shifted = sample(linear([rates[-1] + 1.0]), x[:1], solver="ml-em", p=[1.0], **common)
    b = (shifted - middle) / x[:1]  # what a unit of the prediction weighs
    steps = np.diff([0.0, *rates])
    variance = float(b) ** 2 * 1.7**2 * float(((1 / p - 1) * steps**2).sum())
    assert abs(float(made.mean() - middle)) < 5 * (variance / len(made)) ** 0.5
    assert float(made.var()) == pytest.approx(variance, rel=0.25 if shared else 0.08)


def test_samples_do_not_depend_on_how_the_batch_is_cut():
    ladder = GaussianMixture.ring().ladder()
    common = {"solver": "ml-em", "steps": 30, "seed": 2, "shared": False, "budget": 0.3}
    whole = sample(ladder, 12, **common)
    parts = [
        sample(ladder, len(ids), sample_ids=ids, **common) for ids in ([0, 1, 2, 3, 4], [5, 6], list(range(7, 12)))
    ]
    assert torch.allclose(whole, torch.cat(parts), atol=1e-5)  # the model's own numbers depend on the batch


def test_the_number_of_calls_is_binomial():
    """250 steps: outside 6 standard errors has probability 2e-9 per level."""
    stats: dict = {}
    p = [1.0, 0.5, 0.2, 0.1, 0.05]
    sample(GaussianMixture.ring().ladder(), 2, solver="ml-em", p=p, seed=0, stats=stats)
    asked = [1 - (1 - a) * (1 - b) for a, b in zip(p, [*p[1:], 0.0], strict=True)]
    for count, q in zip(stats["calls_per_level"], asked, strict=True):
        assert abs(count - 250 * q) <= 6 * (250 * q * (1 - q)) ** 0.5


def test_fewer_calls_of_the_best_level_and_still_the_law():
    """Sliced distance of 2,000 samples to exact ones: the floor is 0.02 to 0.04, level 0 alone is at 0.3."""
    mixture, stats = GaussianMixture.ring(), {}
    from fastsample.metrics import sliced_distance

    ladder, exact = mixture.ladder(), mixture.sample(2000, seed=9)
    common = {"seed": 1, "steps": 200, "shared": False}
    good = sample(ladder, 2000, solver="ml-em", budget=0.2, stats=stats, **common)
    poor = sample(ladder, 2000, solver="ml-em", p=[1.0, 1e-9, 1e-9, 1e-9, 1e-9], **common)
    assert stats["cost"] < 0.25 * stats["cost_of_last_level"]
    assert sliced_distance(good, exact) < 0.4 * sliced_distance(poor, exact)


def test_conditions_follow_the_samples():
    def net(x, t, label):
        return label[:, None].to(x) * torch.ones_like(x)

    ladder = Ladder([Network(net, shape=(2,), classes=3)] * 3, [1.0, 2.0, 4.0])
    labels = torch.tensor([0, 1, 2, 1, 0, 2])
    common = {"solver": "ml-em", "steps": 20, "seed": 0, "p": [1.0, 0.4, 0.2], "cond": labels}
    a = sample(ladder, 6, shared=False, **common)
    assert torch.allclose(a, sample(ladder, 6, shared=True, **common), atol=1e-4)  # all levels say the same
    guided = sample(ladder, 6, shared=False, guidance=1.0, uncond=torch.zeros_like(labels), **common)
    assert torch.allclose(a, guided, atol=1e-4)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"p": [1.0, 0.5]}, "p: got"),
        ({"p": [1.0, 0.5, 0.0, 0.1, 0.1]}, "p: got 0.0"),
        ({"p": [1.0] * 5, "budget": 0.5}, "budget: got p too"),
        ({"budget": 1e-6}, "budget: got"),
        ({"budget": 2.0}, "budget: got 2.0"),
        ({"rates": [1.0]}, "rates: got"),
        ({"draws": "antithetic"}, "draws: got 'antithetic'"),
        ({"draws": "nested", "p": [1.0, 0.1, 0.5, 0.1, 0.1]}, "draws: 'nested' needs"),
        ({"final": 31}, "final: got 31"),
        ({"shared": 1}, "shared: got 1"),
        ({"level_seed": -1}, "level_seed: got -1"),
        ({"clip": 1.0}, "clip: got 1.0"),
        ({"grad": True}, "grad: no gradient"),
        ({"denoised": True}, "denoised: a multilevel"),
    ],
)
def test_refusals(options, message):
    with pytest.raises(ValueError, match=message):
        sample(GaussianMixture.ring().ladder(), 2, solver="ml-em", steps=30, seed=0, **options)


def test_ladders_must_agree():
    with pytest.raises(ValueError, match="model: 'ml-em' needs a ladder"):
        sample(GaussianMixture.ring(), 2, solver="ml-em", seed=0)
    one, other = Network(lambda x, t: x), Network(lambda x, t: x, prediction="v")
    with pytest.raises(ValueError, match="level 0 has prediction='eps'"):
        Ladder([one, other], [1, 2])
    with pytest.raises(ValueError, match="costs: got none"):
        Ladder([one, one])
    with pytest.raises(ValueError, match="costs: got"):
        Ladder([one, one], [1.0])
    with pytest.raises(ValueError, match="levels: got"):
        Ladder([])
    modules = [torch.nn.Linear(2, 2), torch.nn.Linear(2, 2, bias=False)]
    assert Ladder([Network(m) for m in modules]).costs == (6.0, 4.0)


def test_keys_of_levels_are_not_those_of_the_noise():
    ladder = linear([0.1, 0.2, 0.3])
    common = {"solver": "ml-em", "steps": 12, "seed": 0, "p": [1.0, 0.5, 0.2]}
    a, b = (sample(ladder, 4, level_seed=k, **common) for k in (0, 1))
    assert not torch.equal(a, b)
    c = sample(
        ladder,
        4,
        noise=lambda draw: noise.normal_like(torch.empty(4, 3), noise.keys(0, 4), draw),
        **{k: v for k, v in common.items() if k != "seed"},
    )  # the levels of runs with given noise have a key of their own
    assert c.shape == a.shape
