"""What the end-to-end benchmark samples: networks, levels, and the coefficients of the textbook's steps in float64."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from benchmarks import networks, steps
from fastsample.path import Path

Net = Callable[[Tensor, Tensor], Tensor]


@dataclass(frozen=True)
class Case:
    """A job.  ``config``: of the scheduler of diffusers, which all programs follow; ``time``: what the network is told
    (``index`` of the training step, or ``log-snr``); ``null``: the network only returns a stored tensor.
    """

    name: str
    shape: tuple[int, ...]
    solver: str
    scheduler: str
    config: dict[str, Any]
    steps: int
    make: Callable[[tuple[int, ...], str], Net]
    time: str = "index"
    null: bool = False

    @property
    def noisy(self) -> bool:
        return self.solver == "ddpm"

    @property
    def clip(self) -> float | None:
        return 1.0 if self.config.get("clip_sample") else None

    @property
    def prediction(self) -> str:
        return {"epsilon": "eps", "v_prediction": "v"}[self.config["prediction_type"]]


class Step(NamedTuple):
    """D = px x + pe e, clipped; x' = a x + b0 D + b1 D_-1 + be e + c xi."""

    px: float
    pe: float
    a: float
    b0: float
    b1: float
    be: float
    c: float


def _stored(shape: tuple[int, ...], device: str) -> Net:
    e = torch.randn(shape, generator=torch.Generator().manual_seed(3)).to(device)
    return lambda x, t: e


def _policy(shape: tuple[int, ...], device: str) -> Net:
    """On a GPU the usual widths; on a CPU an eighth of them, so that a call takes a few milliseconds."""
    widths = (256, 512, 1024) if device == "cuda" else (32, 64, 128)
    return networks.randomly(networks.PolicyUNet, device, actions=shape[2], widths=widths)


def _transformer(shape: tuple[int, ...], device: str) -> Net:
    return networks.randomly(networks.TinyTransformer, device, channels=shape[1], side=shape[2])


class _Digits(torch.nn.Module):
    def __init__(self, number: int, device: str) -> None:
        super().__init__()
        from fastsample.models.digits import load_digits

        self.net = load_digits(device)
        self.register_buffer("labels", torch.arange(number, device=device) % 10)

    def forward(self, x: Tensor, t: Tensor) -> Tensor:
        out: Tensor = self.net(x, t, self.labels)
        return out


def _digits(shape: tuple[int, ...], device: str) -> Net:
    return _Digits(shape[0], device)


LINEAR = {"beta_schedule": "linear", "num_train_timesteps": 1000, "prediction_type": "epsilon"}
POLICY = {"beta_schedule": "squaredcos_cap_v2", "num_train_timesteps": 100, "prediction_type": "epsilon"}
POLICY = {**POLICY, "clip_sample": True}
_MULTISTEP = ("dpmpp-2m", "DPMSolverMultistepScheduler")

CASES = (
    Case("null", (1, 4, 8, 8), *_MULTISTEP, LINEAR, 20, _stored, null=True),
    Case("null", (1, 4, 128, 128), *_MULTISTEP, LINEAR, 20, _stored, null=True),
    Case("policy UNet, DDPM", (1, 16, 2), "ddpm", "DDPMScheduler", POLICY, 100, _policy),
    Case("policy UNet, DDIM", (1, 16, 2), "ddim", "DDIMScheduler", POLICY, 10, _policy),
    Case("digits", (1, 1, 28, 28), *_MULTISTEP, {**LINEAR, "prediction_type": "v_prediction"}, 20, _digits, "log-snr"),
    Case("transformer", (1, 4, 16, 16), *_MULTISTEP, LINEAR, 20, _transformer),
)


@dataclass(frozen=True)
class Job:
    """A case on a device: its network, the start ``x``, the levels ``(N + 1,)``, and what is told per call."""

    case: Case
    device: str
    net: Net
    x: Tensor
    path: Path
    times: tuple[Tensor, ...]  # (B,) each
    rows: tuple[Step, ...]


def job(case: Case, device: str, steps_: int | None = None) -> Job:
    """Make it; ``steps_``: another number of steps."""
    case = case if steps_ is None else replace(case, steps=steps_)
    x = torch.randn(case.shape, generator=torch.Generator().manual_seed(1)).to(device)
    path = levels(case)
    told = torch.tensor(path.t[:-1], dtype=torch.float32, device=device)
    times = tuple(t.expand(case.shape[0]).contiguous() for t in told)
    return Job(case, device, case.make(case.shape, device), x, path, times, textbook(case, path))


def levels(case: Case) -> Path:
    """The levels that diffusers visits, from its float32 product; the last is clean."""
    total = case.config["num_train_timesteps"]
    if case.config["beta_schedule"] == "linear":
        betas = torch.linspace(1e-4, 0.02, total, dtype=torch.float32)
    else:  # Nichol and Dhariwal 2021, arXiv 2102.09672, equation 17

        def kept(u: float) -> float:
            return math.cos((u + 0.008) / 1.008 * math.pi / 2) ** 2

        betas = torch.tensor([min(1 - kept((i + 1) / total) / kept(i / total), 0.999) for i in range(total)])
    product = torch.cumprod(1.0 - betas, dim=0).double().numpy()
    if case.solver == "dpmpp-2m":
        index = np.linspace(0, total - 1, case.steps + 1).round()[::-1][:-1].astype(int)
    else:
        index = (np.arange(case.steps) * (total // case.steps))[::-1]
    alpha, sigma = np.append(np.sqrt(product[index]), 1.0), np.append(np.sqrt(1.0 - product[index]), 0.0)
    told = index if case.time == "index" else np.log(alpha[:-1] / sigma[:-1])
    return Path(alpha, sigma, np.append(told, told[-1]))


def textbook(case: Case, path: Path) -> tuple[Step, ...]:
    """The steps as the papers write them."""
    return tuple(_textbook_step(case, path, i) for i in range(path.steps))


def _textbook_step(case: Case, path: Path, i: int) -> Step:
    alpha, sigma, alpha_next, sigma_next = (float(v) for v in (*_at(path, i), *_at(path, i + 1)))
    p = (alpha, -sigma) if case.prediction == "v" else (1.0 / alpha, -sigma / alpha)
    if case.solver == "ddim":  # Song et al. 2020, arXiv 2010.02502, equation 12, with the raw noise of the network
        return Step(*p, 0.0, alpha_next, 0.0, sigma_next, 0.0)
    if case.solver == "ddpm":  # Ho et al. 2020, arXiv 2006.11239, equation 7
        step_alpha = (alpha / alpha_next) ** 2
        beta = 1.0 - step_alpha
        c = math.sqrt(sigma_next**2 / sigma**2 * beta)
        return Step(*p, math.sqrt(step_alpha) * sigma_next**2 / sigma**2, alpha_next * beta / sigma**2, 0.0, 0.0, c)
    if i + 1 == path.steps:  # to clean data: the prediction itself
        return Step(*p, 0.0, 1.0, 0.0, 0.0, 0.0)
    rho, rho_next = sigma / alpha, sigma_next / alpha_next
    if i == 0:  # first order
        h = math.log(rho / rho_next)
        return Step(*p, sigma_next / sigma, -alpha_next * math.expm1(-h), 0.0, 0.0, 0.0)
    before = float(path.sigma[i - 1] / path.alpha[i - 1])
    k = steps.coefficients(before, rho, rho_next, False)
    return Step(*p, k.a, k.b0, k.b1, 0.0, 0.0)


def _at(path: Path, i: int) -> tuple[float, float]:
    return path.alpha[i], path.sigma[i]
