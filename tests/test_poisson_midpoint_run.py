"""Poisson midpoint with midpoints per sample: recorded runs, the plan it must equal, batches, seeds, networks."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

import fastsample
from fastsample import GaussianMixture, Network, noise, procedures, sample
from fastsample.loop import drive
from fastsample.procedures.poisson_midpoint import PoissonMidpoint
from fastsample.solvers import registry
from fastsample.solvers.assemble import DEFAULTS
from fastsample.solvers.fine_tables import fine_table
from fastsample.solvers.poisson_windows import Windows

from .exact import Mixture
from .poisson_cases import STEMS, chosen_of, collapsed, eps_of, literal, mask_of, recorded

pytestmark = pytest.mark.filterwarnings("ignore:window. in ")

PATH = fastsample.make_path("ddpm-linear", "trailing", 60)
PAIR = {"solver": "poisson-midpoint", "path": PATH, "window": 20, "windows": None}


def exact(prediction="eps", dim=4):
    """An exact network of an eight-mode mixture in four dimensions, of (x, sigma/alpha) in float64."""
    mixture = Mixture(dim)

    def model(x, rho, cond=None):
        alpha = 1.0 / torch.sqrt(1.0 + rho.double() ** 2)
        sigma = rho.double() * alpha
        levels = zip(x.double().numpy(), alpha.numpy(), sigma.numpy(), strict=True)
        x0 = torch.tensor(np.array([mixture.x0(row[None], a, s)[0] for row, a, s in levels]).reshape(x.shape))
        a, s = alpha[:, None], sigma[:, None]
        eps = (x.double() - a * x0) / s
        if cond is not None:
            x0, eps = x0 + 0.1 * cond, eps - a / s * 0.1 * cond
        made = {"x0": x0, "eps": eps, "v": a * eps - s * x0, "score": -eps / s, "flow": eps - x0}[prediction]
        return made.to(x.dtype)

    return Network(model, prediction=prediction, time="sigma")


def run_with(windows, chosen, x, eps, draws, monkeypatch):
    """A run in float64 on recorded normals, with the midpoints ``chosen`` (per window and sample)."""
    monkeypatch.setattr(Windows, "draw", lambda self, key: chosen)
    shared = {**DEFAULTS, "prediction": "eps"}
    tensors = {n: torch.tensor(xi) for n, xi in draws.items()}
    path = windows.table.path
    setting = procedures.Setting(path, None, shared, torch.tensor(x), "state", None, tensors, None, False)
    run = PoissonMidpoint(setting, windows, 0)
    levels = {float(t): j for j, t in enumerate(path.t)}
    states = []

    def network(state, t):
        return torch.tensor(eps([levels[float(v)] for v in t], state.numpy()))

    drive(run, network, [lambda call: run.ends_step(call) and states.append(run.state.numpy().copy())])
    return run, np.stack(states)


@pytest.mark.parametrize("stem", STEMS)
def test_recorded_run(stem, monkeypatch):
    data, table = recorded(stem)
    windows, h = Windows(table, 10, None, "bernoulli"), data["H_per_sample"]
    draws = collapsed(table, windows, h, data["Z"])
    run, states = run_with(windows, chosen_of(windows, h), data["x_T"], eps_of(table.path), draws, monkeypatch)
    np.testing.assert_allclose(states, data["states_per_sample"][1:], rtol=0, atol=1e-11)
    np.testing.assert_allclose(run.state, data["x_out_per_sample"], rtol=0, atol=1e-11)
    assert run.stats()["midpoints_per_sample"] == h.sum() / 8


@pytest.mark.parametrize("midpoints", ["bernoulli", "one", 3])
def test_collapsed_is_the_loop(midpoints, monkeypatch):
    """Midpoints as they are drawn, uneven windows: 1e-12 of the state."""
    path = fastsample.make_path("ddpm-linear", "rows", 80, final="end")
    table, sizes = fine_table(path), [7, 1, 20, 2, 30, 19, 1]
    windows = Windows(table, 25, sizes, midpoints)
    chosen = windows.draw(noise.keys(3, 6))
    h = mask_of(windows, chosen)
    rng = np.random.default_rng(0)
    x, z = rng.standard_normal((6, 4)), rng.standard_normal((80, 6, 4))
    draws = collapsed(table, windows, h, z)
    run, _ = run_with(windows, chosen, x, eps_of(path), draws, monkeypatch)
    expected = literal(table, eps_of(path), x, sizes, [w.weight for w in windows], h, z)[-1]
    assert np.abs(run.state.numpy() - expected).max() <= 1e-12 * np.abs(expected).max()


OPTIONS = [
    {},
    {"midpoints": "bernoulli"},
    {"midpoints": 3, "denoised": True},
    {"clip": 1.0, "denoised": True},
    {"midpoints": 3, "clip": (-0.5, 1.5), "guidance": 2.0},
    {"midpoints": 2, "input_scaling": "edm"},
    {"input_scaling": "vp", "guidance": -1.0, "clip": 1.0},
    {"path": fastsample.make_path("ddpm-linear", "rows", 60, final="end"), "table": "exponential", "denoise": True},
]


@pytest.mark.parametrize("options", OPTIONS, ids=lambda options: "-".join(map(str, options)) or "usual")
@pytest.mark.parametrize("prediction", ["eps", "v"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_equal_midpoints_give_the_bits_of_the_plan(options, prediction, dtype, monkeypatch):
    """Rows per sample against one row for all: every option that both have."""
    options = {**PAIR, **options}
    scaling = options.pop("input_scaling", "none")
    mine = Windows.draw
    monkeypatch.setattr(
        Windows, "draw", lambda self, key: [m.repeat(len(key), 0) for m in mine(self, noise.keys(4, 1))]
    )
    inner = exact(prediction)
    network = Network(inner.fn, prediction=prediction, time="sigma", input_scaling=scaling)
    if scaling != "none":
        monkeypatch.setattr(Mixture, "x0", lambda self, x, alpha, sigma: 0.3 * np.tanh(x))
    cond = {"cond": torch.ones(5, 1), "uncond": torch.zeros(5, 1)} if "guidance" in options else {}
    ends, previews = [], []
    for shared in (False, True):
        seen = []
        hook = (lambda info, seen=seen: seen.append(info.denoised.clone())) if options.get("denoised") else None
        ends.append(sample(network, (5, 4), seed=1, dtype=dtype, shared=shared, callback=hook, **cond, **options))
        previews.append(seen)
    assert torch.equal(*ends)
    for ours, theirs in zip(*previews, strict=True):
        assert torch.equal(ours, theirs)


@pytest.mark.parametrize("midpoints", ["bernoulli", "one", 2])
@pytest.mark.parametrize("shared", [False, True])
def test_batches_may_be_cut_anywhere(midpoints, shared):
    options = {**PAIR, "midpoints": midpoints, "shared": shared, "seed": 9}
    whole = sample(exact(), (7, 4), **options)
    parts = [sample(exact(), (len(ids), 4), sample_ids=ids, **options) for ids in ([0, 1, 2], [3], [4, 5, 6])]
    assert torch.equal(whole, torch.cat(parts))
    assert torch.equal(sample(exact(), (2, 4), sample_ids=[6, 1], **options), whole[[6, 1]])
    assert sample(exact(), (0, 4), **options).shape == (0, 4)


def test_shared_is_the_plan():
    plan = fastsample.make_plan(
        "poisson-midpoint-shared", PATH, window=20, windows=None, midpoints=2, time="sigma", midpoint_seed=3
    )
    by_plan = sample(exact(), (4, 4), plan=plan, seed=2)
    assert torch.equal(by_plan, sample(exact(), (4, 4), shared=True, midpoints=2, midpoint_seed=3, seed=2, **PAIR))


def test_seeds():
    """The run's seed moves noise and midpoints, the midpoint seed the midpoints alone."""
    ends = [sample(exact(), (6, 4), seed=s, midpoint_seed=m, **PAIR) for s, m in ((1, 0), (1, 0), (1, 5), (2, 0))]
    assert torch.equal(ends[0], ends[1])
    assert not torch.equal(ends[0], ends[2])
    assert not torch.equal(ends[0], ends[3])
    path = PATH[:2]  # one fine step: nothing is random but the noise
    one = {**PAIR, "path": path}
    pair = [sample(exact(), (6, 4), seed=1, midpoint_seed=m, **one) for m in (0, 5)]
    assert torch.equal(*pair)
    plain = sample(exact(), (6, 4), seed=1, solver="ddpm", path=path)
    torch.testing.assert_close(pair[0], plain, rtol=1e-5, atol=1e-5)
    generated = [sample(exact(), (6, 4), seed=torch.Generator().manual_seed(3), **PAIR) for _ in range(2)]
    assert torch.equal(*generated)


@pytest.mark.parametrize("prediction", ["x0", "v", "score"])
@pytest.mark.parametrize("options", [{}, {"clip": 1.0}, {"midpoints": "bernoulli", "clip": 0.7}], ids=str)
def test_predictions_give_the_same_run(prediction, options):
    """The same exact network in every parametrisation; limits act on x0_hat of each call."""
    shared = {**PAIR, **options, "seed": 3, "dtype": torch.float64}
    ends = [sample(exact(kind), (5, 4), **shared) for kind in ("eps", prediction)]
    torch.testing.assert_close(*ends, rtol=0, atol=1e-9)


def test_flow_network():
    """Rectified flow from t < 1, with and without the rates of its path."""
    mixture = GaussianMixture.ring()
    path = fastsample.make_path("flow", "uniform", 100, t_max=0.98)
    ends = []
    for prediction in ("flow", "eps"):
        net = mixture.network(prediction)
        ends.append(sample(net, (8, 2), solver="pmm", path=path, window=5, seed=1, dtype=torch.float64))
    torch.testing.assert_close(*ends, rtol=0, atol=1e-9)


def test_limits_act_before_the_combination():
    """With x0_hat far outside, every limited prediction is the same: the run is that of a constant x0_hat."""
    far = Network(lambda x, t: torch.full_like(x, 50.0) * torch.sign(x), prediction="x0", time="sigma")
    near = Network(lambda x, t: torch.sign(x), prediction="x0", time="sigma")
    shared = {**PAIR, "seed": 5, "midpoints": 3, "dtype": torch.float64}
    ends = sample(far, (6, 4), clip=1.0, **shared), sample(near, (6, 4), **shared)
    torch.testing.assert_close(*ends, rtol=0, atol=1e-11)


def test_two_calls_per_window():
    """``one``: a call at the start and one for all; a sample whose midpoint is the start waits."""
    report: dict = {}
    sample(exact(), (50, 4), seed=0, stats=report, **PAIR)
    assert report["nfe"] == 6
    assert report["windows"] == 3
    assert report["fine_steps"] == 60
    assert report["midpoints_per_sample"] == 3.0
    assert 5.0 < report["nfe_per_sample"] < 6.0
    plain: dict = {}
    sample(exact(), (4, 4), seed=0, stats=plain, **{**PAIR, "window": 1})
    assert plain["nfe"] == plain["nfe_per_sample"] == 60


def test_usual_run():
    report: dict = {}
    x = sample(GaussianMixture.ring().network("v"), 64, solver="poisson-midpoint", seed=0, stats=report)
    assert (report["fine_steps"], report["windows"], report["nfe"]) == (1000, 43, 85)
    assert (x.norm(dim=1) - 1.0).abs().max() < 0.5


def test_law_of_midpoints_per_sample():
    """Mean and variance of one window on Gaussian data: the worked numbers; 4 standard errors (false alarm 1e-4)."""
    rows = fastsample.make_path("ddpm-linear", "trailing", 1000)
    path = rows[600:626]
    kappa, alpha = path.sigma / (path.alpha**2 * 0.16 + path.sigma**2), path.alpha
    level = {float(t): j for j, t in enumerate(path.t)}

    def model(x, t):
        k = np.array([level[v] for v in t.tolist()])
        return (torch.tensor(kappa[k])[:, None] * (x - 0.7 * torch.tensor(alpha[k])[:, None])).to(x.dtype)

    n = 100_000
    x = torch.full((n, 1), 1.3, dtype=torch.float64)
    net = Network(model, prediction="eps", time="t")
    ends = sample(net, x, solver="pmm", path=path, window=25, midpoints="bernoulli", seed=3).numpy()
    assert abs(ends.mean() - 1.202264) < 4 * math.sqrt(0.173462 / n)
    square = (ends - ends.mean()) ** 2
    assert abs(square.mean() - 0.173462) < 4 * square.std() / math.sqrt(n)


class Seen(TorchDispatchMode):
    def __init__(self):
        super().__init__()
        self.names = set()

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        self.names.add(str(func))
        return func(*args, **(kwargs or {}))


def test_nothing_but_the_update_runs_between_two_calls():
    setting = procedures.Setting(
        PATH, None, {**DEFAULTS, "prediction": "eps"}, torch.zeros(4, 3), "noise", noise.keys(1, 4), None, None, False
    )
    entry = procedures.get("pmm")
    run = entry.make(setting, **registry.complete(entry, {"window": 20, "windows": None, "midpoints": "bernoulli"}))
    out = torch.ones(4, 3)
    with Seen() as seen:
        drive(run, lambda x, t: out)
    assert seen.names == {"fastsample.update_.default"}


def test_gradient_reaches_the_start():
    x = torch.randn(3, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(0)).requires_grad_()
    net = Network(lambda x, t: torch.tanh(x), prediction="eps", time="sigma")
    options = {**PAIR, "midpoints": 2, "seed": 1}
    made = sample(net, x, grad=True, **options)
    made.sum().backward()
    torch.testing.assert_close(made.detach(), sample(net, x.detach(), **options), rtol=1e-12, atol=1e-12)
    shift = torch.zeros_like(x).index_fill_(1, torch.tensor([2]), 1e-6)
    slope = (sample(net, x.detach() + shift, **options) - sample(net, x.detach() - shift, **options)).sum() / 2e-6
    assert x.grad[:, 2].sum().item() == pytest.approx(slope.item(), rel=1e-5)


def test_callback_and_trajectory():
    seen = []
    made = sample(exact(), (3, 4), seed=0, callback=seen.append, return_trajectory=True, **PAIR)
    assert [info.step for info in seen] == [0, 0, 20, 20, 40, 40]
    assert seen[0].calls == 6
    assert made.states.shape == (4, 3, 4)
    assert torch.equal(made.states[-1], made.x)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"threshold": 0.99}, "threshold: got 0.99, but 'poisson-midpoint' with midpoints per sample"),
        ({"rescale": 0.5, "guidance": 2.0}, "rescale: got 0.5"),
        ({"guidance": [1.0, 2.0]}, r"guidance: got \[1.0, 2.0\]; how many calls"),
        ({"guidance": math.inf}, "guidance: got inf, allowed are finite"),
        ({"shared": 1}, "shared: got 1, allowed are True and False"),
        ({"window": 0}, "window: got 0"),
        ({"midpoints": "two"}, "midpoints: got 'two'"),
        ({"midpoint_seed": -1}, "midpoint_seed: got -1"),
        ({"clip": (1.0, 0.0)}, "clip: got"),
        ({"denoised": True, "midpoints": 3, "input_scaling": "vp"}, "denoised: a row with kept tensors"),
        ({"table": "exponential"}, "path: the table 'exponential' needs sigma > 0"),
    ],
)
def test_refusals(options, message):
    options = {**PAIR, **options}
    network = Network(exact().fn, prediction="eps", time="sigma", input_scaling=options.pop("input_scaling", "none"))
    if network.input_scaling == "vp":
        options["dtype"], network = torch.float32, network
        options["path"] = PATH.ve()
    with pytest.raises(ValueError, match=message):
        sample(network, (8, 4), seed=0, **options)
