"""``brownian_`` on a CUDA device: the bits of the CPU and of Triton, no synchronisation, captured."""

from __future__ import annotations

import pytest
import torch

import fastsample
from fastsample import noise, ops
from fastsample.brownian import BrownianMotion, BrownianTreeNoiseSampler, table

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device"),
]


def queries(device):
    motion = BrownianMotion(0.0, 14.0, torch.empty(1), 0, tol=1e-6)
    nodes, weights = table([motion.query(a, b) for a, b in ((0.5, 2.3), (0.0, 14.0), (2.3, 7.7), (1.0, 1.0))])
    return nodes.to(device), weights.to(device)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16, torch.float64])
@pytest.mark.parametrize("shape", [(3, 4, 33), (2, 70000), (5, 1), (1, 1 << 20), (3, 0)])
def test_bits_of_the_cpu_and_of_triton(dtype, shape):
    key = noise.keys(3, shape[0])
    for step in (torch.tensor(2), torch.arange(shape[0]) % 4):
        expected = torch.empty(shape, dtype=dtype)
        ops.brownian_(expected, key, *queries("cpu"), step)
        for backend in ("native", "triton"):
            got = torch.full(shape, torch.nan, dtype=dtype, device="cuda")
            with fastsample.use_backend(backend):
                ops.brownian_(got, key.cuda(), *queries("cuda"), step.cuda())
            if dtype == torch.float64:  # normals through libm
                torch.testing.assert_close(got.cpu(), expected, rtol=1e-13, atol=1e-12)
            else:
                assert torch.equal(got.cpu(), expected), backend


def test_a_prepared_sampler_does_not_wait_and_can_be_captured():
    x = torch.empty(2, 4, 64, 64, device="cuda")
    sampler = BrownianTreeNoiseSampler(x, 0.03, 14.6, seed=3)
    levels = [14.6, 5.0, 1.0, 0.03]
    sampler.prepare(levels)
    plain = BrownianTreeNoiseSampler(x.cpu(), 0.03, 14.6, seed=3)
    torch.cuda.synchronize()
    torch.cuda.set_sync_debug_mode("error")
    try:
        made = [sampler.at(i) for i in range(3)] + [sampler(levels[1], levels[2])]
    finally:
        torch.cuda.set_sync_debug_mode("default")
    assert torch.equal(made[1].cpu(), plain(5.0, 1.0)) and torch.equal(made[1], made[3])
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        captured = sampler.at(2)
    graph.replay()
    assert torch.equal(captured, made[2])
