"""PNDM: pseudo Runge-Kutta calls, then linear multistep, on the network's own outputs."""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from typing import Any

import diffusers
from diffusers.schedulers.scheduling_utils import SchedulerMixin, SchedulerOutput  # noqa: F401
from torch import Tensor

from fastsample.solvers.express import Network
from fastsample.solvers.step import Mix, Step

from .base import Grid
from .ddim import _NO_STEPS, Tabled, level, promoted
from .engine import Recipe

# weights of the outputs, the latest first, by how many there are
LINEAR = {
    1: (1.0,),
    2: (1.5, -0.5),
    3: (23 / 12, -16 / 12, 5 / 12),
    4: (55 / 24, -59 / 24, 37 / 24, -9 / 24),
}
AGAIN = (0.5, 0.5)  # the second call of the multistep part repeats the first step
KUTTA = (1 / 6, 1 / 3, 1 / 3, 1 / 6)


class PNDMScheduler(Tabled, diffusers.PNDMScheduler):  # type: ignore[misc]
    """Fused ``diffusers.PNDMScheduler``; see its documentation, and ``Fused`` for what is added."""

    ets: list[Tensor]
    cur_sample: Any
    cur_model_output: Any
    counter: int
    _following: dict[int, int]  # the grid's own next times, in exact mode

    def set_timesteps(self, num_inference_steps: int, device: Any = None) -> None:
        super().set_timesteps(num_inference_steps, device)
        self._begin_run(device)

    def _extra(self) -> Hashable:
        grid = sorted({int(t) for t in self._timesteps}, reverse=True) if self.mode == "exact" else []
        self._following = dict(zip(grid, [*grid[1:], -1], strict=True)) if grid else {}
        return super()._extra()

    def _stride(self) -> int:
        return int(self.config.num_train_timesteps) // int(self.num_inference_steps)

    def _after(self, t: int) -> int:
        """Where a step of the multistep part goes: a fixed stride, whatever the grid; in exact mode its next entry."""
        return self._following.get(t, t - self._stride())

    def _before(self, t: int) -> int:
        """The entry of which ``t`` is the next."""
        return next((k for k, after in self._following.items() if after == t), t + self._stride())

    def _kutta_key(self, counter: int, t: int) -> Hashable:
        """Key of a call of the Runge-Kutta part that is told time ``t``: half a stride on, or from the start to t."""
        after = t - (0 if counter % 2 else self._stride() // 2)
        if self._following and counter % 2 == 0 and counter + 1 < len(self.prk_timesteps):
            after = int(self.prk_timesteps[counter + 1])
        return f"rk{counter % 4}", int(self.prk_timesteps[counter // 4 * 4]), after

    def _first_keys(self, grid: Grid) -> Sequence[Hashable]:
        return self._run([int(t) for t in grid.times])

    def _run(self, times: Sequence[int]) -> Sequence[Hashable]:
        """Keys of a run over ``times``."""
        kutta = 0 if self.config.skip_prk_steps else len(self.prk_timesteps)
        keys = [self._kutta_key(k, t) for k, t in enumerate(times[:kutta])]
        for k, t in enumerate(times[kutta:]):
            if kutta == 0 and k == 1:
                keys.append(("again", self._before(t), t))
            else:
                keys.append((str(4 if kutta else min(max(k, 1), 4)), t, self._after(t)))
        return keys

    def _family(self, key: Any) -> Sequence[Hashable]:
        return [key]

    @staticmethod
    def _recipe(grid: Grid, key: Any) -> Recipe:
        what, t, after = key
        start, end = level(grid, t), level(grid, after)
        a = end.alpha / start.alpha
        g = end.sigma - a * start.sigma
        scale = 1.0
        if grid.prediction("PNDMScheduler", ("epsilon", "v_prediction")) == "v":  # of the sum, as diffusers
            a, scale = a + g * start.sigma, start.alpha
        g *= scale
        reads: tuple[str | int, ...] = ()
        keep: dict[str, Mix] = {}
        saved: dict[str, float] = {}
        if what.startswith("rk"):
            k = int(what[2])
            weights: tuple[float, ...] = (g,)
            if k < 3:
                keep = {"sum": {0: KUTTA[k], **({"sum": 1.0} if k else {})}}  # type: ignore[dict-item]
            else:
                weights, saved = (g * KUTTA[3],), {"sum": g}
            if k:
                saved, reads = {"anchor": a, **saved}, ("anchor", "sum")
        elif what == "again":
            weights, saved, reads = tuple(g * w for w in AGAIN), {"anchor": a}, (1, "anchor")
        else:
            weights = tuple(g * w for w in LINEAR[int(what)])
            reads = tuple(range(1, int(what)))
        step = Step(0, start, 0.0 if "anchor" in saved else a, weights, form="raw", saved=saved, keep=keep)
        return Recipe(step, Network("eps"), writes=("x", *keep), reads=reads)

    def _now(self, timestep: Any) -> int:
        rows, t = self._rows(), int(self._time(timestep))
        if self.counter == 0 and t != self._times[0] and t in self._times:  # the run begins inside the grid
            place = self._position(timestep) if isinstance(timestep, Tensor) else None
            rows.prepare(self._run([int(t) for t in self._times[place or self._times.index(t) :]]))
        return t

    def step_prk(self, model_output: Tensor, timestep: Any, sample: Tensor, return_dict: bool = True) -> Any:
        """One call of the Runge-Kutta part; arguments and results of the class of diffusers."""
        if self.num_inference_steps is None:
            raise ValueError(_NO_STEPS)
        k = self.counter % 4
        t = self._now(timestep)
        if k == 0:
            self.ets.append(model_output)
            self.cur_sample = sample
        anchor = self.cur_sample if self.cur_sample is not None else sample
        wide = promoted(sample, model_output)
        memory = (anchor, self.cur_model_output) if k else ()
        made = self._take(
            self._kutta_key(self.counter, t), sample, model_output, (wide,) * (1 if k == 3 else 2), memory
        )
        self.cur_model_output = 0 if k == 3 else made[1]
        self.counter += 1
        return SchedulerOutput(prev_sample=made[0]) if return_dict else (made[0],)

    def step_plms(self, model_output: Tensor, timestep: Any, sample: Tensor, return_dict: bool = True) -> Any:
        """One call of the multistep part; arguments and results of the class of diffusers."""
        if self.num_inference_steps is None:
            raise ValueError(_NO_STEPS)
        if not self.config.skip_prk_steps and len(self.ets) < 3:
            raise ValueError(
                f"{self.__class__} can only be run AFTER scheduler has been run in 'prk' mode for at least 12 "
                "iterations See: https://github.com/huggingface/diffusers/blob/main/src/diffusers/pipelines/"
                "pipeline_pndm.py for more information."
            )
        t = self._now(timestep)
        again = self.counter == 1
        memory: Sequence[Tensor]
        if not again:
            self.ets = [*self.ets[-3:], model_output]
        if again and len(self.ets) == 1:
            key, memory = ("again", self._before(t), t), (self.ets[-1], self.cur_sample)
            self.cur_sample = None
        else:
            there = min(len(self.ets), 4)
            key = (str(there), self._before(t), t) if again else (str(there), t, self._after(t))
            memory, model_output = self.ets[-2 : -1 - there : -1], self.ets[-1]  # repeated, the call itself is not used
            if len(self.ets) == 1 and self.counter == 0:
                self.cur_sample = sample
        made = self._take(key, sample, model_output, (promoted(sample, model_output),), memory)
        self.counter += 1
        return SchedulerOutput(prev_sample=made[0]) if return_dict else (made[0],)
