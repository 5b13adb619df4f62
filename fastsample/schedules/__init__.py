"""Noise schedules: alpha and sigma as functions of time, and back.

A schedule has a *time* ``t``, from ``t_min`` (almost data) to ``t_max`` (noise), and a
*clock* ``u = clock(t)`` in which grids are uniform.  All functions take and return float64 numbers or arrays.
"""

from __future__ import annotations

import difflib
from collections.abc import Callable
from typing import Any

from .base import Schedule as Schedule
from .custom import CustomSchedule as CustomSchedule
from .straight import EDM as EDM
from .straight import VE as VE
from .straight import RectifiedFlow as RectifiedFlow
from .table import DiscreteVP as DiscreteVP
from .vp import VP as VP
from .vp import VPCosine as VPCosine
from .vp import VPLinear as VPLinear

SCHEDULES: dict[str, Callable[..., Schedule]] = {
    "vp-linear": VPLinear,
    "cosine": VPCosine,
    "ddpm-linear": DiscreteVP.linear,
    "scaled-linear": DiscreteVP.scaled_linear,
    "ddpm-cosine": DiscreteVP.cosine,
    "edm": VE,
    "flow": RectifiedFlow,
}
ALIASES = {"vp": "vp-linear", "ve": "edm", "rectified-flow": "flow", "sd": "scaled-linear", "vp-cosine": "cosine"}


def make_schedule(schedule: str | Schedule, **options: Any) -> Schedule:
    """A schedule by name (``SCHEDULES``), with the arguments of its class; a ``Schedule`` is returned as it is.

    Raises ``ValueError`` for an unknown name or option and ``TypeError`` for anything that is not a schedule.
    """
    if isinstance(schedule, Schedule):
        if options:
            raise ValueError(f"options: got {', '.join(options)} for a schedule that is already made")
        return schedule
    if not isinstance(schedule, str):
        raise TypeError(f"schedule: got {type(schedule).__name__}, allowed is a name or a Schedule")
    name = ALIASES.get(schedule, schedule)
    if name not in SCHEDULES:
        close = difflib.get_close_matches(schedule, [*SCHEDULES, *ALIASES], n=1)
        hint = f"; did you mean {close[0]}?" if close else ""
        raise ValueError(f"schedule: got {schedule!r}, allowed are {', '.join(SCHEDULES)}{hint}")
    try:
        return SCHEDULES[name](**options)
    except TypeError as error:
        raise ValueError(f"schedule: {name!r} does not take these options ({error})") from None
