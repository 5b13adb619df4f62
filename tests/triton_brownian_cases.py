"""The Triton backend of brownian against the CPU op.  Run by tests/test_triton_brownian.py, or as it is on a GPU."""

from __future__ import annotations

import math

import pytest
import torch

from fastsample import noise, ops
from fastsample.brownian import BrownianMotion, table
from fastsample.triton import brownian as backend
from tests.triton_cases import DEVICE, INTERPRETED, fused  # noqa: F401


def queries():
    """Few nodes, for the interpreter takes milliseconds for each; of the third query some numbers need 64 bits."""
    coarse, deep = (BrownianMotion(0.0, 14.0, torch.empty(1), 0, tol=tol) for tol in (0.02, 1e-10))
    asked = [coarse.query(0.5, 2.3), coarse.query(0.0, 14.0), deep.query(2.3, 7.7), coarse.query(1.0, 1.0)]
    asked[2] = tuple(part[:3] + part[-6:] for part in asked[2])
    assert asked[2][0][0] > 2**33
    return table(asked)


def run(out, key, nodes, weights, step):
    got = torch.empty_strided(out.shape, out.stride(), dtype=out.dtype, device=DEVICE).fill_(math.nan)
    backend.brownian_(got, *(x.to(DEVICE) for x in (key, nodes, weights, step)))
    return got.cpu()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16, torch.float64])
@pytest.mark.parametrize("shape", [(3, 4, 33), (2, 300), (5, 1), (1, 1003)])
def test_same_bits_as_the_cpu_op(dtype, shape, monkeypatch):
    if shape == (1, 1003):
        monkeypatch.setattr(backend, "_SMALL", 0)  # the blocks of a large call
    nodes, weights = queries()
    key = noise.keys(3, shape[0])
    key[0, 1] = 2**32 - 2
    for step in (torch.tensor(2), torch.arange(shape[0]) % 4):
        expected = torch.empty(shape, dtype=dtype)
        ops.brownian_(expected, key, nodes, weights, step)
        got = run(expected, key, nodes, weights, step)
        if dtype == torch.float64:
            torch.testing.assert_close(got, expected, rtol=1e-14, atol=1e-13)  # normals through libm
        elif dtype == torch.bfloat16 and INTERPRETED:  # the interpreter rounds its own way
            assert ((got.float() - expected.float()).abs() <= 2.0**-7 * expected.float().abs()).all()
        else:
            assert torch.equal(got, expected)


def test_strides_and_empty():
    nodes, weights = queries()
    key = noise.keys(3, 3)
    for out in (
        torch.empty(3, 8, 20).transpose(1, 2)[:, ::2, 1:7],
        torch.empty(3, 4, 5, 6).contiguous(memory_format=torch.channels_last),
        torch.empty(3, 0),
    ):
        ops.brownian_(out, key, nodes, weights, torch.tensor(0))
        assert torch.equal(run(out, key, nodes, weights, torch.tensor(0)), out)


def test_a_step_out_of_range_gives_nan_in_that_sample_only():
    nodes, weights = queries()
    key, out = noise.keys(1, 4), torch.empty(4, 30)
    got = run(out, key, nodes, weights, torch.tensor([0, -1, 4, 3]))
    ops.brownian_(out, key, nodes, weights, torch.tensor([0, 0, 0, 3]))
    assert got[1:3].isnan().all()
    assert torch.equal(got[::3], out[::3])
    assert run(out, key, nodes[:0], weights[:0], torch.tensor(0)).isnan().all()


def test_the_first_zero_ends_a_query():
    nodes, weights = queries()
    nodes[0, 5] = 0
    key, out = noise.keys(1, 2), torch.empty(2, 30)
    ops.brownian_(out, key, nodes, weights, torch.tensor(0))
    assert torch.equal(run(out, key, nodes, weights, torch.tensor(0)), out)
    with ops.use_backend("reference"):
        again = torch.empty_like(out)
        ops.brownian_(again, key, nodes, weights, torch.tensor(0))
    torch.testing.assert_close(again, out, rtol=0, atol=1e-6)


@pytest.mark.skipif(not INTERPRETED, reason="for machines without a GPU")
def test_use_backend_reaches_it():
    nodes, weights = queries()
    key, out, native = noise.keys(1, 2), torch.empty(2, 30), torch.empty(2, 30)
    ops.brownian_(native, key, nodes, weights, torch.tensor(0))
    with ops.use_backend("triton"):
        ops.brownian_(out, key, nodes, weights, torch.tensor(0))
        with pytest.raises(ValueError, match="step: got shape"):
            ops.brownian_(out, key, nodes, weights, torch.tensor([0, 1, 2]))
    assert torch.equal(out, native)
