"""The traces that ``fastsample profile`` reads: events of torch.profiler on a GPU and exports of nsys, made by hand."""

from __future__ import annotations

import pytest

from fastsample.profiling import nsys_trace, table, torch_trace
from fastsample.profiling.summary import summarize
from fastsample.profiling.trace import Event, Spans, Trace, nested, union
from tests.nsys_file import write_export


def same(count):
    """The summary of a number that is the same in every step."""
    return lambda steps: {"least": count, "median": count, "most": count, "sum": count * steps}


# --- the trace


def test_spans_nesting_and_union():
    spans = Spans([Event("a", 10, 20, 1), Event("b", 20, 30, 1), Event("c", 0, 100, 2)])
    assert spans.holder(Event("x", 20, 21, 1)) == spans.events.index(Event("b", 20, 30, 1))
    assert spans.holder(Event("x", 5, 21, 1)) is None  # it begins outside
    assert spans.holder(Event("x", 30, 31, 1)) is None
    assert spans.events[spans.holder(Event("x", 30, 31, 2))].name == "c"
    own = {e.name: (depth, time) for e, depth, time in nested([Event("a", 0, 10, 1), Event("b", 2, 5, 1)])}
    assert own == {"a": (0, 7), "b": (1, 3)}
    assert union([(0, 2), (1, 3), (5, 6)]) == 4


def test_cuda_events_of_torch():
    """The event kinds that kineto writes on a GPU: launches by correlation, reads are copies to the host."""
    host = {"ph": "X", "pid": 1, "tid": 7}

    def own(name, begin, length):
        return {**host, "cat": "user_annotation", "name": f"fastsample:{name}", "ts": begin, "dur": length, "args": {}}

    def call(name, begin, link, kind="cuda_runtime"):
        return {**host, "cat": kind, "name": name, "ts": begin, "dur": 2, "args": {"correlation": link}}

    def work(kind, name, begin, length, link):
        place = {"ph": "X", "pid": 0, "tid": 3, "cat": kind, "name": name}
        return {**place, "ts": begin, "dur": length, "args": {"correlation": link}}

    events = [
        own("run ddim 64 bytes", 0, 100),
        own("step ddim", 0, 90),
        own("network", 10, 30),
        own("update", 50, 10),
        call("cudaLaunchKernel", 12, 1),
        call("cuLaunchKernelEx", 52, 2, "cuda_driver"),
        call("cudaMemcpyAsync", 70, 3),
        call("cudaStreamSynchronize", 72, 4),
        work("kernel", "gemm", 20, 40, 1),
        work("kernel", "update_kernel", 60, 5, 2),
        work("gpu_memcpy", "Memcpy DtoH (Device -> Pageable)", 75, 1, 3),
        {**host, "cat": "cpu_op", "name": "aten::item", "ts": 69, "dur": 9, "args": {}},
    ]
    found = summarize(torch_trace.parse(events))
    step = found["per_step"]
    assert (step["launches"]["sum"], step["network_launches"]["sum"], step["host_reads"]["sum"]) == (1, 1, 1)
    device = {"network": 40e-6, "update": 5e-6, "replay": 0.0, "capture": 0.0, "other": 1e-6, "idle": 10e-6}
    assert found["device"] == pytest.approx(device)
    assert found["seconds"]["gaps"] == pytest.approx(60e-6)
    assert found["top_work"][0]["name"] == "gemm"
    assert "update" in table.text(found)


def test_no_run_in_a_trace():
    with pytest.raises(ValueError, match="job: no run of fastsample was seen"):
        summarize(Trace("nsys", False))


def test_not_a_trace(tmp_path):
    (tmp_path / "x.json").write_text("[]")
    with pytest.raises(ValueError, match="is no chrome trace"):
        torch_trace.read(tmp_path / "x.json")


# --- nsys


@pytest.mark.parametrize("old", [False, True])
def test_nsys_export(tmp_path, old):
    """Two runs of two steps; columns and registered strings as newer and older versions have them."""
    path = tmp_path / "trace.sqlite"
    write_export(path, old=old)
    found = summarize(nsys_trace.read(path))
    assert found["tool"] == "nsys" and found["solvers"] == ["ddim"] and found["state_bytes"] == [4096]
    counts = {"run": 2, "step": 4, "network": 4, "update": 4, "replay": 2, "capture": 0}
    assert found["counts"] == counts
    step = found["per_step"]
    assert step["launches"] == {"least": 1, "median": 1.5, "most": 2, "sum": 6}  # a replay in one step of each run
    assert step["network_launches"] == same(3)(4)
    assert step["host_reads"] == {"least": 0, "median": 0.5, "most": 1, "sum": 2}
    assert step["ops"] is None and step["state_allocations"] is None and found["top_ops"] is None
    assert found["seconds"]["network"] == pytest.approx(4 * 20e-6)
    assert found["seconds"]["update"] == pytest.approx(4 * 5e-6)
    assert found["seconds"]["runs"] == pytest.approx(2 * 100e-6)
    assert found["device"]["network"] == pytest.approx(4 * 3 * 4e-6)
    assert found["device"]["update"] == pytest.approx(4 * 2e-6)
    assert found["device"]["replay"] == pytest.approx(2 * 6e-6)
    assert found["top_work"][0] == {"name": "network_kernel", "count": 12, "microseconds": pytest.approx(48.0)}
    assert "not seen" in table.text(found)


def test_no_export(tmp_path):
    with pytest.raises(ValueError, match="does not exist"):
        nsys_trace.read(tmp_path / "no.sqlite")
    (tmp_path / "text.sqlite").write_text("no database, but long enough to be one" * 20)
    with pytest.raises(ValueError, match="no SQLite file"):
        nsys_trace.read(tmp_path / "text.sqlite")
