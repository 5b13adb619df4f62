"""What the benchmark of quality runs: every sampler that the shipped digit network can be sampled with, per budget."""

from __future__ import annotations

import functools
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from fastsample import procedures, sample
from fastsample.compare import _plan
from fastsample.models.loading import load_model
from fastsample.models.network import Network
from fastsample.plan import Plan
from fastsample.solvers import registry

BUDGETS = (5, 10, 20)  # network calls per sample
LONGER = {50: ("ddim", "ddpm", "dpmpp-2m", "sde-dpmpp-2m", "sa"), 100: ("ddim", "ddpm")}
QUICK = ("ddim", "dpmpp-2m", "unipc", "sde-dpmpp-2m", "sa")
COMMON = {"schedule": None, "grid": None, "guidance": None}
WINDOWS = ({"window": 200}, {"window": 25})  # Poisson midpoint of 1000 fine steps, cut where it would fly off
RTOL = (0.5, 0.1, 0.02)  # of samplers that choose their steps
KERNELS = ({"steps": 5, "inner": 1}, {"steps": 5, "inner": 3}, {"steps": 10, "inner": 4})  # segments, inner moves
LADDER = ({"steps": 50, "budget": 0.25}, {"steps": 100, "budget": 0.25})


@dataclass(frozen=True)
class Job:
    """One point.  ``plan``: of a solver; a procedure has ``arguments`` of `sample` instead.

    ``noisy``: its samples depend on more noise than that of the start, so that no path can be compared.
    """

    name: str
    noisy: bool
    plan: Plan | None = None
    arguments: Mapping[str, Any] = field(default_factory=dict)

    @property
    def facts(self) -> dict[str, Any]:
        """What says which point this is, as JSON values."""
        if self.plan is None:
            return dict(self.arguments)
        return {"steps": self.plan.path.steps, "plan": self.plan.hash, **self.arguments}


@dataclass(frozen=True)
class Sampled:
    """Samples ``(N, 1, 28, 28)`` and how many calls of the network each took (of a ladder: worth of the last level)."""

    x: Tensor
    nfe: float


def network(device: str, kind: str = "") -> Network:
    """The shipped network, or the ladder of it; always the same one."""
    return _load(device, kind)


@functools.lru_cache(maxsize=4)
def _load(device: str, kind: str) -> Network:
    return load_model("digits", torch.device(device), view=kind)


def jobs(
    device: str, names: Sequence[str], budgets: Sequence[int], longer: bool, skipped: dict[str, str]
) -> Iterator[Job]:
    """All points of these samplers, of some of them with ``LONGER`` budgets too.

    Those that cannot be made are put into ``skipped`` with the reason.
    """
    for name in names:
        procedure = procedures.get(name)
        if procedure is not None or name == "poisson-midpoint-shared":
            try:
                yield from _special(device, name)
            except ValueError as error:
                skipped[name] = str(error)
            continue
        noisy = registry.find(name).stochastic
        wanted = [*budgets, *(nfe for nfe, chosen in LONGER.items() if longer and name in chosen)]
        for budget in wanted:
            try:
                plan = _plan(network(device), name, {}, budget, COMMON)
            except ValueError as error:
                skipped[f"{name}, {budget} calls"] = str(error)
                continue
            if plan is None:
                skipped[f"{name}, {budget} calls"] = "does not run in so few"
            else:
                yield Job(name, noisy or plan.draws > 1, plan)


def _special(device: str, name: str) -> Iterator[Job]:
    """Samplers whose number of calls is not a matter of the number of steps alone."""
    from fastsample.choosing import plan_for

    if name == "poisson-midpoint-shared":
        for options in WINDOWS:
            yield Job(name, True, plan_for(network(device), solver=name, **options), options)
        return
    choices: Mapping[str, Sequence[Mapping[str, Any]]] = {
        "poisson-midpoint": WINDOWS,
        "dpm-adaptive": [{"rtol": r} for r in RTOL],
        "dpm-solver-adaptive": [{"rtol": r} for r in RTOL],
        "ml-em": LADDER,
        **{f"rtk-{kind}": KERNELS for kind in ("mala", "uld", "ula")},
    }
    if name not in choices:
        raise ValueError("this benchmark does not know how to choose the number of its calls")
    for options in choices[name]:
        yield Job(name, procedures.procedures()[name].stochastic, None, options)


def samplers() -> list[str]:
    """Names of all that take the digit network or its ladder, and make digits of noise."""
    plain = [name for name in registry.names("") if registry.find(name).ends != "inverse"]
    return plain + [name for name, entry in procedures.procedures().items() if entry.model in ("", "ladder")]


def draw(job: Job, number: int, seed: int, batch: int, device: str) -> Sampled:
    """Samples 0 to ``number - 1`` of a seed, with the labels 0 to 9 in turn, in batches."""
    procedure = procedures.get(job.name)
    model = network(device, procedure.model if procedure else "")
    parts, calls = [], 0.0
    for first in range(0, number, batch):
        ids = torch.arange(first, min(first + batch, number))
        stats: dict[str, Any] = {}
        how = {"solver": job.name, **job.arguments} if job.plan is None else {"plan": job.plan}
        labels = (ids % 10).to(device)
        shape = (len(ids), 1, 28, 28)
        parts.append(
            sample(model, shape, **how, seed=seed, sample_ids=ids, cond=labels, stats=stats, device=device).cpu()
        )
        calls += len(ids) * _calls(job, stats)
    return Sampled(torch.cat(parts), calls / number)


def _calls(job: Job, stats: Mapping[str, Any]) -> float:
    """Calls of the network per sample: of a ladder in calls of its last level, of the others as counted."""
    if "cost" in stats:
        return float(stats["cost"]) / float(stats["costs"][-1])
    if "nfe_per_sample" in stats:
        return float(stats["nfe_per_sample"])
    return float(stats["nfe"])
