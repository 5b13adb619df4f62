"""The body of the CUDA brownian kernel, run on the host thread by thread: indexing, staging, sums, stores."""

from __future__ import annotations

import math
import platform
import subprocess

import pytest
import torch

from fastsample import brownian, building, noise, ops

ROOT = building.source_root().parent


@pytest.fixture(scope="module")
def body(tmp_path_factory):
    """brownian_(out, key, nodes, weights, step) -> whether whole chunks were stored at once."""
    try:
        compiler, torch_root = building.compiler(), building.torch_root()
    except building.BuildError as error:
        pytest.skip(str(error))
    library = tmp_path_factory.mktemp("body") / "libbody.so"
    command = [compiler, "-std=c++20", "-O2", "-ffp-contract=off", "-fPIC", "-shared", "-Wall", "-Werror"]
    command += ["-mfma"] if platform.machine() in building.X86 else []
    command += [f"-DTORCH_TARGET_VERSION={building.ABI_TARGET}", "-isystem", str(torch_root / "include")]
    command += [f"-I{ROOT / 'csrc'}", str(ROOT / "tests" / "brownian_body.cpp"), "-o", str(library)]
    command += [f"-L{torch_root / 'lib'}", "-ltorch_cpu", "-lc10"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    if not torch._C._dispatch_has_kernel("fastsample_brownian_body::brownian_"):  # no second load
        torch.ops.load_library(str(library))
    return torch.ops.fastsample_brownian_body.brownian_


def queries():
    motion = brownian.BrownianMotion(0.0, 14.0, torch.empty(1), 0, tol=1e-9)
    return motion.table([(0.5, 2.3), (0.0, 14.0), (2.3, 7.7), (3.5, 10.5), (1.0, 1.0)])


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16, torch.float64])
@pytest.mark.parametrize(
    ("shape", "whole"), [((3, 4, 33), True), ((2, 700), True), ((5, 1), False), ((2, 1003), False)]
)
def test_same_bits_as_the_cpu_op(body, dtype, shape, whole):
    nodes, weights = queries()
    key = noise.keys(3, shape[0])
    key[0, 1] = 2**32 - 2  # the low word of the counter wraps
    for step in (torch.tensor(2), torch.arange(shape[0]) % 5):
        got, expected = torch.full(shape, math.nan, dtype=dtype), torch.empty(shape, dtype=dtype)
        assert body(got, key, nodes, weights, step) == whole
        ops.brownian_(expected, key, nodes, weights, step)
        if dtype == torch.float64:
            torch.testing.assert_close(got, expected, rtol=1e-14, atol=1e-13)  # normals through libm
        else:
            assert torch.equal(got, expected)


def test_strided_outputs_write_nothing_else(body):
    nodes, weights = queries()
    memory = torch.full((3, 8, 20), math.nan)
    out = memory.transpose(1, 2)[:, ::2, 1:7]
    expected = torch.empty(out.shape)
    key = noise.keys(3, 3)
    assert not body(out, key, nodes, weights, torch.tensor(0))
    ops.brownian_(expected, key, nodes, weights, torch.tensor(0))
    assert torch.equal(out, expected)
    assert memory.isnan().sum() == memory.numel() - out.numel()


def test_more_nodes_than_a_block_stages(body):
    g = torch.Generator().manual_seed(0)
    nodes = torch.randint(1, 2**50, (2, 300), generator=g)
    nodes[1, 128:] = 0
    weights = torch.randn(2, 300, generator=g, dtype=torch.float64)
    for step in (0, 1):
        got, expected = torch.empty(2, 40), torch.empty(2, 40)
        key = noise.keys(1, 2)
        body(got, key, nodes, weights, torch.tensor(step))
        ops.brownian_(expected, key, nodes, weights, torch.tensor(step))
        assert torch.equal(got, expected)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_a_step_out_of_range_gives_nan_in_that_sample_only(body, dtype):
    nodes, weights = queries()
    got, expected = torch.empty(4, 30, dtype=dtype), torch.empty(4, 30, dtype=dtype)
    key = noise.keys(1, 4)
    body(got, key, nodes, weights, torch.tensor([0, -1, 5, 4]))
    ops.brownian_(expected, key, nodes, weights, torch.tensor([0, 0, 0, 4]))
    assert got[1:3].isnan().all()
    torch.testing.assert_close(got[::3], expected[::3], rtol=1e-14, atol=1e-13)
