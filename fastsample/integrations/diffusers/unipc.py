"""UniPC: a corrector on the last step and the predictor of the next one, in one launch."""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from typing import Any

import diffusers
from diffusers.schedulers.scheduling_utils import SchedulerMixin, SchedulerOutput  # noqa: F401
from torch import Tensor

from fastsample.path import SAME_LEVEL, Level, step_size
from fastsample.solvers.calculus import adams, linear_part, moments
from fastsample.solvers.express import Network
from fastsample.solvers.first_order import same
from fastsample.solvers.step import Mix, Step

from .base import Fused, Grid
from .ddim import _NO_STEPS, promoted
from .dpm import PREDICTED, levels
from .engine import Recipe

Weights = dict[int, float]  # by place of D: 0 that of the level where the step starts, k > 0 before it, -1 at its end


def adams_weights(
    points: Sequence[Level], i: int, count: int, form: str, two: str, tau2: float = 0.0, corrector: bool = False
) -> tuple[float, Weights, float]:
    """``(a, weights, c)`` of the step from level i through ``count`` predictions, with ``corrector`` the one at the
    end of the step among them; ``two``: the variant of two nodes."""
    start, end = points[i], points[i + 1]
    if same(start, end):
        return 1.0, {}, 0.0
    if end.sigma == 0.0:  # clean data: x0_hat itself
        if form == "eps":
            raise ValueError("sigmas: a step to sigma = 0 needs predict_x0 (or data_prediction)")
        return 0.0, {0: end.alpha}, 0.0
    if corrector and count == 1:  # the new prediction alone
        a, c, factor = linear_part(form, start, end, tau2)
        return a, {-1: factor * moments("exact", 1, form, step_size(start, end), tau2)[0]}, c
    h = step_size(start, end)
    places, nodes = ([-1], [1.0]) if corrector else ([], [])
    for k in range(1, count - len(places) if corrector else count):
        node = -step_size(points[i - k], start) / h
        if abs(node) < 1e300 and all(abs(node - s) * abs(h) > SAME_LEVEL for s in (0.0, *nodes)):
            places.append(k)
            nodes.append(node)
    variant = two if len(nodes) == 1 else "exact"
    a, b, c = adams(form, start, end, nodes, variant, tau2)
    return a, dict(zip([0, *places], b, strict=True)), c


def chained(before: tuple[float, Weights], after: tuple[float, Weights]) -> tuple[float, Weights, Weights]:
    """The corrector of the last step and the predictor of this one: factor of the last sample and weights of D by calls
    back, for the new state, and the weights of the corrected sample."""
    a_c, corrected = before[0], {k + 1: weight for k, weight in before[1].items()}
    a, predicted = after
    total = {k: a * weight for k, weight in corrected.items()}
    for k, weight in predicted.items():
        total[k] = total.get(k, 0.0) + weight
    return a * a_c, total, corrected


def kept(name: str, factor: float, weights: Weights) -> Mix:
    """A mix of one kept tensor and D by calls back."""
    mix: dict[str | int, float] = {name: factor}
    mix.update(weights.items())
    return mix


def listed(weights: Weights) -> tuple[float, ...]:
    """Weights by calls back as the tuple of a step."""
    return tuple(weights.get(k, 0.0) for k in range(max(weights, default=0) + 1))


class UniPCMultistepScheduler(Fused, diffusers.UniPCMultistepScheduler):  # type: ignore[misc]
    """Fused ``diffusers.UniPCMultistepScheduler``; see its documentation, and ``Fused`` for what is added."""

    last_sample: Any
    this_order: int
    lower_order_nums: int

    def set_timesteps(
        self, num_inference_steps: Any = None, device: Any = None, sigmas: Any = None, mu: Any = None
    ) -> None:
        super().set_timesteps(num_inference_steps, device, sigmas, mu)
        self._begin_run(device)

    def set_begin_index(self, begin_index: int = 0) -> None:
        """Where the run begins; its rows are made here."""
        self._begin_index = begin_index
        if begin_index and self._bound is not None:
            self._rows().prepare(self._run_keys(begin_index))

    def _extra(self) -> Hashable:
        return bool(self.predict_x0)

    def _first_keys(self, grid: Grid) -> Sequence[Hashable]:
        return self._run_keys(self.begin_index or 0)

    def _family(self, key: tuple[int, int, int]) -> Sequence[Hashable]:
        return [key]

    def _run_keys(self, begin: int) -> list[Hashable]:
        keys: list[Hashable] = []
        before = 0
        for index in range(begin, len(self._times)):
            order = self._order(index, min(index - begin, self.config.solver_order))
            keys.append((index, order, before if index > begin and index - 1 not in self.disable_corrector else 0))
            before = order
        return keys

    def _order(self, index: int, warm: int) -> int:
        order = int(self.config.solver_order)
        if self.config.lower_order_final:
            order = min(order, len(self._times) - index)
        return min(order, warm + 1)

    @staticmethod
    def _recipe(grid: Grid, key: Any) -> Recipe:
        index, order, before = key
        points, form = levels(grid), "x0" if grid.extra else "eps"
        two = {"bh1": "bh1", "bh2": "mid"}[grid.config["solver_type"]]
        a, weights, _ = adams_weights(points, index, order, form, two)
        reads: tuple[str | int, ...] = tuple(range(1, max(order - 1, before) + 1))
        if not before:
            step, writes = Step(index, points[index], a, listed(weights), form=form), ("x", "D")
        else:
            a_c, corrector, _ = adams_weights(points, index - 1, before + 1, form, two, corrector=True)
            factor, total, corrected = chained((a_c, corrector), (a, weights))
            step = Step(
                index,
                points[index],
                0.0,
                listed(total),
                form=form,
                saved={"last": factor},
                keep={"last": kept("last", a_c, corrected)},
            )
            reads, writes = (*reads, "last"), ("x", "D", "last")  # type: ignore[assignment]
        network = Network(grid.prediction("the UniPCMultistepScheduler", PREDICTED))
        return Recipe(step, network, writes=writes, reads=reads, limit=grid.limit(), threshold=grid.threshold())

    def step(self, model_output: Tensor, timestep: Any, sample: Tensor, return_dict: bool = True) -> Any:
        """One step; arguments and results of the class of diffusers."""
        if self.num_inference_steps is None:
            raise ValueError(_NO_STEPS)
        if self.solver_p is not None:  # another scheduler predicts: theirs
            return super().step(model_output, timestep, sample, return_dict)  # type: ignore[misc]
        index = self._step_index
        if index is None:
            self._init_step_index(timestep)
            index = self._step_index
        self._rows()
        outputs, last = self.model_outputs, self.last_sample
        before = self.this_order if index > 0 and last is not None and index - 1 not in self.disable_corrector else 0
        order = self._order(index, self.lower_order_nums)
        assert order > 0
        count = max(order - 1, before)
        memory = outputs[: -1 - count : -1] if count else []
        dtypes = [sample.dtype, promoted(sample, model_output)]
        if before:
            memory = [*memory, last]
            dtypes.append(last.dtype)
        made = self._take((index, order, before), sample, model_output, dtypes, memory)
        times = self.timestep_list
        for i in range(len(outputs) - 1):
            outputs[i], times[i] = outputs[i + 1], times[i + 1]
        outputs[-1], times[-1] = made[1], timestep
        self.last_sample = made[2] if before else sample
        self.this_order = order
        if self.lower_order_nums < self.config.solver_order:
            self.lower_order_nums += 1
        self._step_index = index + 1
        return SchedulerOutput(prev_sample=made[0]) if return_dict else (made[0],)
