"""What an iteration of a chain is made of: network calls, and rows of ``update_`` after them.

A kernel is a function of its options that gives the `Move` list of any iteration, in float64 on the host.  It names
tensors: the state ``"x"``, the velocity ``"v"``, what else it keeps, ``"e"`` for the output of the call, ``"in"`` for
what the call is fed where that is a scaled copy.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from .. import row
from .targets import Target

Array = npt.NDArray[np.float64]
Weight = Any  # a number, or float64 (B,), one per chain
Combo = Mapping[str, Weight]  # weights of named tensors and of the noises "xi0", "xi1"

FED = "in"


@dataclass(frozen=True, eq=False)
class Move:
    """One row: the network is called at ``ask`` first (None: it is not), then ``outs`` are made of ``terms``.

    ``rows``: ``(1, 48)``, or ``(B, 48)`` with a row per chain; their draws count from 0 in each iteration.
    """

    ask: str | None
    outs: tuple[str, ...]
    terms: tuple[str, ...]
    rows: Array


class Kernel(Protocol):
    """``slots``: tensors that it keeps beside ``"x"``; ``draws`` and ``most`` moves per iteration at most."""

    slots: tuple[str, ...]
    draws: int
    most: int

    def iteration(self, number: int) -> Sequence[Move]:
        """The moves of an iteration.  The first asks at ``"x"``; each is asked where the one before it has written."""


class Feed:
    """How the points that are asked are handed over: as they are, or copied into the slot ``"in"``, scaled."""

    def __init__(self, target: Target, apart: bool) -> None:
        self.kappa, self.apart = target.kappa, apart

    def at(self, point: str) -> str:
        """The slot that holds what is fed for a point."""
        return FED if self.apart else point

    def out(self, point: str, outputs: Mapping[str, Combo]) -> dict[str, Combo]:
        """The outputs of a move after which ``point``, one of them, is asked."""
        if not self.apart:
            return dict(outputs)
        return {**outputs, FED: {name: self.kappa * weight for name, weight in outputs[point].items()}}


def mix(*parts: tuple[Weight, Combo]) -> dict[str, Weight]:
    """The sum of weighted combinations."""
    total: dict[str, Weight] = {}
    for factor, combo in parts:
        for name, weight in combo.items():
            total[name] = total.get(name, 0.0) + factor * weight
    return total


def make_move(ask: str | None, terms: Sequence[str], outputs: Mapping[str, Combo], draw: int = 0) -> Move:
    """A move that writes the named outputs; its noises are the draws ``draw`` and ``draw + 1`` of the iteration.

    Terms that no output uses are left out.
    """
    used = tuple(name for name in terms if any(name in combo for combo in outputs.values()))
    sizes = {len(w) for combo in outputs.values() for w in combo.values() if isinstance(w, np.ndarray)}
    rows = row.blank(sizes.pop() if sizes else 1)
    for k, combo in enumerate(outputs.values()):
        for name, weight in combo.items():
            column = row.g(k, int(name[2])) if name in ("xi0", "xi1") else row.w(k, used.index(name))
            rows[:, column] = weight
    rows[:, row.DRAW : row.DRAW + row.MAX_NOISES] = draw, draw + 1
    return Move(ask, tuple(outputs), used, rows)


def gradient(target: Target, point: str) -> dict[str, float]:
    """grad U at a point where the network was just asked."""
    return {name: weight for name, weight in ((point, target.P), ("e", target.Q)) if weight}
