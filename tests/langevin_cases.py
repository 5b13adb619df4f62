"""What tests of Langevin runs share: targets with known laws, plain loops, noise of windows."""

from __future__ import annotations

import itertools
import math

import numpy as np
import torch

from fastsample import langevin
from fastsample.langevin.ou import move
from fastsample.models.mixture import GaussianMixture

from .exact import Mixture


def gaussian(std: float = 1.0) -> langevin.Energy:
    """N(0, std^2) per element, with its gradient."""
    return langevin.Energy(lambda x: (x.double() / std).square().flatten(1).sum(1) / 2, lambda x: x / std**2)


def quartic() -> langevin.Energy:
    """U = sum x^4 / 4 + x^2 / 2: not Gaussian, even."""
    return langevin.Energy(lambda x: (x**4 / 4 + x**2 / 2).flatten(1).sum(1), lambda x: x**3 + x)


def mixture() -> GaussianMixture:
    """The data of the recorded runs."""
    m = Mixture()
    return GaussianMixture(torch.from_numpy(m.mu), torch.from_numpy(np.sqrt(m.s2)), torch.from_numpy(m.w))


def at_level(alpha: float, sigma: float) -> langevin.Score:
    """That mixture at a level, by its score and energy."""
    m = mixture()
    return langevin.Score(lambda x: m.score(x, alpha, sigma), lambda x: -m.log_prob(x, alpha, sigma))


def collapsed(z: np.ndarray, selected: np.ndarray, size: int) -> dict[int, torch.Tensor]:
    """Normals of the moves of overdamped windows, of those ``z`` of all fine steps."""
    made = {}
    for w, start in enumerate(range(0, len(z), size)):
        stops = [0, *(i for i in np.flatnonzero(selected[start : start + size]) if i), size]
        for n, (i, q) in enumerate(itertools.pairwise(stops)):
            made[1 + w * size + n] = torch.from_numpy(z[start + i : start + q].sum(0) / math.sqrt(q - i))
    return made


def collapsed_pairs(
    n1: np.ndarray, n2: np.ndarray, selected: np.ndarray, size: int, gamma: float, h: float
) -> dict[int, torch.Tensor]:
    """The same for underdamped windows of fine moves of length ``h``: two normals per move."""
    one, made = move(gamma, h), {}
    for w, start in enumerate(range(0, len(n1), size)):
        stops = [0, *(i for i in np.flatnonzero(selected[start : start + size]) if i), size]
        for n, (i, q) in enumerate(itertools.pairwise(stops)):
            u, v, many = np.zeros_like(n1[0]), np.zeros_like(n1[0]), move(gamma, (q - i) * h)
            for j in range(start + i, start + q):
                u = u + one.p1 * v + one.l_1 * n1[j] + one.l_2 * n2[j]
                v = one.e * v + one.l_v * n1[j]
            first = v / many.l_v
            second = (u - many.l_1 * first) / many.l_2
            draw = 1 + 2 * (w * size + n)
            made[draw], made[draw + 1] = torch.from_numpy(first), torch.from_numpy(second)
    return made


def offsets(selected: np.ndarray, size: int) -> list[list[int]]:
    """Midpoints per window, as the option takes them."""
    return [np.flatnonzero(selected[i : i + size]).tolist() for i in range(0, len(selected), size)]
