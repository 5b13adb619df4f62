"""Linear multistep in sigma: exact integrals of the interpolating polynomial in the place of quadrature."""

from __future__ import annotations

import warnings
from collections.abc import Hashable, Sequence
from typing import Any

import diffusers
from diffusers.schedulers.scheduling_lms_discrete import LMSDiscreteSchedulerOutput
from diffusers.schedulers.scheduling_utils import SchedulerMixin  # noqa: F401  (loaders look for it in this module)
from torch import Tensor

from fastsample.solvers.calculus import solve_nodes
from fastsample.solvers.step import Step

from .base import Grid
from .ddim import promoted
from .engine import Recipe, ve_level
from .euler import ve_network
from .scaled import Scaled


class LMSDiscreteScheduler(Scaled, diffusers.LMSDiscreteScheduler):  # type: ignore[misc]
    """Fused ``diffusers.LMSDiscreteScheduler``; see its documentation, and ``Fused`` for what is added."""

    _use_ahead = False

    def set_timesteps(self, num_inference_steps: int, device: Any = None) -> None:
        super().set_timesteps(num_inference_steps, device)
        self._begin_run(device)

    def _begin_run(self, device: Any = None) -> None:
        super()._begin_run(device)
        self._use_ahead = False

    def _first_keys(self, grid: Grid) -> Sequence[Hashable]:
        return [(i, min(i + 1, 4), min(i, 3)) for i in range(len(grid.times))]

    def _family(self, key: Any) -> Sequence[Hashable]:
        return [key]

    @staticmethod
    def _recipe(grid: Grid, key: Any) -> Recipe:
        index, order, count = key
        sigma, end = grid.sigmas[index], grid.sigmas[index + 1]
        gap = end - sigma
        nodes = [(grid.sigmas[index - k] - sigma) / gap for k in range(1, order)]
        weights = [gap * beta for beta in solve_nodes(nodes, [1.0 / (k + 1) for k in range(order)])]
        step = Step(index, ve_level(sigma), 1.0, tuple(weights[: 1 + count]), form="eps")
        network = ve_network(grid, "LMSDiscreteScheduler")
        return Recipe(step, network, writes=("x", "x0", "D"), reads=tuple(range(1, 1 + count)))

    def step(
        self, model_output: Tensor, timestep: Any, sample: Tensor, order: int = 4, return_dict: bool = True
    ) -> Any:
        """One step; arguments and results of the class of diffusers."""
        if not self.is_scale_input_called:
            warnings.warn(
                "The `scale_model_input` function should be called before `step` to ensure correct denoising. "
                "See `StableDiffusionPipeline` for a usage example.",
                stacklevel=2,
            )
        index = self._step_index
        if index is None:
            self._init_step_index(timestep)
            index = self._step_index
        slopes = self.derivatives
        used = min(index + 1, order)
        count = min(len(slopes), used - 1)  # those there are: a run that begins inside has fewer than its order
        memory = slopes[: -1 - count : -1] if count else ()
        wide = promoted(sample, model_output)
        made = self._take((index, used, count), sample, model_output, (wide, wide, wide), memory)
        slopes.append(made[2])
        if len(slopes) > order:
            slopes.pop(0)
        self._step_index = index + 1
        if not return_dict:
            return made[0], made[1]
        return LMSDiscreteSchedulerOutput(prev_sample=made[0], pred_original_sample=made[1])
