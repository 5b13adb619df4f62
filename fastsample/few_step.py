"""Paths of few-step (distilled) models: the levels their networks were trained to jump between."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from fractions import Fraction

import numpy as np

from fastsample.path import Array, Level, Path
from fastsample.schedules import DiscreteVP, Schedule, make_schedule
from fastsample.solvers.registry import check_range


def lcm_rows(rows: int = 1000, steps: int = 4, *, original_steps: int = 50, strength: float = 1.0) -> Array:
    """Rows ``(steps,)`` of a table at which LCM and TCD networks are asked, noisy to clean.

    The distillation saw every k-th row, ``k j - 1`` with ``k = rows // original_steps``; ``steps`` of them are taken at
    even distance (4 of 50: 999, 759, 499, 259).  ``strength`` < 1 leaves out the noisiest (image to image).

    Raises ``ValueError`` when there are fewer rows than steps.
    """
    _whole("rows", rows, 1)
    _whole("original_steps", original_steps, 1, rows)
    count = int(original_steps * check_range("strength", strength, 0.0, 1.0))
    _whole("steps", steps, 1, max(count, 1))
    if count < 1:
        raise ValueError(f"strength: got {strength}, which leaves none of {original_steps} steps")
    seen = np.arange(1, count + 1) * (rows // original_steps) - 1
    picked = np.floor(np.linspace(0, count, num=steps, endpoint=False)).astype(np.int64)
    return seen[::-1][picked].astype(np.float64)


def lcm_path(
    schedule: str | Schedule, steps: int = 4, *, original_steps: int = 50, strength: float = 1.0, final: str = "zero"
) -> Path:
    """Path of latent consistency models: ``lcm_rows`` of a table, then ``final``.

    ``final``: ``"zero"`` (clean data: LCM) or ``"row-0"`` (the first row of the table, where TCD ends: the result keeps
    sigma_0 eps).  Luo et al. 2023, arXiv 2310.04378.
    """
    return _table_path(
        schedule, lambda rows: lcm_rows(rows, steps, original_steps=original_steps, strength=strength), final
    )


def tcd_path(schedule: str | Schedule, steps: int = 4, *, original_steps: int = 50, strength: float = 1.0) -> Path:
    """Path of trajectory consistency distillation: that of LCM, ending in row 0.

    Zheng et al. 2024, arXiv 2402.19159.
    """
    return lcm_path(schedule, steps, original_steps=original_steps, strength=strength, final="row-0")


def tcd_stops(schedule: str | Schedule, eta: float = 0.3) -> Callable[[Level], float]:
    """``stops`` of the solver "tcd": sigma/alpha of row ``floor((1 - eta) t')``, t' that of the level after the step.

    The product is formed with the decimal digits of ``eta``: in doubles it is one row too low wherever it is whole.
    """
    table = make_schedule(schedule)
    left = 1 - Fraction(str(check_range("eta", eta, 0.0, 1.0)))

    def stop(level: Level) -> float:
        if level.sigma == 0.0:
            return 0.0
        row = math.floor(left * Fraction(level.t))
        # rows that are the level itself keep its numbers
        return level.rho if row == level.t else float(np.exp(-table.lam(float(row))))

    return stop


def tdm_path(schedule: str | Schedule, steps: int = 4, *, rows: Sequence[float] | None = None) -> Path:
    """Path of trajectory distribution matching: rows ``T - 1 - i floor(T / steps)`` (or ``rows``), then clean data.

    Luo et al. 2025, arXiv 2503.06674.
    """

    def pick(total: int) -> Array:
        _whole("steps", steps, 1, total)
        return np.asarray(total - 1 - np.arange(steps) * (total // steps) if rows is None else rows, dtype=np.float64)

    return _table_path(schedule, pick, "zero")


def karras_index_path(
    indices: Sequence[int],
    points: int = 40,
    *,
    sigma_max: float = 80.0,
    sigma_min: float = 0.002,
    rho: float = 7.0,
) -> Path:
    """Points of the Karras grid of ``points`` points from ``sigma_max`` to ``sigma_min``, by rising index (alpha = 1).

    Consistency models publish such lists: (0, 22, 39) of 40 for ImageNet-64 (distilled), (0, 106, 200) of 201
    (trained).  The last index should be ``points - 1``, otherwise the result keeps noise.
    Song, Dhariwal, Chen, Sutskever 2023, arXiv 2303.01469.
    """
    _whole("points", points, 2)
    picked = np.asarray(indices)
    if picked.ndim != 1 or len(picked) < 2 or picked.dtype.kind not in "iu":
        raise ValueError(f"indices: got {indices!r}, allowed are at least 2 whole numbers")
    if picked.min() < 0 or picked.max() >= points or not (np.diff(picked) > 0).all():
        raise ValueError(f"indices: got {indices!r}, allowed are rising numbers from 0 to {points - 1}")
    high, low = (check_range(n, v, 1e-300) for n, v in (("sigma_max", sigma_max), ("sigma_min", sigma_min)))
    power = 1.0 / check_range("rho", rho, 1e-3)
    sigma = (high**power + picked / (points - 1) * (low**power - high**power)) ** (1.0 / power)
    sigma[picked == 0], sigma[picked == points - 1] = high, low
    return Path(np.ones(len(sigma)), sigma)


def trig_path(steps: int = 2, *, times: Sequence[float] | None = None, sigma_data: float = 0.5) -> Path:
    """Path of TrigFlow (sCM): ``x = cos t x0 + sin t z`` with z of standard deviation ``sigma_data``, t from pi/2 to 0.

    ``times`` are the levels themselves (steps + 1, the last usually 0); by default 2 steps go through 1.3 and other
    numbers of steps are uniform.  The path has rates, so that networks of dx/dt are ``prediction="flow"``.
    A start at or a rounding beyond pi/2 is taken as pi/2 (alpha = cos t must not be negative).
    Lu, Song 2024, arXiv 2410.11081.
    """
    sigma_data = check_range("sigma_data", sigma_data, 1e-300)
    if times is None:
        _whole("steps", steps, 1)
        t = np.array([math.pi / 2, 1.3, 0.0]) if steps == 2 else np.linspace(math.pi / 2, 0.0, steps + 1)
    else:
        t = np.array(times, dtype=np.float64)
        if t.ndim != 1 or len(t) < 2 or not (np.diff(t) < 0).all() or t[-1] < 0 or t[0] > math.pi / 2 + 1e-5:
            raise ValueError(f"times: got {times!r}, allowed are at least 2 falling numbers in [0, pi/2]")
        t = np.minimum(t, math.pi / 2)
    rates = np.stack([-np.sin(t), sigma_data * np.cos(t)], axis=1)
    return Path(np.cos(t), sigma_data * np.sin(t), t, rates)


def _table_path(schedule: str | Schedule, pick: Callable[[int], Array], final: str) -> Path:
    table = make_schedule(schedule)
    if not isinstance(table, DiscreteVP):
        raise ValueError(f"schedule: got {type(table).__name__}, allowed is a table (DiscreteVP)")
    if final not in ("zero", "row-0"):
        raise ValueError(f"final: got {final!r}, allowed are zero, row-0")
    t = pick(table.rows)
    if not ((t >= 0) & (t < table.rows)).all():
        raise ValueError(f"rows: got {t.tolist()}, allowed are 0 to {table.rows - 1}")
    alpha, sigma = np.append(table.alpha(t), 1.0), np.append(table.sigma(t), 0.0)
    if final == "row-0":
        alpha[-1], sigma[-1] = float(table.alpha(0.0)), float(table.sigma(0.0))
    return Path(alpha, sigma, np.append(t, 0.0))


def _whole(name: str, value: int, low: int, high: float = math.inf) -> None:
    if not isinstance(value, (int, np.integer)) or isinstance(value, bool) or not low <= value <= high:
        raise ValueError(f"{name}: got {value!r}, allowed are whole numbers from {low} to {high:g}")
