"""Runs of drop-in schedulers on states that are large enough for their memory to be kept."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
from torch import Tensor

from fastsample.integrations.diffusers import quick, spare
from fastsample.integrations.diffusers.swap import classes

from .lockstep import generator, network, scaled

SHAPE = (2, 4, 64, 48)  # 96 KB in float32


@pytest.fixture(scope="module", autouse=True)
def low_limit() -> Iterator[None]:
    """Small states are kept too, so that tests are fast."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(spare, "LEAST", 2**15)
        patch.setattr(quick, "LEAST", 2**15)
        yield


def run(scheduler: Any, x: Tensor, steps: int = 6, seed: int = 3) -> list[Tensor]:
    """All results of a run, as copies."""
    scheduler.set_timesteps(steps)
    draws, made = generator(scheduler, seed), []
    x = x * getattr(scheduler, "init_noise_sigma", 1.0)
    for i, t in enumerate(scheduler.timesteps):
        seen = scaled(scheduler, x, t)
        found = scheduler.step(network(seen, i), t, x, return_dict=False, **draws)
        made += [seen.clone(), *(y.clone() for y in found if isinstance(y, Tensor))]
        x = found[0]
    return made


def scheduler_of(name: str, noise: str = "torch", **config: Any) -> Any:
    """One of ours whose random choices have a seed."""
    config = {"noise_sampler_seed": 1, **config} if name == "DPMSolverSDEScheduler" else config
    return classes()[name](**config).use(noise=noise, seed=4)


def kept(scheduler: Any) -> list[Any]:
    return list(scheduler._spare._kept)
