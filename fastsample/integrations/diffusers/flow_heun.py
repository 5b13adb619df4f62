"""Heun's method in t on the velocity of a rectified flow."""

from __future__ import annotations

import math
from collections.abc import Hashable, Sequence
from typing import Any

import diffusers
import torch
from diffusers.schedulers.scheduling_flow_match_heun_discrete import FlowMatchHeunDiscreteSchedulerOutput
from diffusers.schedulers.scheduling_utils import SchedulerMixin  # noqa: F401  (loaders look for it in this module)
from torch import Tensor

from fastsample.solvers.express import Network
from fastsample.solvers.step import Mix, Step

from .base import Fused, Generators, Grid
from .engine import Recipe, flow_level
from .euler import refuse_whole
from .two_stage import ANCHOR


def _gamma(sigma: float, count: int, churn: Sequence[float]) -> float:
    """By how much of itself sigma is raised; ``count`` is that of the sigmas, doubled ones too, as in diffusers."""
    if not churn or not churn[1] <= sigma <= churn[2]:
        return 0.0
    return min(churn[0] / (count - 1), math.sqrt(2.0) - 1.0)


class FlowMatchHeunDiscreteScheduler(Fused, diffusers.FlowMatchHeunDiscreteScheduler):  # type: ignore[misc]
    """Fused ``diffusers.FlowMatchHeunDiscreteScheduler``; see its documentation, and ``Fused`` for what is added.

    Churn is added where diffusers adds it: to the state, after the network was called with the one before.
    """

    sample: Any
    prev_derivative: Any
    dt: Any
    sigma_min: float
    sigma_max: float
    _churn: tuple[float, ...] = ()  # of the first half of this step: s_churn, s_tmin, s_tmax, s_noise

    def set_timesteps(self, num_inference_steps: int, device: Any = None) -> None:
        ends = self.sigma_min, self.sigma_max
        if self.mode == "exact":  # these were shifted, and would be again
            self.sigma_min, self.sigma_max = 1.0 / self.config.num_train_timesteps, 1.0
        try:
            super().set_timesteps(num_inference_steps, device)
        finally:
            self.sigma_min, self.sigma_max = ends
        self._begin_run(device)

    def _first_keys(self, grid: Grid) -> Sequence[Hashable]:
        return [(i, i % 2 == 0) for i in range(len(grid.times))]

    def _family(self, key: Any) -> Sequence[Hashable]:
        first = key[0] % 2 == (0 if key[1] else 1)
        return [(i, (i % 2 == 0) == first, *key[2:]) for i in range(key[0], len(self._times))]

    @staticmethod
    def _recipe(grid: Grid, key: Any) -> Recipe:
        index, first, *churn = key
        start, end = (grid.sigmas[i] for i in ((index, index + 1) if first else (index - 1, index)))
        gamma = _gamma(start, len(grid.sigmas), churn)
        up = start * (1.0 + gamma)
        gap, reads = end - up, (ANCHOR, "slope")
        if not first:
            half = 0.5 * gap
            step = Step(index, flow_level(end), 0.0, (half,), form="raw", saved={ANCHOR: 1.0, "slope": half})
            return Recipe(step, Network("flow"), reads=reads)
        slope = start / up
        keep: dict[str, Mix] = {"slope": {0: slope}, ANCHOR: {"x": 1.0}}
        if not gamma:
            del keep[ANCHOR]  # it is the sample itself
        step = Step(index, flow_level(start), 1.0, (gap * slope,), form="raw", keep=keep)
        lift = churn[3] * math.sqrt(up * up - start * start) if churn else 0.0
        return Recipe(step, Network("flow"), writes=("x", *keep), lift=lift, draw=1 + index)

    def step(
        self,
        model_output: Tensor,
        timestep: float | Tensor,
        sample: Tensor,
        s_churn: float = 0.0,
        s_tmin: float = 0.0,
        s_tmax: float = float("inf"),
        s_noise: float = 1.0,
        generator: Generators = None,
        return_dict: bool = True,
    ) -> Any:
        """One step; arguments and results of the class of diffusers."""
        refuse_whole("FlowMatchHeunDiscreteScheduler", timestep)
        index = self._step_index
        if index is None:
            self._init_step_index(timestep)
            index = self._step_index
        first = self.dt is None
        noise = keys = None
        gamma = 0.0
        churn: tuple[float, ...] = ()
        if s_churn:
            churn = float(s_churn), float(s_tmin), float(s_tmax), float(s_noise)
            self._rows()
            gamma = _gamma(self._levels[index if first else index - 1], len(self._levels), churn)
            if gamma and (first or self.mode == "strict"):  # the second half draws, but uses it for nothing
                noise, keys = self._draw(model_output, generator, model_output.dtype)
        own = model_output.dtype
        if first:
            wide = torch.float64 if own is torch.float64 else torch.float32
            dtypes = (own, wide, wide) if gamma else (own, wide)
            made = self._take((index, True, *churn), sample, model_output, dtypes, noise=noise, counter=keys)
            self.dt = self._levels[index + 1] - self._levels[index] * (1.0 + gamma)
            self._churn, self.prev_derivative, self.sample = churn, made[1], made[2] if gamma else sample
        else:
            memory = (self.sample, self.prev_derivative)
            made = self._take((index, False, *self._churn), sample, model_output, (own,), memory)
            self.dt = self.prev_derivative = self.sample = None
        self._step_index = index + 1
        if not return_dict:
            return (made[0],)
        return FlowMatchHeunDiscreteSchedulerOutput(prev_sample=made[0])  # type: ignore[arg-type]
