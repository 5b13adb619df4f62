"""Samplers of distilled networks: LCM, TCD, consistency models.  To clean data, then noise up to the next level."""

from __future__ import annotations

import math
from collections.abc import Hashable, Sequence
from typing import Any

import diffusers
import numpy as np
from diffusers.schedulers.scheduling_consistency_models import CMStochasticIterativeSchedulerOutput
from diffusers.schedulers.scheduling_lcm import LCMSchedulerOutput
from diffusers.schedulers.scheduling_tcd import TCDSchedulerOutput
from diffusers.schedulers.scheduling_utils import SchedulerMixin  # noqa: F401  (loaders look for it in this module)
from torch import Tensor

from fastsample.solvers.express import Combo, Network
from fastsample.solvers.step import Step

from .base import Fused, Generators, Grid
from .ddim import _NO_STEPS, level, promoted, squared
from .engine import Recipe, ve_level
from .euler import refuse_whole, warn_unscaled
from .scaled import Scaled

SIGMA_DATA = 0.5


class _Indexed(Fused):
    """Mixin for classes with an index that read their table at the caller's time.

    Keys are ``(index, time, ...)``.
    """

    def _extra(self) -> Hashable:
        return tuple(self.alphas_cumprod.tolist()), (float(self.final_alpha_cumprod), self.num_inference_steps)

    def _final(self, index: int) -> bool:
        """Whether the step is the last one; diffusers compares with the steps asked for, not with those there are."""
        steps = len(self._times) if self.mode == "exact" else self.num_inference_steps
        return bool(index == steps - 1)


class LCMScheduler(_Indexed, diffusers.LCMScheduler):  # type: ignore[misc]
    """Fused ``diffusers.LCMScheduler``; see its documentation, and ``Fused`` for what is added."""

    def set_timesteps(
        self,
        num_inference_steps: Any = None,
        device: Any = None,
        original_inference_steps: Any = None,
        timesteps: Any = None,
        strength: float = 1.0,
    ) -> None:
        super().set_timesteps(num_inference_steps, device, original_inference_steps, timesteps, strength)
        self._begin_run(device)

    def _first_keys(self, grid: Grid) -> Sequence[Hashable]:
        return [(i, int(t), self._final(i)) for i, t in enumerate(grid.times)]

    def _family(self, key: tuple[Any, ...]) -> Sequence[Hashable]:
        return [key]

    @staticmethod
    def _recipe(grid: Grid, key: Any) -> Recipe:
        index, t, last = key
        following = int(grid.times[index + 1]) if index + 1 < len(grid.times) else t
        start, end = level(grid, t), level(grid, following)
        told = t * grid.config["timestep_scaling"]
        skip, out = SIGMA_DATA**2 / (told**2 + SIGMA_DATA**2), told / math.hypot(told, SIGMA_DATA)
        alpha, sigma = (1.0, 0.0) if last else (end.alpha, end.sigma)
        return Recipe(
            Step(index, start, alpha * skip, (alpha * out,), sigma, keep={"denoised": {"x": skip, 0: out}}),
            Network(grid.prediction("LCMScheduler")),
            writes=("x", "denoised"),
            limit=grid.limit(),
            threshold=grid.threshold(),
            draw=1 + index,
        )

    def step(
        self,
        model_output: Tensor,
        timestep: Any,
        sample: Tensor,
        generator: Generators = None,
        return_dict: bool = True,
    ) -> Any:
        """One step; arguments and results of the class of diffusers."""
        if self.num_inference_steps is None:
            raise ValueError(_NO_STEPS)
        index = self._step_index
        if index is None:
            self._init_step_index(timestep)
            index = self._step_index
        self._rows()
        t, last = int(self._time(timestep)), self._final(index)
        wide = promoted(sample, model_output)
        noise, keys = (None, None) if last else self._pend(model_output, generator, wide)
        made = self._take((index, t, last), sample, model_output, (wide, wide), noise=noise, counter=keys)
        self._step_index = index + 1
        if not return_dict:
            return made[0], made[1]
        return LCMSchedulerOutput(prev_sample=made[0], denoised=made[1])


class TCDScheduler(_Indexed, diffusers.TCDScheduler):  # type: ignore[misc]
    """Fused ``diffusers.TCDScheduler``; see its documentation, and ``Fused`` for what is added."""

    def set_timesteps(
        self,
        num_inference_steps: Any = None,
        device: Any = None,
        original_inference_steps: Any = None,
        timesteps: Any = None,
        strength: float = 1.0,
    ) -> None:
        super().set_timesteps(num_inference_steps, device, original_inference_steps, timesteps, strength)
        self._begin_run(device)

    def _first_keys(self, grid: Grid) -> Sequence[Hashable]:
        return [(i, int(t), 0.3, self._final(i)) for i, t in enumerate(grid.times)]

    def _family(self, key: tuple[Any, ...]) -> Sequence[Hashable]:
        return [(i, int(t), key[2], self._final(i)) for i, t in enumerate(self._times)]

    @staticmethod
    def _recipe(grid: Grid, key: Any) -> Recipe:
        index, t, eta, last = key
        following = int(grid.times[index + 1]) if index + 1 < len(grid.times) else 0
        inner = int(np.floor(np.float32(1.0 - eta) * np.float32(following)))
        start, lower = level(grid, t), level(grid, inner)
        ratio, noise = 1.0, 0.0
        if eta > 0.0 and not last:
            share = squared(grid, following) / squared(grid, inner)
            ratio, noise = math.sqrt(share), math.sqrt(max(1.0 - share, 0.0))
        return Recipe(
            Step(
                index,
                start,
                0.0,
                (ratio * lower.alpha,),
                noise,
                raw=ratio * lower.sigma,
                keep={"noised": {0: lower.alpha, "eps": lower.sigma}},
            ),
            Network(grid.prediction("TCDScheduler")),
            writes=("x", "noised"),
            draw=1 + index,
        )

    def step(
        self,
        model_output: Tensor,
        timestep: Any,
        sample: Tensor,
        eta: float = 0.3,
        generator: Generators = None,
        return_dict: bool = True,
    ) -> Any:
        """One step; arguments and results of the class of diffusers."""
        if self.num_inference_steps is None:
            raise ValueError(_NO_STEPS)
        index = self._step_index
        if index is None:
            self._init_step_index(timestep)
            index = self._step_index
        assert 0 <= eta <= 1.0, "gamma must be less than or equal to 1.0"
        self._rows()
        t, last = int(self._time(timestep)), self._final(index)
        wide = promoted(sample, model_output)
        noise = keys = None
        if eta > 0 and not last:
            noise, keys = self._pend(model_output, generator, wide)
        made = self._take((index, t, eta, last), sample, model_output, (wide, wide), noise=noise, counter=keys)
        self._step_index = index + 1
        if not return_dict:
            return made[0], made[1]
        return TCDSchedulerOutput(prev_sample=made[0], pred_noised_sample=made[1])


class _Consistency(Network):
    """A consistency function ``c_skip x + c_out F``; ``prediction`` holds the sigma of its boundary."""

    def convert(self, form: str, step: Step) -> Combo:
        low, sigma = float(self.prediction), step.at.sigma
        skip = self.sigma_data**2 / ((sigma - low) ** 2 + self.sigma_data**2)
        return {"x": skip, "e": (sigma - low) * self.sigma_data / math.hypot(sigma, self.sigma_data)}


class CMStochasticIterativeScheduler(Scaled, diffusers.CMStochasticIterativeScheduler):  # type: ignore[misc]
    """Fused ``diffusers.CMStochasticIterativeScheduler``; see its documentation, and ``Fused`` for what is added.

    The last step adds no noise where rounding would make its variance negative (diffusers returns NaN there).
    """

    def set_timesteps(self, num_inference_steps: Any = None, device: Any = None, timesteps: Any = None) -> None:
        super().set_timesteps(num_inference_steps, device, timesteps)
        self._begin_run(device)

    def _kappa(self, sigma: float) -> float:
        return 1.0 / math.hypot(sigma, self.config.sigma_data)

    @staticmethod
    def _recipe(grid: Grid, index: Any) -> Recipe:
        config = grid.config
        low = config["sigma_min"]
        end = grid.sigmas[index + 1] if index + 1 < config["num_train_timesteps"] else grid.sigmas[-1]
        up = min(max(end, low), config["sigma_max"])
        if grid.exact and index + 2 == len(grid.sigmas):
            up = low
        noise = config["s_noise"] * math.sqrt(max(up**2 - low**2, 0.0)) if len(grid.times) > 1 else 0.0
        return Recipe(
            Step(index, ve_level(grid.sigmas[index]), 0.0, (1.0,), noise),
            _Consistency(str(low), "none", config["sigma_data"]),
            limit=1.0 if config["clip_denoised"] else None,
            draw=1 + index,
        )

    def step(
        self,
        model_output: Tensor,
        timestep: Any,
        sample: Tensor,
        generator: Generators = None,
        return_dict: bool = True,
    ) -> Any:
        """One step; arguments and results of the class of diffusers."""
        refuse_whole(str(type(self)), timestep)
        if not self.is_scale_input_called:
            warn_unscaled()
        index = self._step_index
        if index is None:
            self._init_step_index(timestep)
            index = self._step_index
        self._rows()
        noise = keys = None
        last = index + 2 == len(self._levels)
        if len(self._times) > 1 and not (last and self.mode == "exact"):
            noise, keys = self._pend(model_output, generator, model_output.dtype)
        wide = promoted(sample, model_output)
        made = self._take(index, sample, model_output, (wide,), noise=noise, counter=keys)
        self._step_index = index + 1
        return CMStochasticIterativeSchedulerOutput(prev_sample=made[0]) if return_dict else (made[0],)
