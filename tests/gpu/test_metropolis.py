"""``metropolis_`` on a CUDA device: the bits of the CPU in one launch and in two, and of captured graphs."""

from __future__ import annotations

import math

import pytest
import torch

import fastsample
from fastsample import native, noise
from fastsample.ops import metropolis_
from tests.chains import FLOATS, assert_equal, call

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device"),
]


@pytest.fixture(scope="module", autouse=True)
def compiled():
    if not native.load_for("cuda") or native.loaded_from("cuda") == "triton":
        pytest.fail(f"the CUDA library does not load: {native.why_not('cuda')}")


def both(one):
    """What the call writes on the GPU: the bits of the CPU.

    The choice takes a logarithm of the device's library: it could differ where log U is the log-ratio but for a unit.
    """
    got, _ = one.run(metropolis_, device="cuda")
    expected, _ = one.run(metropolis_)
    assert_equal(got, expected, one.exact, tuple(one.state.shape))
    return got


@pytest.mark.parametrize("dtypes", [FLOATS, [torch.float32], [torch.bfloat16], [torch.float16], [torch.float64]])
@pytest.mark.parametrize("strided", [False, True])
def test_bits_of_the_cpu(dtypes, strided):
    shapes = [(2, 3, 7, 5), (3, 8, 8, 8), (2, 4097), (70, 2), (9, 20), (5, 12288), (3, 40_000), (2, 130_001), (2, 1)]
    for seed in range(72):
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
        both(one)


@pytest.mark.parametrize(
    "shape",
    [(100_000, 2), (3000, 100), (500, 4096), (64, 16384), (20, 98304), (20, 98308), (4, 10**6), (1, 10**7)],
)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_shapes(shape, dtype):
    """Many small samples, clusters of every size, few large samples; runs agree with one another."""
    one = call(shape, 1, dtypes=[dtype], terms=1, outs=1, radii=True, per_sample=shape[0] > 8)
    first = both(one)
    for _ in range(3):
        again, _ = one.run(metropolis_, device="cuda")
        assert_equal(again, first, True)


def test_bits_do_not_depend_on_the_batch():
    for shape in ((6, 40), (6, 20_000), (6, 200_000)):
        one = call(shape, 2, terms=1, outs=2, energy=True)
        whole, _ = one.run(metropolis_, device="cuda")
        for i in range(6):
            part = call(shape, 2, terms=1, outs=2, energy=True)
            for name in ("state", "cache", "proposal", "fresh", "chain", "key"):
                setattr(part, name, getattr(part, name)[i : i + 1].clone())
            part.terms = [x[i : i + 1].clone() for x in part.terms]
            got, _ = part.run(metropolis_, device="cuda")
            for name, x in got.items():
                assert torch.equal(x, whole[name][i : i + 1]), (shape, name)


@pytest.mark.parametrize("shape", [(4, 256), (4, 20_000), (2, 200_000)])
def test_bits_of_triton(shape):
    pytest.importorskip("triton")
    for dtypes in ([torch.float32], FLOATS):
        one = call(shape, 3, dtypes=dtypes, radii=True, per_sample=True)
        expected = both(one)
        with fastsample.use_backend("triton"):
            got, _ = one.run(metropolis_, device="cuda")
        assert_equal(got, expected, True)


@pytest.mark.parametrize("shape", [(5, 8), (5, 1026), (5, 30_000), (5, 200_000)])
@pytest.mark.parametrize("bad", [-1, 3])
def test_a_step_out_of_range_rejects_with_nan(shape, bad):
    one = call(shape, 4, outs=1, per_sample=True, energy=True)
    expected, _ = one.run(metropolis_)
    wrong = torch.arange(5) % 3 == 1
    one.step[wrong] = bad
    got, _ = one.run(metropolis_, device="cuda")
    for name, x in expected.items():
        assert torch.equal(got[name][~wrong], x[~wrong]), name
    assert torch.equal(got["state"][wrong], one.state[wrong]) and torch.equal(got["cache"][wrong], one.cache[wrong])
    assert got["outs[0]"][wrong].isnan().all() and got["chain"][wrong, 2].isnan().all()
    assert torch.equal(got["chain"][wrong][:, [0, 1, 4]], one.chain[wrong][:, [0, 1, 4]])


@pytest.mark.parametrize("shape", [(8, 64), (4, 20_000), (2, 200_000)])
def test_a_captured_graph_replays_eager(shape):
    """Twenty iterations of one graph, the proposal in place, leave the chains of as many eager calls."""
    one = call(shape, 5, terms=0, outs=1, energy=True)
    table, step = one.table.cuda(), torch.zeros((), dtype=torch.int64, device="cuda")
    key = noise.keys(7, shape[0], "cuda")

    def start():
        return [x.cuda() for x in (one.state, one.cache, one.chain, one.proposal, one.fresh)]

    def iterate(state, cache, chain, proposal, fresh):
        metropolis_(state, cache, [proposal], chain, proposal, fresh, [], table, step, key)
        fresh.copy_(proposal).mul_(0.5)
        step.add_(1).remainder_(3)

    torch.cuda.set_sync_debug_mode("error")
    try:
        eager = start()
        for _ in range(20):
            iterate(*eager)
    finally:
        torch.cuda.set_sync_debug_mode("default")
    replayed, scratch = start(), start()
    step.zero_()
    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        iterate(*scratch)
    torch.cuda.current_stream().wait_stream(side)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        iterate(*replayed)
    step.zero_()
    for _ in range(20):
        graph.replay()
    torch.cuda.synchronize()
    for a, b in zip(replayed, eager, strict=True):
        assert torch.equal(a.nan_to_num(math.pi), b.nan_to_num(math.pi))
    assert (eager[2][:, 4] > one.chain[:, 4].cuda()).any()


@pytest.mark.parametrize("shape", [(8, 64), (4, 16384), (2, 200_000)])
def test_launches(shape):
    """One where a sample fits a cluster (in float32 all devices from sm_90 on hold 16,384 elements), else two."""
    one = call(shape, 6, terms=0, outs=1)
    there = [x.cuda() for x in (one.state, one.cache, one.proposal, one.fresh, one.chain, one.table, one.step)]
    state, cache, proposal, fresh, chain, table, step = there
    key, outs = noise.keys(7, shape[0], "cuda"), [torch.empty_like(state)]

    def run():
        metropolis_(state, cache, outs, chain, proposal, fresh, [], table, step, key)

    run()
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CUDA]) as profile:
        run()
        torch.cuda.synchronize()
    kernels = [event.name for event in profile.events() if "fs::gpu" in event.name]
    held = shape[1] <= 64 or (shape[1] <= 16384 and torch.cuda.get_device_capability() >= (9, 0))
    assert len(kernels) == (1 if held else 2), kernels
