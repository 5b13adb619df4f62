"""``update_`` with ``time`` and ``clock``: what lets a captured step be replayed with nothing else in between."""

from __future__ import annotations

import math

import pytest
import torch

from fastsample import native, noise, row
from fastsample.ops import update_, use_backend
from fastsample.ops.arguments import check
from tests.rows import random_call

ZERO = torch.zeros((), dtype=torch.int64)
TIMES = (0.1, -2.5, 1e-9, 999.0)


@pytest.fixture(params=["native", "reference"])
def backend(request):
    if request.param == "native" and not native.load_for("cpu"):
        pytest.skip(f"no native CPU library: {native.why_not('cpu')}")
    with use_backend(request.param):
        yield request.param


def make_table():
    rows = [row.make_row(outputs=[{0: 0.5 + i, "xi0": 0.25}], draws=[i], time=t) for i, t in enumerate(TIMES)]
    return torch.stack([torch.from_numpy(x) for x in rows])


def make_clock(start=0):
    return torch.tensor([start, 0])


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("keyed", [True, False])
@pytest.mark.parametrize("shape", [(3, 5), (1, 7), (2, 40_000), (70, 3, 4)])
def test_calls_in_a_row_walk_through_the_table(backend, dtype, keyed, shape):
    """With step = clock[0]: the bits of one call per row, the time of each row, and one more on the clock."""
    table, clock = make_table(), make_clock()
    x = torch.randn(shape, generator=torch.Generator().manual_seed(0))
    expected, times, step = x.clone(), torch.full(shape[:1], -1.0, dtype=dtype), clock[0]
    key = noise.keys(4, shape[0]) if keyed else None
    for i, t in enumerate(TIMES):
        update_([expected], [expected], table, ZERO + i, key)
        update_([x], [x], table, step, key, time=times, clock=clock)
        assert torch.equal(x, expected)
        assert torch.equal(times, torch.full(shape[:1], t, dtype=torch.float64).to(dtype))
        assert clock.tolist() == [i + 1, 0]
    before = x.clone()
    with pytest.raises(ValueError, match="^step: got .*4.*, allowed are 0..3$"):
        update_([x], [x], table, step, key, time=times, clock=clock)
    assert torch.equal(x, before)
    assert clock.tolist() == [4, 0]
    assert times.tolist() == [999.0] * shape[0]


def test_rows_per_sample_with_their_times_while_the_clock_goes_on(backend):
    """As after thresholding: the table has a row per sample, the step counts samples, and the clock counts calls."""
    x, table, times = torch.ones(4, 6), make_table(), torch.zeros(4)
    for clock in (make_clock(5), make_clock(-1)):
        before = int(clock[0])
        update_([x], [x], table, torch.tensor([3, 0, 2, 1]), time=times, clock=clock)
        assert times.tolist() == torch.tensor([999.0, 0.1, 1e-9, -2.5]).tolist()
        assert clock.tolist() == [before + 1, 0]
    update_([x[:1]], [x[:1]], table, clock[:1], time=times[:1], clock=clock)  # (B,) with one sample
    assert times[0] == torch.tensor(0.1)
    assert clock.tolist() == [1, 0]


@pytest.mark.parametrize("seed", range(0, 60, 3))
def test_time_and_clock_change_no_bit_of_the_outputs(backend, seed):
    call = random_call(seed)
    runs = []
    for extra in ({}, {"time": torch.zeros(call.shape[0]), "clock": make_clock()}, {"clock": make_clock()}):
        outs = [torch.full(call.shape, math.nan, dtype=t) for t in call.out_dtypes]
        update_(outs, call.terms, call.table, call.step, call.key, call.noise, **extra)
        assert extra.get("clock", make_clock(1)).tolist() == [1, 0]
        runs.append(outs)
    for other in runs[1:]:
        assert all(torch.equal(a, b) for a, b in zip(runs[0], other, strict=True))


@pytest.mark.parametrize("shape", [(1, 0), (0, 3), (2, 0, 4)])
def test_empty_states_are_timed_and_counted(backend, shape):
    table, clock, times = make_table(), make_clock(2), torch.full(shape[:1], -1.0)
    update_([torch.zeros(shape)], [], table, clock[0], time=times, clock=clock)
    assert times.tolist() == [float(torch.tensor(TIMES[2]))] * shape[0]
    assert clock.tolist() == [3, 0]


def test_either_alone(backend):
    x, table, times, clock = torch.ones(2, 3), make_table(), torch.zeros(2), make_clock(1)
    update_([x], [x], table, ZERO + 3, time=times)
    assert times.tolist() == [999.0, 999.0]
    update_([x], [x], table, clock[0], clock=clock)
    assert clock.tolist() == [2, 0]


def test_versions_count_what_is_written():
    x, times, clock = torch.ones(2, 3), torch.zeros(2), make_clock()
    for i in range(2):
        update_([x], [x], make_table(), ZERO, time=times, clock=clock)
        assert (x._version, times._version, clock._version) == (i + 1, i + 1, i + 1)
    update_([x], [x], make_table(), ZERO, clock=clock)
    assert (x._version, times._version, clock._version) == (3, 2, 3)


def _bad(**changes):
    memory, both = torch.zeros(10), torch.zeros(8, dtype=torch.int64)
    x, keys = memory[:6].view(2, 3), noise.keys(0, 2)
    cases = {
        "time of another shape": ({"time": torch.zeros(3)}, ValueError, r"time: got shape \(3,\)"),
        "time of two dimensions": ({"time": torch.zeros(2, 1)}, ValueError, r"time: got shape \(2, 1\)"),
        "time of one number": ({"time": torch.zeros(())}, ValueError, r"time: got shape \(\)"),
        "time with gaps": ({"time": torch.zeros(4)[::2]}, ValueError, "time: .* allowed is contiguous"),
        "time of float16": ({"time": torch.zeros(2).half()}, TypeError, "time: got torch.float16"),
        "time of int64": ({"time": torch.zeros(2).long()}, TypeError, "time: got torch.int64"),
        "time in outs": ({"time": memory[5:7]}, ValueError, r"time: overlaps the memory of outs\[0\]"),
        "time in terms": (
            {"terms": [memory[4:].view(2, 3)], "time": memory[8:], "outs": [torch.zeros(2, 3)]},
            ValueError,
            r"time: overlaps the memory of terms\[0\]",
        ),
        "time in table": ({"time": "table"}, ValueError, "time: overlaps the memory of table"),
        "time in step": ({"step": both[:2], "time": both[1:3].view(torch.float64)}, ValueError, "time: .* of step"),
        "time in key": ({"key": keys, "time": keys.view(torch.float64)[0]}, ValueError, "time: .* of key"),
        "clock of another shape": ({"clock": torch.zeros(3, dtype=torch.int64)}, ValueError, r"clock: got shape \(3,"),
        "clock of one number": ({"clock": ZERO.clone()}, ValueError, r"clock: got shape \(\)"),
        "clock with gaps": ({"clock": both[:4:2]}, ValueError, "clock: .* allowed is contiguous"),
        "clock of int32": ({"clock": torch.zeros(2, dtype=torch.int32)}, TypeError, "clock: got torch.int32"),
        "clock in time": ({"clock": both[:2], "time": both[1:3].view(torch.float64)}, ValueError, "clock: .* of time"),
        "clock in outs": ({"clock": memory[4:8].view(torch.int64)}, ValueError, r"clock: .* of outs\[0\]"),
        "clock in key": ({"key": keys, "clock": keys.view(torch.int64)[1]}, ValueError, "clock: .* of key"),
        "step in the scratch": ({"clock": both[:2], "step": both[1]}, ValueError, "clock: .* of step; it may be"),
        "step of the whole clock": ({"clock": both[:2], "step": both[:2]}, ValueError, "clock: .* of step; it may be"),
        "a clock inside steps": ({"clock": both[1:3], "step": both[:2]}, ValueError, "clock: .* of step; it may be"),
    }
    return memory, both, x, cases


@pytest.mark.parametrize("case", _bad()[3])
def test_bad_arguments_are_named_before_anything_is_written(backend, case):
    memory, both, x, cases = _bad()
    changes, error, message = cases[case]
    arguments = {"outs": [x], "terms": [x], "table": make_table() + 0, "step": ZERO, **changes}
    if arguments.get("time") == "table":
        arguments["time"] = arguments["table"].view(-1)[:2]
    with pytest.raises(error, match=message):
        update_(**arguments)
    assert (memory == 0).all()
    assert (both == 0).all()


@pytest.mark.parametrize("name", ["time", "clock"])
def test_another_device_is_refused(name):
    x, there = torch.zeros(2, 3), {"time": torch.zeros(2, device="meta"), "clock": make_clock().to("meta")}[name]
    with pytest.raises(ValueError, match=f"^{name}: got device meta, allowed is that of outs"):
        check([x], [x], make_table(), ZERO, None, [], **{name: there})


def test_opcheck():
    x, table = torch.randn(2, 6), make_table()
    for step in (ZERO, torch.tensor([0, 2])):
        arguments = ([x.clone()], [x], table, step, noise.keys(0, 2), [], torch.zeros(2), make_clock())
        torch.library.opcheck(torch.ops.fastsample.advance_, arguments)
    clock = make_clock()  # the step may be a part of it
    torch.library.opcheck(torch.ops.fastsample.advance_, ([x], [x], table, clock[0], None, [], None, clock))


def test_a_compiled_loop_advances_the_clock():
    from torch._dynamo.utils import counters

    torch._dynamo.reset()
    counters.clear()

    def loop(x, table, key, times, clock):
        seen = []
        for _ in range(3):
            torch.ops.fastsample.advance_([x], [x], table, clock[0], key, [], times, clock)
            seen.append(times.clone())
        return x * 1, torch.stack(seen)

    compiled = torch.compile(loop, fullgraph=True, backend="aot_eager")
    for seed in range(2):
        x, table, key = torch.randn(2, 8), make_table(), noise.keys(seed, 2)
        results = []
        for run in (loop, compiled):
            times, clock = torch.zeros(2), make_clock()
            results.append((*run(x.clone(), table, key, times, clock), times, clock))
        for a, b in zip(*results, strict=True):
            assert torch.equal(a, b)
        assert results[1][3].tolist() == [3, 0]
        assert results[1][1][:, 0].tolist() == torch.tensor(TIMES[:3]).tolist()
    assert counters["stats"]["unique_graphs"] == 1
