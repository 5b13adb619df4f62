"""Chains whose iterations are recorded: the bits of those that are not, one recording per kind, reasons why not."""

from __future__ import annotations

import gc

import pytest
import torch

from fastsample import CaptureError, Network, graph, langevin
from fastsample.langevin import recorded

from .langevin_cases import gaussian, quartic

WINDOW = {"window": 6, "midpoints": "one"}
KERNELS = {
    "mala": {},
    "lmc": {},
    "uld": {"friction": 2.0},
    "rlmc": {},
    "rlmc-underdamped": {"friction": 2.0},
    "plmc": WINDOW,
    "plmc-underdamped": {"friction": 2.0, **WINDOW},
}
START = torch.randn(5, 3, 2, generator=torch.Generator().manual_seed(0), dtype=torch.float64)


@pytest.fixture(autouse=True)
def clean():
    graph.clear()
    yield
    graph.clear()


def both(target, x=START, **arguments):
    """Report and bits of a run, and of the recorded one: what the graph did."""
    arguments = {"kernel": "lmc", "steps": 12, "step_size": 0.05, "seed": 0, "trace": True, **arguments}
    plain = langevin.sample(target, x, **arguments)
    made = langevin.sample(target, x, **arguments, graph="on")
    assert torch.equal(plain.x, made.x) and torch.equal(plain.trace, made.trace)
    assert (plain.velocity is None) == (made.velocity is None)
    assert plain.velocity is None or torch.equal(plain.velocity, made.velocity)
    said = made.report.to_dict().pop("graph")
    assert plain.report.graph is None and "graph" not in plain.report.to_dict()
    assert {**made.report.to_dict(), "graph": 0} == {**plain.report.to_dict(), "graph": 0}
    assert (said["used"], said["why"]) == ("call list", None)
    return said


@pytest.mark.parametrize("kernel", KERNELS)
def test_bits_and_one_recording(kernel):
    assert set(KERNELS) == set(langevin.KERNELS)
    target, options = quartic(), KERNELS[kernel]
    said = both(target, kernel=kernel, **options)
    assert (said["captures"], said["replays"]) == (1, 12)
    for change in (
        {"seed": 3},
        {"seed": [1, 2, 3, 4, 5]},
        {"step_size": 0.02},
        {"step_size": lambda number: 0.05 / (1 + number)},
        {"steps": 30, "warmup": 4, "thin": 3},
        {"x": START.flip(0)},
    ):
        assert both(target, **{"kernel": kernel, **options, **change})["captures"] == 0, change
    assert [part["recordings"] for part in graph.info()["recordings"]] == [1]


@pytest.mark.parametrize("estimator", ["energy", "simpson", "trapezoid", "taylor1", "line(3)"])
def test_estimators_and_adapted_steps(estimator):
    target = gaussian()
    shared = {"kernel": "mala", "estimator": estimator, "warmup": 10, "step_size": 0.3}
    assert both(target, **shared)["captures"] == 1
    assert both(target, **shared, target_acceptance=0.6)["captures"] == 0
    each = {"target_acceptance": 0.6, "adapt_each": True}  # a row per chain, and one of the sampling phase
    assert both(target, **shared, **each)["captures"] <= 1
    assert both(target, **shared, **each, seed=1)["captures"] == 0


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("kernel", ["lmc", "mala"])
def test_a_network_at_a_level(dtype, kernel):
    """Scaled input in a slot of its own, weights that move, and batches of other sizes between."""
    net = torch.nn.Linear(6, 6)
    labels = torch.linspace(0, 1, 5)
    state = START.flatten(1).float() if kernel == "mala" else START.flatten(1).to(dtype)

    def fn(x, t, cond):
        return net(x.float()).to(x.dtype) * torch.cos(t)[:, None].to(x.dtype) + cond[:, None].to(x.dtype)

    network = Network(fn, "eps", "log-snr", "vp", dtype=torch.float32)
    target = langevin.AtLevel(network, 0.5, 0.9, cond=labels)
    options = {"kernel": kernel, "x": state, **({"estimator": "trapezoid"} if kernel == "mala" else {})}
    assert both(target, **options)["captures"] == 1
    assert both(target, **options, seed=2)["captures"] == 0
    with torch.no_grad():
        net.weight.mul_(0.5)  # in place: seen
    assert both(target, **options)["captures"] == 0
    net.weight = torch.nn.Parameter(net.weight * 0.5)  # at another address
    assert both(target, **options)["captures"] == 1


def test_another_shape_is_recorded_anew_and_the_first_stays():
    target = quartic()
    assert both(target)["captures"] == 1
    assert both(target, x=START[:3])["captures"] == 1
    assert both(target, x=START.float())["captures"] == 1
    assert both(target)["captures"] == 0


def test_results_are_not_written_over_and_callbacks_see_the_live_state():
    target, seen = quartic(), []
    shared = {"kernel": "uld", "friction": 1.0, "steps": 5, "step_size": 0.1, "graph": "on"}
    first = langevin.sample(target, START, seed=0, **shared)
    x, v = first.x.clone(), first.velocity.clone()
    langevin.sample(target, START, seed=1, callback=lambda number, state: seen.append(state.clone()), **shared)
    assert torch.equal(first.x, x) and torch.equal(first.velocity, v)
    again = langevin.sample(target, START, seed=1, steps=4, **{k: v for k, v in shared.items() if k != "steps"})
    assert torch.equal(seen[3], again.x)


def test_recordings_end_with_their_target():
    target = quartic()
    both(target)
    assert len(graph.info()["recordings"]) == 1
    del target
    gc.collect()
    assert graph.info()["recordings"] == []


def read_on_the_host(x):
    return -x * float(x.abs().max() > 0)


@pytest.mark.parametrize(
    ("target", "options", "why"),
    [
        (quartic(), {"noise": lambda draw: torch.zeros_like(START)}, "noise: given from outside"),
        (quartic(), {"kernel": "mala", "uniforms": torch.full((3, 5), 0.5)}, "uniforms: given from outside"),
        (quartic(), {"kernel": "plmc", "window": 6, "midpoints": "bernoulli"}, "depends on the seed"),
        (langevin.Score(read_on_the_host), {}, r"reads a number on the host .*test_langevin_graph.py"),
    ],
)
def test_refusals(target, options, why):
    with pytest.raises(CaptureError, match=why):
        langevin.sample(target, START, **{"kernel": "lmc", "steps": 3, "step_size": 0.1, "graph": "on", **options})
    assert graph.info()["recordings"] == []


def test_auto_runs_eagerly_and_says_why(monkeypatch):
    shared = {"kernel": "lmc", "steps": 3, "step_size": 0.1, "seed": 0}
    said = langevin.sample(quartic(), START, graph="auto", **shared).report.graph
    assert said["used"] is None and said["why"] == "cpu: a recorded call list saves nothing"
    monkeypatch.setattr(recorded, "saves", lambda device: True)
    assert langevin.sample(quartic(), START, graph="auto", **shared).report.graph["captures"] == 1
    target = langevin.Score(read_on_the_host)
    made = langevin.sample(target, START, graph="auto", **shared)
    assert made.report.graph["used"] is None and "reads a number" in made.report.graph["why"]
    assert torch.equal(made.x, langevin.sample(target, START, **shared).x)

    inner = []
    target = quartic()

    def again(number, state):
        inner.append(langevin.sample(target, START, graph="auto", **shared).report.graph)

    langevin.sample(target, START, graph="auto", **shared)
    outer = langevin.sample(target, START, graph="auto", callback=again, **shared)
    assert outer.report.graph["replays"] == len(inner) == 3 and torch.equal(
        outer.x, langevin.sample(target, START, **shared).x
    )
    assert all(said["used"] is None and "under way" in said["why"] for said in inner)


def test_many_kinds_of_iterations(monkeypatch):
    """Windows of given midpoints: beyond a number of kinds, the others run eagerly, with the same bits."""
    monkeypatch.setattr(recorded, "KINDS", 2)
    midpoints = [[1], [1, 2], [1, 2, 3], [1, 2, 3, 4], [1]]
    shared = {"kernel": "plmc", "window": 6, "midpoints": midpoints, "steps": 5, "step_size": 0.1, "seed": 0}
    plain = langevin.sample(quartic(), START, **shared)
    target = quartic()
    for captures in (2, 0):
        made = langevin.sample(target, START, **shared, graph="on")
        assert torch.equal(plain.x, made.x) and plain.report.calls == made.report.calls
        said = made.report.graph
        assert (said["captures"], said["replays"]) == (captures, 3) and "more than 2 kinds" in said["why"]


def test_modes_are_named():
    with pytest.raises(ValueError, match="graph: got 'whole', allowed are 'off', 'on', 'auto'"):
        langevin.sample(quartic(), START, steps=1, step_size=0.1, graph="whole")
