"""Two calls per step in a VE state: Heun, KDPM2, its ancestral form.

Every second call starts again from the sample of the first (``self.sample``), as in diffusers: the rows stay right when
a caller changes the state between the calls.
"""

from __future__ import annotations

import math
from collections.abc import Hashable, Sequence
from typing import Any

import diffusers
from diffusers.schedulers.scheduling_heun_discrete import HeunDiscreteSchedulerOutput
from diffusers.schedulers.scheduling_k_dpm_2_ancestral_discrete import KDPM2AncestralDiscreteSchedulerOutput
from diffusers.schedulers.scheduling_k_dpm_2_discrete import KDPM2DiscreteSchedulerOutput
from diffusers.schedulers.scheduling_utils import SchedulerMixin  # noqa: F401  (loaders look for it in this module)
from torch import Tensor

from fastsample.solvers.express import Network
from fastsample.solvers.first_order import ancestral_noise
from fastsample.solvers.step import Step

from .base import Generators, Grid
from .ddim import promoted
from .engine import Recipe, ve_level
from .scaled import Scaled

ANCHOR = "anchor"  # the sample of the first call


def network_of(grid: Grid, owner: str, allowed: Sequence[str] = ("epsilon", "v_prediction")) -> Network:
    if grid.config["prediction_type"] == "sample" and "sample" not in allowed:
        raise NotImplementedError("prediction_type not implemented yet: sample")
    return Network(grid.prediction(owner, allowed), "vp")


class TwoStage(Scaled):
    """Mixin: keys of rows are ``(index, first)``, with which call of the step it is."""

    sample: Any
    _use_ahead = False

    def _begin_run(self, device: Any = None) -> None:
        super()._begin_run(device)
        self._use_ahead = False

    def _first_keys(self, grid: Grid) -> Sequence[Hashable]:
        return [(i, i % 2 == 0) for i in range(len(grid.times))]

    def _family(self, key: Any) -> Sequence[Hashable]:
        first = key[0] % 2 == (0 if key[1] else 1)
        return [(i, (i % 2 == 0) == first, *key[2:]) for i in range(key[0], len(self._times))]

    def scale_model_input(self, sample: Tensor, timestep: Any) -> Tensor:
        """``sample`` times the factor of the network's input; see the class of diffusers."""
        if self._step_index is None:
            self._init_step_index(timestep)
        self._rows()
        self.is_scale_input_called = True
        return self._product(sample, self._kappa(self._input_sigma(self._step_index, self.sample is None)))

    def _input_sigma(self, index: int, first: bool) -> float:
        """sigma of the state that the network sees."""
        return self._levels[index]


class HeunDiscreteScheduler(TwoStage, diffusers.HeunDiscreteScheduler):  # type: ignore[misc]
    """Fused ``diffusers.HeunDiscreteScheduler``; see its documentation, and ``Fused`` for what is added."""

    prev_derivative: Any
    dt: Any

    def set_timesteps(
        self,
        num_inference_steps: Any = None,
        device: Any = None,
        num_train_timesteps: Any = None,
        timesteps: Any = None,
    ) -> None:
        super().set_timesteps(num_inference_steps, device, num_train_timesteps, timesteps)
        self.sample = None
        self._begin_run(device)

    @staticmethod
    def _recipe(grid: Grid, key: Any) -> Recipe:
        index, first = key
        network = network_of(grid, "HeunDiscreteScheduler", ("epsilon", "sample", "v_prediction"))
        if first:
            sigma, end = grid.sigmas[index], grid.sigmas[index + 1]
            slope = {"x": 1.0 / sigma, 0: -1.0 / sigma}
            step = Step(index, ve_level(sigma), end / sigma, (1.0 - end / sigma,), keep={"slope": slope})  # type: ignore[dict-item]
            return Recipe(step, network, writes=("x", "x0", "slope"), limit=grid.limit())
        sigma, end = grid.sigmas[index - 1], grid.sigmas[index]
        half = 0.5 * (end - sigma)
        step = Step(index, ve_level(end), half / end, (-half / end,), saved={ANCHOR: 1.0, "slope": half})
        return Recipe(step, network, writes=("x", "x0"), reads=(ANCHOR, "slope"), limit=grid.limit())

    def step(self, model_output: Any, timestep: Any, sample: Any, return_dict: bool = True) -> Any:
        """One step; arguments and results of the class of diffusers."""
        index = self._step_index
        if index is None:
            self._init_step_index(timestep)
            index = self._step_index
        wide = promoted(sample, model_output)
        if self.dt is None:
            made = self._take((index, True), sample, model_output, (wide, wide, wide))
            self.dt = self._levels[index + 1] - self._levels[index]
            self.prev_derivative, self.sample = made[2], sample
        else:
            memory = (self.sample, self.prev_derivative)
            made = self._take((index, False), sample, model_output, (wide, wide), memory)
            self.dt = self.prev_derivative = self.sample = None
        self._step_index = index + 1
        if not return_dict:
            return made[0], made[1]
        return HeunDiscreteSchedulerOutput(prev_sample=made[0], pred_original_sample=made[1])


def _second(index: int, middle: float, start: float, down: float, c: float = 0.0) -> Step:
    """From the step's start along the slope at the middle: ``x_a + (y - x0) / sigma_m (sigma_down - sigma)``."""
    slope = (down - start) / middle
    return Step(index, ve_level(middle), slope, (-slope,), c, saved={ANCHOR: 1.0})


def straight(index: int, start: float, end: float) -> Step:
    return Step(index, ve_level(start), end / start, (1.0 - end / start,))


class KDPM2DiscreteScheduler(TwoStage, diffusers.KDPM2DiscreteScheduler):  # type: ignore[misc]
    """Fused ``diffusers.KDPM2DiscreteScheduler``; see its documentation, and ``Fused`` for what is added."""

    def set_timesteps(self, num_inference_steps: int, device: Any = None, num_train_timesteps: Any = None) -> None:
        super().set_timesteps(num_inference_steps, device, num_train_timesteps)
        self._begin_run(device)

    def _extra(self) -> Hashable:
        self._middles = tuple(self.sigmas_interpol.tolist())
        return self._middles

    def _input_sigma(self, index: int, first: bool) -> float:
        return self._levels[index] if first else self._middles[index]

    @staticmethod
    def _recipe(grid: Grid, key: Any) -> Recipe:
        index, first = key
        network = network_of(grid, "KDPM2DiscreteScheduler")
        if first:
            step = straight(index, grid.sigmas[index], grid.extra[index + 1])
            return Recipe(step, network, writes=("x", "x0"))
        step = _second(index, grid.extra[index], grid.sigmas[index - 1], grid.sigmas[index])
        return Recipe(step, network, writes=("x", "x0"), reads=(ANCHOR,))

    def step(self, model_output: Any, timestep: Any, sample: Any, return_dict: bool = True) -> Any:
        """One step; arguments and results of the class of diffusers."""
        made = self._both(model_output, timestep, sample)
        if not return_dict:
            return made[0], made[1]
        return KDPM2DiscreteSchedulerOutput(prev_sample=made[0], pred_original_sample=made[1])

    def _both(self, model_output: Tensor, timestep: Any, sample: Tensor) -> list[Tensor]:
        index = self._step_index
        if index is None:
            self._init_step_index(timestep)
            index = self._step_index
        wide = promoted(sample, model_output)
        if self.sample is None:
            made = self._take((index, True), sample, model_output, (wide, wide))
            self.sample = sample
        else:
            made = self._take((index, False), sample, model_output, (wide, wide), (self.sample,))
            self.sample = None
        self._step_index = index + 1
        return made


class KDPM2AncestralDiscreteScheduler(TwoStage, diffusers.KDPM2AncestralDiscreteScheduler):  # type: ignore[misc]
    """Fused ``diffusers.KDPM2AncestralDiscreteScheduler``; see its documentation, and ``Fused`` for what is added."""

    def set_timesteps(self, num_inference_steps: int, device: Any = None, num_train_timesteps: Any = None) -> None:
        super().set_timesteps(num_inference_steps, device, num_train_timesteps)
        self._begin_run(device)

    def _extra(self) -> Hashable:
        self._middles = tuple(self.sigmas_interpol.tolist())
        return self._middles

    def _input_sigma(self, index: int, first: bool) -> float:
        return self._levels[index] if first else self._middles[index - 1]

    @staticmethod
    def _recipe(grid: Grid, key: Any) -> Recipe:
        index, first = key
        network = network_of(grid, "KDPM2AncestralDiscreteScheduler")
        if first:
            return Recipe(straight(index, grid.sigmas[index], grid.extra[index]), network, writes=("x", "x0"))
        start, end = ve_level(grid.sigmas[index - 1]), ve_level(grid.sigmas[index])
        up = ancestral_noise(start, end)
        down = math.sqrt(max(end.sigma**2 - up**2, 0.0))
        step = _second(index, grid.extra[index - 1], start.sigma, down, up)
        return Recipe(step, network, writes=("x", "x0"), reads=(ANCHOR,), draw=1 + index)

    def step(
        self, model_output: Any, timestep: Any, sample: Any, generator: Generators = None, return_dict: bool = True
    ) -> Any:
        """One step; arguments and results of the class of diffusers."""
        index = self._step_index
        if index is None:
            self._init_step_index(timestep)
            index = self._step_index
        wide = promoted(sample, model_output)
        if self.sample is None:
            made = self._take((index, True), sample, model_output, (wide, wide))
            self.sample = sample
        else:
            noise, keys = self._pend(model_output, generator, model_output.dtype)
            made = self._take((index, False), sample, model_output, (wide, wide), (self.sample,), noise, keys)
            self.sample = None
        self._step_index = index + 1
        if not return_dict:
            return made[0], made[1]
        return KDPM2AncestralDiscreteSchedulerOutput(prev_sample=made[0], pred_original_sample=made[1])
