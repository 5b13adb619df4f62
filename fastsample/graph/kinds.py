"""Kinds of calls: two calls of one kind differ in their row and their step alone, and share one recording."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from .. import row
from ..plan import Plan
from ..reductions import Facts

Named = tuple[int, str]  # a slot: its number and its role


class Kind(NamedTuple):
    """The memory of a call, and the numbers that ops take from the host.

    ``ask``, ``terms``, ``outputs``: as in a `fastsample.plan.Call`, slots with their role.  ``noisy``: the row uses
    noise.  ``keep``: the next row reads this call's output too.  ``told``: the update writes the next call's time.
    ``reduce``: what thresholding is told, and whether guidance is rescaled; None without either.
    """

    ask: Named
    terms: tuple[int | Named, ...]
    outputs: tuple[Named, ...]
    noisy: bool
    keep: bool
    told: bool
    reduce: tuple[tuple[float, ...] | None, bool] | None


def kinds_of(plan: Plan) -> tuple[Kind, ...]:
    """The kind of every call of a plan."""
    roles = [slot.role for slot in plan.slots]
    told, facts = times_in_rows(plan), Facts.of(plan)
    reduce = None if facts is None else (facts.threshold, facts.rescaled)
    kinds: list[Kind] = []
    for call, _, keep, noisy in plan.patterns:
        kinds.append(
            Kind(
                (call.ask, roles[call.ask]),
                tuple((j, roles[j]) if j >= 0 else j for j in call.terms),
                tuple((j, roles[j]) for j in call.outputs),
                noisy,
                keep,
                told,
                reduce,
            )
        )
    return tuple(kinds)


def times_in_rows(plan: Plan) -> bool:
    """Whether each row holds the time of the call after it, and the starts that of the first."""
    if plan.targets is not None or not plan.nfe:
        return False
    first = plan.starts[:, row.TIME]
    return bool((first == plan.t[0]).all() and np.array_equal(plan.table[:-1, row.TIME], plan.t[1:]))
