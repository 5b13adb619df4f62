"""From tensors to a launch: how they lie in memory, and launches remembered per shapes, dtypes and strides."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

import torch
import triton
from torch import Tensor

Strides = tuple[int, ...]
_REMEMBERED = 1024
_T = TypeVar("_T")


@dataclass(slots=True)
class Launch:
    """A kernel and what a call of it needs besides its pointers."""

    kernel: Any
    static: tuple[Any, ...]  # the last arguments of the kernel
    grid: tuple[int, int, int]
    warps: int
    compiled: Any = None

    def __call__(self, *args: Any) -> None:
        if self.compiled is not None:  # past Triton's own look-up, which costs more than a kernel on small states
            self.compiled[self.grid](*args, *self.static)
            return
        compiled = self.kernel[self.grid](*args, *self.static, num_warps=self.warps, enable_fp_fusion=False)
        if isinstance(self.kernel, triton.runtime.JITFunction):
            self.compiled = compiled


def signature_of(tensors: Iterable[Tensor], table: Tensor) -> tuple[Any, ...]:
    """What a launch and the checks of its arguments depend on, but for addresses.

    Alignment counts, because a compiled kernel relies on it; the number of rows of ``table`` does not.
    """
    alike = tuple([(x.dtype, x.shape, x.stride(), x.data_ptr() % 16 == 0) for x in tensors])
    return table.dtype, table.shape[1:], table.stride(), alike


def remember(launches: dict[Any, _T], signature: Any, launch: _T) -> _T:
    if len(launches) >= _REMEMBERED:
        launches.clear()
    launches[signature] = launch
    return launch


def layout(
    tensors: Sequence[Tensor], ordered: bool, per_sample: bool
) -> tuple[int, int, tuple[int, ...], tuple[Strides, ...]]:
    """Samples, elements of one, and sizes and strides as in ``collapse``; both are empty if all lie dense and alike."""
    batch, sizes, strides = collapse(tuple(tensors[0].shape), [x.stride() for x in tensors], ordered, per_sample)
    numel = math.prod(sizes)
    if all(s[1:] == (1,) and (batch == 1 or s[0] == numel) for s in strides):
        return batch, numel, (), ()
    return batch, numel, sizes, tuple(strides)


def collapse(
    shape: tuple[int, ...], strides: Sequence[Strides], ordered: bool, per_sample: bool
) -> tuple[int, tuple[int, ...], list[Strides]]:
    """Samples, sizes of a sample's dimensions (at least one), and per tensor the strides of both.

    Dimensions that lie side by side in every tensor are merged.  ``ordered``: keep the logical order, for the noise of
    an element is that of its index.  Unless ``per_sample``, the batch is one more dimension of a single sample.
    """
    dims = [(shape[d], tuple(s[d] for s in strides)) for d in range(len(shape))]
    batch, batch_strides = dims.pop(0) if per_sample else (1, (0,) * len(strides))
    dims = [d for d in dims if d[0] != 1]
    if not ordered:
        dims.sort(key=lambda d: d[1], reverse=True)
    merged: list[tuple[int, Strides]] = []
    for size, steps in dims:
        if merged and all(outer == size * inner for outer, inner in zip(merged[-1][1], steps, strict=True)):
            merged[-1] = (merged[-1][0] * size, steps)
        else:
            merged.append((size, steps))
    merged = merged or [(1, (1,) * len(strides))]
    per_tensor = [(batch_strides[i], *(steps[i] for _, steps in merged)) for i in range(len(strides))]
    return batch, tuple(size for size, _ in merged), per_tensor


def on(device: torch.device) -> contextlib.AbstractContextManager[Any]:
    if device.type == "cpu":
        return contextlib.nullcontext()
    module = torch.get_device_module(device)
    return contextlib.nullcontext() if module.current_device() == device.index else module.device(device)
