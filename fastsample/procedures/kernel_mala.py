"""RTK-MALA: Metropolis-adjusted Langevin chains on reverse transition kernels.

An inner move is one op between two network calls, ``metropolis_``: accept, select, next proposal, network input; the
last one of a segment writes the start of the next chain.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Generator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from fastsample.decision import CHAIN, make_decision
from fastsample.errors import CaptureError
from fastsample.langevin.estimators import Estimator, estimator, settle_radii
from fastsample.procedures.kernel_moves import between, move, proposal, ratio
from fastsample.procedures.kernel_run import KernelRun, Rows, whole
from fastsample.procedures.kernel_target import Combo, denoised, mix
from fastsample.procedures.registry import Setting
from fastsample.profiling.ranges import ranged
from fastsample.protocol import Asks, Output
from fastsample.solvers.assemble import _positive
from fastsample.solvers.registry import check_range

_OPERANDS = {"z": "state", "z1": "proposal", "e": "cache", "f": "fresh", "x": "term0"}
_GAIN = 2.0  # of log theta in acceptance: about the slope at which MALA's acceptance answers


class Mala(KernelRun):
    """Metropolis-adjusted Langevin chains; ``estimator`` says where the energy difference comes from.

    ``theta``: step size in units of 1 / L_g; None: 1.36 d^(-1/3), at most 1, where Roberts and Rosenthal 1998 have the
    best step on a Gaussian of d dimensions.  ``adapt``: None, or an acceptance rate to which theta is steered from
    segment to segment; it takes one read of the device per segment, and a batch cut differently takes other steps.
    ``radii``: None, or the largest ``|z' - z|`` and ``|z'|`` that are accepted.  ``uniforms``: ``(segments, inner, B)``
    float64 in place of keyed ones, needed where the noise is given.  ``chain``: ``(segments, B, 5)``, the numbers of
    ``metropolis_``.
    """

    def __init__(
        self,
        setting: Setting,
        *,
        inner: int,
        init: str,
        width: float | None,
        theta: float | None,
        estimator: str,
        radii: Sequence[float] | None,
        adapt: float | None,
        uniforms: Tensor | None,
    ) -> None:
        if setting.x.dtype not in (torch.float32, torch.float64):
            raise TypeError(
                f"dtype: got {setting.x.dtype}, the accept step needs a state in float32 or float64; the network may "
                "have any dtype"
            )
        self._how, self._named = _estimator(estimator, setting)
        if setting.network["guidance"] is not None:
            warnings.warn(
                "guidance: a guided output is the gradient of no density; the accept step of rtk-mala then corrects "
                "nothing that can be named",
                stacklevel=2,
            )
        nodes = len(self._how.nodes)
        super().__init__(
            setting,
            inner=whole("inner", inner),
            init=init,
            width=width,
            calls=1 + inner * (1 + nodes),
            again=False,
            finish=False,
            draws=1 + inner,
            wide=self._how.energy,
        )
        like, count = setting.x, len(self.segments)
        size = math.prod(like.shape[1:])
        best = min(1.0, 1.36 * max(1, size) ** (-1.0 / 3.0))
        self._theta = best if theta is None else _positive("theta", theta)
        self._radii, self._adapt = settle_radii(radii), None if adapt is None else check_range("adapt", adapt, 0.0, 1.0)
        self._uniforms = _uniforms(uniforms, setting, (count, inner, len(like)))
        self._y = torch.empty_like(like, requires_grad=False)
        self._node = [torch.empty_like(self.seen(self.z)) for _ in range(min(1, nodes))]
        kept = (1 + nodes) * self.guided  # guided outputs are mixed into tensors of their own
        self._mixed = [torch.empty_like(like, requires_grad=False) for _ in range(kept)]
        self._cache: Tensor | None = None
        self.chain = torch.zeros(count, len(like), len(CHAIN), dtype=torch.float64, device=like.device)
        self._thetas: list[float] = []
        self._mix_rows = [self.rows.add(self._mix_row(share)) for share in self.shares] if self.guided else []
        self._first = self.rows.add(self._start_row())
        self._nodes = [self._node_rows(k) for k in range(count)]
        self._pieces = [] if self._adapt is not None else [self._piece(k, self._theta) for k in range(count)]
        self.begin()

    def stats(self) -> Mapping[str, Any]:
        done = self.chain[: len(self._thetas), :, 4].mean(1).div(self.inner).tolist() if len(self.x) else []
        steps = [theta / self.segments[k].curvature for k, theta in enumerate(self._thetas)]
        return {
            **super().stats(),
            "estimator": self._named,
            "acceptance": sum(done) / len(done) if done else None,
            "acceptance_per_segment": done,
            "theta": self._thetas,
            "step_sizes": steps,
        }

    def course(self) -> tuple[Any, ...]:
        if self._adapt is not None:
            raise CaptureError("adapt: the step size follows acceptance rates that are read on the host; take None")
        if self._uniforms is not None:
            raise CaptureError("uniforms: given from outside; recorded runs make theirs from keys")
        return *super().course(), self._named

    def adopt(self, other: Mala) -> None:
        """Report the steps of another run of this course, whose numbers this one runs on."""
        self._thetas = [other._theta] * len(self.segments)

    def asks(self) -> Asks:
        decide = ranged("update metropolis", torch.ops.fastsample.metropolis_.default)
        update = ranged("update", torch.ops.fastsample.update_.default)
        theta, count, node = self._theta, len(self.segments), self._node
        told: list[Tensor] = []
        if self.segments[0].needs_score(self.law):
            told = yield from self.ask(self.seen(self.x))
        self.apply(self._first, self.memory(self.z), [self.x, *told])
        for k in range(count):
            rows, decisions = self._pieces[k] if self._pieces else self._piece(k, theta)
            self._thetas.append(theta)
            x, z, y, chain = self.x, self.z, self._y, self.chain[k]
            e = yield from self._asked(self.seen(z), 0)
            cache = self._cached(e)
            self._state = z
            self._energy(self.seen(z), chain, 0)
            moved = [*self.memory(y), *node]
            update(moved, [z, cache, x], *rows[0])
            for j in range(self.inner):
                terms = [x]
                for n, number in enumerate(self._nodes[k]):
                    if number is not None:  # the first is written with the proposal
                        self.apply(number, node, [z, y])
                    terms.append((yield from self._asked(node[0], 1 + n)))
                fresh = yield from self._asked(self.seen(y), 0)
                self._separate([*terms[1:], fresh])
                self._energy(self.seen(y), chain, 1)
                table, step, key, noise = decisions[j]
                last = j + 1 == self.inner
                outs = moved if not last else self.memory(y) if k + 1 < count else [y] if self.denoise else []
                u = None if self._uniforms is None else self._uniforms[k][j]
                decide(z, cache, outs, chain, y, fresh, terms, table, step, key, noise, u)
            if k + 1 == count:
                z.add_(cache, alpha=0)  # a NaN of the network at the state itself must not hide behind rejections
            # the chain is the next condition; the next chain begins where its proposals lay
            self.x, self.z, self._y = z, y, x
            self._state = y if self.denoise and k + 1 == count else z
            if self._adapt is not None and k + 1 < count and len(x):
                rate = float(chain[:, 4].mean()) / self.inner
                theta *= math.exp(_GAIN * (rate - self._adapt))

    def _piece(self, k: int, theta: float) -> tuple[Rows, Rows]:
        """The rows of one segment: its first proposal, and its choices with the moves after them."""
        segment, s = self.segments[k], self.inner
        tau = theta / segment.curvature
        moved = proposal(segment, tau)
        outs = self.fed(segment.end, moved)
        if self._how.nodes:
            outs.append(self._between(k, 0, moved))
        names = ("z", "e", "x", *(f"e{n}" for n in range(1, 1 + len(self._how.nodes))))
        operands = {**_OPERANDS, **{f"e{n}": f"term{n}" for n in range(1, 1 + len(self._how.nodes))}}
        weights = [{operands[a]: w for a, w in combo.items()} for combo in ratio(segment, self._how)]
        draw = 1 + k * (1 + s)
        first, decisions = self.new_rows(), self.new_rows()
        first.add(move(names[:3], outs, [draw + 1]))
        for j in range(s):
            row = move(names, outs, [draw + 2 + j]) if j + 1 < s else move(names, self._leave(k), [draw + 1 + s])
            decisions.add(
                make_decision(
                    row,
                    A=weights[0],
                    G=weights[1],
                    H=weights[2],
                    kappa=tau / 4.0,
                    energy=self._how.energy,
                    radii=self._radii,
                    draw=k * s + j,
                )
            )
        first.upload()
        decisions.upload()
        return first, decisions

    def _leave(self, k: int) -> list[Combo]:
        """What the last choice of a segment writes: the start of the next chain, or x0_hat at the end."""
        segment = self.segments[k]
        if k + 1 < len(self.segments):
            after = self.segments[k + 1]
            start = {"z" if source == "x" else source: weight for source, weight in after.begin(self.law).items()}
            return self.fed(after.end, start)
        return [denoised(self.net, segment.index + 1, segment.end, "z")] if self.denoise else []

    def _start_row(self) -> Any:
        """The start of the first chain."""
        first, terms = self.segments[0], ("x", *self.outputs)
        return move(terms, self.fed(first.end, first.begin(self.law)), [1], share=self.shares[0])

    def _between(self, k: int, node: int, moved: Combo) -> Combo:
        """What the network is fed at a node between z and z'."""
        return mix((self.kappa(self.segments[k].end), between(self._how.nodes[node], moved)))

    def _node_rows(self, k: int) -> list[int | None]:
        """Rows that write the nodes of a segment; None for the first, which is written with the proposal."""
        rest = range(1, len(self._how.nodes))
        rows = [self.rows.add(move(("z", "z1"), [self._between(k, n, {"z1": 1.0})])) for n in rest]
        return [None, *rows] if self._how.nodes else []

    def _mix_row(self, share: float) -> Any:
        return move(self.outputs, [{"e": 1.0}], share=share)

    def _asked(self, point: Tensor, slot: int) -> Generator[tuple[Tensor, Tensor], Output, Tensor]:
        """The network's output at a point as one tensor; guided ones are mixed into that of the slot."""
        outputs = yield from self.ask(point)
        if self.guided:
            self.apply(self._mix_rows[self.told - 1], [self._mixed[slot]], outputs)
            return self._mixed[slot]
        return outputs[0]

    def _cached(self, e: Tensor) -> Tensor:
        """A copy that the choices may write to; made once, for the network's dtype."""
        if self._cache is None or self._cache.dtype != e.dtype:
            self._cache = torch.empty_like(self.z, dtype=e.dtype)
        return self._cache.copy_(e)

    def _energy(self, point: Tensor, chain: Tensor, column: int) -> None:
        if not self._how.energy:
            return
        assert self._setting.energy is not None
        value = self._setting.energy(point, self._t[self.told - 1])
        if not isinstance(value, Tensor) or value.shape != (len(point),):
            raise ValueError(f"energy: returned shape {tuple(getattr(value, 'shape', ()))}, need ({len(point)},)")
        chain[:, column].copy_(value)

    def _separate(self, outputs: Sequence[Tensor]) -> None:
        """Outputs that are used together must not lie in the same memory."""
        if len({e.data_ptr() for e in outputs}) < len(outputs) and outputs[0].numel():
            raise ValueError(
                f"model: returned the same memory from two calls, of which {self._named!r} needs both; let it return "
                "new tensors"
            )


def _estimator(name: Any, setting: Setting) -> tuple[Estimator, str]:
    guided = setting.network["guidance"] is not None
    if name == "auto":
        name = "energy" if setting.energy is not None and not guided else "trapezoid"
    how = estimator(name)
    if how.energy and (setting.energy is None or guided):
        why = "guidance mixes two laws" if guided else "the model offers none (Network(..., energy=...))"
        raise ValueError(f"estimator: got 'energy', but {why}; take 'simpson', 'trapezoid' or 'line(n)'")
    return how, name


def _uniforms(uniforms: Any, setting: Setting, shape: tuple[int, ...]) -> Tensor | None:
    if uniforms is None:
        if setting.noise is not None:
            raise ValueError(f"uniforms: got none though the noise is given; need {shape} (segments, inner, B)")
        return None
    found = torch.as_tensor(uniforms, dtype=torch.float64, device=setting.x.device)
    if tuple(found.shape) != shape:
        raise ValueError(f"uniforms: got shape {tuple(found.shape)}, need {shape} (segments, inner, B)")
    return found.contiguous()
