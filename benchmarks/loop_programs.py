"""Whole runs of a job as several programs do them, and the check that all give the same samples."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

import fastsample
from benchmarks.loop_cases import Job, Net, Step
from benchmarks.steps import UnavailableError
from fastsample import noise

OURS, OURS_NET = "fastsample", "fastsample-compiled-net"
GRAPH, GRAPH_WHOLE = "fastsample-graph", "fastsample-graph-whole"
LOOP, STEP_LOOP = "fastsample-compiled-loop", "fastsample-compiled-step"
MODES = {GRAPH: "on", GRAPH_WHOLE: "whole"}  # on a CPU a recorded list of calls
DROP_IN, STOCK, BY_HAND = "fastsample-drop-in", "diffusers", "by-hand"
STEP, STEP_IN_PLACE, STEP_NET = "compiled-step", "compiled-step-in-place", "compiled-step-and-net"
COMPILED = (STEP, STEP_IN_PLACE, STEP_NET)
NET_TOO = (OURS_NET, STEP_LOOP, STEP_NET)  # compile the network
COMPILING = (OURS_NET, LOOP, STEP_LOOP, *COMPILED)
PROGRAMS = (OURS, GRAPH, GRAPH_WHOLE, LOOP, OURS_NET, STEP_LOOP, DROP_IN, STOCK, *COMPILED, BY_HAND)
SEED = 11


class DisagreementError(RuntimeError):
    """Two programs gave different samples: their times must not be compared."""


@dataclass
class Program:
    """``run``: from the start to the samples, a new tensor.  ``noises``: what it adds after ``reset``, in order."""

    name: str
    run: Callable[[], Tensor]
    reset: Callable[[], Any]
    noises: Callable[[], Sequence[Tensor]]


def build(name: str, job: Job) -> Program:
    """Raises ``UnavailableError`` if the program cannot run here or says nothing new for this job."""
    if name in (OURS_NET, STEP_NET) and job.case.null:
        raise UnavailableError("there is no network to compile")
    net = compiled_net(job) if name in (OURS_NET, STEP_NET) else job.net
    if name in (OURS, *MODES, OURS_NET):
        return ours(name, job, net, MODES.get(name))
    if name in (LOOP, STEP_LOOP):
        return in_one_graph(name, job)
    if name in (DROP_IN, STOCK):
        return scheduler(name, job)
    return compiled(name, job, net) if name in COMPILED else by_hand(job)


def compiled_net(job: Job) -> Net:
    made: Net = torch.compile(job.net, fullgraph=True, dynamic=False)
    return made


def ours(name: str, job: Job, net: Net, graph: str | None = None) -> Program:
    """``fastsample.sample`` with a plan that is ready, as it is kept from run to run; its noise is made of a key."""
    more: dict[str, Any] = {}
    if graph is not None:
        if "graph" not in inspect.signature(fastsample.sample).parameters:
            raise UnavailableError("this version cannot capture")
        more = {"graph": graph}
    network, plan = fastsample.Network(net, job.case.prediction, "t"), ready(job)

    def run() -> Tensor:
        x: Tensor = fastsample.sample(network, job.x, plan=plan, seed=SEED, check=False, **more)
        return x

    return Program(name, run, lambda: None, lambda: _keyed(job))


def in_one_graph(name: str, job: Job) -> Program:
    """Ours under ``torch.compile``: the whole run as one graph (`Loop`), or network and update as one (`StepLoop`).

    A run is unrolled, so that a network is compiled once per call: minutes for those of this benchmark.
    """
    if name == LOOP and not job.case.null:
        raise UnavailableError(f"{len(job.times)} calls of a network in one graph take minutes to compile")
    network, plan = fastsample.Network(job.net, job.case.prediction, "t"), ready(job)
    made: Any
    if name == LOOP:
        made = torch.compile(fastsample.Loop(network, plan, start="state"), fullgraph=True, dynamic=False)
    else:
        made = fastsample.StepLoop(network, plan, start="state")
        made.step.compile(fullgraph=True, dynamic=False)

    def run() -> Tensor:
        x: Tensor = made(job.x, noise.keys(SEED, len(job.x), job.x.device))
        return x

    return Program(name, run, lambda: None, lambda: _keyed(job))


def ready(job: Job) -> fastsample.Plan:
    """The plan of a job."""
    options = {} if job.case.clip is None else {"clip": job.case.clip}
    return fastsample.make_plan(job.case.solver, job.path, prediction=job.case.prediction, **options)


def _keyed(job: Job) -> list[Tensor]:
    """The noise of a key, step by step."""
    key = noise.keys(SEED, len(job.x), job.x.device)
    return [noise.normal_like(job.x, key, draw) for draw in range(1, len(job.rows))]  # draw 0 is the start


def scheduler(name: str, job: Job) -> Program:
    """The loop of a pipeline around a scheduler of diffusers, or around ours of that name."""
    try:
        import diffusers
    except ImportError as error:
        raise UnavailableError(f"diffusers cannot be imported ({error})") from error
    module: Any = diffusers
    if name == DROP_IN:
        import fastsample.integrations.diffusers as module
    case, generator = job.case, torch.Generator(job.device)
    made = getattr(module, case.scheduler)(**case.config)
    more: dict[str, Any] = {"return_dict": False} | ({"generator": generator} if case.noisy else {})

    def run() -> Tensor:
        made.set_timesteps(case.steps, device=job.device)
        x = job.x
        for t, told in zip(made.timesteps, job.times, strict=True):
            x = made.step(job.net(x, told), t, x, **more)[0]
        return x

    return Program(name, run, lambda: generator.manual_seed(SEED), lambda: _drawn(job))


def by_hand(job: Job) -> Program:
    """PyTorch as in the papers, coefficients made before the run as Python floats."""
    clip, generator = job.case.clip, torch.Generator(job.device)

    def run() -> Tensor:
        x, last = job.x, job.x
        for told, s in zip(job.times, job.rows, strict=True):
            e = job.net(x, told)
            d = s.px * x + s.pe * e
            if clip is not None:
                d = d.clamp(-clip, clip)
            x, last = _step(x, e, d, last, s, generator), d
        return x

    return Program(BY_HAND, run, lambda: generator.manual_seed(SEED), lambda: _drawn(job))


def _step(x: Tensor, e: Tensor, d: Tensor, last: Tensor, s: Step, noises: torch.Generator) -> Tensor:
    new = s.b0 * d
    if s.a:
        new = new + s.a * x
    if s.b1:
        new = new + s.b1 * last
    if s.be:
        new = new + s.be * e
    if s.c:
        new = new + s.c * torch.randn(x.shape, generator=noises, device=x.device)
    return new


def compiled(name: str, job: Job, net: Net) -> Program:
    """The step under ``torch.compile`` at its best: coefficients and index as tensors (one graph for all steps), only
    the terms that the solver has, noise drawn outside into a tensor that is kept.
    """
    table = torch.tensor([tuple(s) for s in job.rows], dtype=torch.float32, device=job.device)
    places = [torch.tensor([i], device=job.device) for i in range(len(job.rows))]
    history, raw, noisy = (any(s[j] for s in job.rows) for j in (4, 5, 6))
    clip, generator = job.case.clip, torch.Generator(job.device)
    drawn = torch.empty_like(job.x) if noisy else None

    def step(x: Tensor, e: Tensor, last: Tensor, place: Tensor, xi: Tensor | None) -> tuple[Tensor, Tensor]:
        px, pe, a, b0, b1, be, c = table.index_select(0, place)[0].unbind()
        d = px * x + pe * e
        if clip is not None:
            d = d.clamp(-clip, clip)
        new = a * x + b0 * d
        if history:
            new = new + b1 * last
        if raw:
            new = new + be * e
        if xi is not None:
            new = new + c * xi
        return new, d

    def step_(x: Tensor, e: Tensor, last: Tensor, place: Tensor, xi: Tensor | None) -> None:
        new, d = step(x, e, last, place, xi)
        x.copy_(new)
        if history:
            last.copy_(d)

    in_place = name == STEP_IN_PLACE
    fast: Any = torch.compile(step_ if in_place else step, fullgraph=True, dynamic=False)

    def run() -> Tensor:
        x = job.x.clone() if in_place else job.x
        last = torch.zeros_like(x)
        for told, place, s in zip(job.times, places, job.rows, strict=True):
            e = net(x, told)
            if drawn is not None and s.c:
                drawn.normal_(generator=generator)
            if in_place:
                fast(x, e, last, place, drawn)
            else:
                x, last = fast(x, e, last, place, drawn)
        return x

    return Program(name, run, lambda: generator.manual_seed(SEED), lambda: _drawn(job))


def _drawn(job: Job) -> list[Tensor]:
    """What torch's generator gives to a program, step by step."""
    g = torch.Generator(job.device).manual_seed(SEED)
    return [torch.randn(job.x.shape, generator=g, device=job.device) for s in job.rows if s.c]


def reference(job: Job, noises: Sequence[Tensor]) -> Tensor:
    """The samples in float64; the network is asked in float32, as by the programs."""
    x, clip, drawn = job.x.double(), job.case.clip, iter(noises)
    last = x
    for told, s in zip(job.times, job.rows, strict=True):
        e = job.net(x.float(), told).double()
        d = s.px * x + s.pe * e
        if clip is not None:
            d = d.clamp(-clip, clip)
        x = s.a * x + s.b0 * d + s.b1 * last + s.be * e + (s.c * next(drawn).double() if s.c else 0.0)
        last = d
    return x


def check(program: Program, job: Job) -> float:
    """Largest error of the samples over their largest value, in units of the rounding of float32.

    Raises:
        DisagreementError: it is above ``allowed``, or the samples are not finite.
    """
    program.reset()
    got = program.run()
    wanted = reference(job, program.noises() if job.case.noisy else ())
    error = float((got.double() - wanted).abs().max() / wanted.abs().max()) / 2.0**-24
    limit = allowed(job)
    if not error <= limit:
        raise DisagreementError(
            f"{program.name} gives other samples for {job.case.name} {job.case.shape}: {error:.3g} roundings away from "
            f"float64, allowed are {limit:.3g}; nothing is timed"
        )
    return error


def allowed(job: Job) -> float:
    """Roundings by which a program may differ: 64 a step.

    A step has some ten operations; the coefficients that diffusers makes of float32 levels are as much again and more
    where levels lie close; a network passes on what it is given, and a compiled one rounds in another order.
    """
    return 64.0 * len(job.rows)
