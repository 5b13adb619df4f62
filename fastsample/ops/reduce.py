"""What the ops share that reduce the state to a row per sample: their arguments, and how a refusal is worded."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any, NoReturn

import torch
from torch import Tensor

from .. import row
from .arguments import check, span


def check_rows(rows: Tensor, terms: Sequence[Tensor], table: Tensor, step: Tensor) -> None:
    """Raise ``ValueError``/``TypeError`` that names the argument unless the tensors fit together (reads no values)."""
    if not terms:
        raise ValueError(f"terms: got none, allowed are 1 to {row.MAX_TERMS} tensors")
    check([], terms, table, step, None, [])
    batch = terms[0].shape[0]
    if rows.dtype != torch.float64 or tuple(rows.shape) != (batch, row.COLUMNS) or not rows.is_contiguous():
        raise ValueError(
            f"rows: got shape {tuple(rows.shape)} {rows.dtype}, allowed is contiguous ({batch}, {row.COLUMNS}) float64"
        )
    if rows.device != terms[0].device:
        raise ValueError(f"rows: got device {rows.device}, allowed is that of terms[0], {terms[0].device}")
    (lo, hi), (table_lo, table_hi) = span(rows), span(table)
    if lo < table_hi and table_lo < hi:
        raise ValueError("rows: overlaps the memory of table; give other memory")


def steps_inside(table: Tensor, step: Tensor) -> Tensor:
    """Which steps are rows of the table, ``()`` or ``(B,)``.  On the CPU all must be, else ``ValueError``."""
    inside = (step >= 0) & (step < table.shape[0])
    if step.device.type == "cpu" and not bool(inside.all()):
        raise ValueError(f"step: got {step.tolist()}, allowed are 0..{table.shape[0] - 1}")
    return inside


def source_rows(table: Tensor, step: Tensor, inside: Tensor, batch: int) -> Tensor:
    """The row of each sample ``(B, 48)``; NaN up to the draws where the step is outside of the table."""
    if table.shape[0] == 0:
        chosen = table.new_zeros(batch, row.COLUMNS)
    else:
        chosen = table[torch.where(inside, step, 0).reshape(-1)].expand(batch, -1).clone()
    missing = table.new_zeros(row.COLUMNS)
    missing[: row.DRAW] = torch.nan
    return torch.where(inside.reshape(-1, 1), chosen, missing)


def refuse(error: Exception) -> NoReturn:
    """Raise again what a kernel refused, as a ``ValueError`` if it names an argument."""
    found = re.search(r"((?:step|the strides of these tensors)\b.*)", str(error))
    if found:
        raise ValueError(found[1]) from error
    raise error


def no_gradient(op: Any, keyset: Any, rows: Tensor, terms: Sequence[Tensor], table: Tensor, *args: Any) -> None:
    """The autograd kernel of such an op: it passes no gradient on, and says so."""
    if torch.is_grad_enabled() and any(x.requires_grad for x in (rows, table, *terms)):
        raise RuntimeError(f"{op.name()} passes no gradient on: detach rows, terms and table")
    with torch._C._AutoDispatchBelowAutograd():
        op.redispatch(keyset & torch._C._after_autograd_keyset, rows, terms, table, *args)
    torch.autograd.graph.increment_version([rows])  # a backward that saved it must notice
