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

    def set_timesteps(self, num_inference_steps: int, device: Any = None) -> None:
        super().set_timesteps(num_inference_steps, device)
        self._begin_run(device)

    def _stride(self) -> int:
        return int(self.config.num_train_timesteps) // int(self.num_inference_steps)

    def _first_keys(self, grid: Grid) -> Sequence[Hashable]:
        stride, keys, times = self._stride(), [], [int(t) for t in grid.times]
        kutta = 0 if self.config.skip_prk_steps else len(self.prk_timesteps)
        for k in range(kutta):
            base = int(self.prk_timesteps[k // 4 * 4])
            keys.append((f"rk{k % 4}", base, times[k] - (0 if k % 2 else stride // 2)))
        for k, t in enumerate(times[kutta:]):
            if kutta == 0 and k == 1:
                keys.append(("again", t + stride, t))
            else:
                there = min(4 if kutta else max(k, 1), 4)
                keys.append((str(there), t, t - stride))
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

    def step_prk(self, model_output: Tensor, timestep: Any, sample: Tensor, return_dict: bool = True) -> Any:
        """One call of the Runge-Kutta part; arguments and results of the class of diffusers."""
        if self.num_inference_steps is None:
            raise ValueError(_NO_STEPS)
        k = self.counter % 4
        after = int(self._time(timestep)) - (0 if self.counter % 2 else self._stride() // 2)
        base = int(self.prk_timesteps[self.counter // 4 * 4])
        if k == 0:
            self.ets.append(model_output)
            self.cur_sample = sample
        anchor = self.cur_sample if self.cur_sample is not None else sample
        wide = promoted(sample, model_output)
        memory = (anchor, self.cur_model_output) if k else ()
        made = self._take((f"rk{k}", base, after), sample, model_output, (wide,) * (1 if k == 3 else 2), memory)
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
        t, stride = int(self._time(timestep)), self._stride()
        again = self.counter == 1
        memory: Sequence[Tensor]
        if not again:
            self.ets = [*self.ets[-3:], model_output]
        if again and len(self.ets) == 1:
            key, memory = ("again", t + stride, t), (self.ets[-1], self.cur_sample)
            self.cur_sample = None
        else:
            there = min(len(self.ets), 4)
            after = t if again else t - stride
            key, memory = (str(there), t + stride if again else t, after), self.ets[-2 : -1 - there : -1]
            if len(self.ets) == 1 and self.counter == 0:
                self.cur_sample = sample
        made = self._take(key, sample, model_output, (promoted(sample, model_output),), memory)
        self.counter += 1
        return SchedulerOutput(prev_sample=made[0]) if return_dict else (made[0],)
