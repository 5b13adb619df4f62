"""Random calls of the update op and their float64 truth, written from docs/row.md alone."""

from __future__ import annotations

import dataclasses

import torch

from fastsample import noise, row

ULP = {torch.float64: 2.0**-52, torch.float32: 2.0**-23, torch.bfloat16: 2.0**-7, torch.float16: 2.0**-10}
SHAPES = [(1, 1), (3, 5), (2, 3, 7, 5), (4, 1003), (1, 127), (2, 4, 8, 8), (2, 65537), (5, 2), (1, 0), (3, 1, 4, 4, 4)]
DTYPES = (torch.float32, torch.bfloat16, torch.float16)


@dataclasses.dataclass
class Call:
    shape: tuple[int, ...]
    terms: list[torch.Tensor]
    table: torch.Tensor
    step: torch.Tensor
    key: torch.Tensor | None
    noise: list[torch.Tensor]
    out_dtypes: list[torch.dtype]

    @property
    def wide(self) -> bool:
        return torch.float64 in [*self.out_dtypes, *(x.dtype for x in self.terms)]


def random_call(seed, dtypes=None, explicit=None, contiguous=False):
    g = torch.Generator().manual_seed(seed)

    def pick(n):
        return int(torch.randint(n, (1,), generator=g))

    if dtypes is None:
        dtypes = [torch.float64] if seed % 8 == 7 else DTYPES
    shape = SHAPES[seed % len(SHAPES)]
    n_terms, n_outs = seed % 9, 1 + seed % 3
    terms = [
        _layout(torch.randn(shape, generator=g).to(dtypes[pick(len(dtypes))]), 0 if contiguous else pick(4))
        for _ in range(n_terms)
    ]
    table = torch.from_numpy(row.blank(3))
    weights = torch.randn(3, row.COLUMNS, generator=g, dtype=torch.float64)
    keep = torch.rand(3, row.COLUMNS, generator=g) < 0.7
    for k in range(4 * n_terms):
        table[:, k] = weights[:, k] * keep[:, k]
    explicit = seed % 3 == 0 if explicit is None else explicit
    key = None if explicit else noise.keys(seed, shape[0])
    noises = (
        [_layout(torch.randn(shape, generator=g), 0 if contiguous else pick(4)) for _ in range(pick(3))]
        if explicit
        else []
    )
    for k in range(n_outs):
        table[:, row.w_d(k)] = weights[:, row.w_d(k)] * keep[:, row.w_d(k)]
        for r in range(len(noises) if explicit else 2):
            table[:, row.g(k, r)] = weights[:, row.g(k, r)] * keep[:, row.g(k, r)]
    if seed % 2:
        table[:, row.LO], table[:, row.HI] = -0.8, 1.1
    table[:, row.DRAW], table[:, row.DRAW + 1] = 3, 40
    step = torch.randint(3, (shape[0],), generator=g) if seed % 5 == 0 else torch.ones((), dtype=torch.int64)
    return Call(shape, terms, table, step, key, noises, [dtypes[pick(len(dtypes))] for _ in range(n_outs)])


def model64(call):
    """Outputs in float64 with the coefficients the kernels use, and the sums of |c_j x_j| for the bound."""
    compute = torch.float64 if call.wide else torch.float32
    steps = call.step.reshape(-1).expand(call.shape[0])
    dims = (-1,) + (1,) * (len(call.shape) - 1)

    def c(column):
        return call.table[steps, column].to(compute).double().reshape(dims)

    xs = [x.double() for x in call.terms]
    if call.key is not None:
        draws = call.table[steps, row.DRAW : row.DRAW + 2].long()
        noises = [noise.reference_normals(call.key, call.shape, draws[:, r], call.wide).double() for r in range(2)]
    else:
        noises = [x.double() for x in call.noise]
    zero = torch.zeros(call.shape, dtype=torch.float64)
    y = sum((c(row.p(j)) * x for j, x in enumerate(xs)), zero)
    y_size = sum(((c(row.p(j)) * x).abs() for j, x in enumerate(xs)), zero)
    d = torch.minimum(torch.maximum(y, c(row.LO)), c(row.HI))
    values, sizes = [], []
    for k in range(len(call.out_dtypes)):
        parts = [c(row.w(k, j)) * x for j, x in enumerate(xs)] + [c(row.w_d(k)) * d]
        parts += [c(row.g(k, r)) * xi for r, xi in enumerate(noises)]
        values.append(sum(parts, zero))
        sizes.append(sum((part.abs() for part in parts), zero) + c(row.w_d(k)).abs() * y_size)
    return values, sizes


def bound(call, magnitude, value, dtype):
    """(K + 6) u sum |c_j x_j| of the compute type, two ulp of each normal, and half an ulp of the output."""
    u = 2.0**-53 if call.wide else 2.0**-24
    chain = (len(call.terms) + 6) * u * magnitude
    smallest = 2.0**-25 if dtype == torch.float16 else 1e-38  # half the least float16 subnormal
    return chain + 4 * u * magnitude + (ULP[dtype] / 2) * (value.abs() + chain) + smallest


def _layout(x, kind):
    """The same values as a plain, transposed, sliced or channels-last tensor."""
    if kind == 1 and x.dim() >= 3:
        return x.transpose(-1, -2).contiguous().transpose(-1, -2)
    if kind == 2:
        return torch.stack([x, x + 1], dim=-1).flatten(-2)[..., ::2]
    if kind == 3 and x.dim() == 4:
        return x.to(memory_format=torch.channels_last)
    return x
