"""What cannot be recorded is found, with the line where it happens, and leaves the process as it was."""

from __future__ import annotations

import logging

import pytest
import torch

from fastsample import CaptureError, graph, make_plan, sample
from fastsample.graph import auto
from fastsample.graph.call_list import CallListRecorder

from .conftest import vp_path

MASK = torch.tensor([True, False, True, True])


def item(x):
    return x * x.sum().item()


def boolean(x):
    return x if x.sum() > 0 else -x


def number(x):
    return x * float(x.mean())


def listed(x):
    return x * sum(x.flatten().tolist())


def array(x):
    return x * float(x.numpy().max())


def where(x):
    return x * len(torch.nonzero(x))


def masked(x):
    return x + x[x > 0].sum()


def written(x):
    y = x.clone()
    y[y > 0] = 0.0
    return y


def unique(x):
    return x + torch.unique(x).sum()


def equal(x):
    return x * torch.equal(x, x)


@pytest.fixture(autouse=True)
def _fresh():
    graph.clear()
    yield
    graph.clear()


@pytest.mark.parametrize(
    ("fn", "why"),
    [
        (item, "reads a number on the host .item"),
        (boolean, "reads a number on the host .__bool__"),
        (number, "reads a number on the host .__float__"),
        (listed, "reads a number on the host .tolist"),
        (array, "reads a number on the host .numpy"),
        (where, "shape depends on the data .aten::nonzero"),
        (masked, "indexes by a mask"),
        (written, "indexes by a mask"),
        (unique, "shape depends on the data"),
        (equal, "reads a number on the host .aten::equal"),
    ],
)
def test_host_reads_are_found_with_their_line(fn, why):
    def net(x, t):
        return fn(x) * 0.1

    line = fn.__code__.co_firstlineno
    with pytest.raises(CaptureError, match=rf"{why}.* at test_graph_reasons\.py:({line + 1}|{line + 2})\)"):
        sample(net, (2, 4), steps=4, seed=0, graph="on")
    eager = sample(net, (2, 4), steps=4, seed=0)  # nothing of the attempt is left
    assert eager.isfinite().all()
    assert graph.info()["recordings"] == []


def test_what_depends_on_no_data_is_no_host_read():
    index, mask = torch.tensor([1, 0, 3, 2]), MASK.float()

    def net(x, t):
        y = x[:, index] * mask + torch.where(x > 0, x, 0) + torch.zeros(()).expand(x.shape)
        y = y.reshape(2, 2, 2).transpose(0, 1).contiguous().transpose(0, 1).flatten(1)
        y[:, 0] += 0.1
        y.mul_(0.5)
        return torch.stack(y.chunk(2, 1), 1).flatten(1) + torch.empty_like(y).fill_(0.1) + t[:, None]

    eager = sample(net, (2, 4), steps=4, seed=0)
    for seed in (0, 1, 0):
        replayed = sample(net, (2, 4), steps=4, seed=seed, graph="on")
    assert torch.equal(eager, replayed)


@pytest.mark.parametrize(
    ("arguments", "why"),
    [
        ({"grad": True}, "grad"),
        ({"noise": lambda draw: torch.zeros(2, 4)}, "noise: given from outside"),
        ({"noise": torch.zeros(5, 2, 4)}, "noise: given from outside"),
        ({"x": (0, 4)}, "no elements"),
        ({"graph": "whole", "callback": print}, "look at every step"),
        ({"graph": "whole", "progress": "always"}, "look at every step"),
        ({"device": "meta", "check": False}, "device meta has no graphs"),
    ],
)
def test_runs_that_are_not_recorded(arguments, why):
    seed = {} if "noise" in arguments else {"seed": 0}
    with pytest.raises(CaptureError, match=why):
        sample(lambda x, t: x, **{"x": (2, 4), "graph": "on", "steps": 4, **seed, **arguments})


@pytest.mark.parametrize("mode", ["yes", True, None, 1])
def test_modes_that_do_not_exist(mode):
    with pytest.raises(ValueError, match="graph: got .* allowed are 'off', 'on', 'whole', 'auto'"):
        sample(lambda x, t: x, (2, 4), steps=4, seed=0, graph=mode)


def test_errors_of_the_network_are_its_own():
    calls = []

    def net(x, t):
        calls.append(1)
        if len(calls) == 2:
            raise KeyError("mine")
        return x * 0.1

    for mode in ("on", "whole"):
        calls.clear()
        with pytest.raises(KeyError, match="mine"):
            sample(net, (2, 4), steps=4, seed=0, graph=mode)
        calls[:] = [0, 0]
        eager = sample(net, (2, 4), steps=4, seed=0)
        assert torch.equal(eager, sample(net, (2, 4), steps=4, seed=0, graph=mode))
        graph.clear()
    with pytest.raises(TypeError, match="model: returned str"):
        sample(lambda x, t: "x", (2, 4), steps=4, seed=0, graph="on")
    with pytest.raises(ValueError, match=r"model: returned shape \(2, 3\)"):
        sample(lambda x, t: x[:, :3], (2, 4), steps=4, seed=0, graph="on")


def test_a_run_in_the_callback_of_a_run_on_the_same_recordings():
    def net(x, t):
        return x * 0.1

    def again(info):
        sample(net, (2, 4), steps=4, seed=1, graph="on")

    with pytest.raises(CaptureError, match="under way"):
        sample(net, (2, 4), steps=4, seed=0, graph="on", callback=again)
    eager = sample(net, (2, 4), steps=4, seed=0)
    assert torch.equal(eager, sample(net, (2, 4), steps=4, seed=0, graph="on"))


def test_a_recording_runs_no_python_and_keeps_its_memory():
    static, seen = torch.zeros(3), []
    results = []

    def body():
        seen.append(static.sum)
        y = (static * 2).view(3, 1) + 1  # new memory, a view, new memory
        results[:] = [y]
        static.add_(1)

    recording = CallListRecorder().record(body, lambda: static.zero_())
    assert len(seen) == 2
    kept = results[0]
    for n in (1.0, 2.0, 3.0):
        recording.replay()
        assert kept.flatten().tolist() == [2 * n + 1] * 3
    assert len(seen) == 2
    assert static.tolist() == [4.0] * 3
    assert recording.bytes == 2 * 12


def test_auto_says_why_once_on_the_cpu(caplog):
    def net(x, t):
        return x * 0.1

    stats = {}
    with caplog.at_level(logging.INFO, "fastsample"):
        for seed in (0, 1):
            made = sample(net, (2, 4), steps=4, seed=seed, graph="auto", stats=stats)
            assert torch.equal(made, sample(net, (2, 4), steps=4, seed=seed))
            assert stats["graph"]["used"] is None
            assert stats["graph"]["why"] == "cpu: a recorded call list saves nothing"
    assert [record.getMessage() for record in caplog.records if "graph=auto" in record.getMessage()] == [
        "graph=auto runs eagerly: cpu: a recorded call list saves nothing"
    ]


@pytest.fixture
def saving(monkeypatch):
    """As if the call list of the CPU saved time; the times themselves are what the test says."""
    seconds = {"eager": 2.0, "replayed": 1.0}
    monkeypatch.setattr(auto, "saves", lambda device: True)

    def timed(device, body):
        body()
        return seconds["eager" if body.__name__ == "eager" else "replayed"]

    monkeypatch.setattr(auto, "timed", timed)
    return seconds


def modes(net, runs=4, **arguments):
    """How each of some runs was served; every one has the bits of the eager loop."""
    served = []
    for seed in range(runs):
        stats = {}
        arguments = {"steps": 5, "seed": seed, **arguments}
        made = sample(net, (2, 4), graph="auto", stats=stats, **arguments)
        assert torch.equal(made, sample(net, (2, 4), **arguments))
        served.append((stats["graph"]["used"], stats["graph"]["why"]))
    return served


def test_auto_records_from_the_second_run_on(saving):
    served = modes(lambda x, t: torch.tanh(x) * 0.1 * t[:, None])
    assert served[0] == (None, "first run of this configuration; recorded from the second on")
    assert served[1:] == [("call list", None)] * 3


def test_auto_keeps_the_faster_way(saving):
    saving["eager"] = 0.5
    served = modes(lambda x, t: torch.tanh(x) * 0.1)
    assert [used for used, _ in served] == [None] * 4
    assert served[3][1].startswith("eager is faster: 500000 us against 1000000 us")


def test_auto_falls_back_where_nothing_can_be_recorded(saving, caplog):
    with caplog.at_level(logging.INFO, "fastsample"):
        served = modes(lambda x, t: x * float(x.mean()))
    assert [used for used, _ in served] == [None] * 4
    assert "reads a number on the host" in served[3][1]
    assert sum("reads a number" in record.getMessage() for record in caplog.records) == 1
    assert modes(lambda x, t: x * 0.1, plan=make_plan("ddim", vp_path(4)), steps=None)[3][0] == "call list"
    found = modes(lambda x, t: x * 0.1, solver="dpm-adaptive", steps=None)
    assert "decides on the host" in found[3][1]
    assert modes(lambda x, t: x * 0.1, solver="rtk-ula", steps=3)[3] == ("call list", None)


def test_auto_says_that_memory_is_short(saving):
    before = graph.limit()
    try:
        graph.limit(0.001)
        served = modes(lambda x, t: x * 0.1)
        assert served[3][0] is None
        assert served[3][1].startswith("memory: its recordings need")
    finally:
        graph.limit(before)
