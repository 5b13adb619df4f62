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

from .base import Fused, Grid
from .ddim import promoted
from .engine import Recipe, ve_level
from .scaled import Scaled
from .two_stage import network_of

_MOST = 7  # slopes that a row can read


class LMSDiscreteScheduler(Scaled, diffusers.LMSDiscreteScheduler):  # type: ignore[misc]
    """Fused ``diffusers.LMSDiscreteScheduler``; see its documentation, and ``Fused`` for what is added.

    Steps of an order above 7 are diffusers' own.
    """

    _use_ahead = False

    def set_timesteps(self, num_inference_steps: int, device: Any = None) -> None:
        super().set_timesteps(num_inference_steps, device)
        self._begin_run(device)

    def _begin_run(self, device: Any = None) -> None:
        super()._begin_run(device)
        self._use_ahead = False

    def _first_keys(self, grid: Grid) -> Sequence[Hashable]:
        return self._run(0, len(grid.times), 4)

    def _family(self, key: Any) -> Sequence[Hashable]:
        index, used, count = key
        # a run has used = min(index + 1, order) of each step, so the first such step does not tell its order
        orders = {used} if used <= index else {used, max(used, 4)}
        return [key, *(new for order in orders for new in self._run(index - count, len(self._times), order))]

    def set_begin_index(self, begin_index: int = 0) -> None:
        """Where the run begins; its rows are made here."""
        self._begin_index = begin_index
        if begin_index and self._bound is not None:
            self._rows().prepare(self._run(begin_index, len(self._times), 4))

    @staticmethod
    def _run(first: int, stop: int, order: int) -> Sequence[Hashable]:
        """Keys of a run that begins at step ``first``: the step, the order, and how many slopes there are for it."""
        return [(i, min(i + 1, order), min(i - first, min(i + 1, order) - 1)) for i in range(first, stop)]

    @staticmethod
    def _recipe(grid: Grid, key: Any) -> Recipe:
        index, order, count = key
        sigma, end = grid.sigmas[index], grid.sigmas[index + 1]
        gap = end - sigma
        nodes = [(grid.sigmas[index - k] - sigma) / gap for k in range(1, order)]
        weights = [gap * beta for beta in solve_nodes(nodes, [1.0 / (k + 1) for k in range(order)])]
        step = Step(index, ve_level(sigma), 1.0, tuple(weights[: 1 + count]), form="eps")
        network = network_of(grid, "LMSDiscreteScheduler", ("epsilon", "sample", "v_prediction"))
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
        if order > _MOST:
            return super(Fused, self).step(model_output, timestep, sample, order, return_dict)  # type: ignore[misc]
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
