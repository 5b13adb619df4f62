"""What a profiler saw, whichever it was: ranges, host ops, reads, launches, device work.  Times in microseconds."""

from __future__ import annotations

import gzip
import json
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[np.float64]


@dataclass(frozen=True)
class Event:
    """Something on the host from ``begin`` to ``end`` on one thread; ``size``: bytes where it has any."""

    name: str
    begin: float
    end: float
    thread: int
    size: int = 0


@dataclass(frozen=True)
class Work:
    """Something on the device; ``asked``: the host call that asked for it, None if that is unknown."""

    name: str
    begin: float
    end: float
    asked: Event | None


@dataclass
class Trace:
    """One trace.

    ``ranges``: those of the domain ``fastsample``, named without it.  ``ops``: host ops of torch, outermost and inner
    ones, None if the tool does not see them; ``allocations``: of tensors, likewise.  ``reads``: what makes the host
    wait for a number of the device, each once.  ``launches``: host calls that start kernels or graphs; ``work``: what
    the device did; ``cuda``: whether there was a device.
    """

    tool: str
    cuda: bool
    ranges: list[Event] = field(default_factory=list)
    ops: list[Event] | None = None
    allocations: list[Event] | None = None
    reads: list[Event] = field(default_factory=list)
    launches: list[Event] = field(default_factory=list)
    work: list[Work] = field(default_factory=list)

    def of(self, kind: str) -> Spans:
        """The ranges whose first word is ``kind``."""
        return Spans([r for r in self.ranges if r.name.partition(" ")[0] == kind])


class Spans:
    """Ranges of one kind, which do not nest; says which of them holds an event."""

    def __init__(self, events: Iterable[Event]) -> None:
        self.events = sorted(events, key=lambda e: e.begin)
        threads: dict[int, list[int]] = {}
        for number, event in enumerate(self.events):
            threads.setdefault(event.thread, []).append(number)
        self._threads = {
            thread: (np.array(numbers), np.array([self.events[n].begin for n in numbers]))
            for thread, numbers in threads.items()
        }

    def __len__(self) -> int:
        return len(self.events)

    @property
    def lengths(self) -> Array:
        """Microseconds of each."""
        return np.array([e.end - e.begin for e in self.events])

    def holder(self, event: Event | None) -> int | None:
        """Number of the range in which an event begins, on its thread."""
        if event is None or event.thread not in self._threads:
            return None
        numbers, begins = self._threads[event.thread]
        place = int(np.searchsorted(begins, event.begin, side="right")) - 1
        if place < 0 or event.begin >= self.events[numbers[place]].end:
            return None
        return int(numbers[place])

    def inside(self, others: Spans) -> Spans:
        """Those that begin in one of ``others``."""
        return Spans([e for e in self.events if others.holder(e) is not None])


def outermost(events: Iterable[Event]) -> list[Event]:
    """Events that lie in no other one of their thread."""
    return [event for event, depth, _ in nested(events) if depth == 0]


def nested(events: Iterable[Event]) -> Iterator[tuple[Event, int, float]]:
    """Each event with how many hold it, and the time that is its own and not that of events in it."""
    threads: dict[int, list[Event]] = {}
    for event in events:
        threads.setdefault(event.thread, []).append(event)
    for mine in threads.values():
        mine.sort(key=lambda e: (e.begin, -e.end))
        own = [e.end - e.begin for e in mine]
        depth, open_ = [0] * len(mine), list[int]()
        for n, event in enumerate(mine):
            while open_ and mine[open_[-1]].end <= event.begin:
                open_.pop()
            depth[n] = len(open_)
            if open_:
                own[open_[-1]] -= event.end - event.begin
            open_.append(n)
        yield from zip(mine, depth, own, strict=True)


def union(spans: Sequence[tuple[float, float]]) -> float:
    """Length of the union of intervals."""
    total, until = 0.0, -np.inf
    for begin, end in sorted(spans):
        total += max(0.0, end - max(begin, until))
        until = max(until, end)
    return float(total)


def write_chrome(trace: Trace, path: Path) -> None:
    """Write a trace for chrome://tracing or ui.perfetto.dev, gzipped."""
    events: list[dict[str, object]] = []

    def add(group: str, line: int | str, name: str, begin: float, end: float) -> None:
        events.append({"ph": "X", "pid": group, "tid": line, "name": name, "ts": begin, "dur": end - begin})

    for event in trace.ranges:
        add("host", event.thread, f"fastsample:{event.name}", event.begin, event.end)
    for event in [*trace.launches, *trace.reads, *(trace.ops or [])]:
        add("host", event.thread, event.name, event.begin, event.end)
    for work in trace.work:
        add("device", "work", work.name, work.begin, work.end)
    with gzip.open(path, "wt") as file:
        json.dump({"traceEvents": events, "displayTimeUnit": "ms"}, file)
