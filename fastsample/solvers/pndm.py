"""PNDM and PLMS: linear multistep on eps_hat through the DDIM step, after a Runge-Kutta or Heun start.

With the transfer T(x, D; s -> s') = a x + g D of DDIM from a level s to s', a step of the fourth-order start is
``y2 = T_mid(x, D1), y3 = T_mid(x, D2), y4 = T_end(x, D3), x' = T_end(x, (D1 + 2 D2 + 2 D3 + D4) / 6)`` and only D1
enters the history.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import pairwise
from typing import Any

from fastsample.path import Level, Path
from fastsample.solvers.deis import FIXED, ddim
from fastsample.solvers.first_order import identity, same, transfer
from fastsample.solvers.predictor_corrector import check_count, check_flag, check_forward
from fastsample.solvers.registry import Solver, add, check_choice
from fastsample.solvers.stages import Between, Stage, stages
from fastsample.solvers.step import Step

START = 3  # steps of the fourth-order start
Middles = Sequence[Sequence[float]]


def pndm(
    path: Path,
    *,
    start: str,
    order: int,
    form: str,
    middles: Middles | None,
    schedule: str | None,
    anchored: bool,
) -> list[Step]:
    """Pseudo linear multistep with the weights of equal steps.

    Args:
        start: "heun": the first step is made again with the mean of its two ends' values (PLMS, S-PNDM); "runge-kutta":
            the first three steps have four calls each (F-PNDM).
        order: number of values of the multistep, 1 to 4.
        form: what the weights combine: "eps" or "v" (as diffusers does with v networks); the combination is then
            turned into eps_hat at the start of the step.
        middles: None, or [alpha, sigma, t] of the middles of the first three steps: three, or six when the second and
            third call of a step see two of them (rounded table times of diffusers).
        schedule: None, or the name of the schedule, for middles at half of the time; without both the middle is that
            of the log-SNR.
        anchored: for callers that edit the state between the calls of the start: keep the state of its beginning.
    """
    check_choice("start", start, ("heun", "runge-kutta"))
    check_count("order", order, 1, 4)
    check_choice("form", form, ("eps", "v"))
    check_flag("anchored", anchored)
    inside = _middles(path, middles, schedule) if start == "runge-kutta" else []
    steps: list[Step] = []
    known: list[int] = []  # calls whose value the multistep uses, newest first
    rk = 0
    for i, (here, there) in enumerate(pairwise(check_forward(path))):
        if same(here, there):
            steps.append(identity(i, here, form))
            known = []
            continue
        if here.alpha == 0.0 and form == "eps":
            steps.append(transfer(i, here, there))
            continue
        known = [len(steps), *known]
        if start == "runge-kutta" and rk < START and there.sigma > 0.0:
            mid2, mid3 = inside[i]
            rows = [(mid2, (1.0,)), (mid3, (0.0, 1.0)), (there, (0.0, 0.0, 1.0))]
            inner = [_transfer(form, here, to, weights) for to, weights in rows]
            steps += stages(i, here, inner, _transfer(form, here, there, (1 / 6, 1 / 3, 1 / 3, 1 / 6)), form, anchored)
            rk += 1
            continue
        if start == "heun" and len(known) == 1 and there.sigma > 0.0:
            again = [_transfer(form, here, there, (1.0,))]
            steps += stages(i, here, again, _transfer(form, here, there, (0.5, 0.5)), form, anchored)
            continue
        weights = FIXED[min(len(known), order) - 1]
        row = _transfer(form, here, there, weights)
        b = [0.0] * (1 + len(steps) - known[len(weights) - 1])
        for call, weight in zip(known, row.weights, strict=False):
            b[len(steps) - call] = weight
        steps.append(Step(i, here, row.a, tuple(b), form=form))
    return steps


def _transfer(form: str, start: Level, end: Level, weights: Sequence[float]) -> Stage:
    """DDIM from start to end on a mix of D; v_hat: eps_hat = (sigma x + alpha v_hat) / (alpha^2 + sigma^2)."""
    if form == "eps":
        a, g = ddim(start, end)
    else:  # the DDIM step on v_hat, which exists at alpha = 0 too
        norm = start.alpha**2 + start.sigma**2
        a = (start.alpha * end.alpha + start.sigma * end.sigma) / norm
        g = (start.alpha * end.sigma - start.sigma * end.alpha) / norm
    return Stage(end, a, [g * weight for weight in weights])


def _middles(path: Path, middles: Middles | None, schedule: str | None) -> list[tuple[Level, Level]]:
    """Two levels per step: where the second and the third call of the start are made."""
    if middles is None:
        between, found = Between(path, schedule), []
        for i, (here, there) in enumerate(pairwise(path.levels())):
            if not math.isfinite(here.lam + there.lam) or same(here, there):
                found.append((here, here))  # no such step
                continue
            lam = 0.5 * (here.lam + there.lam)
            if between.schedule is not None:
                times = between.schedule.t_of_lam([here.lam, there.lam])
                lam = float(between.schedule.lam(0.5 * times.sum()))
            found.append((between(i, lam),) * 2)
        return found
    try:
        levels = [Level(*(float(value) for value in level)) for level in middles]
        if not all(math.isfinite(value) for level in levels for value in level):
            raise ValueError
    except (TypeError, ValueError):
        levels = []
    if len(levels) not in (START, 2 * START):
        raise ValueError(f"middles: got {middles!r}, allowed are None, or three or six lists [alpha, sigma, t]")
    pairs = list(zip(levels[::2], levels[1::2], strict=True)) if len(levels) == 2 * START else [(m, m) for m in levels]
    for (here, there), pair in zip(pairwise(path.levels()), pairs, strict=False):
        if not all(here.lam <= middle.lam <= there.lam for middle in pair):
            raise ValueError(f"middles: got {pair} for the step from {here} to {there}, allowed are levels inside")
    return pairs + [pairs[-1]] * path.steps


def _register(name: str, aliases: tuple[str, ...], about: str, start: str, order: int, measured: int) -> None:
    options: dict[str, Any] = {"form": "eps", "anchored": False}
    if start == "runge-kutta":
        options.update(middles=None, schedule=None)
    else:
        options["order"] = order

    def steps(path: Path, **given: Any) -> list[Step]:
        return pndm(path, **{"start": start, "order": order, "middles": None, "schedule": None, **given})

    paper = "Liu, Ren, Lin, Zhao 2022, arXiv 2202.09778"
    add(Solver(name, steps, about, paper, order=measured, aliases=aliases, options=options))


_register(
    "f-pndm", ("pndm",), "four values of eps_hat after three Runge-Kutta steps (N + 9 calls)", "runge-kutta", 4, 2
)
_register("s-pndm", (), "two values of eps_hat after a Heun step (N + 1 calls)", "heun", 2, 2)
_register("plms", (), "up to four values of eps_hat after a Heun step (N + 1 calls)", "heun", 4, 2)
