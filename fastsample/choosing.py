"""What `sample` runs when it is told a solver's name: the path, the plan, or the beginning of a procedure."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

import numpy as np
from torch import Tensor

from . import procedures, remember
from .models.ladder import Ladder
from .models.network import Network
from .path import Path
from .plan import Plan, make_plan
from .protocol import Run

if TYPE_CHECKING:
    from .schedules import Schedule
    from .solvers.registry import Solver

SOLVER, SCHEDULE, STEPS = "dpmpp-2m", "vp-linear", 20  # of those who do not choose


def _first_step(start: int | float, steps: int) -> int:
    if isinstance(start, int):
        if not 0 <= start < steps:
            raise ValueError(f"start: got step {start}, allowed are 0..{steps - 1}")
        return start
    if not 0 < start <= 1:
        raise ValueError(f"start: got the fraction {start}, allowed are those in (0, 1]")
    return steps - max(1, round(start * steps))


def check_fit(plan: Plan, model: Any, network: Network) -> None:
    """Raise ``ValueError`` if a ready plan contradicts what the model says of itself."""
    whole = isinstance(model, Network) or callable(getattr(model, "network", None))  # a bare callable says nothing
    if whole or network.space is not None:
        _same_space(plan.solver, plan.parts == 2, network, plan.options)
    normalised = plan.path.normalised
    for name, made_for, default in (
        ("prediction", plan.prediction, ""),
        ("time", plan.options.get("time", "t"), ""),
        ("input_scaling", plan.options.get("input_scaling", "none"), "vp" if normalised else ""),
    ):
        says = getattr(network, name)
        known = whole or isinstance(getattr(model, name, None), str)
        if known and isinstance(made_for, str) and says != made_for and not {says, made_for} <= {default, "none"}:
            raise ValueError(f"plan: was made with {name}={made_for!r}, but the model says {says!r}; make it with that")


def plan_for(
    network: Network,
    *,
    solver: str | None = None,
    steps: int | None = None,
    schedule: Any = None,
    grid: Any = None,
    path: Path | None = None,
    guidance: Any = None,
    start: int | float | None = None,
    **options: Any,
) -> Plan:
    """The plan that `sample` runs for these arguments: one of an earlier call if all of them are equal by value."""
    from .solvers import registry

    entry = registry.find(solver or SOLVER)
    given = {"solver": solver or SOLVER, "steps": steps, "schedule": schedule, "grid": grid, "path": path}
    given |= {"guidance": guidance, "start": start, **options}
    facts = {name: getattr(network, name) for name in ("prediction", "time", "input_scaling", "space", "schedule")}
    facts["own_dtype"] = network.dtype is not None
    key = object() if entry.warns else (given, facts)  # a plan that warns does so every time
    return remember.plan(key, lambda: _make_plan(network, entry, **given))


def _make_plan(network: Network, entry: Solver, *, solver: str, guidance: Any, **choice: Any) -> Plan:
    path, _, options = _path_for(network, entry, **choice)
    return make_plan(solver, path, guidance=guidance, **_of_network(network, path), **options)


def _path_for(
    network: Network,
    entry: Solver | procedures.Procedure,
    *,
    steps: int | None,
    schedule: Any,
    grid: Any,
    path: Path | None,
    start: int | float | None,
    **options: Any,
) -> tuple[Path, Any, dict[str, Any]]:
    """The path of a choice, the schedule that it is of (None: it was given ready), and the options that are left."""
    steps = split_steps(entry, steps, options)
    if _same_space(entry.name, entry.model == "phase-space", network, options):
        options = {**network.space.options, **options}  # type: ignore[union-attr]  # just seen
        schedule = network.space if schedule is None and path is None else schedule
    if path is None:
        for known in (network.schedule, entry.usual.get("schedule"), SCHEDULE):
            schedule = known if schedule is None else schedule
        path = usual_path(entry.name, schedule, grid, steps)
    elif not (steps is None and schedule is None and grid is None):
        raise ValueError("path: got steps, schedule or grid too, which make a path of their own; give one of them")
    if start is not None:
        path = path[_first_step(start, path.steps) :]
    return path, schedule, options


def _same_space(solver: str, phase: bool, network: Network, options: Mapping[str, Any]) -> bool:
    """Whether a network is one of phase space; raises ``ValueError`` where solver and network are not of one kind."""
    if phase and network.space is None:
        raise ValueError(
            f"model: {solver!r} moves position and momentum, and {network.name!r} does not say that it is a network "
            "of phase space; allowed are Network(fn, space=PhaseSpace(...)) and GaussianMixture.phase_space()"
        )
    if network.space is None:
        return False
    if not phase:
        raise ValueError(f"solver: {solver!r} moves data alone, but {network.name!r} is a phase-space network")
    for name, value in network.space.options.items():
        if name in options and options[name] != value:
            raise ValueError(f"{name}: got {options[name]!r}, but the model says {value!r}")
    return True


def _of_network(network: Network, path: Path) -> dict[str, Any]:
    """What a network says of itself, as arguments of `make_plan`."""
    scaling = network.input_scaling
    if scaling == "vp" and network.dtype is None and path.normalised:
        scaling = "none"  # the state is normalised already: one tensor less to write
    return {"prediction": network.prediction, "time": network.time, "input_scaling": scaling}


def procedure_for(
    network: Network, procedure: procedures.Procedure, *, guidance: Any, denoised: bool, **choice: Any
) -> Callable[..., Run]:
    """What begins the run of a procedure, once its state is known; ``choice``: as `plan_for`."""
    from .schedules import make_schedule
    from .solvers import registry
    from .solvers.assemble import DEFAULTS

    path, schedule, options = _path_for(network, procedure, **choice)
    between = None if schedule is None else make_schedule(schedule)
    shared = {name: options.pop(name, default) for name, default in DEFAULTS.items()}
    shared |= {"guidance": guidance, "denoised": denoised, **_of_network(network, path)}
    values = registry.complete(procedure, options)
    costs = network.costs if isinstance(network, Ladder) else None

    def begin(x: Tensor, **given: Any) -> Run:
        facts = {"width": network.width, "costs": costs, **given}
        return procedure.make(procedures.Setting(path, between, shared, x, **facts), **values)

    return begin


def split_steps(entry: Solver | procedures.Procedure, steps: int | None, options: dict[str, Any]) -> int | None:
    """Number of steps, which may stand among the options under the name that the paper gives to steps."""
    name = entry.steps_called
    if name == "steps" or name not in options:
        return steps
    if steps is not None:
        raise ValueError(f"{name}: got steps too, which is the same of {entry.name!r}; give one of them")
    return options.pop(name)  # type: ignore[no-any-return]  # make_path checks it


def usual_path(
    solver: str,
    schedule: Any = None,
    grid: Any = None,
    steps: int | None = None,
    options: Mapping[str, Any] | None = None,
) -> Path:
    """The path of those who do not give one, such that the solver can run it: to clean data where it can end there.

    ``options``: of the solver; the process of a phase-space solver is among them.
    """
    from .grids import make_path
    from .schedules import make_schedule
    from .solvers import registry

    entry = procedures.get(solver) or registry.find(solver)
    if entry.model == "phase-space":
        from .solvers.phase.process import PhaseSpace, process_of

        schedule = process_of(options or {}) if schedule is None else schedule
        if not isinstance(schedule, PhaseSpace):
            raise ValueError(f"schedule: got {schedule!r}, the levels of {entry.name!r} are those of a PhaseSpace")
    schedule, grid, steps = (
        entry.usual.get(name) if value is None else value
        for name, value in (("schedule", schedule), ("grid", grid), ("steps", steps))
    )
    schedule = make_schedule(SCHEDULE if schedule is None else schedule)
    grid, steps = (value(schedule) if callable(value) else value for value in (grid, steps))
    grid, ends = usual_grid(schedule) if grid is None else grid, entry.ends
    named = isinstance(grid, str) or (isinstance(grid, Mapping) and "final" not in grid)
    final = "end" if ends != "clean" and named else None
    path = make_path(schedule, grid, STEPS if steps is None else steps, final=final)
    return path.reversed() if ends == "inverse" and not path.reverse else path


def usual_grid(schedule: Schedule) -> str:
    """The grid of those who do not choose: even in log-SNR, then clean data; in time where that is infinite."""
    ends = schedule.lam(np.array([schedule.t_max, schedule.t_min]))
    return "exponential" if np.isfinite(ends).all() else "uniform"
