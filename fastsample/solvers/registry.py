"""The solvers by name, with what a person wants to know before choosing one."""

from __future__ import annotations

import difflib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from fastsample.procedures.registry import Procedure


@dataclass(frozen=True)
class Solver:
    """A solver: a function of a path and of options that returns steps, and its description.

    ``steps``: returns ``list[Step]``, or of a phase-space solver ``phase.assemble.Made``.
    ``order``: order of convergence in the number of steps (strong order of the deterministic part); 0: few-step
    samplers, whose networks jump, claim none.  ``nfe``: network calls per step, as text where it is no whole number.
    ``options``: names and defaults.  ``ends``: what its path may be: ``"clean"`` (to sigma = 0), ``"noisy"`` (to
    sigma > 0 only) or ``"inverse"`` (from data to noise).  ``more``: of a solver that wraps another, the further
    options (names and defaults) that belong to given ones.  ``usual``: the path of those who do not choose one: any of
    ``steps``, ``grid``, ``schedule``; the first two may be functions of the schedule.
    ``model``: the kind of network that it needs: ``""`` (any), ``"ladder"`` or ``"phase-space"``.
    ``steps_called``: what its paper calls the steps of the path, allowed as an option that sets their number.
    ``lean``: values of options that are None by default, for rows that would have too many outputs without them.
    ``warns``: whether making a plan may warn about its options.
    """

    name: str
    steps: Callable[..., Any]
    about: str
    paper: str
    order: int
    nfe: int | str = 1
    stochastic: bool = False
    aliases: tuple[str, ...] = ()
    options: Mapping[str, Any] = field(default_factory=dict)
    ends: str = "clean"
    more: Callable[[Mapping[str, Any]], Mapping[str, Any]] | None = None
    usual: Mapping[str, Any] = field(default_factory=dict)
    model: str = ""
    steps_called: str = "steps"
    warns: bool = False
    lean: Mapping[str, Any] = field(default_factory=dict)


_solvers: dict[str, Solver] = {}
_names: dict[str, str] = {}


def add(solver: Solver) -> Solver:
    """Register a solver.  Raises ``ValueError`` when one of its names is taken."""
    for name in (solver.name, *solver.aliases):
        if key_of(name) in _names:
            raise ValueError(f"name: {name!r} is taken by the solver {_names[key_of(name)]!r}")
    for name in (solver.name, *solver.aliases):
        _names[key_of(name)] = solver.name
    _solvers[solver.name] = solver
    return solver


def find(name: str) -> Solver:
    """The solver of a name or alias; case, ``_`` and spaces do not matter.  Raises ``ValueError`` with close names."""
    if not isinstance(name, str):
        raise TypeError(f"solver: got {type(name).__name__}, allowed is a name (str)")
    if key_of(name) not in _names:
        from fastsample import procedures

        if procedures.get(name) is not None:
            raise ValueError(f"solver: {name!r} has no plan, its steps depend on the data; use fastsample.sample")
        close = difflib.get_close_matches(key_of(name), _names, n=3, cutoff=0.5)
        hint = f"; did you mean {' or '.join(_names[c] for c in dict.fromkeys(close))}?" if close else ""
        raise ValueError(f"solver: got {name!r}, allowed are {', '.join(sorted(_solvers))}{hint}")
    return _solvers[_names[key_of(name)]]


def complete(solver: Solver | Procedure, options: Mapping[str, Any]) -> dict[str, Any]:
    """Defaults updated by ``options``.  Raises ``ValueError`` for a name that the solver does not have."""
    known = dict(solver.options)
    if solver.more is not None:
        known.update(solver.more({**known, **options}))
    for name in options:
        if name not in known:
            close = difflib.get_close_matches(name, known, n=1)
            hint = f"; did you mean {close[0]}?" if close else ""
            allowed = ", ".join(sorted(known)) or "none"
            raise ValueError(f"option: {solver.name!r} has no option {name!r}, allowed are {allowed}{hint}")
    return {**known, **options}


def names(model: str | None = None) -> tuple[str, ...]:
    """Names of all solvers, in the order of registration (families together).

    ``model``: of those alone that need this kind of network, ``""`` for those that take any.
    """
    return tuple(name for name, solver in _solvers.items() if model in (None, solver.model))


def solvers() -> Mapping[str, Solver]:
    """All solvers by name, read-only."""
    return MappingProxyType(_solvers)


def describe(name: str) -> str:
    """A few lines on one solver or procedure: what it does, its paper, its options with their defaults."""
    from fastsample import procedures

    s = procedures.get(name) or find(name)
    lines = [
        f"{s.name}{f' (also {chr(44).join(s.aliases)})' if s.aliases else ''}: {s.about}",
        f"  order {s.order}, {s.nfe} network call(s) per step, {'stochastic' if s.stochastic else 'deterministic'}",
        f"  {s.paper}",
        "  options: " + (", ".join(f"{k}={v!r}" for k, v in s.options.items()) or "none"),
    ]
    return "\n".join(lines)


def knows(name: str) -> bool:
    """Whether a solver has this name or alias."""
    return key_of(name) in _names


def key_of(name: str) -> str:
    """What is compared of a name."""
    return name.lower().replace("_", "-").replace(" ", "-").replace("++", "pp")


def check_choice(name: str, value: Any, allowed: Sequence[str]) -> None:
    if value not in allowed:
        raise ValueError(f"{name}: got {value!r}, allowed are {', '.join(allowed)}")


def check_range(name: str, value: Any, low: float, high: float = float("inf")) -> float:
    """``value`` as a float in [low, high]; raises ``ValueError`` that names the option."""
    number = isinstance(value, (int, float)) and not isinstance(value, bool)
    if not number or not low <= value <= high or value == float("inf"):
        raise ValueError(f"{name}: got {value!r}, allowed are numbers in [{low:g}, {high:g}]")
    return float(value)
