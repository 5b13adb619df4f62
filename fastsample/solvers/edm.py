"""Samplers of EDM and k-diffusion in sigma/alpha: Heun, DPM2, their ancestral forms, DPM-Solver++ 2S ancestral and SDE.

A two-stage step asks at its start and at one more level.  For the state x/alpha, with r = rho_end / rho_start,

    Heun:  y at the end;     x' = r x + [(1 - 1/r)/2 + 1 - r] D_1 + (1/r - 1)/2 D_2
    DPM2:  y at rho_m;       x' = r x + (rho' - rho)(1/rho_m - 1/rho) D_1 - (rho' - rho)/rho_m D_2

Ancestral forms go to a level rho_down below the end and add noise up to it.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence

from fastsample.path import Level, Path
from fastsample.solvers.first_order import Churn, ancestral_noise, identity, pairs, same, transfer
from fastsample.solvers.registry import Solver, add, check_range
from fastsample.solvers.stages import Between, Stage, stages
from fastsample.solvers.step import Step


def euler_ancestral(path: Path, *, eta: float, s_noise: float) -> list[Step]:
    """A step to x0_hat's line at rho_down, then noise up to rho'; eta = 1 is DDPM's posterior, eta = 0 Euler."""
    check_range("eta", eta, 0.0)
    check_range("s_noise", s_noise, 0.0)
    return [
        identity(i, start) if same(start, end) else transfer(i, start, end, _up(start, end, eta), s_noise=s_noise)
        for i, start, end in pairs(path, "euler-ancestral")
    ]


def heun(path: Path, *, s_churn: float, s_tmin: float, s_tmax: float, s_noise: float, anchored: bool) -> list[Step]:
    """Heun's method in sigma/alpha with the churn of EDM; a step to sigma = 0 is one Euler call."""
    churn, steps = Churn(path, s_churn, s_tmin, s_tmax, s_noise), []
    for i, level, end in pairs(path, "heun"):
        start, lift = churn(level)
        made = _short(i, start, end)
        if not made:
            r = end.rho / start.rho
            inner = _stage(start, end, r, [1.0 - r])
            final = _stage(start, end, r, [0.5 * (1.0 - 1.0 / r) + 1.0 - r, 0.5 * (1.0 / r - 1.0)])
            made = stages(i, start, [inner], final, "x0", anchored)
        steps += _lifted(made, lift)
    return steps


def dpm_2(
    path: Path, *, s_churn: float, s_tmin: float, s_tmax: float, s_noise: float, schedule: str | None, anchored: bool
) -> list[Step]:
    """Midpoint in log(sigma/alpha) with churn (KDPM2); a step to sigma = 0 is one Euler call."""
    churn, between, steps = Churn(path, s_churn, s_tmin, s_tmax, s_noise), Between(path, schedule), []
    for i, level, end in pairs(path, "dpm-2"):
        start, lift = churn(level)
        made = _short(i, start, end) or _midpoint(i, start, end, end.rho, between, anchored)
        steps += _lifted(made, lift)
    return steps


def dpm_2_ancestral(path: Path, *, eta: float, s_noise: float, schedule: str | None, anchored: bool) -> list[Step]:
    """Midpoint in log(sigma/alpha) to rho_down, then noise up to rho'."""
    check_range("eta", eta, 0.0)
    check_range("s_noise", s_noise, 0.0)
    between, steps = Between(path, schedule), []
    for i, start, end in pairs(path, "dpm-2-ancestral"):
        up = 0.0 if same(start, end) else _up(start, end, eta)
        down = _down(end, up)
        made = _short(i, start, end, up, s_noise) if down == 0.0 or same(start, end) else []
        steps += made or _noisy(_midpoint(i, start, end, down, between, anchored), s_noise * up)
    return steps


def dpmpp_2s_ancestral(path: Path, *, eta: float, s_noise: float, schedule: str | None, anchored: bool) -> list[Step]:
    """DPM-Solver++ 2S (r = 1/2, its D_1 cancels) to rho_down, then noise up to rho'."""
    check_range("eta", eta, 0.0)
    check_range("s_noise", s_noise, 0.0)
    between, steps = Between(path, schedule), []
    for i, start, end in pairs(path, "dpmpp-2s-ancestral"):
        up = 0.0 if same(start, end) else _up(start, end, eta)
        down = _down(end, up)
        made = _short(i, start, end, up, s_noise) if down == 0.0 or same(start, end) else []
        if not made:
            middle = between(i, -0.5 * (math.log(start.rho) + math.log(down)))
            r = down / start.rho
            inner = _stage(start, middle, middle.rho / start.rho, [1.0 - middle.rho / start.rho])
            final = _stage(start, end, r, [0.0, 1.0 - r])
            made = _noisy(stages(i, start, [inner], final, "x0", anchored), s_noise * up)
        steps += made
    return steps


def dpmpp_sde(
    path: Path, *, eta: float, s_noise: float, r: float, schedule: str | None, anchored: bool | None
) -> list[Step]:
    """DPM-Solver++ 2S on the SDE with noise in both calls; what the second needs of the start is kept.

    ``anchored``: False: it is recovered instead, with the noise of the first made again, where that is possible.
    """
    check_range("eta", eta, 0.0)
    check_range("s_noise", s_noise, 0.0)
    if not 0.0 < check_range("r", r, 0.0, 1.0) <= 1.0:
        raise ValueError(f"r: got {r!r}, allowed are numbers in (0, 1]")
    between, steps = Between(path, schedule), []
    for i, start, end in pairs(path, "dpmpp-sde"):
        if end.sigma == 0.0 or same(start, end) or start.alpha == 0.0:
            steps += _short(i, start, end) or [transfer(i, start, end)]
            continue
        middle = between(i, start.lam + r * (end.lam - start.lam))
        first = transfer(i, start, middle, _up(start, middle, eta), s_noise=s_noise)
        second = transfer(i, start, end, _up(start, end, eta), s_noise=s_noise)
        share, b = 1.0 / (2.0 * r), second.b[0]
        inner = Stage(middle, first.a, first.b, first.c)
        final = Stage(end, second.a, [(1.0 - share) * b, share * b], second.c)
        steps += stages(i, start, [inner], final, "x0", anchored is not False or first.a == 0.0)
    return steps


def flow_heun(path: Path, *, anchored: bool) -> list[Step]:
    """Heun's method in t on the velocity u = eps - x0 of a rectified flow; the last step is Euler's.

    Any other path is seen as one: x/(alpha + sigma) is the state of a rectified flow at t = sigma/(alpha + sigma).
    """
    steps = []
    for i, start, end in pairs(path, "flow-heun"):
        if end.sigma == 0.0 or same(start, end):
            steps.append(identity(i, start) if same(start, end) else transfer(i, start, end))
            continue
        size, scale = end.alpha + end.sigma, (end.alpha + end.sigma) / (start.alpha + start.sigma)
        t, t_end = start.sigma / (start.alpha + start.sigma), end.sigma / size
        gap = t_end - t  # u = (x - x0) / t
        a, b = 1.0 + gap / t, -gap / t
        inner = Stage(end, scale * a, [size * b])
        half = 0.5 * gap
        final = [-half / t + half * b / t_end, -half / t_end]
        last = Stage(end, scale * (1.0 + half / t + half * a / t_end), [size * weight for weight in final])
        steps += stages(i, start, [inner], last, "x0", anchored)
    return steps


def _up(start: Level, end: Level, eta: float) -> float:
    return min(end.sigma, ancestral_noise(start, end, eta))


def _down(end: Level, up: float) -> float:
    """sigma/alpha that is left below the noise ``up``."""
    return math.sqrt(max(end.sigma**2 - up * up, 0.0)) / end.alpha


def _short(i: int, start: Level, end: Level, up: float = 0.0, s_noise: float = 1.0) -> list[Step]:
    """The one-call step where a second call has no meaning: nothing to do, or the lower end is clean data."""
    if same(start, end):
        return [identity(i, start)]
    if end.sigma == 0.0 or start.alpha == 0.0 or up >= end.sigma:
        return [transfer(i, start, end, up, s_noise=s_noise)]
    return []


def _stage(start: Level, at: Level, r: float, weights: Sequence[float]) -> Stage:
    """A stage for the state itself, from the weights for x/alpha."""
    return Stage(at, at.alpha / start.alpha * r, [at.alpha * weight for weight in weights])


def _midpoint(i: int, start: Level, end: Level, down: float, between: Between, anchored: bool) -> list[Step]:
    middle = between(i, -0.5 * (math.log(start.rho) + math.log(down)))
    m, gap = middle.rho, down - start.rho
    inner = _stage(start, middle, m / start.rho, [1.0 - m / start.rho])
    final = _stage(start, end, down / start.rho, [gap * (1.0 / m - 1.0 / start.rho), -gap / m])
    return stages(i, start, [inner], final, "x0", anchored)


def _lifted(steps: Sequence[Step], lift: float) -> list[Step]:
    return [dataclasses.replace(steps[0], lift=lift), *steps[1:]]


def _noisy(steps: Sequence[Step], c: float) -> list[Step]:
    return [*steps[:-1], dataclasses.replace(steps[-1], c=c)]


_EDM = "Karras, Aittala, Aila, Laine 2022, arXiv 2206.00364"
_CHURN = {"s_churn": 0.0, "s_tmin": 0.0, "s_tmax": 1e30, "s_noise": 1.0}
_ANCESTRAL = {"eta": 1.0, "s_noise": 1.0}
_STAGED = {"schedule": None, "anchored": False}

add(
    Solver(
        "euler-ancestral",
        euler_ancestral,
        "Euler below the next level, then noise up to it",
        "Ho, Jain, Abbeel 2020, arXiv 2006.11239, in the form of k-diffusion",
        order=1,
        stochastic=True,
        aliases=("euler-a",),
        options=_ANCESTRAL,
    )
)
add(
    Solver(
        "heun",
        heun,
        "Heun's method in sigma/alpha, with EDM's churn",
        f"{_EDM}, algorithms 1 and 2",
        order=2,
        nfe=2,
        aliases=("edm", "k-heun"),
        options={**_CHURN, "anchored": False},
    )
)
add(
    Solver(
        "dpm-2",
        dpm_2,
        "midpoint in log(sigma/alpha), with churn",
        "Lu et al. 2022, arXiv 2206.00927, algorithm 1, in the form of k-diffusion",
        order=2,
        nfe=2,
        aliases=("kdpm2",),
        options={**_CHURN, **_STAGED},
    )
)
add(
    Solver(
        "dpm-2-ancestral",
        dpm_2_ancestral,
        "midpoint in log(sigma/alpha) below the next level, then noise up to it",
        "k-diffusion (code), after Lu et al. 2022, arXiv 2206.00927",
        order=1,
        nfe=2,
        stochastic=True,
        aliases=("kdpm2-ancestral", "dpm-2-a"),
        options={**_ANCESTRAL, **_STAGED},
    )
)
add(
    Solver(
        "dpmpp-2s-ancestral",
        dpmpp_2s_ancestral,
        "DPM-Solver++ 2S below the next level, then noise up to it",
        "k-diffusion (code), after Lu et al. 2022, arXiv 2211.01095, algorithm 1",
        order=1,
        nfe=2,
        stochastic=True,
        aliases=("dpmpp-2s-a",),
        options={**_ANCESTRAL, **_STAGED},
    )
)
add(
    Solver(
        "dpmpp-sde",
        dpmpp_sde,
        "DPM-Solver++ 2S on the SDE, noise in both calls",
        "k-diffusion (code), after Lu et al. 2022, arXiv 2211.01095",
        order=1,
        nfe=2,
        stochastic=True,
        options={**_ANCESTRAL, "r": 0.5, "schedule": None, "anchored": None},
        lean={"anchored": False},
    )
)
add(
    Solver(
        "flow-heun",
        flow_heun,
        "Heun's method in t on the velocity of a rectified flow",
        "Lipman et al. 2022, arXiv 2210.02747; Liu, Gong, Liu 2022, arXiv 2209.03003",
        order=2,
        nfe=2,
        options={"anchored": False},
    )
)
