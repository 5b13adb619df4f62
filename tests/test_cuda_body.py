"""The body of the CUDA update kernel, run on the host thread by thread: indexing, dispatch, arithmetic, noise."""

from __future__ import annotations

import math
import platform
import subprocess

import pytest
import torch

from fastsample import building, noise, ops, row
from tests.rows import bound, model64, random_call

ROOT = building.source_root().parent


@pytest.fixture(scope="module")
def body(tmp_path_factory):
    """update_(outs, ..., noise, processors, time, clock) -> elements of a piece, < 0 on the general path."""
    try:
        compiler, torch_root = building.compiler(), building.torch_root()
    except building.BuildError as error:
        pytest.skip(str(error))
    library = tmp_path_factory.mktemp("body") / "libbody.so"
    command = [compiler, "-std=c++20", "-O2", "-ffp-contract=off", "-fPIC", "-shared", "-Wall", "-Werror"]
    command += ["-mfma"] if platform.machine() in building.X86 else []
    command += [f"-DTORCH_TARGET_VERSION={building.ABI_TARGET}", "-isystem", str(torch_root / "include")]
    command += [f"-I{ROOT / 'csrc'}", str(ROOT / "tests" / "cuda_body.cpp"), "-o", str(library)]
    command += [f"-L{torch_root / 'lib'}", "-ltorch_cpu", "-lc10"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    if not torch._C._dispatch_has_kernel("fastsample_body::update_"):  # no second load
        torch.ops.load_library(str(library))
    return torch.ops.fastsample_body.update_


def run(body, call, processors=2):
    outs = [torch.full(call.shape, math.nan, dtype=t) for t in call.out_dtypes]
    piece = body(outs, call.terms, call.table, call.step, call.key, call.noise, processors)
    return outs, piece


def run_cpu(call):
    outs = [torch.full(call.shape, math.nan, dtype=t) for t in call.out_dtypes]
    ops.update_(outs, call.terms, call.table, call.step, call.key, call.noise)
    return outs


@pytest.mark.parametrize("dtypes", [None, [torch.float32], [torch.bfloat16], [torch.float16], [torch.float64]])
@pytest.mark.parametrize("contiguous", [True, False])
def test_same_bits_as_the_cpu_op_and_close_to_float64(body, dtypes, contiguous):
    for seed in range(90):
        call = random_call(seed, dtypes=dtypes, contiguous=contiguous)
        got, _ = run(body, call, processors=1 + seed % 5)
        exact = not (call.wide and call.key is not None)  # float64 normals go through libm
        for a, b, value, size in zip(got, run_cpu(call), *model64(call), strict=True):
            assert not exact or torch.equal(a, b), seed
            assert ((a.double() - value).abs() <= bound(call, size, value, a.dtype)).all(), seed


def plain(shape, dtype, terms, outputs, key=True, seed=0, per_sample=False):
    g = torch.Generator().manual_seed(seed)
    table = torch.from_numpy(row.blank(4))
    table[:, : 4 * terms] = torch.randn(4, 4 * terms, generator=g, dtype=torch.float64)
    table[:, row.LO + 1 : row.LO + 4] = torch.randn(4, 3, generator=g, dtype=torch.float64)
    table[:, row.HI + 1 : row.HI + 4] = 0.5
    table[:, row.TIME + 1 : row.TIME + 4] = -0.25
    table[:, row.DRAW], table[:, row.DRAW + 1] = torch.arange(4), 2.0**30 + 1  # no float32 holds the second
    step = torch.randint(4, (shape[0],), generator=g) if per_sample else torch.tensor(2)
    xs = [torch.randn(shape, generator=g).to(dtype) for _ in range(terms)]
    outs = [torch.full(shape, math.nan, dtype=dtype) for _ in range(outputs)]
    return outs, xs, table, step, noise.keys(seed, shape[0]) if key else None, []


@pytest.mark.parametrize(
    ("dtype", "terms", "outputs", "shape", "piece", "folded"),
    [
        (torch.float32, 3, 1, (3, 4, 16, 16), 4, 4),
        (torch.float32, 4, 3, (3, 4, 16, 16), 4, 4),
        (torch.float32, 8, 2, (3, 4, 16, 16), 4, 4),
        (torch.float32, 2, 1, (700, 2), -4, 4),
        (torch.float32, 2, 1, (700, 12), 4, 4),
        (torch.bfloat16, 3, 1, (3, 4, 16, 16), 8, 8),
        (torch.bfloat16, 3, 2, (3, 4, 16, 16), 8, 8),
        (torch.bfloat16, 3, 3, (3, 4, 16, 16), 4, 4),
        (torch.bfloat16, 5, 2, (3, 4, 16, 16), 4, 4),
        (torch.float16, 8, 3, (3, 4, 16, 16), 4, 4),
        (torch.float16, 3, 1, (5, 4096), 8, 8),
        (torch.float16, 3, 1, (5, 4100), 4, 4),
        (torch.float64, 5, 3, (2, 7, 3), -2, -2),
    ],
)
@pytest.mark.parametrize("key", [True, False])
@pytest.mark.parametrize("per_sample", [True, False])
def test_every_path(body, dtype, terms, outputs, shape, piece, folded, key, per_sample):
    arguments = plain(shape, dtype, terms, outputs, key, per_sample=per_sample)
    reference = [x.clone() for x in arguments[0]]
    for processors in (1, 132):
        for x in arguments[0]:
            x.fill_(math.nan)
        expected = piece if key or per_sample else folded  # the batch folds where nothing depends on the sample
        assert body(*arguments, processors) == expected
        ops.update_(reference, *arguments[1:])
        for a, b in zip(arguments[0], reference, strict=True):
            if dtype == torch.float64 and key:
                torch.testing.assert_close(a, b, rtol=1e-14, atol=1e-14)
            else:
                assert torch.equal(a, b)


@pytest.mark.parametrize("given", [False, True])
@pytest.mark.parametrize("terms", [3, 6])
@pytest.mark.parametrize("strided", [False, True])
@pytest.mark.parametrize("other", [torch.bfloat16, torch.float32])
def test_mixed_dtypes_and_batch_strides_take_the_vector_path(body, given, terms, strided, other):
    outs, xs, table, step, key, noise = plain((3, 64), torch.float32, terms, 2)
    xs[1] = xs[1].to(other)
    if strided:
        xs[2] = torch.cat([xs[2], xs[2]], 1)[:, :64]
    if given:
        key, noise = None, [torch.randn(3, 64, dtype=torch.float32).to(other) for _ in range(2)]
    reference = [x.clone() for x in outs]
    assert body(outs, xs, table, step, key, noise, 4) == 4
    ops.update_(reference, xs, table, step, key, noise)
    assert all(torch.equal(a, b) for a, b in zip(outs, reference, strict=True))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("outputs", [1, 2, 3])
@pytest.mark.parametrize("which", [(0,), (1,), (0, 1)])
def test_given_noise_of_the_state_s_dtype(body, dtype, outputs, which):
    """Either noise may be without weight: it is then not read."""
    outs, xs, table, step, *_ = plain((5, 64), dtype, 3, outputs, key=False)
    noises = [torch.randn(5, 64).to(dtype) for _ in range(2)]
    for r in {0, 1} - set(which):
        table[:, row.HI + 4 * r + 1 : row.HI + 4 * r + 4] = 0
        noises[r].fill_(math.nan)
    reference = [x.clone() for x in outs]
    assert body(outs, xs, table, step, None, noises, 4) == (8 if dtype.itemsize == 2 and outputs < 3 else 4)
    ops.update_(reference, xs, table, step, None, noises)
    assert all(torch.equal(a, b) and a.isfinite().all() for a, b in zip(outs, reference, strict=True))


@pytest.mark.parametrize("shape", [(300, 2), (300, 8), (5, 1024), (5, 1026)])
@pytest.mark.parametrize("bad", [-1, 4, 2**40])
def test_a_step_out_of_range_gives_nan_in_that_sample_only(body, shape, bad):
    outs, xs, table, step, key, given = plain(shape, torch.float32, 3, 2, per_sample=True)
    reference = [x.clone() for x in outs]
    ops.update_(reference, xs, table, step, key, given)
    wrong = torch.arange(shape[0]) % 3 == 1
    body(outs, xs, table, torch.where(wrong, bad, step), key, given, 3)
    for a, b in zip(outs, reference, strict=True):
        assert a[wrong].isnan().all()
        assert torch.equal(a[~wrong], b[~wrong])


def test_terms_without_weight_are_not_read(body):
    outs, xs, table, step, key, given = plain((3, 64), torch.float32, 4, 1)
    table[:, 4:8] = 0
    xs[1].fill_(math.nan)
    body(outs, xs, table, step, key, given, 4)
    assert outs[0].isfinite().all()


@pytest.mark.parametrize("shape", [(3, 64), (3, 65)])
def test_an_output_may_be_a_term(body, shape):
    outs, xs, *rest = plain(shape, torch.float32, 3, 2)
    body(outs, xs, *rest, 4)
    body([xs[0], xs[2]], xs, *rest, 4)
    assert torch.equal(xs[0], outs[0])
    assert torch.equal(xs[2], outs[1])


def test_counters_across_2_to_the_32(body):
    outs, xs, table, step, key, given = plain((2, 64), torch.float32, 2, 1)
    key[:, 1] = torch.tensor([2**32 - 20, 2**63], dtype=torch.uint64)
    reference = [x.clone() for x in outs]
    ops.update_(reference, xs, table, step, key, given)
    body(outs, xs, table, step, key, given, 4)
    assert torch.equal(outs[0], reference[0])


@pytest.mark.parametrize("shape", [(3, 4, 16, 16), (700, 2), (5, 4099), (1, 1)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("key", [True, False])
@pytest.mark.parametrize("processors", [1, 132])
def test_the_clock_walks_through_the_rows_and_tells_the_time(body, shape, dtype, key, processors):
    """The blocks run one after the other: one that moved the clock too early would give the next block another row."""
    outs, xs, table, _, keys, given = plain(shape, dtype, 3, 2, key)
    table[:, row.TIME] = torch.tensor([0.1, -2.5, 1e-9, 999.0])
    clock, times = torch.zeros(2, dtype=torch.int64), torch.full(shape[:1], -1.0, dtype=dtype)
    for i in range(4):
        expected = [torch.empty_like(x) for x in outs]
        body(expected, xs, table, torch.tensor(i), keys, given, processors)
        body(outs, xs, table, clock[0], keys, given, processors, times, clock)
        assert all(torch.equal(a, b) for a, b in zip(outs, expected, strict=True))
        assert torch.equal(times, table[i, row.TIME].to(dtype).expand(shape[0]))
        assert clock.tolist() == [i + 1, 0]
    body(outs, xs, table, clock[0], keys, given, processors, times, clock)
    assert times.isnan().all()
    assert outs[0].isnan().all()
    assert clock.tolist() == [5, 0]


@pytest.mark.parametrize("shape", [(300, 2), (5, 1024), (5, 1026)])
def test_a_time_per_sample(body, shape):
    outs, xs, table, step, key, given = plain(shape, torch.float32, 3, 2, per_sample=True)
    table[:, row.TIME] = torch.tensor([0.1, -2.5, 1e-9, 999.0])
    step[1] = 7
    clock, times = torch.tensor([3, 0]), torch.zeros(shape[0])
    body(outs, xs, table, step, key, given, 4, times, clock)
    expected = table[step.clamp(max=3), row.TIME].float()
    expected[1] = math.nan
    assert torch.equal(times.nan_to_num(-1), expected.nan_to_num(-1))
    assert clock.tolist() == [4, 0]


VARIANTS = [(64, 2048, 8), (256, 2048, 8), (128, 2048, 1), (128, 1024, 0), (32, 32, 3)]


@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize("shape", [(700, 2), (300, 8), (3, 4096), (2, 4098), (1, 40000)])
@pytest.mark.parametrize("per_sample", [False, True])
def test_no_variant_changes_bits(body, variant, shape, per_sample):
    for dtype, outputs in ((torch.float32, 3), (torch.bfloat16, 1)):
        arguments = plain(shape, dtype, 3, outputs, per_sample=per_sample)
        reference = [x.clone() for x in arguments[0]]
        ops.update_(reference, *arguments[1:])
        body(*arguments, 3, None, None, *variant)
        assert all(torch.equal(a, b) for a, b in zip(arguments[0], reference, strict=True))


@pytest.mark.parametrize("variant", [(48, 2048, 8), (512, 2048, 8), (128, 64, 8), (128, 2048, -1)])
def test_variants_that_do_not_exist(body, variant):
    with pytest.raises(RuntimeError, match="no such variant"):
        body(*plain((3, 64), torch.float32, 3, 1), 3, None, None, *variant)
