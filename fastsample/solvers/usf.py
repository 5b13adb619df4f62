"""Unified sampling framework: any document of per-step choices compiled to rows.

One update goes from a start point s to the time t with ``h = lambda_t - lambda_s`` on one form M of the prediction:

    eps   x_t = (alpha_t/alpha_s) x_s - sigma_t sum_k h^{k+1} phi_{k+1}(h) M_s^{(k)}
    x0    x_t = (sigma_t/sigma_s) x_s + alpha_t sum_k h^{k+1} phi_{k+1}(-h) M_s^{(k)}

with derivatives M^{(k)} from differences of earlier points.  A corrector is the same update with the point that it
corrects among them; it is folded into the row of the next step, since it waits for that step's call.  Every state of
the past is the present one plus a combination of predictions, so that predictions are all that a row keeps.
Liu, Ning, Yang, Wang 2024, arXiv 2312.07243.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from fastsample.path import Level, Path, step_size
from fastsample.solvers.calculus import phi, solve_nodes
from fastsample.solvers.registry import Solver, add
from fastsample.solvers.step import Mix, Step
from fastsample.solvers.usf_known import KNOWN, known
from fastsample.solvers.usf_schedule import check, load, make_path

__all__ = ["KNOWN", "check", "known", "load", "make_path", "usf"]

CLOSE = 1e-9  # points nearer than this in lambda make the differences singular
Atom = str | tuple[str, int]
Sum = dict[Atom, float]
"""Weights of ``"X"`` (what the newest call saw) and of predictions: ``("eps", j)``, ``("x0", j)`` of the call at j."""


@dataclass(frozen=True)
class Point:
    level: Level
    state: Sum
    made: Mapping[str, Sum]


def usf(path: Path, *, schedule: str | Mapping[str, Any], afs: str | None) -> list[Step]:
    """The rows of a document (``load``, ``check``) or of a solver known by name (``KNOWN``) on a path of as many steps.

    The path decides the levels; ``make_path(document, schedule)`` makes the one that the document was searched for.
    ``afs`` replaces that of the document.  "zero-x0" asks nothing at the first level: there eps_hat is taken to be
    x (variance preserving) or x / sigma.
    """
    document = known(schedule, path.steps) if isinstance(schedule, str) else load(schedule)
    if afs is not None:
        document = check({**document, "afs": afs})
    if document["afs"] == "average-x0":
        raise ValueError(
            "afs: 'average-x0' starts from the mean of the data, one number per element, which a row does not have; "
            "pass afs='none' and a network that answers its first call with that mean as x0_hat"
        )
    if len(document["steps"]) != path.steps:
        raise ValueError(f"schedule: has {len(document['steps'])} steps, the path has {path.steps}")
    if path.reverse or path.alpha[0] == 0.0:
        raise ValueError("path: 'usf' runs from noise to data and needs alpha > 0")
    levels = path.levels()
    for i in range(path.steps):
        if levels[i + 1].sigma > 0 and abs(step_size(levels[i], levels[i + 1])) < CLOSE:
            raise ValueError(f"path: levels {i} and {i + 1} are the same; differences of predictions do not exist")
    return _rows(levels, document)


def _rows(levels: Sequence[Level], document: Mapping[str, Any]) -> list[Step]:
    guessed, n = document["afs"] != "none", len(levels) - 1
    points: list[Point] = []
    rows: list[tuple[int, Sum]] = []  # level of the call, the new state
    scale, correct, depth = 1.0, None, max(_depth(step) for step in document["steps"])
    for i in range(n + 1):
        asked = not (i == 0 and guessed) and (i < n or correct is not None)
        if asked or i == 0:
            made: dict[str, Sum] = {form: {(form, i): 1.0} for form in ("eps", "x0")} if asked else _guess(levels[0])
            points = [*points, Point(levels[i], {"X": 1.0}, made)][-depth:]
        state: Sum = {"X": 1.0}
        if correct is not None:
            state = _moved(points, correct, levels[i])
            points[-1] = replace(points[-1], state=state)
        if i == n:
            if correct is not None:
                rows.append((n, state))
            break
        step = document["steps"][i]
        new = _moved(points, step, levels[i + 1])
        correct = None if step["corrector"] is None else {"form": step["form"], **step["corrector"]}
        if asked:
            rows.append((i, new))
        else:
            scale = new["X"]
        if i + 1 < n or correct is not None:
            points = [_shifted(point, new) for point in points]
    if not rows:
        raise ValueError("afs: a run of one step without a corrector would never ask its network")
    return _steps(levels, rows, scale)


def _depth(step: Mapping[str, Any]) -> int:
    """How many of the newest points the updates of a step look at."""
    updates = [step, *([step["corrector"]] if step["corrector"] else [])]
    numbers = [j for u in updates for item in u["derivatives"] for j in item["points"]]
    return -min(int(j) for j in (*numbers, *(u["start"] for u in updates)))


def _guess(level: Level) -> dict[str, Sum]:
    alpha, sigma, _ = level
    preserving = abs(math.hypot(alpha, sigma) - 1.0) < 1e-6
    eps = 1.0 if preserving else 1.0 / sigma
    return {"eps": {"X": eps}, "x0": {"X": (1.0 - sigma) / alpha if preserving else 0.0}}


def _moved(points: Sequence[Point], update: Mapping[str, Any], end: Level) -> Sum:
    """The update of the framework from ``points`` to the level ``end``."""
    form, order, base = update["form"], update["order"], points[update["start"]]
    start = base.level
    if end.sigma == 0.0:
        if form == "eps" or order > 1:
            raise ValueError("path: ends at sigma = 0, where the last step must have form x0 and order 1")
        return _combined([(end.alpha, base.made["x0"])])
    h = step_size(start, end)
    z = h if form == "eps" else -h
    phis = phi(z, max(order, 2))
    factor = (-end.sigma if form == "eps" else end.alpha) * h
    a = end.alpha / start.alpha if form == "eps" else end.sigma / start.sigma
    parts = [(a, base.state), (factor * phis[0], base.made[form])]
    for k, item in enumerate(update["derivatives"], 1):
        others = [points[j] for j in item["points"]]
        gaps = [step_size(start, other.level) for other in others]
        if any(abs(gap - g) < CLOSE for i, gap in enumerate(gaps) for g in (0.0, *gaps[:i])):
            raise ValueError(f"path: two of the points {item['points']} of a derivative have the same level")
        # h^k M^(k) = sum_j beta_j M_j with sum_j beta_j s_j^r = r! for r = k and 0 for every other r
        betas = solve_nodes([gap / h for gap in gaps], [math.factorial(k) * (r == k) for r in range(len(gaps) + 1)])
        weight = factor * phis[k] * (_relaxed(item, z, h, phis) if k == 1 else 1.0)
        parts += [(weight * b, other.made[form]) for b, other in zip(betas, (base, *others), strict=True)]
    return _combined(parts)


def _relaxed(item: Mapping[str, Any], z: float, h: float, phis: Sequence[float]) -> float:
    kind = item["relaxation"]
    if kind in ("dpmsolver-2", "unipc-bh2"):  # z E / (2 (E - z)) with E = e^z - 1 = z phi_1, E - z = z^2 phi_2
        return 0.5 * phis[0] / phis[1]
    if kind == "unipc-bh1":
        return 0.5 / phis[1]
    if kind == "linear":
        return 1.0 + float(item["coefficient"]) * h
    return 1.0 if kind is None else 1.0 + (0.5 if kind == "0.5exp" else -0.5) * math.expm1(z)


def _combined(parts: Sequence[tuple[float, Sum]]) -> Sum:
    total: Sum = {}
    for factor, part in parts:
        for atom, weight in part.items():
            total[atom] = total.get(atom, 0.0) + factor * weight
    return total


def _shifted(point: Point, new: Sum) -> Point:
    """The point told by the next state, of which ``new`` says what it is made of."""
    gain = new["X"]
    old = {atom: -weight / gain for atom, weight in new.items() if atom != "X"}
    old["X"] = 1.0 / gain

    def told(part: Sum) -> Sum:
        rest = {atom: weight for atom, weight in part.items() if atom != "X"}
        return _combined([(1.0, rest), (part["X"], old)]) if part.get("X") else rest

    return Point(point.level, told(point.state), {form: told(part) for form, part in point.made.items()})


def _steps(levels: Sequence[Level], rows: Sequence[tuple[int, Sum]], scale: float) -> list[Step]:
    last: dict[Atom, int] = {}  # the last row that reads a prediction
    for r, (_, new) in enumerate(rows):
        last.update((atom, r) for atom, weight in new.items() if atom != "X" and weight)
    slots: dict[Atom, str] = {}
    free_from: list[int] = []
    steps = []
    for r, (i, new) in enumerate(rows):
        at = levels[i]
        here = [form for form in ("eps", "x0") if (form, i) in last]
        # where both are needed, the one that gives the other without loss of digits
        form = here[0] if len(here) == 1 else ("eps" if at.sigma < at.alpha else "x0")
        other: Mix = {"x": 1 / at.sigma, 0: -at.alpha / at.sigma} if form == "x0" else {"x": 1 / at.alpha, 0: -at.rho}
        mix: dict[str | int, float] = {}
        for atom, weight in new.items():
            source: Mix = {"x": 1.0} if atom == "X" else {0: 1.0} if atom == (form, i) else other
            if atom != "X" and atom[1] != i:
                source = {slots[atom]: 1.0} if weight else {}
            for name, share in source.items():
                mix[name] = mix.get(name, 0.0) + weight * share
        keep: dict[str, Mix] = {}
        for kept in here:
            if last[kept, i] > r:
                ready = [k for k, since in enumerate(free_from) if since <= r]
                slot = ready[0] if ready else len(free_from)
                free_from[slot : slot + 1] = [last[kept, i]]
                slots[kept, i] = f"M{slot + 1}"
                keep[slots[kept, i]] = {0: 1.0} if kept == form else other
        saved = {name: w for name, w in mix.items() if isinstance(name, str) and name != "x"}
        steps.append(Step(i, at, mix.get("x", 0.0), (mix.get(0, 0.0),), form=form, saved=saved, keep=keep))
    return [replace(steps[0], scale=scale), *steps[1:]]


add(
    Solver(
        "usf",
        usf,
        "any document of the unified sampling framework (schedule=...), or a solver it knows by name",
        "Liu, Ning, Yang, Wang 2024, arXiv 2312.07243",
        order=2,
        options={"schedule": "dpmpp-2m", "afs": None},
        ends="clean",
    )
)
