"""From abstract steps to the slots, calls and rows of a plan: all that knows networks, guidance and memory."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from fastsample import predictions, row
from fastsample.path import Level, Path
from fastsample.plan import COND, UNCOND, Call, Plan, Slot
from fastsample.solvers.express import Combo, D, Network, express, predict, write
from fastsample.solvers.step import Mix, Step

TIMES = ("t", "log-snr", "sigma", "log-sigma", "index")

DEFAULTS: dict[str, Any] = {
    "guidance": None,
    "time": "t",
    "input_scaling": "none",
    "clip": None,
    "threshold": None,
    "rescale": None,
    "sigma_data": 0.5,
    "init_sigma": None,
    "denoise": False,
    "denoised": False,
}


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
    network = Network(prediction, shared["input_scaling"], sigma_data, path.rates, path.levels())
    limits = _limits(shared["clip"])
    shared["threshold"] = _threshold(shared["threshold"], limits)
    if shared["threshold"] is not None:  # the scale of each sample is found in the run
        limits = (-1.0, 1.0)
    weights = _guidance(shared["guidance"], len(steps))
    times = _times(shared["time"], steps)
    targets = _targets(shared["time"], steps)
    kappas = [network.kappa(step.at) for step in steps]
    if not isinstance(shared["time"], str):
        shared["time"] = times
    shared["rescale"] = _rescale(shared["rescale"], weights)
    if shared["clip"] is not None:
        shared["clip"] = _finite(limits)
    if shared["threshold"] is not None:
        shared["threshold"] = _finite(shared["threshold"])
    if weights is not None:
        shared["guidance"] = weights[0] if len(set(weights)) == 1 else weights

    # bank: x, the history, kept tensors, the scaled input, the preview
    history = _history(steps)
    depth = max(history.values(), default=0)
    names = list(dict.fromkeys(name for step in steps for name in step.keep))
    slots = [Slot("x"), *(Slot(f"D{j + 1}") for j in range(depth)), *(Slot(name) for name in names)]
    named = {name: 1 + depth + j for j, name in enumerate(names)}
    memory = len(slots)
    scaled = network.scaling != "none"
    ask = memory if scaled else 0
    if scaled:
        slots.append(Slot("input", "input"))
    if shared["denoised"]:
        slots.append(Slot("x0", "x0"))
    terms = (*range(memory), COND) if weights is None else (*range(memory), COND, UNCOND)
    if len(terms) > row.MAX_TERMS:
        raise ValueError(f"solver: {solver!r} needs {len(terms)} terms per row, a row has {row.MAX_TERMS}")

    draws = [1 + i if step.draw is None else step.draw for i, step in enumerate(steps)]
    table, calls = row.blank(len(steps)), []
    for i, step in enumerate(steps):
        last = i + 1 == len(steps)
        made = express(network, step, limits is not None, i in history, bool(shared["denoised"]))
        after = 1.0 if last else steps[i + 1].scale
        x = {source: after * weight for source, weight in made.x.items()}
        if not last and steps[i + 1].lift:
            x["xi"] = math.hypot(x.get("xi", 0.0), steps[i + 1].lift)
        outputs: list[tuple[int, Combo, float]] = [(0, x, 1.0)]
        if i in history:
            outputs.append((history[i], made.kept, 1.0))
        if scaled and not last:
            outputs.append((ask, x, kappas[i + 1]))
        outputs += [(named[name], combo, 1.0) for name, combo in made.keep.items()]
        # where no output is left, the preview is the history, if that is x0_hat (`Plan.shown`)
        same = i in history and made.kept == made.x0 == D
        if shared["denoised"] and not (same and len(outputs) == row.MAX_OUTPUTS):
            outputs.append((len(slots) - 1, made.x0, 1.0))
        if len(outputs) > row.MAX_OUTPUTS:
            raise RowFullError(_full(solver, len(outputs), bool(shared["denoised"]), scaled))
        shares = (1.0,) if weights is None else (weights[i], 1.0 - weights[i])
        columns: dict[str | int, list[tuple[int, float]]] = {"x": [(0, 1.0)]}
        columns["e"] = [(memory + k, share) for k, share in enumerate(shares)]
        columns.update((name, [(slot, 1.0)]) for name, slot in named.items())
        columns.update((i - call, [(slot, 1.0)]) for call, slot in history.items() if call < i)
        values = table[i]
        predict(values, made.y, columns)
        for k, (_, combo, factor) in enumerate(outputs):
            write(values, k, combo, columns, factor)
        if limits is not None:
            values[row.LO], values[row.HI] = limits
        values[row.DRAW] = draws[i]
        if shared["rescale"] is not None:
            values[row.GUIDANCE], values[row.PHI] = shares[0], shared["rescale"]
        if step.past:
            values[row.DRAW + 1] = draws[i - 1]
        values[row.TIME] = 0.0 if last else times[i + 1]
        calls.append(Call(ask, terms, tuple(slot for slot, _, _ in outputs)))

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
        targets=targets,  # type: ignore[arg-type]  # made an array there
        step_of=tuple(step.index for step in steps),
        draws=1 + max(draws) if noisy else 1,
    )


class RowFullError(ValueError):
    """A row would write more tensors than it has outputs."""


def _full(solver: str, count: int, denoised: bool, scaled: bool) -> str:
    ways = []
    if scaled:
        ways.append("let the network scale its own input (input_scaling='none')")
    if denoised:
        ways.append("do without denoised")
        ways.append("take a solver whose history is x0_hat, as dpmpp-2m, unipc and heun")
    return (
        f"{'denoised' if denoised else 'input_scaling'}: a row of {solver!r} writes state, history and kept tensors"
        f"{', scaled input' * scaled}{', x0 preview' * denoised}: {count} outputs, allowed are {row.MAX_OUTPUTS}; "
        + ", or ".join(ways)
    )


def _history(steps: Sequence[Step]) -> dict[int, int]:
    """Slot of D of every call that a later one looks back to; a slot is free again in the row that reads it last."""
    last: dict[int, int] = {}
    for i, step in enumerate(steps):
        mixes: list[Mix] = [dict(enumerate(step.b)), *step.keep.values(), step.d or {}]
        for j in {j for mix in mixes for j, weight in mix.items() if isinstance(j, int) and j > 0 and weight}:
            if j > i:
                raise ValueError(f"steps: call {i} looks {j} calls back")
            last[i - j] = i
    slots: dict[int, int] = {}
    free_from: list[int] = []  # per slot: the call from which on it may be written
    for call, until in sorted(last.items()):
        ready = [(since, slot) for slot, since in enumerate(free_from) if since <= call]
        slot = min(ready)[1] if ready else len(free_from)
        free_from[slot : slot + 1] = [until]
        slots[call] = 1 + slot
    return slots


def _targets(time: Any, steps: Sequence[Step]) -> list[float] | None:
    ends = [step.to for step in steps if step.to is not None]
    if len(ends) not in (0, len(steps)):
        raise ValueError("denoise: a network of two times cannot be called at the last level, where it jumps nowhere")
    tell = time if callable(time) else (lambda to: _tell(time, to)) if isinstance(time, str) else (lambda to: to.t)
    told = [float(tell(to)) for to in ends]
    for i, value in enumerate(told):
        if not math.isfinite(value):
            raise ValueError(
                f"time: {time!r} is {value} where the jump of call {i} ends (sigma/alpha = {ends[i].rho:.6g}); allowed "
                "are times that a level alone gives, as 'sigma', or a path whose times are sigma/alpha"
            )
    return told or None


def _starts(path: Path, step: Step, kappa: float | None, init_sigma: float | None, time: float) -> Any:
    alpha, sigma = path[0].alpha, path[0].sigma
    scale = sigma if init_sigma is None else _positive("init_sigma", init_sigma)
    starts = row.blank(3)
    for values, (keep, noise) in zip(starts, ((0.0, scale), (1.0, 0.0), (alpha, sigma)), strict=True):
        for k, factor in enumerate([1.0] if kappa is None else [1.0, kappa]):
            values[row.w(k, 0)] = factor * step.scale * keep
            values[row.g(k, 0)] = factor * math.hypot(step.scale * noise, step.lift)
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


def _finite(values: Sequence[float] | None) -> list[float | str]:
    """Numbers as JSON, which knows no infinity."""
    return [v if math.isfinite(v) else str(v) for v in values or ()]


def _threshold(threshold: Any, limits: tuple[float, float] | None) -> tuple[float, float, float] | None:
    """Ratio, floor and ceiling of dynamic thresholding."""
    if threshold is None:
        return None
    if limits is not None:
        raise ValueError("threshold: got clip too; x0_hat is limited one way")
    try:
        values = [float(v) for v in ((threshold,) if np.ndim(threshold) == 0 else threshold)]
        ratio, low, high = (*values, *(1.0, math.inf)[len(values) - 1 :])
    except (TypeError, ValueError):
        raise ValueError(f"threshold: got {threshold!r}, allowed are None, a ratio, or (ratio, low, high)") from None
    if not (0.0 <= ratio <= 1.0 and 0.0 < low <= high):
        raise ValueError(f"threshold: got {threshold!r}, allowed are a ratio in [0, 1] and limits 0 < low <= high")
    return ratio, low, high


def _rescale(rescale: Any, weights: Sequence[float] | None) -> float | None:
    if rescale is None:
        return None
    if weights is None:
        raise ValueError("rescale: got no guidance; it rescales what guidance has made")
    if not isinstance(rescale, (int, float)) or isinstance(rescale, bool) or not 0.0 <= rescale <= 1.0:
        raise ValueError(f"rescale: got {rescale!r}, allowed are None and numbers in [0, 1]")
    return float(rescale)


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
