"""``update_`` on a CUDA device: the bits of the CPU, of Triton and of captured graphs."""

from __future__ import annotations

import math

import pytest
import torch

import fastsample
from fastsample import native, noise, ops, row
from tests.rows import bound, model64, random_call

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device"),
]


@pytest.fixture(scope="module", autouse=True)
def compiled():
    if not native.load_for("cuda") or native.loaded_from("cuda") == "triton":
        pytest.fail(f"the CUDA library does not load: {native.why_not('cuda')}")


def to(x, device):
    """A copy with the same strides on another device."""
    return torch.empty_strided(x.shape, x.stride(), dtype=x.dtype, device=device).copy_(x)


def run(call, device):
    outs = [torch.full(call.shape, math.nan, dtype=t, device=device) for t in call.out_dtypes]
    key = None if call.key is None else call.key.to(device)
    terms, given = [to(x, device) for x in call.terms], [to(x, device) for x in call.noise]
    ops.update_(outs, terms, call.table.to(device), call.step.to(device), key, given)
    return [x.cpu() for x in outs]


@pytest.mark.parametrize("dtypes", [None, [torch.float32], [torch.bfloat16], [torch.float16], [torch.float64]])
@pytest.mark.parametrize("contiguous", [True, False])
def test_bits_of_the_cpu(dtypes, contiguous):
    for seed in range(90):
        call = random_call(seed, dtypes=dtypes, contiguous=contiguous)
        exact = not (call.wide and call.key is not None)  # float64 normals go through libm
        for a, b, value, size in zip(run(call, "cuda"), run(call, "cpu"), *model64(call), strict=True):
            assert not exact or torch.equal(a, b), seed
            assert ((a.double() - value).abs() <= bound(call, size, value, a.dtype)).all(), seed


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_bits_of_triton(dtype):
    pytest.importorskip("triton")
    for seed in range(45):
        call = random_call(seed, dtypes=[dtype], explicit=False)
        with fastsample.use_backend("triton"):
            expected = run(call, "cuda")
        for a, b in zip(run(call, "cuda"), expected, strict=True):
            assert torch.equal(a, b), seed


def loop_tensors(shape, dtype, per_sample):
    """A table of four rows x <- a x + b y + g xi on the device, with keys and a step."""
    table = torch.from_numpy(row.blank(4))
    table[:, row.w(0, 0)] = torch.tensor([0.9, 0.8, 0.7, 0.6], dtype=torch.float64)
    table[:, row.w(0, 1)], table[:, row.g(0, 0)] = 0.25, 0.5
    table[:, row.DRAW] = torch.arange(1, 5)
    g = torch.Generator().manual_seed(1)
    x, y = (torch.randn(shape, generator=g).to(dtype).cuda() for _ in range(2))
    step = (
        torch.arange(shape[0], device="cuda") % 4 if per_sample else torch.zeros((), dtype=torch.int64, device="cuda")
    )
    return x, y, table.cuda(), step, noise.keys(5, shape[0], "cuda")


@pytest.mark.parametrize("shape", [(4, 4, 32, 32), (1000, 2), (3, 1003)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("per_sample", [False, True])
def test_a_captured_graph_replays_eager(shape, dtype, per_sample):
    x, y, table, step, key = loop_tensors(shape, dtype, per_sample)
    eager, steps = x.clone(), step.clone()
    for _ in range(4):
        ops.update_([eager], [eager, y], table, steps, key)
        steps.add_(1).remainder_(4)
    state = x.clone()
    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):  # warm up off the capture
        ops.update_([torch.empty_like(x)], [state, y], table, step, key)
    torch.cuda.current_stream().wait_stream(side)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        ops.update_([state], [state, y], table, step, key)
        step.add_(1).remainder_(4)
    for _ in range(4):
        graph.replay()
    torch.cuda.synchronize()
    assert torch.equal(state, eager)


@pytest.mark.parametrize("backend", ["native", "triton"])
@pytest.mark.parametrize("shape", [(4, 4, 32, 32), (1000, 2), (3, 1003), (1, 1 << 22)])
@pytest.mark.parametrize("time_dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("keyed", [True, False])
def test_a_captured_graph_walks_through_the_table_by_itself(backend, shape, time_dtype, keyed):
    """One launch in the graph, no other between replays: with step = clock[0] every replay is the next row."""
    if backend == "triton":
        pytest.importorskip("triton")
    x, y, table, _, key = loop_tensors(shape, torch.float32, False)
    key = key if keyed else None
    table[:, row.TIME] = torch.tensor([0.1, -2.5, 1e-9, 999.0], dtype=torch.float64)
    eager, expected = x.clone(), []
    for i in range(4):
        ops.update_([eager], [eager, y], table, torch.tensor(i, device="cuda"), key)
        expected.append(eager.clone())
    state, clock = x.clone(), torch.zeros(2, dtype=torch.int64, device="cuda")
    times = torch.zeros(shape[0], dtype=time_dtype, device="cuda")
    with fastsample.use_backend(backend):
        side = torch.cuda.Stream()
        side.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(side):  # warm up off the capture
            ops.update_([state], [state, y], table, clock[0], key, time=times, clock=clock)
        torch.cuda.current_stream().wait_stream(side)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            ops.update_([state], [state, y], table, clock[0], key, time=times, clock=clock)
    for _ in range(2):  # the same graph serves another run
        clock.zero_()
        state.copy_(x)
        for i in range(4):
            graph.replay()
            assert torch.equal(state, expected[i])
            assert torch.equal(times, table[i, row.TIME].to(time_dtype).expand(shape[0]))
            assert clock.tolist() == [i + 1, 0]
        clock.zero_()
        state.copy_(x)
        for _ in range(4):  # and with no host read in between
            graph.replay()
        assert torch.equal(state, expected[3])
        assert clock.tolist() == [4, 0]
    graph.replay()
    assert state.isnan().all()
    assert times.isnan().all()
    assert clock.tolist() == [5, 0]


@pytest.mark.parametrize("backend", ["native", "triton"])
def test_rows_per_sample_and_empty_states_move_the_clock(backend):
    x, y, table, step, key = loop_tensors((300, 2), torch.float32, True)
    table[:, row.TIME] = torch.tensor([0.1, -2.5, 1e-9, 999.0], dtype=torch.float64)
    clock, times = torch.zeros(2, dtype=torch.int64, device="cuda"), torch.zeros(300, device="cuda")
    with fastsample.use_backend(backend):
        ops.update_([x], [x, y], table, step, key, time=times, clock=clock)
        assert torch.equal(times, table[step, row.TIME].float())
        for empty in (x[:0], x[:, :0]):
            few = torch.full(empty.shape[:1], -1.0, device="cuda")
            ops.update_([empty], [empty], table, clock[0], time=few, clock=clock)
            assert torch.equal(few, table[clock[0] - 1, row.TIME].float().expand(len(few)))
    assert clock.tolist() == [3, 0]


@pytest.mark.parametrize("shape", [(300, 2), (5, 1024), (5, 1026)])
@pytest.mark.parametrize("bad", [-1, 4])
def test_a_step_out_of_range_gives_nan_in_that_sample_only(shape, bad):
    x, y, table, step, key = loop_tensors(shape, torch.float32, True)
    expected, got = torch.empty_like(x), torch.zeros_like(x)
    ops.update_([expected], [x, y], table, step, key)
    wrong = torch.arange(shape[0], device="cuda") % 3 == 1
    ops.update_([got], [x, y], table, torch.where(wrong, bad, step), key)
    assert got[wrong].isnan().all()
    assert torch.equal(got[~wrong], expected[~wrong])


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_bits_do_not_depend_on_the_batch(dtype):
    x, y, table, step, key = loop_tensors((6, 4, 16, 16), dtype, True)
    whole = torch.empty_like(x)
    ops.update_([whole], [x, y], table, step, key)
    for i in range(6):
        one = torch.empty_like(x[i : i + 1])
        ops.update_([one], [x[i : i + 1], y[i : i + 1]], table, step[i : i + 1], key[i : i + 1])
        assert torch.equal(one, whole[i : i + 1])


def test_the_current_stream_is_used():
    """Work on a busy side stream is seen only in its order."""
    x, y, table, step, key = loop_tensors((4, 1 << 20), torch.float32, False)
    expected, got = torch.empty_like(x), torch.zeros_like(x)
    ops.update_([expected], [x, y], table, step, key)
    late = torch.zeros_like(x)
    torch.cuda.synchronize()
    side = torch.cuda.Stream()
    with torch.cuda.stream(side):
        torch.cuda._sleep(50_000_000)
        late.copy_(x)
        ops.update_([got], [late, y], table, step, key)
    side.synchronize()
    assert torch.equal(got, expected)


@pytest.mark.skipif(torch.cuda.device_count() < 2, reason="one CUDA device")
def test_second_device():
    x, y, table, step, key = loop_tensors((4, 1024), torch.float32, False)
    expected = torch.empty_like(x)
    ops.update_([expected], [x, y], table, step, key)
    there = [t.to("cuda:1") for t in (x, y, table, step, key)]
    got = torch.empty_like(there[0])
    ops.update_([got], there[:2], *there[2:])
    assert torch.equal(got.cpu(), expected.cpu())


def test_a_large_tensor():
    """2^31 + 8 elements: offsets beyond 32 bits, bf16."""
    if torch.cuda.mem_get_info()[0] < 12 * 2**30:
        pytest.skip("less than 12 GiB of free memory on the device")
    n = 2**31 + 8
    x = torch.ones(1, n, dtype=torch.bfloat16, device="cuda")
    _, _, table, step, _ = loop_tensors((1, 8), torch.bfloat16, False)
    ops.update_([x], [x, x], table, step)
    assert (x[0, :: 2**20] == x[0, 0]).all()
    assert x[0, -1] == x[0, 0] == torch.tensor(1.15, dtype=torch.bfloat16, device="cuda")
