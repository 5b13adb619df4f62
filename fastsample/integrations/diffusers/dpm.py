"""Exponential multistep samplers: DPM-Solver(++) of one and of EDM's kind, DEIS."""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from typing import Any

import diffusers
import numpy as np
import torch
from diffusers.schedulers.scheduling_utils import SchedulerMixin, SchedulerOutput  # noqa: F401
from torch import Tensor

from fastsample.path import Level, Path
from fastsample.solvers.express import Network
from fastsample.solvers.first_order import transfer
from fastsample.solvers.multistep import multistep
from fastsample.solvers.step import Step

from .base import Fused, Generators, Grid
from .ddim import _NO_STEPS, promoted
from .draws import Pending
from .engine import Recipe, flow_level, ve_level, vp_level
from .euler import edm_network
from .scaled import Scaled

PREDICTED = ("epsilon", "sample", "v_prediction", "flow_prediction")


def levels(grid: Grid) -> list[Level]:
    """The levels of a grid: sigma is sigma/alpha, or the time of a rectified flow."""
    made: list[Level] | None = grid.memo.get("levels")
    if made is None:
        make = flow_level if grid.config.get("use_flow_sigmas") else vp_level
        made = grid.memo["levels"] = [make(sigma) for sigma in grid.sigmas]
    return made


def as_path(points: Sequence[Level]) -> Path:
    """A path of levels; float32 grids may fall back by an ulp where they repeat a level, which changes nothing."""
    alpha, sigma = (np.array([p[k] for p in points]) for k in (0, 1))
    for i in range(1, len(points)):
        back = alpha[i] * sigma[i - 1] < alpha[i - 1] * sigma[i]
        if back and alpha[i] * sigma[i - 1] > alpha[i - 1] * sigma[i] * (1.0 - 1e-5):
            alpha[i], sigma[i] = alpha[i - 1], sigma[i - 1]
    return Path(alpha, sigma, np.zeros(len(points)))


def shortened(grid: Grid) -> bool:
    """Whether the order falls at the end: diffusers does so in runs of fewer than 15 steps."""
    return bool(grid.config["lower_order_final"]) and len(grid.times) < 15


class Facts:
    """Of a configuration: the order, whether steps have noise, whether three channels of the output are kept."""

    def __init__(self, config: Any) -> None:
        self.config, self.order = config, int(config["solver_order"])
        self.noisy = str(config.get("algorithm_type", "")).startswith("sde")
        learned = config.get("variance_type") in ("learned", "learned_range")
        self.three = learned and config["prediction_type"] == "epsilon"


class Multistep(Fused):
    """Mixin for classes with a list of converted outputs of earlier calls.

    The key of a row is ``(index, first)``: the step and the one at which the run began, where the history is empty.
    """

    _facts: Facts | None = None
    _started: int = 0
    lower_order_nums: int

    def _first_keys(self, grid: Grid) -> Sequence[Hashable]:
        begin = self.begin_index or 0
        return [(i, begin) for i in range(begin, len(grid.times))]

    def _family(self, key: tuple[int, int]) -> Sequence[Hashable]:
        return [(i, key[1]) for i in range(key[0], len(self._times))]

    def set_begin_index(self, begin_index: int = 0) -> None:
        """Where the run begins; its rows are made here."""
        self._begin_index = begin_index
        if begin_index and self._bound is not None:
            self._rows().prepare([(i, begin_index) for i in range(begin_index, len(self._times))])

    def _shift(self, converted: Tensor) -> None:
        """The list of outputs moves on by one."""
        outputs = self.model_outputs
        for i in range(len(outputs) - 1):
            outputs[i] = outputs[i + 1]
        outputs[-1] = converted

    def _advance(
        self,
        model_output: Tensor,
        sample: Tensor,
        dtypes: Sequence[torch.dtype],
        noise: Tensor | Pending | None = None,
        keys: Tensor | None = None,
    ) -> Tensor:
        """One step: the new state; outputs and index move on."""
        index, warm, order = self._step_index, self.lower_order_nums, self._fixed().order
        if warm == 0:
            self._started = index
        count = min(warm, order - 1)
        memory = self.model_outputs[: -1 - count : -1] if count else ()
        key = (index, index - warm if warm < order else min(self._started, index))
        made = self._take(key, sample, model_output, dtypes, memory, noise, keys)
        self._shift(made[1])
        if warm < order:
            self.lower_order_nums = warm + 1
        self._step_index = index + 1
        return made[0]

    def _fixed(self) -> Facts:
        """What every step asks of the configuration, which is slow to read."""
        found, config = self.__dict__.get("_facts"), self.__dict__["_internal_dict"]
        if found is None or found.config is not config:
            found = self._facts = Facts(config)
        return found


class _Dpm(Multistep):
    """The step of the multistep DPM-Solver classes and of DEIS."""

    def _channels(self, model_output: Tensor) -> Tensor:
        """Networks that predict a variance too: diffusers keeps three channels, whatever the state has."""
        return model_output[:, :3] if self._fixed().three else model_output


def _algorithm(grid: Grid) -> tuple[str, float]:
    name = grid.config["algorithm_type"]
    return ("x0" if name.endswith("++") else "eps"), (1.0 if name.startswith("sde") else 0.0)


def _steps(grid: Grid, first: int, points: Sequence[Level], solver_type: str, third: str) -> list[Step]:
    made = grid.memo.get(first)
    if made is None:
        form, eta = ("eps", 0.0) if grid.config["algorithm_type"] == "deis" else _algorithm(grid)
        made = grid.memo[first] = multistep(
            as_path(points[first:]),
            form=form,
            order=int(grid.config["solver_order"]),
            lower_order_final=shortened(grid),
            euler_at_final=bool(grid.config.get("euler_at_final", False)),
            solver_type=solver_type,
            third=third,
            eta=eta,
        )
    return made  # type: ignore[no-any-return]


def _dpm_recipe(grid: Grid, key: Any, points: Sequence[Level], network: Network) -> Recipe:
    index, first = key
    order, config = int(grid.config["solver_order"]), grid.config
    third = "published"
    if _algorithm(grid) == ("x0", 1.0) and order == 3:
        third = "published" if grid.exact else "diffusers"
    step = _steps(grid, first, points, config["solver_type"], third)[index - first]
    return Recipe(
        step,
        network,
        writes=("x", "D"),
        reads=tuple(range(1, order)),
        limit=grid.limit(),
        threshold=grid.threshold(),
        draw=1 + index,
    )


class DPMSolverMultistepScheduler(_Dpm, diffusers.DPMSolverMultistepScheduler):  # type: ignore[misc]
    """Fused ``diffusers.DPMSolverMultistepScheduler``; see its documentation, and ``Fused`` for what is added."""

    def set_timesteps(
        self, num_inference_steps: Any = None, device: Any = None, mu: Any = None, timesteps: Any = None
    ) -> None:
        super().set_timesteps(num_inference_steps, device, mu, timesteps)
        self._begin_run(device)

    @staticmethod
    def _recipe(grid: Grid, key: Any) -> Recipe:
        network = Network(grid.prediction("the DPMSolverMultistepScheduler", PREDICTED))
        return _dpm_recipe(grid, key, levels(grid), network)

    def step(
        self,
        model_output: Tensor,
        timestep: Any,
        sample: Tensor,
        generator: Generators = None,
        variance_noise: Tensor | None = None,
        return_dict: bool = True,
    ) -> Any:
        """One step; arguments and results of the class of diffusers."""
        if self.num_inference_steps is None:
            raise ValueError(_NO_STEPS)
        if self._step_index is None:
            self._init_step_index(timestep)
        model_output = self._channels(model_output)
        noise = keys = None
        if self._fixed().noisy:
            noise = None if variance_noise is None else variance_noise.to(model_output.device, torch.float32)
            if noise is None and not (self.mode == "exact" and self._levels[self._step_index + 1] == 0.0):
                noise, keys = self._pend(model_output, generator, torch.float32)
        wide = promoted(sample, model_output)
        prev_sample = self._advance(model_output, sample, (wide, wide), noise, keys)
        return SchedulerOutput(prev_sample=prev_sample) if return_dict else (prev_sample,)


class EDMDPMSolverMultistepScheduler(Scaled, _Dpm, diffusers.EDMDPMSolverMultistepScheduler):  # type: ignore[misc]
    """Fused ``diffusers.EDMDPMSolverMultistepScheduler``; see its documentation, and ``Fused`` for what is added."""

    def set_timesteps(self, num_inference_steps: Any = None, device: Any = None) -> None:
        super().set_timesteps(num_inference_steps, device)
        self._begin_run(device)

    def _kappa(self, sigma: float) -> float:
        return 1.0 / float(np.hypot(sigma, self.config.sigma_data))

    @staticmethod
    def _recipe(grid: Grid, key: Any) -> Recipe:
        if "levels" not in grid.memo:
            grid.memo["levels"] = [ve_level(sigma) for sigma in grid.sigmas]
        recipe = _dpm_recipe(grid, key, grid.memo["levels"], edm_network(grid))
        if _algorithm(grid)[1] and len(recipe.step.b) == 3:
            raise NotImplementedError("algorithm_type: 'sde-dpmsolver++' of order 3 does not exist here, use order 2")
        return recipe

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
        if self._step_index is None:
            self._init_step_index(timestep)
        noise = keys = None
        last = self.mode == "exact" and self._levels[self._step_index + 1] == 0.0
        if self._fixed().noisy and not last:
            noise, keys = self._pend(model_output, generator, model_output.dtype)
        wide = promoted(sample, model_output)
        prev_sample = self._advance(model_output, sample, (wide, wide), noise, keys)
        return SchedulerOutput(prev_sample=prev_sample) if return_dict else (prev_sample,)


class DEISMultistepScheduler(_Dpm, diffusers.DEISMultistepScheduler):  # type: ignore[misc]
    """Fused ``diffusers.DEISMultistepScheduler``; see its documentation, and ``Fused`` for what is added."""

    def set_timesteps(self, num_inference_steps: int, device: Any = None, mu: Any = None) -> None:
        super().set_timesteps(num_inference_steps, device, mu)
        if self.mode == "exact" and self.sigmas[-1] == self.sigmas[-2]:  # a step of length 0 that leaves noise
            self.sigmas[-1] = 0.0
        self._begin_run(device)

    @staticmethod
    def _recipe(grid: Grid, key: Any) -> Recipe:
        index, first = key
        network = Network(grid.prediction("the DEISMultistepScheduler", PREDICTED))
        points = levels(grid)
        if index == len(points) - 2 and points[-1].sigma == 0.0:  # to clean data: x0_hat itself
            step = transfer(index, points[-2], points[-1])
        else:
            clean = points[-1].sigma == 0.0
            step = _steps(grid, first, points[:-1] if clean else points, "heun", "exact")[index - first]
        return Recipe(
            step,
            network,
            writes=("x", "D"),
            reads=tuple(range(1, int(grid.config["solver_order"]))),
            limit=grid.limit(),
            threshold=grid.threshold(),
        )

    def step(self, model_output: Tensor, timestep: Any, sample: Tensor, return_dict: bool = True) -> Any:
        """One step; arguments and results of the class of diffusers."""
        if self.num_inference_steps is None:
            raise ValueError(_NO_STEPS)
        if self._step_index is None:
            self._init_step_index(timestep)
        wide = promoted(sample, model_output)
        prev_sample = self._advance(model_output, sample, (wide, wide))
        return SchedulerOutput(prev_sample=prev_sample) if return_dict else (prev_sample,)
