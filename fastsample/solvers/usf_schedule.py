"""Documents of the unified sampling framework: per-step choices of a multistep solver as plain JSON values.

    {"format": "fastsample usf schedule", "version": 1,
     "timesteps": null or [noisy, ..., clean],            steps + 1 numbers, see ``make_path``
     "afs": "none", "zero-x0" or "average-x0",            the first call is replaced by a guess
     "steps": [{"form": "x0" or "eps", "order": 2, "start": -1,
                "derivatives": [{"points": [-2], "relaxation": null, "coefficient": 0.0}],
                "corrector": null or "pseudo" or {"order": 3, "start": -2, "derivatives": [...]}}]}

Points are numbered from the newest, -1.  ``derivatives`` has one entry per derivative 1 .. order - 1: the points whose
differences to the start give it, and a relaxation of the first one.
"""

from __future__ import annotations

import json
import math
import os
from collections.abc import Mapping, Sequence
from pathlib import Path as File
from typing import Any

import numpy as np

from fastsample.path import Path
from fastsample.schedules import Schedule, make_schedule

FORMAT, VERSION = "fastsample usf schedule", 1
RELAXATIONS = ("dpmsolver-2", "unipc-bh1", "unipc-bh2", "0.5exp", "-0.5exp", "linear")
PUBLISHED = {"noise_prediction": "eps", "data_prediction": "x0", "dpmsolver_v3_prediction": "v3"}
Document = dict[str, Any]


def load(source: str | os.PathLike[str] | Mapping[str, Any]) -> Document:
    """A checked document from JSON text, a mapping, or a file: JSON, or one of the published torch files.

    The published format (the decisions of github.com/thu-nics/USF: lists ``orders``, ``prediction_types``, ...) is
    recognised and translated; torch files are read without running code of theirs.  ``skip_coefficients`` (factors
    inside the authors' networks) are kept under ``"skip_coefficients"`` and not used.

    Raises ``ValueError`` for anything else, with the place in the document.
    """
    content: Any = source
    if isinstance(source, (str, os.PathLike)) and not (isinstance(source, str) and source.lstrip().startswith("{")):
        file = File(source)
        if not file.is_file():
            raise ValueError(f"schedule: got {str(source)!r}, allowed are JSON text, a document or an existing file")
        content = _torch(file) if file.suffix in (".pt", ".pth") else file.read_text()
    if isinstance(content, str):
        try:
            content = json.loads(content)
        except json.JSONDecodeError as error:
            raise ValueError(f"schedule: not JSON ({error})") from None
    if isinstance(content, (list, tuple)) and content:  # published with their score
        content = content[0]
    if not isinstance(content, Mapping):
        raise ValueError(f"schedule: got {type(content).__name__}, allowed is an object with 'steps'")
    return check(_translated(content) if "prediction_types" in content else content)


def _torch(file: File) -> Any:
    import torch

    scalar = np._core.multiarray.scalar if hasattr(np, "_core") else np.core.multiarray.scalar  # type: ignore[attr-defined]
    safe: list[Any] = [(scalar, "numpy.core.multiarray.scalar"), scalar, np.dtype, type(np.dtype(np.float64))]
    try:
        with torch.serialization.safe_globals(safe):
            return torch.load(file, map_location="cpu", weights_only=True)
    except Exception as error:
        raise ValueError(f"schedule: {file} is not a file of plain values ({type(error).__name__}: {error})") from None


def _translated(content: Mapping[str, Any]) -> Document:
    def derivatives(items: Any) -> list[Document]:
        made = []
        for item in items or []:
            count, points = int(str(item["estimate"]).rpartition("_")[2]), item.get("active_points")
            points = [-2 - j for j in range(count)] if points is None else [int(p) for p in points]
            if len(points) != count:
                raise ValueError(f"schedule: {item['estimate']!r} with points {points}")
            if count:  # "Difference_0" of a first-order step says nothing
                relaxation = item.get("relaxation")
                made.append(
                    {
                        "points": points,
                        "relaxation": None if relaxation == "no_relaxation" else relaxation,
                        "coefficient": float(item.get("relaxation_coefficient", 0.0)),
                    }
                )
        return made

    try:
        afs = content.get("afs", "no_afs")
        steps = []
        lists = [content[k] for k in ("orders", "prediction_types", "start_points", "derivative_types")]
        for order, form, start, items, fix in zip(*lists, content["corrector_types"], strict=True):
            corrector = None
            if fix["type"] != "no_corrector":
                # "implicit" behaves like "pseudo" in the authors' program
                corrector = {
                    "order": int(fix["taylor_order"]),
                    "start": int(fix["start_point"]),
                    "derivatives": derivatives(fix["derivative_type"]),
                }
            step = {"form": PUBLISHED.get(form, form), "order": int(order), "start": int(start)}
            steps.append({**step, "derivatives": derivatives(items), "corrector": corrector})
        made: Document = {
            "timesteps": [float(t) for t in content["timesteps"]],
            "afs": {"no_afs": "none", "zero_x0": "zero-x0", "average_x0": "average-x0"}.get(afs, afs),
            "steps": steps,
        }
        if content.get("skip_coefficients") is not None:
            made["skip_coefficients"] = [float(v) for v in content["skip_coefficients"]]
    except (KeyError, TypeError, AttributeError) as error:
        raise ValueError(f"schedule: a damaged document ({type(error).__name__}: {error})") from None
    return made


def check(content: Mapping[str, Any]) -> Document:
    """The document with every default written out.  Raises ``ValueError`` with the place of what is not allowed."""
    _keys("schedule", content, ("format", "version", "timesteps", "afs", "steps", "skip_coefficients"))
    if content.get("format", FORMAT) != FORMAT or content.get("version", VERSION) != VERSION:
        raise ValueError(f"schedule: got {content.get('format')!r} {content.get('version')!r}, allowed is {FORMAT!r} 1")
    steps = content.get("steps")
    if not isinstance(steps, (list, tuple)) or not steps:
        raise ValueError(f"steps: got {steps!r}, allowed is a list of at least one step")
    times = content.get("timesteps")
    if times is not None:
        times = [float(t) for t in times]
        if len(times) != len(steps) + 1 or not all(math.isfinite(t) for t in times):
            raise ValueError(f"timesteps: got {len(times)} numbers for {len(steps)} steps, allowed are steps + 1")
    afs = content.get("afs", "none")
    if afs not in ("none", "zero-x0", "average-x0"):
        raise ValueError(f"afs: got {afs!r}, allowed are none, zero-x0, average-x0")
    checked = [_step(i, step) for i, step in enumerate(steps)]
    more = {"skip_coefficients": list(content["skip_coefficients"])} if "skip_coefficients" in content else {}
    return {"format": FORMAT, "version": VERSION, "timesteps": times, "afs": afs, "steps": checked, **more}


def _step(i: int, step: Any) -> Document:
    place = f"steps[{i}]"
    _keys(place, step, ("form", "order", "start", "derivatives", "corrector"))
    form = step.get("form", "x0")
    if form == "v3":
        raise ValueError(
            f"{place}: form 'v3' (DPM-Solver-v3) needs coefficients of its own for every element of a sample, made of "
            "the statistics of a network; a row has numbers only.  Allowed are x0, eps"
        )
    if form not in ("x0", "eps"):
        raise ValueError(f"{place}.form: got {form!r}, allowed are x0, eps")
    made = _update(place, step, i + 1)
    corrector = step.get("corrector")
    if corrector == "pseudo":  # the same with the new point: start one further back, one order more
        moved = [[p - 1 for p in item["points"]] + [-1] for item in made["derivatives"]]
        moved = [*moved, moved[-1] if moved else [-1]]
        items = [{"points": points} for points in moved]
        corrector = {"order": made["order"] + 1, "start": made["start"] - 1, "derivatives": items}
    if corrector is not None:
        _keys(f"{place}.corrector", corrector, ("order", "start", "derivatives"))
        corrector = _update(f"{place}.corrector", corrector, i + 2)
    return {"form": form, **made, "corrector": corrector}


def _update(place: str, update: Mapping[str, Any], points: int) -> Document:
    order, start = update.get("order", 1), update.get("start", -1)
    if not isinstance(order, int) or not 1 <= order <= 6:
        raise ValueError(f"{place}.order: got {order!r}, allowed are 1 to 6")
    _point(f"{place}.start", start, points)
    items = update.get("derivatives")
    if items is None:
        items = [{"points": [-2 - j for j in range(order - 1)]}] * (order - 1)
    if not isinstance(items, (list, tuple)) or len(items) != order - 1:
        raise ValueError(f"{place}.derivatives: got {items!r}, allowed is a list of {order - 1}")
    made = []
    for k, item in enumerate(items, 1):
        where = f"{place}.derivatives[{k - 1}]"
        _keys(where, item, ("points", "relaxation", "coefficient"))
        relaxation, coefficient = item.get("relaxation"), float(item.get("coefficient", 0.0))
        if relaxation not in (None, *RELAXATIONS) or not math.isfinite(coefficient):
            raise ValueError(f"{where}.relaxation: got {relaxation!r}, allowed are null, {', '.join(RELAXATIONS)}")
        used = item.get("points", ())
        for point in used:
            _point(f"{where}.points", point, points)
        if len(used) < k or len({*used, start}) != len(used) + 1:
            raise ValueError(f"{where}.points: got {used!r}, allowed are at least {k} different ones without {start}")
        made.append({"points": list(used), "relaxation": relaxation, "coefficient": coefficient})
    return {"order": order, "start": start, "derivatives": made}


def _point(place: str, point: Any, points: int) -> None:
    if not isinstance(point, int) or isinstance(point, bool) or not -points <= point <= -1:
        raise ValueError(f"{place}: got point {point!r}, there are -1 to {-points}")


def _keys(place: str, content: Any, allowed: Sequence[str]) -> None:
    if not isinstance(content, Mapping):
        raise ValueError(f"{place}: got {type(content).__name__}, allowed is an object")
    unknown = set(content) - set(allowed)
    if unknown:
        raise ValueError(f"{place}: got {', '.join(sorted(map(str, unknown)))}, allowed are {', '.join(allowed)}")


def make_path(document: Mapping[str, Any], schedule: str | Schedule) -> Path:
    """The levels of a schedule at the document's ``timesteps``, its times.  Raises ``ValueError`` without them."""
    if document.get("timesteps") is None:
        raise ValueError("timesteps: the document has none; choose the levels of the path yourself")
    from fastsample.grids import make_path as levels

    return levels(make_schedule(schedule), document["timesteps"])
