"""Orders of convergence on the exact mixture, for solvers of any number of calls per step."""

from __future__ import annotations

import functools
import math

import numpy as np
import torch

from fastsample.grids import make_path
from fastsample.plan import make_plan
from fastsample.schedules import VPLinear
from fastsample.solvers import find
from fastsample.solvers.registry import complete

from .exact import Mixture, exact_flow
from .golden_cases import Replay

VP = VPLinear()


@functools.cache
def start_and_end() -> tuple[np.ndarray, np.ndarray]:
    """States at t = 0.6 and, by the exact flow, at t = 0.05; its own error is below 1e-12."""
    noise = torch.randn(8, 4, generator=torch.Generator().manual_seed(7), dtype=torch.float64).numpy()
    x = noise * float(VP.sigma(0.6))
    return x, exact_flow(Mixture().x0, VP, 0.6, 0.05, x, 5120)[-1]


def called_at(name: str, path, **options):
    """The levels of all calls of a run."""
    solver = find(name)
    return [step.at for step in solver.steps(path, **complete(solver, options))]


def error(name: str, steps: int, grid: str = "log-snr", **options) -> float:
    """Largest error of the end against the exact flow."""
    path, mixture = make_path(VP, grid, steps, t_max=0.6, t_min=0.05), Mixture()
    plan, at = make_plan(name, path, prediction="x0", **options), called_at(name, path, **options)
    x, end = start_and_end()
    return float(np.abs(Replay(plan, x, lambda i, x: mixture.x0(x, at[i].alpha, at[i].sigma)).x - end).max())


def order(name: str, steps: tuple[int, int] = (80, 160), grid: str = "log-snr", **options) -> float:
    """Measured order between two numbers of steps."""
    errors = [error(name, n, grid, **options) for n in steps]
    return math.log2(errors[0] / errors[1]) / math.log2(steps[1] / steps[0])
