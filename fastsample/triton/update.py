"""``fastsample::update_`` on Triton: from tensors to a launch, remembered per shapes, dtypes and strides."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
import triton.language as tl
from torch import Tensor

from ..ops.arguments import check
from ..ops.clock import finish
from ..ops.update import compute_dtype
from .kernel import update_kernel
from .launch import Launch, layout, on, remember, signature_of

_MAX_BATCH = 65535  # second dimension of a grid
_HALVES = (torch.bfloat16, torch.float16)

# Elements of the whole call -> (warps, blocks of a program).  No autotune: its first calls would be for timing, and
# would break a captured graph.
_TILES = (
    (1 << 16, (1, 1)),  # fewer elements than an H200 has lanes: as many programs as there can be
    (1 << 23, (4, 1)),
    (math.inf, (4, 4)),  # every SM stays full, and the row is fetched once for four blocks
)

_launches: dict[Any, Launch] = {}


def update_(
    outs: Sequence[Tensor],
    terms: Sequence[Tensor],
    table: Tensor,
    step: Tensor,
    key: Tensor | None = None,
    noise: Sequence[Tensor] = (),
    time: Tensor | None = None,
    clock: Tensor | None = None,
) -> None:
    """Apply row ``step`` of ``table`` to ``terms`` and write ``outs``; arguments as in ``fastsample.ops.update_``.

    A step outside the table fills the outputs with NaN.
    """
    if not outs:
        raise ValueError("outs: got none, allowed are 1 to 3 tensors")
    given = [x for x in (key, time, clock) if x is not None]
    alike = signature_of((*outs, *terms, *noise, step, *given), table)
    signature = (len(outs), len(terms), key is None, time is None, clock is None, outs[0].device, alike)
    launch = _launches.get(signature)
    if launch is None:
        check(outs, terms, table, step, key, noise, time, clock)
        launch = remember(_launches, signature, describe(outs, terms, step, key, noise))
    if 0 in launch.grid:
        return finish(table, step, time, clock)
    if table.shape[0] == 0:
        for out in outs:
            out.fill_(math.nan)
        return finish(table, step, time, clock)
    batch = launch.grid[1]
    if batch > _MAX_BATCH:
        for start in range(0, batch, _MAX_BATCH):
            part = slice(start, start + _MAX_BATCH)
            update_(
                [x[part] for x in outs],
                [x[part] for x in terms],
                table,
                step[part] if step.dim() else step,
                key[part] if key is not None else None,
                [x[part] for x in noise],
                time[part] if time is not None else None,
                clock if start + _MAX_BATCH >= batch else None,
            )
        return None
    if key is not None:
        key = key.contiguous()
    with on(outs[0].device):
        launch(
            *(tuple(outs), tuple(terms), tuple(noise), table.contiguous(), step.contiguous(), key, time, clock),
            table.shape[0],
        )
    return None


def describe(
    outs: Sequence[Tensor], terms: Sequence[Tensor], step: Tensor, key: Tensor | None, noise: Sequence[Tensor]
) -> Launch:
    """The launch of a well-formed call."""
    keyed, per_sample = key is not None, step.dim() == 1
    batch, numel, sizes, strides = layout([*outs, *terms, *noise], keyed, keyed or per_sample)
    wide = compute_dtype([*outs, *terms]) == torch.float64
    warps, rounds = tile(batch, numel)
    # 16-byte accesses; 8 elements share the work of a thread on the row, as long as the registers last.
    lane = 2 if wide else 8 if outs[0].dtype in _HALVES or len(terms) <= 4 else 4
    block = 32 * warps * lane
    lanes = 2 if wide else 4
    n, k = len(outs), len(terms)
    return Launch(
        kernel=update_kernel,
        static=(
            *(outs[0].shape[0], numel, -(-numel // lanes), sizes, strides[:n], strides[n : n + k], strides[n + k :]),
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
