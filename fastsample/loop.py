"""``sample()``: a network and a plan in, samples out."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from functools import partial
from typing import Any, NamedTuple

import torch
from torch import Tensor

from . import procedures, traced
from .asked import Seed, conditions_of, keys_of, start_of, state_of
from .choosing import check_fit, plan_for, procedure_for
from .graph.request import Request
from .graph.serve import check_mode, serve
from .hooks import Bar, Recorder, caller
from .models.network import Predictor, as_network
from .path import Path
from .plan import Plan
from .profiling.ranges import RunRanges, in_run
from .run import Noise, PlanRun, Run, StepInfo

__all__ = ["StepInfo", "StopSampling", "Trajectory", "check_finite", "drive", "sample"]

Callback = Callable[[StepInfo], Any]


class StopSampling(Exception):  # noqa: N818  (like StopIteration: no error)
    """Raised by a callback to end the run; `sample` then returns the state as it is."""


class Trajectory(NamedTuple):
    """Samples ``x`` ``(B, ...)`` and the states ``states`` ``(steps done + 1, B, ...)``, from the start to ``x``."""

    x: Tensor
    states: Tensor


def sample(
    model: Any,
    x: int | Sequence[int] | Tensor,
    *,
    solver: str | None = None,
    steps: int | None = None,
    schedule: Any = None,
    grid: Any = None,
    path: Path | None = None,
    plan: Plan | None = None,
    prediction: str | None = None,
    guidance: float | Sequence[float] | None = None,
    cond: Any = None,
    uncond: Any = None,
    seed: Seed | None = None,
    sample_ids: Sequence[int] | Tensor | None = None,
    noise: Noise | None = None,
    start: int | float | None = None,
    callback: Callback | None = None,
    denoised: bool = False,
    progress: bool | str = False,
    return_trajectory: bool = False,
    dtype: torch.dtype | None = None,
    device: torch.device | str | None = None,
    grad: bool = False,
    check: bool = True,
    stats: dict[str, Any] | None = None,
    graph: str = "off",
    **options: Any,
) -> Any:
    """Draw samples.

    Args:
        model: any callable ``model(x, t)``, a `Network`, or an object with ``network()`` such as `GaussianMixture`;
            see `as_network` for how a model says what it predicts. With ``cond`` it is called ``model(x, t, cond)``.
        x: shape ``(B, ...)`` of the samples (or B alone if the model has a ``shape``), to start from noise; or a
            tensor: the state at the first time of the path, or data when ``start`` is given. Of a phase-space solver
            the samples are the positions; the state is the packed pair ``(B, 2 C, ...)`` of position and momentum.
        solver, steps, schedule, grid: name of the solver (default ``"dpmpp-2m"``), number of steps (20), name or object
            of the schedule (the model's own, else ``"vp-linear"``), name, mapping or points of the grid (`make_path`).
        path: a `Path` in place of steps, schedule and grid.
            A solver with adaptive steps takes from these the two ends and what lies between them.
        plan: a ready `Plan` in place of solver, path, prediction, guidance and options.
        prediction: what the model predicts, if it does not say so itself.
        guidance: weight w of classifier-free guidance, ``w cond + (1 - w) uncond``, or one per network call. Without
            ``cond`` the model itself must return the pair ``(conditional, unconditional)``.
        cond, uncond: conditions of the two branches: tensors, or dicts and tuples of tensors. ``uncond`` may be left
            out if the model has a ``null_class``.
        seed: a whole number, one per sample, or a ``torch.Generator`` that is asked once. None: torch's default one. Or
            the keys themselves, ``(B, 2)`` uint64 of `fastsample.keys`.
        sample_ids: global indices ``(B,)`` of these samples, by default 0 to B - 1: the noise of a sample depends on
            the seed and its index alone, so that batches may be cut anywhere.
        noise: noise in place of the seed: recorded, one tensor like x per draw (draw 0 is the start), or a function of
            the number of the draw that is called when it is needed.
        start: image-to-image: the step to begin at, or the fraction in (0, 1] of the steps to run; ``x`` is then data.
        callback: called with a `StepInfo` after each update; may raise `StopSampling`.
        denoised: give the callback the network's estimate of the data too (one more write per call).
        progress: True: a bar on stderr if that is a terminal; ``"always"``: anyway.
        return_trajectory: return a `Trajectory` instead of a tensor.
        dtype, device: of the state; by default those of ``x``, else float32 and where the model's parameters are.
        grad: let gradients pass through the whole run; keeps all of it in memory.
        check: raise ``FloatingPointError`` if the samples are not finite. One look at the end, the only host read.
        stats: a dict that is filled with what the run says of itself at its end, as JSON values: ``solver``, ``nfe``
            (network calls made) and, of samplers that decide while they run, such as acceptance rates. May read the
            device.
        graph: ``"on"``: record the network and the updates once and replay them, as CUDA graphs; ``"whole"``: the whole
            run as one recording; ``"auto"``: where that is faster, ``"off"`` where not. See docs/graphs.md.
        options: for the solver, such as ``eta``; see ``fastsample solvers``.

    Returns:
        The samples ``(B, ...)``, a new tensor, or a `Trajectory`.

    Raises:
        TypeError, ValueError: an argument that is not allowed, by name, before anything is computed.
        FloatingPointError: the network gave NaN or infinity (see ``check``).
        CaptureError: ``graph`` is ``"on"`` or ``"whole"``, and the run cannot be recorded.
    """
    check_mode(graph)
    network = as_network(model, prediction=prediction if plan is None else None)
    state = state_of(x, network, dtype, device)
    kind, first = start_of(x, start)
    begin: Any = None
    procedure = None if plan is not None else procedures.get(solver)
    tracing = torch.compiler.is_compiling()  # docs/compile.md
    if tracing:
        kept = {"return_trajectory": return_trajectory, "stats": stats, "noise": noise, "denoised": denoised}
        traced.check(procedure, callback=callback, progress=progress, graph=graph if graph != "off" else None, **kept)
    if plan is None:
        choice = {"schedule": schedule, "grid": grid, "path": path, "guidance": guidance, "start": first, **options}
        if procedure is None:
            choice |= {"solver": solver, "steps": steps}
            plan = traced.outside(plan_for, network, **choice) if tracing else plan_for(network, **choice)
        else:
            begin = procedure_for(network, procedure, steps=steps, denoised=denoised, **choice)
    else:
        given = {"solver": solver, "steps": steps, "schedule": schedule, "grid": grid, "path": path}
        given |= {"prediction": prediction, "guidance": guidance, **options}
        clash = [name for name, value in given.items() if value is not None]
        if clash:
            raise ValueError(f"{', '.join(clash)}: got a plan too, which already fixes it; give one of them")
        if first is not None and first != 0:
            raise ValueError("start: got a ready plan too; make that of path[start:], and give start=0")
        if not tracing:
            check_fit(plan, model, network)
    if denoised and plan is not None:
        plan = plan.with_denoised()

    key = None if noise is not None else keys_of(seed, sample_ids, len(state), state.device)
    if plan is not None and tracing:
        return traced.run_in_graph(plan, network, state, key, cond, uncond, start=kind, grad=grad)
    with torch.set_grad_enabled(grad), ExitStack() as held:  # what is made here outlives the run: ordinary tensors
        shared: dict[str, Any] = {"start": kind, "key": key, "noise": noise, "input_dtype": network.dtype, "grad": grad}
        run: Any = None  # of a plan, made where no recording has its memory
        if begin is not None:
            run = begin(state, energy=network.energy_given(network.condition(cond, state)), **shared)
        guided = run.guided if plan is None else plan.guided
        cond, uncond = conditions_of(network, guided, cond, uncond, state)
        known, title = (None, str(solver)) if plan is None else (len(set(plan.step_of)), plan.solver)
        go: Any
        served = None
        if graph != "off":
            what = (model, network, plan, run, begin, state, kind, key, noise, guided, cond, uncond, grad)
            hooked = bool(callback or progress or return_trajectory)
            served = held.enter_context(serve(graph, Request(*what, hooked=hooked)))
        if served is not None and served.run is not None:
            run, go = served.run, in_run(served.run, served.drive, title)
        else:
            run = run if plan is None else PlanRun(plan, state, reuse=True, **shared)
            both = guided and cond is not None
            predict = network.guided(cond, uncond) if both else network.given(cond)
            go = partial(drive, run, predict, title=title)
        states = Recorder(run, known, grad) if return_trajectory else None
        hooks = [hook for hook in (states, callback and caller(run, callback)) if hook is not None]
        with Bar(progress, run.calls, title) as advance, torch.inference_mode(not grad):
            made = go([*hooks, *advance])
        if check:
            check_finite(run.state)
        if stats is not None:
            more = getattr(run, "stats", None)
            stats.update({"solver": title, "nfe": made, **({} if more is None else more())})
            if served is not None:
                stats["graph"] = served.stats()
        # neither half of a tensor nor memory of a recording
        lent = served is not None and served.run is not None
        if lent or (plan is not None and plan.parts == 2 and not grad):
            final = run.state.clone()
        else:
            final = run.finish() if isinstance(run, PlanRun) else run.state
        return final if states is None else Trajectory(final, states.value())


def drive(run: Run, predict: Predictor, hooks: Sequence[Callable[[int], Any]] = (), title: str = "") -> int:
    """Ask and tell until the run is done; each hook is called with the number of the call that was just told.

    ``title``: of the run in profiles (`fastsample.profiling`), none if empty.  Returns how many calls were made.
    """
    ranges = RunRanges.of(run, title)
    if ranges is None:
        return _drive(run, predict, hooks)
    with ranges:
        return _drive(run, ranges.network(predict), [*hooks, ranges.told])


def _drive(run: Run, predict: Predictor, hooks: Sequence[Callable[[int], Any]]) -> int:
    asks = run.asks()
    tell = asks.send
    try:
        ask = next(asks)
    except StopIteration:
        return 0
    call = 0
    while True:
        output = predict(*ask)
        try:
            ask = tell(output)
            done = False
        except StopIteration:
            done = True
        output = None  # type: ignore[assignment]  # not one more tensor in memory during the next network call
        if hooks:
            try:
                for hook in hooks:
                    hook(call)
            except StopSampling:
                asks.close()
                return call + 1
        call += 1
        if done:
            return call


def check_finite(x: Tensor) -> None:
    """Raise ``FloatingPointError`` if ``x`` holds NaN or infinity; one host read, no large temporary."""
    if x.numel() == 0:
        return
    small = x.is_cpu and x.numel() <= 1 << 14  # the sum copies x
    if small and math.isfinite(x.detach().sum(dtype=torch.float64).item()):
        return  # NaN and infinity would be seen in the sum
    low, high = torch.stack(x.detach().aminmax()).tolist()  # a NaN anywhere makes both NaN
    if not (abs(low) < float("inf") and abs(high) < float("inf")):
        raise FloatingPointError(
            "the samples are not finite: the network returned NaN or infinity; check its weights, its dtype, "
            "and that prediction and time are what it was trained with"
        )
