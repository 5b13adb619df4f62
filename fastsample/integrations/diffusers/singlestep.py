"""DPM-Solver(++) singlestep: every call of a group starts again from the sample of its first."""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from typing import Any

import diffusers
from diffusers.schedulers.scheduling_utils import SchedulerMixin, SchedulerOutput  # noqa: F401
from torch import Tensor

from fastsample.path import step_size
from fastsample.solvers.calculus import adams
from fastsample.solvers.express import Network
from fastsample.solvers.first_order import same
from fastsample.solvers.singlestep import TYPES
from fastsample.solvers.step import Step

from .base import Fused, Generators, Grid
from .ddim import _NO_STEPS, promoted
from .dpm import PREDICTED, levels
from .engine import Recipe


class DPMSolverSinglestepScheduler(Fused, diffusers.DPMSolverSinglestepScheduler):  # type: ignore[misc]
    """Fused ``diffusers.DPMSolverSinglestepScheduler``; see its documentation, and ``Fused`` for what is added."""

    sample: Any

    def set_timesteps(
        self, num_inference_steps: Any = None, device: Any = None, mu: Any = None, timesteps: Any = None
    ) -> None:
        super().set_timesteps(num_inference_steps, device, mu, timesteps)
        self._begin_run(device)

    def _first_keys(self, grid: Grid) -> Sequence[Hashable]:
        # lower orders too: a run that begins inside a group has fewer outputs than the group's order
        orders = enumerate(self.order_list[: len(grid.times)])
        return [(index, order) for index, most in orders for order in range(1, most + 1)]

    def _family(self, key: Any) -> Sequence[Hashable]:
        return [key]

    @staticmethod
    def _recipe(grid: Grid, key: Any) -> Recipe:
        index, order = key
        config = grid.config
        points = grid.memo.get("levels") or grid.memo.setdefault("levels", levels(grid))
        name, kind = config["algorithm_type"], config["solver_type"]
        form, tau2 = ("x0" if name.endswith("++") else "eps"), (1.0 if name.startswith("sde") else 0.0)
        start, end = points[index - order + 1], points[index + 1]
        asked = list(range(1, order)) if order == 3 and kind == "heun" else [order - 1] * (order > 1)
        if same(start, end):
            a, b, c = 1.0, [0.0] * (1 + len(asked)), 0.0
        elif end.sigma == 0.0 and order == 1 and form == "x0":
            a, b, c = 0.0, [end.alpha], 0.0
        else:
            h = step_size(start, end)
            nodes = [step_size(start, points[index - order + 1 + k]) / h for k in asked]
            variant = TYPES[kind] if order == 2 else "exact"
            if order == 3 and kind == "heun" and tau2 and not grid.exact:
                variant = "3s-diffusers"  # the sign error of that library
            a, b, c = adams(form, start, end, nodes, variant, tau2)
        weights = [0.0] * order  # of the calls of the group, the latest first
        for k, weight in zip([0, *asked], b, strict=True):
            weights[order - 1 - k] = weight
        anchored = order > 1
        step = Step(
            index,
            points[index],
            0.0 if anchored else a,
            tuple(weights),
            c,
            form,
            saved={"anchor": a} if anchored else {},
        )
        return Recipe(
            step,
            Network(grid.prediction("the DPMSolverSinglestepScheduler", PREDICTED if form == "x0" else PREDICTED[:3])),
            writes=("x", "D"),
            reads=(*range(1, order), "anchor") if anchored else (),
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
        config = self.config
        if config.variance_type in ("learned", "learned_range") and config.prediction_type == "epsilon":
            model_output = model_output[:, :3]
        noise = keys = None
        if config.algorithm_type == "sde-dpmsolver++":
            self._rows()
            if not (self.mode == "exact" and self._levels[index + 1] == 0.0):
                noise, keys = self._pend(model_output, generator, model_output.dtype)
        outputs, order = self.model_outputs, self.order_list[index]
        while order > 1 and outputs[1 - order] is None:  # those there will be once this call's is in
            order -= 1
        memory: Sequence[Tensor] = ()
        if order == 1:
            self.sample = sample
        else:
            memory = [*outputs[:-order:-1], self.sample]
        wide = promoted(sample, model_output)
        made = self._take((index, order), sample, model_output, (wide, wide), memory, noise, keys)
        for i in range(len(outputs) - 1):
            outputs[i] = outputs[i + 1]
        outputs[-1] = made[1]
        self._step_index = index + 1
        return SchedulerOutput(prev_sample=made[0]) if return_dict else (made[0],)
