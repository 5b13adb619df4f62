"""What the tests of thresholding and of guidance rescale share: values that are hard to rank, layouts, runs."""

from __future__ import annotations

import math

import torch

from fastsample import row
from fastsample.ops import update

ZERO = torch.zeros((), dtype=torch.int64)


def table_of(*weights, rows=1):
    """``(rows, 48)``: D made of terms with these weights times 1, 2, ..., an output that uses all, a draw number."""
    made = [
        row.make_row(
            D={j: (i + 1) * w for j, w in enumerate(weights)},
            outputs=[{0: 0.5 + i, "D": 0.75, "xi0": 0.1}],
            limits=(-5, 5),
            draws=[3 + i],
            time=0.25 * i,
        )
        for i in range(rows)
    ]
    return torch.stack([torch.from_numpy(r) for r in made])


def told(table, guidance=7.5, phi=0.7):
    """The table with what ``rescale_`` reads of its rows."""
    table = table.clone()
    table[:, row.GUIDANCE], table[:, row.PHI] = guidance, phi
    return table


def prediction(terms, table, step=ZERO):
    """y of the terms exactly as ``update_`` forms it, float32 or float64."""
    plain = torch.from_numpy(row.blank(len(table)))
    for j in range(row.MAX_TERMS):
        plain[:, row.p(j)] = table[:, row.p(j)]
    plain[:, row.w_d(0)] = 1
    wide = any(x.dtype == torch.float64 for x in terms)
    (y,) = update(terms, plain, step, dtypes=[torch.float64 if wide else torch.float32])
    return y


def values(kind, shape, dtype, seed=0):
    """A tensor ``shape`` (B, ...) of one of ``KINDS``."""
    g = torch.Generator().manual_seed(seed)
    x = torch.randn(shape, generator=g, dtype=torch.float64)
    if kind == "constant":
        x = torch.full(shape, -1.25, dtype=torch.float64)
    elif kind == "two":
        x = torch.where(x > 0.3, 0.5, -2.0).double()
    elif kind == "zeros":
        x = torch.where(x > 2, x, 0.0)
    elif kind == "neighbours":  # all in one bin of the first digit
        x = 1 + torch.randint(0, 200, shape, generator=g) * 2.0**-23
    elif kind == "range":
        x = torch.exp2(torch.rand(shape, generator=g, dtype=torch.float64) * 250 - 140)
    elif kind == "denormal":
        x = x * (1e-40 if dtype != torch.float16 else 1e-7)
    elif kind == "infinite":
        x = torch.where(x > 1.5, math.inf, x)
    elif kind == "falling":  # the floor of a search cannot rise early
        x = x.reshape(shape[0], -1).abs().sort(1, descending=False).values.reshape(shape)
    return x.to(dtype)


KINDS = ("normal", "constant", "two", "zeros", "neighbours", "range", "denormal", "infinite", "falling")


def layouts(x):
    """The same values in other memory."""
    yield x.transpose(-1, -2).contiguous().transpose(-1, -2)
    yield torch.stack([x, x + 1], dim=-1).flatten(-2)[..., ::2]
    yield torch.cat([x, x], dim=1)[:, : x.shape[1]]
    if x.dim() == 4:
        yield x.to(memory_format=torch.channels_last)
    yield x[:1].expand_as(x) if bool((x == x[:1]).all()) else x.flip(0).contiguous().flip(0)
