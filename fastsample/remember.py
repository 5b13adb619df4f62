"""Plans of earlier calls: a second `sample` with the same configuration does no coefficient work.

A plan is a pure function of its arguments, so arguments equal by value give the same plan.  Only arguments that are
values through and through are remembered: words, numbers, arrays, and the paths and schedules of this package.
"""

from __future__ import annotations

import dataclasses
import threading
from collections import OrderedDict
from collections.abc import Callable, Hashable
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from .plan import Plan

KEPT = 64  # plans; one of 1000 steps is about half a megabyte
_plans: OrderedDict[Hashable, Plan] = OrderedDict()
_lock = threading.Lock()
_PLAIN = frozenset((bool, int, str, type(None)))


class NotAValue(Exception):  # noqa: N818  (control flow, never seen by a caller)
    """Something whose content cannot be told: a function, a model, a class of somebody else."""


def fingerprint(value: Any) -> Hashable:
    """What two equal values have in common and two that differ do not; True, 1 and 1.0 differ.

    Raises `NotAValue` where equality by value cannot be told.
    """
    kind = type(value)
    if kind in _PLAIN:
        return kind, value
    if kind is float:
        return kind, repr(value)  # a NaN is itself, -0.0 is not 0.0
    if kind in (tuple, list):
        return kind, *map(fingerprint, value)
    if kind is dict:  # most are options: words and plain values
        pairs = [
            (k, type(v), v) if type(k) is str and type(v) in _PLAIN else (fingerprint(k), fingerprint(v))
            for k, v in value.items()
        ]
        return kind, *pairs
    if (kind is np.ndarray or isinstance(value, np.generic)) and value.dtype.kind in "biuf":
        return kind, value.dtype.str, value.shape, value.tobytes()
    ours = kind.__module__.partition(".")[0] == __package__ and not callable(value)
    if ours and dataclasses.is_dataclass(value):  # not what it has computed of itself
        return kind, *(fingerprint(getattr(value, field.name)) for field in dataclasses.fields(value))
    if ours and hasattr(value, "__dict__"):
        return kind, fingerprint(vars(value))
    raise NotAValue


def plan(key: Any, make: Callable[[], Plan]) -> Plan:
    """The plan of a key that is a value, made once; made every time for a key that is none."""
    try:
        known = fingerprint(key)
    except NotAValue:
        return make()
    with _lock:
        found = _plans.get(known)
        if found is not None:
            _plans.move_to_end(known)
            return found
    made = make()
    with _lock:
        _plans[known] = made
        if len(_plans) > KEPT:
            _plans.popitem(last=False)
    return made


def forget() -> None:
    """Let go of all remembered plans, and with them of their tables on devices."""
    with _lock:
        _plans.clear()
