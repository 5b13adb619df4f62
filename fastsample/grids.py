"""Grids: which levels of a schedule a run visits.  A grid only makes a ``Path``."""

from __future__ import annotations

import difflib
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from fastsample import flow_grids
from fastsample.path import Array, ArrayLike, Path, _vector
from fastsample.schedules import VP, DiscreteVP, Schedule, make_schedule
from fastsample.spacing import beta_law, log_power_law, pinned, positive

FINALS = ("end", "zero", "replace")

# A grid returns times, or half log-SNR values where `of` says so: (schedule, points, ends) -> points noisy to clean
Ends = tuple[float, float]


def uniform(schedule: Schedule, points: int, ends: Ends) -> Array:
    """Uniform in the schedule's clock (time; for flow before the shift)."""
    first, last = schedule.clock(ends[0]), schedule.clock(ends[1])
    return pinned(schedule.of_clock(np.linspace(first, last, points)), ends)


def quadratic(schedule: Schedule, points: int, ends: Ends, power: float = 2.0) -> Array:
    """Uniform in clock^(1/power): dense near the data."""
    positive("power", power)
    first, last = float(schedule.clock(ends[0])), float(schedule.clock(ends[1]))
    u = np.linspace(first ** (1.0 / power), last ** (1.0 / power), points) ** power
    return pinned(schedule.of_clock(u), ends)


def log_snr(schedule: Schedule, points: int, ends: Ends) -> Array:
    """Uniform in half log-SNR (lambda)."""
    first, last = _lams(schedule, ends)
    return np.linspace(first, last, points)


def karras(schedule: Schedule, points: int, ends: Ends, rho: float = 7.0) -> Array:
    """Power law in sigma/alpha.  Karras et al. 2022, arXiv 2206.00364, equation 5."""
    high, low = (math.exp(-lam) for lam in _lams(schedule, ends))
    return -log_power_law(high, low, points, rho)


def polyexponential(schedule: Schedule, points: int, ends: Ends, rho: float = 1.0) -> Array:
    """log(sigma/alpha) follows the power ``rho`` of a ramp; 1 is the exponential grid, uniform in log-SNR."""
    positive("rho", rho)
    high, low = _lams(schedule, ends)
    return np.asarray(low + (high - low) * np.linspace(1.0, 0.0, points) ** rho, dtype=np.float64)


def beta(schedule: Schedule, points: int, ends: Ends, a: float = 0.6, b: float = 0.6) -> Array:
    """Times at quantiles of a Beta(a, b) law; needs SciPy.  Lee et al. 2024, arXiv 2407.12173."""
    return beta_law(*ends, points, a, b)


def leading(schedule: Schedule, points: int, ends: Ends, offset: int = 0) -> Array:
    """Every floor(T/N)-th row of a discrete schedule from row ``offset`` on."""
    rows = _rows("leading", schedule, points)
    return np.arange(points - 1, -1, -1, dtype=np.float64) * (rows // points) + offset


def trailing(schedule: Schedule, points: int, ends: Ends) -> Array:
    """Rows T - 1, T - 1 - T/N, ... of a discrete schedule, rounded."""
    rows = _rows("trailing", schedule, points)
    return np.asarray(np.rint(rows - np.arange(points) * (rows / points)) - 1.0, dtype=np.float64)


def rows(schedule: Schedule, points: int, ends: Ends) -> Array:
    """Uniform rows of a discrete schedule, rounded."""
    _rows("rows", schedule, points)
    return np.rint(np.linspace(ends[0], ends[1], points))


# name -> (function, unit of what it returns, default end: one of FINALS; "append": "zero" on every schedule)
_GRIDS: dict[str, tuple[Callable[..., Array], str, str]] = {
    "uniform": (uniform, "t", "end"),
    "quadratic": (quadratic, "t", "end"),
    "log-snr": (log_snr, "log-snr", "end"),
    "karras": (karras, "log-snr", "zero"),
    "exponential": (log_snr, "log-snr", "zero"),
    "polyexponential": (polyexponential, "log-snr", "zero"),
    "sgm-uniform": (uniform, "t", "replace"),
    "beta": (beta, "t", "zero"),
    "leading": (leading, "t", "zero"),
    "trailing": (trailing, "t", "zero"),
    "rows": (rows, "t", "zero"),
    "flow-match": (flow_grids.match, "t", "append"),
    "flow-karras": (flow_grids.power_law, "t", "append"),
    "flow-exponential": (flow_grids.exponential, "t", "append"),
    "flow-beta": (flow_grids.beta, "t", "append"),
}
GRIDS = tuple(_GRIDS)
_ALIASES = {
    "uniform-t": "uniform",
    "time-uniform": "uniform",
    "logsnr": "log-snr",
    "linspace": "rows",
    "exp": "exponential",
}


def make_path(
    schedule: str | Schedule,
    grid: str | Mapping[str, Any] | Sequence[float] | ArrayLike = "uniform",
    steps: int | None = None,
    *,
    final: str | None = None,
    unit: str = "t",
    t_max: float | None = None,
    t_min: float | None = None,
    sigma_max: float | None = None,
    sigma_min: float | None = None,
    **options: Any,
) -> Path:
    """The levels of a run of ``steps`` steps.

    Args:
        schedule: a name of ``fastsample.schedules.SCHEDULES`` or a ``Schedule``.
        grid: a name of ``GRIDS``; a mapping of ``"name"`` and arguments of this function, such as
            ``{"name": "karras", "rho": 5, "sigma_max": 40}``; or the N + 1 points themselves (N if ``final="zero"``),
            noisy to clean.
        steps: N; not needed with a list of points.
        final: ``"end"``: N + 1 points, the last at the clean end of the schedule.  ``"zero"``: N points, then clean
            data (sigma = 0).  ``"replace"``: N + 1 points whose last is replaced by clean data.  None: the grid's
            usual one; a list of points is taken as it is.
        unit: of a list of points: ``"t"``, ``"sigma"`` (sigma/alpha) or ``"log-snr"``.
        t_max, t_min: ends of the grid in time; default those of the schedule.
        sigma_max, sigma_min: the same as sigma/alpha.
        **options: of the grid: ``rho`` (karras, polyexponential), ``power`` (quadratic), ``a``, ``b`` (beta),
            ``offset`` (leading), ``u_min``, ``terminal``, ``twice`` (flow-match and its kin, see
            ``fastsample.flow_grids.match``).

    Raises:
        ValueError: unknown names, ends outside the schedule, too few or too many steps, points that do not fall.
    """
    schedule = make_schedule(schedule)
    if isinstance(grid, Mapping):
        given: dict[str, Any] = {
            "final": final,
            "t_max": t_max,
            "t_min": t_min,
            "sigma_max": sigma_max,
            "sigma_min": sigma_min,
        }
        name, given = _unpacked(grid, {k: v for k, v in {**given, **options}.items() if v is not None})
        return make_path(schedule, name, steps, **given)
    if isinstance(grid, str):
        points, unit, final = _named(schedule, grid, steps, final, (t_max, t_min), (sigma_max, sigma_min), options)
    else:
        points = _vector("grid", grid)
        if options or any(v is not None for v in (t_max, t_min, sigma_max, sigma_min)):
            raise ValueError("grid: a list of points takes no further options")
        final = final or "end"
        if final not in FINALS:
            raise ValueError(f"final: got {final!r}, allowed are {', '.join(FINALS)}")
        if steps is not None and steps != len(points) - (final != "zero"):
            raise ValueError(f"steps: got {steps}, the grid has {len(points)} points and final={final!r}")
    if final == "replace":
        points = points[:-1]
    if unit == "t" and len(points) and not (points.min() >= 0 and points.max() <= schedule.t_max * (1 + 1e-9)):
        raise ValueError(f"grid: has times {points.min():g} to {points.max():g}, allowed are 0 to {schedule.t_max:g}")
    return _path(schedule, points, unit, final != "end")


def training_grid(schedule: Schedule) -> str:
    """The grid of the steps that models are trained with: every row of a table, or even in time, then clean data."""
    if isinstance(schedule, DiscreteVP):
        return "trailing"
    return "sgm-uniform" if isinstance(schedule, VP) else "exponential"


def training_steps(schedule: Schedule) -> int:
    """How many they are: the rows of a table, else 1000."""
    return schedule.rows if isinstance(schedule, DiscreteVP) else 1000


def _unpacked(grid: Mapping[str, Any], given: dict[str, Any]) -> tuple[str, dict[str, Any]]:
    """The name in a mapping, and its arguments beside those given outside of it."""
    rest = dict(grid)
    name = rest.pop("name", None)
    if not isinstance(name, str):
        raise ValueError(f'grid: got {dict(grid)!r}, a mapping must have the name of a grid as its "name"')
    for key in rest:
        if not isinstance(key, str) or key in ("schedule", "grid", "steps", "unit"):
            raise ValueError(f"grid: got {key!r} in a mapping, allowed are the name, the ends and the grid's options")
        if key in given:
            raise ValueError(f"{key}: got it twice, in the mapping and outside of it")
    return name, {**given, **rest}


def _named(
    schedule: Schedule,
    grid: str,
    steps: int | None,
    final: str | None,
    times: tuple[float | None, float | None],
    sigmas: tuple[float | None, float | None],
    options: dict[str, Any],
) -> tuple[Array, str, str]:
    name = _ALIASES.get(grid, grid)
    if name not in _GRIDS:
        close = difflib.get_close_matches(grid, [*_GRIDS, *_ALIASES], n=1)
        hint = f"; did you mean {close[0]}?" if close else ""
        raise ValueError(f"grid: got {grid!r}, allowed are {', '.join(GRIDS)} or a list of points{hint}")
    function, unit, usual = _GRIDS[name]
    ends = _ends(schedule, times, sigmas)
    if final is None:  # a schedule that reaches clean data needs none appended
        final = "end" if usual == "zero" and float(schedule.sigma(ends[1])) == 0.0 else usual.replace("append", "zero")
    if final not in FINALS:
        raise ValueError(f"final: got {final!r}, allowed are {', '.join(FINALS)}")
    if not isinstance(steps, (int, np.integer)) or isinstance(steps, bool) or steps < 1:
        raise ValueError(f"steps: got {steps!r}, allowed are whole numbers >= 1")
    points = int(steps) + (final != "zero")
    try:
        values = function(schedule, points, ends, **options)
    except TypeError:
        raise ValueError(f"option: the grid {name!r} does not take {', '.join(options)}") from None
    return values, unit, final


def _ends(
    schedule: Schedule, times: tuple[float | None, float | None], sigmas: tuple[float | None, float | None]
) -> tuple[float, float]:
    limits = (schedule.t_max, schedule.t_min)
    slack = 1e-9 * abs(schedule.t_max)
    ends = []
    for which, t, sigma, limit in zip(("max", "min"), times, sigmas, limits, strict=True):
        if t is not None and sigma is not None:
            raise ValueError(f"t_{which}: got it and sigma_{which} too, allowed is one of them")
        if sigma is not None:
            t = float(schedule.t_of_lam(-math.log(positive(f"sigma_{which}", sigma))))
            if isinstance(schedule, DiscreteVP):  # tables are read by line between and beyond their rows
                ends.append(t)
                continue
        t = limit if t is None else float(t)
        lowest = 0.0 if t == 0.0 and float(schedule.sigma(0.0)) == 0.0 else min(schedule.t_min, 1e-12)
        if not lowest <= t <= schedule.t_max + slack:
            raise ValueError(f"t_{which}: got {t:g}, the schedule has times up to {schedule.t_max:g}")
        ends.append(t)
    if not ends[0] > ends[1]:
        raise ValueError(f"t_max, t_min: got {ends[0]:g}, {ends[1]:g}, allowed are t_max > t_min")
    return ends[0], ends[1]


def _path(schedule: Schedule, points: Array, unit: str, zero: bool) -> Path:
    if unit == "t":
        t = points
        alpha, sigma = schedule.alpha(t), schedule.sigma(t)
    elif unit in ("sigma", "log-snr"):
        if unit == "sigma" and not (points > 0).all():
            raise ValueError("grid: sigma values must be > 0; ask for final='zero' to end with clean data")
        lam = -np.log(points) if unit == "sigma" else points
        t = schedule.t_of_lam(lam)
        alpha, sigma = schedule.levels(lam)
    else:
        raise ValueError(f"unit: got {unit!r}, allowed are t, sigma, log-snr")
    rates = schedule.rates(t)
    told = schedule.network_time(t)
    if zero:
        # nothing is asked at the clean end; its time is the schedule's zero
        alpha, sigma = np.append(alpha, 1.0), np.append(sigma, 0.0)
        told = np.append(told, schedule.network_time(0.0))
        if rates is not None:
            rates = (np.append(rates[0], 0.0), np.append(rates[1], 1.0))
    return Path(alpha, sigma, told, None if rates is None else np.stack(rates, axis=1))


def _lams(schedule: Schedule, ends: Ends) -> tuple[float, float]:
    first, last = (float(schedule.lam(t)) for t in ends)
    if not math.isfinite(first) or not math.isfinite(last):
        raise ValueError(
            f"t_max, t_min: the log-SNR is infinite at an end ({first:g}, {last:g}); give t_max or t_min "
            "(or sigma_max, sigma_min) inside the schedule"
        )
    return first, last


def _rows(name: str, schedule: Schedule, points: int) -> int:
    if not isinstance(schedule, DiscreteVP):
        raise ValueError(f"grid: {name!r} picks rows of a table; the schedule must be a DiscreteVP")
    if points > schedule.rows:
        raise ValueError(f"steps: got {points}, the schedule has {schedule.rows} rows")
    return schedule.rows
