"""Work-precision: quality and error of several solvers over the number of network calls, as CSV and plot."""

from __future__ import annotations

import csv
import json
import math
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from . import info, report
from .choosing import plan_for
from .job import _device, _labels, _shape
from .loop import sample
from .models.loading import load_model
from .models.mixture import GaussianMixture
from .models.network import Network
from .plan import Plan
from .solvers import registry

REFERENCE = "dpmpp-2m"
REFERENCE_STEPS = 400
REFERENCE_SAMPLES = 256


@dataclass(frozen=True)
class Measured:
    """One point: a solver at a budget of network calls.

    ``quality``: digit-FID, or for the mixture the energy distance to exact samples; NaN where there is no measure.
    ``error``: root mean square distance per element to the fine solution from the same noise; NaN for solvers with
    noise, whose paths differ.  ``seconds``: of the whole run.
    """

    solver: str
    options: str
    budget: int
    nfe: int
    steps: int
    number: int
    quality: float
    error: float
    seconds: float


def compare(
    *,
    model_name: str,
    solvers: Sequence[str],
    nfe: Sequence[int],
    number: int,
    seed: int,
    guidance: float | None,
    schedule: str | None,
    grid: str | None,
    out: Path,
    device: str | None,
    batch: int,
    say: Callable[[str], Any],
) -> list[Measured]:
    """Do the job of ``fastsample compare`` and return what was measured.

    ``solvers``: names, each with options behind a colon if any: ``"ddim:eta=0.5+use_clipped=true"``.  ``nfe``: budgets
    of network calls; a solver takes the most steps that fit.  Raises ``ValueError`` for unknown names, options or
    budgets, before anything is sampled.
    """
    if number < 2 or batch < 1:
        raise ValueError(f"-n, --batch: got {number}, {batch}, need at least 2 samples in batches of 1 or more")
    if not nfe or min(nfe) < 1:
        raise ValueError(f"--nfe: got {list(nfe)}, need whole numbers of 1 or more")
    where = _device(device)
    network = load_model(model_name, where)
    shape = _shape(network, None)
    labels = _labels(network, number, None, guidance, where)
    asked = [_parse(text) for text in solvers]
    common = {"schedule": schedule, "grid": grid, "guidance": guidance}
    jobs = [(name, options, b, _plan(network, name, options, b, common)) for name, options in asked for b in nfe]
    quality, what = _quality(model_name, shape, number)

    def draw(plan: Plan, count: int) -> Tensor:
        parts = []
        for first in range(0, count, batch):
            ids = torch.arange(first, min(first + batch, count))
            cond = None if labels is None else labels[first : first + len(ids)]
            parts.append(sample(network, (len(ids), *shape), plan=plan, seed=seed, sample_ids=ids, cond=cond))
        return torch.cat(parts)

    with report.output_folder(out) as folder:
        few = min(number, REFERENCE_SAMPLES)
        fine = draw(plan_for(network, solver=REFERENCE, steps=REFERENCE_STEPS, **common), few)  # type: ignore[arg-type]
        rows = []
        for name, options, budget, plan in jobs:
            if plan is None:
                say(f"{name:24} does not run in {budget} network calls")
                continue
            begin = time.perf_counter()
            x = draw(plan, number)
            seconds = time.perf_counter() - begin
            error = math.nan if plan.draws > 1 else float((x[:few] - fine).double().square().mean().sqrt())
            text = json.dumps(options) if options else ""
            steps = plan.path.steps
            rows.append(Measured(name, text, budget, plan.nfe, steps, number, quality(x), error, seconds))
            say(f"{name:24} {plan.nfe:>4} calls  {what} {rows[-1].quality:10.4f}  error {error:.3e}  {seconds:7.1f} s")
        _write(folder / "compare.csv", rows)
        facts = {"model": model_name, "seed": seed, "guidance": guidance, "reference": REFERENCE, "facts": info.facts()}
        report.write_json(folder / "report.json", {**facts, "reference_steps": REFERENCE_STEPS, "quality": what})
        _plot(folder / "compare.png", rows, model_name, what)
    for file in ("compare.png", "compare.csv"):
        say(f"{out / file}")
    return rows


def _parse(text: str) -> tuple[str, dict[str, Any]]:
    name, _, tail = text.partition(":")
    options: dict[str, Any] = {}
    for pair in filter(None, tail.split("+")):
        key, equals, value = pair.partition("=")
        if not equals:
            raise ValueError(f"--solvers: got {text!r}, options are written name:option=value+option=value")
        try:
            options[key] = json.loads(value)
        except json.JSONDecodeError:
            options[key] = value
    registry.complete(registry.find(name), options)
    return registry.find(name).name, options


def _plan(network: Network, name: str, options: dict[str, Any], budget: int, common: dict[str, Any]) -> Plan | None:
    """The plan of the most steps whose network calls fit into the budget; None if there is none."""
    for steps in range(budget + 1, 0, -1):
        try:
            plan = plan_for(network, solver=name, steps=steps, **common, **options)
        except ValueError:
            if steps == 1:
                raise
            continue
        if plan.nfe <= budget:
            return plan
    return None


def _quality(model_name: str, shape: tuple[int, ...], number: int) -> tuple[Callable[[Tensor], float], str]:
    if shape == (1, 28, 28):
        from .metrics import digit_fid

        return lambda x: digit_fid(x.float().cpu()), "digit-FID"
    if model_name == "mixture":
        exact = GaussianMixture.ring().sample(max(number, 2000), seed=2**31).double()
        return lambda x: energy_distance(x.double().cpu(), exact), "energy distance"
    return lambda x: math.nan, "no measure"


def energy_distance(x: Tensor, y: Tensor) -> float:
    """``2 E|X - Y| - E|X - X'| - E|Y - Y'|`` of samples ``(N, ...)`` and ``(M, ...)``, unbiased; 0 for equal laws."""
    x, y = x.flatten(1), y.flatten(1)
    n, m = len(x), len(y)
    within = torch.cdist(x, x).sum() / (n * (n - 1)) + torch.cdist(y, y).sum() / (m * (m - 1))
    return float(2.0 * torch.cdist(x, y).mean() - within)


def _write(path: Path, rows: Sequence[Measured]) -> None:
    with path.open("w", newline="") as file:
        writer = csv.DictWriter(file, [f.name for f in fields(Measured)])
        writer.writeheader()
        writer.writerows(asdict(row) for row in rows)


def _plot(path: Path, rows: Sequence[Measured], model_name: str, what: str) -> None:
    try:
        import matplotlib
    except ImportError as error:
        raise ImportError("the plot needs matplotlib: pip install 'fastsample[plot]'") from error
    matplotlib.use("Agg")
    from matplotlib import pyplot as plt

    panels = [("quality", what), ("error", "rms distance to the fine solution")]
    panels = [p for p in panels if any(math.isfinite(getattr(row, p[0])) for row in rows)]
    figure, axes = plt.subplots(1, max(1, len(panels)), figsize=(6.0 * max(1, len(panels)), 4.5), squeeze=False)
    labels = list(dict.fromkeys((row.solver, row.options) for row in rows))
    for axis, (name, title) in zip(axes[0], panels, strict=False):
        for number, (solver, options) in enumerate(labels):
            points = [(r.nfe, getattr(r, name)) for r in rows if (r.solver, r.options) == (solver, options)]
            points = [(n, value) for n, value in points if math.isfinite(value) and value > 0]
            if points:
                marker = "osv^D*PX"[number % 8]
                axis.plot(
                    *zip(*points, strict=True), marker=marker, color=f"C{number}", label=f"{solver} {options}".strip()
                )
        axis.set(xscale="log", yscale="log", xlabel="network calls", ylabel=title, title=model_name)
        axis.grid(True, which="both", alpha=0.3)
        axis.legend()
    figure.tight_layout()
    figure.savefig(path, dpi=110)
    plt.close(figure)
