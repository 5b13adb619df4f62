"""Plans as text."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from fastsample import row
from fastsample.plan import output_of

if TYPE_CHECKING:
    from fastsample.plan import Call, Plan


def show_plan(plan: Plan) -> str:
    """A heading, then one line per call: where the state is, what the network is told, what the row does."""
    options = ", ".join(f"{k}={v}" for k, v in plan.options.items())
    lines = [
        f"{plan.solver}: {plan.path.steps} steps, {plan.nfe} network calls, prediction {plan.prediction}"
        + (f", {options}" if options else ""),
        f"slots {', '.join(s.name for s in plan.slots)}; {plan.draws} draws; hash {plan.hash}",
        f"{'call':>4} {'t':>11} {'alpha':>9} {'sigma':>9}  row",
    ]
    for i, (call, values) in enumerate(zip(plan.calls, plan.table, strict=True)):
        level = plan.path[plan.step_of[i]]
        lines.append(
            f"{i:>4} {plan.t[i]:>11.6g} {level.alpha:>9.6f} {level.sigma:>9.6g}  {show_row(plan, call, values)}"
        )
    return "\n".join(lines)


def show_row(plan: Plan, call: Call, values: np.ndarray) -> str:
    """One row as formulas, ``x = 0.98 x + 0.12 e``; weights that are zero are left out."""
    names = [_output(plan, j) if j < 0 else plan.slots[j].name for j in call.terms]
    formulas = []
    prediction = _sum([(values[row.p(j)], name) for j, name in enumerate(names)])
    if any(values[row.w_d(k)] for k in range(len(call.outputs))):
        lo, hi = values[row.LO], values[row.HI]
        clamped = np.isfinite(lo) or np.isfinite(hi)
        formulas.append(f"D = clamp({prediction}, {lo:g}, {hi:g})" if clamped else f"D = {prediction}")
    for k, slot in enumerate(call.outputs):
        weights = [(values[row.w(k, j)], name) for j, name in enumerate(names)]
        weights.append((values[row.w_d(k)], "D"))
        weights += [(values[row.g(k, r)], f"xi[{values[row.DRAW + r]:.0f}]") for r in range(row.MAX_NOISES)]
        formulas.append(f"{plan.slots[slot].name} = {_sum(weights)}")
    return "; ".join(formulas)


def _output(plan: Plan, term: int) -> str:
    """Name of an output of the network, or of a part of it; a stroke means the call before."""
    branch, part, back = output_of(term, plan.parts)
    tail = ("u" if branch else "") + ("xm"[part] if plan.parts == 2 else "")
    return "e" + "'" * back + (f"_{tail}" if tail else "")


def _sum(weights: list[tuple[float, str]]) -> str:
    text = ""
    for weight, name in weights:
        if weight == 0:
            continue
        sign = ("-" if weight < 0 else "") if not text else (" - " if weight < 0 else " + ")
        text += sign + (name if abs(weight) == 1 else f"{abs(weight):.6g} {name}")
    return text or "0"
