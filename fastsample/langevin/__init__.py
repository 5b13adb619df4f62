"""Langevin sampling of a fixed target: a score, an energy, or a diffusion model's score at one level.

>>> import torch, fastsample
>>> from fastsample import langevin
>>> energy = langevin.Energy(lambda x: 0.5 * (x * x).sum(1))  # x is (B, ...), one energy per chain
>>> run = langevin.sample(
...     energy, torch.zeros(8, 2), kernel="mala", steps=200, step_size=0.5, warmup=100, target_acceptance=0.6, seed=0
... )
>>> run.x.shape
torch.Size([8, 2])
>>> run.report.rhat.max() < 1.2 and 0.3 < run.report.acceptance_mean < 0.9
True

Names are found on first use.  See docs/langevin.md.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

_HOME = {
    "sample": "sampling",
    "Result": "sampling",
    "Report": "report",
    "KERNELS": "kernels",
    "Score": "targets",
    "Energy": "targets",
    "AtLevel": "targets",
    "bulk_ess": "diagnostics",
    "split_rhat": "diagnostics",
    "move": "ou",
}

__all__ = ["AtLevel", "Energy", "KERNELS", "Report", "Result", "Score", "bulk_ess", "move", "sample", "split_rhat"]

if TYPE_CHECKING:
    from .diagnostics import bulk_ess as bulk_ess
    from .diagnostics import split_rhat as split_rhat
    from .kernels import KERNELS as KERNELS
    from .ou import move as move
    from .report import Report as Report
    from .sampling import Result as Result
    from .sampling import sample as sample
    from .targets import AtLevel as AtLevel
    from .targets import Energy as Energy
    from .targets import Score as Score


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module 'fastsample.langevin' has no attribute {name!r}")
    value = getattr(importlib.import_module(f".{_HOME[name]}", __name__), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *_HOME})
