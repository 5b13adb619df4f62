"""Kinds of calls: two calls of one kind differ in their row and their step alone, and share one recording."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np

from .. import row
from ..plan import Plan

Named = tuple[int, str]  # a slot: its number and its role


class Kind(NamedTuple):
    """The memory of a call, and the numbers that ops take from the host.

    ``ask``, ``terms``, ``outputs``: as in a `fastsample.plan.Call`, slots with their role.  ``noisy``: the row uses
    noise.  ``keep``: the next row reads this call's output too.  ``told``: the update writes the next call's time.
    ``reduce``: what thresholding and rescaled guidance are told, or None.
    """

    ask: Named
    terms: tuple[int | Named, ...]
    outputs: tuple[Named, ...]
    noisy: bool
    keep: bool
    told: bool
    reduce: tuple[Any, ...] | None


def kinds_of(plan: Plan) -> tuple[Kind, ...]:
    """The kind of every call of a plan."""
    roles = [slot.role for slot in plan.slots]
    told, reduce = times_in_rows(plan), _reduce(plan)
    kinds: list[Kind] = []
    for i, (call, _, keep, noisy) in enumerate(plan.patterns):
        kinds.append(
            Kind(
                (call.ask, roles[call.ask]),
                tuple((j, roles[j]) if j >= 0 else j for j in call.terms),
                tuple((j, roles[j]) for j in call.outputs),
                noisy,
                keep,
                told,
                None if reduce is None else (*reduce[:-1], float(reduce[-1][i])),
            )
        )
    return tuple(kinds)


def times_in_rows(plan: Plan) -> bool:
    """Whether each row holds the time of the call after it, and the starts that of the first."""
    if plan.targets is not None or not plan.nfe:
        return False
    first = plan.starts[:, row.TIME]
    return bool((first == plan.t[0]).all() and np.array_equal(plan.table[:-1, row.TIME], plan.t[1:]))


def _reduce(plan: Plan) -> tuple[Any, ...] | None:
    threshold, phi = plan.options.get("threshold"), plan.options.get("rescale")
    if threshold is None and phi is None:
        return None
    weights = plan.options.get("guidance") if phi is not None else None  # else the rows alone know of them
    limits = None if threshold is None else tuple(float(v) for v in threshold)
    return limits, phi, np.broadcast_to(0.0 if weights is None else weights, (plan.nfe,)).astype(float)
