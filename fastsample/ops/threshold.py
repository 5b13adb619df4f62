"""``fastsample::threshold_``: dynamic thresholding as a row per sample.

Saharia et al. 2022 (Imagen), arXiv 2205.11487, section 2.3: the prediction is limited to [-s, s] and divided by s, a
quantile of its magnitudes in the sample.  Here the op finds s and writes the row that ``update_`` then applies.
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
from .update import _prediction, _Row, compute_dtype

lib.define(
    "threshold_(Tensor(a!) rows, Tensor[] terms, Tensor table, Tensor step, float ratio, float low, float high) -> ()",
    tags=(torch.Tag.pt2_compliant_tag,),
)


def threshold_(
    rows: Tensor,
    terms: Sequence[Tensor],
    table: Tensor,
    step: Tensor,
    ratio: float = 0.995,
    low: float = 1.0,
    high: float = math.inf,
) -> None:
    """Write into ``rows[b]`` the row of sample ``b`` with dynamic thresholding of its prediction.

    With ``y = sum_j P_j term_j`` as ``update_`` forms it, ``q`` is the quantile ``ratio`` of ``|y|`` over the elements
    of the sample (between order statistics: linear, as ``torch.quantile``; exact, whatever the size) and
    ``s = min(max(q, low), high)``.  The row is row ``step`` with all ``P`` divided by ``s`` and the limits -1 and 1, so
    that ``update_(outs, terms, rows, torch.arange(B))`` uses ``D = clamp(y / s, -1, 1)``.

    ``rows``: ``(B, 48)`` float64.  ``terms``: 1 to 8 tensors ``(B, ...)``, each float32, bfloat16, float16 or float64,
    any strides; y is float32, or float64 if any term is.  ``table``: ``(N, 48)`` float64.  ``step``: int64 ``()`` or
    ``(B,)``.  ``ratio`` in 0..1, ``low`` > 0 finite, ``high`` > 0, may be ``inf``.

    A NaN in y makes s NaN, and so all of D of that sample; an infinite s makes D zero.  Empty samples have ``s = low``
    (within ``high``).  No gradient flows.  Raises ``ValueError`` or ``TypeError`` before any memory is written; on an
    accelerator a step out of range gives a row of NaN.
    """
    step = step.contiguous()
    try:
        torch.ops.fastsample.threshold_(rows, list(terms), table, step, ratio, low, high)
    except (RuntimeError, NotImplementedError) as error:  # what the kernel refused: say it better
        check(rows, terms, table, step, ratio, low, high)
        reduce.refuse(error)


def check(
    rows: Tensor, terms: Sequence[Tensor], table: Tensor, step: Tensor, ratio: float, low: float, high: float
) -> None:
    """Raise ``ValueError``/``TypeError`` that names the argument unless the call is well formed (reads no values)."""
    reduce.check_rows(rows, terms, table, step)
    if not 0 <= ratio <= 1:
        raise ValueError(f"ratio: got {ratio}, allowed are 0..1")
    if not 0 < low < math.inf:
        raise ValueError(f"low: got {low}, allowed are finite numbers above 0")
    if not high > 0:
        raise ValueError(f"high: got {high}, allowed are numbers above 0, inf too")


def place(ratio: float, n: int) -> tuple[int, float]:
    """``k`` and ``f`` of the quantile ``v_k + f (v_{k+1} - v_k)`` of ``n`` sorted numbers."""
    at = ratio * float(n - 1)
    k = int(at)
    return k, at - k


def quantile(x: Tensor, ratio: float) -> Tensor:
    """Quantile of every row of ``x`` (B, n > 0), float64 ``(B,)``; NaN where a row has one."""
    n = x.shape[1]
    k, fraction = place(ratio, n)
    low = x.kthvalue(k + 1, dim=1).values.double()
    high = x.kthvalue(min(k + 2, n), dim=1).values.double()
    q = low if fraction == 0 else torch.where(low == high, low, low + fraction * (high - low))
    return torch.where(x.isnan().any(1), torch.nan, q)


def limit(q: Tensor, low: float, high: float) -> Tensor:
    """``min(max(q, low), high)``; a NaN stays."""
    s = torch.where(q < low, low, q)
    return torch.where(s > high, high, s)


def _reference_threshold_(
    rows: Tensor, terms: Sequence[Tensor], table: Tensor, step: Tensor, ratio: float, low: float, high: float
) -> None:
    """The definition."""
    check(rows, terms, table, step, ratio, low, high)
    inside = reduce.steps_inside(table, step)
    batch = rows.shape[0]
    if batch == 0:
        return
    result = reduce.source_rows(table, step, inside, batch)
    first = terms[0]
    if first.numel() > 0:
        dtype = compute_dtype(terms)
        c = _Row(result, torch.arange(batch, device=first.device), first.dim(), dtype)
        y, _ = _prediction(c, [x.to(dtype) for x in terms], torch.zeros(first.shape, dtype=dtype, device=first.device))
        q = quantile(y.abs().reshape(batch, -1), ratio)
    else:
        q = rows.new_full((batch,), low)
    s = limit(q, low, high)
    for j in range(row.MAX_TERMS):
        weight = result[:, row.p(j)]
        result[:, row.p(j)] = torch.where(weight == 0, weight, weight / s)
    limits = torch.where(inside, 1.0, torch.nan).to(torch.float64)
    result[:, row.LO], result[:, row.HI] = -limits, limits
    rows.copy_(result)


def _triton_threshold_(*args: Any) -> None:
    from ..triton.threshold import threshold_ as run

    run(*args)


add_backend("threshold_", reference=_reference_threshold_, triton=_triton_threshold_)
_autograd = functools.partial(reduce.no_gradient, torch.ops.fastsample.threshold_.default)
lib.impl("threshold_", _autograd, "Autograd", with_keyset=True)
torch.library.register_fake("fastsample::threshold_", lambda *args, **kwargs: None, lib=lib)
