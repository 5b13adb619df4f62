"""``fastsample::update_`` on Triton: from tensors to a launch, remembered per shapes, dtypes and strides."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from ..ops.arguments import check
from ..ops.update import compute_dtype
from .kernel import update_kernel

_MAX_BATCH = 65535  # second dimension of a grid
_REMEMBERED = 1024
_HALVES = (torch.bfloat16, torch.float16)

# Elements of the whole call -> (warps, blocks of a program).  No autotune: its first calls would be for timing, and
# would break a captured graph.
_TILES = (
    (1 << 16, (1, 1)),  # fewer elements than an H200 has lanes: as many programs as there can be
    (1 << 23, (4, 1)),
    (math.inf, (4, 4)),  # every SM stays full, and the row is fetched once for four blocks
)


@dataclass(slots=True)
class Launch:
    """What a call needs besides its pointers."""

    batch: int
    numel: int
    static: tuple[Any, ...]  # kernel arguments from numel on
    grid: tuple[int, int, int]
    warps: int
    compiled: Any = None


Strides = tuple[int, ...]
_launches: dict[Any, Launch] = {}


def update_(
    outs: Sequence[Tensor],
    terms: Sequence[Tensor],
    table: Tensor,
    step: Tensor,
    key: Tensor | None = None,
    noise: Sequence[Tensor] = (),
) -> None:
    """Apply row ``step`` of ``table`` to ``terms`` and write ``outs``; arguments as in ``fastsample.ops.update_``.

    A step outside the table fills the outputs with NaN.
    """
    if not outs:
        return
    tensors = (*outs, *terms, *noise)
    # Alignment is part of the signature, because a compiled kernel relies on it.
    signature = (
        len(outs),
        len(terms),
        key is None,
        step.dim(),
        outs[0].device,
        *((x.dtype, x.shape, x.stride(), x.data_ptr() % 16 == 0) for x in tensors),
    )
    launch = _launches.get(signature)
    if launch is None:
        check(outs, terms, table, step, key, noise)
        launch = describe(outs, terms, step, key, noise)
        if len(_launches) >= _REMEMBERED:
            _launches.clear()
        _launches[signature] = launch
    if launch.batch * launch.numel == 0:
        return
    if table.shape[0] == 0:
        for out in outs:
            out.fill_(math.nan)
        return
    if launch.batch > _MAX_BATCH:
        for start in range(0, launch.batch, _MAX_BATCH):
            part = slice(start, start + _MAX_BATCH)
            update_(
                [x[part] for x in outs],
                [x[part] for x in terms],
                table,
                step[part] if step.dim() else step,
                key[part] if key is not None else None,
                [x[part] for x in noise],
            )
        return
    if key is not None:
        key = key.contiguous()
    args = (
        *(tuple(outs), tuple(terms), tuple(noise), table.contiguous(), step.contiguous(), key, table.shape[0]),
        *launch.static,
    )
    with _on(outs[0].device):
        if launch.compiled is not None:  # past Triton's own look-up, which costs more than this kernel on small states
            launch.compiled[launch.grid](*args)
            return
        kernel = update_kernel[launch.grid](*args, num_warps=launch.warps, enable_fp_fusion=False)
        if isinstance(update_kernel, triton.runtime.JITFunction):
            launch.compiled = kernel


def describe(
    outs: Sequence[Tensor], terms: Sequence[Tensor], step: Tensor, key: Tensor | None, noise: Sequence[Tensor]
) -> Launch:
    """The launch of a well-formed call."""
    tensors = [*outs, *terms, *noise]
    keyed, per_sample = key is not None, step.dim() == 1
    batch, sizes, strides = collapse(tuple(outs[0].shape), [x.stride() for x in tensors], keyed, keyed or per_sample)
    numel = math.prod(sizes)
    dense = all(s[1:] == (1,) and (batch == 1 or s[0] == numel) for s in strides)
    if dense:
        sizes, strides = (), []
    wide = compute_dtype([*outs, *terms]) == torch.float64
    warps, rounds = tile(batch, numel)
    # 16-byte accesses; 8 elements share the work of a thread on the row, as long as the registers last.
    lane = 2 if wide else 8 if outs[0].dtype in _HALVES or len(terms) <= 4 else 4
    block = 32 * warps * lane
    lanes = 2 if wide else 4
    n, k = len(outs), len(terms)
    return Launch(
        batch=batch,
        numel=numel,
        static=(
            *(numel, -(-numel // lanes), sizes, tuple(strides[:n]), tuple(strides[n : n + k]), tuple(strides[n + k :])),
            *(k, n, 2 if keyed else len(noise), wide, keyed and not wide and outs[0].dtype in _HALVES, per_sample),
            *(len(sizes), tl.int32 if numel + rounds * block < 2**31 else tl.int64, block, rounds),
        ),
        grid=(-(-numel // (block * rounds)), batch, 1),
        warps=warps,
    )


def tile(batch: int, numel: int) -> tuple[int, int]:
    """Warps and blocks of a program."""
    total = min(batch * numel, numel * 64)  # small samples stay with small blocks, however many there are
    return next(config for limit, config in _TILES if total < limit)


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


def _on(device: torch.device) -> contextlib.AbstractContextManager[Any]:
    if device.type == "cpu":
        return contextlib.nullcontext()
    module = torch.get_device_module(device)
    return contextlib.nullcontext() if module.current_device() == device.index else module.device(device)
