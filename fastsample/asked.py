"""What `sample` is asked for: its state, start, keys and conditions, checked before memory is touched."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from . import noise as keyed
from .models.network import Network
from .ops import bound

Seed = int | Sequence[int] | torch.Generator | Tensor
_FLOATS = (torch.float32, torch.bfloat16, torch.float16, torch.float64)


def state_of(x: Any, network: Network, dtype: torch.dtype | None, device: torch.device | str | None) -> Tensor:
    """The given state, or a tensor without memory to say shape, dtype and device."""
    if dtype is not None and dtype not in _FLOATS:
        raise TypeError(f"dtype: got {dtype}, allowed are float32, bfloat16, float16 and float64")
    if isinstance(x, Tensor):
        if not x.is_floating_point() and dtype is None:
            raise TypeError(f"x: got {x.dtype}, need a floating tensor, or dtype=")
        if x.ndim < 2:
            raise ValueError(f"x: got shape {tuple(x.shape)}, need (B, ...) with at least two dimensions")
        return x.to(device=device, dtype=dtype)
    if isinstance(x, int) and not isinstance(x, bool):
        if network.shape is None:
            raise ValueError(f"x: got {x}, but the model does not say its shape; give the whole shape (B, ...)")
        x = (x, *network.shape)
    try:
        shape = tuple(int(n) for n in x)
    except (TypeError, ValueError) as error:
        raise TypeError(f"x: got {type(x).__name__}, need a shape (B, ...) or a tensor") from error
    if len(shape) < 2 or min(shape) < 0:
        raise ValueError(f"x: got shape {shape}, need (B, ...) with at least two dimensions")
    return _like(shape, dtype or torch.float32, device or network.device or "cpu")


_known: dict[Any, Tensor] = {}  # on the CPU: nobody writes to them


def _like(shape: tuple[int, ...], dtype: torch.dtype, device: torch.device | str) -> Tensor:
    """A tensor without memory."""
    if torch.compiler.is_compiling() or not bound.free():
        return torch.empty((), dtype=dtype, device=device).expand(shape)
    known = _known.get((shape, dtype, device))
    if known is None:
        with torch.inference_mode(False):
            known = torch.empty((), dtype=dtype, device=device).expand(shape)
        if known.is_cpu:
            if len(_known) >= 64:
                _known.clear()
            _known[shape, dtype, device] = known
    return known


def start_of(x: Any, start: int | float | None) -> tuple[str, int | float | None]:
    """How the run begins, and the step or fraction that was asked for."""
    if start is None:
        return ("state" if isinstance(x, Tensor) else "noise"), None
    if not isinstance(x, Tensor):
        raise ValueError("start: got a shape for x; to begin at a step, x must be the data, a tensor")
    if isinstance(start, bool) or not isinstance(start, (int, float)):
        raise TypeError(f"start: got {type(start).__name__}, need a step (int) or a fraction of the steps (float)")
    return "data", start


def keys_of(seed: Seed | None, sample_ids: Sequence[int] | Tensor | None, batch: int, device: torch.device) -> Tensor:
    if isinstance(seed, Tensor):
        if seed.dtype != torch.uint64 or seed.shape != (batch, 2) or sample_ids is not None:
            more = "" if sample_ids is None else " and sample_ids"
            raise ValueError(f"seed: got {tuple(seed.shape)} {seed.dtype}{more}, keys are ({batch}, 2) uint64, alone")
        return seed.to(device)
    ids: Any = batch if sample_ids is None else sample_ids
    if sample_ids is not None and len(sample_ids) != batch:
        raise ValueError(f"sample_ids: got {len(sample_ids)}, need {batch}, one per sample")
    if seed is None:
        seed = torch.default_generator
    if isinstance(seed, torch.Generator):
        return keyed.keys_from_generator(seed, ids, device)
    return keyed.keys(seed, ids, device)


def conditions_of(network: Network, guided: bool, cond: Any, uncond: Any, state: Tensor) -> tuple[Any, Any]:
    """The conditions of both branches, with those that are usual where none are given."""
    for name, value in (("cond", cond), ("uncond", uncond)):
        if isinstance(value, Tensor) and (value.ndim == 0 or len(value) != len(state)):
            raise ValueError(f"{name}: got shape {tuple(value.shape)}, need {len(state)} conditions, one per sample")
    if not guided:
        if uncond is not None:
            raise ValueError("uncond: got it without guidance; give guidance= too")
        return network.condition(cond, state), None
    if cond is None:
        if uncond is not None or network.null_class is not None:
            raise ValueError("cond: got none under guidance; give one condition per sample")
    elif uncond is None and network.null_class is not None and isinstance(cond, Tensor):
        uncond = torch.full_like(cond, network.null_class)
    return cond, uncond
