"""Multilevel Euler-Maruyama: a ladder of networks, of which each step asks the cheap ones often and the best seldom.

Jacot 2026, arXiv 2603.24594.  Which levels are asked is drawn before the run begins; all rows are made then and
uploaded once.  A step asks its levels at the same state and time, and one update combines what they said.
"""

from __future__ import annotations

import itertools
from collections.abc import Generator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from fastsample import noise, row
from fastsample.path import Array
from fastsample.procedures.registry import Procedure, Setting, add
from fastsample.profiling.ranges import ranged
from fastsample.run import Output, PlanRun, Recorded, StepInfo, check_output
from fastsample.solvers import assemble as plans
from fastsample.solvers import multilevel as levels_of
from fastsample.solvers.express import Network
from fastsample.solvers.fine_tables import FineTable, fine_table
from fastsample.solvers.step import Step

STREAM = 0x4D4C454D  # of the keys that levels are drawn from
Asks = Generator[tuple[Any, ...], Output, None]
Indices = npt.NDArray[np.int64]


@dataclass(frozen=True)
class Ask:
    """One call: which level, and for which samples (None: all)."""

    level: int
    index: Tensor | None


class Multilevel:
    """The run.  It yields ``(x, t, level)`` or ``(x, t, level, index)``: the network is a `Ladder`.

    Args:
        setting: what the run is made of.
        table: the base steps.
        p: probabilities ``(N, K + 1)``.
        flags: Bernoullis ``(N, K + 1)``, or ``(B, N, K + 1)`` for levels drawn per sample.
        draws: how they were drawn, for the expected cost in `stats`.

    Raises:
        ValueError: an option of the network that multilevel steps cannot honour, too many levels for a row.
    """

    def __init__(
        self, setting: Setting, table: FineTable, p: Array, flags: levels_of.Flags, draws: str = "independent"
    ) -> None:
        network = dict(setting.network)
        _check(network, setting)
        assert setting.costs is not None
        self._setting, self._table, self._costs = setting, table, np.asarray(setting.costs)
        self._expected = levels_of.expected_cost(p, setting.costs, draws)
        self.guided = network["guidance"] is not None
        self._shares = (1.0,) if not self.guided else (network["guidance"], 1.0 - network["guidance"])
        count = p.shape[1]
        if 1 + count * len(self._shares) > row.MAX_TERMS:
            raise ValueError(
                f"model: a ladder of {count} levels{' under guidance' if self.guided else ''} needs "
                f"{1 + count * len(self._shares)} terms per row, a row has {row.MAX_TERMS}"
            )
        self._omega = levels_of.weights(flags, p)
        if network["denoise"] and table.path[-1].sigma > 0.0:
            last = np.zeros((*self._omega.shape[:-2], 1, count))
            last[..., -1] = 1.0
            self._omega = np.concatenate([self._omega, last], axis=-2)
            self._expected += setting.costs[-1]
        self._prepare(network)

    def _prepare(self, network: dict[str, Any]) -> None:
        s, path = self._setting, self._table.path
        steps = [Step(i, path[i], 1.0, (0.0,)) for i in range(self._omega.shape[-2])]
        self._told = np.asarray(plans._times(network["time"], steps))
        # the start is that of any plan of these levels
        begin = plans.assemble("ml-em", path, steps[:1], options={}, **{**network, "time": self._told[:1]})
        run = PlanRun(begin, s.x, start=s.start, key=s.key, noise=s.noise, input_dtype=s.input_dtype)
        scaled = network["input_scaling"] != "none"
        self._outs = [run.state, *([run.slot("input")] if scaled else [])]
        self._noise = None if s.noise is None else Recorded(s.noise, 1 + path.steps)
        express = Network(
            network["prediction"], network["input_scaling"], network["sigma_data"], path.rates, path.levels()
        )
        self._asks: list[list[Ask]] = []
        rows: list[Array] = []
        numbers: list[Indices] = []
        for step in steps:
            omega = np.atleast_2d(self._omega[..., step.index, :])
            used = np.flatnonzero(omega.any(axis=0)).tolist()
            patterns, number = np.unique(omega, axis=0, return_inverse=True)
            numbers.append(len(rows) + number.reshape(-1).astype(np.int64))
            rows += [self._row(express, step, pattern, used) for pattern in patterns]
            self._asks.append([Ask(k, self._samples(omega[:, k])) for k in used])
        table = np.stack(rows)
        row.check_table(table)
        self._noisy = [bool(table[n][:, row.HI + 1 : row.HI + 4].any()) for n in numbers]
        wide = torch.float64 if s.x.dtype == torch.float64 else torch.float32
        with torch.inference_mode(False):
            self._rows = torch.tensor(table, dtype=torch.float64, device=s.x.device)
            places = np.stack(numbers)
            chosen = torch.tensor(places[:, 0] if places.shape[1] == 1 else places, device=s.x.device)
            self._steps = chosen.unbind(0)
            self._t = torch.tensor(self._told, dtype=wide, device=s.x.device)[:, None].expand(-1, len(s.x)).contiguous()
        self.calls = sum(map(len, self._asks))
        self._step_of = list(itertools.chain(*([i] * len(asks) for i, asks in enumerate(self._asks))))

    def _samples(self, omega: Array) -> Tensor | None:
        if omega.all():
            return None
        return torch.from_numpy(np.flatnonzero(omega)).to(self._setting.x.device)

    def _row(self, express: Network, step: Step, omega: Array, used: Sequence[int]) -> Array:
        """``x' = (a + b P sum omega) x + b Q sum omega_k out_k + s xi``."""
        i, path = step.index, self._table.path
        final = i == len(self._table)
        eps = express.convert("x0" if final else "eps", step)
        a, b, s = (0.0, 1.0, 0.0) if final else (self._table.a[i], self._table.b[i], self._table.s[i])
        values = row.blank()
        for k in range(len(self._outs)):
            factor = 1.0 if k == 0 else express.kappa(path[min(i + 1, path.steps)])
            values[row.w(k, 0)] = factor * (a + b * eps["x"] * omega.sum())
            for place, level in enumerate(used):
                for branch, share in enumerate(self._shares):
                    column = row.w(k, 1 + place * len(self._shares) + branch)
                    values[column] = factor * b * eps["e"] * omega[level] * share
            values[row.g(k, 0)] = factor * s
        values[row.DRAW] = 0 if final else 1 + i
        return values

    @property
    def state(self) -> Tensor:
        return self._outs[0]

    def ends_step(self, call: int) -> bool:
        return call + 1 == self.calls or self._step_of[call + 1] != self._step_of[call]

    def info(self, call: int) -> StepInfo:
        step = self._step_of[call]
        return StepInfo(call, step, self.calls, len(self._table), float(self._told[step]), self.state)

    def stats(self) -> dict[str, Any]:
        asked = self._omega != 0.0
        mean = asked.sum(axis=-2).reshape(-1, asked.shape[-1]).mean(axis=0)  # per level, of a sample
        steps = asked.shape[-2]
        return {
            "calls_per_level": mean.tolist(),
            "cost": float(mean @ self._costs),
            "expected_cost": self._expected,
            "cost_of_last_level": float(steps * self._costs[-1]),
            "costs": self._costs.tolist(),
        }

    def asks(self) -> Asks:
        x, kept = self._setting.x, self._outs[-1]
        buffers: dict[tuple[int, int], Tensor] = {}
        first = True
        update = ranged("update", torch.ops.fastsample.update_.default)
        for i, asks in enumerate(self._asks):
            terms = [self.state]
            for ask in asks:
                if ask.index is None:
                    told = yield kept, self._t[i], ask.level
                else:
                    told = yield kept.index_select(0, ask.index), self._t[i, : len(ask.index)], ask.level, ask.index
                if first:
                    check_output(told, x if ask.index is None else x[: len(ask.index)], guided=self.guided)
                    first = False
                parts = [told] if isinstance(told, Tensor) else list(told)
                if ask.index is not None:
                    parts = [_spread(buffers, (ask.level, n), p, ask.index, x) for n, p in enumerate(parts)]
                terms += parts
            key, given = self._noises(i)
            update(self._outs, terms, self._rows, self._steps[i], key, given)

    def _noises(self, i: int) -> tuple[Tensor | None, list[Tensor]]:
        if not self._noisy[i]:
            return None, []
        return (self._setting.key, []) if self._noise is None else (None, [self._noise(1 + i, self.state)])


def _spread(
    buffers: dict[tuple[int, int], Tensor], place: tuple[int, int], part: Tensor, index: Tensor, x: Tensor
) -> Tensor:
    """The output of some samples as one of the whole batch; what lies between has weight zero."""
    if place not in buffers:
        buffers[place] = torch.empty_like(x, dtype=part.dtype)
    return buffers[place].index_copy_(0, index, part)


def _check(network: dict[str, Any], setting: Setting) -> None:
    if setting.grad:
        raise ValueError("grad: no gradient passes through the choice of levels; allowed is False")
    for name in ("clip", "threshold", "rescale"):
        if network[name] is not None:
            raise ValueError(
                f"{name}: got {network[name]!r}, but what a multilevel step combines is no plausible prediction; limit "
                "the output of each network of the ladder itself"
            )
    if network["denoised"]:
        raise ValueError("denoised: a multilevel step has no plausible estimate of the data; allowed is False")
    guidance = network["guidance"]
    if guidance is not None and (not isinstance(guidance, (int, float)) or isinstance(guidance, bool)):
        raise ValueError(f"guidance: got {guidance!r}, allowed are None and one number")


def multilevel(
    setting: Setting,
    *,
    table: str,
    eta: float,
    p: Any,
    rates: Any,
    budget: float | None,
    gamma: float,
    final: int,
    draws: str,
    shared: bool,
    level_seed: int,
) -> Multilevel:
    """Begin a run.

    ``table``, ``eta``: the base steps, see `fine_table`.  How often levels are asked, one of: ``p``, one probability
    per level or a row per step; ``rates``, per unit of the path's time (``p = min(1, rate dt)``: then cost and error
    hardly depend on the number of steps); ``budget``, expected cost as a share of that of the last level in every step
    (default 0.25), spent by the paper's law with ``gamma`` (cost grows ``2^gamma`` times where the error halves).
    ``final``: so many last steps run the last level, because errors there are not averaged any more.  ``draws``:
    ``"independent"``, ``"nested"`` or ``"systematic"``.  ``shared``: one draw for the whole batch, whose samples are
    then not independent of each other; else one per sample, and each level runs on the samples that ask it.
    """
    if not isinstance(shared, bool):
        raise ValueError(f"shared: got {shared!r}, allowed are True and False")
    if isinstance(level_seed, bool) or not isinstance(level_seed, int) or level_seed < 0:
        raise ValueError(f"level_seed: got {level_seed!r}, allowed are whole numbers >= 0")
    fine = fine_table(setting.path, table, eta)
    if setting.costs is None:
        raise ValueError("model: 'ml-em' needs a ladder of networks; got one network (see fastsample.Ladder)")
    costs = setting.costs
    made = levels_of.probabilities(
        setting.path, costs, p=p, rates=rates, budget=budget, gamma=gamma, final=final, draws=draws
    )
    keys = noise.keys(0, len(setting.x)) if setting.key is None else setting.key.cpu()
    stream = noise.fold_in(noise.fold_in(keys[:1] if shared else keys, STREAM), level_seed)
    uniforms = noise.uniform((len(stream), *made.shape), stream).double().numpy()
    flags = levels_of.draw(made, uniforms, draws)
    return Multilevel(setting, fine, made, flags[0] if shared else flags, draws)


PAPER = "Jacot 2026, arXiv 2603.24594"

add(
    Procedure(
        "ml-em",
        multilevel,
        "multilevel Euler-Maruyama: a ladder of networks, the best of them asked now and then",
        PAPER,
        order=1,
        nfe="0 to K + 1",
        stochastic=True,
        aliases=("multilevel",),
        options={
            "table": "ddpm-small",
            "eta": 0.0,
            "p": None,
            "rates": None,
            "budget": None,
            "gamma": 2.5,
            "final": 0,
            "draws": "independent",
            "shared": True,
            "level_seed": 0,
        },
        usual={"steps": 250},
        model="ladder",
    )
)
