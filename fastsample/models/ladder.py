"""Networks for one prediction, from cheap to good: what multilevel methods run."""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from .network import Network, Output, Predictor, as_network

_FACTS = ("prediction", "time", "input_scaling", "schedule", "shape", "classes", "null_class")


class Ladder(Network):
    """Networks of growing cost and falling error for the same prediction; for other solvers, the last one.

    Args:
        levels: one or more networks, anything that `as_network` takes, from the cheapest to the best.  They are asked
            at the same states and times, so they must agree in prediction, time, input scaling, schedule and shape.
        costs: cost of a call of each level, in any unit.  None: numbers of parameters, if all are modules.
        name: for reports.

    ``given`` and ``guided`` return predictors ``predict(x, t, level=top, index=None)``; ``index`` are the rows of the
    batch that ``x`` holds, by which conditions are gathered.

    Raises:
        TypeError: a level is not callable, costs are not numbers.
        ValueError: no level, levels that disagree (which fact, and how), costs that are not positive or not one per
            level.
    """

    def __init__(self, levels: Sequence[Any], costs: Sequence[float] | None = None, name: str | None = None) -> None:
        if not isinstance(levels, (list, tuple)) or not levels:
            raise ValueError(f"levels: got {levels!r}, need a list of one or more networks")
        networks = [as_network(level) for level in levels]
        top = networks[-1]
        for k, network in enumerate(networks):
            for fact in _FACTS:
                if getattr(network, fact) != getattr(top, fact):
                    raise ValueError(
                        f"levels: level {k} has {fact}={getattr(network, fact)!r}, the last one "
                        f"{getattr(top, fact)!r}; all levels must predict the same"
                    )
        self.__dict__.update(top.__dict__)
        self.levels = tuple(networks)
        self.costs = _costs(costs, networks)
        self.name = name or f"ladder of {top.name}"

    def wrapped(self, wrap: Callable[[Callable[..., Any]], Callable[..., Any]]) -> Ladder:
        other = copy.copy(self)
        other.levels = tuple(level.wrapped(wrap) for level in self.levels)
        other.fn = other.levels[-1].fn
        return other

    def given(self, cond: Any) -> Predictor:
        whole = [level.given(cond) for level in self.levels]

        def predict(x: Tensor, t: Tensor, level: int = -1, index: Tensor | None = None) -> Output:
            if index is None or cond is None:
                return whole[level](x, t)
            out: Output = self.levels[level](x, t, take(cond, index))
            return out

        return predict

    def guided(self, cond: Any, uncond: Any) -> Predictor:
        whole = [level.guided(cond, uncond) for level in self.levels]

        def predict(x: Tensor, t: Tensor, level: int = -1, index: Tensor | None = None) -> Output:
            if index is None:
                return whole[level](x, t)
            made: Output = self.levels[level].guided(take(cond, index), take(uncond, index))(x, t)
            return made

        return predict


def take(cond: Any, index: Tensor) -> Any:
    """The conditions of some rows of the batch; what is no tensor belongs to all."""
    if isinstance(cond, Tensor):
        return cond.index_select(0, index)
    if isinstance(cond, dict):
        return {name: take(value, index) for name, value in cond.items()}
    if isinstance(cond, (tuple, list)):
        return type(cond)(take(value, index) for value in cond)
    return cond


def _costs(costs: Sequence[float] | None, networks: Sequence[Network]) -> tuple[float, ...]:
    if costs is None:
        if not all(isinstance(network.fn, torch.nn.Module) for network in networks):
            raise ValueError("costs: got none, and the levels are not all modules whose parameters could be counted")
        costs = [float(sum(p.numel() for p in network.fn.parameters())) for network in networks]  # type: ignore[attr-defined]
    if not all(isinstance(c, (int, float)) and not isinstance(c, bool) for c in costs):
        raise TypeError(f"costs: got {costs!r}, need one number per level")
    if len(costs) != len(networks) or not all(0 < c < float("inf") for c in costs):
        raise ValueError(f"costs: got {list(costs)}, need {len(networks)} numbers above 0, one per level")
    return tuple(float(c) for c in costs)
