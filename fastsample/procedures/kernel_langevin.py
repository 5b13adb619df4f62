"""RTK-ULD and RTK-ULA: chains without an accept step; every move is one row of ``update_``."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import torch

from fastsample.procedures.kernel_moves import kick, move, proposal
from fastsample.procedures.kernel_run import KernelRun, whole
from fastsample.procedures.kernel_target import Combo, denoised
from fastsample.procedures.registry import Setting
from fastsample.protocol import Asks
from fastsample.solvers.assemble import _positive


class Langevin(KernelRun):
    """Langevin chains, overdamped (``friction`` None) or underdamped.

    Overdamped: the step is theta / L_g.  Underdamped: it is theta / sqrt(L_g) and the friction ``friction`` sqrt(L_g);
    the velocity is drawn anew from N(0, I) in every segment.  Without moves (``inner`` 0) the starts alone remain:
    ``posterior`` is then DDPM, ``gaussian_rtk`` the DDPM with frozen score of the paper.
    """

    def __init__(
        self, setting: Setting, *, inner: int, init: str, width: float | None, theta: float, friction: float | None
    ) -> None:
        self._theta = _positive("theta", theta)
        self._friction = None if friction is None else _positive("friction", friction)
        noises = 1 if friction is None else 2
        super().__init__(
            setting,
            inner=whole("inner", inner, low=0),
            init=init,
            width=width,
            calls=inner,
            again=True,
            finish=True,
            draws=noises * (1 + inner),
        )
        self._u = [] if friction is None else [torch.empty_like(setting.x, requires_grad=False)]
        self._begin: list[int] = []
        self._moves: list[list[int]] = []
        self._call = 0  # of the row that is made
        for k in range(len(self.segments)):
            self._add(k, 1 + k * noises * (1 + inner))
        if self.denoise:
            self._finish = self._row(("x",), [denoised(self.net, setting.path.steps, setting.path[-1], "x")], [])
        self.begin()

    def stats(self) -> Mapping[str, Any]:
        roots = [math.sqrt(s.curvature) for s in self.segments]
        under = self._friction is not None
        more = {"friction": [self._friction * root for root in roots]} if self._friction is not None else {}
        steps = [self._theta / (root if under else root * root) for root in roots]
        return {**super().stats(), "theta": self._theta, "step_sizes": steps, **more}

    def course(self) -> tuple[Any, ...]:
        return *super().course(), self._friction is not None

    def asks(self) -> Asks:
        for k, segment in enumerate(self.segments):
            told = (yield from self.ask(self.seen(self.x))) if segment.needs_score(self.law) else []
            x, z, u = self.x, self.z, self._u
            self.apply(self._begin[k], self.memory(z, *u), [x, *told])
            for j, number in enumerate(self._moves[k]):
                told = yield from self.ask(self.seen(z))
                self._state = z
                feeds = j + 1 < self.inner or self._again(k)
                self.apply(number, self.memory(z, *u) if feeds else [z, *u], [z, *u, x, *told])
            self.x, self.z = z, x
            self._state = z
        if self.denoise:
            told = yield from self.ask(self.seen(self.x))
            self.apply(self._finish, [self.z], [self.x, *told])
            self._state = self.z

    def _again(self, k: int) -> bool:
        """Whether the network is asked at the end of a segment, at the level of that segment."""
        if k + 1 < len(self.segments):
            return self.segments[k + 1].needs_score(self.law)
        return self.denoise

    def _add(self, k: int, draw: int) -> None:
        """The rows of a segment, whose draws begin with ``draw``."""
        segment, under = self.segments[k], self._friction is not None
        velocity: list[Combo] = [{"xi1": 1.0}] if under else []
        outs = self.fed(segment.end, segment.begin(self.law), *velocity)
        if segment.needs_score(self.law):
            self._begin.append(self._row(("x",), outs, [draw, draw + 1][: 1 + under]))
        else:
            self._begin.append(self.rows.add(move(("x",), outs, [draw, draw + 1][: 1 + under])))
        if self._friction is None:
            moved = [proposal(segment, self._theta / segment.curvature)]
        else:
            root = math.sqrt(segment.curvature)
            moved = list(kick(segment, self._friction * root, self._theta / root))
        rows = []
        for j in range(self.inner):
            draw += 1 + under
            feeds = j + 1 < self.inner or self._again(k)
            outs = self.fed(segment.end, *moved) if feeds else moved
            rows.append(self._row(("z", "u", "x") if under else ("z", "x"), outs, [draw, draw + 1][: 1 + under]))
        self._moves.append(rows)

    def _row(self, terms: tuple[str, ...], outputs: list[Combo], draws: list[int]) -> int:
        """A row that follows a network call; they are made in the order of the calls."""
        made = move((*terms, *self.outputs), outputs, draws, self.shares[self._call])
        self._call += 1
        return self.rows.add(made)
