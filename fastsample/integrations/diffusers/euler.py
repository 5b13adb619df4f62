"""Euler samplers: a straight line to x0_hat, in sigma (VE state) or in t (flow)."""

from __future__ import annotations

import math
from typing import Any

import diffusers
import torch
from diffusers.schedulers.scheduling_edm_euler import EDMEulerSchedulerOutput
from diffusers.schedulers.scheduling_euler_ancestral_discrete import EulerAncestralDiscreteSchedulerOutput
from diffusers.schedulers.scheduling_euler_discrete import EulerDiscreteSchedulerOutput
from diffusers.schedulers.scheduling_flow_match_euler_discrete import FlowMatchEulerDiscreteSchedulerOutput
from diffusers.schedulers.scheduling_utils import SchedulerMixin  # noqa: F401  (loaders look for it in this module)
from diffusers.utils import logging
from torch import Tensor

from fastsample.path import Level
from fastsample.solvers.express import Combo, Network
from fastsample.solvers.first_order import ancestral_noise, transfer
from fastsample.solvers.step import Step

from .base import Fused, Generators, Grid
from .engine import Recipe, flow_level, ve_level
from .scaled import Ahead

logger = logging.get_logger(__name__)
_WHOLE = (torch.int64, torch.int32)
Churn = tuple[float, float, float, float]  # s_churn, s_tmin, s_tmax, s_noise


def refuse_whole(name: str, timestep: Any) -> None:
    """Raise the error of diffusers for a step number in the place of a time."""
    if isinstance(timestep, int) or (isinstance(timestep, Tensor) and timestep.dtype in _WHOLE):
        raise ValueError(
            "Passing integer indices (e.g. from `enumerate(timesteps)`) as timesteps to "
            f"`{name}.step()` is not supported. Make sure to pass one of the `scheduler.timesteps` as a timestep."
        )


def warn_unscaled() -> None:
    """Warn as diffusers does when the network was not given a scaled state."""
    logger.warning(
        "The `scale_model_input` function should be called before `step` to ensure correct denoising. "
        "See `StableDiffusionPipeline` for a usage example."
    )


class _Edm(Network):
    """EDM's preconditioning; ``"-edm"`` where diffusers turns the sign of the network's output."""

    def convert(self, form: str, step: Step) -> Combo:
        plain = Network("edm", "edm", self.sigma_data).convert(form, step)
        return {"x": plain["x"], "e": -plain["e"]} if self.prediction == "-edm" else plain


def edm_network(grid: Grid) -> Network:
    """The network of the EDM classes, whose ``prediction_type`` is a sign."""
    kind = grid.config["prediction_type"]
    if kind not in ("epsilon", "v_prediction"):
        raise ValueError(f"Prediction type {kind} is not supported.")
    return _Edm("edm" if kind == "epsilon" else "-edm", "edm", grid.config["sigma_data"])


def ve_network(grid: Grid, owner: str) -> Network:
    """The network of a VE class: trained on a variance-preserving state, so v speaks of the scaled one."""
    return Network(grid.prediction(owner, ("epsilon", "original_sample", "sample", "v_prediction")), "vp")


def _churned(grid: Grid, key: Any, network: Network, kappa: Any) -> Recipe:
    """Euler with churn added to the sample that the network did not see, as diffusers does (EDM does it before)."""
    index, what = key if isinstance(key, tuple) else (key, None)
    sigma, end = grid.sigmas[index], grid.sigmas[index + 1]
    up, lift = sigma, 0.0
    if what is not None and what != "ahead":
        s_churn, s_tmin, s_tmax, s_noise = what
        gamma = min(s_churn / (len(grid.sigmas) - 1), math.sqrt(2.0) - 1.0) if s_tmin <= sigma <= s_tmax else 0.0
        up, lift = (1.0 + gamma) * sigma, s_noise * sigma * math.sqrt(gamma * (2.0 + gamma))
    # for v networks diffusers converts at sigma although the sample is at the raised level
    at = ve_level(sigma if network.prediction == "v" and not grid.exact else up)
    a = end / up
    return Recipe(
        Step(index, at, a=a, b=(1.0 - a,)),
        network,
        writes=("x", "x0"),
        lift=lift,
        scaled=kappa(grid.sigmas[index + 1]) if what == "ahead" else 0.0,
        draw=1 + index,
    )


class _ChurnedEuler(Ahead):
    """Euler in a VE state with optional churn."""

    _result: Any

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
        refuse_whole(type(self).__name__, timestep)
        if not self.is_scale_input_called:
            warn_unscaled()
        index = self._step_index
        if index is None:
            self._init_step_index(timestep)
            index = self._step_index
        noise = keys = None
        key: Any = index
        own = model_output.dtype
        dtypes = [own, torch.float64 if own is torch.float64 else torch.float32]
        if s_churn:
            key = (index, (float(s_churn), float(s_tmin), float(s_tmax), float(s_noise)))
            self._rows()
            if s_tmin <= self._levels[index] <= s_tmax:
                noise, keys = self._pend(model_output, generator, model_output.dtype)
        elif index + 2 < len(self._levels) and self._looks_ahead(sample):
            key, dtypes = (index, "ahead"), [*dtypes, own]
        made = self._take(key, sample, model_output, dtypes, noise=noise, counter=keys)
        if len(made) == 3:
            self._remember(made[0], made[2])
        self._step_index = index + 1
        if not return_dict:
            return made[0], made[1]
        return self._result(prev_sample=made[0], pred_original_sample=made[1])


class EulerDiscreteScheduler(_ChurnedEuler, diffusers.EulerDiscreteScheduler):  # type: ignore[misc]
    """Fused ``diffusers.EulerDiscreteScheduler``; see its documentation, and ``Fused`` for what is added."""

    _result = EulerDiscreteSchedulerOutput

    def set_timesteps(
        self, num_inference_steps: Any = None, device: Any = None, timesteps: Any = None, sigmas: Any = None
    ) -> None:
        super().set_timesteps(num_inference_steps, device, timesteps, sigmas)
        self._begin_run(device)

    @staticmethod
    def _recipe(grid: Grid, key: Any) -> Recipe:
        return _churned(grid, key, ve_network(grid, "EulerDiscreteScheduler"), lambda s: 1.0 / math.hypot(1.0, s))


class EDMEulerScheduler(_ChurnedEuler, diffusers.EDMEulerScheduler):  # type: ignore[misc]
    """Fused ``diffusers.EDMEulerScheduler``; see its documentation, and ``Fused`` for what is added."""

    _result = EDMEulerSchedulerOutput

    def set_timesteps(self, num_inference_steps: Any = None, device: Any = None, sigmas: Any = None) -> None:
        super().set_timesteps(num_inference_steps, device, sigmas)
        self._begin_run(device)

    def _kappa(self, sigma: float) -> float:
        return 1.0 / math.hypot(sigma, self.config.sigma_data)

    @staticmethod
    def _recipe(grid: Grid, key: Any) -> Recipe:
        return _churned(grid, key, edm_network(grid), lambda s: 1.0 / math.hypot(s, grid.config["sigma_data"]))

    def step(  # type: ignore[override]
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
        pred_original_sample: Tensor | None = None,
    ) -> Any:
        """One step; arguments and results of the class of diffusers."""
        if pred_original_sample is not None:  # a denoised sample in the place of the network's output: theirs
            return super(Fused, self).step(  # type: ignore[misc]
                model_output, timestep, sample, s_churn, s_tmin, s_tmax, s_noise, generator, return_dict,
                pred_original_sample,
            )  # fmt: skip
        return super().step(model_output, timestep, sample, s_churn, s_tmin, s_tmax, s_noise, generator, return_dict)


class EulerAncestralDiscreteScheduler(Ahead, diffusers.EulerAncestralDiscreteScheduler):  # type: ignore[misc]
    """Fused ``diffusers.EulerAncestralDiscreteScheduler``; see its documentation, and ``Fused`` for what is added."""

    def set_timesteps(self, num_inference_steps: int, device: Any = None) -> None:
        super().set_timesteps(num_inference_steps, device)
        self._begin_run(device)

    @staticmethod
    def _recipe(grid: Grid, key: Any) -> Recipe:
        index, ahead = key if isinstance(key, tuple) else (key, "")
        if grid.config["prediction_type"] == "sample":
            raise NotImplementedError("prediction_type not implemented yet: sample")
        start, end = ve_level(grid.sigmas[index]), ve_level(grid.sigmas[index + 1])
        return Recipe(
            transfer(index, start, end, ancestral_noise(start, end)),
            ve_network(grid, "EulerAncestralDiscreteScheduler"),
            writes=("x", "x0"),
            scaled=1.0 / math.hypot(1.0, end.sigma) if ahead else 0.0,
            draw=1 + index,
        )

    def step(
        self,
        model_output: Tensor,
        timestep: float | Tensor,
        sample: Tensor,
        generator: Generators = None,
        return_dict: bool = True,
    ) -> Any:
        """One step; arguments and results of the class of diffusers."""
        refuse_whole("EulerDiscreteScheduler", timestep)
        if not self.is_scale_input_called:
            warn_unscaled()
        index = self._step_index
        if index is None:
            self._init_step_index(timestep)
            index = self._step_index
        noise = keys = None
        self._rows()
        last = index + 2 >= len(self._levels)
        if not (last and self.mode == "exact"):
            noise, keys = self._pend(model_output, generator, model_output.dtype)
        key: Any = index
        own = model_output.dtype
        dtypes = [own, torch.float64 if own is torch.float64 else torch.float32]
        if not last and self._looks_ahead(sample):
            key, dtypes = (index, "ahead"), [*dtypes, own]
        made = self._take(key, sample, model_output, dtypes, noise=noise, counter=keys)
        if len(made) == 3:
            self._remember(made[0], made[2])
        self._step_index = index + 1
        if not return_dict:
            return made[0], made[1]
        return EulerAncestralDiscreteSchedulerOutput(prev_sample=made[0], pred_original_sample=made[1])


class FlowMatchEulerDiscreteScheduler(Fused, diffusers.FlowMatchEulerDiscreteScheduler):  # type: ignore[misc]
    """Fused ``diffusers.FlowMatchEulerDiscreteScheduler``; see its documentation, and ``Fused`` for what is added."""

    sigma_min: float
    sigma_max: float

    def set_timesteps(
        self,
        num_inference_steps: Any = None,
        device: Any = None,
        sigmas: Any = None,
        mu: Any = None,
        timesteps: Any = None,
    ) -> None:
        ends = self.sigma_min, self.sigma_max
        if self.mode == "exact" and not self.config.use_dynamic_shifting:  # these were shifted, and would be again
            self.sigma_min, self.sigma_max = 1.0 / self.config.num_train_timesteps, 1.0
        try:
            super().set_timesteps(num_inference_steps, device, sigmas, mu, timesteps)
        finally:
            self.sigma_min, self.sigma_max = ends
        self._begin_run(device)

    @staticmethod
    def _recipe(grid: Grid, index: Any) -> Recipe:
        sigma, end = grid.sigmas[index], grid.sigmas[index + 1]
        at: Level = flow_level(sigma)
        if grid.config["stochastic_sampling"]:
            step = Step(index, at, a=0.0, b=(1.0 - end,), c=end)
        else:  # in the network's own output: exact for grids in both directions
            step = Step(index, at, a=1.0, b=(end - sigma,), form="raw")
        return Recipe(step, Network("flow"), draw=1 + index)

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
        per_token_timesteps: Tensor | None = None,
        return_dict: bool = True,
    ) -> Any:
        """One step; arguments and results of the class of diffusers."""
        if per_token_timesteps is not None:  # a level per token: theirs
            return super(Fused, self).step(  # type: ignore[misc]
                model_output, timestep, sample, s_churn, s_tmin, s_tmax, s_noise, generator,
                per_token_timesteps, return_dict,
            )  # fmt: skip
        refuse_whole("FlowMatchEulerDiscreteScheduler", timestep)
        index = self._step_index
        if index is None:
            self._init_step_index(timestep)
            index = self._step_index
        noise = keys = None
        if self.config.stochastic_sampling and not (self.mode == "exact" and index + 2 >= len(self._levels)):
            noise, keys = self._pend(sample, generator, torch.float32)
        made = self._take(index, sample, model_output, (model_output.dtype,), noise=noise, counter=keys)
        self._step_index = index + 1
        if not return_dict:
            return (made[0],)
        return FlowMatchEulerDiscreteSchedulerOutput(prev_sample=made[0])  # type: ignore[arg-type]
