"""Recordings that are kept: the limit of memory, whose they are, the caller's own, threads."""

from __future__ import annotations

import functools
import subprocess
import sys

import pytest
import torch

import fastsample
from fastsample import CaptureError, Network, capture, graph, make_plan, sample
from fastsample.graph.store import Store

from .conftest import vp_path
from .together import together

pytestmark = pytest.mark.usefixtures("fresh_recordings")


def rowwise(x, t):
    return torch.tanh(x * 0.5 + t.reshape(-1, *[1] * (x.ndim - 1)) * 0.1)


def run(net, count, seed=0, **arguments):
    """Number of captures of a replayed run, whose bits are those of the eager one."""
    stats, arguments = {}, {"steps": 5, "seed": seed, **arguments}
    made = sample(net, (count, 16), graph="on", stats=stats, **arguments)
    assert torch.equal(made, sample(net, (count, 16), **arguments))
    return stats["graph"]["captures"]


def test_the_least_recently_used_goes_first():
    run(rowwise, 8)
    one = graph.info()["used_mb"]
    assert 0 < one < 0.1
    graph.limit(3.6 * one)
    run(rowwise, 9)
    run(rowwise, 10)
    assert [run(rowwise, count) for count in (8, 9, 10)] == [0, 0, 0]
    run(rowwise, 8)
    run(rowwise, 11)  # the fourth: that of 9 was used longest ago
    assert [found["shape"][0] for found in graph.info()["recordings"]] == [10, 8, 11]
    assert graph.info()["used_mb"] <= graph.limit()
    assert graph.info()["evicted"] >= 1
    assert run(rowwise, 8) == 0
    assert run(rowwise, 9) > 0


def test_a_limit_of_nothing_keeps_nothing_and_runs_all_the_same():
    graph.limit(0)
    assert run(rowwise, 8) > 0
    assert run(rowwise, 8) > 0
    assert graph.info()["recordings"] == [] and graph.info()["used_mb"] == 0


def test_limits_that_are_none():
    for value in (-1, float("nan"), True, "1"):
        with pytest.raises(ValueError, match="megabytes: got"):
            graph.limit(value)
    code = "import fastsample; print(fastsample.graph.limit())"
    for text, found in (("12.5", "12.5"), ("many", "FASTSAMPLE_GRAPH_MB: got 'many'")):
        done = subprocess.run(
            [sys.executable, "-c", code], env={**__import__("os").environ, "FASTSAMPLE_GRAPH_MB": text},
            capture_output=True, text=True, check=False,
        )  # fmt: skip
        assert found in done.stdout + done.stderr


def test_facts():
    run(rowwise, 8, solver="dpmpp-2m")
    (found,) = graph.info()["recordings"]
    assert found.pop("mb") > 0
    assert found == {
        "network": "rowwise", "kind": "call list", "shape": [8, 16], "dtype": "float32", "recordings": 2,
        "captures": 2, "replays": 5,
    }  # fmt: skip


def test_networks_are_told_apart():
    class Scaled:
        def __init__(self, factor):
            self.factor = factor

        def forward(self, x, t):
            return x * self.factor

        def __call__(self, x, t):
            return -x * self.factor

    one, other = Scaled(0.1), Scaled(0.2)
    assert run(one, 4) > 0 and run(other, 4) > 0
    assert run(one.forward, 4) > 0 and run(one.forward, 4) == 0  # a bound method is made anew each time
    assert run(Network(one), 4) == 0  # the same callable
    assert run(Network(one, "v"), 4) > 0
    with fastsample.use_backend("reference"):
        assert run(one, 4) > 0
    assert run(one, 4) == 0


def scaled(x, t, factor=1.0):
    return torch.tanh(x * factor)


def test_partial_functions_builtins_and_energies_are_told_apart():
    for factor in (0.1, 0.2, 0.3):  # each gone before the next is made
        assert run(functools.partial(scaled, factor=factor), 4) > 0
    assert run(torch.add, 16) > 0  # both belong to one object of torch
    assert run(torch.mul, 16) > 0
    half = functools.partial(scaled, factor=0.5)
    assert run(half, 4) > 0 and run(half, 4) == 0
    mixture = fastsample.GaussianMixture(torch.randn(2, 16, generator=torch.Generator().manual_seed(0)), 0.5)
    plain = mixture.network()

    def flat(x, t):
        return x.flatten(1).sum(1) * 0.0

    other = Network(plain.fn, plain.prediction, plain.time, energy=flat, width=plain.width)
    found = []
    for network in (plain, other):
        stats = {}
        arguments = {"solver": "rtk-mala", "seed": 0, "stats": stats, "theta": 0.5}
        eager = sample(network, (4, 16), **arguments)
        assert torch.equal(eager, sample(network, (4, 16), **arguments, graph="on"))
        assert stats["graph"]["captures"] == 1
        found.append(eager)
    assert not torch.equal(*found)


def test_modes_of_modules_and_autocast_are_told_apart():
    net = torch.nn.Sequential(torch.nn.Linear(16, 16), torch.nn.Dropout(0.0))

    def model(x, t):
        return net(x)

    assert run(model, 4) > 0
    net.eval()
    assert run(model, 4) > 0
    assert run(model, 4) == 0
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert run(model, 4) > 0
        assert run(model, 4) == 0
    net.to(torch.float64).to(torch.float32)  # other memory
    assert run(model, 4) > 0


def test_capture_is_the_callers():
    calls = []

    def net(x, t, cond):
        calls.append(1)
        return rowwise(x, t) + cond[:, None]

    plan, other = make_plan("sde-dpmpp-2m", vp_path(6)), make_plan("dpmpp-2m", vp_path(9))
    cond = torch.tensor([0.1, 0.2])
    for whole in (False, True):
        captured = capture(net, plan, (2, 8), whole=whole, cond=cond)
        made, count = captured.captures, len(calls)
        assert made == (1 if whole else 3)
        assert captured.bytes > 0
        for seed in (4, 5):
            mine = captured(seed=seed, cond=cond * seed)
            assert len(calls) == count
            assert torch.equal(mine, sample(net, (2, 8), plan=plan, seed=seed, cond=cond * seed))
            count = len(calls)
        assert captured.captures == made
        x = torch.randn(2, 8)
        mine = captured(x, seed=1, cond=cond)
        assert torch.equal(mine, sample(net, x, plan=plan, seed=1, cond=cond))
        mine = captured(plan=other, seed=1, cond=cond)
        assert captured.captures > made
        assert torch.equal(mine, sample(net, (2, 8), plan=other, seed=1, cond=cond))
        assert "captures=" in repr(captured)
    seen = []
    stepwise = capture(net, plan, torch.zeros(2, 8, dtype=torch.float64), cond=cond)
    assert stepwise(seed=1, cond=cond, callback=seen.append).dtype == torch.float64
    assert len(seen) == plan.nfe
    assert graph.info()["recordings"] == []
    with pytest.raises(CaptureError, match="reads a number on the host"):
        capture(lambda x, t: x * x.sum().item(), plan, (2, 8))


def test_threads_take_turns():
    expected = {seed: sample(rowwise, (8, 16), steps=20, seed=seed) for seed in range(8)}
    wrong = []

    def work(seeds):
        try:
            for seed in seeds:
                if not torch.equal(sample(rowwise, (8, 16), steps=20, seed=seed, graph="on"), expected[seed]):
                    wrong.append(seed)
        except Exception as error:
            wrong.append(error)

    together(work, [[n, n + 4] * 3 for n in range(4)])
    assert wrong == []


def test_threads_that_record_leave_the_compiler_on():
    import torch._dynamo

    ran = []

    def counting(module, inputs):
        ran.append(1)
        return module.forward

    def work(count):
        for n in range(6):
            sample(rowwise, (count, 3 + n), steps=3, seed=0, graph="on")

    together(work, range(1, 7))
    compiled = torch.compile(lambda x: x + 1, backend=counting)
    compiled(torch.zeros(2))
    assert ran == [1]


def test_a_store_follows_its_owners():
    class Thing:
        bytes = 10

        def facts(self):
            return {}

    store, owner = Store(1e-4), Thing()  # 100 bytes
    for n in range(30):
        store.put(owner, n, Thing())
        assert store.bytes() <= 100
    assert [store.find(owner, n) is not None for n in (19, 20, 29)] == [False, True, True]
    assert store.find(Thing(), 29) is None
    store.remove(owner, 29)
    assert store.find(owner, 29) is None
    del owner
    assert store.bytes() == 0
    store.put(5, "a number has no weak references", Thing())
    assert store.bytes() == 10
    store.clear()
    assert store.bytes() == 0


def test_a_tensor_that_a_function_closes_over():
    def make():
        scale = torch.full((), 0.5)

        def net(x, t):
            return x * scale

        def change(value):
            nonlocal scale
            scale = torch.full((), value)

        return net, change

    net, change = make()
    options = {"solver": "ddim", "steps": 4, "seed": 1}
    for value in (0.5, 0.9, 0.5):
        change(value)
        got = fastsample.sample(net, (2, 3), graph="on", **options)
        assert torch.equal(got, fastsample.sample(net, (2, 3), **options))


def test_arrays_as_conditions_count_by_value():
    import numpy as np

    cond = {"scale": np.array([0.5, 0.25])}

    def net(x, t, c):
        return x * torch.from_numpy(c["scale"]).float()[:, None]

    options = {"solver": "ddim", "steps": 4, "seed": 1, "cond": cond}
    for value in (0.5, 0.9):
        cond["scale"][0] = value
        got = fastsample.sample(net, (2, 3), graph="on", **options)
        assert torch.equal(got, fastsample.sample(net, (2, 3), **options))
    options["cond"] = {"scale": cond["scale"], "other": bytearray(3)}
    with pytest.raises(fastsample.CaptureError, match="cond: its value of a bytearray"):
        fastsample.sample(net, (2, 3), graph="on", **options)
