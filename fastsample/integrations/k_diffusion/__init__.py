"""Samplers with the signature of k-diffusion: ``sample_NAME(model, x, sigmas, extra_args, callback, disable, ...)``.

``model(x, sigma, **extra_args)`` returns the denoised data; ``sigmas`` falls, usually to 0.  The numbers are those of
k-diffusion, and so is the order in which noise is drawn; between two calls of the model there is one fused update, and
the sigmas are read once, before the first call.  A1111, ComfyUI and others call such functions by name.

Two things differ.  The state is updated in place: what a callback gets (``x``) is good until the next call of the
model, ``clone()`` what you keep.  The Brownian tree of the SDE samplers is fastsample's own (``fastsample.brownian``),
whose path does not depend on the number of steps or the batch; pass ``noise_sampler=`` for another.

``sampler(name)`` makes such a function of any solver of fastsample; ``patch`` puts these into k-diffusion's module.
"""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable, Sequence
from types import ModuleType
from typing import Any

import torch
from torch import Tensor

from fastsample.brownian import BrownianTreeNoiseSampler

from .dpm_solver import sample_dpm_adaptive as sample_dpm_adaptive
from .dpm_solver import sample_dpm_fast as sample_dpm_fast
from .driver import NoiseSampler, _levels, run, sampler
from .schedules import get_sigmas_exponential, get_sigmas_karras, get_sigmas_polyexponential, get_sigmas_vp

Extra = dict[str, Any] | None
Callback = Callable[[dict[str, Any]], Any] | None


def _churn(s_churn: float, s_tmin: float, s_tmax: float, s_noise: float) -> dict[str, Any]:
    return {"s_churn": s_churn, "s_tmin": s_tmin, "s_tmax": min(s_tmax, 1e30), "s_noise": s_noise}


def tree(x: Tensor, sigmas: Any, extra_args: Extra) -> NoiseSampler:
    """The default noise of the SDE samplers: a Brownian path between the levels, from ``extra_args["seed"]``."""
    levels = [sigma for sigma in _levels(sigmas) if sigma > 0.0]
    seed = (extra_args or {}).get("seed")
    low, high = (min(levels), max(levels)) if levels else (1.0, 2.0)
    made = BrownianTreeNoiseSampler(x, low, high if high > low else 2.0 * low, seed=seed)
    made.prepare(levels)  # all weights of the run at once
    return made


@torch.no_grad()
def sample_euler(
    model: Any, x: Tensor, sigmas: Tensor, extra_args: Extra = None, callback: Callback = None,
    disable: bool | None = None, s_churn: float = 0.0, s_tmin: float = 0.0, s_tmax: float = float("inf"),
    s_noise: float = 1.0,
) -> Tensor:  # fmt: skip
    """Karras et al. 2022, arXiv 2206.00364, algorithm 2 without its correction."""
    options = _churn(s_churn, s_tmin, s_tmax, s_noise)
    return run(model, x, sigmas, "euler", options, extra_args, callback, disable, draws="before")


@torch.no_grad()
def sample_heun(
    model: Any, x: Tensor, sigmas: Tensor, extra_args: Extra = None, callback: Callback = None,
    disable: bool | None = None, s_churn: float = 0.0, s_tmin: float = 0.0, s_tmax: float = float("inf"),
    s_noise: float = 1.0,
) -> Tensor:  # fmt: skip
    """Karras et al. 2022, arXiv 2206.00364, algorithm 2."""
    options = _churn(s_churn, s_tmin, s_tmax, s_noise)
    return run(model, x, sigmas, "heun", options, extra_args, callback, disable, draws="before")


@torch.no_grad()
def sample_dpm_2(
    model: Any, x: Tensor, sigmas: Tensor, extra_args: Extra = None, callback: Callback = None,
    disable: bool | None = None, s_churn: float = 0.0, s_tmin: float = 0.0, s_tmax: float = float("inf"),
    s_noise: float = 1.0,
) -> Tensor:  # fmt: skip
    """Midpoint in log sigma with churn."""
    options = _churn(s_churn, s_tmin, s_tmax, s_noise)
    return run(model, x, sigmas, "dpm-2", options, extra_args, callback, disable, draws="before")


@torch.no_grad()
def sample_euler_ancestral(
    model: Any, x: Tensor, sigmas: Tensor, extra_args: Extra = None, callback: Callback = None,
    disable: bool | None = None, eta: float = 1.0, s_noise: float = 1.0, noise_sampler: NoiseSampler | None = None,
) -> Tensor:  # fmt: skip
    """Euler to a lower level, then noise up to the next; ``eta`` 0 is Euler."""
    options = {"eta": eta, "s_noise": s_noise}
    return run(
        model, x, sigmas, "euler-ancestral", options, extra_args, callback, disable, noise_sampler, draws="steps"
    )


@torch.no_grad()
def sample_dpm_2_ancestral(
    model: Any, x: Tensor, sigmas: Tensor, extra_args: Extra = None, callback: Callback = None,
    disable: bool | None = None, eta: float = 1.0, s_noise: float = 1.0, noise_sampler: NoiseSampler | None = None,
) -> Tensor:  # fmt: skip
    """Midpoint in log sigma to a lower level, then noise up to the next."""
    options = {"eta": eta, "s_noise": s_noise}
    return run(
        model, x, sigmas, "dpm-2-ancestral", options, extra_args, callback, disable, noise_sampler, draws="steps"
    )


@torch.no_grad()
def sample_dpmpp_2s_ancestral(
    model: Any, x: Tensor, sigmas: Tensor, extra_args: Extra = None, callback: Callback = None,
    disable: bool | None = None, eta: float = 1.0, s_noise: float = 1.0, noise_sampler: NoiseSampler | None = None,
) -> Tensor:  # fmt: skip
    """DPM-Solver++ 2S to a lower level, then noise up to the next."""
    options = {"eta": eta, "s_noise": s_noise}
    return run(
        model, x, sigmas, "dpmpp-2s-ancestral", options, extra_args, callback, disable, noise_sampler, draws="steps"
    )


@torch.no_grad()
def sample_lms(
    model: Any, x: Tensor, sigmas: Tensor, extra_args: Extra = None, callback: Callback = None,
    disable: bool | None = None, order: int = 4,
) -> Tensor:  # fmt: skip
    """Linear multistep in sigma."""
    return run(model, x, sigmas, "lms", {"order": order}, extra_args, callback, disable)


@torch.no_grad()
def sample_dpmpp_sde(
    model: Any, x: Tensor, sigmas: Tensor, extra_args: Extra = None, callback: Callback = None,
    disable: bool | None = None, eta: float = 1.0, s_noise: float = 1.0, noise_sampler: NoiseSampler | None = None,
    r: float = 0.5,
) -> Tensor:  # fmt: skip
    """DPM-Solver++ 2S on the SDE, noise in both stages."""
    noise_sampler = noise_sampler or tree(x, sigmas, extra_args)
    options = {"eta": eta, "s_noise": s_noise, "r": r}
    return run(model, x, sigmas, "dpmpp-sde", options, extra_args, callback, disable, noise_sampler, draws="calls")


@torch.no_grad()
def sample_dpmpp_2m(
    model: Any, x: Tensor, sigmas: Tensor, extra_args: Extra = None, callback: Callback = None,
    disable: bool | None = None,
) -> Tensor:  # fmt: skip
    """Lu et al. 2022, arXiv 2211.01095, algorithm 2."""
    return run(model, x, sigmas, "dpmpp-2m", {"lower_order_final": 0}, extra_args, callback, disable)


@torch.no_grad()
def sample_dpmpp_2m_sde(
    model: Any, x: Tensor, sigmas: Tensor, extra_args: Extra = None, callback: Callback = None,
    disable: bool | None = None, eta: float = 1.0, s_noise: float = 1.0, noise_sampler: NoiseSampler | None = None,
    solver_type: str = "midpoint",
) -> Tensor:  # fmt: skip
    """SDE-DPM-Solver++ 2M; ``solver_type`` midpoint or heun."""
    if solver_type not in ("heun", "midpoint"):
        raise ValueError(f"solver_type: got {solver_type!r}, allowed are 'heun' and 'midpoint'")
    noise_sampler = noise_sampler or tree(x, sigmas, extra_args)
    options = {"eta": eta, "s_noise": s_noise, "solver_type": solver_type, "lower_order_final": 0}
    return run(model, x, sigmas, "sde-dpmpp-2m", options, extra_args, callback, disable, noise_sampler)


@torch.no_grad()
def sample_dpmpp_3m_sde(
    model: Any, x: Tensor, sigmas: Tensor, extra_args: Extra = None, callback: Callback = None,
    disable: bool | None = None, eta: float = 1.0, s_noise: float = 1.0, noise_sampler: NoiseSampler | None = None,
) -> Tensor:  # fmt: skip
    """SDE-DPM-Solver++ 3M."""
    noise_sampler = noise_sampler or tree(x, sigmas, extra_args)
    options = {"eta": eta, "s_noise": s_noise, "solver_type": "heun", "lower_order_final": 0}
    return run(model, x, sigmas, "sde-dpmpp-3m", options, extra_args, callback, disable, noise_sampler)


_ENDS: dict[str, Callable[..., Any]] = {  # not called with a list of sigmas
    "sample_dpm_adaptive": sample_dpm_adaptive,
    "sample_dpm_fast": sample_dpm_fast,
}
SAMPLERS: dict[str, Callable[..., Tensor]] = {
    name: value for name, value in globals().items() if name.startswith("sample_") and name not in _ENDS
}


def patch(module: ModuleType | None = None, names: Sequence[str] | None = None) -> Callable[[], None]:
    """Put these samplers in the place of those of ``module`` (``k_diffusion.sampling`` if None); returns an undo.

    Only functions that the module has, with no option that ours lacks, are replaced; ``names`` limits them further.
    Raises ``ValueError`` for a name that cannot be replaced.
    """
    if module is None:
        from importlib import import_module

        module = import_module("k_diffusion.sampling")
    ours = {**SAMPLERS, **_ENDS}
    wanted = list(ours) if names is None else list(names)
    before: dict[str, Any] = {}
    for name in wanted:
        theirs = getattr(module, name, None)
        if name in ours and theirs is not None and not _lacks(ours[name], theirs):
            before[name] = theirs
        elif names is not None:
            raise ValueError(f"names: got {name!r}, which {module.__name__} or fastsample does not have in this form")
    for name, theirs in before.items():
        setattr(module, name, functools.wraps(theirs)(ours[name]))

    def undo() -> None:
        for name, theirs in before.items():
            setattr(module, name, theirs)

    return undo


def _lacks(ours: Callable[..., Any], theirs: Callable[..., Any]) -> set[str]:
    return set(inspect.signature(theirs).parameters) - set(inspect.signature(ours).parameters)


__all__ = [
    "SAMPLERS",
    "get_sigmas_exponential",
    "get_sigmas_karras",
    "get_sigmas_polyexponential",
    "get_sigmas_vp",
    "patch",
    "run",
    "sampler",
    "tree",
    *SAMPLERS,
    *_ENDS,
]
