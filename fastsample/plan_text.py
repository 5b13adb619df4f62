"""Plans as JSON; float64 survives exactly, rows are stored as their non-default columns."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence

import numpy as np

from fastsample import row
from fastsample.path import Array, Path
from fastsample.plan import VERSION, Call, Plan, Slot
from fastsample.plan_checks import RESCALE, told_to_rescale


def write(plan: Plan) -> str:
    """The whole plan as JSON."""
    rates = None if plan.path.rates is None else plan.path.rates.tolist()
    path = {name: getattr(plan.path, name).tolist() for name in ("alpha", "sigma", "t")}
    content = {
        "format": "fastsample plan",
        "version": VERSION,
        "solver": plan.solver,
        "options": dict(plan.options),
        "path": {**path, "rates": rates, "reverse": plan.path.reverse},
        "prediction": plan.prediction,
        "slots": [[s.name, s.role] for s in plan.slots],
        "prologue": [plan.prologue.ask, plan.prologue.terms, plan.prologue.outputs],
        "calls": [[c.ask, c.terms, c.outputs] for c in plan.calls],
        "starts": _sparse(plan.starts),
        "table": _sparse(plan.table),
        "t": plan.t.tolist(),
        **({} if plan.targets is None else {"targets": plan.targets.tolist()}),
        **({} if plan.parts == 1 else {"parts": plan.parts}),
        "step_of": plan.step_of,
        "draws": plan.draws,
    }
    return json.dumps(content, allow_nan=False)


def read(text: str) -> Plan:
    """Read what ``write`` wrote and check it.  Raises ``ValueError`` for anything else."""
    try:
        content = json.loads(text)
    except (json.JSONDecodeError, TypeError) as error:
        raise ValueError(f"text: not JSON ({error})") from None
    if not isinstance(content, dict) or content.get("format") != "fastsample plan":
        raise ValueError("text: not a plan; allowed is what Plan.to_json() wrote")
    if content.get("version") != VERSION:
        raise ValueError(f"text: got plan version {content.get('version')!r}, this program reads {VERSION}")
    try:
        table = _dense(content["table"])
        if not table[:, RESCALE].any():  # rows did not always hold what rescaled guidance is told
            table[:, RESCALE] = told_to_rescale(content["options"], len(table))
        calls = [Call(int(a), tuple(t), tuple(o)) for a, t, o in [content["prologue"], *content["calls"]]]
        return Plan(
            solver=content["solver"],
            options=content["options"],
            path=Path(**content["path"]),
            prediction=content["prediction"],
            slots=tuple(Slot(*slot) for slot in content["slots"]),
            prologue=calls[0],
            starts=_dense(content["starts"]),
            calls=tuple(calls[1:]),
            table=table,
            t=content["t"],
            step_of=tuple(content["step_of"]),
            draws=content["draws"],
            targets=content.get("targets"),
            parts=content.get("parts", 1),
        )
    except (KeyError, TypeError, IndexError, AttributeError) as error:
        raise ValueError(f"text: a damaged plan ({type(error).__name__}: {error})") from None


def _sparse(table: Array) -> list[dict[str, float | str]]:
    blank = row.blank()
    rows = []
    for values in table:
        columns = np.flatnonzero(values != blank).tolist()
        rows.append(
            {str(c): v if abs(v) < np.inf else str(v) for c, v in zip(columns, values[columns].tolist(), strict=True)}
        )
    return rows


def _dense(rows: Sequence[Mapping[str, float | str]]) -> Array:
    table = row.blank(len(rows))
    for values, entries in zip(table, rows, strict=True):
        for column, value in entries.items():
            values[int(column)] = float(value)
    return table
