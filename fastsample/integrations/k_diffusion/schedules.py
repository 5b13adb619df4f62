"""The sigma schedules of k-diffusion: N levels from ``sigma_max`` to ``sigma_min``, then 0."""

from __future__ import annotations

import math

import torch
from torch import Tensor

Device = torch.device | str


def get_sigmas_karras(n: int, sigma_min: float, sigma_max: float, rho: float = 7.0, device: Device = "cpu") -> Tensor:
    """``(n + 1,)`` float32: a power law.  Karras et al. 2022, arXiv 2206.00364, equation 5."""
    _check(n, sigma_min, sigma_max)
    ramp = _ramp(n)
    low, high = sigma_min ** (1.0 / rho), sigma_max ** (1.0 / rho)
    return _with_zero((high + ramp * (low - high)) ** rho, device)


def get_sigmas_exponential(n: int, sigma_min: float, sigma_max: float, device: Device = "cpu") -> Tensor:
    """``(n + 1,)`` float32: even in log sigma."""
    _check(n, sigma_min, sigma_max)
    return _with_zero(torch.exp(math.log(sigma_max) + _ramp(n) * math.log(sigma_min / sigma_max)), device)


def get_sigmas_polyexponential(
    n: int, sigma_min: float, sigma_max: float, rho: float = 1.0, device: Device = "cpu"
) -> Tensor:
    """``(n + 1,)`` float32: log sigma follows the power ``rho`` of a ramp from 1 to 0."""
    _check(n, sigma_min, sigma_max)
    ramp = torch.linspace(1.0, 0.0, n, dtype=torch.float64) ** rho
    return _with_zero(torch.exp(ramp * math.log(sigma_max / sigma_min) + math.log(sigma_min)), device)


def get_sigmas_vp(
    n: int, beta_d: float = 19.9, beta_min: float = 0.1, eps_s: float = 1e-3, device: Device = "cpu"
) -> Tensor:
    """``(n + 1,)`` float32: even in the time of the continuous VP schedule, from 1 to ``eps_s``."""
    if n < 1:
        raise ValueError(f"n: got {n}, allowed are whole numbers >= 1")
    t = torch.linspace(1.0, eps_s, n, dtype=torch.float64)
    return _with_zero(torch.sqrt(torch.expm1(beta_d * t**2 / 2.0 + beta_min * t)), device)


def _check(n: int, sigma_min: float, sigma_max: float) -> None:
    if n < 1:
        raise ValueError(f"n: got {n}, allowed are whole numbers >= 1")
    if not 0.0 < sigma_min <= sigma_max < math.inf:
        raise ValueError(f"sigma_min, sigma_max: got {sigma_min}, {sigma_max}, allowed are 0 < sigma_min <= sigma_max")


def _ramp(n: int) -> Tensor:
    return torch.linspace(0.0, 1.0, n, dtype=torch.float64)


def _with_zero(sigmas: Tensor, device: Device) -> Tensor:
    return torch.cat([sigmas, sigmas.new_zeros(1)]).to(device, torch.float32)
