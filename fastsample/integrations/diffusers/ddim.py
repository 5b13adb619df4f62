"""Samplers that work from the value of a table time: DDIM, its inversion, DDPM."""

from __future__ import annotations

import math
from collections.abc import Hashable, Sequence
from typing import Any

import diffusers
import numpy as np
import torch
from diffusers.schedulers.scheduling_ddim import DDIMSchedulerOutput
from diffusers.schedulers.scheduling_ddpm import DDPMSchedulerOutput
from diffusers.schedulers.scheduling_utils import SchedulerMixin  # noqa: F401  (loaders look for it in this module)
from torch import Tensor

from fastsample.path import Level
from fastsample.solvers.express import Network
from fastsample.solvers.first_order import transfer
from fastsample.solvers.step import Step

from .base import Fused, Generators, Grid
from .engine import Recipe, table_level

_NO_STEPS = "Number of inference steps is 'None', you need to run 'set_timesteps' after creating the scheduler"


class Tabled(Fused):
    """Mixin for classes without an index: rows belong to table times, and any time of the table may come."""

    def _extra(self) -> Hashable:
        # the table itself: pipelines and tests may have replaced it
        return tuple(self.alphas_cumprod.tolist()), self._ends()

    def _ends(self) -> tuple[Any, ...]:
        """``alpha^2`` beyond the clean end of the table, and the number of steps that the grid was made for."""
        return (float(self.final_alpha_cumprod), float(self.num_inference_steps or 0))

    def _first_keys(self, grid: Grid) -> Sequence[Hashable]:
        return [int(t) for t in grid.times]

    def _places(self) -> Sequence[int]:
        return [int(t) for t in self._times]


def squared(grid: Grid, t: int) -> float:
    """``alphas_cumprod`` of a time; below the table its clean end."""
    table, ends = grid.extra
    return float(table[t]) if t >= 0 else float(ends[0])


def level(grid: Grid, t: int) -> Level:
    """Level of a table time."""
    return table_level(squared(grid, t), float(t))


def forward(grid: Grid, t: int, following: int) -> float:
    """``beta``: the variance of the forward step between two times, ``1 - alpha^2 / alpha'^2``.

    diffusers rounds the quotient to float32, which changes beta by 1e-3 of itself between neighbours at the clean end.
    """
    start, end = squared(grid, t), squared(grid, following)
    return 1.0 - (start / end if grid.exact else float(np.float32(start / end)))


def _posterior(grid: Grid, t: int, following: int) -> float:
    """Standard deviation of DDPM's posterior."""
    left = (1.0 - squared(grid, following)) / (1.0 - squared(grid, t)) * forward(grid, t, following)
    return math.sqrt(max(left, 0.0))


def _next_time(grid: Grid, t: int) -> int:
    """Where DDIM goes from t: a fixed stride, whatever the grid; in exact mode the next entry of the grid."""
    if grid.exact and t in grid.times:
        place = grid.times.index(t) + 1
        return int(grid.times[place]) if place < len(grid.times) else -1
    steps = int(grid.extra[1][1])
    return t - int(grid.config["num_train_timesteps"]) // steps


class DDIMScheduler(Tabled, diffusers.DDIMScheduler):  # type: ignore[misc]
    """Fused ``diffusers.DDIMScheduler``; see its documentation, and ``Fused`` for what is added."""

    def set_timesteps(self, num_inference_steps: int, device: Any = None) -> None:
        super().set_timesteps(num_inference_steps, device)
        self._begin_run(device)

    @staticmethod
    def _recipe(grid: Grid, key: Any) -> Recipe:
        t, eta, clipped = key if isinstance(key, tuple) else (key, 0.0, False)
        following = _next_time(grid, t)
        start, end = level(grid, t), level(grid, following)
        noise = eta * _posterior(grid, t, following) if eta else 0.0
        limit = grid.limit()
        return Recipe(
            transfer(t, start, end, noise, keep_raw=limit is not None and not clipped),
            Network(grid.prediction("DDIMScheduler")),
            writes=("x", "x0"),
            limit=limit,
            threshold=grid.threshold(),
            draw=1 + int(grid.config["num_train_timesteps"]) - t,
        )

    def step(
        self,
        model_output: Tensor,
        timestep: Any,
        sample: Tensor,
        eta: float = 0.0,
        use_clipped_model_output: bool = False,
        generator: Generators = None,
        variance_noise: Tensor | None = None,
        return_dict: bool = True,
    ) -> Any:
        """One step; arguments and results of the class of diffusers."""
        if self.num_inference_steps is None:
            raise ValueError(_NO_STEPS)
        t = int(self._time(timestep))
        noise = keys = None
        if eta > 0:
            if variance_noise is not None and generator is not None:
                raise ValueError(
                    "Cannot pass both generator and variance_noise. Please make sure that either `generator` or "
                    "`variance_noise` stays `None`."
                )
            noise = variance_noise
            if variance_noise is None:
                noise, keys = self._pend(model_output, generator, model_output.dtype)
        key = (t, eta, use_clipped_model_output) if eta or use_clipped_model_output else t
        wide = promoted(sample, model_output)
        made = self._take(key, sample, model_output, (wide, wide), noise=noise, counter=keys)
        if not return_dict:
            return made[0], made[1]
        return DDIMSchedulerOutput(prev_sample=made[0], pred_original_sample=made[1])


def promoted(sample: Tensor, model_output: Tensor) -> torch.dtype:
    """The dtype that both make together."""
    dtype, other = sample.dtype, model_output.dtype
    return dtype if dtype is other else torch.promote_types(dtype, other)


class DDIMInverseScheduler(Tabled, diffusers.DDIMInverseScheduler):  # type: ignore[misc]
    """Fused ``diffusers.DDIMInverseScheduler``; see its documentation, and ``Fused`` for what is added."""

    def _ends(self) -> tuple[Any, ...]:
        return float(self.initial_alpha_cumprod), float(self.num_inference_steps or 0)

    def set_timesteps(self, num_inference_steps: int, device: Any = None) -> None:
        super().set_timesteps(num_inference_steps, device)
        self._begin_run(device)

    @staticmethod
    def _recipe(grid: Grid, t: Any) -> Recipe:
        train = int(grid.config["num_train_timesteps"])
        before = min(t - train // int(grid.extra[1][1]), train - 1)
        if grid.exact and t in grid.times:
            place = grid.times.index(t)
            before = int(grid.times[place - 1]) if place else -1
        start, end = level(grid, before), level(grid, t)
        step = Step(t, start, a=0.0, b=(end.alpha,), raw=end.sigma)
        if start.sigma == 0.0 and grid.config["prediction_type"] == "sample":
            raise ValueError("prediction_type: 'sample' says nothing about the noise of clean data")
        return Recipe(step, Network(grid.prediction("DDIMInverseScheduler")), writes=("x", "x0"), limit=grid.limit())

    def step(self, model_output: Tensor, timestep: Any, sample: Tensor, return_dict: bool = True) -> Any:
        """One step towards noise; arguments and results of the class of diffusers."""
        if self.num_inference_steps is None:
            raise ValueError(_NO_STEPS)
        wide = promoted(sample, model_output)
        made = self._take(int(self._time(timestep)), sample, model_output, (wide, wide))
        if not return_dict:
            return made[0], made[1]
        return DDIMSchedulerOutput(prev_sample=made[0], pred_original_sample=made[1])


class DDPMScheduler(Tabled, diffusers.DDPMScheduler):  # type: ignore[misc]
    """Fused ``diffusers.DDPMScheduler``; see its documentation, and ``Fused`` for what is added."""

    def _ends(self) -> tuple[Any, ...]:
        on_grid = bool(self.custom_timesteps or self.num_inference_steps)
        return 1.0, float(on_grid), self.variance_type

    def set_timesteps(self, num_inference_steps: Any = None, device: Any = None, timesteps: Any = None) -> None:
        super().set_timesteps(num_inference_steps, device, timesteps)
        self._begin_run(device)

    @staticmethod
    def _recipe(grid: Grid, key: Any) -> Recipe:
        _, (_, on_grid, kind) = grid.extra
        t, alone = (key[0], True) if isinstance(key, tuple) else (key, False)
        following = t - 1
        if on_grid:
            if t not in grid.times:
                raise IndexError(f"timestep: got {t}, allowed are the scheduler's timesteps")
            place = grid.times.index(t) + 1
            following = int(grid.times[place]) if place < len(grid.times) else -1
        start, end = level(grid, t), level(grid, following)
        beta, small = forward(grid, t, following), _posterior(grid, t, following)
        a = math.sqrt(1.0 - beta) * (end.sigma / start.sigma) ** 2
        network, draw = Network(grid.prediction("DDPMScheduler")), 1 + int(grid.config["num_train_timesteps"]) - t
        if alone:  # the noise by itself
            return Recipe(Step(t, start, 0.0, (0.0,), 1.0), network, draw=draw)
        noise = _deviation(beta, small, kind) if t > 0 else 0.0
        return Recipe(
            Step(t, start, a, (end.alpha * beta / start.sigma**2,), noise),
            network,
            writes=("x", "x0"),
            limit=grid.limit(),
            threshold=grid.threshold(),
            draw=draw,
            base=_base(beta, small) if kind == "learned_range" else 1.0,
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
        t = int(self._time(timestep))
        spread = None
        if self.variance_type in ("learned", "learned_range") and model_output.shape[1] == 2 * sample.shape[1]:
            model_output, spread = torch.split(model_output, sample.shape[1], dim=1)
        noise = keys = None
        if t > 0:
            if spread is not None:
                noise, keys = self._draw(model_output, generator, model_output.dtype)
                if noise is None:
                    noise = self._take((t, "noise"), sample, model_output, (model_output.dtype,), counter=keys)[0]
                noise, keys = self._spread(t, spread) * noise, None
            elif self.variance_type in ("learned", "learned_range"):
                raise ValueError(
                    f"model_output: got {model_output.shape[1]} channels, with variance_type={self.variance_type!r} "
                    f"allowed are {2 * sample.shape[1]}: the output, and the variance"
                )
            else:
                noise, keys = self._pend(model_output, generator, model_output.dtype)
        wide = promoted(sample, model_output)
        made = self._take(t, sample, model_output, (wide, wide), noise=noise, counter=keys)
        if not return_dict:
            return made[0], made[1]
        return DDPMSchedulerOutput(prev_sample=made[0], pred_original_sample=made[1])

    def _spread(self, t: int, said: Tensor) -> Tensor:
        """Standard deviation of each element, but for the row's factor: not linear in the network's output ``said``.

        In a learned range its log goes in a line from the smaller one at -1 to the larger one at 1: a power of a base
        that the row knows, in one launch.
        """
        if self.variance_type == "learned":
            return said.sqrt()
        base = self._rows().find(t, said.device, self._family)[2].base
        # a last step from far has a posterior of almost no variance, and float16 no such numbers
        return torch.pow(base, said.float() if base > 1e4 and said.dtype is torch.float16 else said)


def _deviation(beta: float, small: float, kind: str) -> float:
    """Standard deviation of DDPM's noise by ``variance_type``; diffusers floors the variance at 1e-20."""
    if kind in ("fixed_small", "fixed_small_log"):
        return max(small, 1e-10)
    if kind == "fixed_large":
        return math.sqrt(beta)
    if kind == "fixed_large_log":
        return math.nan  # diffusers takes the root of log beta < 0
    if kind == "learned_range":
        return math.sqrt(max(small, 1e-10) * math.sqrt(beta))
    return 1.0  # learned: the noise is already that of each element


def _base(beta: float, small: float) -> float:
    """Base of the power whose exponent -1 to 1 goes from the smaller deviation to the larger one, mean in log."""
    return math.sqrt(math.sqrt(beta) / max(small, 1e-10))
