"""What a call of ``fastsample::update`` must look like.  Reads shapes, dtypes and addresses, never values."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from .. import row
from .overlap import overlaps_itself, share_memory

FLOATS = (torch.float32, torch.bfloat16, torch.float16, torch.float64)


def check(
    outs: Sequence[Tensor],
    terms: Sequence[Tensor],
    table: Tensor,
    step: Tensor,
    key: Tensor | None,
    noise: Sequence[Tensor],
    time: Tensor | None = None,
    clock: Tensor | None = None,
) -> None:
    """Raise ``ValueError``/``TypeError`` that names the argument unless the call is well formed (reads no values)."""
    if len(outs) > row.MAX_OUTPUTS or len(terms) > row.MAX_TERMS or len(noise) > row.MAX_NOISES:
        raise ValueError(
            f"got {len(outs)} outs, {len(terms)} terms, {len(noise)} noise; "
            f"at most {row.MAX_OUTPUTS}, {row.MAX_TERMS}, {row.MAX_NOISES} are allowed"
        )
    tensors = [(f"outs[{i}]", x) for i, x in enumerate(outs)]
    tensors += [(f"terms[{i}]", x) for i, x in enumerate(terms)] + [(f"noise[{i}]", x) for i, x in enumerate(noise)]
    if not tensors:
        raise ValueError("outs, terms: got none")
    first_name, first = tensors[0]
    if first.dim() < 1:
        raise ValueError(f"{first_name}: got a tensor without dimensions, allowed is (B, ...)")
    for name, x in tensors:
        if x.dtype not in FLOATS:
            raise TypeError(f"{name}: got {x.dtype}, allowed are float32, bfloat16, float16 and float64")
        if x.shape != first.shape:
            raise ValueError(
                f"{name}: got shape {tuple(x.shape)}, allowed is that of {first_name}, {tuple(first.shape)}"
            )
        if x.device != first.device:
            raise ValueError(f"{name}: got device {x.device}, allowed is that of {first_name}, {first.device}")
    if table.dtype != torch.float64 or table.dim() != 2 or table.shape[1] != row.COLUMNS or not table.is_contiguous():
        raise ValueError(
            f"table: got shape {tuple(table.shape)} {table.dtype}, allowed is contiguous (N, {row.COLUMNS}) float64"
        )
    batch = first.shape[0]
    if step.dtype != torch.int64 or step.dim() > 1 or (step.dim() == 1 and step.shape[0] != batch):
        raise ValueError(f"step: got shape {tuple(step.shape)} {step.dtype}, allowed is () or ({batch},) int64")
    if key is not None:
        if noise:
            raise ValueError("key, noise: got both; give keys or noise tensors")
        if key.dtype != torch.uint64 or tuple(key.shape) != (batch, 2):
            raise ValueError(f"key: got shape {tuple(key.shape)} {key.dtype}, allowed is ({batch}, 2) uint64")
    if time is not None:
        if time.dtype not in (torch.float32, torch.float64):
            raise TypeError(f"time: got {time.dtype}, allowed are float32 and float64")
        if tuple(time.shape) != (batch,) or not time.is_contiguous():
            raise ValueError(
                f"time: got shape {tuple(time.shape)} strides {time.stride()}, allowed is contiguous ({batch},)"
            )
    if clock is not None:
        if clock.dtype != torch.int64:
            raise TypeError(f"clock: got {clock.dtype}, allowed is int64")
        if tuple(clock.shape) != (2,) or not clock.is_contiguous():
            raise ValueError(
                f"clock: got shape {tuple(clock.shape)} strides {clock.stride()}, allowed is contiguous (2,)"
            )
    others = [("table", table), ("step", step), ("key", key), ("time", time), ("clock", clock)]
    for name, x in [(name, x) for name, x in others if x is not None]:
        if x.device != first.device:
            raise ValueError(f"{name}: got device {x.device}, allowed is that of {first_name}, {first.device}")
    _check_memory(outs, terms, noise)
    _check_finish(tensors, table, step, key, time, clock)


def _check_finish(
    tensors: Sequence[tuple[str, Tensor]],
    table: Tensor,
    step: Tensor,
    key: Tensor | None,
    time: Tensor | None,
    clock: Tensor | None,
) -> None:
    """What is written beside the outputs is apart from all else, but that ``step`` may be ``clock[0]``."""
    read = [("table", table), ("step", step), *((("key", key),) if key is not None else ())]
    for name, x, others in (("time", time, [*tensors, *read]), ("clock", clock, [*tensors, *read, ("time", time)])):
        if x is None:
            continue
        lo, hi = span(x)
        for other, y in others:
            if y is None or (name, other, span(y)) == ("clock", "step", (lo, lo + 8)):
                continue
            other_lo, other_hi = span(y)
            if lo < other_hi and other_lo < hi and share_memory(x, y, other_lo - lo):
                allowed = "; it may be the view clock[0]" if other == "step" and name == "clock" else ""
                raise ValueError(f"{name}: overlaps the memory of {other}{allowed}")


def _check_memory(outs: Sequence[Tensor], terms: Sequence[Tensor], noise: Sequence[Tensor]) -> None:
    read = [(f"{kind}[{j}]", x) for kind, group in (("terms", terms), ("noise", noise)) for j, x in enumerate(group)]
    for i, out in enumerate(outs):
        if overlaps_itself(out):
            raise ValueError(f"outs[{i}]: got a tensor whose elements share memory, such as an expanded one")
        lo, hi = span(out)
        for name, x in [(f"outs[{j}]", y) for j, y in enumerate(outs[:i])] + read:
            other_lo, other_hi = span(x)
            if hi <= other_lo or other_hi <= lo:
                continue
            if (name.startswith("outs") or not same_memory(out, x)) and share_memory(out, x, other_lo - lo):
                raise ValueError(f"outs[{i}]: overlaps the memory of {name}; an output may be exactly a term, or apart")


def same_memory(x: Tensor, y: Tensor) -> bool:
    """Whether two tensors of one shape are element for element the same memory."""
    return (
        x.dtype == y.dtype
        and span(x)[0] == span(y)[0]
        and all(n <= 1 or s == t for n, s, t in zip(x.shape, x.stride(), y.stride(), strict=True))
    )


def span(x: Tensor) -> tuple[int, int]:
    """Addresses of the first byte and of the one after the last; equal where there is no memory."""
    if x.numel() == 0 or x.is_meta:
        return 0, 0
    try:
        start = x.data_ptr()
    except RuntimeError:  # fake tensors have no memory to overlap
        return 0, 0
    reach = sum((n - 1) * s for n, s in zip(x.shape, x.stride(), strict=True))
    return start, start + (reach + 1) * x.element_size()
