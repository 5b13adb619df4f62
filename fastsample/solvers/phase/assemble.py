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
_NONE = np.zeros((0, 2))


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

    def to_eps(call: Stage) -> Array:
        assert call.at is not None
        return np.eye(2) if prediction == "eps" else -process.root(call.at.t).T

    # per call: weights of (x, m), of what is said now and of what was said before, in x', m' and the preview
    maps = []
    for before, call in zip([None, *calls[:-1]], calls, strict=True):
        assert call.at is not None
        data = expected_data(process, call.at) if denoised else (_NONE, _NONE)
        late = np.zeros((2, 2)) if before is None else call.P @ to_eps(before)
        A, E = np.concatenate([call.A, data[0][:1]]), np.concatenate([call.E, data[1][:1]]) @ to_eps(call)
        maps.append((A, E, np.concatenate([late, np.zeros((int(denoised), 2))])))
    # a network of position and momentum, unless no row asks what it says of the position (CLD)
    said = range(int(not any(E[:, 0].any() or P[:, 0].any() for _, E, P in maps)), 2)

    noisy = any(call.N.any() for call in calls)
    table, made_calls = row.blank(len(calls)), []
    for i, (call, (A, E, P)) in enumerate(zip(calls, maps, strict=True)):
        shares = (1.0,) if weights is None else (weights[i], 1.0 - weights[i])
        terms, columns = [X, M], [A]
        for back, now in enumerate([E, P] if P.any() else [E]):
            for branch, share in enumerate(shares):
                terms += [output_term(branch, part, back, parts=2) for part in said]
                columns.append(share * now[:, list(said)])
        if len(terms) > row.MAX_TERMS:
            raise ValueError(
                f"guidance: a row of {solver!r} would have {len(terms)} terms, allowed are {row.MAX_TERMS}"
            )
        W, N = np.concatenate(columns, axis=1), np.concatenate([call.N, np.zeros((int(denoised), 2))])
        same = np.eye(*W.shape)  # what stays as it is is not written
        outputs = [k for k in range(len(W)) if k == PREVIEW or N[k].any() or (W[k] != same[k]).any()] or [X]
        _write(table[i], W[outputs], N[outputs], 2 + 2 * i if N.any() else 0)
        table[i, row.TIME] = times[i + 1] if i + 1 < len(calls) else 0.0
        made_calls.append(Call(X, tuple(terms), tuple(outputs)))

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


def _write(values: Array, W: Array, N: Array, draw: int) -> None:
    """Weights ``(outputs, terms)`` and ``(outputs, 2)`` of a row, whose normals are this draw and the next."""
    for k, (line, noise) in enumerate(zip(W, N, strict=True)):
        for j, weight in enumerate(line):
            values[row.w(k, j)] = weight
        for r, weight in enumerate(noise):
            values[row.g(k, r)] = weight
    values[row.DRAW], values[row.DRAW + 1] = draw, draw + 1


def _starts(path: Path, process: PhaseSpace, lead: Stage, init_sigma: float | None, time: float) -> Array:
    """Rows of the start; flows before the first call are part of it, so that their noise costs no draw of its own."""
    scale = 1.0 if init_sigma is None else _positive("init_sigma", init_sigma)
    t, none = float(path.t[0]), np.zeros((2, 0))
    data = np.stack([process.flow(process.b(t))[:, 0], np.zeros(2)], axis=1)  # the momentum of the data is noise
    root = PhaseSpace(**{**process.options, "factor": "lower", "jitter": 0.0}).root(t)
    kinds = ((np.zeros((2, 2)), np.sqrt(process.stationary) * scale), (np.eye(2), none), (data, root))
    starts = row.blank(3)
    for values, (A, N) in zip(starts, kinds, strict=True):
        noise = triangular(np.concatenate([lead.A @ N, lead.N], axis=1))
        _write(values, lead.A @ A, noise, 0)
        values[row.TIME] = time
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
