"""Recorded runs of plain float64 loops, and windows of Poisson midpoint against loops written here."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from fastsample import langevin

from .golden_cases import GOLDEN
from .langevin_cases import at_level, collapsed, collapsed_pairs, mixture, offsets


def load(name):
    with np.load(GOLDEN / f"{name}.npz") as file:
        return {key: file[key] for key in file.files}


def numbers(values, first=1):
    return {first + i: torch.from_numpy(v) for i, v in enumerate(values)}


def check(run, states):
    np.testing.assert_allclose(run.trace.numpy(), states[1:], rtol=0, atol=1e-12)


def network_at(f):
    """The same target as a diffusion network: told the log-SNR, fed the scaled state, P of its gradient not 0."""
    alpha, sigma = float(f["level_alpha"]), float(f["level_sigma"])
    return [at_level(alpha, sigma), *(langevin.AtLevel(mixture().network(p), alpha, sigma) for p in ("eps", "v"))]


@pytest.mark.parametrize("name", ["rlmc_over_clean", "rlmc_over_noisy"])
def test_overdamped_randomized_midpoint(name):
    f = load(name)
    noise = numbers(np.stack([f["n1"], f["n2"]], 1).reshape(-1, *f["n1"].shape[1:]))
    for target in network_at(f):
        run = langevin.sample(
            target,
            torch.from_numpy(f["x0"]),
            kernel="rlmc",
            steps=len(f["theta"]),
            step_size=float(f["eta"]),
            theta=f["theta"],
            noise=noise,
            trace=True,
        )
        check(run, f["states"])
        assert run.report.calls == 2 * len(f["theta"])


@pytest.mark.parametrize("name", ["rlmc_under_clean", "rlmc_under_noisy"])
def test_underdamped_randomized_midpoint(name):
    f = load(name)
    noise = numbers(f["noise"].swapaxes(0, 1).reshape(-1, *f["noise"].shape[2:]))
    for target in network_at(f):
        run = langevin.sample(
            target,
            torch.from_numpy(f["u0"]),
            kernel="rlmc-underdamped",
            steps=len(f["theta"]),
            step_size=float(f["h"]),
            friction=float(f["gamma"]),
            velocity=torch.from_numpy(f["v0"]),
            theta=f["theta"],
            noise=noise,
            trace=True,
        )
        check(run, f["u_states"])
        np.testing.assert_allclose(run.velocity.numpy(), f["v_states"][-1], rtol=0, atol=1e-12)


def test_overdamped_poisson_midpoint():
    f = load("plmc_over_clean_K8")
    size, selected = int(f["K"]), f["H"]
    for target in network_at(f):
        run = langevin.sample(
            target,
            torch.from_numpy(f["x0"]),
            kernel="plmc",
            steps=len(selected) // size,
            step_size=float(f["eta"]),
            window=size,
            midpoints=offsets(selected, size),
            noise=collapsed(f["Z"], selected, size),
            trace=True,
        )
        check(run, f["states"])
        asked = selected.reshape(-1, size)[:, 1:].sum()
        assert run.report.calls == len(selected) // size + asked


def test_underdamped_poisson_midpoint():
    f = load("plmc_under_clean_K8")
    size, selected = int(f["K"]), f["H"]
    gamma, h = float(f["gamma"]), float(f["h"])
    for target in network_at(f):
        run = langevin.sample(
            target,
            torch.from_numpy(f["u0"]),
            kernel="plmc-underdamped",
            steps=len(selected) // size,
            step_size=h,
            friction=gamma,
            velocity=torch.from_numpy(f["v0"]),
            window=size,
            midpoints=offsets(selected, size),
            noise=collapsed_pairs(f["n1"], f["n2"], selected, size, gamma, h / size),
            trace=True,
        )
        check(run, f["u_states"])
        np.testing.assert_allclose(run.velocity.numpy(), f["v_states"][-1], rtol=0, atol=1e-12)
