"""``langevin.sample()``: a target and a starting point in, draws and a report out."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from copy import copy
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ..loop import check_finite
from .adaptation import DualAveraging
from .chain import Drive, RowRun
from .estimators import estimator, settle_radii
from .kernels import Facts, complete, find
from .mala import MalaRun
from .moves import Feed, Kernel
from .overdamped import Lmc, Plmc, Rlmc
from .random_times import midpoint_offsets, uniform_times
from .randomness import Randomness, Seed
from .recorded import MODES, served
from .report import Report, Watch
from .steps import Steps, step_sizes
from .targets import Target, as_target
from .underdamped import Uld, UnderdampedPlmc, UnderdampedRlmc

_FLOATS = (torch.float32, torch.bfloat16, torch.float16, torch.float64)


@dataclass(frozen=True)
class Result:
    """``x``: the chains at the end ``(B, ...)``.  ``trace``: kept states ``(n, B, ...)``, ``velocity``: or None."""

    x: Tensor
    report: Report
    trace: Tensor | None = None
    velocity: Tensor | None = None


def sample(
    target: Any,
    x: Tensor,
    *,
    kernel: str = "mala",
    steps: int,
    step_size: float | Callable[[int], float],
    warmup: int = 0,
    thin: int = 1,
    seed: Seed | None = None,
    sample_ids: Sequence[int] | Tensor | None = None,
    noise: Mapping[int, Tensor] | Callable[[int], Tensor] | None = None,
    target_acceptance: float | None = None,
    adapt_each: bool = False,
    trace: bool = False,
    monitor: Any = "auto",
    callback: Callable[[int, Tensor], Any] | None = None,
    check: bool = True,
    graph: str = "off",
    **options: Any,
) -> Result:
    """Run Langevin chains on a fixed target.

    Args:
        target: `Score`, `Energy` or `AtLevel`.
        x: where the chains start, ``(B, ...)`` float32, float64, bfloat16 or float16 ("mala": the first two); not
            written.
        kernel: a name of ``langevin.KERNELS``; docs/langevin.md compares them.
        steps, warmup: iterations after and during the warm-up, whose draws are not kept.  An iteration of "plmc" is a
            window of fine steps.
        step_size: of an iteration, in units of x squared over that of the potential (of x for underdamped kernels); or
            a function of its number (the first of the warm-up is 0), for steps that shrink (arXiv 2511.13085).
        thin: keep every ``thin``-th state for ``trace`` and for the report.
        seed: a whole number, one per chain, or a ``torch.Generator`` that is asked once, with a look at the device.
            None: torch's default one.
        sample_ids: global indices ``(B,)`` of the chains, by default 0 to B - 1: a chain depends on the seed and its
            index alone, so that batches may be cut anywhere (not so while one step is adapted to all chains).
        noise: tensors like x by the number of the draw, or a function that gives them, in place of keyed normals;
            iteration i has the draws from ``1 + i * draws`` on, in the order of the formulas; draw 0 is the velocity.
        target_acceptance: of "mala": adapt the step in the warm-up to this rate; each of its iterations then waits for
            the device.  0.574 is best on many like coordinates (Roberts and Rosenthal 1998).
        adapt_each: a step for each chain rather than one for all.
        trace: return the kept states.
        monitor: what R-hat and the effective sample size are computed of: ``"auto"`` (all elements of small states;
            mean, mean square and 8 elements of others), None, or a function of x that returns ``(B,)`` or ``(B, m)``.
        callback: called after each iteration of the sampling phase with its number and the live state.
        check: raise ``FloatingPointError`` if the end is not finite; reads the device once, at the end.
        graph: ``"off"``, ``"on"`` (iterations are recorded, docs/graphs.md: the same bits; `CaptureError` says why
            if that cannot be) or ``"auto"`` (on a GPU, where it can be); ``report.graph`` tells what was done.
        options: of the kernel.
            "mala": ``estimator``: ``"energy"``, ``"simpson"``, ``"trapezoid"``, ``"taylor1"``, ``"line(n)"``;
            ``"auto"`` is the energy if the target has one, else ``"simpson"``, which costs a second call per step.
            ``radii``: None or the largest ``|z' - z|`` and ``|z'|`` accepted.  ``uniforms``: ``(warmup + steps, B)``
            float64 for the choices, needed with ``noise``.
            Underdamped kernels: ``friction`` (required); ``velocity``: to start from, by default N(0, I).
            "rlmc": ``theta``: the random times, one per iteration, in place of drawn ones; ``shared``: the same for all
            chains.  "plmc": ``window``: fine steps of an iteration; ``midpoints``: ``"bernoulli"`` (as published),
            ``"one"``, a number, or a list of offsets per window; ``shared``.

    Raises:
        TypeError, ValueError: an argument that is not allowed, by name, before anything is computed.
        FloatingPointError: a chain ended at NaN or infinity: mostly a step that is too large.

    Papers: see ``langevin.KERNELS``; the report is that of Vehtari et al. 2021, arXiv 1903.08008.
    """
    facts = find(kernel)
    given = complete(facts, options)
    found, sizes = as_target(target), step_sizes(step_size)
    _check_state(x, facts)
    for name, value, least in (("steps", steps, 1), ("warmup", warmup, 0), ("thin", thin, 1)):
        if isinstance(value, bool) or not isinstance(value, int) or value < least:
            raise ValueError(f"{name}: got {value!r}, allowed are whole numbers >= {least}")
    if target_acceptance is None and adapt_each:
        raise ValueError("adapt_each: got True without target_acceptance")
    if target_acceptance is not None and (facts.name != "mala" or callable(step_size)):
        raise ValueError("target_acceptance: only 'mala' with a number as step_size has an acceptance to adapt to")
    if target_acceptance is not None and warmup == 0:
        raise ValueError("warmup: got 0, but steps are adapted in the warm-up only")

    if graph not in MODES:
        raise ValueError(f"graph: got {graph!r}, allowed are {', '.join(map(repr, MODES))}")

    with torch.inference_mode(False), torch.no_grad(), ExitStack() as stack:
        start = x.detach().clone(memory_format=torch.contiguous_format)
        draw = Randomness(seed, sample_ids, noise, start)
        adapt = None
        if target_acceptance is not None:
            adapt = DualAveraging(sizes(0), target_acceptance, len(start) if adapt_each else None)

        def begin(target: Target, x: Tensor, key: Tensor | None) -> MalaRun | RowRun:
            drive = Drive(key, draw.drive.noise)
            if facts.name == "mala":
                return _mala(target, x, drive, adapt or sizes, warmup + steps, given)
            return _rows(facts, target, x, draw, drive, sizes, given)

        key = draw.drive.key
        # what is recorded keeps numbers of this run, and must not keep the target itself alive
        first = begin(found if graph == "off" else copy(found), start, key)
        serving = stack.enter_context(served(graph, found, first, key, _why_not(draw, given), begin))
        run: MalaRun | RowRun = serving.run
        _run_warmup(run, warmup, adapt)
        calls = run.call.calls
        watch, kept = Watch(monitor, start, steps // thin), None
        if trace:
            kept = start.new_empty((steps // thin, *start.shape))
        for number in run.advance(warmup, steps):
            done = number - warmup + 1
            if done % thin == 0:
                watch(run.state)
                if kept is not None:
                    kept[done // thin - 1].copy_(run.state)
            if callback is not None:
                callback(done - 1, run.state)
        if check:
            try:
                check_finite(run.state)
            except FloatingPointError:
                raise FloatingPointError(
                    f"a chain of {facts.name!r} ended at NaN or infinity: take a smaller step_size, or see what the "
                    "target returns far out"
                ) from None
        rhat, ess = watch.finish()
        report = Report(
            kernel=facts.name,
            steps=steps,
            warmup=warmup,
            step_size=(adapt or sizes)(warmup + steps - 1),
            calls=run.call.calls,
            calls_warmup=calls,
            acceptance=(run.chain[:, 4] / steps).cpu().numpy() if isinstance(run, MalaRun) else None,
            watched=watch.names,
            draws=steps // thin,
            rhat=rhat,
            ess=ess,
            graph=None if graph == "off" else serving.stats(),
        )
        velocity = run.slots.get("v") if isinstance(run, RowRun) else None
        return Result(serving.own(run.state), report, kept, None if velocity is None else serving.own(velocity))


def _why_not(draw: Randomness, given: Mapping[str, Any]) -> str | None:
    """Why chains cannot be recorded, as far as that is known before it is tried."""
    if draw.drive.noise is not None:
        return "noise: given from outside; recorded chains make theirs from keys"
    if given.get("uniforms") is not None:
        return "uniforms: given from outside; recorded chains make theirs from keys"
    if given.get("midpoints") == "bernoulli":
        return "midpoints: got 'bernoulli', where the number of calls of a window depends on the seed"
    return None


def _mala(target: Target, x: Tensor, drive: Drive, taus: Any, iterations: int, given: Mapping[str, Any]) -> MalaRun:
    name, uniforms = given["estimator"], given["uniforms"]
    how = estimator(("energy" if target.has_energy else "simpson") if name == "auto" else name)
    if how.energy and not target.has_energy:
        raise ValueError("estimator: got 'energy', but the target has none; take 'simpson', 'line(n)' or 'trapezoid'")
    if uniforms is None and drive.noise is not None:
        raise ValueError("uniforms: got none though the noise is given; they belong together")
    if uniforms is not None:
        uniforms = torch.as_tensor(uniforms, dtype=torch.float64, device=x.device).contiguous()
        if tuple(uniforms.shape) != (iterations, len(x)):
            raise ValueError(f"uniforms: got shape {tuple(uniforms.shape)}, need ({iterations}, {len(x)})")
    apart = target.kappa != 1.0 or (not how.energy and target.input_dtype not in (None, x.dtype))
    radii = settle_radii(given["radii"])
    return MalaRun(target, x, drive, taus=taus, how=how, radii=radii, apart=apart, uniforms=uniforms)


def _rows(
    facts: Facts, target: Target, x: Tensor, draw: Randomness, drive: Drive, sizes: Steps, given: Mapping[str, Any]
) -> RowRun:
    apart = target.kappa != 1.0 or target.input_dtype not in (None, x.dtype)
    feed, friction = Feed(target, apart), _friction(given) if facts.velocity else 0.0
    kernel: Kernel
    if facts.name.startswith("plmc"):
        found = midpoint_offsets(draw.stream(bool(given["shared"])), given["window"], given["midpoints"])
        size = given["window"]
        if facts.velocity:
            kernel = UnderdampedPlmc(target, feed, sizes, friction, size, found)
        else:
            kernel = Plmc(target, feed, sizes, size, found)
    elif facts.name.startswith("rlmc"):
        thetas = uniform_times(draw.stream(bool(given["shared"])), given["theta"])
        if facts.velocity:
            kernel = UnderdampedRlmc(target, feed, sizes, friction, thetas)
        else:
            kernel = Rlmc(target, feed, sizes, thetas)
    else:
        kernel = Uld(target, feed, sizes, friction) if facts.velocity else Lmc(target, feed, sizes)
    velocity = draw.velocity(given["velocity"], x) if facts.velocity else None
    return RowRun(kernel, target, x, drive, apart=apart, velocity=velocity)


def _run_warmup(run: MalaRun | RowRun, warmup: int, adapt: DualAveraging | None) -> None:
    if isinstance(run, RowRun):
        for _ in run.advance(0, warmup):
            pass
        return
    for _ in run.advance(0, warmup, each=adapt is not None):
        if adapt is not None:
            adapt.observe(run.chain[:, 2])
    if adapt is not None:
        adapt.settle()
    run.chain[:, 4].zero_()


def _friction(given: Mapping[str, Any]) -> float:
    friction = given["friction"]
    if isinstance(friction, bool) or not isinstance(friction, (int, float)) or not 0.0 < friction < math.inf:
        raise ValueError(f"friction: got {friction!r}, allowed are finite numbers > 0; twice the root of the curvature")
    return float(friction)


def _check_state(x: Any, facts: Facts) -> None:
    if not isinstance(x, Tensor) or x.dtype not in _FLOATS:
        raise TypeError(f"x: got {getattr(x, 'dtype', type(x).__name__)}, need a floating tensor (B, ...)")
    if x.ndim < 2 or x.numel() == 0:
        raise ValueError(f"x: got shape {tuple(x.shape)}, need (B, ...) with at least two dimensions and one element")
    if facts.name == "mala" and x.dtype not in (torch.float32, torch.float64):
        raise TypeError(f"x: got {x.dtype}, the accept step needs float32 or float64 (the network may have any dtype)")
