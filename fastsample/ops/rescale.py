"""``fastsample::rescale_``: guidance rescale as a row per sample.

Lin et al. 2023, arXiv 2305.08891, equations 14 to 16: the guided prediction is scaled so that its standard deviation
comes near that of the conditional one.  Here the op finds the factor and writes the row that ``update_`` then applies.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from .. import row
from . import reduce
from .library import add_backend, lib
from .update import compute_dtype

lib.define(
    "rescale_(Tensor(a!) rows, Tensor[] terms, Tensor table, Tensor step, int cond, int uncond) -> ()",
    tags=(torch.Tag.pt2_compliant_tag,),
)


def rescale_(
    rows: Tensor,
    terms: Sequence[Tensor],
    table: Tensor,
    step: Tensor,
    cond: int,
    uncond: int,
) -> None:
    """Write into ``rows[b]`` the row of sample ``b`` with the guided prediction rescaled.

    With ``c = terms[cond]``, ``u = terms[uncond]`` and ``e = u + guidance (c - u)``, the row is row ``step`` with the
    weights (``P`` and ``W``) of both terms multiplied by ``f = phi std(c) / std(e) + 1 - phi``.  ``guidance`` and
    ``phi`` are columns 46 and 47 of that row, so each sample and each step may have its own; 46 is rounded to the
    dtype of e, and ``phi = 0`` makes the factor 1.  The spreads are those of a sample, unbiased as in ``torch.std``,
    from float64 sums in an order that depends on the size alone.  The factor is meant for rows that take c and u in the
    proportion ``guidance : 1 - guidance``, as guidance of two terms does.

    ``rows``: ``(B, 48)`` float64.  ``terms``: 1 to 8 tensors ``(B, ...)``, each float32, bfloat16, float16 or float64,
    any strides; e is float32, or float64 if any term is.  ``table``: ``(N, 48)`` float64.  ``step``: int64 ``()`` or
    ``(B,)``.

    Samples of one element, or whose e is constant, have no finite factor, as in the formula; nor have rows whose
    ``guidance`` or ``phi`` is not finite: the values lie on the device and are not looked at.  No gradient flows.
    Raises ``ValueError`` or ``TypeError`` before any memory is written; on an accelerator a step out of range gives a
    row of NaN.
    """
    step = step.contiguous()
    try:
        torch.ops.fastsample.rescale_(rows, list(terms), table, step, cond, uncond)
    except (RuntimeError, NotImplementedError) as error:  # what the kernel refused: say it better
        check(rows, terms, table, step, cond, uncond)
        reduce.refuse(error)


def check(
    rows: Tensor,
    terms: Sequence[Tensor],
    table: Tensor,
    step: Tensor,
    cond: int,
    uncond: int,
) -> None:
    """Raise ``ValueError``/``TypeError`` that names the argument unless the call is well formed (reads no values)."""
    reduce.check_rows(rows, terms, table, step)
    if not (0 <= cond < len(terms) and 0 <= uncond < len(terms)) or cond == uncond:
        raise ValueError(f"cond, uncond: got {cond}, {uncond}, allowed are two terms of 0..{len(terms) - 1}")


def factor(c: Tensor, u: Tensor, guidance: Tensor, phi: Tensor) -> Tensor:
    """``f`` of every sample, float64 ``(B,)``, of predictions ``(B, n)`` of one dtype; the others are ``(B,)``."""
    e = u + guidance.to(c.dtype)[:, None] * (c - u)
    c, e = c.double(), e.double()
    count = c.shape[1]
    spread = [((x - x.mean(1, keepdim=True)).square().sum(1) / (count - 1 or math.nan)).sqrt() for x in (c, e)]
    return torch.where(phi == 0, 1.0, phi * (spread[0] / spread[1]) + (1 - phi))


def _reference_rescale_(
    rows: Tensor,
    terms: Sequence[Tensor],
    table: Tensor,
    step: Tensor,
    cond: int,
    uncond: int,
) -> None:
    """The definition."""
    check(rows, terms, table, step, cond, uncond)
    inside = reduce.steps_inside(table, step)
    batch = rows.shape[0]
    if batch == 0:
        return
    result = reduce.source_rows(table, step, inside, batch)
    dtype = compute_dtype(terms)
    c, u = (terms[j].to(dtype).reshape(batch, terms[j].numel() // batch) for j in (cond, uncond))
    f = factor(c, u, result[:, row.GUIDANCE], result[:, row.PHI])[:, None]
    for j in (cond, uncond):
        weights = result[:, row.p(j) : row.p(j) + 4]
        result[:, row.p(j) : row.p(j) + 4] = torch.where(weights == 0, weights, weights * f)
    rows.copy_(result)


def _triton_rescale_(*args: Any) -> None:
    from ..triton.rescale import rescale_ as run

    run(*args)


add_backend("rescale_", reference=_reference_rescale_, triton=_triton_rescale_)
_autograd = functools.partial(reduce.no_gradient, torch.ops.fastsample.rescale_.default)
lib.impl("rescale_", _autograd, "Autograd", with_keyset=True)
torch.library.register_fake("fastsample::rescale_", lambda *args, **kwargs: None, lib=lib)
