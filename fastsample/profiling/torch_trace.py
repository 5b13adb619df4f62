"""The chrome trace that torch.profiler writes, read back."""

from __future__ import annotations

import gzip
import json
import re
from pathlib import Path
from typing import Any

from .ranges import DOMAIN
from .trace import Event, Trace, Work, outermost

# what waits for a number of the device; on a CPU nothing waits, but the same code would on an accelerator
_READS = {
    f"aten::{name}"
    for name in ("_local_scalar_dense", "item", "is_nonzero", "equal", "nonzero", "masked_select", "unique_dim")
}
_HOST_CALLS = ("cuda_runtime", "cuda_driver")
_WORK = ("kernel", "gpu_memcpy", "gpu_memset")
LAUNCH = re.compile(r"cu(da)?(Graph)?Launch")


def read(path: Path) -> Trace:
    """The trace at ``path``, ``.json`` or ``.json.gz``.  Raises ``ValueError`` if torch.profiler did not write it."""
    packed = path.read_bytes()
    content = json.loads(gzip.decompress(packed) if path.suffix == ".gz" else packed)
    if not isinstance(content, dict) or "traceEvents" not in content:
        raise ValueError(f"path: {path} is no chrome trace")
    return parse(content["traceEvents"])


def parse(events: list[dict[str, Any]]) -> Trace:
    """A trace of its events."""
    groups: dict[str, list[dict[str, Any]]] = {}
    for event in events:
        if event.get("ph") in ("X", "i"):
            groups.setdefault(event.get("cat", ""), []).append(event)
    ops = [_event(e) for e in groups.get("cpu_op", [])]
    calls = {e["args"]["correlation"]: _event(e) for name in _HOST_CALLS for e in groups.get(name, []) if _linked(e)}
    work = [(e, _work(e, calls)) for name in _WORK for e in groups.get(name, [])]
    cuda = bool(calls or work)
    copies = [w for e, w in work if "DtoH" in e["name"]]
    reads = outermost(op for op in ops if op.name in _READS)
    if cuda:  # there a read is a copy to the host
        reads = [
            Event(w.name, *((w.begin, w.end, -1) if w.asked is None else (w.asked.begin, w.asked.end, w.asked.thread)))
            for w in copies
        ]
    return Trace(
        tool="torch.profiler",
        cuda=cuda,
        ranges=[_own(e) for e in groups.get("user_annotation", []) if e["name"].startswith(f"{DOMAIN}:")],
        ops=ops,
        allocations=[
            _event(e, e["args"]["Bytes"])
            for e in groups.get("cpu_instant_event", [])
            if e["name"] == "[memory]" and e["args"]["Bytes"] > 0
        ],
        reads=reads,
        launches=[call for call in calls.values() if LAUNCH.match(call.name)],
        work=[w for _, w in work],
    )


def _event(event: dict[str, Any], size: int = 0) -> Event:
    begin = float(event["ts"])
    return Event(event["name"], begin, begin + float(event.get("dur", 0.0)), _thread(event), size)


def _thread(event: dict[str, Any]) -> int:
    return int(event["tid"]) if str(event["tid"]).lstrip("-").isdigit() else -1


def _own(event: dict[str, Any]) -> Event:
    whole = _event(event)
    return Event(whole.name.partition(":")[2], whole.begin, whole.end, whole.thread)


def _linked(event: dict[str, Any]) -> bool:
    return "correlation" in event.get("args", {})


def _work(event: dict[str, Any], calls: dict[Any, Event]) -> Work:
    begin = float(event["ts"])
    asked = calls.get(event.get("args", {}).get("correlation"))
    return Work(event["name"], begin, begin + float(event.get("dur", 0.0)), asked)
