"""Ranges of a run: what a tool hears, how they nest, and that a loop with ranges off makes no call for them."""

from __future__ import annotations

import os
import sys
from collections import Counter
from pathlib import Path

import pytest
import torch

import fastsample
from fastsample import StopSampling, make_path, make_plan, profiling
from fastsample.loop import drive
from fastsample.profiling import ranges
from fastsample.run import PlanRun

HERE = Path(__file__).parent


class Heard:
    """A sink that keeps (depth, text, number) and refuses an end without a beginning."""

    def __init__(self):
        self.open, self.ranges = 0, []

    def push(self, text, number):
        self.ranges.append((self.open, text, number))
        self.open += 1

    def pop(self):
        assert self.open > 0
        self.open -= 1

    def of(self, kind):
        return [(text, number) for _, text, number in self.ranges if text.split(" ")[0] == kind]


@pytest.fixture
def heard():
    sink = Heard()
    ranges.use([sink])
    yield sink
    ranges.disable()
    assert sink.open == 0


pytestmark = pytest.mark.usefixtures("ranges_off")


def network(x, t):
    return 0.1 * x


def test_a_run(heard):
    fastsample.sample(network, (2, 3), solver="ddim", steps=2, seed=0)
    step = [(1, "step ddim"), (2, "network"), (2, "update")]
    assert [r[:2] for r in heard.ranges] == [(0, "run ddim 24 bytes"), *step, *step]
    assert [number for *_, number in heard.ranges] == [2, 0, 0, 0, 1, 1, 1]


def test_a_step_holds_all_of_its_calls(heard):
    fastsample.sample(network, (2, 3), solver="heun", steps=3, seed=0, schedule="vp-linear")
    calls = len(heard.of("network"))
    assert [number for _, number in heard.of("step")] == [0, 1, 2]
    assert calls == len(heard.of("update")) > 3
    assert {depth for depth, text, _ in heard.ranges if text == "network"} == {2}


@pytest.mark.parametrize(
    ("solver", "options"),
    [
        ("dpm-adaptive", {}),
        ("poisson-midpoint", {"steps": 4}),
        ("rtk-mala", {"steps": 2, "inner": 2}),
        ("rtk-uld", {"steps": 2, "inner": 2}),
        ("ml-em", {"steps": 3}),
        ("psld-ode", {"rtol": 1e-2, "atol": 1e-2}),
    ],
)
def test_procedures(heard, solver, options):
    from fastsample import procedures

    stats = {}
    model = fastsample.GaussianMixture.ring()
    if procedures.get(solver).model == "phase-space":
        from fastsample.solvers.phase.process import process_of

        model = model.phase_space(process_of({}))
    elif procedures.get(solver).model == "ladder":
        model = fastsample.Ladder([model.network(), model.network()], [1.0, 100.0])
    fastsample.sample(model, (3, 2), solver=solver, seed=0, stats=stats, **options)
    assert len(heard.of("network")) == stats["nfe"]
    assert len(heard.of("update")) > 0
    assert len(heard.of("run")) == 1


def test_a_run_that_is_stopped_or_fails_ends_its_ranges(heard):
    def stop(info):
        if info.call == 1:
            raise StopSampling

    fastsample.sample(network, (2, 3), solver="heun", steps=4, seed=0, callback=stop)
    assert heard.open == 0 and len(heard.of("network")) == 2

    def fails(x, t):
        raise RuntimeError("no")

    with pytest.raises(RuntimeError, match="no"):
        fastsample.sample(fails, (2, 3), solver="heun", steps=4, seed=0)
    assert heard.open == 0


def test_switched_off_in_the_middle(heard):
    fastsample.sample(network, (2, 3), steps=3, seed=0, callback=lambda info: profiling.disable())
    assert heard.open == 0 and len(heard.of("network")) == 3


def test_same_samples_on_and_off(heard):
    on = fastsample.sample(network, (2, 3), solver="sde-dpmpp-2m", steps=5, seed=0)
    ranges.disable()
    assert torch.equal(on, fastsample.sample(network, (2, 3), solver="sde-dpmpp-2m", steps=5, seed=0))


def test_langevin_chains(heard):
    from fastsample import langevin

    result = langevin.sample(
        langevin.Score(lambda x: -x), torch.zeros(3, 2), kernel="mala", steps=4, step_size=0.1, seed=0
    )
    assert len(heard.of("network")) == result.report.calls
    assert ("update metropolis", 3) in heard.of("update")


def test_k_diffusion(heard):
    from fastsample.integrations import k_diffusion

    k_diffusion.sample_heun(lambda x, sigma: 0.5 * x, torch.ones(2, 3), torch.tensor([2.0, 1.0, 0.0]), disable=True)
    call = [(2, "network"), (2, "update")]
    step = (1, "step heun")
    assert [r[:2] for r in heard.ranges] == [(0, "run heun 24 bytes"), step, *call, *call, step, *call]
    heard.ranges.clear()
    k_diffusion.sample_dpm_adaptive(lambda x, sigma: 0.5 * x, torch.ones(2, 3), 0.1, 2.0, disable=True)
    assert len(heard.of("network")) > 3


# --- diffusers


def diffusers_run(name):
    schedulers = pytest.importorskip("fastsample.integrations.diffusers")
    scheduler = getattr(schedulers, name)()
    scheduler.set_timesteps(4)
    x = torch.ones(1, 2, 4, 4)
    for t in scheduler.timesteps:
        x = scheduler.step(0.1 * x, t, x).prev_sample
    return len(scheduler.timesteps)


@pytest.mark.parametrize("name", ["DDIMScheduler", "EDMEulerScheduler", "UniPCMultistepScheduler", "PNDMScheduler"])
def test_one_range_per_step_of_a_drop_in(heard, name):
    steps = diffusers_run(name)
    assert [text for text, _ in heard.of("update")] == [f"update {name}"] * steps
    if name == "DDIMScheduler":
        assert heard.ranges[0][0] == 0


def test_a_drop_in_is_as_written_when_ranges_are_off():
    schedulers = pytest.importorskip("fastsample.integrations.diffusers")
    before = schedulers.DDIMScheduler.step
    assert before.__code__.co_filename.endswith("ddim.py")
    with ranges.Before(()):
        ranges.use([Heard()])
        assert schedulers.DDIMScheduler.step is not before
        assert schedulers.DDIMScheduler.step.__wrapped__ is before  # its arguments can be inspected
    assert schedulers.DDIMScheduler.step is before
    assert "step" not in schedulers.PNDMScheduler.__dict__  # that of diffusers, inherited


# --- zero cost when off


def calls_of(function):
    """Python and C calls made by ``function``, by name and file."""
    made: Counter = Counter()

    def count(frame, event, argument):
        if event == "call":
            made[frame.f_code.co_name, os.path.basename(os.path.dirname(frame.f_code.co_filename))] += 1
        elif event == "c_call":
            made[getattr(argument, "__name__", "?"), "C"] += 1

    before = sys.getprofile()
    sys.setprofile(count)
    try:
        function()
    finally:
        sys.setprofile(before)
    return made


def bare_drive(run, predict, title):
    """The loop of ``drive`` as it would be if there were no ranges (and no hooks)."""
    asks = run.asks()
    tell = asks.send
    ask = next(asks)
    while True:
        output = predict(*ask)
        try:
            ask = tell(output)
        except StopIteration:
            return
        output = None


def per_step(loop):
    """Calls that 20 steps more make."""
    counts = []
    for steps in (10, 30):
        plan = make_plan("dpmpp-2m", make_path("vp-linear", "uniform", steps))
        run = PlanRun(plan, torch.zeros(2, 3), key=fastsample.keys(0, 2))
        counts.append(calls_of(lambda run=run: loop(run, network, title="x")))
    return counts[1] - counts[0]


def test_off_no_call_more_than_a_loop_without_ranges():
    per_step(drive)  # whatever is loaded at first use
    off, bare = per_step(drive), per_step(bare_drive)
    assert off == bare
    assert not any(folder == "profiling" for _, folder in off)
    assert off["network", "tests"] == 20  # the count sees the loop
    ranges.use([Heard()])
    assert sum(per_step(drive).values()) > sum(off.values())


def test_off_no_call_of_a_drop_in():
    pytest.importorskip("fastsample.integrations.diffusers")
    diffusers_run("DDIMScheduler")
    made = calls_of(lambda: diffusers_run("DDIMScheduler"))
    assert made["step", "diffusers"] == 4
    assert not any(folder == "profiling" for _, folder in made)
