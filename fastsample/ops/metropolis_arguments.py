"""What a call of ``metropolis_`` must look like.  Reads shapes, dtypes and addresses, never values."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from .. import decision, row
from .arguments import FLOATS, same_memory, span
from .overlap import overlaps_itself, share_memory


def check(
    state: Tensor,
    cache: Tensor,
    outs: Sequence[Tensor],
    chain: Tensor,
    proposal: Tensor,
    fresh: Tensor,
    terms: Sequence[Tensor],
    table: Tensor,
    step: Tensor,
    key: Tensor | None,
    noise: Sequence[Tensor],
    uniform: Tensor | None,
) -> None:
    """Raise ``ValueError``/``TypeError`` that names the argument unless the call is well formed."""
    for name, group, most in (
        ("outs", outs, row.MAX_OUTPUTS),
        ("terms", terms, decision.MAX_TERMS),
        ("noise", noise, row.MAX_NOISES),
    ):
        if len(group) > most:
            raise ValueError(f"{name}: got {len(group)} tensors, allowed are 0..{most}")
    if state.dim() < 1:
        raise ValueError("state: got a tensor without dimensions, allowed is (B, ...)")
    written = {"state": state, "cache": cache, **{f"outs[{i}]": x for i, x in enumerate(outs)}}
    read = {"proposal": proposal, "fresh": fresh, **{f"terms[{i}]": x for i, x in enumerate(terms)}}
    read |= {f"noise[{i}]": x for i, x in enumerate(noise)}
    for name, x in (written | read).items():
        if x.dtype not in FLOATS:
            raise TypeError(f"{name}: got {x.dtype}, allowed are float32, bfloat16, float16 and float64")
        if x.shape != state.shape:
            raise ValueError(f"{name}: got shape {tuple(x.shape)}, allowed is that of state, {tuple(state.shape)}")
    batch = state.shape[0]
    _check_plain("chain", chain, (batch, len(decision.CHAIN)), torch.float64)
    if table.dim() != 2:
        raise ValueError(f"table: got shape {tuple(table.shape)}, allowed is (N, {decision.COLUMNS})")
    _check_plain("table", table, (table.shape[0], decision.COLUMNS), torch.float64)
    if step.dtype != torch.int64 or step.dim() > 1 or (step.dim() == 1 and step.shape[0] != batch):
        raise ValueError(f"step: got shape {tuple(step.shape)} {step.dtype}, allowed is () or ({batch},) int64")
    plain = {"table": table, "step": step}
    if key is not None:
        if noise:
            raise ValueError("key, noise: got both; give keys or noise tensors")
        _check_plain("key", key, (batch, 2), torch.uint64)
        plain["key"] = key
    if uniform is not None:
        _check_plain("uniform", uniform, (batch,), torch.float64)
        plain["uniform"] = uniform
    if key is None and uniform is None:
        raise ValueError("key, uniform: got neither; the choice needs one")
    for name, x in ({"chain": chain} | read | written | plain).items():
        if x.device != state.device:
            raise ValueError(f"{name}: got device {x.device}, allowed is that of state, {state.device}")
    _check_memory(written | {"chain": chain}, read | plain)


def _check_plain(name: str, x: Tensor, shape: tuple[int, ...], dtype: torch.dtype) -> None:
    if x.dtype != dtype or tuple(x.shape) != shape or not x.is_contiguous():
        raise ValueError(
            f"{name}: got shape {tuple(x.shape)} {x.dtype}{'' if x.is_contiguous() else ' with gaps'}, "
            f"allowed is contiguous {shape} {str(dtype).removeprefix('torch.')}"
        )


def _check_memory(written: dict[str, Tensor], read: dict[str, Tensor]) -> None:
    names = list(written)
    for i, name in enumerate(names):
        out = written[name]
        if overlaps_itself(out):
            raise ValueError(f"{name}: got a tensor whose elements share memory, such as an expanded one")
        lo, hi = span(out)
        for other, x in [(n, written[n]) for n in names[:i]] + list(read.items()):
            other_lo, other_hi = span(x)
            if hi <= other_lo or other_hi <= lo:
                continue
            exact = other == "proposal" and name.startswith("outs") and same_memory(out, x)
            if not exact and share_memory(out, x, other_lo - lo):
                allowed = "it may be exactly proposal, or apart" if name.startswith("outs") else "give other memory"
                raise ValueError(f"{name}: overlaps the memory of {other}; {allowed}")
