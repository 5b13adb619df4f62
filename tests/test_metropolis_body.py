"""The CUDA kernels of metropolis, run on the host: the bits of the CPU op in one launch and in two."""

from __future__ import annotations

import math
import platform
import subprocess

import pytest
import torch

from fastsample import building, decision, native
from fastsample.ops import metropolis_, use_backend
from fastsample.ops.metropolis import ordered_sum
from tests.chains import FLOATS, assert_equal, call

ROOT = building.source_root().parent
HOPPER, AMPERE, TWO = (227 * 1024, 8), (163 * 1024, 1), (0, 8)  # shared memory of a thread block, cluster


@pytest.fixture(scope="module")
def body(tmp_path_factory):
    try:
        compiler, torch_root = building.compiler(), building.torch_root()
    except building.BuildError as error:
        pytest.skip(str(error))
    if platform.system() != "Linux" or not native.load_for("cpu"):
        pytest.skip("needs ucontext and the native CPU library")
    library = tmp_path_factory.mktemp("body") / "libbody.so"
    command = [compiler, "-std=c++20", "-O2", "-ffp-contract=off", "-fPIC", "-shared", "-Wall", "-Werror"]
    command += ["-mfma"] if platform.machine() in building.X86 else []
    command += [f"-DTORCH_TARGET_VERSION={building.ABI_TARGET}", "-isystem", str(torch_root / "include")]
    command += [f"-I{ROOT / 'csrc'}", str(ROOT / "tests" / "metropolis_body.cpp"), "-o", str(library)]
    command += [f"-L{torch_root / 'lib'}", "-ltorch_cpu", "-lc10"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    if not torch._C._dispatch_has_kernel("fastsample_metropolis_body::metropolis_"):  # no second load
        torch.ops.load_library(str(library))
    return torch.ops.fastsample_metropolis_body.metropolis_


def both(body, one, machines=(HOPPER, AMPERE, TWO), processors=3):
    """How the call ran on each machine; all gave the bits of the CPU op."""
    expected, _ = one.run(metropolis_)
    forms = []
    for shared, cluster in machines:
        got, form = one.run(body, processors, shared, cluster)
        assert_equal(got, expected, one.exact, (shared, cluster, form))
        forms.append(form)
    return forms


@pytest.mark.parametrize("dtypes", [FLOATS, [torch.float32], [torch.bfloat16], [torch.float16], [torch.float64]])
@pytest.mark.parametrize("strided", [False, True])
def test_bits_of_the_cpu(body, dtypes, strided):
    shapes = [(2, 3, 7, 5), (3, 8, 8, 8), (2, 4097), (1, 4, 40, 60), (70, 2), (9, 20), (2, 1), (2, 5000), (1, 12288)]
    for seed in range(27):
        one = call(
            shapes[seed % len(shapes)],
            seed,
            dtypes=dtypes,
            terms=seed % 5,
            outs=seed // 3 % 4,
            strided=strided,
            per_sample=seed % 2 == 1,
            given=seed % 7 == 3,
            radii=seed % 3 == 1,
            energy=seed % 4 == 2,
            in_place=seed % 5 == 1 and seed // 3 % 4 > 0,
        )
        both(body, one, processors=1 + seed % 4)


@pytest.mark.parametrize(
    ("shape", "dtype", "hopper", "ampere"),
    [
        ((300, 2), torch.float32, -2, -2),  # pieces of four do not divide a sample
        ((300, 8), torch.float32, 1, 1),
        ((5, 4096), torch.float32, 1, 1),
        ((3, 8192), torch.float32, 2, 1),
        ((2, 12288), torch.float32, 3, 0),
        ((2, 16384), torch.float32, 4, 0),
        ((1, 36864), torch.float32, 5, 0),
        ((1, 98304), torch.float32, 8, 0),
        ((1, 98308), torch.float32, 0, 0),
        ((1, 98306), torch.bfloat16, -8, -1),
        ((1, 20480), torch.bfloat16, 5, 0),
        ((1, 16384), torch.bfloat16, 4, 1),
        ((1, 8192), torch.float64, -3, -1),
        ((1, 8193), torch.float64, -4, -1),
    ],
)
def test_form(body, shape, dtype, hopper, ampere):
    one = call(shape, 3, dtypes=[dtype], terms=0, outs=1, radii=True)
    assert both(body, one) == [hopper, ampere, -1 if hopper < 0 else 0]


@pytest.mark.parametrize("cluster", range(1, 9))
@pytest.mark.parametrize("numel", [30_000, 29_999])
def test_bits_do_not_depend_on_the_launch(body, cluster, numel):
    one = call((4, numel), 10, outs=1, energy=True, per_sample=True)
    expected, _ = one.run(metropolis_)
    assert 0 < expected["chain"][:, 3].sum() < 4
    for shared in (0, 1 << 30):
        got, form = one.run(body, 2 * cluster, shared, cluster)
        assert_equal(got, expected, True)
        held = (cluster if cluster in (1, 2, 3, 4, 8) else 4) * (shared > 0)  # thread blocks that share 8 blocks
        assert form == (held if numel % 4 == 0 else -1 - held)


def test_the_order_of_the_sums(body):
    """More blocks than strands, and summands from 1 to 2^-60: no other order gives the same float64."""
    numel = 300 * 4096 + 76
    one = call((1, numel), 1, terms=0, outs=0)
    one.cache *= torch.exp2(-60 * torch.rand(1, numel, generator=torch.Generator().manual_seed(0)))
    one.state.zero_()
    one.proposal.fill_(1.0)
    one.table[:, decision.RATIO : decision.ENERGY] = 0
    one.table[:, decision.a(2)] = 1.0  # d q = cache
    assert both(body, one, [HOPPER]) == [0]
    got = one.run(body, 3, *HOPPER)[0]["chain"][0, 2]
    assert got != one.cache.double().sum() and got == ordered_sum(one.cache)


@pytest.mark.parametrize("machine", [HOPPER, TWO])
@pytest.mark.parametrize(("shape", "split"), [((6, 40), 2), ((6, 5000), 3)])
def test_bits_do_not_depend_on_the_batch(body, machine, shape, split):
    one = call(shape, 2, terms=1, outs=1, per_sample=True, energy=True)
    whole, _ = one.run(body, 5, *machine)
    accepted = whole["chain"][:, 3]
    assert 0 < accepted.sum() < len(accepted)
    for i in range(0, shape[0], split):
        part = call(shape, 2, terms=1, outs=1, per_sample=True, energy=True)
        for name in ("state", "cache", "proposal", "fresh", "chain", "step", "key"):
            setattr(part, name, getattr(part, name)[i : i + split].clone())
        part.terms = [x[i : i + split].clone() for x in part.terms]
        got, _ = part.run(body, 2, *machine)
        for name, x in got.items():
            assert torch.equal(x, whole[name][i : i + split]), name


@pytest.mark.parametrize("shape", [(40, 3), (40, 8), (5, 1024), (3, 9000)])
@pytest.mark.parametrize("bad", [-1, 3, 2**40])
@pytest.mark.parametrize("machine", [HOPPER, TWO])
def test_a_step_out_of_range_rejects_with_nan(body, shape, bad, machine):
    one = call(shape, 4, outs=2, per_sample=True, radii=True, energy=True)
    expected, _ = one.run(metropolis_)
    wrong = torch.arange(shape[0]) % 3 == 1
    one.step[wrong] = bad
    got, _ = one.run(body, 3, *machine)
    for name, x in expected.items():
        assert torch.equal(got[name][~wrong], x[~wrong]), name
    assert torch.equal(got["state"][wrong], one.state[wrong]) and torch.equal(got["cache"][wrong], one.cache[wrong])
    assert got["outs[0]"][wrong].isnan().all() and got["outs[1]"][wrong].isnan().all()
    assert got["chain"][wrong, 2].isnan().all() and (got["chain"][wrong, 3] == 0).all()
    assert torch.equal(got["chain"][wrong][:, [0, 1, 4]], one.chain[wrong][:, [0, 1, 4]])


@pytest.mark.parametrize("shape", [(8, 64), (3, 5000)])
def test_nan_rejects_and_stays_in_its_chain(body, shape):
    one = call(shape, 5, terms=0, outs=1)
    one.table[:, decision.g(1)] = 1.0
    one.table[:, decision.KAPPA] = 1.0
    one.proposal[1, 40] = math.nan
    both(body, one)
    got, _ = one.run(body, 3, *HOPPER)
    assert got["chain"][1, 2].isnan() and got["chain"][1, 3] == 0
    assert torch.equal(got["state"][1], one.state[1]) and got["outs[0]"].isfinite().all()


def test_what_has_no_weight_is_not_read(body):
    one = call((3, 64), 6, terms=2, outs=1)
    for column in (decision.a(4), decision.g(4), decision.h(4), 8, 9):
        one.table[:, column] = 0
    one.terms[0].fill_(math.nan)
    both(body, one)
    assert one.run(body, 3, *HOPPER)[0]["outs[0]"].isfinite().all()


@pytest.mark.parametrize("shape", [(3, 0), (0, 3)])
def test_empty(body, shape):
    both(body, call(shape, 7, terms=1, outs=1, energy=True))


def test_decisions_of_the_reference(body):
    for seed, shape in enumerate([(50, 12), (9, 700), (4, 9001)]):
        one = call(shape, seed, radii=True, energy=True, per_sample=True)
        with use_backend("reference"):
            expected, _ = one.run(metropolis_)
        for machine in (HOPPER, TWO):
            got, _ = one.run(body, 3, *machine)
            assert torch.equal(got["chain"][:, 3:], expected["chain"][:, 3:])
            torch.testing.assert_close(got["chain"][:, 2], expected["chain"][:, 2], rtol=1e-5, atol=1e-5)
            assert torch.equal(got["state"], expected["state"]) and torch.equal(got["cache"], expected["cache"])
