"""Where the randomness of chains comes from: keys of the normals on the device, and of host choices on the host."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from .. import noise as keyed
from .chain import Drive

Seed = int | Sequence[int] | torch.Generator


class Randomness:
    """Keys of the normals on the device, and of host choices on the host."""

    def __init__(self, seed: Seed | None, ids: Any, noise: Any, x: Tensor) -> None:
        count: Any = len(x) if ids is None else ids
        if ids is not None and len(ids) != len(x):
            raise ValueError(f"sample_ids: got {len(ids)}, need {len(x)}, one per chain")
        seed = torch.default_generator if seed is None else seed
        if isinstance(seed, torch.Generator):
            seed = int(torch.randint(2**63 - 1, (), generator=seed, device=seed.device))
        self._host, self._seed = keyed.keys(seed, count, "cpu"), seed
        self.drive = Drive(self._host.to(x.device), None)
        if noise is not None:
            self.drive = Drive(None, noise if callable(noise) else _lookup(noise, x))

    def stream(self, shared: bool) -> Tensor:
        """Key ``(1, 2)`` that all chains share, or ``(B, 2)``, one each."""
        if not shared:
            return self._host
        if not isinstance(self._seed, (int, np.integer)):
            raise ValueError("shared: got a seed per chain, which leaves none for what chains share")
        return torch.tensor([[keyed._signed(int(self._seed)), 0]], dtype=torch.int64).view(torch.uint64)

    def velocity(self, given: Any, x: Tensor) -> Tensor:
        if given is None:
            noise = self.drive.noise
            return keyed.normal_like(x, self._host.to(x.device)) if noise is None else noise(0).to(x).clone()
        if not isinstance(given, Tensor) or given.shape != x.shape or not given.is_floating_point():
            raise ValueError(f"velocity: need a floating tensor of the shape of x, {tuple(x.shape)}")
        return given.detach().to(x).clone(memory_format=torch.contiguous_format)


def _lookup(noise: Mapping[int, Tensor], x: Tensor) -> Callable[[int], Tensor]:
    def get(draw: int) -> Tensor:
        xi = noise.get(draw)
        if xi is None:
            raise ValueError(f"noise: got none for draw {draw}")
        if xi.shape != x.shape or xi.device != x.device or not xi.is_floating_point():
            raise ValueError(f"noise: draw {draw} has shape {tuple(xi.shape)} on {xi.device}, need that of x")
        return xi

    return get
