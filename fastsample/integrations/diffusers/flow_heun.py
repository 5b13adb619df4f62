"""Heun's method in t on the velocity of a rectified flow."""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from typing import Any

import diffusers
import torch
from diffusers.schedulers.scheduling_flow_match_heun_discrete import FlowMatchHeunDiscreteSchedulerOutput
from diffusers.schedulers.scheduling_utils import SchedulerMixin  # noqa: F401  (loaders look for it in this module)
from torch import Tensor

from fastsample.solvers.express import Network
from fastsample.solvers.step import Step

from .base import Fused, Generators, Grid
from .engine import Recipe, flow_level
from .euler import refuse_whole


class FlowMatchHeunDiscreteScheduler(Fused, diffusers.FlowMatchHeunDiscreteScheduler):  # type: ignore[misc]
    """Fused ``diffusers.FlowMatchHeunDiscreteScheduler``; see its documentation, and ``Fused`` for what is added.

    Steps with churn are diffusers' own.
    """

    sample: Any
    prev_derivative: Any
    dt: Any

    def set_timesteps(self, num_inference_steps: int, device: Any = None) -> None:
        super().set_timesteps(num_inference_steps, device)
        self._begin_run(device)

    def _first_keys(self, grid: Grid) -> Sequence[Hashable]:
        return [(i, i % 2 == 0) for i in range(len(grid.times))]

    def _family(self, key: Any) -> Sequence[Hashable]:
        first = key[0] % 2 == (0 if key[1] else 1)
        return [(i, (i % 2 == 0) == first) for i in range(key[0], len(self._times))]

    @staticmethod
    def _recipe(grid: Grid, key: Any) -> Recipe:
        index, first = key
        start, end = (grid.sigmas[i] for i in ((index, index + 1) if first else (index - 1, index)))
        gap = end - start
        if first:
            step = Step(index, flow_level(start), 1.0, (gap,), form="raw", keep={"slope": {0: 1.0}})
            return Recipe(step, Network("flow"), writes=("x", "slope"))
        half = 0.5 * gap
        step = Step(index, flow_level(end), 0.0, (half,), form="raw", saved={"anchor": 1.0, "slope": half})
        return Recipe(step, Network("flow"), reads=("anchor", "slope"))

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
        if s_churn:
            return super().step(  # type: ignore[misc]
                model_output, timestep, sample, s_churn, s_tmin, s_tmax, s_noise, generator, return_dict
            )
        refuse_whole("FlowMatchHeunDiscreteScheduler", timestep)
        index = self._step_index
        if index is None:
            self._init_step_index(timestep)
            index = self._step_index
        if self.dt is None:
            made = self._take((index, True), sample, model_output, (model_output.dtype, torch.float32))
            self.dt = self._levels[index + 1] - self._levels[index]
            self.prev_derivative, self.sample = made[1], sample
        else:
            memory = (self.sample, self.prev_derivative)
            made = self._take((index, False), sample, model_output, (model_output.dtype,), memory)
            self.dt = self.prev_derivative = self.sample = None
        self._step_index = index + 1
        if not return_dict:
            return (made[0],)
        return FlowMatchHeunDiscreteSchedulerOutput(prev_sample=made[0])  # type: ignore[arg-type]
