"""``fastsample::metropolis_``: accept, select and propose for a batch of chains in one pass.  See docs/metropolis.md.

Metropolis et al. 1953 and Hastings 1970; the move is that of Langevin chains (MALA: Besag 1994; Roberts and Tweedie
1996).  As reverse transition kernels: Huang et al. 2024, arXiv 2405.16387, algorithm 2.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from .. import decision
from .. import noise as noise_module
from .library import add_backend, lib
from .metropolis_arguments import check
from .update import _noises, _product, _Row, compute_dtype
from .update import reference as apply_row

lib.define(
    "metropolis_(Tensor(a!) state, Tensor(b!) cache, Tensor(c!)[] outs, Tensor(d!) chain, Tensor proposal, "
    "Tensor fresh, Tensor[] terms, Tensor table, Tensor step, Tensor? key, Tensor[] noise, Tensor? uniform) -> ()",
    tags=(torch.Tag.pt2_compliant_tag,),
)

LANES, ROUNDS, STRANDS = 512, 8, 128  # csrc/core/moments.h


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
    """Accept or reject the proposal of every chain, then make the next one, by row ``step`` of ``table``.

    ``state``, ``cache``: ``(B, ...)``, the chain z and the network's output there; become ``proposal`` and ``fresh``
    where the chain accepts.  ``proposal``, ``fresh``: the same at z'.  ``terms``: 0 to 4 more that the row uses.
    ``outs``: 0 to 3 tensors that the move writes; one may be exactly ``proposal``, else all that is written lies apart.
    These tensors have one shape and device and each its own floating dtype (float32, bfloat16, float16, float64).
    ``chain``: contiguous ``(B, 5)`` float64, columns ``decision.CHAIN``; energies are in units of kT, as the log-ratio.
    ``table``: contiguous ``(N, 96)`` float64 of ``decision.make_decision``.  ``step``: int64 ``()`` or ``(B,)``.
    ``key``: ``(B, 2)`` uint64 for the noise of the move and the uniform, or ``noise``: up to 2 tensors like ``state``,
    and ``uniform``: ``(B,)`` float64 in place of keyed ones; a key or a uniform must be given.

    A NaN in the log-ratio rejects.  On an accelerator a step out of range rejects, with NaN as log-ratio and outputs.
    No gradient flows.  Raises ``ValueError`` or ``TypeError`` before any memory is written.
    """
    step = step.contiguous()
    key = key if key is None else key.contiguous()
    uniform = uniform if uniform is None else uniform.contiguous()
    outs, terms, noise = list(outs), list(terms), list(noise)
    try:
        torch.ops.fastsample.metropolis_(
            state, cache, outs, chain, proposal, fresh, terms, table, step, key, noise, uniform
        )
    except (RuntimeError, NotImplementedError) as error:  # what the kernel refused: say it better
        check(state, cache, outs, chain, proposal, fresh, terms, table, step, key, noise, uniform)
        refused = re.search(r"((?:step|the strides of these tensors)\b.*)", str(error))
        if refused:
            raise ValueError(refused[1]) from error
        raise


def element_ratios(c: _Row, operands: Sequence[Tensor]) -> Tensor:
    """What each element adds to the log-ratio ``(B, ...)``, of operands in the compute dtype."""
    zero = torch.zeros_like(operands[0])
    q, g, h = zero, zero, zero
    for j, u in enumerate(operands):
        q = q + _product(c[decision.a(j)], u)
        g = g + _product(c[decision.g(j)], u)
        h = h + _product(c[decision.h(j)], u)
    weights = torch.stack([c[decision.a(j)] for j in range(len(operands))])
    p = torch.where((weights != 0).any(0), (operands[1] - operands[0]) * q, zero)
    return c[decision.KAPPA] * (g - h) * (g + h) + p


def ordered_sum(x: Tensor) -> Tensor:
    """Float64 sum of the elements of each sample, ``(B,)`` of ``(B, ...)``, in the order of docs/metropolis.md."""
    batch = x.shape[0]
    flat = x.double().reshape(batch, x[0].numel() if batch else 0)
    if flat.shape[1] <= LANES:  # one block, one round: lanes beyond the next power of two would add 0 to the tree
        full = 1 << max(0, flat.shape[1] - 1).bit_length()
        return _fold(torch.nn.functional.pad(flat, (0, full - flat.shape[1])) + 0.0)
    blocks = -(-flat.shape[1] // (LANES * ROUNDS))
    lanes = torch.nn.functional.pad(flat, (0, blocks * LANES * ROUNDS - flat.shape[1]))
    lanes = lanes.reshape(batch, blocks, ROUNDS, LANES)
    total = torch.zeros(batch, blocks, LANES, dtype=torch.float64, device=x.device)
    for k in range(ROUNDS):
        total = total + lanes[:, :, k]
    sums = _fold(total)
    rows = -(-blocks // STRANDS)
    sums = torch.nn.functional.pad(sums, (0, rows * STRANDS - blocks)).reshape(batch, rows, STRANDS)
    strands = torch.zeros(batch, STRANDS, dtype=torch.float64, device=x.device)
    for k in range(rows):
        strands = strands + sums[:, k]
    return _fold(strands)


def _fold(x: Tensor) -> Tensor:
    while x.shape[-1] > 1:
        half = x.shape[-1] // 2
        x = x[..., :half] + x[..., half:]
    return x[..., 0]


def choose(
    rows: Tensor, inside: Tensor, c: _Row, operands: Sequence[Tensor], chain: Tensor, uniform: Tensor
) -> tuple[Tensor, Tensor]:
    """``log_ratio`` float64 and ``accept`` bool, both ``(B,)``; ``rows`` float64 ``(1 or B, 96)``."""
    energies = chain[:, 0] - chain[:, 1]
    ratio = _product(rows[:, decision.ENERGY], energies) + ordered_sum(element_ratios(c, operands))
    ratio = torch.where(inside, ratio, torch.nan)
    accept = torch.log(uniform) < ratio
    for k, x in enumerate((operands[1] - operands[0], operands[1])):
        radius = rows[:, decision.RADIUS + k]
        accept = accept & ((radius == torch.inf) | (ordered_sum(x * x) <= radius * radius))
    return ratio, accept


def _reference_metropolis_(
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
    """The definition."""
    check(state, cache, outs, chain, proposal, fresh, terms, table, step, key, noise, uniform)
    inside = (step >= 0) & (step < table.shape[0])
    if step.device.type == "cpu" and not bool(inside.all()):
        raise ValueError(f"step: got {step.tolist()}, allowed are 0..{table.shape[0] - 1}")
    batch, dims = state.shape[0], state.dim()
    if batch == 0:
        return
    dtype = compute_dtype([state, cache, proposal, fresh, *terms, *outs])
    if table.shape[0] == 0:  # no step is inside, but something must be indexed
        table = table.new_zeros(1, decision.COLUMNS)
    safe = torch.where(inside, step, 0)
    c, rows = _Row(table, safe, dims, dtype), table[safe.reshape(-1)]
    z, e, z_new, e_new, *others = (x.to(dtype) for x in (state, cache, proposal, fresh, *terms))

    if uniform is None:
        assert key is not None
        uniform = noise_module.choice_uniform(key, rows[:, decision.DRAW].to(torch.int64))
    ratio, accept = choose(rows, inside.reshape(-1), c, [z, z_new, e, e_new, *others], chain, uniform)
    chosen = accept.reshape((-1,) + (1,) * (dims - 1))
    z, e = torch.where(chosen, z_new, z), torch.where(chosen, e_new, e)

    noises = _noises(c, state, key, noise, dtype)
    results = apply_row([z, e, *others], c, noises, len(outs), state, dtype)
    inside = inside.reshape((-1,) + (1,) * (dims - 1))
    state.copy_(torch.where(chosen, z, state))
    cache.copy_(torch.where(chosen, e, cache))
    for out, result in zip(outs, results, strict=True):
        out.copy_(torch.where(inside, result, torch.nan))
    chain[:, 0] = torch.where(accept, chain[:, 1], chain[:, 0])
    chain[:, 2], chain[:, 3] = ratio, accept.double()
    chain[:, 4] += accept


def _triton_metropolis_(*args: Any) -> None:
    from ..triton.metropolis import metropolis_ as run

    run(*args)


def _refuse_gradient(keyset: Any, *args: Any) -> None:
    flat = [x for arg in args for x in (arg if isinstance(arg, (list, tuple)) else (arg,)) if isinstance(x, Tensor)]
    if torch.is_grad_enabled() and any(x.requires_grad for x in flat):
        raise RuntimeError("fastsample::metropolis_ writes in place and passes no gradient on: detach its tensors")
    with torch._C._AutoDispatchBelowAutograd():
        torch.ops.fastsample.metropolis_.default.redispatch(keyset & torch._C._after_autograd_keyset, *args)
    torch.autograd.graph.increment_version([args[0], args[1], *args[2], args[3]])  # a backward must notice


add_backend("metropolis_", reference=_reference_metropolis_, triton=_triton_metropolis_)
lib.impl("metropolis_", _refuse_gradient, "Autograd", with_keyset=True)
torch.library.register_fake("fastsample::metropolis_", lambda *args, **kwargs: None, lib=lib)
