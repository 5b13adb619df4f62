"""``threshold_`` and ``rescale_`` on a CUDA device: the bits of the CPU, of Triton and of captured graphs."""

from __future__ import annotations

import math

import pytest
import torch

import fastsample
from fastsample import native, row
from fastsample.ops import rescale_, threshold_, update_
from tests.reductions import KINDS, ZERO, layouts, table_of, told, values

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device"),
]
DTYPES = [torch.float32, torch.bfloat16, torch.float16, torch.float64]


@pytest.fixture(scope="module", autouse=True)
def compiled():
    if not native.load_for("cuda") or native.loaded_from("cuda") == "triton":
        pytest.fail(f"the CUDA library does not load: {native.why_not('cuda')}")


def to(x, device="cuda"):
    return torch.empty_strided(x.shape, x.stride(), dtype=x.dtype, device=device).copy_(x)


def both(op, terms, table, step, *numbers):
    """Rows of the GPU and of the CPU, on the CPU."""
    found = []
    for device in ("cuda", "cpu"):
        rows = torch.full((len(terms[0]), 48), math.nan, dtype=torch.float64, device=device)
        op(rows, [to(x, device) for x in terms], table.to(device), step.to(device), *numbers)
        found.append(rows.cpu())
    return found


def equal(a, b):
    return torch.equal(a.nan_to_num(7.0), b.nan_to_num(7.0))


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("dtype", DTYPES)
def test_bits_of_the_cpu(kind, dtype):
    for n in (1, 2, 17, 4096, 5001, 16_384, 57_000, 65_537, 300_000):
        x = values(kind, (3, n), dtype, n)
        for ratio in (0.0, 0.5, 0.995, 1.0):
            assert equal(*both(threshold_, [x], table_of(1.0), ZERO, ratio, 2.0**-1000, math.inf)), (n, ratio)


@pytest.mark.parametrize("shape", [(1, 3, 2000, 2000), (300, 256), (1000, 4, 64, 64), (130, 70_001)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_shapes(shape, dtype):
    """Few samples of 10^7 elements, many small ones, more than a launch takes; runs agree with one another."""
    x, e = values("normal", shape, dtype), values("normal", shape, dtype, 1)
    table, step = told(table_of(1.4, -0.6, rows=3)), torch.arange(shape[0]) % 3
    for op, numbers in ((threshold_, (0.995, 1.0, math.inf)), (rescale_, (0, 1))):
        first, expected = both(op, [x, e], table, step, *numbers)
        assert equal(first, expected)
        assert equal(both(op, [x, e], table, step, *numbers)[0], first)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("n", [1, 2, 511, 4096, 4097, 20_000, 600_001])
def test_rescale_has_the_bits_of_the_cpu(dtype, n):
    c, u = values("normal", (2, n), dtype), values("normal", (2, n), dtype, 1)
    assert equal(*both(rescale_, [c, u], told(table_of(1.0, 1.0)), ZERO, 0, 1))
    strided = [c.unsqueeze(-1), torch.stack([u, c], -1)[..., :1]]
    assert equal(*both(rescale_, strided, told(table_of(1.0, 1.0)), ZERO, 0, 1))


def test_any_strides():
    x, e = values("normal", (3, 4, 90, 110), torch.float32), values("normal", (3, 4, 90, 110), torch.float16, 1)
    for y, z in zip(layouts(x), layouts(e), strict=True):
        assert equal(*both(threshold_, [y, z], table_of(0.7, 1.1), ZERO, 0.9, 0.1, math.inf))


@pytest.mark.parametrize("shape", [(4, 256), (4, 100_000)])
def test_bits_of_triton(shape):
    pytest.importorskip("triton")
    x, e = values("normal", shape, torch.float32), values("normal", shape, torch.bfloat16, 1)
    for op, numbers in ((threshold_, (0.995, 1.0, math.inf)), (rescale_, (0, 1))):
        expected = both(op, [x, e], told(table_of(1.4, -0.6)), ZERO, *numbers)[1]
        with fastsample.use_backend("triton"):
            rows = torch.empty(4, 48, dtype=torch.float64, device="cuda")
            op(rows, [to(x), to(e)], told(table_of(1.4, -0.6)).cuda(), ZERO.cuda(), *numbers)
        assert equal(rows.cpu(), expected)


@pytest.mark.parametrize("shape", [(5, 64), (5, 100_000)])
@pytest.mark.parametrize("bad", [-1, 3])
def test_nan_and_steps_out_of_range_stay_in_their_samples(shape, bad):
    x = values("normal", shape, torch.float32)
    x[3, 7] = math.nan
    rows = torch.zeros(5, 48, dtype=torch.float64, device="cuda")
    table, step = table_of(1.0, rows=3), torch.tensor([0, bad, 2, 1, 0])
    threshold_(rows, [x.cuda()], table.cuda(), step.cuda(), 0.9)
    good = [0, 2, 4]
    assert equal(rows[good].cpu(), both(threshold_, [x[good]], table, step[good], 0.9)[1])
    assert rows[1, : row.DRAW].isnan().all() and rows[3, 0].isnan()


@pytest.mark.parametrize("shape", [(4, 256), (2, 200_000)])
def test_a_captured_graph_replays_eager(shape):
    """Both ops and update in one graph; replays with other data give what eager calls give: no memory is left dirty."""
    table, step = told(table_of(1.4, -0.6, rows=3), 2.0).cuda(), torch.zeros((), dtype=torch.int64, device="cuda")
    table[:, row.HI + 1] = 0  # no noise
    c, u = torch.zeros(shape, device="cuda"), torch.zeros(shape, device="cuda")
    out, samples = torch.empty_like(c), torch.arange(shape[0], device="cuda")
    first, second = (torch.empty(shape[0], 48, dtype=torch.float64, device="cuda") for _ in range(2))

    def run():
        rescale_(first, [c, u], table, step, 0, 1)
        threshold_(second, [c, u], first, samples, 0.99)
        update_([out], [c, u], second, samples)

    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        run()
    torch.cuda.current_stream().wait_stream(side)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        run()
    for seed in range(4):
        c.copy_(values("normal", shape, torch.float32, seed))
        u.copy_(values("normal", shape, torch.float32, seed + 10))
        step.fill_(seed % 3)
        graph.replay()
        replayed = out.clone()
        run()
        assert torch.equal(out, replayed)
        assert out.isfinite().all()
