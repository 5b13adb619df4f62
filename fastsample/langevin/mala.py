"""The Metropolis-adjusted Langevin algorithm: one op, ``metropolis_``, between two calls of the target.

    z' = z - tau g(z) + sqrt(2 tau) xi,     accepted with probability min(1, rho)
    log rho = -dU + d . (g + g') / 2 + (tau / 4)(|g|^2 - |g'|^2),     d = z' - z, g = grad U(z), g' = grad U(z')

Besag 1994; Roberts and Tweedie 1996.  ``dU`` is that of an energy, or a line integral of scores (estimators.py).
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterator
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor

from .. import decision, row
from ..profiling.ranges import ranged
from .chain import Array, Caller, Drive, scaled_copy, upload
from .estimators import Estimator
from .moves import Combo, make_move, mix
from .targets import Target

PIECE = 256  # choices whose rows are uploaded at once, at most
_ROWS = 4096
_OPERANDS = {"z": "state", "z1": "proposal", "e": "cache", "f": "fresh", "e0": "term0", "e1": "term1", "e2": "term2"}

Taus = Callable[[int], Any]  # number of a proposal -> its step, one or (B,)


class MalaRun:
    """Chains of the Metropolis-adjusted Langevin algorithm.

    ``state``: ``(B, ...)``, overwritten.  ``chain``: ``(B, 5)`` float64, see docs/metropolis.md.  ``apart``: the target
    is fed a scaled copy.  ``uniforms``: ``(iterations, B)`` float64 in place of keyed ones.
    """

    def __init__(
        self,
        target: Target,
        x: Tensor,
        drive: Drive,
        *,
        taus: Taus,
        how: Estimator,
        radii: tuple[float, float],
        apart: bool,
        uniforms: Tensor | None,
    ) -> None:
        self._target, self._drive, self._how, self._radii = target, drive, how, radii
        self._uniforms, self._taus = uniforms, taus
        self.state, self._proposal = x, torch.empty_like(x)
        # energies are taken in the dtype of the state
        fed = None if how.energy else target.input_dtype
        self._fed = torch.empty_like(x, dtype=fed) if apart else self._proposal
        self._nodes = [torch.empty_like(x, dtype=fed) for _ in how.nodes]
        self._outs = [self._proposal, *([self._fed] if apart else []), *self._nodes][: row.MAX_OUTPUTS]
        self._late = len(how.nodes) - (len(self._outs) - 1 - apart)  # nodes that need a pass of their own
        self._numbers = torch.arange(max(PIECE, _ROWS, len(x)), device=x.device)
        self._singles = self._places = self._numbers[:PIECE].unbind(0)
        self._recorded: Any = None
        self._tau = taus(0)
        self._kept: tuple[Any, Array] | None = None
        self._weights = _ratio(target, how)
        self._nodes_table = upload(self._node_rows(), x.device)
        self.chain = torch.zeros(len(x), len(decision.CHAIN), dtype=torch.float64, device=x.device)
        self.call = Caller(target, x)
        self._update = ranged("update", torch.ops.fastsample.update_.default)
        self._decide = ranged("update metropolis", torch.ops.fastsample.metropolis_.default)
        if apart:
            scaled_copy(self._fed, x, target.kappa)
        e, energy = self.call(self._fed if apart else x, how.energy)
        self._cache = torch.empty_like(x, dtype=e.dtype).copy_(e)
        if energy is not None:
            self.chain[:, 0].copy_(energy)
        self._propose()

    def advance(self, first: int, count: int, each: bool = False) -> Iterator[int]:
        """Iterations ``first .. first + count - 1``; yields the number of each when it is done.

        ``each``: make the row of a choice right before it, for steps that follow from the choices before.
        """
        begin, end = first, first + count
        while begin < end:
            width = 1 if isinstance(self._tau, float) else len(self.state)
            size = 1 if each else min(max(1, min(PIECE, _ROWS // width)), end - begin)
            host = self._rows(begin, size)
            table = upload(host.reshape(-1, decision.COLUMNS), self.state.device)
            recorded, rows = self._recorded, host.shape[1]
            if recorded is not None:
                table = recorded.load(table)
            for k in range(size):
                at = k if recorded is None else 0  # a recording moves the numbers on
                step = self._singles[at] if rows == 1 else self._numbers[at * rows : (at + 1) * rows]
                if recorded is None:
                    self._choose(begin + k, host[k], table, step)
                else:
                    recorded.iterate(rows, rows, partial(self._choose, begin + k, host[k], table, step))
                yield begin + k
            begin += size

    def _choose(self, number: int, host: Array, table: Tensor, step: Tensor) -> None:
        between = []
        for k, node in enumerate(self._nodes):
            if k >= len(self._nodes) - self._late:
                self._update([node], [self.state, self._proposal], self._nodes_table, self._places[k], None, [])
            between.append(self.call(node)[0])
        fresh, energy = self.call(self._fed, self._how.energy)
        outputs = [*between, fresh]
        if len({e.data_ptr() for e in outputs}) < len(outputs):
            raise ValueError("target: returned the same memory from two calls; let it return new tensors")
        if energy is not None:
            self.chain[:, 1].copy_(energy)
        key, noise = self._drive.noises(host)
        self._decide(
            self.state,
            self._cache,
            self._outs,
            self.chain,
            self._proposal,
            fresh,
            between,
            table,
            step,
            key,
            noise,
            None if self._uniforms is None else self._uniforms[number],
        )

    def memory(self) -> list[Tensor]:
        apart = [] if self._fed is self._proposal else [self._fed]
        return [self.state, self._proposal, *apart, *self._nodes, self._cache, self.chain]

    def structure(self) -> Hashable:
        return self._how, tuple(x.dtype for x in self.memory()), self.table_shape()

    def table_shape(self) -> tuple[int, int]:
        return max(_ROWS, len(self.state)), decision.COLUMNS

    def keep(self, recorded: Any) -> None:
        self._recorded, self._numbers = recorded, recorded.counters
        self._singles = self._numbers[:PIECE].unbind(0)

    def adopt(self, other: MalaRun) -> None:
        self._taus, self._tau, self._radii, self._kept = other._taus, other._tau, other._radii, None
        self.call.calls = other.call.calls

    def _propose(self) -> None:
        """The first proposal, draw 1."""
        rows = self._move(self._tau)
        rows[:, row.DRAW] = 1
        step = self._singles[0] if len(rows) == 1 else self._numbers[: len(rows)]
        self._update(
            self._outs, [self.state, self._cache], upload(rows, self.state.device), step, *self._drive.noises(rows)
        )

    def _rows(self, begin: int, size: int) -> Array:
        """Rows ``(size, 1 or B, 96)``: each decides on a proposal and writes the next."""
        parts = []
        for number in range(begin, begin + size):
            after = self._taus(number + 1)
            parts.append(self._row(self._tau, after))
            self._tau = after
        width = max(len(part) for part in parts)
        table = np.stack([np.broadcast_to(part, (width, decision.COLUMNS)) for part in parts])
        numbers = np.arange(begin, begin + size)[:, None]
        table[:, :, row.DRAW], table[:, :, decision.DRAW] = numbers + 2, numbers
        decision.check_decisions(table.reshape(-1, decision.COLUMNS))
        return table

    def _row(self, tau: Any, after: Any) -> Array:
        constant = tau is after or (isinstance(tau, float) and tau == after)
        if constant and self._kept is not None and self._kept[0] is tau:
            return self._kept[1]
        move = self._move(after)
        a, g, h = self._weights
        one = decision.make_decision(A=a, G=g, H=h, energy=self._how.energy, radii=self._radii)
        rows = np.tile(one, (max(len(move), np.size(tau)), 1))
        rows[:, : row.COLUMNS] = move
        rows[:, decision.KAPPA] = np.asarray(tau) / 4.0
        if constant:
            self._kept = tau, rows
        return rows

    def _move(self, tau: Any) -> Array:
        """What a proposal writes: itself, what is fed there, the nodes on the way."""
        proposal = _proposal(self._target, tau)
        kappa, outputs = self._target.kappa, [proposal]
        if self._fed is not self._proposal:
            outputs.append(mix((kappa, proposal)))
        outputs += [mix((kappa * (1.0 - c), {"z": 1.0}), (kappa * c, proposal)) for c in self._how.nodes]
        named = {str(k): combo for k, combo in enumerate(outputs[: len(self._outs)])}
        return make_move(None, ("z", "e"), named).rows

    def _node_rows(self) -> Array:
        kappa = self._target.kappa
        rows = [
            make_move(None, ("z", "z1"), {"0": {"z": kappa * (1.0 - c), "z1": kappa * c}}).rows for c in self._how.nodes
        ]
        return np.concatenate(rows) if rows else row.blank(1)


def _proposal(target: Target, tau: Any) -> dict[str, Any]:
    return mix((1.0, {"z": 1.0, "xi0": np.sqrt(2.0 * tau)}), (-tau, {"z": target.P, "e": target.Q}))


def _ratio(target: Target, how: Estimator) -> list[dict[str, float]]:
    """Weights A, G, H of the log-ratio, by operand."""
    here, there = {"z": target.P, "e": target.Q}, {"z1": target.P, "f": target.Q}
    q: Combo = mix((0.5 - how.ends[0], here), (0.5 - how.ends[1], there))
    for k, (c, weight) in enumerate(zip(how.nodes, how.weights, strict=True)):
        inside = {"z": (1.0 - c) * target.P, "z1": c * target.P, f"e{k}": target.Q}
        q = mix((1.0, q), (-weight, inside))
    return [{_OPERANDS[k]: w for k, w in combo.items()} for combo in (q, here, there)]
