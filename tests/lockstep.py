"""A stock scheduler of diffusers and ours side by side: both get the inputs of stock's run, step by step."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

ULP = 2.0**-24
Edit = Callable[[int, Tensor], Tensor]


def start(*shape: int, dtype: torch.dtype = torch.float32, seed: int = 0) -> Tensor:
    """Normal noise."""
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64).to(dtype)


def network(x: Tensor, i: int, channels: int = 1) -> Tensor:
    """A bounded function of state and step, of the state's dtype; ``channels``: 2 adds as many in 0.1..1.1."""
    wide = x.double()
    made = 0.8 * torch.tanh(wide) + 0.2 * torch.sin(3.0 * wide.flip(-1) + 0.7 * i)
    return (made if channels == 1 else torch.cat([made, 0.6 + 0.5 * torch.cos(wide + i)], dim=1)).to(x.dtype)


def takes(scheduler: Any, name: str) -> bool:
    """Whether ``step`` has an argument."""
    return name in inspect.signature(scheduler.step).parameters


def generator(scheduler: Any, seed: int) -> dict[str, Any]:
    """The argument ``generator`` where ``step`` has it."""
    return {"generator": torch.Generator().manual_seed(seed)} if takes(scheduler, "generator") else {}


def scaled(scheduler: Any, x: Tensor, t: Any) -> Tensor:
    """Input of the network."""
    return scheduler.scale_model_input(x, t) if hasattr(scheduler, "scale_model_input") else x


def stretch(scheduler: Any, i: int) -> float:
    """How much larger than the state the numbers are that stock adds up.

    In a second stage it divides by the lower sigma what it then multiplies by the difference; a flow solver on eps_hat
    multiplies state and prediction by alpha'/alpha before it subtracts them."""
    if scheduler.config.get("algorithm_type") == "deis" and scheduler.config.use_flow_sigmas:
        return float((1.0 - scheduler.sigmas[i + 1]) / (1.0 - scheduler.sigmas[i]))
    if scheduler.order == 1 or i % 2 == 0:
        return 1.0
    low = float(scheduler.sigmas[i])
    return max(1.0, float(scheduler.sigmas[i - 1] - low) / low) if low > 0 else 1.0


def pairs(
    stock: Any,
    ours: Any,
    x: Tensor,
    *,
    first: int = 0,
    edit: Edit | None = None,
    channels: int = 1,
    seed: int = 3,
    **options: Any,
) -> list[tuple[tuple[Tensor, ...], tuple[Tensor, ...], float]]:
    """Results of stock and of ours for every step, and what a rounding is: 2^-24 of the largest number in the step or
    the one before (a second stage starts from its state), times ``stretch``.

    Both were set up by ``set_timesteps``; the run starts at ``timesteps[first]``.  ``edit`` changes the state before a
    step, as inpainting does.
    """
    torch.testing.assert_close(ours.timesteps, stock.timesteps, rtol=0, atol=0)
    made = []
    draws, draws_ours = ({} if "variance_noise" in options else generator(s, seed) for s in (stock, ours))
    x, before = x * getattr(stock, "init_noise_sigma", 1.0), 0.0
    for i, t in enumerate(stock.timesteps[first:]):
        x = x if edit is None else edit(i, x)
        seen, seen_ours = scaled(stock, x, t), scaled(ours, x, t)
        assert seen_ours.dtype is seen.dtype
        e = network(seen, i, channels)
        want = stock.step(e, t, x, return_dict=False, **draws, **options)
        got = ours.step(e, t, x, return_dict=False, **draws_ours, **options)
        size = max(float(y.abs().max()) for y in (x, e, *want))
        made.append((want, got, ULP * max(size, before) * stretch(stock, first + i)))
        before = size
        assert len(want) == len(got) and getattr(stock, "step_index", 0) == getattr(ours, "step_index", 0)
        assert (seen - seen_ours).abs().max() <= 4 * ULP * size
        x = want[0]
    if draws:
        assert torch.equal(draws["generator"].get_state(), draws_ours["generator"].get_state())
    return made


def assert_close(made: list[tuple[tuple[Tensor, ...], tuple[Tensor, ...], float]], roundings: int = 64) -> None:
    """Every result within ``roundings`` of its step."""
    for i, (want, got, rounding) in enumerate(made):
        for k, (a, b) in enumerate(zip(want, got, strict=True)):
            assert b.dtype is a.dtype and b.shape == a.shape, (i, k, a.dtype, b.dtype)
            error = float((a.double() - b.double()).abs().max())
            assert error <= roundings * rounding, f"step {i}, result {k}: {error / rounding:.1f} roundings"
