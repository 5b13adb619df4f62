"""Noise from torch's generators, with the numbers of diffusers' ``randn_tensor``."""

from __future__ import annotations

import torch
from diffusers.utils.torch_utils import randn_tensor
from torch import Tensor

from fastsample import torch_stream
from fastsample.ops.bound import free

from .spare import Spare, fits

Generators = torch.Generator | list[torch.Generator] | None


def draw(like: Tensor, generator: Generators, dtype: torch.dtype, spare: Spare) -> Tensor:
    """Standard normals ``(B, ...)`` on the device of ``like``; a list of generators has one per sample.

    Those of CPU generators are made by ``torch_stream.randn``.  Raises what ``randn_tensor`` raises.
    """
    if isinstance(generator, list) and len(generator) == 1:
        generator = generator[0]
    if isinstance(generator, list):
        if not (free() and like.is_cpu and all(g.device == like.device for g in generator)):
            return _stock(like, generator, dtype)
        out = _room(like, dtype, spare)
        out = torch.empty(like.shape, dtype=dtype, device=like.device) if out is None else out
        for sample in range(len(out)):
            one = out[sample : sample + 1]
            torch_stream.randn(one.shape, generator=generator[sample], dtype=dtype, out=one)
        return out
    if generator is None or (isinstance(generator, torch.Generator) and generator.device == like.device):
        if like.is_cpu and like.numel() >= torch_stream.LEAST:
            out = _room(like, dtype, spare)
            return torch_stream.randn(like.shape, generator=generator, dtype=dtype, out=out)
        return torch.randn(like.shape, generator=generator, device=like.device, dtype=dtype)
    if isinstance(generator, torch.Generator) and generator.device.type == "cpu":
        return torch_stream.randn(like.shape, generator=generator, dtype=dtype).to(like.device)
    return _stock(like, generator, dtype)


def _stock(like: Tensor, generator: Generators, dtype: torch.dtype) -> Tensor:
    made: Tensor = randn_tensor(like.shape, generator=generator, device=like.device, dtype=dtype)
    return made


def _room(like: Tensor, dtype: torch.dtype, spare: Spare) -> Tensor | None:
    return spare.take(like, dtype, flat=True) if fits(like) else None
