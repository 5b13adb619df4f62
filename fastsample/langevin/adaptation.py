"""Steps of a chain that follow its acceptance during warm-up."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor

_GAIN, _DELAY, _DECAY = 0.05, 10.0, 0.75  # gamma, t_0 and kappa of the paper, as it recommends


class DualAveraging:
    """Log steps by dual averaging: Hoffman and Gelman 2014, arXiv 1111.4246, algorithm 5.

    ``step``: where to begin.  ``target``: the acceptance to reach, in (0, 1).  ``chains``: None to steer one step by
    the mean acceptance of all chains, or their number, for a step per chain.  As a function of the number of a proposal
    it says the step of those that are still to be made.
    """

    def __init__(self, step: float, target: float, chains: int | None) -> None:
        if isinstance(target, bool) or not isinstance(target, (int, float)) or not 0.0 < target < 1.0:
            raise ValueError(f"target_acceptance: got {target!r}, allowed are numbers in (0, 1)")
        start = np.full(() if chains is None else chains, np.log(step))
        self._target, self._mean, self._centre = target, start, start + np.log(10.0)
        self._error, self._count = np.zeros_like(start), 0
        self._set(start)

    def __call__(self, number: int) -> Any:
        return self._step

    def _set(self, log: Any) -> None:
        self._log = log
        self._step = np.exp(log) if np.ndim(log) else float(np.exp(log))

    def observe(self, log_ratio: Tensor) -> None:
        """Learn from the log-ratios ``(B,)`` of one iteration.  Reads the device."""
        accepted = torch.nan_to_num(log_ratio.clamp(max=0.0).exp(), nan=0.0)
        rate = accepted.mean() if np.ndim(self._log) == 0 else accepted
        self._count += 1
        m = self._count
        share = 1.0 / (m + _DELAY)
        self._error = (1.0 - share) * self._error + share * (self._target - rate.cpu().numpy())
        self._set(self._centre - np.sqrt(m) / _GAIN * self._error)
        weight = m**-_DECAY
        self._mean = weight * self._log + (1.0 - weight) * self._mean

    def settle(self) -> None:
        """End of the warm-up: from now on the averaged step."""
        self._set(self._mean)
