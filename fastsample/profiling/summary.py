"""A trace in numbers: where the time of a run goes, and what a step makes the host and the device do."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import numpy as np

from .trace import Array, Event, Spans, Trace, nested, outermost, union

PARTS = ("network", "update", "replay", "capture")
TOP = 10
_RUN = re.compile(r"run (?P<solver>.*) (?P<bytes>\d+) bytes")


def summarize(trace: Trace) -> dict[str, Any]:
    """JSON values.

    ``seconds``: ``runs`` in all run ranges, in ``network``, ``update`` and ``replay`` inside them, and ``gaps``, the
    rest: host work between those; ``capture``, wherever it was.  ``counts`` of ranges.  ``each``: microseconds of one.
    ``per_step``: over steps the least, median, most and sum of: ``ops`` (host ops of torch that are inside no other),
    ``launches``, ``host_reads``, ``state_allocations`` (of at least the state's size), all of them outside the network,
    and ``network_launches``, ``network_host_reads`` inside it; None where the tool does not see it.  ``unit``: what a
    step is here: ``"step"``, ``"replay"`` of a recorded run, or ``"update"`` where a drop-in scheduler of diffusers
    makes no runs.  ``device``:
    seconds of its work by the range that asked for it, and idle time inside runs; None without one.

    Raises ``ValueError`` if the trace has no range.
    """
    runs, steps = trace.of("run"), trace.of("step")
    if not trace.ranges:
        raise ValueError("job: no run of fastsample was seen in it; give one that samples")
    within = runs if len(runs) else _span(trace.ranges)
    parts = {name: trace.of(name).inside(within) for name in PARTS}
    units = {"step": steps, "replay": parts["replay"], "update": parts["update"]}
    unit = next((name for name, spans in units.items() if len(spans)), "update")
    gaps = _gaps(within, parts)
    parts["capture"] = trace.of("capture")
    spent = {name: float(spans.lengths.sum()) for name, spans in {"runs": within, **parts}.items()} | {"gaps": gaps}
    return {
        "tool": trace.tool,
        "cuda": trace.cuda,
        "solvers": _solvers(runs, parts["update"]),
        "state_bytes": _state_bytes(runs),
        "counts": {"run": len(runs), "step": len(steps), **{name: len(spans) for name, spans in parts.items()}},
        "seconds": {name: value / 1e6 for name, value in spent.items()},
        "each": {name: _spread(spans.lengths) for name, spans in {"step": steps, **parts}.items() if len(spans)},
        "unit": unit,
        "per_step": _per_step(trace, units[unit], parts["network"], _least(runs)),
        "device": _device(trace, within, parts) if trace.cuda else None,
        "top_ops": None if trace.ops is None else _top_ops(trace.ops, within),
        "top_work": _top((work.name, work.end - work.begin) for work in trace.work) if trace.cuda else None,
    }


def _span(ranges: list[Event]) -> Spans:
    """From the first range of a thread to its last, where nothing says when a run begins."""
    own = [[e for e in ranges if e.thread == thread] for thread in {e.thread for e in ranges}]
    return Spans([Event("run", min(e.begin for e in part), max(e.end for e in part), part[0].thread) for part in own])


def _gaps(within: Spans, parts: dict[str, Spans]) -> float:
    covered = sum(
        union([(e.begin, e.end) for spans in parts.values() for e in spans.events if e.thread == thread])
        for thread in {e.thread for e in within.events}
    )
    return max(0.0, float(within.lengths.sum()) - covered)


def _solvers(runs: Spans, updates: Spans) -> list[str]:
    names = [found["solver"] for e in runs.events if (found := _RUN.fullmatch(e.name))]
    names += [e.name.partition(" ")[2] for e in updates.events if not len(runs)]
    return sorted(set(names))


def _state_bytes(runs: Spans) -> list[int]:
    return sorted({int(found["bytes"]) for e in runs.events if (found := _RUN.fullmatch(e.name))})


def _least(runs: Spans) -> int | None:
    sizes = [size for size in _state_bytes(runs) if size]
    return min(sizes) if sizes else None


def _spread(values: Array | Sequence[int]) -> dict[str, float]:
    values = np.asarray(values, dtype=float)
    found = {"least": values.min(), "median": np.median(values), "most": values.max(), "sum": values.sum()}
    return {name: float(value) for name, value in found.items()}


def _per_step(trace: Trace, steps: Spans, network: Spans, size: int | None) -> dict[str, Any]:
    def count(events: Iterable[Event] | None, *, inside: bool = False) -> dict[str, float] | None:
        if events is None or not len(steps):
            return None
        found = np.zeros(len(steps), dtype=int)
        for event in events:
            step = steps.holder(event)
            if step is not None and (network.holder(event) is not None) == inside:
                found[step] += 1
        return _spread(found.tolist())

    launches = trace.launches if trace.cuda else None
    large = None
    if trace.allocations is not None and size is not None:
        large = [event for event in trace.allocations if event.size >= size]
    return {
        "ops": count(None if trace.ops is None else outermost(trace.ops)),
        "launches": count(launches),
        "host_reads": count(trace.reads),
        "state_allocations": count(large),
        "network_launches": count(launches, inside=True),
        "network_host_reads": count(trace.reads, inside=True),
    }


def _device(trace: Trace, within: Spans, parts: dict[str, Spans]) -> dict[str, float]:
    """Work by the host range that asked for it, and idle time between the first and the last work of each run."""
    holders: dict[str, Callable[[Event | None], int | None]] = {name: spans.holder for name, spans in parts.items()}
    spans: dict[str, list[tuple[float, float]]] = {name: [] for name in (*PARTS, "other")}
    of_run: dict[int, list[tuple[float, float]]] = {}
    for work in trace.work:
        run = within.holder(work.asked)
        if run is None:
            continue
        name = next((name for name, holder in holders.items() if holder(work.asked) is not None), "other")
        spans[name].append((work.begin, work.end))
        of_run.setdefault(run, []).append((work.begin, work.end))
    idle = sum(max(e for _, e in run) - min(b for b, _ in run) - union(run) for run in of_run.values())
    return {**{name: union(found) / 1e6 for name, found in spans.items()}, "idle": idle / 1e6}


def _top_ops(ops: list[Event], within: Spans) -> list[dict[str, Any]]:
    return _top((e.name, own) for e, _, own in nested(ops) if within.holder(e) is not None)


def _top(times: Iterable[tuple[str, float]]) -> list[dict[str, Any]]:
    """Names by the time that is their own, the largest first."""
    sums: dict[str, list[float]] = {}
    for name, time in times:
        sums.setdefault(name, []).append(time)
    order = sorted(sums, key=lambda name: -sum(sums[name]))[:TOP]
    return [{"name": name, "count": len(sums[name]), "microseconds": sum(sums[name])} for name in order]
