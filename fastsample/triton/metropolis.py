"""``fastsample::metropolis_`` on Triton: from tensors to two launches, remembered per shapes, dtypes and strides."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
import triton.language as tl
from torch import Tensor

from .. import decision
from ..ops.metropolis_arguments import check
from ..ops.update import compute_dtype
from .launch import Launch, layout, on, remember, signature_of
from .metropolis_kernel import HEAD, SUMS, metropolis_move_kernel, metropolis_sums_kernel
from .moments import LANES, ROUNDS
from .update import _HALVES, _MAX_BATCH, tile

_launches: dict[Any, tuple[Launch, Launch]] = {}


def metropolis_(
    state: Tensor,
    cache: Tensor,
    outs: Sequence[Tensor],
    chain: Tensor,
    proposal: Tensor,
    fresh: Tensor,
    terms: Sequence[Tensor],
    table: Tensor,
    step: Tensor,
    key: Tensor | None = None,
    noise: Sequence[Tensor] = (),
    uniform: Tensor | None = None,
) -> None:
    """Choose, select and move by row ``step`` of ``table``; arguments as in ``fastsample.ops.metropolis_``.

    A step outside the table rejects, with NaN as log-ratio and outputs.
    """
    given = [x for x in (key, uniform) if x is not None]
    signature = (
        *(len(outs), len(terms), key is None, uniform is None, state.device),
        signature_of((state, cache, proposal, fresh, *outs, *terms, *noise, chain, step, *given), table),
    )
    launches = _launches.get(signature)
    if launches is None:
        check(state, cache, outs, chain, proposal, fresh, terms, table, step, key, noise, uniform)
        launches = remember(
            _launches, signature, describe(state, cache, outs, proposal, fresh, terms, step, key, noise)
        )
    batch = len(state)
    if batch == 0:
        return
    if table.shape[0] == 0:
        table, step = table.new_zeros(1, decision.COLUMNS), step.new_full((), -1)
        return metropolis_(state, cache, outs, chain, proposal, fresh, terms, table, step, key, noise, uniform)
    if batch > _MAX_BATCH:
        for first in range(0, batch, _MAX_BATCH):
            part = slice(first, first + _MAX_BATCH)
            metropolis_(
                *(state[part], cache[part], [x[part] for x in outs], chain[part], proposal[part], fresh[part]),
                *([x[part] for x in terms], table, step[part] if step.dim() else step),
                *(None if key is None else key[part], [x[part] for x in noise]),
                None if uniform is None else uniform[part],
            )
        return
    step = step.contiguous()
    sums, move = launches
    blocks, rows = sums.grid[0], table.shape[0]
    with on(state.device):
        work = torch.empty(batch * (SUMS * blocks + HEAD), dtype=torch.float64, device=state.device)
        operands = (state, proposal, cache, fresh, *terms)
        sums(operands, work, chain, table, step, key, uniform, rows, blocks)
        pairs = ((state, cache), (proposal, fresh))
        move(*pairs, tuple(outs), tuple(terms), tuple(noise), work, chain, table, step, key, rows, blocks)


def describe(
    state: Tensor,
    cache: Tensor,
    outs: Sequence[Tensor],
    proposal: Tensor,
    fresh: Tensor,
    terms: Sequence[Tensor],
    step: Tensor,
    key: Tensor | None,
    noise: Sequence[Tensor],
) -> tuple[Launch, Launch]:
    """The launches of a well-formed call."""
    # The sums go by the logical index, as the noise does: so a log-ratio does not depend on the layout.
    tensors = [state, cache, proposal, fresh, *outs, *terms, *noise]
    batch, numel, sizes, strides = layout(tensors, True, True)
    n, k, per_sample = len(outs), len(terms), step.dim() == 1
    kept, offered, to = strides[:2], strides[2:4], strides[4 : 4 + n]
    others, drawn = strides[4 + n : 4 + n + k], strides[4 + n + k :]
    wide = compute_dtype([*tensors[: 4 + n + k]]) == torch.float64

    index = tl.int32 if numel + LANES * ROUNDS < 2**31 else tl.int64
    operand_strides = (kept[0], offered[0], kept[1], offered[1], *others) if strides else ()
    sums = Launch(
        kernel=metropolis_sums_kernel,
        static=(numel, sizes, operand_strides, 4 + k, wide, per_sample, len(sizes), index),
        grid=(max(1, -(-numel // (LANES * ROUNDS))), batch, 1),
        warps=4,
    )
    warps, rounds = tile(batch, numel)
    lanes = 2 if wide else 4
    # 16-byte accesses, or where there is an address to each element, as many as registers allow.
    lane = 2 if wide else 8 if state.dtype in _HALVES and not sizes else 4
    block = 32 * warps * lane
    index = tl.int32 if numel + rounds * block < 2**31 else tl.int64
    keyed = key is not None and n > 0
    move = Launch(
        kernel=metropolis_move_kernel,
        static=(
            *(numel, -(-numel // lanes), sizes, kept, offered, to, others, drawn),
            *(k, n, 2 if keyed else len(noise) if n else 0, wide),
            *(keyed and lane == 8, per_sample, len(sizes), index, block, rounds),
        ),
        grid=(max(1, -(-numel // (block * rounds))), batch, 1),
        warps=warps,
    )
    return sums, move
