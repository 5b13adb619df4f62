"""Langevin chains on a CUDA device: the bits of the CPU, and no synchronisation while they run."""

from __future__ import annotations

import pytest
import torch

from fastsample import langevin

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device"),
]

UNDER = {"friction": 2.0}
KERNELS = [
    ("lmc", {}),
    ("mala", {"estimator": "trapezoid"}),
    ("mala", {"estimator": "line(2)"}),
    ("uld", UNDER),
    ("rlmc", {}),
    ("rlmc-underdamped", UNDER),
    ("plmc", {"midpoints": "bernoulli", "window": 8}),
    ("plmc-underdamped", {"midpoints": "bernoulli", "window": 8, **UNDER}),
]


def score(x):
    """Products and sums that every device rounds alike, one operation at a time."""
    return x * -1.5


@pytest.mark.parametrize(("kernel", "options"), KERNELS)
def test_chains_have_the_bits_of_the_cpu(kernel, options):
    x = torch.randn(5, 3, 77, generator=torch.Generator().manual_seed(0))
    shared = {"kernel": kernel, "steps": 40, "step_size": 0.05, "seed": 4, "monitor": None, **options}
    here = langevin.sample(langevin.Score(score), x, **shared)
    there = langevin.sample(langevin.Score(score), x.cuda(), **shared)
    assert torch.equal(there.x.cpu(), here.x)


@pytest.mark.parametrize(("kernel", "options"), KERNELS)
def test_the_sampling_phase_does_not_wait(kernel, options):
    """More iterations than one piece of rows has, so that a table is uploaded on the way."""
    steps = 700

    def guard(number, x):
        if number in (0, steps - 1):
            torch.cuda.set_sync_debug_mode("default" if number else "error")

    try:
        langevin.sample(
            langevin.Score(score),
            torch.zeros(4, 50, device="cuda"),
            kernel=kernel,
            steps=steps,
            step_size=0.05,
            seed=0,
            callback=guard,
            **options,
        )
    finally:
        torch.cuda.set_sync_debug_mode("default")


@pytest.mark.parametrize(("kernel", "options"), [case for case in KERNELS if "midpoints" not in case[1]])
def test_recorded_iterations_have_the_bits_of_eager_ones(kernel, options):
    target, x = langevin.Score(score), torch.zeros(4, 50, device="cuda")
    shared = {"kernel": kernel, "steps": 20, "step_size": 0.05, **options}
    for seed, captures in ((0, 1), (1, 0)):
        eager = langevin.sample(target, x, seed=seed, **shared)
        made = langevin.sample(target, x, seed=seed, graph="on", **shared)
        assert torch.equal(eager.x, made.x)
        said = made.report.graph
        assert (said["used"], said["captures"], said["replays"]) == ("cuda graph", captures, 20)
