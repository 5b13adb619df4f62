"""``fastsample::update``: one row of a plan applied to the whole state in one pass.  Arithmetic: docs/row.md."""

from __future__ import annotations

import functools
import re
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from .. import noise as noise_module
from .. import row
from .arguments import check
from .clock import finish
from .library import add_backend, lib

lib.define(
    "update_(Tensor(a!)[] outs, Tensor[] terms, Tensor table, Tensor step, Tensor? key, Tensor[] noise) -> ()",
    tags=(torch.Tag.pt2_compliant_tag,),
)
lib.define(  # an op of its own: two more optional tensors would make every small update 0.2 us slower
    "advance_(Tensor(a!)[] outs, Tensor[] terms, Tensor table, Tensor step, Tensor? key, Tensor[] noise, "
    "Tensor(b!)? time, Tensor(c!)? clock) -> ()",
    tags=(torch.Tag.pt2_compliant_tag,),
)
lib.define(
    "update(Tensor[] terms, Tensor table, Tensor step, Tensor? key, Tensor[] noise, int outputs, "
    "ScalarType[] dtypes) -> Tensor[]",
    tags=(torch.Tag.pt2_compliant_tag,),
)


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
    """Apply row ``step`` of ``table`` to ``terms`` and write ``outs``, which may be the memory of some terms.

    ``outs``: 1 to 3 tensors, ``terms``: 0 to 8 tensors, all of one shape ``(B, ...)``, one device, and each of its own
    floating dtype (float32, bfloat16, float16, float64).  ``table``: ``(N, 48)`` float64.  ``step``: int64 ``()`` or
    ``(B,)``.  ``key``: ``(B, 2)`` uint64, or ``noise``: up to 2 tensors of the same shape.

    ``time``: contiguous ``(B,)`` float32 or float64, filled with what the network of each sample is told after its row.
    ``clock``: contiguous int64 ``(2,)``; ``clock[0]`` has grown by one when the update is done, ``clock[1]`` is the
    kernel's own, 0 before and after.  ``step`` may be the view ``clock[0]``.  Both are served for empty states too
    (docs/row.md, "Clock and time"); with either of them the op is ``fastsample::advance_``.  No gradient flows: use
    ``update``.  Raises ``ValueError`` or ``TypeError`` before any memory is written.
    """
    if not outs:
        raise ValueError("outs: got none, allowed are 1 to 3 tensors")
    step, key = _dense(step, key)
    try:
        if time is None and clock is None:
            torch.ops.fastsample.update_(list(outs), list(terms), table, step, key, list(noise))
        else:
            torch.ops.fastsample.advance_(list(outs), list(terms), table, step, key, list(noise), time, clock)
    except (RuntimeError, NotImplementedError) as error:  # what the kernel refused: say it better, at no cost otherwise
        check(outs, terms, table, step, key, noise, time, clock)
        refused = re.search(r"((?:step|the strides of these tensors)\b.*)", str(error))
        if refused:
            raise ValueError(refused[1]) from error
        raise


def _dense(step: Tensor, key: Tensor | None) -> tuple[Tensor, Tensor | None]:
    return step.contiguous(), key if key is None else key.contiguous()


def update(
    terms: Sequence[Tensor],
    table: Tensor,
    step: Tensor,
    key: Tensor | None = None,
    noise: Sequence[Tensor] = (),
    outputs: int = 1,
    dtypes: Sequence[torch.dtype] = (),
) -> list[Tensor]:
    """Functional form of ``update_``: new tensors laid out like ``terms[0]``; differentiable in terms, table and noise.

    ``outputs``: 1 to 3.  ``dtypes``: one per output, or none for the dtype of ``terms[0]``.
    """
    if not terms:
        raise ValueError("terms: got none; the functional form needs one for the shape (use update_)")
    if not 1 <= outputs <= row.MAX_OUTPUTS:
        raise ValueError(f"outputs: got {outputs}, allowed are 1..{row.MAX_OUTPUTS}")
    if dtypes and len(dtypes) != outputs:
        raise ValueError(f"dtypes: got {len(dtypes)} for {outputs} outputs; give one per output, or none")
    check([], terms, table, step, key, noise)
    step, key = _dense(step, key)
    return list(torch.ops.fastsample.update(list(terms), table, step, key, list(noise), outputs, list(dtypes)))


_SCALAR_TYPES = {5: torch.float16, 6: torch.float32, 7: torch.float64, 15: torch.bfloat16}  # c10::ScalarType


def compute_dtype(tensors: Sequence[Tensor]) -> torch.dtype:
    """float64 if any tensor is, else float32."""
    return torch.float64 if any(x.dtype == torch.float64 for x in tensors) else torch.float32


class _Row:
    """The row(s) of a call, broadcastable: ``self[c]`` is column ``c`` as ``(1 or B, 1, ...)`` in the compute dtype."""

    def __init__(self, table: Tensor, step: Tensor, dims: int, dtype: torch.dtype) -> None:
        self.columns = table[step.reshape(-1)].to(dtype)
        self.draws = table[step.reshape(-1), row.DRAW : row.DRAW + row.MAX_NOISES].to(torch.int64)
        self.shape = (-1,) + (1,) * (dims - 1)

    def __getitem__(self, column: int) -> Tensor:
        return self.columns[:, column].reshape(self.shape)


def _product(weight: Tensor, x: Tensor) -> Tensor:
    return torch.where(weight == 0, torch.zeros((), dtype=x.dtype, device=x.device), weight * x)


def _noises(
    coefficients: _Row, like: Tensor, key: Tensor | None, noise: Sequence[Tensor], dtype: torch.dtype
) -> list[Tensor]:
    if key is None:
        return [x.to(dtype) for x in noise]
    wide = dtype == torch.float64
    return [
        noise_module.reference_normals(key, like.shape, coefficients.draws[:, r], wide) for r in range(row.MAX_NOISES)
    ]


def _prediction(coefficients: _Row, xs: Sequence[Tensor], zero: Tensor) -> tuple[Tensor, Tensor]:
    """What D is made of, and D: the same within its limits."""
    y = zero
    for j, x in enumerate(xs):
        y = y + _product(coefficients[row.p(j)], x)
    lo, hi = coefficients[row.LO], coefficients[row.HI]
    return y, torch.where(y < lo, lo, torch.where(y > hi, hi, y))


def reference(
    terms: Sequence[Tensor],
    coefficients: _Row,
    noises: Sequence[Tensor],
    outputs: int,
    like: Tensor,
    dtype: torch.dtype,
) -> list[Tensor]:
    """The definition: D and the outputs in the compute dtype, in the order of docs/row.md."""
    xs = [x.to(dtype) for x in terms]
    zero = torch.zeros(like.shape, dtype=dtype, device=like.device)
    _, d = _prediction(coefficients, xs, zero)
    results = []
    for k in range(outputs):
        out = zero
        for j, x in enumerate(xs):
            out = out + _product(coefficients[row.w(k, j)], x)
        out = out + _product(coefficients[row.w_d(k)], d)
        for r, xi in enumerate(noises):
            out = out + _product(coefficients[row.g(k, r)], xi)
        results.append(out)
    return results


def _reference_update_(
    outs: Sequence[Tensor],
    terms: Sequence[Tensor],
    table: Tensor,
    step: Tensor,
    key: Tensor | None = None,
    noise: Sequence[Tensor] = (),
    time: Tensor | None = None,
    clock: Tensor | None = None,
) -> None:
    if not outs:
        raise ValueError("outs: got none, allowed are 1 to 3 tensors")
    check(outs, terms, table, step, key, noise, time, clock)
    inside = (step >= 0) & (step < table.shape[0])
    if step.device.type == "cpu" and not bool(inside.all()):
        raise ValueError(f"step: got {step.tolist()}, allowed are 0..{table.shape[0] - 1}")
    dtype = compute_dtype([*outs, *terms])
    coefficients = _Row(table, torch.where(inside, step, 0), outs[0].dim(), dtype)
    noises = _noises(coefficients, outs[0], key, noise, dtype)
    results = reference(terms, coefficients, noises, len(outs), outs[0], dtype)
    inside = inside.reshape((-1,) + (1,) * (outs[0].dim() - 1))
    for out, result in zip(outs, results, strict=True):
        out.copy_(torch.where(inside, result, torch.nan))
    finish(table, step, time, clock)


def _triton_update_(*args: Any) -> None:
    from ..triton.update import update_ as run

    run(*args)


def _update(
    terms: Sequence[Tensor],
    table: Tensor,
    step: Tensor,
    key: Tensor | None = None,
    noise: Sequence[Tensor] = (),
    outputs: int = 1,
    dtypes: Sequence[torch.dtype] = (),
) -> list[Tensor]:
    outs = _fake_update(terms, table, step, key, noise, outputs, dtypes)
    torch.ops.fastsample.update_(outs, list(terms), table, step, key, list(noise))
    return outs


def _fake_update(
    terms: Sequence[Tensor],
    table: Tensor,
    step: Tensor,
    key: Tensor | None = None,
    noise: Sequence[Tensor] = (),
    outputs: int = 1,
    dtypes: Sequence[torch.dtype] = (),
) -> list[Tensor]:
    return [torch.empty_like(terms[0], dtype=_dtype(dtypes[k]) if dtypes else None) for k in range(outputs)]


def _dtype(given: torch.dtype | int) -> torch.dtype:
    """A dtype: torch 2.11 and 2.12 hand lists of them to Python as numbers."""
    return _SCALAR_TYPES[given] if isinstance(given, int) else given


def _setup_context(ctx: Any, inputs: tuple[Any, ...], output: list[Tensor]) -> None:
    terms, table, step, key, noise, outputs, dtypes = inputs
    ctx.save_for_backward(table, step, key, *terms, *noise)
    ctx.counts = (len(terms), outputs, len(dtypes))
    ctx.dtype = compute_dtype([*terms, *output])


def _backward(ctx: Any, grads: Sequence[Tensor | None]) -> tuple[Any, ...]:
    """With g_k the gradient of out_k: dD = sum_k w_k g_k, dy = dD inside the limits, dx_j = sum_k W_kj g_k + P_j dy."""
    table, step, key, *tensors = ctx.saved_tensors
    n_terms, outputs, n_dtypes = ctx.counts
    terms, noise = tensors[:n_terms], tensors[n_terms:]
    dtype = ctx.dtype
    inside = (step >= 0) & (step < table.shape[0])  # a row that does not exist gave NaN, and passes no gradient on
    step = torch.where(inside, step, 0)
    c = _Row(table, step, terms[0].dim(), dtype)
    zero = torch.zeros(terms[0].shape, dtype=dtype, device=terms[0].device)
    inside = inside.reshape((-1,) + (1,) * (terms[0].dim() - 1))
    g = [zero if grad is None else torch.where(inside, grad.to(dtype), 0) for grad in grads]

    y, d = _prediction(c, [x.to(dtype) for x in terms], zero)
    lo, hi = c[row.LO], c[row.HI]
    d_grad = zero
    for k in range(outputs):
        d_grad = d_grad + c[row.w_d(k)] * g[k]
    y_grad = torch.where((y < lo) | (y > hi), 0, d_grad)

    term_grads = []
    for j, x in enumerate(terms):
        x_grad = c[row.p(j)] * y_grad
        for k in range(outputs):
            x_grad = x_grad + c[row.w(k, j)] * g[k]
        term_grads.append(x_grad.to(x.dtype))
    noise_grads = [
        sum((c[row.g(k, r)] * g[k] for k in range(outputs)), zero).to(noise[r].dtype) for r in range(len(noise))
    ]

    if not ctx.needs_input_grad[1]:  # the table; as a rule it needs none, and no noise is made again
        return term_grads, None, None, None, noise_grads, None, None if n_dtypes else []
    noises = _noises(c, terms[0], key, noise, dtype)

    def total(product: Tensor) -> Tensor:
        return product.double().reshape(product.shape[0], -1).sum(1)  # (B,)

    columns = [torch.zeros(terms[0].shape[0], dtype=torch.float64, device=table.device)] * row.COLUMNS
    for j, x in enumerate(terms):
        columns[row.p(j)] = total(y_grad * x)
    columns[row.LO] = total(torch.where(y < lo, d_grad, 0))
    columns[row.HI] = total(torch.where(y > hi, d_grad, 0))
    for k in range(outputs):
        for j, x in enumerate(terms):
            columns[row.w(k, j)] = total(g[k] * x)
        columns[row.w_d(k)] = total(g[k] * d)
        for r, xi in enumerate(noises):
            columns[row.g(k, r)] = total(g[k] * xi)
    per_sample = torch.stack(columns, dim=1)
    index = step.reshape(-1).expand(terms[0].shape[0])
    table_grad = torch.zeros_like(table).index_add(0, index, per_sample)
    return term_grads, table_grad, None, None, noise_grads, None, None if n_dtypes else []


def _refuse_gradient(name: str, keyset: Any, *args: Any) -> None:
    if torch.is_grad_enabled() and any(
        x.requires_grad
        for arg in args
        for x in (arg if isinstance(arg, (list, tuple)) else (arg,))
        if isinstance(x, Tensor)
    ):
        raise RuntimeError(f"fastsample::{name} writes in place and passes no gradient on: use fastsample.ops.update")
    with torch._C._AutoDispatchBelowAutograd():
        op = getattr(torch.ops.fastsample, name).default
        op.redispatch(keyset & torch._C._after_autograd_keyset, *args)
    torch.autograd.graph.increment_version(args[0])  # a backward that saved an output must notice
    if len(args) > 6:
        torch.autograd.graph.increment_version([x for x in args[6:] if x is not None])


for _name in ("update_", "advance_"):
    add_backend(_name, reference=_reference_update_, triton=_triton_update_)
    lib.impl(_name, functools.partial(_refuse_gradient, _name), "Autograd", with_keyset=True)
    torch.library.register_fake(f"fastsample::{_name}", lambda *args, **kwargs: None, lib=lib)
lib.impl("update", _update, "CompositeExplicitAutograd")
torch.library.register_fake("fastsample::update", _fake_update, lib=lib)
torch.library.register_autograd("fastsample::update", _backward, setup_context=_setup_context, lib=lib)
