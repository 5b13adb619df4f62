"""fastsample::metropolis_ compiled: the same bits for any threads, batch, layout and instruction set, and in core."""

from __future__ import annotations

import dataclasses
import hashlib
import math
import os
import subprocess
import sys

import pytest
import torch

from fastsample import native
from fastsample.building import BuildError
from fastsample.ops.metropolis import ordered_sum
from tests.metropolis_cases import ESTIMATORS, make, rtk, same_call, table_of

F64, F32, BF16 = torch.float64, torch.float32, torch.bfloat16
SIZES = [2, 31, 512, 700, 4096, 5000, 100_003]


@pytest.fixture(autouse=True)
def compiled():
    if not native.load_for("cpu"):
        pytest.skip(f"no native CPU library: {native.why_not('cpu')}")


@pytest.fixture(scope="module")
def core():
    try:
        return native.core()
    except BuildError as error:
        pytest.skip(f"no compiler or pybind11: {error}")


@pytest.mark.parametrize("dtypes", [F32, F64, BF16, [F32, BF16]], ids=str)
@pytest.mark.parametrize("numel", SIZES)
def test_elements_and_their_sum(core, dtypes, numel):
    """The log-ratio is the sum in the stated order of what csrc/core makes of each element."""
    for estimator in ESTIMATORS:
        if estimator == "energy":
            continue
        call = make((2, numel), dtypes, table_of(rtk(estimator)), seed=numel)
        function = core.element_ratios64 if call.dtype == F64 else core.element_ratios
        operands = torch.stack(call.operands_in_one())
        parts = [torch.from_numpy(function(call.table[0].numpy(), operands[:, b].numpy())) for b in range(2)]
        assert torch.equal(call.run().chain[:, 2], ordered_sum(torch.stack(parts)))


def test_the_order_of_the_sum():
    """Powers of two from 1 to 2^-60 over 1.2 million elements: no other order gives the same float64."""
    numel = 300 * 4096 + 77
    generator = torch.Generator().manual_seed(0)
    x = torch.exp2(-60 * torch.rand(1, numel, generator=generator)) * torch.randn(1, numel, generator=generator)
    call = make((1, numel), F32, table_of(rtk("trapezoid")), terms=0, outs=0)
    call.table[:] = 0
    call.table[:, [82, 83]] = math.inf
    call.table[0, 48 + 8] = 1.0  # q = cache, and the step is 1: the log-ratio is the sum of cache
    call = dataclasses.replace(call, state=torch.zeros_like(x), proposal=torch.ones_like(x), cache=x)
    blocks = torch.nn.functional.pad(x.double(), (0, 301 * 4096 - numel)).reshape(301, 8, 512)
    lanes = blocks[:, 0]
    for k in range(1, 8):
        lanes = lanes + blocks[:, k]
    strands = fold(lanes)
    rows = torch.nn.functional.pad(strands, (0, 3 * 128 - 301)).reshape(3, 128)
    expected = fold((rows[0] + rows[1]) + rows[2])
    assert float(call.run().chain[0, 2]) == float(expected)
    assert float(expected) != float(x.double().sum())


def fold(x):
    while x.shape[-1] > 1:
        x = x[..., : x.shape[-1] // 2] + x[..., x.shape[-1] // 2 :]
    return x[..., 0]


@pytest.mark.parametrize(("shape", "dtypes"), [((5, 70_001), F32), ((41, 3), [F32, BF16]), ((3, 140_000), F64)])
def test_threads_and_batch(shape, dtypes):
    radii = (0.9 * math.sqrt(2) * shape[1] ** 0.25, 1e9)
    table = table_of(rtk("simpson", radii=radii), rtk("energy"))
    call = make(shape, dtypes, table, outs=3, step=torch.arange(shape[0]) % 2)
    found = []
    for threads in (1, 2, 3, 4):
        torch.set_num_threads(threads)
        found.append(call.run())
    assert all(same_call(found[0], other) for other in found[1:])
    for b in range(shape[0]):
        one = slice(b, b + 1)
        assert same_call(call.part(one).run(), found[0].part(one))


def digest():
    """Hash of all that some calls write; run by the test below in processes of other instruction sets."""
    found = hashlib.sha256()
    for numel in (2, 40, 700, 5000):
        for dtypes in (F32, BF16, [F32, BF16], F64):
            for estimator in ("energy", "simpson"):
                call = make((4, numel), dtypes, table_of(rtk(estimator, radii=(1e3, 1e3))), outs=3, seed=numel)
                if call.dtype == F64:  # its normals go through libm
                    call.key, call.uniform = None, torch.full((4,), 0.5, dtype=F64)
                got = call.run()
                for x in (got.state, got.cache, got.chain, *got.outs):
                    found.update(x.double().numpy().tobytes())
    return found.hexdigest()


@pytest.mark.slow
def test_instruction_sets():
    expected = digest()
    for isa in ("base", "avx2"):
        environment = {**os.environ, "FASTSAMPLE_CPU_ISA": isa}
        command = [sys.executable, "-c", "from tests.test_metropolis_bits import digest; print(digest())"]
        result = subprocess.run(command, capture_output=True, text=True, env=environment, check=True)
        assert result.stdout.strip() == expected, isa
