"""The loop behind the k-diffusion functions: a plan driven by a model that returns denoised data."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Sequence
from functools import lru_cache
from typing import Any

import numpy as np
import torch
from torch import Tensor

from fastsample import torch_stream
from fastsample.brownian import BrownianTreeNoiseSampler
from fastsample.path import Path
from fastsample.plan import Plan, make_plan
from fastsample.profiling.ranges import RunRanges
from fastsample.run import PlanRun
from fastsample.solvers import registry

NoiseSampler = Callable[[Any, Any], Tensor]
Options = tuple[tuple[str, Any], ...]


def sampler(name: str, *, flow: bool = False, **fixed: Any) -> Callable[..., Tensor]:
    """A function with the signature of k-diffusion for solver ``name`` of fastsample; ``fixed``: its options.

    ``flow``: sigma is the time of a rectified flow, ``x = (1 - sigma) x0 + sigma eps``; else x = x0 + sigma eps.  The
    function takes further options of the solver as keywords, and ``noise_sampler(sigma, sigma_next)``.  Raises
    ``ValueError`` for an unknown solver or option.
    """
    entry = registry.find(name)
    registry.complete(entry, fixed)

    @torch.no_grad()
    def sample(
        model: Any,
        x: Tensor,
        sigmas: Tensor,
        extra_args: dict[str, Any] | None = None,
        callback: Callable[[dict[str, Any]], Any] | None = None,
        disable: bool | None = None,
        noise_sampler: NoiseSampler | None = None,
        **options: Any,
    ) -> Tensor:
        chosen = {**fixed, **options}
        return run(model, x, sigmas, entry.name, chosen, extra_args, callback, disable, noise_sampler, flow=flow)

    sample.__name__ = "sample_" + entry.name.replace("-", "_")
    sample.__doc__ = f"{entry.about}; {entry.paper}.  See ``sampler``."
    return sample


def run(
    model: Any,
    x: Tensor,
    sigmas: Tensor | Sequence[float],
    solver: str,
    options: dict[str, Any],
    extra_args: dict[str, Any] | None,
    callback: Callable[[dict[str, Any]], Any] | None,
    disable: bool | None,
    noise_sampler: NoiseSampler | None = None,
    *,
    flow: bool = False,
    draws: str = "used",
) -> Tensor:
    """One run on the levels ``sigmas``.

    ``draws``: which noise is asked for: ``"used"`` that with a weight, ``"steps"`` one per step to a level above 0,
    ``"calls"`` one per such call, ``"before"`` one before every step (churn), so that the stream of a generator stays
    that of k-diffusion where the weight is 0.
    """
    if not isinstance(x, Tensor) or not x.is_floating_point():
        raise TypeError(f"x: got {getattr(x, 'dtype', type(x).__name__)}, need a floating tensor (B, ...)")
    levels = _levels(sigmas)
    if len(levels) < 2:
        return x
    plan = _plan(solver, levels, flow, tuple(sorted(options.items())))
    extra_args = {} if extra_args is None else extra_args
    draw_between: NoiseSampler = noise_sampler or (lambda sigma, sigma_next: torch_stream.randn_like(x))
    ends = _intervals(plan)

    # the caller's may do tensor arithmetic; to make its tensors on a GPU waits for it, so ours get plain numbers
    plain = noise_sampler is None or isinstance(noise_sampler, BrownianTreeNoiseSampler)

    def noise(draw: int) -> Tensor:
        between: Sequence[Any] = ends[draw]
        if not plain:
            between = [torch.tensor(end, dtype=x.dtype, device=x.device) for end in between]
        return draw_between(*between)

    if draws == "before" and not _noisy(plan.start("state")):
        noise(0)
    state = PlanRun(plan, x, start="state", noise=noise)
    asks, ranges = state.asks(), RunRanges.of(state, solver)
    model = model if ranges is None else ranges.network(model)
    told: Any = None
    with _bar(plan.path.steps, disable) as advance, ranges or contextlib.nullcontext():
        for call in range(plan.nfe):
            ask, t = asks.send(told)
            if ranges is not None and call:
                ranges.told(call - 1)
            told = model(ask, t.to(x.dtype), **extra_args)
            step = plan.step_of[call]
            if callback is not None and (call == 0 or plan.step_of[call - 1] != step):
                hat = t[0] if len(x) else torch.tensor(levels[step])
                sigma = sigmas[step]
                callback({"x": ask, "i": step, "sigma": sigma, "sigma_hat": hat, "denoised": told})
            if _unused(plan, call, draws):
                noise(1 + call)
            if state.ends_step(call):
                advance()
        with contextlib.suppress(StopIteration):
            asks.send(told)
        if ranges is not None:
            ranges.told(plan.nfe - 1)
    return state.state


def _levels(sigmas: Tensor | Sequence[float]) -> tuple[float, ...]:
    values = torch.as_tensor(sigmas).detach().to("cpu", torch.float64)
    if values.ndim != 1:
        raise ValueError(f"sigmas: got shape {tuple(values.shape)}, allowed is (N + 1,), falling")
    return tuple(values.tolist())


@lru_cache(maxsize=64)
def _plan(solver: str, levels: tuple[float, ...], flow: bool, options: Options) -> Plan:
    sigma = np.array(levels)
    alpha = 1.0 - sigma if flow else np.ones_like(sigma)
    denoise = sigma[-1] == 0.0 and registry.find(solver).ends == "noisy" and len(sigma) > 2
    if denoise:  # it cannot step to 0: the last call's x0_hat is the result
        alpha, sigma = alpha[:-1], sigma[:-1]
    return make_plan(solver, Path(alpha, sigma, sigma), prediction="x0", denoise=denoise, **dict(options))


def _noisy(values: np.ndarray[Any, Any]) -> bool:
    from fastsample import row

    return bool(any(values[row.g(k, r)] for k in range(row.MAX_OUTPUTS) for r in range(row.MAX_NOISES)))


def _intervals(plan: Plan) -> list[tuple[float, float]]:
    """Levels from and to which each draw leads: from the start of its step to the level of the next call."""
    levels = plan.path.sigma.tolist()
    ends = [(levels[0], levels[0])]
    for call, step in enumerate(plan.step_of):
        last = call + 1 == plan.nfe or plan.step_of[call + 1] != step
        inside = levels[min(step + 1, len(levels) - 1)] if last else float(plan.t[call + 1])
        ends.append((levels[min(step, len(levels) - 1)], inside))
    return ends


def _unused(plan: Plan, call: int, draws: str) -> bool:
    """Whether k-diffusion asks for noise after this call that our row has no weight for."""
    if draws == "used" or _noisy(plan.table[call]):
        return False
    last = call + 1 == plan.nfe or plan.step_of[call + 1] != plan.step_of[call]
    if draws == "before":
        return last and call + 1 < plan.nfe
    end = plan.path.sigma[min(plan.step_of[call] + 1, plan.path.steps)]
    return bool(end > 0.0 and (last or draws == "calls"))


class _bar:  # noqa: N801  (a context manager)
    """tqdm with the meaning of k-diffusion's ``disable``: None hides it where stderr is no terminal."""

    def __init__(self, steps: int | None, disable: bool | None) -> None:
        self._bar: Any = None
        if not disable:
            from tqdm.auto import tqdm

            self._bar = tqdm(total=steps, disable=disable)

    def __enter__(self) -> Callable[[], Any]:
        return (lambda: None) if self._bar is None else self._bar.update

    def __exit__(self, *error: Any) -> None:
        if self._bar is not None:
            self._bar.close()
