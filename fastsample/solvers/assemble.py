"""From abstract steps to the slots, calls and rows of a plan: all that knows networks, guidance and memory."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from fastsample import predictions, row
from fastsample.path import Level, Path
from fastsample.plan import COND, UNCOND, Call, Plan, Slot
from fastsample.solvers.step import Step

TIMES = ("t", "log-snr", "sigma", "log-sigma", "index")
Linear = tuple[float, float, float]  # weights of x, of the guided network output e, of D

DEFAULTS: dict[str, Any] = {
    "guidance": None,
    "time": "t",
    "input_scaling": "none",
    "clip": None,
    "sigma_data": 0.5,
    "init_sigma": None,
    "denoise": False,
    "denoised": False,
}


@dataclass(frozen=True)
class _Output:
    """What a row writes to a slot: ``factor`` times a combination; ``moves``: it is x, with history and noise."""

    slot: int
    combo: Linear
    factor: float = 1.0
    moves: bool = False


@dataclass(frozen=True)
class _Network:
    """How raw outputs become x0_hat and eps_hat."""

    prediction: str
    scaling: str
    sigma_data: float
    path: Path

    def kappa(self, at: Level) -> float:
        return predictions.input_scale(self.scaling, at.alpha, at.sigma, self.sigma_data)

    def convert(self, form: str, step: Step) -> Linear:
        rates = None
        if self.path.rates is not None and self.prediction == "flow":
            rates = (float(self.path.rates[step.index, 0]), float(self.path.rates[step.index, 1]))
        to = predictions.to_x0 if form == "x0" else predictions.to_eps
        at = step.at
        p, q = to(self.prediction, at.alpha, at.sigma, kappa=self.kappa(at), sigma_data=self.sigma_data, rates=rates)
        return p, q, 0.0


def assemble(
    solver: str, path: Path, steps: Sequence[Step], *, options: Mapping[str, Any], prediction: str, **shared: Any
) -> Plan:
    """The plan of ``steps``; the arguments are those of ``make_plan``."""
    if prediction not in predictions.PREDICTIONS:
        raise ValueError(f"prediction: got {prediction!r}, allowed are {', '.join(predictions.PREDICTIONS)}")
    steps = list(steps)
    if shared["denoise"] and path[-1].sigma > 0:
        steps.append(Step(path.steps, path[-1], a=0.0, b=(1.0,)))
    sigma_data = _positive("sigma_data", shared["sigma_data"])
    network = _Network(prediction, shared["input_scaling"], sigma_data, path)
    limits = _limits(shared["clip"])
    weights = _guidance(shared["guidance"], len(steps))
    times = _times(shared["time"], steps)
    kappas = [network.kappa(step.at) for step in steps]
    if not isinstance(shared["time"], str):
        shared["time"] = times
    if limits is not None:  # JSON knows no infinity
        shared["clip"] = [v if math.isfinite(v) else str(v) for v in limits]
    if weights is not None:
        shared["guidance"] = weights[0] if len(set(weights)) == 1 else weights

    # bank: x, a ring of past D, the scaled input, the preview
    depth = max(_reach(step) for step in steps)
    slots = [Slot("x"), *(Slot(f"D{j + 1}") for j in range(depth))]
    ring = range(1, 1 + depth)
    scaled = network.scaling != "none"
    ask = len(slots) if scaled else 0
    if scaled:
        slots.append(Slot("input", "input"))
    if shared["denoised"]:
        slots.append(Slot("x0", "x0"))
    terms = (0, *ring, COND) if weights is None else (0, *ring, COND, UNCOND)
    if len(terms) > row.MAX_TERMS:
        raise ValueError(f"solver: {solver!r} needs {len(terms)} terms per row, a row has {row.MAX_TERMS}")

    table, calls = row.blank(len(steps)), []
    for i, step in enumerate(steps):
        last = i + 1 == len(steps)
        kept = any(j <= _reach(later) and later.b[j] for j, later in enumerate(steps[i + 1 :], 1))
        combos = _combine(network, step, limits, kept, bool(shared["denoised"]))
        outputs = [_Output(0, combos["x"], moves=True)]
        if kept:
            outputs.append(_Output(ring[i % depth], combos["D"]))
        if scaled and not last:
            outputs.append(_Output(ask, combos["x"], kappas[i + 1], moves=True))
        if shared["denoised"]:
            outputs.append(_Output(len(slots) - 1, combos["x0"]))
        if len(outputs) > row.MAX_OUTPUTS:
            raise ValueError(
                f"denoised: a row of {solver!r} with history, scaled input and x0 preview would have {len(outputs)} "
                f"outputs, allowed are {row.MAX_OUTPUTS}; let the network scale its own input (input_scaling='none')"
            )
        values = table[i]
        shares = (1.0,) if weights is None else (weights[i], 1.0 - weights[i])
        inputs = (0, *range(depth + 1, len(terms)))  # columns of x and of the network's outputs
        values[[row.p(j) for j in inputs]] = _spread(combos["y"], shares)
        for k, output in enumerate(outputs):
            values[[row.w(k, j) for j in inputs]] = _spread(output.combo, shares, output.factor)
            values[row.w_d(k)] = output.factor * output.combo[2]
            if output.moves:
                for j in range(1, _reach(step) + 1):
                    values[row.w(k, 1 + (i - j) % depth)] = output.factor * step.b[j]
                values[row.g(k, 0)] = output.factor * math.hypot(step.c, 0.0 if last else steps[i + 1].lift)
        if limits is not None:
            values[row.LO], values[row.HI] = limits
        values[row.DRAW] = 1 + i
        values[row.TIME] = 0.0 if last else times[i + 1]
        calls.append(Call(ask, terms, tuple(output.slot for output in outputs)))

    noisy = bool(table[:, [row.g(k, 0) for k in range(row.MAX_OUTPUTS)]].any())
    first = kappas[0] if scaled else None
    starts = _starts(path, steps[0], first, shared["init_sigma"], times[0])
    given = {k: v for k, v in shared.items() if v != DEFAULTS[k]}
    return Plan(
        solver=solver,
        options={**options, **given},
        path=path,
        prediction=prediction,
        slots=tuple(slots),
        prologue=Call(0, (0,), (0, ask) if scaled else (0,)),
        starts=starts,
        calls=tuple(calls),
        table=table,
        t=np.asarray(times),
        step_of=tuple(step.index for step in steps),
        draws=1 + len(steps) if noisy else 1,
    )


def _reach(step: Step) -> int:
    """How many calls a step looks back."""
    return max((j for j, b in enumerate(step.b) if b), default=0)


def _combine(
    network: _Network, step: Step, limits: tuple[float, float] | None, kept: bool, preview: bool
) -> dict[str, Linear]:
    """Weights of (x, e, D) in: y (what D is made of), x0_hat, the history quantity D, and x'."""
    zero, d = (0.0, 0.0, 0.0), (0.0, 0.0, 1.0)
    b0 = step.b[0]
    combos = {"y": zero, "x0": zero, "D": zero}
    raw = network.convert("eps", step) if step.raw else zero
    if limits is not None:
        combos["y"], combos["x0"] = network.convert("x0", step), d
        combos["D"] = d
        if step.form == "eps":  # eps_hat that belongs to the limited x0_hat
            if step.at.sigma == 0.0:
                raise ValueError("clip: a limited x0_hat says nothing about eps where sigma = 0")
            combos["D"] = (1.0 / step.at.sigma, 0.0, -step.at.alpha / step.at.sigma)
    else:
        if preview or (step.form == "x0" and (b0 or kept)):
            combos["x0"] = network.convert("x0", step)
        if step.form == "x0":
            combos["D"] = combos["x0"]
        elif b0 or kept:
            combos["D"] = network.convert("eps", step)
        if kept:  # through the D of the row; otherwise the rows collapse into x and e alone
            combos["y"], combos["D"] = combos["D"], d
            if step.form == "x0":
                combos["x0"] = d
    x, e, w = (b0 * q + step.raw * r for q, r in zip(combos["D"], raw, strict=True))
    combos["x"] = (x + step.a, e, w)
    return combos


def _spread(combo: Linear, shares: Sequence[float], factor: float = 1.0) -> list[float]:
    """Weights of x and of each network output."""
    return [factor * combo[0], *(factor * share * combo[1] for share in shares)]


def _starts(path: Path, step: Step, kappa: float | None, init_sigma: float | None, time: float) -> Any:
    alpha, sigma = path[0].alpha, path[0].sigma
    scale = sigma if init_sigma is None else _positive("init_sigma", init_sigma)
    starts = row.blank(3)
    for values, (keep, noise) in zip(starts, ((0.0, scale), (1.0, 0.0), (alpha, sigma)), strict=True):
        for k, factor in enumerate([1.0] if kappa is None else [1.0, kappa]):
            values[row.w(k, 0)] = factor * keep
            values[row.g(k, 0)] = factor * math.hypot(noise, step.lift)
        values[row.TIME] = time
    return starts


def _limits(clip: Any) -> tuple[float, float] | None:
    if clip is None:
        return None
    try:
        lo, hi = (-float(clip), float(clip)) if np.ndim(clip) == 0 else (float(clip[0]), float(clip[1]))
        if np.ndim(clip) and len(clip) != 2:
            raise ValueError
    except (TypeError, ValueError, IndexError):
        raise ValueError(f"clip: got {clip!r}, allowed are None, r > 0 or (lo, hi)") from None
    if not lo < hi:
        raise ValueError(f"clip: got {clip!r}, allowed are None, r > 0 or (lo, hi) with lo < hi")
    return lo, hi


def _guidance(guidance: Any, calls: int) -> list[float] | None:
    if guidance is None:
        return None
    try:
        if isinstance(guidance, str):
            raise TypeError
        values = np.broadcast_to(np.asarray(guidance, dtype=np.float64), (calls,)).tolist()
    except (TypeError, ValueError):
        raise ValueError(f"guidance: got {guidance!r}, allowed are None, a number or {calls} numbers") from None
    if not np.isfinite(values).all():
        raise ValueError(f"guidance: got {guidance!r}, allowed are finite numbers")
    return [float(v) for v in values]


def _times(time: Any, steps: Sequence[Step]) -> list[float]:
    if isinstance(time, str):
        if time not in TIMES:
            raise ValueError(f"time: got {time!r}, allowed are {', '.join(TIMES)}, numbers or a callable of a Level")
        told = [_tell(time, step.at) for step in steps]
        what = f"time: {time!r} is"
    else:
        told = [float(time(step.at)) for step in steps] if callable(time) else [float(v) for v in np.asarray(time)]
        what = "time: got"
    if len(told) != len(steps):
        raise ValueError(f"time: got {len(told)} numbers for {len(steps)} network calls")
    for i, value in enumerate(told):
        if not math.isfinite(value):
            raise ValueError(f"{what} {value} at call {i} ({steps[i].at}); allowed are finite numbers")
    return told


def _tell(time: str, at: Level) -> float:
    if time == "t":
        return at.t
    if time == "index":
        return float(np.rint(at.t))
    if time == "log-snr":
        return at.lam
    if time == "sigma":
        return at.rho
    return -math.inf if at.sigma == 0 else math.log(at.rho) / 4.0


def _positive(name: str, value: Any) -> float:
    if not isinstance(value, (int, float)) or isinstance(value, bool) or not 0 < value < math.inf:
        raise ValueError(f"{name}: got {value!r}, allowed are numbers > 0")
    return float(value)
