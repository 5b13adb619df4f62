"""Replayed runs of plans: the bits of the eager loop, one recording per kind of call, none made twice."""

from __future__ import annotations

import gc

import pytest
import torch

import fastsample
from fastsample import CaptureError, GaussianMixture, Network, StopSampling, graph, make_plan, sample
from fastsample.graph.kinds import kinds_of

from .conftest import vp_path

SOLVERS = [
    *("euler", "ddim", "ddpm", "euler-maruyama", "lcm", "unipc", "deis", "lms", "ipndm", "dpmpp-2s", "dpmpp-3s"),
    *("sde-dpmpp-3s", "dpm-fast", "dualfast", "euler-ancestral", "heun", "dpm-2-ancestral", "dpmpp-sde", "dpmpp-2m"),
    *("dpmpp-3m", "sde-dpmpp-2m", "sde-dpmpp-3m", "forward-value", "f-pndm", "s-pndm", "plms", "rho-rk4", "sa", "usf"),
]
PHASE = ["psld-em", "sscs", "nse", "rvv", "noba", "nobab", "robab", "cse", "psld-whitened"]


class Net(torch.nn.Module):
    """A small network that counts how often its Python runs."""

    def __init__(self, channels=3, classes=0):
        super().__init__()
        generator = torch.Generator().manual_seed(0)
        self.weight = torch.nn.Parameter(torch.randn(channels, channels, generator=generator) * 0.3)
        self.labels = torch.nn.Parameter(torch.randn(max(classes, 1), channels, generator=generator) * 0.1)
        self.ran = 0

    def forward(self, x, t, cond=None):
        self.ran += 1
        y = torch.einsum("bc...,cd->bd...", x, self.weight.to(x.dtype)) + 0.1 * t.reshape(-1, *[1] * (x.ndim - 1))
        if cond is not None:
            y = y + self.labels[cond].reshape(*y.shape[:2], *[1] * (x.ndim - 2)).to(x.dtype)
        return torch.tanh(y).to(x.dtype)


pytestmark = pytest.mark.usefixtures("fresh_recordings")


def both(net, x, **arguments):
    """Eager and replayed samples, and what the replayed run says of itself."""
    stats = {}
    eager = sample(net, x, **arguments)
    replayed = sample(net, x, **{"graph": "on", **arguments}, stats=stats)
    return eager, replayed, stats["graph"]


@pytest.mark.parametrize("solver", SOLVERS)
def test_bits_of_the_eager_loop(solver):
    net, steps = Net(), 7
    eager, replayed, stats = both(net, (2, 3, 5), solver=solver, steps=steps, seed=3)
    assert torch.equal(eager, replayed)
    assert stats["used"] == "call list" and stats["why"] is None and stats["captures"] >= 1
    ran = net.ran
    again = sample(net, (2, 3, 5), solver=solver, steps=steps, seed=3, graph="on")
    assert torch.equal(eager, again)
    assert net.ran == ran  # no Python of the network in a replay
    whole = sample(net, (2, 3, 5), solver=solver, steps=steps, seed=3, graph="whole")
    assert torch.equal(eager, whole)
    ran = net.ran
    other = sample(net, (2, 3, 5), solver=solver, steps=steps, seed=4, graph="whole")
    assert net.ran == ran
    assert torch.equal(other, sample(net, (2, 3, 5), solver=solver, steps=steps, seed=4))
    assert not torch.equal(other, whole)


def mixture(shape=(2, 3)):
    means = torch.randn(3, *shape, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    return GaussianMixture(means, 0.3)


@pytest.mark.parametrize("solver", PHASE)
def test_phase_space(solver):
    net = mixture().phase_space()
    for steps in (5, 6):
        eager, replayed, _ = both(net, (4, 2, 3), solver=solver, steps=steps, seed=3)
        assert torch.equal(eager, replayed)
    whole = sample(net, (4, 2, 3), solver=solver, steps=6, seed=3, graph="whole")
    assert torch.equal(eager, whole)


def captures(net, x, **arguments):
    stats = {}
    eager = sample(net, x, **arguments)
    assert torch.equal(eager, sample(net, x, **arguments, graph="on", stats=stats))
    return stats["graph"]["captures"]


def test_nothing_is_recorded_twice():
    net, shape, labels = Net(classes=4), (3, 3, 4), torch.tensor([0, 1, 2])
    shared = {"cond": labels, "uncond": torch.full_like(labels, 3), "guidance": 2.0}
    assert captures(net, shape, solver="dpmpp-2m", steps=6, seed=0, **shared) == 2
    for change in (
        {"steps": 9},
        {"steps": 31},
        {"seed": 5},
        {"seed": [1, 2, 3]},
        {"guidance": 5.5},
        {"grid": "karras"},
        {"schedule": "cosine"},
        {"cond": torch.tensor([2, 0, 1])},
        {"uncond": torch.tensor([1, 1, 1])},
        {"solver": "dpm-2m"},
        {"solver": "dpmpp-1"},
        {"clip": 1.0},
    ):
        assert captures(net, shape, **{"solver": "dpmpp-2m", "steps": 6, "seed": 0, **shared, **change}) <= (
            1 if change.get("solver") == "dpmpp-1" else 0  # its state alone, no history: a kind of its own
        ), change
    assert len(graph.info()["recordings"]) == 1


def test_rescaled_guidance_is_recorded_once_for_all_weights_and_phi():
    net, shape, labels = Net(classes=4), (3, 3, 4), torch.tensor([0, 1, 2])
    shared = {"solver": "ddim", "steps": 20, "seed": 0, "cond": labels, "uncond": torch.full_like(labels, 3)}
    numbers = [
        (2.0, 0.7),
        (7.5, 0.7),
        (7.5, 0.0),
        (-1.0, 1.0),
        ([1.0 + 0.1 * n for n in range(20)], 0.5),  # each call has its own
    ]
    counts, made = [], []
    for guidance, phi in numbers:
        counts.append(captures(net, shape, guidance=guidance, rescale=phi, **shared))
        made.append(sample(net, shape, guidance=guidance, rescale=phi, graph="on", **shared))
    assert counts == [1, 0, 0, 0, 0]
    assert not any(torch.equal(a, b) for n, a in enumerate(made) for b in made[:n])
    assert torch.equal(made[2], sample(net, shape, guidance=7.5, **shared))  # phi = 0 is a factor of exactly 1
    assert captures(net, shape, guidance=2.0, rescale=0.7, threshold=0.9, **shared) == 1
    assert captures(net, shape, guidance=4.0, rescale=0.2, threshold=0.9, **shared) == 0


def test_more_steps_than_there_is_room_for_are_recorded_once_more():
    net = Net()
    assert captures(net, (2, 3), solver="ddim", steps=10, seed=0) == 1
    assert captures(net, (2, 3), solver="ddim", steps=32, seed=0) == 0
    assert captures(net, (2, 3), solver="ddim", steps=33, seed=0) == 1
    assert captures(net, (2, 3), solver="ddim", steps=64, seed=0) == 0
    assert captures(net, (2, 3), solver="ddim", steps=10, seed=0) == 0


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
@pytest.mark.parametrize("scaling", ["none", "edm"])
def test_dtypes_and_scaled_input(dtype, scaling):
    net = Network(Net().to(torch.float32), "eps", "log-snr", scaling, dtype=torch.float32)
    eager, replayed, _ = both(net, (2, 3, 4), solver="sde-dpmpp-2m", steps=6, seed=1, dtype=dtype)
    assert replayed.dtype == dtype
    assert torch.equal(eager, replayed)


@pytest.mark.parametrize(
    "options",
    [
        {"threshold": 0.9},
        {"guidance": 3.0, "rescale": 0.7},
        {"guidance": 3.0, "rescale": 0.7, "threshold": (0.95, 1.0, 3.0)},
        {"guidance": [1.0, 2.0, 3.0, 4.0, 5.0], "rescale": 0.7},
        {"guidance": [1.0, 2.0, 3.0, 4.0, 5.0]},
        {"clip": 0.8},
        {"denoise": True},
    ],
)
def test_reductions_and_guidance(options):
    net, cond = Net(classes=3), {}
    if "guidance" in options:
        cond = {"cond": torch.tensor([0, 1]), "uncond": torch.tensor([2, 2])}
    for seed in (1, 2):
        eager, replayed, stats = both(net, (2, 3, 5), solver="dpmpp-2m", steps=5, seed=seed, **options, **cond)
        assert torch.equal(eager, replayed)
    assert stats["captures"] == 0


def test_conditions_in_trees_and_two_calls():
    weights = torch.randn(3, 3, generator=torch.Generator().manual_seed(0))

    def fn(x, t, cond):
        return torch.tanh(x @ weights + cond["shift"][0][:, None] + cond["scale"] * 0.1) * t[:, None]

    net = Network(fn, one_batch=False)

    def tree(value):
        return {"shift": (torch.full((2,), value),), "scale": 0.5}

    for value in (0.1, 0.7):
        arguments = {"cond": tree(value), "uncond": tree(0.0), "guidance": 2.0, "seed": 1, "steps": 5}
        eager, replayed, stats = both(net, (2, 3), **arguments)
        assert torch.equal(eager, replayed)
    assert stats["captures"] == 0
    arguments["cond"] = {**tree(0.7), "scale": 0.9}  # a number is part of the recording
    eager, replayed, stats = both(net, (2, 3), **arguments)
    assert torch.equal(eager, replayed)
    assert stats["captures"] > 0


def test_a_model_that_returns_both_branches():
    net = Net()

    def pair(x, t):
        return net(x, t), net(-x, t)

    eager, replayed, _ = both(pair, (2, 3), solver="unipc", steps=5, guidance=2.0, seed=0)
    assert torch.equal(eager, replayed)


def test_two_times():
    path = vp_path(4, final=False)
    plan = make_plan("ctm", path, prediction="x0", time="log-snr", gamma=0.0)
    seen = Net()

    def net(x, t):
        assert t.shape == (len(x), 2)
        return seen(x, t[:, 0]) + 0.05 * t[:, 1].reshape(-1, *[1] * (x.ndim - 1))

    eager, replayed, _ = both(net, (2, 3, 4), plan=plan, seed=0)
    assert torch.equal(eager, replayed)


def test_starts():
    net, x = Net(), torch.randn(2, 3, 4, generator=torch.Generator().manual_seed(0))
    kept = x.clone()
    for arguments in ({}, {"start": 2}, {"start": 0.5}):
        eager, replayed, stats = both(net, x, solver="ddpm", steps=6, seed=2, **arguments)
        assert torch.equal(eager, replayed)
    assert stats["captures"] == 0
    assert torch.equal(x, kept)
    last = torch.randn(2, 3, 4, 5).to(memory_format=torch.channels_last)
    eager, replayed, _ = both(net, last, solver="ddpm", steps=6, seed=2)
    assert torch.equal(eager, replayed)
    assert replayed.stride() == eager.stride()


def test_results_are_memory_of_their_own():
    net = Net()
    first = sample(net, (2, 3), seed=0, steps=4, graph="on")
    kept = first.clone()
    second = sample(net, (2, 3), seed=1, steps=4, graph="on")
    assert torch.equal(first, kept) and not torch.equal(first, second)
    assert not first.is_inference()
    first.requires_grad_().sum().backward()


def test_hooks_see_every_step():
    net, seen = Net(), {"off": [], "on": []}
    for mode, kept in seen.items():

        def look(info, kept=kept):
            kept.append((info.call, info.step, info.t, info.x.clone(), info.denoised.clone()))
            if info.call == 3:
                info.x.mul_(0.5)  # seen by the next call

        x = sample(net, (2, 3), solver="dpmpp-2m", steps=6, seed=0, denoised=True, callback=look, graph=mode)
        kept.append((x,))
    for one, other in zip(seen["off"], seen["on"], strict=True):
        assert all(
            torch.equal(a, b) if isinstance(a, torch.Tensor) else a == b for a, b in zip(one, other, strict=True)
        )
    runs = [sample(net, (2, 3), steps=5, seed=0, return_trajectory=True, graph=mode) for mode in ("off", "on")]
    assert torch.equal(runs[0].states, runs[1].states) and torch.equal(runs[0].x, runs[1].x)

    def stop(info):
        if info.call == 2:
            raise StopSampling

    stopped = [sample(net, (2, 3), steps=5, seed=0, callback=stop, graph=mode) for mode in ("off", "on")]
    assert torch.equal(*stopped)


def test_weights_changed_in_place_are_seen_and_weights_moved_are_recorded_anew():
    net = Net()
    before = sample(net, (2, 3), steps=4, seed=0, graph="on")
    with torch.no_grad():
        net.weight.mul_(0.5)
    assert captures(net, (2, 3), steps=4, seed=0) == 0
    assert not torch.equal(before, sample(net, (2, 3), steps=4, seed=0, graph="on"))
    net.weight.data = net.weight.data * 3.0
    assert captures(net, (2, 3), steps=4, seed=0) > 0


def test_recordings_end_with_their_network():
    net = Net()
    sample(net, (2, 3), steps=4, seed=0, graph="on")
    assert len(graph.info()["recordings"]) == 1
    del net
    gc.collect()
    assert graph.info()["recordings"] == []


def test_kinds_are_few():
    for solver in SOLVERS:
        plan = fastsample.choosing.plan_for(fastsample.models.network.as_network(Net()), solver=solver, steps=40)
        assert len(set(kinds_of(plan))) <= 9, solver
    with pytest.raises(CaptureError, match="gradients"):
        sample(Net(), (2, 3), grad=True, graph="on")
