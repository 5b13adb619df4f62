"""From stages to a plan whose state is the packed pair (x, m)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np

from fastsample import row
from fastsample.path import Array, Path
from fastsample.plan import Call, Plan, Slot, output_term
from fastsample.solvers.assemble import DEFAULTS, _guidance, _positive, _times
from fastsample.solvers.phase.baselines import expected_data
from fastsample.solvers.phase.process import PhaseSpace
from fastsample.solvers.phase.stage import Stage, join, triangular

PREDICTIONS = ("eps", "score")
X, M, PREVIEW = 0, 1, 2  # slots


class Made(NamedTuple):
    """What a phase-space solver returns."""

    process: PhaseSpace
    stages: list[Stage]


def assemble(
    solver: str, path: Path, made: Made, *, options: Mapping[str, Any], prediction: str, **shared: Any
) -> Plan:
    """The plan; the arguments are those of ``make_plan``.

    A row reads x, m, both halves of what the network said and, in second order steps, of what it said the call before
    (that tensor is kept, not copied), and writes x and m in place.

    Raises:
        ValueError: something that a phase-space state does not allow.
    """
    process = made.process
    _refuse(prediction, shared)
    lead, calls = join(made.stages)
    weights, times = _guidance(shared["guidance"], len(calls)), _times(shared["time"], calls)  # type: ignore[arg-type]
    if not isinstance(shared["time"], str):
        shared["time"] = times
    if weights is not None:
        shared["guidance"] = weights[0] if len(set(weights)) == 1 else weights
    denoised = bool(shared["denoised"])
    # a network of position and momentum, unless no row asks what it says of the position (CLD)
    said = range(2) if denoised or any(s.E[:, 0].any() or s.P[:, 0].any() for s in calls) else range(1, 2)

    noisy = any(s.N.any() for s in calls)
    table, made_calls = row.blank(len(calls)), []
    for i, stage in enumerate(calls):
        values = table[i]
        branches = [(0, 1.0)] if weights is None else [(0, weights[i]), (1, 1.0 - weights[i])]
        tables = [(0, i, stage.E)] + ([(1, i - 1, stage.P)] if stage.P.any() else [])
        terms: list[int] = [X, M]
        parts = [stage.A] + ([expected_data(process, stage.at)[0]] if denoised and stage.at is not None else [])
        for k, A in enumerate(parts):
            _write(values, 2 * k, 0, A[: 2 - k])
        for back, call, E in tables:
            at = calls[call].at
            assert at is not None
            to_eps = np.eye(2) if prediction == "eps" else -process.root(at.t).T
            shown = [E] + ([expected_data(process, at)[1] if back == 0 else np.zeros((2, 2))] if denoised else [])
            for branch, share in branches:
                for k, weight in enumerate(shown):
                    _write(values, 2 * k, len(terms), share * (weight[: 2 - k] @ to_eps)[:, list(said)])
                terms += [output_term(branch, part, back, parts=2) for part in said]
        if len(terms) > row.MAX_TERMS:
            raise ValueError(
                f"guidance: a row of {solver!r} would have {len(terms)} terms, allowed are {row.MAX_TERMS}"
            )
        for k in range(2):
            for r in range(2):
                values[row.g(k, r)] = stage.N[k, r]
        values[row.DRAW], values[row.DRAW + 1] = 2 + 2 * i, 3 + 2 * i
        values[row.TIME] = times[i + 1] if i + 1 < len(calls) else 0.0
        made_calls.append(Call(X, tuple(terms), (X, M, PREVIEW) if denoised else (X, M)))

    given = {k: v for k, v in shared.items() if v != DEFAULTS[k]}
    return Plan(
        solver=solver,
        options={**options, **given},
        path=path,
        prediction=prediction,
        slots=(Slot("x"), Slot("m"), *([Slot("x0", "x0")] if denoised else [])),
        prologue=Call(X, (X, M), (X, M)),
        starts=_starts(path, process, lead, shared["init_sigma"], times[0]),
        calls=tuple(made_calls),
        table=table,
        t=np.asarray(times),
        step_of=tuple(stage.index for stage in calls),
        draws=2 + 2 * len(calls) if noisy else 2,
        parts=2,
    )


def _write(values: Array, output: int, term: int, weights: Array) -> None:
    """``weights`` ``(outputs, terms)`` from this output and term on."""
    for k, line in enumerate(weights):
        for j, weight in enumerate(line):
            values[row.w(output + k, term + j)] = weight


def _starts(path: Path, process: PhaseSpace, lead: Stage, init_sigma: float | None, time: float) -> Array:
    """Rows of the start; noisy flows before the first call are part of it, so that they cost no draw of their own."""
    scale = 1.0 if init_sigma is None else _positive("init_sigma", init_sigma)
    t, none = float(path.t[0]), np.zeros((2, 0))
    data = np.stack([process.flow(process.b(t))[:, 0], np.zeros(2)], axis=1)  # the momentum of the data is noise
    root = PhaseSpace(**{**process.options, "factor": "lower", "jitter": 0.0}).root(t)
    kinds = ((np.zeros((2, 2)), np.sqrt(process.stationary) * scale), (np.eye(2), none), (data, root))
    starts = row.blank(3)
    for values, (A, N) in zip(starts, kinds, strict=True):
        _write(values, 0, 0, lead.A @ A)
        noise = triangular(np.concatenate([lead.A @ N, lead.N], axis=1))
        for k in range(2):
            for r in range(2):
                values[row.g(k, r)] = noise[k, r]
        values[row.DRAW], values[row.DRAW + 1], values[row.TIME] = 0, 1, time
    return starts


def _refuse(prediction: str, shared: Mapping[str, Any]) -> None:
    if prediction not in PREDICTIONS:
        raise ValueError(f"prediction: got {prediction!r}, allowed of a phase-space network are eps and score")
    for name, why in (
        ("input_scaling", "a phase-space network is fed its state as it is"),
        ("clip", "a row has no data prediction to limit"),
        ("threshold", "a row has no data prediction to limit"),
        ("rescale", "its two halves have no common scale"),
        ("denoise", "the option last of the solver says how a run ends: none, half, full or mean"),
    ):
        if shared[name] != DEFAULTS[name]:
            raise ValueError(f"{name}: got {shared[name]!r} with a phase-space solver; {why}")
