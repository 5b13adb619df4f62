"""Exact networks in numpy: an isotropic Gaussian mixture and a single Gaussian, and the exact probability flow."""

from __future__ import annotations

import numpy as np
import torch

from fastsample.schedules import VPLinear


class Mixture:
    """x0 ~ sum_k w_k N(mu_k, s_k^2 I); the same numbers for the same seed as the recorded runs use."""

    def __init__(self, dim: int = 4, modes: int = 5, seed: int = 0) -> None:
        g = torch.Generator().manual_seed(seed)
        double = {"generator": g, "dtype": torch.float64}
        self.mu = 1.5 * torch.randn(modes, dim, **double).numpy()
        self.s2 = (0.2 + 0.4 * torch.rand(modes, **double).numpy()) ** 2
        w = 0.5 + torch.rand(modes, **double).numpy()
        self.w = w / w.sum()

    def x0(self, x: np.ndarray, alpha: float, sigma: float) -> np.ndarray:
        """E[x0 | x] of x (B, dim) at a level."""
        var = alpha**2 * self.s2 + sigma**2
        gap = x[:, None] - alpha * self.mu
        logp = np.log(self.w) - 0.5 * x.shape[1] * np.log(var) - 0.5 * (gap**2).sum(-1) / var
        p = np.exp(logp - logp.max(1, keepdims=True))
        p /= p.sum(1, keepdims=True)
        return (p[..., None] * (self.mu + (alpha * self.s2 / var)[:, None] * gap)).sum(1)


def exact_flow(network, schedule: VPLinear, t_max: float, t_min: float, x: np.ndarray, steps: int) -> np.ndarray:
    """States (steps + 1, ...) on the lambda-uniform grid by the classical Runge-Kutta method in x/sigma."""
    lam = np.linspace(*(float(schedule.lam(t)) for t in (t_max, t_min)), 2 * steps + 1)
    alpha, sigma = schedule.levels(lam)

    def slope(i, y):  # d(x/sigma)/d lambda = e^lambda x0
        return np.exp(lam[i]) * network(y * sigma[i], alpha[i], sigma[i])

    y, h = x / sigma[0], 2.0 * (lam[1] - lam[0])
    states = [x]
    for i in range(0, 2 * steps, 2):
        k1 = slope(i, y)
        k2 = slope(i + 1, y + 0.5 * h * k1)
        k3 = slope(i + 1, y + 0.5 * h * k2)
        k4 = slope(i + 2, y + h * k3)
        y = y + h / 6.0 * (k1 + 2.0 * k2 + 2.0 * k3 + k4)
        states.append(y * sigma[i + 2])
    return np.stack(states)
