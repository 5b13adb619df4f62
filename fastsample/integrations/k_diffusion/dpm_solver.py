"""``sample_dpm_fast`` and ``sample_dpm_adaptive`` of k-diffusion: from sigma_max to sigma_min, no list of sigmas."""

from __future__ import annotations

from itertools import accumulate, pairwise
from typing import Any

import numpy as np
import torch
from torch import Tensor

from fastsample import torch_stream
from fastsample.path import Path
from fastsample.procedures import Setting, get
from fastsample.procedures.adaptive import Adaptive
from fastsample.profiling.ranges import ranged
from fastsample.solvers.assemble import DEFAULTS
from fastsample.solvers.singlestep import order_list

from .driver import NoiseSampler, _bar, run


def _ends(sigma_min: Any, sigma_max: Any) -> tuple[float, float]:
    low, high = float(sigma_min), float(sigma_max)
    if not (low > 0 and high > 0):
        raise ValueError(f"sigma_min, sigma_max: got {low}, {high}, allowed are numbers above 0")
    return low, high


@torch.no_grad()
def sample_dpm_fast(
    model: Any, x: Tensor, sigma_min: float, sigma_max: float, n: int, extra_args: dict[str, Any] | None = None,
    callback: Any = None, disable: bool | None = None, eta: float = 0.0, s_noise: float = 1.0,
    noise_sampler: NoiseSampler | None = None,
) -> Tensor:  # fmt: skip
    """DPM-Solver "fast": ``n`` calls in groups of three, two and one, even in log sigma (Lu et al. 2022, arXiv
    2206.00927).  Raises ``ValueError`` for ends that are not above 0 or a number of calls below 1."""
    low, high = _ends(sigma_min, sigma_max)
    if isinstance(n, bool) or not isinstance(n, int) or n < 1:
        raise ValueError(f"n: got {n!r}, allowed are whole numbers of 1 or more")
    orders = order_list(3, n)
    bounds = np.geomspace(high, low, len(orders) + 1).tolist()
    starts = {call: group for group, call in enumerate(accumulate(orders[:-1], initial=0))}
    groups = pairwise(bounds)

    def draw(*_: Any) -> Tensor:
        between = next(groups)
        return torch_stream.randn_like(x) if noise_sampler is None else noise_sampler(*between)

    def tell(info: dict[str, Any]) -> None:
        if info["i"] in starts:
            group = starts[info["i"]]
            sigma = torch.tensor(bounds[group], dtype=x.dtype, device=x.device)
            t = -sigma.log()
            callback({**info, "i": group, "t": t, "t_up": t, "sigma": sigma, "sigma_hat": sigma})

    options = {"eta": eta, "s_noise": s_noise}
    sigmas = np.geomspace(high, low, n + 1).tolist()
    told = None if callback is None else tell
    made = run(model, x, sigmas, "dpm-fast", options, extra_args, told, disable, draw)
    while True:  # k-diffusion draws for every group, whatever it weighs
        try:
            draw()
        except StopIteration:
            break
    return made


@torch.no_grad()
def sample_dpm_adaptive(
    model: Any, x: Tensor, sigma_min: float, sigma_max: float, extra_args: dict[str, Any] | None = None,
    callback: Any = None, disable: bool | None = None, order: int = 3, rtol: float = 0.05, atol: float = 0.0078,
    h_init: float = 0.05, pcoeff: float = 0.0, icoeff: float = 1.0, dcoeff: float = 0.0, accept_safety: float = 0.81,
    eta: float = 0.0, s_noise: float = 1.0, noise_sampler: NoiseSampler | None = None, return_info: bool = False,
) -> Any:  # fmt: skip
    """DPM-Solver-12 and -23 under PID control; with ``return_info`` also the counts of steps and calls.

    Raises ``ValueError`` for ends that are not above 0 and ``sigma_max`` not above ``sigma_min``.
    """
    low, high = _ends(sigma_min, sigma_max)
    if not isinstance(x, Tensor) or not x.is_floating_point():
        raise TypeError(f"x: got {getattr(x, 'dtype', type(x).__name__)}, need a floating tensor (B, ...)")
    entry = get("dpm-adaptive")
    assert entry is not None
    given = {name: value for name, value in locals().items() if name in entry.options}
    path = Path(np.ones(2), np.array([high, low]), np.array([high, low]))
    network = {**DEFAULTS, "prediction": "x0", "time": "sigma"}

    def draw(_: int) -> Tensor:
        return torch_stream.randn_like(x) if noise_sampler is None else noise_sampler(*attempts.between)

    setting = Setting(path, None, network, x, "state", None, draw, None, False)
    attempts: Any = entry.make(setting, **{**entry.options, **given})
    info = {"steps": 0, "nfe": 0, "n_accept": 0, "n_reject": 0}
    asks: Any = attempts.asks()
    model = ranged("network", model)
    told: Any = None
    first: Any = None
    extra = extra_args or {}
    with _bar(None, disable) as advance:
        while True:
            try:
                ask, t = asks.send(told)
            except StopIteration:
                ask = None
            counts = attempts.accepted, attempts.rejected
            if counts != (info["n_accept"], info["n_reject"]):
                if eta == 0.0 and counts[0] > info["n_accept"]:
                    draw(0)  # k-diffusion draws for every accepted step, whatever it weighs
                info.update(steps=sum(counts), nfe=attempts.told, n_accept=counts[0], n_reject=counts[1])
                if callback is not None:
                    callback(_attempt(attempts, info, first))
            if ask is None:
                break
            told = model(ask, t.to(x.dtype), **extra)
            if attempts.told == info["nfe"]:
                first = told
            advance()
    return (attempts.state, info) if return_info else attempts.state


def _attempt(run: Adaptive, info: dict[str, int], denoised: Any) -> dict[str, Any]:
    sigma = torch.tensor(run.at.rho, dtype=run.state.dtype, device=run.state.device)
    t = -sigma.log()
    facts = {"t": t, "t_up": t, "sigma": sigma, "sigma_hat": sigma, "error": run.error, "h": run.h}
    return {"x": run.state, "i": info["steps"] - 1, "denoised": denoised, **facts, **info}
