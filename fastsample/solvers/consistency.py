"""Few-step samplers of distilled networks: every step jumps to a cleaner level and, mostly, adds noise again.

A jump lands at sigma/alpha = ``stop``; noise then lifts it to the next level.  The jump is a straight line in the state
x/alpha wherever the network gives x0_hat (or what plays its part), so TCD, TDM and CTM are the rows of DDIM with the
noise ``c^2 = sigma'^2 - (alpha' stop)^2``; consistency models land (almost) at clean data.  A repeated level is jumped
to like any other.  Paths: ``few_step``.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

from fastsample.path import Level, Path
from fastsample.solvers.first_order import identity, same, transfer
from fastsample.solvers.registry import Solver, add, check_choice, check_range
from fastsample.solvers.step import Mix, Step


def _pairs(path: Path, name: str) -> list[tuple[int, Level, Level]]:
    if path.reverse:
        raise ValueError(f"path: {name!r} runs from noise to data, got a path the other way; see Path.reversed()")
    levels = path.levels()
    return [(i, levels[i], levels[i + 1]) for i in range(path.steps)]


def _flag(name: str, value: Any) -> bool:
    if not isinstance(value, bool):
        raise ValueError(f"{name}: got {value!r}, allowed are True and False")
    return value


def _stops(stops: Any, path: Path) -> list[float]:
    """One sigma/alpha per step, not above the level after it; a list per level starts with that of the first level."""
    try:
        values = [float(v) for v in stops]
    except (TypeError, ValueError):
        raise ValueError(f"stops: got {stops!r}, allowed are None, numbers or a callable of a level") from None
    values = values[1:] if len(values) == path.steps + 1 else values
    if len(values) != path.steps:
        raise ValueError(f"stops: got {len(values)} numbers for {path.steps} steps")
    for i, (stop, level) in enumerate(zip(values, path.levels()[1:], strict=True)):
        if not 0.0 <= stop <= level.rho * (1 + 1e-12):
            raise ValueError(f"stops: got {stop} for step {i}, allowed is sigma/alpha from 0 to {level.rho}")
    return values


def _renoise(stop: float, end: Level) -> float:
    """Noise that lifts sigma/alpha = stop to the level ``end``."""
    return end.alpha * math.sqrt(max((end.rho - stop) * (end.rho + stop), 0.0))


def _alpha(rho: float, level: Level) -> float:
    """alpha where sigma/alpha = rho on the schedule of ``level``: variance preserving, flow, or one of fixed alpha."""
    if abs(math.hypot(level.alpha, level.sigma) - 1.0) < 1e-9:
        return 1.0 / math.hypot(1.0, rho)
    return 1.0 / (1.0 + rho) if abs(level.alpha + level.sigma - 1.0) < 1e-9 else level.alpha


def _at(rho: float, level: Level) -> Level:
    """The level of sigma/alpha = rho; its time is known if that is the time of ``level``."""
    alpha = _alpha(rho, level)
    return Level(alpha, alpha * rho, rho if abs(level.t - level.rho) <= 1e-9 * level.rho else math.nan)


def lcm(path: Path, *, timestep_scaling: float | str | None, sigma_data: float, record: bool) -> list[Step]:
    """Latent consistency model: to d = c_skip x + c_out x0_hat, then noise of the next level.

    Args:
        timestep_scaling: c_skip and c_out are EDM's at sigma = timestep_scaling * t, t the path's own.  None: d =
            x0_hat (flow networks).  "auto": 10 per row of a table of 1000, which is 10000 where t runs from 0 to 1,
            and None where t is sigma/alpha.
        sigma_data: of these scalings.
        record: keep d of every call in a slot "jump".
    """
    sigma_data = check_range("sigma_data", sigma_data, 1e-300)
    if timestep_scaling == "auto":
        told = path.levels()[0]
        timestep_scaling = None if told.t == told.rho else 10.0 if told.t > 1.0 else 1e4
    factor = None if timestep_scaling is None else check_range("timestep_scaling", timestep_scaling, 0.0)
    _flag("record", record)
    steps = []
    for i, start, end in _pairs(path, "lcm"):
        skip, out = 0.0, 1.0
        if factor is not None:
            s = factor * start.t
            skip, out = sigma_data**2 / (s * s + sigma_data**2), s / math.hypot(s, sigma_data)
        keep: dict[str, Mix] = {"jump": {"x": skip, 0: out}} if record else {}
        steps.append(Step(i, start, end.alpha * skip, (end.alpha * out,), end.sigma, keep=keep))
    return steps


def cm(path: Path, *, sigma_min: float, sigma_data: float, boundary: bool) -> list[Step]:
    """Consistency model: to d = c_skip x + c_out F at the smallest level, then noise up to the next level.

    d is D: ``clip`` limits it and ``denoised`` shows it.  End the path at sigma/alpha = sigma_min, where the last row
    adds no noise.  For the raw output F of a network say prediction="edm"; its usual time is
    ``lambda level: 250 * math.log(level.rho + 1e-44)``.

    Args:
        sigma_min: smallest level of the training, where d is the state.
        sigma_data: of the scalings c_skip, c_out.
        boundary: False: the network's x0_hat is d already (prediction="x0" for networks that return d).
    """
    low, data2 = check_range("sigma_min", sigma_min, 0.0), check_range("sigma_data", sigma_data, 1e-300) ** 2
    _flag("boundary", boundary)
    steps = []
    for i, start, end in _pairs(path, "cm"):
        d: Mix | None = None
        if boundary and start.alpha > 0.0:
            # EDM's x0_hat has c_out of sigma instead of sigma - sigma_min, which tells F from the state
            out = (start.rho - low) / start.rho
            skip = data2 / ((start.rho - low) ** 2 + data2) - out * data2 / (start.rho**2 + data2)
            d = {"x": skip / start.alpha, 0: out}
        steps.append(Step(i, start, 0.0, (end.alpha,), _renoise(min(low, end.rho), end), d=d))
    return steps


def tcd(path: Path, *, eta: float, stops: Sequence[float] | None, record: bool) -> list[Step]:
    """Trajectory consistency: DDIM to the level ``stop``, then noise up to the next level.

    Args:
        eta: where the jump lands when ``stops`` is None: (1 - eta) times the next sigma/alpha.  0 is DDIM, 1 goes to
            clean data.
        stops: sigma/alpha where each jump lands: a list or a callable of the level after the step.  Networks of table
            rows need ``few_step.tcd_stops(schedule, eta)``, which is the rule of the paper (``eta`` is not read then).
        record: keep the landing point of every call in a slot "jump".
    """
    share = 1.0 - check_range("eta", eta, 0.0, 1.0)
    landing = [share * level.rho for level in path.levels()[1:]] if stops is None else _stops(stops, path)
    _flag("record", record)
    steps = []
    for (i, start, end), stop in zip(_pairs(path, "tcd"), landing, strict=True):
        keep: dict[str, Mix] = {}
        if record:
            alpha = _alpha(stop, start)
            part = alpha * stop / start.sigma
            keep["jump"] = {"x": part, 0: alpha - start.alpha * part}
        a = end.alpha * stop / start.sigma
        steps.append(Step(i, start, a, (end.alpha - start.alpha * a,), _renoise(stop, end), keep=keep))
    return steps


def tdm(path: Path) -> list[Step]:
    """Student of trajectory distribution matching: deterministic first-order steps, the last one to clean data."""
    return [
        identity(i, start) if same(start, end) else transfer(i, start, end) for i, start, end in _pairs(path, "tdm")
    ]


def scm(path: Path) -> list[Step]:
    """Simplified consistency model (TrigFlow): to x0_hat, then fresh noise of the next level."""
    return [Step(i, start, 0.0, (end.alpha,), end.sigma) for i, start, end in _pairs(path, "scm")]


def ctm(
    path: Path,
    *,
    gamma: float,
    variant: str,
    outer: str,
    sigma_min: float,
    sigma_data: float,
    stops: Sequence[float] | None,
) -> list[Step]:
    """Consistency trajectory model: jump to s, told as the network's second time, then noise up to the next level.

    ``G(x, t, s) = c_skip x + (1 - s/t) g(x, t, s)`` with g the x0_hat of the network (prediction "edm" for the raw
    output of an EDM-scaled network).  t and s are sigma/alpha; on a path of other times ask for a ``time`` that a level
    alone gives: make_plan(..., time="sigma") or "log-sigma".

    Args:
        gamma: 0 is the deterministic chain, 1 returns to the smallest level every time.
        variant: "code" (the authors' program): s = sqrt(1 - gamma^2) (t' - sigma_min) + sigma_min; "paper":
            s = sqrt(1 - gamma^2) t'.  Either way the noise is sqrt(t'^2 - s^2).
        outer: c_skip: "euler" (s/t), "variance" (keeps the variance of data of ``sigma_data``), "mixed", or "network":
            its output is G itself.
        stops: s of each step instead of the rule.
    """
    left = math.sqrt(1.0 - check_range("gamma", gamma, 0.0, 1.0) ** 2)
    check_choice("variant", variant, ("code", "paper"))
    check_choice("outer", outer, ("euler", "variance", "mixed", "network"))
    low, data2 = check_range("sigma_min", sigma_min, 0.0), check_range("sigma_data", sigma_data, 0.0) ** 2
    given = None if stops is None else _stops(stops, path)
    steps = []
    for i, start, end in _pairs(path, "ctm"):
        if start.alpha == 0.0:
            raise ValueError("path: 'ctm' needs alpha > 0; end the path at a finite sigma/alpha")
        t, after = start.rho, end.rho
        if given is not None:
            s = given[i]
        elif variant == "paper":
            s = left * after
        else:  # never above the next level, also where that is below sigma_min
            s = min(left * (after - low) + low, after)
        grow = end.alpha / start.alpha
        told = t if s == 0.0 and outer != "network" and variant == "code" else s
        if outer == "network":
            steps.append(Step(i, start, 0.0, (grow,), _renoise(s, end), form="raw", to=_at(told, start)))
            continue
        skip = s / t
        if outer != "euler" and s > 0.0:
            keep_variance = math.sqrt(((s - low) ** 2 + data2) / ((t - low) ** 2 + data2))
            skip = keep_variance if outer == "variance" else (s + keep_variance) / (t + 1.0)
        steps.append(Step(i, start, grow * skip, (end.alpha * (1.0 - s / t),), _renoise(s, end), to=_at(told, start)))
    return steps


add(
    Solver(
        "lcm",
        lcm,
        "latent consistency model: jump to clean data, noise again",
        "Luo, Tan, Huang, Li, Zhao 2023, arXiv 2310.04378",
        order=0,
        stochastic=True,
        options={"timestep_scaling": "auto", "sigma_data": 0.5, "record": False},
    )
)
add(
    Solver(
        "cm",
        cm,
        "consistency model: jump to the smallest level, noise again",
        "Song, Dhariwal, Chen, Sutskever 2023, arXiv 2303.01469, algorithm 1",
        order=0,
        stochastic=True,
        aliases=("consistency", "consistency-multistep"),
        options={"sigma_min": 0.002, "sigma_data": 0.5, "boundary": True},
    )
)
add(
    Solver(
        "tcd",
        tcd,
        "trajectory consistency: jump part of the way, noise again",
        "Zheng et al. 2024, arXiv 2402.19159",
        order=1,
        stochastic=True,
        options={"eta": 0.3, "stops": None, "record": False},
    )
)
add(
    Solver(
        "ctm",
        ctm,
        "consistency trajectory model, gamma-sampling (networks of two times)",
        "Kim et al. 2023, arXiv 2310.02279",
        order=1,
        stochastic=True,
        options={
            "gamma": 0.5,
            "variant": "code",
            "outer": "euler",
            "sigma_min": 0.002,
            "sigma_data": 0.5,
            "stops": None,
        },
    )
)
add(
    Solver(
        "scm",
        scm,
        "simplified consistency model (TrigFlow): jump to clean data, noise again",
        "Lu, Song 2024, arXiv 2410.11081",
        order=0,
        stochastic=True,
        aliases=("trigflow",),
    )
)
add(
    Solver(
        "tdm",
        tdm,
        "few-step student of trajectory distribution matching: DDIM to clean data",
        "Luo et al. 2025, arXiv 2503.06674",
        order=1,
    )
)
