"""SA-Solver: the corrector of the last step, with its noise, and the stochastic predictor of the next: one launch."""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from typing import Any

import diffusers
from diffusers.schedulers.scheduling_utils import SchedulerMixin, SchedulerOutput  # noqa: F401
from torch import Tensor

from fastsample.solvers.express import Network
from fastsample.solvers.step import Step

from .base import Fused, Generators, Grid
from .ddim import _NO_STEPS, promoted
from .dpm import PREDICTED, levels
from .draws import Pending
from .engine import Recipe
from .unipc import adams_weights, chained, kept, listed

# Step, predictor order, corrector order of the step before, where its noise is, whether the noise of this one is put
# into what the next corrector starts from.
Key = tuple[int, int, int, str, bool]
GIVEN, INSIDE, SILENT = "given", "inside", "silent"


class SASolverScheduler(Fused, diffusers.SASolverScheduler):  # type: ignore[misc]
    """Fused ``diffusers.SASolverScheduler``; see its documentation, and ``Fused`` for what is added.

    ``tau_func`` is asked once per time of the grid, in ``set_timesteps``.  Where the step makes its noise itself
    (``noise="counter"``, and large states with a CPU generator) the attribute ``last_sample`` holds what the corrector
    starts from, last sample and noise already put together, and ``last_noise`` is None.
    """

    last_sample: Any
    last_noise: Any
    this_predictor_order: int
    this_corrector_order: int
    lower_order_nums: int
    _taus: tuple[float, ...]
    _inside = False  # whether last_sample has the noise

    def set_timesteps(self, num_inference_steps: Any = None, device: Any = None) -> None:
        super().set_timesteps(num_inference_steps, device)
        if self.mode == "exact" and self.sigmas[-1] == self.sigmas[-2] and self.predict_x0:
            self.sigmas[-1] = 0.0  # stock's last step has length 0 and leaves noise
        self._begin_run(device)

    def set_begin_index(self, begin_index: int = 0) -> None:
        """Where the run begins; its rows are made here."""
        self._begin_index = begin_index
        if begin_index and self._bound is not None:
            self._rows().prepare(self._run_keys(begin_index, self.noise == "counter"))

    def _extra(self) -> Hashable:
        self._taus = tuple(float(self.tau_func(t)) for t in self.timesteps.tolist())
        return self._taus

    def _first_keys(self, grid: Grid) -> Sequence[Hashable]:
        return self._run_keys(self.begin_index or 0, self.noise == "counter")

    def _family(self, key: Key) -> Sequence[Hashable]:
        return [*self._run_keys(self.begin_index or 0, True), key] if key[-1] else [key]

    def _run_keys(self, begin: int, inside: bool) -> list[Hashable]:
        keys: list[Hashable] = []
        before = 0
        for index in range(begin, len(self._times)):
            orders = self._orders(index, min(index - begin, self._depth()))
            silent = not before or (not inside and self._silent(index - 1))
            keys.append((index, orders[0], before, SILENT if silent else INSIDE if inside else GIVEN, inside))
            before = orders[1]
        return keys

    def _silent(self, index: int) -> bool:
        """Whether a step has no noise; stock draws it all the same, and so does strict mode."""
        return self.mode == "exact" and (self._taus[index] == 0.0 or self._levels[index + 1] == 0.0)

    def _depth(self) -> int:
        return max(int(self.config.predictor_order), int(self.config.corrector_order) - 1)

    def _orders(self, index: int, warm: int) -> tuple[int, int]:
        predictor, corrector = int(self.config.predictor_order), int(self.config.corrector_order)
        if self.config.lower_order_final:
            left = len(self._times) - index
            predictor, corrector = min(predictor, left), min(corrector, left + 1)
        return min(predictor, warm + 1), min(corrector, warm + 2)

    @staticmethod
    def _recipe(grid: Grid, key: Any) -> Recipe:
        index, order, before, was, inside = key
        points, form = levels(grid), "x0" if grid.config["algorithm_type"] == "data_prediction" else "eps"
        two = "bh1" if form == "x0" else "exact"
        tau2 = [tau * tau for tau in grid.extra]
        a, weights, c = adams_weights(points, index, order, form, two, tau2[index])
        reads: tuple[str | int, ...] = tuple(range(1, max(order - 1, before - 1, 0) + 1))
        writes: tuple[str, ...] = ("x", "D")
        at = points[index]
        if before:
            a_c, corrector, c_c = adams_weights(points, index - 1, before, form, two, tau2[index - 1], corrector=True)
            a_c, c_c = (1.0, 0.0) if was == INSIDE else (a_c, c_c)  # "last" is a x + c xi of the step before
            factor, total, corrected = chained((a_c, corrector), (a, weights))
            given = ("noise",) if was == GIVEN else ()
            saved = {"last": factor, **dict.fromkeys(given, a * c_c)}
            mix = dict(kept("last", a_c, corrected))
            mix.update(dict.fromkeys(given, c_c))
            if inside:
                mix = {**{k: a * weight for k, weight in mix.items()}, "xi": c}
            step = Step(index, at, 0.0, listed(total), c, form, saved=saved, keep={"last": mix})
            reads, writes = (*reads, "last", *given), ("x", "D", "last")
        else:
            keep = {"last": {"x": a, "xi": c}} if inside else {}
            step = Step(index, at, a, listed(weights), c, form, keep=keep)  # type: ignore[arg-type]
            writes = ("x", "D", "last") if inside else writes
        network = Network(grid.prediction("the SASolverScheduler", PREDICTED))
        return Recipe(
            step, network, writes=writes, reads=reads, limit=grid.limit(), threshold=grid.threshold(), draw=1 + index
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
        config = self.config
        if config.variance_type in ("learned", "learned_range") and config.prediction_type == "epsilon":
            model_output = model_output[:, :3]
        outputs, last = self.model_outputs, self.last_sample
        before = self.this_corrector_order if index > 0 and last is not None else 0
        orders = self._orders(index, self.lower_order_nums)
        count = max(orders[0] - 1, before - 1, 0)
        memory = outputs[: -1 - count : -1] if count else []
        dtypes = [sample.dtype, promoted(sample, model_output)]
        noise = keys = None
        if not self._silent(index):
            noise, keys = self._pend(model_output, generator, model_output.dtype)
        inside = self.noise == "counter" or isinstance(noise, Pending)
        was = SILENT
        if before:
            was = INSIDE if self._inside else SILENT if self.last_noise is None else GIVEN
            memory = [*memory, last, self.last_noise] if was == GIVEN else [*memory, last]
            dtypes.append(last.dtype)
        elif inside:
            dtypes.append(sample.dtype)
        made = self._take((index, orders[0], before, was, inside), sample, model_output, dtypes, memory, noise, keys)
        times = self.timestep_list
        for i in range(len(outputs) - 1):
            outputs[i], times[i] = outputs[i + 1], times[i + 1]
        outputs[-1], times[-1] = made[1], timestep
        self.last_sample = made[2] if len(made) == 3 else sample
        self.last_noise, self._inside = None if inside else noise, inside
        self.this_predictor_order, self.this_corrector_order = orders
        if self.lower_order_nums < self._depth():
            self.lower_order_nums += 1
        self._step_index = index + 1
        return SchedulerOutput(prev_sample=made[0]) if return_dict else (made[0],)
