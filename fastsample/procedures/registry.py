"""Procedures by name: samplers whose course depends on the data, so that no plan of theirs exists before they run."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

from fastsample.path import Path
from fastsample.solvers import registry as solvers
from fastsample.solvers.registry import key_of

if TYPE_CHECKING:
    import torch
    from torch import Tensor

    from fastsample.models.network import Energy
    from fastsample.run import Noise, Run
    from fastsample.schedules import Schedule


@dataclass(frozen=True)
class Setting:
    """All that a run is made of but the options of its sampler.

    ``path``, ``schedule``: the levels, and what lies between them (None: see ``stages.Between``).  ``network``: the
    arguments of ``make_plan`` that describe the network and what is done with its outputs (``prediction``,
    ``guidance``, ``clip``, ...).  ``energy``, ``width``: what the `Network` says of itself; ``costs``: of the levels of
    a `Ladder`.  The rest: see ``PlanRun``.
    """

    path: Path
    schedule: Schedule | None
    network: Mapping[str, Any]
    x: Tensor
    start: str
    key: Tensor | None
    noise: Noise | None
    input_dtype: torch.dtype | None
    grad: bool
    energy: Energy | None = None
    width: float | None = None
    costs: Sequence[float] | None = None


@dataclass(frozen=True)
class Procedure:
    """A sampler that decides while it runs: ``make(setting, **options)`` begins a `Run`.

    The other fields are those of `Solver`; ``nfe`` is text.
    """

    name: str
    make: Callable[..., Run]
    about: str
    paper: str
    order: int
    nfe: str
    stochastic: bool = False
    aliases: tuple[str, ...] = ()
    options: Mapping[str, Any] = field(default_factory=dict)
    ends: str = "clean"
    more: None = None
    usual: Mapping[str, Any] = field(default_factory=dict)
    model: str = ""
    steps_called: str = "steps"


_procedures: dict[str, Procedure] = {}
_names: dict[str, str] = {}


def add(procedure: Procedure) -> Procedure:
    """Register a procedure.  Raises ``ValueError`` when one of its names is taken, by a solver too."""
    for name in (procedure.name, *procedure.aliases):
        if key_of(name) in _names or solvers.knows(name):
            raise ValueError(f"name: {name!r} is taken")
    for name in (procedure.name, *procedure.aliases):
        _names[key_of(name)] = procedure.name
    _procedures[procedure.name] = procedure
    return procedure


def get(name: object) -> Procedure | None:
    """The procedure of a name or alias, None if there is none."""
    found = _names.get(key_of(name)) if isinstance(name, str) else None
    return None if found is None else _procedures[found]


def procedures() -> Mapping[str, Procedure]:
    """All procedures by name, read-only."""
    return MappingProxyType(_procedures)
