"""Classes whose network sees a scaled state (VE samplers): the step can write the scaled copy for the next call too."""

from __future__ import annotations

import math
from collections.abc import Hashable, Sequence
from typing import Any

import torch
from torch import Tensor

from .base import Fused, Grid
from .spare import fits


class Scaled(Fused):
    """Mixin: ``scale_model_input`` without a launch where that is possible.

    The scaled copy is handed out when ``scale_model_input`` gets the very tensor that ``step`` returned, unchanged.
    Where callers concatenate the state for guidance first, it is not written any more.
    """

    _ahead: tuple[Tensor, int, Tensor] | None = None  # the state that was returned, its version, its scaled copy
    _use_ahead = True

    def scale_model_input(self, sample: Tensor, timestep: Any) -> Tensor:
        """``sample`` times the factor of the network's input; see the class of diffusers."""
        if self._step_index is None:
            self._init_step_index(timestep)
        self.is_scale_input_called = True
        ahead, self._ahead = self._ahead, None
        if ahead is not None:
            if ahead[0] is sample and sample._version == ahead[1]:
                return ahead[2]
            self._use_ahead = False
        self._rows()
        return self._product(sample, self._kappa(self._levels[self._step_index]))

    def _product(self, sample: Tensor, factor: float) -> Tensor:
        if fits(sample) and sample.is_floating_point() and not sample.requires_grad:
            room = self._spare.take(sample, sample.dtype)
            if room is not None:
                return torch.mul(sample, factor, out=room)
        return sample * factor

    def _kappa(self, sigma: float) -> float:
        return 1.0 / math.hypot(1.0, sigma)

    def _looks_ahead(self, sample: Tensor) -> bool:
        return self._use_ahead and not sample.is_inference() and not sample.requires_grad

    def _remember(self, prev_sample: Tensor, scaled: Tensor) -> None:
        if not prev_sample.is_inference():
            self._ahead = (prev_sample, prev_sample._version, scaled)

    def _begin_run(self, device: Any = None) -> None:
        self._ahead, self._use_ahead = None, True
        super()._begin_run(device)

    def __getstate__(self) -> dict[str, Any]:
        state = super().__getstate__()
        state.pop("_ahead", None)
        return state


class Ahead(Scaled):
    """Mixin for classes whose ``step`` writes the scaled copy: row ``(index, "ahead")``, else row ``index``."""

    def _first_keys(self, grid: Grid) -> Sequence[Hashable]:
        steps = range(len(grid.times))
        return [*steps, *((i, "ahead") for i in steps[:-1])]
