"""``fastsample::brownian``: increments of a virtual Brownian tree.  The tree and its numbers: docs/brownian.md."""

from __future__ import annotations

import re
from typing import Any

import torch
from torch import Tensor

from .. import noise as noise_module
from .library import add_backend, lib
from .overlap import overlaps_itself

_FLOATS = (torch.float32, torch.bfloat16, torch.float16, torch.float64)

lib.define(
    "brownian_(Tensor(a!) out, Tensor key, Tensor nodes, Tensor weights, Tensor step) -> ()",
    tags=(torch.Tag.pt2_compliant_tag,),
)
lib.define(
    "brownian(Tensor like, Tensor key, Tensor nodes, Tensor weights, Tensor step, ScalarType? dtype=None) -> Tensor",
    tags=(torch.Tag.pt2_compliant_tag,),
)


def brownian_(out: Tensor, key: Tensor, nodes: Tensor, weights: Tensor, step: Tensor) -> None:
    """Write query ``step`` of a table into ``out``: the sum over nodes ``n`` of ``weights[n] * normal(key, nodes[n])``.

    ``out``: ``(B, ...)``, float32, bfloat16, float16 or float64, any strides.  ``key``: ``(B, 2)`` uint64, one per
    sample.  ``nodes``: ``(N, M)`` int64, the numbers (> 0) of the nodes of each query, a 0 ends it; ``weights``:
    ``(N, M)`` float64 (both by ``fastsample.brownian.table``).  ``step``: int64 ``()`` or ``(B,)``, the query of the
    call or of each sample.  Sums in float32 (float64 for a float64 ``out``) in the order of the table, rounded once.

    Raises ``ValueError`` or ``TypeError`` before any memory is written; on a GPU a step out of range gives NaN.
    """
    key, nodes, weights, step = (x.contiguous() for x in (key, nodes, weights, step))
    try:
        torch.ops.fastsample.brownian_(out, key, nodes, weights, step)
    except (RuntimeError, NotImplementedError) as error:  # what the kernel refused: say it better
        check(out, key, nodes, weights, step)
        refused = re.search(r"((?:step|the strides of these tensors)\b.*)", str(error))
        if refused:
            raise ValueError(refused[1]) from error
        raise


def brownian(
    like: Tensor, key: Tensor, nodes: Tensor, weights: Tensor, step: Tensor, dtype: torch.dtype | None = None
) -> Tensor:
    """Functional form of ``brownian_``: a new tensor laid out like ``like``, of its dtype unless ``dtype`` is given.

    Only shape, strides, dtype and device of ``like`` matter.  No gradient flows.
    """
    key, nodes, weights, step = (x.contiguous() for x in (key, nodes, weights, step))
    if dtype is not None and dtype not in _FLOATS:
        raise TypeError(f"dtype: got {dtype}, allowed are float32, bfloat16, float16 and float64")
    check(like, key, nodes, weights, step, "like")
    result: Tensor = torch.ops.fastsample.brownian(like.detach(), key, nodes, weights.detach(), step, dtype)
    return result


def check(out: Tensor, key: Tensor, nodes: Tensor, weights: Tensor, step: Tensor, name: str = "out") -> None:
    """Raise ``ValueError``/``TypeError`` that names the argument unless the call is well formed (reads no values)."""
    if out.dim() < 1:
        raise ValueError(f"{name}: got a tensor without dimensions, allowed is (B, ...)")
    if out.dtype not in _FLOATS:
        raise TypeError(f"{name}: got {out.dtype}, allowed are float32, bfloat16, float16 and float64")
    if name == "out" and overlaps_itself(out):
        raise ValueError("out: got a tensor whose elements share memory, such as an expanded one")
    batch = out.shape[0]
    if key.dtype != torch.uint64 or tuple(key.shape) != (batch, 2):
        raise ValueError(f"key: got shape {tuple(key.shape)} {key.dtype}, allowed is ({batch}, 2) uint64")
    if nodes.dtype != torch.int64 or nodes.dim() != 2:
        raise ValueError(f"nodes: got shape {tuple(nodes.shape)} {nodes.dtype}, allowed is (N, M) int64")
    if weights.dtype != torch.float64 or weights.shape != nodes.shape:
        raise ValueError(
            f"weights: got shape {tuple(weights.shape)} {weights.dtype}, allowed is {tuple(nodes.shape)} float64"
        )
    if step.dtype != torch.int64 or step.dim() > 1 or (step.dim() == 1 and step.shape[0] != batch):
        raise ValueError(f"step: got shape {tuple(step.shape)} {step.dtype}, allowed is () or ({batch},) int64")
    for other, x in (("key", key), ("nodes", nodes), ("weights", weights), ("step", step)):
        if x.device != out.device:
            raise ValueError(f"{other}: got device {x.device}, allowed is that of {name}, {out.device}")


def _reference_brownian_(out: Tensor, key: Tensor, nodes: Tensor, weights: Tensor, step: Tensor) -> None:
    """The definition: one node after another, with the fma of the compiled backends imitated in float64."""
    check(out, key, nodes, weights, step)
    inside = (step >= 0) & (step < nodes.shape[0])
    if step.device.type == "cpu" and not bool(inside.all()):
        raise ValueError(f"step: got {step.tolist()}, allowed are 0..{nodes.shape[0] - 1}")
    if out.numel() == 0:
        return
    wide = out.dtype == torch.float64
    dtype = torch.float64 if wide else torch.float32
    shape = (-1,) + (1,) * (out.dim() - 1)
    if nodes.shape[0] == 0:
        out.fill_(torch.nan)
        return
    row = torch.where(inside, step, 0).reshape(-1)
    numbers, factors = nodes[row], weights[row].to(dtype)
    live = (numbers != 0).cumprod(1).bool()  # a 0 ends the query
    total = torch.zeros(out.shape, dtype=dtype, device=out.device)
    for m in range(nodes.shape[1]):
        z = noise_module.reference_normals(key, out.shape, 0, wide, numbers[:, m])
        w = factors[:, m].reshape(shape)
        added = torch.addcmul(total, w, z) if wide else noise_module._fma(w, z, total)
        total = torch.where(live[:, m].reshape(shape), added, total)
    out.copy_(torch.where(inside.reshape(shape), total, torch.nan))


def _triton_brownian_(*args: Any) -> None:
    from ..triton.brownian import brownian_ as run

    run(*args)


def _fake_brownian(
    like: Tensor, key: Tensor, nodes: Tensor, weights: Tensor, step: Tensor, dtype: torch.dtype | None = None
) -> Tensor:
    return torch.empty_like(like, dtype=dtype)


def _brownian(
    like: Tensor, key: Tensor, nodes: Tensor, weights: Tensor, step: Tensor, dtype: torch.dtype | None = None
) -> Tensor:
    out = torch.empty_like(like, dtype=dtype)
    torch.ops.fastsample.brownian_(out, key, nodes, weights, step)
    return out


def _no_gradient(keyset: Any, out: Tensor, *args: Tensor) -> None:
    if torch.is_grad_enabled() and (out.requires_grad or args[2].requires_grad):
        raise RuntimeError("fastsample::brownian_ passes no gradient on: detach out and weights")
    with torch._C._AutoDispatchBelowAutograd():
        torch.ops.fastsample.brownian_.default.redispatch(keyset & torch._C._after_autograd_keyset, out, *args)
    torch.autograd.graph.increment_version([out])  # a backward that saved it must notice


add_backend("brownian_", reference=_reference_brownian_, triton=_triton_brownian_)
lib.impl("brownian_", _no_gradient, "Autograd", with_keyset=True)
lib.impl("brownian", _brownian, "CompositeExplicitAutograd")
torch.library.register_fake("fastsample::brownian_", lambda *args, **kwargs: None, lib=lib)
torch.library.register_fake("fastsample::brownian", _fake_brownian, lib=lib)
