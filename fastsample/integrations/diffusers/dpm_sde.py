"""DPM-Solver++ SDE: two calls per step, noise of a Brownian path.  Needs torchsde, as the class of diffusers does."""

from __future__ import annotations

import math
from typing import Any

import diffusers
import torch
from diffusers.schedulers.scheduling_dpmsolver_sde import BrownianTreeNoiseSampler, DPMSolverSDESchedulerOutput
from diffusers.schedulers.scheduling_utils import SchedulerMixin  # noqa: F401  (loaders look for it in this module)
from torch import Tensor

from fastsample import brownian
from fastsample.solvers.first_order import ancestral_noise
from fastsample.solvers.step import Step

from .base import Grid
from .ddim import promoted
from .engine import Recipe, ve_level
from .two_stage import ANCHOR, TwoStage, network_of, straight


class DPMSolverSDEScheduler(TwoStage, diffusers.DPMSolverSDEScheduler):  # type: ignore[misc]
    """Fused ``diffusers.DPMSolverSDEScheduler``; see its documentation, and ``Fused`` for what is added.

    With ``noise="counter"`` the path is that of ``fastsample.brownian``: a kernel, the same on every device.
    """

    noise_sampler: Any
    mid_point_sigma: Any
    _path_seed: Any = None  # of the path made here, so that copies can make it again

    def set_timesteps(self, num_inference_steps: int, device: Any = None, num_train_timesteps: Any = None) -> None:
        super().set_timesteps(num_inference_steps, device, num_train_timesteps)
        self._path_seed = None
        self._begin_run(device)

    def _input_sigma(self, index: int, first: bool) -> float:
        return self._levels[index] if first else math.sqrt(self._levels[index - 1] * self._levels[index])

    @staticmethod
    def _recipe(grid: Grid, key: Any) -> Recipe:
        index, first, s_noise = key if len(key) == 3 else (*key, 1.0)
        network = network_of(grid, "DPMSolverSDEScheduler")
        start, end = (ve_level(grid.sigmas[i]) for i in ((index, index + 1) if first else (index - 1, index)))
        if end.sigma == 0.0:
            return Recipe(straight(index, start.sigma, 0.0), network, writes=("x", "x0"))
        middle = ve_level(math.sqrt(start.sigma * end.sigma))
        to = middle if first else end
        up = min(to.sigma, ancestral_noise(start, to))
        a = math.sqrt(max(to.sigma**2 - up**2, 0.0)) / start.sigma
        if first:
            return Recipe(Step(index, start, a, (1.0 - a,), s_noise * up), network, writes=("x", "x0"))
        step = Step(index, middle, 0.0, (1.0 - a,), s_noise * up, saved={ANCHOR: a})
        return Recipe(step, network, writes=("x", "x0"), reads=(ANCHOR,))

    def step(
        self, model_output: Any, timestep: Any, sample: Any, return_dict: bool = True, s_noise: float = 1.0
    ) -> Any:
        """One step; arguments and results of the class of diffusers."""
        index = self._step_index
        if index is None:
            self._init_step_index(timestep)
            index = self._step_index
        self._rows()
        if self.noise_sampler is None:
            self._make_sampler(sample)
        first = self.sample is None
        wide = promoted(sample, model_output)
        key = (index, first) if s_noise == 1.0 else (index, first, float(s_noise))
        noise = None
        if self._levels[index + 1 if first else index] > 0.0:
            noise = self._between(index, first)
        memory = () if first else (self.sample,)
        made = self._take(key, sample, model_output, (wide, wide), memory, noise)
        if noise is not None:
            self.sample = sample if first else None
            self.mid_point_sigma = self._input_sigma(index + 1, False) if first else None
        self._step_index = index + 1
        if not return_dict:
            return made[0], made[1]
        return DPMSolverSDESchedulerOutput(prev_sample=made[0], pred_original_sample=made[1])

    def _make_sampler(self, sample: Tensor) -> None:
        positive = [sigma for sigma in self._levels if sigma > 0.0]
        low, high, seed = min(positive), max(positive), self._path_seed
        if seed is None:
            seed = self.noise_sampler_seed
            if seed is None and self.noise == "counter":
                seed = self.seed
            if seed is None:  # the draw that diffusers makes
                seed = int(torch.randint(0, 2**63 - 1, []).item())
            self._path_seed = seed
        if self.noise == "torch":
            self.noise_sampler = BrownianTreeNoiseSampler(sample, low, high, seed)
            return
        self.noise_sampler = brownian.BrownianTreeNoiseSampler(sample, low, high, seed)
        pairs = [self._ends(i, first) for i in range(len(self._times)) for first in (True, False)]
        self.noise_sampler.prepare(torch.tensor([pair for pair in pairs if pair[1] > 0.0], dtype=torch.float64))

    def _ends(self, index: int, first: bool) -> tuple[float, float]:
        start, end = (self._levels[i] for i in ((index, index + 1) if first else (max(index - 1, 0), index)))
        return start, math.sqrt(start * end) if first else end

    def _between(self, index: int, first: bool) -> Tensor:
        if self.noise != "torch":
            noise: Tensor = self.noise_sampler(*self._ends(index, first))
            return noise
        # a path is rough: the times must be those of diffusers to the last bit, so they are made as it makes them
        sigmas = self.sigmas
        start, end = (sigmas[index], sigmas[index + 1]) if first else (sigmas[index - 1], sigmas[index])
        t, t_next = start.log().neg(), end.log().neg()
        if first:
            t_next = t + (t_next - t) * 0.5
        drawn: Tensor = self.noise_sampler(t.neg().exp(), t_next.neg().exp())
        return drawn

    def __getstate__(self) -> dict[str, Any]:
        state = super().__getstate__()
        if self._path_seed is not None:  # trees cannot be copied
            state["noise_sampler"] = None
        return state
