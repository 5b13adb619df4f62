"""Counter-based noise: a key per sample, draws that are addressed and not consumed.

The words are Philox4x32-10 (Salmon, Moraes, Dror, Shaw, SC 2011), the keys those of torch's stateless generator.  A
key is ``(seed, offset)``, two uint64; ``keys`` are ``(B, 2)`` uint64, one per sample, on the device of the state.  Draw
``n`` of a sample with ``D`` elements uses the counters ``offset + n * ceil(D / 4) + element // 4``; ``element`` is the
row-major index inside the sample: nothing depends on batch size, layout, device or backend.  See docs/noise.md.

The functions here are the readable definition, in plain PyTorch on any device.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, TypeVar

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

_Words = TypeVar("_Words", Tensor, npt.NDArray[np.int64], int)
_FEW = 8  # keys
_MASK = 0xFFFFFFFF
_RADIUS = (
    float.fromhex("-0x1.1f242ap-2"),
    float.fromhex("0x1.3b0e72p-2"),
    float.fromhex("-0x1.1ea94ep-2"),
    float.fromhex("0x1.503882p-2"),
    float.fromhex("-0x1.99d3a8p-2"),
    float.fromhex("0x1.00145p-1"),
    float.fromhex("-0x1.5554fcp-1"),
    float.fromhex("0x1.ffffd6p-1"),
)
_COS = tuple(map(float.fromhex, ("0x1.d47b48p+5", "-0x1.55b144p+6", "0x1.03c1aep+6", "-0x1.3bd3ccp+4")))
_SIN = tuple(map(float.fromhex, ("-0x1.33504cp+6", "0x1.4681b2p+6", "-0x1.4abc26p+5", "0x1.921fb6p+2")))


def keys(
    seed: int | Sequence[int],
    sample_ids: int | Sequence[int] | Tensor,
    device: torch.device | str | None = None,
) -> Tensor:
    """Keys ``(B, 2)`` uint64 of the samples with the given global indices.

    ``seed``: one whole number in ``[0, 2^64)``, folded with each sample index, or one per sample, which are then used
    with index 0 of their own (sample ids are not folded in).  ``sample_ids``: how many samples (``0..B-1``), or their
    global indices ``(B,)``.  Raises ``ValueError`` for a seed or an index out of range.
    """
    if isinstance(seed, int) and isinstance(sample_ids, int) and sample_ids >= 0 and not torch.compiler.is_compiling():
        from .ops import bound  # which needs this module

        root = _check_seed(seed)
        out = torch.empty((sample_ids, 2), dtype=torch.uint64)
        if type(out) is Tensor and bound.write_keys(root, out):
            return out if device is None else out.to(device)
        if sample_ids <= _FEW:
            made = [_folded(root, sample) for sample in range(sample_ids)]
            return torch.tensor(made, dtype=torch.uint64, device=device).reshape(-1, 2)
    ids = _sample_ids(sample_ids)
    if isinstance(seed, (int, np.integer)):
        root = _check_seed(seed if isinstance(seed, int) else int(seed))
        roots = torch.tensor([[_signed(root), 0]], dtype=torch.int64, device=ids.device)
        folded = fold_in(roots.view(torch.uint64).expand(len(ids), 2), ids)
    else:
        seeds = [_check_seed(int(s)) if isinstance(s, np.integer) else _check_seed(s) for s in seed]
        if len(seeds) != len(ids):
            raise ValueError(f"seed: got {len(seeds)} seeds for {len(ids)} samples; give one, or one per sample")
        roots = torch.tensor([[_signed(s), 0] for s in seeds], dtype=torch.int64, device=ids.device).reshape(-1, 2)
        folded = fold_in(roots.view(torch.uint64), torch.zeros_like(ids))
    return folded.to(device) if device is not None else folded


def keys_from_generator(
    generator: torch.Generator, sample_ids: int | Sequence[int] | Tensor, device: torch.device | str | None = None
) -> Tensor:
    """Keys ``(B, 2)`` uint64 of a run whose seed is one draw of ``generator``, on its device, without a host read."""
    ids = _sample_ids(sample_ids).to(generator.device)
    words = torch.randint(-(2**63), 2**63 - 1, (1, 1), generator=generator, dtype=torch.int64, device=generator.device)
    roots = torch.cat([words, torch.zeros_like(words)], dim=1).view(torch.uint64).expand(len(ids), 2)
    folded = fold_in(roots, ids)
    return folded.to(device) if device is not None else folded


def split(key: Tensor, count: int) -> Tensor:
    """``count`` independent keys ``(..., count, 2)`` of each key ``(..., 2)`` uint64."""
    _check_key(key)
    if count < 0:
        raise ValueError(f"count: got {count}, allowed is 0 or more")
    base = key.contiguous().view(torch.int64)
    index = torch.arange(count, device=key.device)
    return _derive(base[..., None, 0], base[..., None, 1] + index)


def fold_in(key: Tensor, data: int | Tensor) -> Tensor:
    """The key ``(..., 2)`` uint64 that belongs to ``data``: whole numbers >= 0, broadcast over the leading dimensions.

    Equal to ``split(key, data + 1)[..., data, :]``.
    """
    _check_key(key)
    if isinstance(data, int) and data < 0:
        raise ValueError(f"data: got {data}, allowed is 0 or more")
    base = key.contiguous().view(torch.int64)
    return _derive(base[..., 0], base[..., 1] + data)


def normal_like(x: Tensor, key: Tensor, draw: int = 0) -> Tensor:
    """Standard normals shaped ``(B, ...)`` like ``x``, from keys ``(B, 2)``: draw ``draw`` of each sample.

    Computed in float32 (float64 for float64 ``x``) by the active backend of ``fastsample::update``, rounded once to the
    dtype of ``x``.  Equal bits on every compiled backend.
    """
    from . import row
    from .ops import update_

    table = torch.from_numpy(row.make_row(outputs=[{"xi0": 1.0}], draws=[draw])[None]).to(x.device)
    out = torch.empty_like(x)
    update_([out], [], table, torch.zeros((), dtype=torch.int64, device=x.device), key)
    return out


def uniform(shape: Sequence[int], key: Tensor, draw: int = 0) -> Tensor:
    """Float32 uniforms in [0, 1) of shape ``(B, ...)`` from keys ``(B, 2)``: 24 bits of a word each."""
    _check_key(key)
    numel = _sample_numel(shape, key)
    words = _sample_words(key, numel, 4, draw)
    return ((words & 0xFFFFFF).to(torch.float32) * 2.0**-24).flatten(1)[:, :numel].reshape(tuple(shape))


def choice_uniform(key: Tensor, draw: Tensor | int = 0) -> Tensor:
    """The uniform of a chain's choice, float64 ``(B,)`` in (0, 1), from keys ``(B, 2)``: 64 bits, one block each.

    ``draw``: one number or one per sample.  Its blocks belong to no normal and to no node of a Brownian tree.  This is
    what ``metropolis_`` compares with; the compiled backends make the same bits.
    """
    _check_key(key)
    base = key.contiguous().view(torch.int64)
    counter = base[:, 1] + torch.as_tensor(draw, device=key.device).to(torch.int64)
    zero = torch.zeros_like(counter)
    r = _rounds(base[:, 0], counter & _MASK, (counter >> 32) & _MASK, zero + (1 << 30), zero)
    return r[0].to(torch.float64) * 2.0**-32 + (r[1].to(torch.float64) * 2.0**-64 + 2.0**-65)


def fine_uniform(key: Tensor, first: int, count: int) -> Tensor:
    """Float64 uniforms ``(B, count)`` in [0, 1) from keys ``(B, 2)``: numbers ``first ..`` of a stream, 53 bits each.

    For streams of their own, whose keys were folded: choices that are made on the host before a run.
    """
    _check_key(key)
    base = key.contiguous().view(torch.int64)
    r = words(base[:, :1], base[:, 1:] + torch.arange(first, first + count, device=key.device))
    return ((r[..., 0] << 21) | (r[..., 1] >> 11)).to(torch.float64) * 2.0**-53


def reference_normals(
    key: Tensor, shape: Sequence[int], draw: Tensor | int, wide: bool, node: Tensor | None = None
) -> Tensor:
    """The definition of the normals, in PyTorch: float32 of shape ``(B, ...)``, or float64 if ``wide``.

    ``draw``: one number or one per sample.  ``node``: int64 ``(1 or B,)``, a node of a Brownian tree, for its normals
    in place of those of a draw.  Float32 agrees with the compiled backends to 2 ulp (an fma is imitated in
    float64 and so rounded twice).
    """
    numel = _sample_numel(shape, key)
    if wide:
        r = _sample_words(key, numel, 2, draw, node).to(torch.float64)
        u_a = r[..., 0] * 2.0**-32 + (r[..., 1] * 2.0**-64 + 2.0**-65)
        u_b = r[..., 2] * 2.0**-32 + (r[..., 3] * 2.0**-64 + 2.0**-65)
        radius, angle = torch.sqrt(-2 * torch.log(u_a)), 2 * math.pi * u_b
        z = torch.stack([radius * torch.cos(angle), radius * torch.sin(angle)], dim=-1)
    else:
        z = _box_muller(_sample_words(key, numel, 4, draw, node))
    return z.flatten(1)[:, :numel].reshape(tuple(shape))


def words(seed: Tensor, counter: Tensor, node: Tensor | None = None) -> Tensor:
    """Philox words ``(..., 4)`` as int64 in ``[0, 2^32)``, of int64 seeds and counters that hold the bits of uint64.

    ``node``: int64 > 0, the node of a Brownian tree, whose counters (docs/brownian.md) no draw has.
    """
    if node is None:
        seed, counter = torch.broadcast_tensors(seed, counter)
        c1, c3 = (counter >> 32) & _MASK, torch.zeros_like(counter)
        c2 = c3
    else:
        seed, counter, node = torch.broadcast_tensors(seed, counter, node)
        c1, c2, c3 = node & _MASK, ((node >> 32) & _MASK) | 0x80000000, (counter >> 32) & _MASK
    return torch.stack(_rounds(seed, counter & _MASK, c1, c2, c3), dim=-1)


def _rounds(seed: _Words, c0: _Words, c1: _Words, c2: _Words, c3: _Words) -> list[_Words]:
    k0, k1 = seed & _MASK, (seed >> 32) & _MASK
    for _ in range(10):
        p0, p1 = c0 * 0xD2511F53, c2 * 0xCD9E8D57  # wraps modulo 2^64, which keeps all 64 bits of the product
        c0, c1, c2, c3 = ((p1 >> 32) & _MASK) ^ c1 ^ k0, p1 & _MASK, ((p0 >> 32) & _MASK) ^ c3 ^ k1, p0 & _MASK
        k0, k1 = (k0 + 0x9E3779B9) & _MASK, (k1 + 0xBB67AE85) & _MASK
    return [c0, c1, c2, c3]


def _sample_words(key: Tensor, numel: int, per_counter: int, draw: Tensor | int, node: Tensor | None = None) -> Tensor:
    chunks = -(-numel // per_counter)
    base = key.contiguous().view(torch.int64)
    start = base[:, 1] + torch.as_tensor(draw, device=key.device).to(torch.int64) * chunks
    counter = start[:, None] + torch.arange(chunks, device=key.device)
    return words(base[:, :1], counter, None if node is None else node[:, None])


def _fma(a: Tensor, b: Tensor | float, c: Tensor | float) -> Tensor:
    wide_b = b.double() if isinstance(b, Tensor) else b
    wide_c = c.double() if isinstance(c, Tensor) else c
    return (a.double() * wide_b + wide_c).float()


def _horner(x: Tensor, coefficients: Sequence[float]) -> Tensor:
    value = torch.full_like(x, coefficients[0])
    for c in coefficients[1:]:
        value = _fma(value, x, c)
    return value


def _box_muller(r: Tensor) -> Tensor:
    """csrc/core/normal.h, line by line: words ``(..., 4)`` int64 -> normals ``(..., 4)`` float32."""
    u = _fma(r.to(torch.float32), 2.0**-32, 2.0**-33)
    radius, angle = u[..., 0::2].contiguous(), u[..., 1::2].contiguous()
    shifted = radius.view(torch.int32) - 0x3F2AAAAB
    e = (shifted >> 23).to(torch.float32)
    f = ((shifted & 0x007FFFFF) + 0x3F2AAAAB).view(torch.float32) - 1.0
    p = _fma(f * f, _horner(f, _RADIUS), -2.0 * f)
    # through float64, which rounds right: torch's own float32 sqrt is off by an ulp in 0.7 % of cases on a CPU
    big = torch.sqrt(_fma(e, float.fromhex("-0x1.62e43p+0"), p).double()).float()

    shifted_angle = _fma(angle, 4.0, 12582912.0)
    quadrant = shifted_angle.view(torch.int32)
    f = _fma(shifted_angle - 12582912.0, -0.25, angle)
    t = f * f
    c = _fma(big * t, _horner(t, _COS), big)
    s = _horner(t, _SIN) * (big * f)
    odd = (quadrant & 1).bool()
    c, s = torch.where(odd, s, c), torch.where(odd, c, s)
    c = torch.where(((quadrant + 1) & 2).bool(), -c, c)
    s = torch.where((quadrant & 2).bool(), -s, s)
    return torch.stack([c, s], dim=-1).flatten(-2)


def _folded(seed: int, counter: int) -> tuple[int, int]:
    """A key that is derived from another, by whole numbers of Python: ten times faster than by tensors, for a few."""
    r = _rounds(seed, counter & _MASK, counter >> 32, 0, 0)
    return r[0] | (r[1] << 32), r[2] | (r[3] << 32)


def _derive(seed: Tensor, counter: Tensor) -> Tensor:
    seed, counter = torch.broadcast_tensors(seed, counter)
    on_host = seed.device.type == "cpu" and not torch.compiler.is_compiling()
    a: Any = seed.numpy() if on_host else seed  # numpy: five times less overhead for the few keys of a run
    b: Any = counter.numpy() if on_host else counter
    zero = b & 0
    r = _rounds(a, b & _MASK, (b >> 32) & _MASK, zero, zero)
    pair = [r[0] | (r[1] << 32), r[2] | (r[3] << 32)]
    both = torch.from_numpy(np.stack(pair, axis=-1)) if on_host else torch.stack(pair, dim=-1)
    return both.view(torch.uint64)


def _sample_ids(sample_ids: int | Sequence[int] | Tensor) -> Tensor:
    if isinstance(sample_ids, int):
        if sample_ids < 0:
            raise ValueError(f"sample_ids: got {sample_ids}, allowed is a count of 0 or more, or a list of indices")
        return torch.arange(sample_ids)
    ids = torch.as_tensor(sample_ids)
    if ids.dim() != 1 or ids.is_floating_point() or ids.dtype == torch.bool:
        raise ValueError(
            f"sample_ids: got shape {tuple(ids.shape)} {ids.dtype}, allowed are whole numbers of shape (B,)"
        )
    ids = ids.to(torch.int64)
    if ids.device.type == "cpu" and len(ids) and int(ids.min()) < 0:
        raise ValueError(f"sample_ids: got {int(ids.min())}, allowed is 0 or more")
    return ids


def _sample_numel(shape: Sequence[int], key: Tensor) -> int:
    if not shape or shape[0] != key.shape[0]:
        raise ValueError(f"shape: got {tuple(shape)} for {key.shape[0]} keys; the first dimension is one per key")
    return math.prod(shape[1:])


def _check_key(key: Tensor) -> None:
    if key.dtype != torch.uint64 or key.dim() < 1 or key.shape[-1] != 2:
        raise ValueError(f"key: got shape {tuple(key.shape)} {key.dtype}, allowed is (..., 2) uint64")


def _check_seed(seed: int) -> int:
    if isinstance(seed, bool) or not isinstance(seed, int) or not 0 <= seed < 2**64:
        raise ValueError(f"seed: got {seed!r}, allowed is a whole number in [0, 2^64)")
    return seed


def _signed(value: int) -> int:
    return value - 2**64 if value >= 2**63 else value
