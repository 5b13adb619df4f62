"""Whether the slots, calls, rows, times and draws of a plan fit together."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from fastsample import row
from fastsample.path import Array
from fastsample.plan import ROLES, STARTS, Call, Plan, Slot, output_term

RESCALE = [row.GUIDANCE, row.PHI]  # columns


def checked_table(name: str, value: Any) -> Array:
    """A read-only float64 copy of rows."""
    table = np.array(value, dtype=np.float64) + 0.0  # -0.0 becomes 0.0: equal plans have equal text
    row.check_table(table, name)
    table.flags.writeable = False
    return table


def told_to_rescale(options: Mapping[str, Any], calls: int) -> Array:
    """The weights of guidance and phi ``(calls, 2)`` that options stand for: zeros without ``rescale``."""
    phi, weights = options.get("rescale"), options.get("guidance")
    told = np.zeros((calls, 2))
    try:
        if phi is not None:
            told[:, 0], told[:, 1] = (0.0 if weights is None else weights), phi
    except (TypeError, ValueError):
        raise ValueError(
            f"options: got guidance {weights!r} and rescale {phi!r}, allowed are numbers, or {calls} weights"
        ) from None
    return told


def check_plan(plan: Plan) -> None:
    """Raise ``ValueError`` unless slots, calls, rows, times and draws of a plan fit together."""
    n = len(plan.calls)
    if n == 0:
        raise ValueError("calls: got none, a plan has at least one")
    if plan.starts.shape[0] != len(STARTS):
        raise ValueError(f"starts: got {plan.starts.shape[0]} rows, allowed is {len(STARTS)} ({', '.join(STARTS)})")
    for name, length in (("table", len(plan.table)), ("t", len(plan.t)), ("step_of", len(plan.step_of))):
        if length != n:
            raise ValueError(f"{name}: got {length} rows for {n} calls")
    for name, times in (("t", plan.t), ("targets", plan.t if plan.targets is None else plan.targets)):
        if times.shape != (n,):
            raise ValueError(f"{name}: got shape {times.shape}, allowed is ({n},)")
    if not plan.slots or plan.slots[0] != Slot("x", "state"):
        raise ValueError("slots: slot 0 must be 'x' with role 'state'")
    if plan.parts not in (1, 2):
        raise ValueError(f"parts: got {plan.parts!r}, allowed are 1 and 2")
    halves = [slot.role for slot in plan.slots if slot.role != "x0"]
    if plan.parts == 2 and (len(halves) % 2 or {*halves} != {"state"} or plan.slots[len(halves) :] != plan.previews):
        raise ValueError("slots: a plan of two parts has pairs of role 'state', then at most previews of role 'x0'")
    if len({slot.name for slot in plan.slots}) != len(plan.slots):
        raise ValueError(f"slots: names must differ, got {[slot.name for slot in plan.slots]}")
    for slot in plan.slots:
        if slot.role not in ROLES:
            raise ValueError(f"slots: {slot.name!r} has role {slot.role!r}, allowed are {', '.join(ROLES)}")
    if list(plan.step_of) != sorted(plan.step_of) or not 0 <= plan.step_of[0] <= plan.step_of[-1] <= plan.path.steps:
        raise ValueError(f"step_of: must rise within 0..{plan.path.steps}, got {plan.step_of}")
    for start in plan.starts:
        _check_call(plan, "prologue", plan.prologue, start, 0)
    if not np.array_equal(plan.table[:, RESCALE], told_to_rescale(plan.options, n)):
        raise ValueError(f"table: columns {row.GUIDANCE} and {row.PHI} are not the guidance and rescale of the options")
    for i, (call, values) in enumerate(zip(plan.calls, plan.table, strict=True)):
        _check_call(plan, f"call {i}", call, values, output_term(1, plan.parts - 1, i > 0, plan.parts))


def _check_call(plan: Plan, name: str, call: Call, values: Array, lowest: int) -> None:
    slots = len(plan.slots)
    if not 0 <= call.ask < slots or call.ask % plan.parts:
        raise ValueError(f"{name}: asks slot {call.ask}, there are {slots} in groups of {plan.parts}")
    for what, numbers, low, limit in (
        ("terms", call.terms, lowest, row.MAX_TERMS),
        ("outputs", call.outputs, 0, row.MAX_OUTPUTS),
    ):
        if not 1 <= len(numbers) <= limit or len(set(numbers)) != len(numbers):
            raise ValueError(f"{name}: {what} {numbers}: allowed are 1 to {limit} different ones")
        if not all(isinstance(j, int) and low <= j < slots for j in numbers):
            raise ValueError(f"{name}: {what} {numbers}: allowed are {low}..{slots - 1}")
    unused = [row.p(j) + k for j in range(len(call.terms), row.MAX_TERMS) for k in range(4)]
    for k in range(len(call.outputs), row.MAX_OUTPUTS):
        unused += [row.w(k, j) for j in range(row.MAX_TERMS)] + [row.w_d(k), row.g(k, 0), row.g(k, 1)]
    if values[unused].any():
        raise ValueError(f"{name}: its row has weights for terms or outputs that the call does not have")
    for r in range(row.MAX_NOISES):
        used = any(values[row.g(k, r)] for k in range(row.MAX_OUTPUTS))
        if used and not values[row.DRAW + r] < plan.draws:
            raise ValueError(f"{name}: uses draw {values[row.DRAW + r]:.0f}, the plan has {plan.draws}")
