"""Noise from torch's generators, with the numbers of diffusers' ``randn_tensor``."""

from __future__ import annotations

import torch
from diffusers.utils.torch_utils import randn_tensor
from torch import Tensor

from fastsample import torch_stream
from fastsample.ops.bound import Bound, free
from fastsample.torch_stream import BLOCK

from .spare import Spare, fits

_is_compiling = torch.compiler.is_compiling
Generators = torch.Generator | list[torch.Generator] | None


def draw(like: Tensor, generator: Generators, dtype: torch.dtype, spare: Spare) -> Tensor:
    """Standard normals ``(B, ...)`` on the device of ``like``; a list of generators has one per sample.

    Those of CPU generators are made by ``torch_stream.randn``.  Raises what ``randn_tensor`` raises.
    """
    generator = _unwrapped(generator)
    if isinstance(generator, list):
        own = (isinstance(one, torch.Generator) and one.device == like.device for one in generator)
        if not (free() and like.is_cpu and all(own)):
            return _stock(like, generator, dtype)
        out = _room(like, dtype, spare)
        out = torch.empty(like.shape, dtype=dtype, device=like.device) if out is None else out
        for sample in range(len(out)):
            one = out[sample : sample + 1]
            torch_stream.randn(one.shape, generator=generator[sample], dtype=dtype, out=one)
        return out
    if generator is None or (isinstance(generator, torch.Generator) and generator.device == like.device):
        if like.is_cpu and not _small(like):
            out = _room(like, dtype, spare)
            return torch_stream.randn(like.shape, generator=generator, dtype=dtype, out=out)
        if generator is None:  # torch.compile does not take it as None where sizes are symbols
            return torch.randn(like.shape, device=like.device, dtype=dtype)
        return torch.randn(like.shape, generator=generator, device=like.device, dtype=dtype)
    if isinstance(generator, torch.Generator) and generator.device.type == "cpu":
        return torch_stream.randn(like.shape, generator=generator, dtype=dtype).to(like.device)
    return _stock(like, generator, dtype)


class Pending:
    """The next draw of a CPU generator, which the pass of the step itself makes."""

    __slots__ = ("_dtype", "_generator", "_like", "_spare")

    def __init__(self, like: Tensor, generator: torch.Generator | None, dtype: torch.dtype, spare: Spare) -> None:
        self._like, self._generator, self._dtype, self._spare = like, generator, dtype, spare

    def call(self, update: Bound) -> bool:
        """Do a bound update with it; ``False``: nothing was drawn, and ``tensor`` gives it."""
        return torch_stream.call(update, self._generator, self._dtype, self._like.numel())

    def tensor(self) -> Tensor:
        """Draw it."""
        return draw(self._like, self._generator, self._dtype, self._spare)


def pend(like: Tensor, generator: Generators, dtype: torch.dtype, spare: Spare) -> Tensor | Pending:
    """``draw``, put off where the step's own pass can do it."""
    generator = _unwrapped(generator)
    if _small(like) or isinstance(generator, list) or not (free() and like.is_cpu):
        return draw(like, generator, dtype, spare)
    fits_blocks = like.numel() // len(like) % BLOCK == 0 and like.dtype != torch.float64
    if fits_blocks and torch_stream.ready(generator, dtype):
        return Pending(like, generator, dtype, spare)
    return draw(like, generator, dtype, spare)


def _small(like: Tensor) -> bool:
    """Whether torch draws as fast.  Traced sizes are not compared: they would become conditions of the trace."""
    return not _is_compiling() and like.numel() < torch_stream.LEAST


def _unwrapped(generator: Generators) -> Generators:
    """A list of one generator is that generator, as in diffusers."""
    if isinstance(generator, list) and len(generator) == 1 and isinstance(generator[0], torch.Generator):
        return generator[0]
    return generator


def _stock(like: Tensor, generator: Generators, dtype: torch.dtype) -> Tensor:
    made: Tensor = randn_tensor(like.shape, generator=generator, device=like.device, dtype=dtype)
    return made


def _room(like: Tensor, dtype: torch.dtype, spare: Spare) -> Tensor | None:
    return spare.take(like, dtype, flat=True) if fits(like) else None
