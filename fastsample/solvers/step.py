"""One abstract update of a linear solver, before it knows the network."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from fastsample.path import Level

Mix = Mapping[str | int, float]
"""Weights by source: ``"x"`` the state that the network saw, 0 D of this call, j > 0 D of the j-th call before,
``"eps"`` eps_hat made of the raw output, ``"xi"`` the noise of this call, ``"past"`` that of the call before, any other
string a tensor kept earlier."""


@dataclass(frozen=True)
class Step:
    """``x' = a x + b[0] D + sum_j b[j] D_{-j} + raw eps_hat + sum saved[n] n + c xi`` after one network call.

    Args:
        index: step of the path that the call belongs to; the stages of one step share it.
        at: level of the state that the network sees, and the time it is told.
        a, b, c: weights of the state, of D of this call and of the calls before it (calls, not steps), of the noise.
        form: what D is: ``"x0"``, ``"eps"``, ``"v"`` (alpha eps - sigma x0) or ``"raw"`` (the network's output itself).
        d: None, or what D is made of: a mix of 0 (here the prediction of ``form``), ``"x"``, ``"eps"``, the history and
            kept tensors.  Limits and previews of x0_hat are those of this D.
        raw: weight of eps_hat made of the network's output *before* x0_hat was limited (DDIM keeps it).
        lift: standard deviation of the noise added to the state before the call (churn); folded into the row before.
        scale: factor of the state before the call, before the lift; folded into the row before as well.
        saved: weights of tensors kept by earlier steps, by name.
        keep: tensors to keep after this call, by name: each a mix.  A kept tensor may replace the one of its name.
        draw: number of the draw that the noise is; None: 1 + the number of the call.
        past: weight of the noise of the call before, which is made again: a state without it needs not be kept.
        to: level whose time is told second to networks of two times (where the jump of a consistency trajectory model
            ends); its t is NaN where that is not known.
    """

    index: int
    at: Level
    a: float
    b: tuple[float, ...]
    c: float = 0.0
    form: str = "x0"
    raw: float = 0.0
    lift: float = 0.0
    scale: float = 1.0
    saved: Mapping[str, float] = field(default_factory=dict)
    keep: Mapping[str, Mix] = field(default_factory=dict)
    to: Level | None = None
    d: Mix | None = None
    draw: int | None = None
    past: float = 0.0

    @property
    def mix(self) -> dict[str | int, float]:
        """The new state as a mix."""
        sources: dict[str | int, float] = {"x": self.a, "eps": self.raw, "xi": self.c, "past": self.past}
        sources.update(self.saved.items())
        sources.update(enumerate(self.b))
        return {source: weight for source, weight in sources.items() if weight}
