"""The Triton backend of thresholding and of guidance rescale: the bits of the compiled CPU ops.

Not collected by itself: tests/test_triton_reduce.py runs this file in a process with TRITON_INTERPRET=1 (Triton reads
the variable once, at import), and it may be run as it is on a machine with a GPU.
"""

from __future__ import annotations

import math
import os

import pytest
import torch

from fastsample import native, ops, row
from fastsample.triton import rescale as rescale_backend
from fastsample.triton import threshold as backend
from tests.reductions import KINDS, ZERO, layouts, table_of, told, values
from tests.triton_cases import fused  # noqa: F401  (an interpreter with an exact fma)

INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1"
DEVICE = "cpu" if INTERPRETED else "cuda"


@pytest.fixture(autouse=True)
def compiled():
    if not native.load_for("cpu"):
        pytest.skip(f"no native CPU library: {native.why_not('cpu')}")


def to(x):
    return torch.empty_strided(x.shape, x.stride(), dtype=x.dtype, device=DEVICE).copy_(x)


def both(terms, table, step=ZERO, ratio=0.995, low=2.0**-1000, high=math.inf):
    expected = torch.full((len(terms[0]), 48), math.nan, dtype=torch.float64)
    ops.threshold_(expected, terms, table, step, ratio, low, high)
    rows = torch.full_like(expected, math.nan, device=DEVICE)
    backend.threshold_(rows, [to(x) for x in terms], table.to(DEVICE), step.to(DEVICE), ratio, low, high)
    assert torch.equal(rows.cpu().nan_to_num(7.0), expected.nan_to_num(7.0)), (terms[0].shape, ratio)
    return expected


@pytest.mark.parametrize(
    ("dtype", "kind"),
    [(torch.float32, kind) for kind in KINDS]
    + [(dtype, kind) for dtype in (torch.bfloat16, torch.float16, torch.float64) for kind in ("normal", "infinite")],
)
def test_bits_of_the_cpu(kind, dtype):
    for n, ratio in ((1, 0.5), (2, 0.3), (17, 1.0), (1000, 0.995), (4097, 0.0), (5000, 0.995)):
        both([values(kind, (2, n), dtype, n)], table_of(1.0), ZERO, ratio)


def test_terms_strides_and_steps():
    x, e = values("normal", (3, 4, 9, 11), torch.float32), values("normal", (3, 4, 9, 11), torch.float16, 1)
    table, step = table_of(0.7, 0.0, -1.2, rows=3), torch.tensor([2, 0, 1])
    expected = both([x, x * math.nan, e], table, step, 0.9)
    for y, z in zip(layouts(x), layouts(e), strict=True):
        assert torch.equal(both([y, y * math.nan, z], table, step, 0.9), expected)


def test_groups_of_samples(monkeypatch):
    monkeypatch.setattr(backend, "SMALL", 32)
    monkeypatch.setattr(backend, "AT_ONCE", 2)
    both(
        [values("normal", (5, 40), torch.float32)], table_of(1.0, rows=2), torch.tensor([1, 0, 0, 1, 1]), 0.8, 0.5, 1.5
    )


@pytest.mark.parametrize("n", [40, 5000])
def test_nan_and_steps_out_of_range_stay_in_their_samples(n):
    x = values("normal", (4, n), torch.float32)
    x[3, 7] = math.nan
    step = torch.tensor([0, 5, -1, 0])
    rows = torch.zeros(4, 48, dtype=torch.float64, device=DEVICE)
    backend.threshold_(rows, [to(x)], table_of(1.0).to(DEVICE), step.to(DEVICE), 0.9, 1.0, math.inf)
    assert torch.equal(rows[:1].cpu(), both([x[:1]], table_of(1.0), ZERO, 0.9, 1.0))
    assert rows[1:3, : row.DRAW].isnan().all() and (rows[1:3, row.DRAW :] == 0).all()
    assert rows[3, 0].isnan() and rows[3, row.HI] == 1


@pytest.mark.parametrize("shape", [(0, 3), (2, 0)])
def test_empty(shape):
    both([torch.zeros(shape)], table_of(2.0), low=4.0, high=3.0)
    rows = torch.zeros(shape[0], 48, dtype=torch.float64, device=DEVICE)
    x = torch.zeros(shape, device=DEVICE)
    rescale_backend.rescale_(rows, [x, x], table_of(1.0, 1.0).to(DEVICE), ZERO.to(DEVICE), 0, 1)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64])
@pytest.mark.parametrize("n", [2, 511, 4097, 20_000])
def test_rescale_has_the_bits_of_the_cpu(dtype, n):
    if INTERPRETED and dtype == torch.float64:
        dtype = torch.float16  # the interpreter has no fma of float64
    c, u = values("normal", (3, n), dtype), values("normal", (3, n), dtype, 1)
    table, step = told(table_of(1.0, 0.5, 0.25, rows=2)), torch.tensor([1, 0, 1])
    table[1, row.GUIDANCE :] = torch.tensor([-2.0, 1.0])
    for terms in ([c, u, c], [u.unsqueeze(-1), torch.stack([c, u], -1)[..., :1], u.unsqueeze(-1)]):
        expected = torch.full((3, 48), math.nan, dtype=torch.float64)
        ops.rescale_(expected, terms, table, step, 0, 1)
        rows = torch.full_like(expected, math.nan, device=DEVICE)
        moved = [to(x) for x in terms]
        rescale_backend.rescale_(rows, moved, table.to(DEVICE), step.to(DEVICE), 0, 1)
        assert torch.equal(rows.cpu().nan_to_num(7.0), expected.nan_to_num(7.0))


def test_the_dispatcher_reaches_triton_and_bad_calls_are_refused():
    x, rows = torch.ones(2, 8, device=DEVICE), torch.empty(2, 48, dtype=torch.float64, device=DEVICE)
    table, step = table_of(2.0, 1.0).to(DEVICE), ZERO.to(DEVICE)
    with ops.use_backend("triton"):
        ops.threshold_(rows, [4 * x], table, step)
        assert (rows[:, 0] == 0.25).all()
        ops.rescale_(rows, [x, x], table, step, 0, 1)
        assert torch.equal(rows, table.expand(2, -1))
        with pytest.raises(ValueError, match="ratio: got 2.0"):
            ops.threshold_(rows, [x], table, step, 2.0)
        with pytest.raises(ValueError, match="cond, uncond: got 0, 0"):
            ops.rescale_(rows, [x, x], table, step, 0, 0)
