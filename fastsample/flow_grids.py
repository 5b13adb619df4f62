"""Grids of flow matching, where sigma is the time: what FlowMatchEulerDiscreteScheduler of diffusers does.

In this order: times u even from 1 to ``u_min``; the shift of the schedule (that of a sequence length too, see
``RectifiedFlow.of_mu``); a stretch to ``terminal``; and where a law is asked for, its levels between the same two ends.
Clean data comes after the last of them.
"""

from __future__ import annotations

import numpy as np

from fastsample import spacing
from fastsample.path import Array
from fastsample.schedules import RectifiedFlow, Schedule

Ends = tuple[float, float]


def match(
    schedule: Schedule,
    points: int,
    ends: Ends,
    u_min: float = 1e-3,
    terminal: float | None = None,
    twice: bool = False,
) -> Array:
    """Even in u, then shifted and stretched.

    ``u_min``: the last u before clean data, if the schedule itself does not stop earlier (its t_min, or ``t_min``):
    1/1000 is that of a scheduler with 1000 times, 1/steps what pipelines of Flux and its kin ask for.  ``terminal``:
    the last level before clean data; the others are stretched so that 1 stays 1 (LTX-Video: 0.1).  ``twice``: shift
    ``u_min`` twice, as diffusers does with ``shift``, though not with ``use_dynamic_shifting``.
    """
    if not isinstance(schedule, RectifiedFlow):
        raise ValueError("grid: the grids of flow matching are those of a RectifiedFlow, where sigma is the time")
    if not 0.0 < u_min < 1.0:
        raise ValueError(f"u_min: got {u_min!r}, allowed are numbers in (0, 1)")
    if terminal is not None and not 0.0 < terminal < 1.0:
        raise ValueError(f"terminal: got {terminal!r}, allowed are None and numbers in (0, 1)")
    first = float(schedule.clock(ends[0]))
    last = float(schedule.clock(ends[1])) if ends[1] > 0.0 else u_min
    if twice:
        last = float(schedule.of_clock(last))
    if not first > last:
        raise ValueError(f"u_min: got {last:g}, allowed are numbers below u = {first:g}, where the grid begins")
    t = schedule.of_clock(np.linspace(first, last, points))
    t[0] = ends[0]
    if terminal is None or t[-1] == 1.0:
        return t
    return spacing.pinned(1.0 - (1.0 - t) * ((1.0 - terminal) / (1.0 - t[-1])), (float(t[0]), terminal))


def power_law(schedule: Schedule, points: int, ends: Ends, rho: float = 7.0, **options: float) -> Array:
    """Karras' power law in t between the ends of ``match``."""
    first, last = _ends(schedule, points, ends, options)
    return spacing.pinned(np.exp(spacing.log_power_law(first, last, points, rho)), (first, last))


def exponential(schedule: Schedule, points: int, ends: Ends, **options: float) -> Array:
    """Even in log t between the ends of ``match``."""
    first, last = _ends(schedule, points, ends, options)
    return spacing.pinned(np.geomspace(first, last, points), (first, last))


def beta(schedule: Schedule, points: int, ends: Ends, a: float = 0.6, b: float = 0.6, **options: float) -> Array:
    """Quantiles of a Beta law in t between the ends of ``match``."""
    return spacing.beta_law(*_ends(schedule, points, ends, options), points, a, b)


def _ends(schedule: Schedule, points: int, ends: Ends, options: dict[str, float]) -> Ends:
    t = match(schedule, points, ends, **options)  # type: ignore[arg-type]  # twice is a bool
    return float(t[0]), float(t[-1])
