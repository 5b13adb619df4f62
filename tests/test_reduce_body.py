"""The CUDA kernels of thresholding and of guidance rescale, run on the host: the bits of the CPU ops."""

from __future__ import annotations

import math
import platform
import subprocess

import pytest
import torch

from fastsample import building, native, row
from fastsample.ops import rescale_, threshold_
from tests.reductions import KINDS, ZERO, layouts, table_of, told, values

ROOT = building.source_root().parent
SHARED = 48 * 1024


@pytest.fixture(scope="module")
def body(tmp_path_factory):
    try:
        compiler, torch_root = building.compiler(), building.torch_root()
    except building.BuildError as error:
        pytest.skip(str(error))
    if platform.system() != "Linux" or not native.load_for("cpu"):
        pytest.skip("needs ucontext and the native CPU library")
    library = tmp_path_factory.mktemp("body") / "libbody.so"
    command = [compiler, "-std=c++20", "-O2", "-ffp-contract=off", "-fPIC", "-shared", "-Wall"]
    command += ["-mfma"] if platform.machine() in building.X86 else []
    command += [f"-DTORCH_TARGET_VERSION={building.ABI_TARGET}", "-isystem", str(torch_root / "include")]
    command += [f"-I{ROOT / 'csrc'}", str(ROOT / "tests" / "reduce_body.cpp"), "-o", str(library)]
    command += [f"-L{torch_root / 'lib'}", "-ltorch_cpu", "-lc10"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    if not torch._C._dispatch_has_kernel("fastsample_reduce_body::threshold_"):  # no second load
        torch.ops.load_library(str(library))
    return torch.ops.fastsample_reduce_body


def both(body, terms, table, step=ZERO, ratio=0.995, low=2.0**-1000, processors=2, shared=SHARED, many=False):
    """Rows of the kernels, compared with those of the CPU op, and samples of a launch (0: one block per sample)."""
    rows, expected = (torch.full((len(terms[0]), 48), math.nan, dtype=torch.float64) for _ in range(2))
    at_once = body.threshold_(rows, terms, table, step, ratio, low, math.inf, processors, shared, many)
    threshold_(expected, terms, table, step, ratio, low)
    assert torch.equal(rows.nan_to_num(123.0), expected.nan_to_num(123.0)), (terms[0].shape, ratio)
    return rows, at_once


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16, torch.float64])
def test_one_block_per_sample(body, kind, dtype):
    for n, ratio in ((1, 0.5), (2, 0.3), (3, 0.995), (255, 0.0), (1000, 0.995), (1003, 0.5), (4096, 1.0)):
        assert both(body, [values(kind, (2, n), dtype, n)], table_of(1.0), ZERO, ratio)[1] == 0


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64])
@pytest.mark.parametrize("many", [False, True])
def test_blocks_share_a_sample(body, kind, dtype, many):
    for n, ratio in ((20_000, 0.995), (17_003, 0.0), (33_000, 0.5), (16_500, 1.0)):
        x = values(kind, (2, n), dtype, n)
        assert both(body, [x], table_of(1.0), ZERO, ratio, processors=30, shared=1024, many=many)[1] == 2


def test_more_samples_than_a_launch_takes(body):
    x = values("normal", (67, 300), torch.float32)
    step = torch.arange(67) % 3
    assert both(body, [x, x.bfloat16()], table_of(0.5, 1.0, rows=3), step, 0.9, shared=512, processors=1000)[1] == 64


@pytest.mark.parametrize("shared", [SHARED, 1024])
def test_any_strides_and_terms(body, shared):
    x, e = values("normal", (3, 4, 9, 11), torch.float32), values("normal", (3, 4, 9, 11), torch.float16, 1)
    table = table_of(0.7, 0.0, -1.2)
    expected = both(body, [x, x * math.nan, e], table, shared=shared, processors=1000)[0]
    for y, z in zip(layouts(x), layouts(e), strict=True):
        got = both(body, [y, y * math.nan, z], table, shared=shared, processors=1000)[0]
        assert torch.equal(got, expected)


@pytest.mark.parametrize("shape", [(5, 64), (5, 2000)])
@pytest.mark.parametrize("bad", [-1, 3, 2**40])
def test_nan_and_steps_out_of_range_stay_in_their_samples(body, shape, bad):
    x = values("normal", shape, torch.float32)
    x[3, 7] = math.nan
    table, step = table_of(1.0, rows=3), torch.tensor([0, bad, 2, 1, 0])
    rows = torch.zeros(5, 48, dtype=torch.float64)
    body.threshold_(rows, [x], table, step, 0.9, 1.0, math.inf, 1000, 1024, False)
    good = [0, 2, 4]
    expected, _ = both(body, [x[good]], table, step[good], 0.9, 1.0)
    assert torch.equal(rows[good], expected)
    assert rows[1, : row.DRAW].isnan().all() and (rows[1, row.DRAW :] == 0).all()
    assert rows[3, 0].isnan() and rows[3, row.HI] == 1


def test_empty(body):
    both(body, [torch.zeros(3, 0)], table_of(1.0), low=2.0)
    both(body, [torch.zeros(0, 3)], table_of(1.0))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64])
@pytest.mark.parametrize("n", [1, 2, 511, 512, 4096, 4097, 20_000, 600_001])
def test_rescale_has_the_bits_of_the_cpu(body, dtype, n):
    samples = 1 if n > 100_000 else 3
    c, u = values("normal", (samples, n), dtype), values("normal", (samples, n), dtype, 1)
    for terms in ([c, u, c], [u.clone().unsqueeze(-1), torch.stack([c, u], -1)[..., :1], u.unsqueeze(-1)]):
        table, step = told(table_of(1.0, 0.5, 0.25, rows=2)), torch.arange(samples) % 2
        table[1, row.GUIDANCE :] = torch.tensor([-2.0, 1.0])
        rows, expected = (torch.full((samples, 48), math.nan, dtype=torch.float64) for _ in range(2))
        body.rescale_(rows, terms, table, step, 0, 1)
        rescale_(expected, terms, table, step, 0, 1)
        assert torch.equal(rows.nan_to_num(123.0), expected.nan_to_num(123.0))


def test_rescale_step_out_of_range(body):
    x = values("normal", (2, 30), torch.float32)
    rows = torch.zeros(2, 48, dtype=torch.float64)
    body.rescale_(rows, [x, 2 * x], told(table_of(1.0, 1.0)), torch.tensor([0, 1]), 0, 1)
    assert not rows[0, 0].isnan() and rows[1, : row.DRAW].isnan().all()
