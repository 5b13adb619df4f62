"""The SQLite file that ``nsys export`` writes, read back.

Tables exist only where there was something to write; times are nanoseconds.  Rows have no promised order.
"""

from __future__ import annotations

import re
import sqlite3
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from .ranges import DOMAIN
from .torch_trace import LAUNCH
from .trace import Event, Trace, Work

_PUSH_POP, _START_END, _DOMAIN = 59, 60, 75  # NVTX_EVENTS.eventType
_TO_HOST = 2  # copyKind
_COPIES = {1: "HtoD", 2: "DtoH", 8: "DtoD"}
_PROCESS = 0x1000000  # a globalTid is the process times this, plus the thread


def read(path: Path) -> Trace:
    """The trace at ``path``.  Raises ``ValueError`` if it is no export of nsys."""
    if not path.is_file():
        raise ValueError(f"path: the file {path} does not exist")
    with sqlite3.connect(f"{path.absolute().as_uri()}?mode=ro", uri=True) as base:
        base.row_factory = sqlite3.Row
        try:
            tables = {row["name"] for row in base.execute("SELECT name FROM sqlite_master WHERE type = 'table'")}
        except sqlite3.DatabaseError as error:
            raise ValueError(f"path: {path} is no SQLite file ({error})") from error
        if "StringIds" not in tables:
            raise ValueError(f"path: {path} has no table StringIds; export it with nsys export --type=sqlite")
        return _Reader(base, tables).trace()


class _Reader:
    def __init__(self, base: sqlite3.Connection, tables: set[str]) -> None:
        self._base, self._tables = base, tables
        self._strings = {row["id"]: row["value"] for row in self.rows("StringIds")}
        self._calls: dict[tuple[int, int], Event] = {}

    def rows(self, table: str) -> Iterator[Any]:
        """All rows of a table, none if it was not written."""
        if table in self._tables:
            yield from self._base.execute(f"SELECT * FROM {table}")

    def trace(self) -> Trace:
        for row in self.rows("CUPTI_ACTIVITY_KIND_RUNTIME"):
            name = re.sub(r"_v\d+$", "", self._strings.get(row["nameId"], "?"))
            call = Event(name, row["start"] / 1e3, row["end"] / 1e3, row["globalTid"])
            self._calls[row["globalTid"] // _PROCESS, row["correlationId"]] = call
        kernels = [self._work(row, self._kernel(row)) for row in self.rows("CUPTI_ACTIVITY_KIND_KERNEL")]
        graphs = [self._work(row, "graph") for row in self.rows("CUPTI_ACTIVITY_KIND_GRAPH_TRACE")]
        sets = [self._work(row, "Memset") for row in self.rows("CUPTI_ACTIVITY_KIND_MEMSET")]
        copies = [
            (row["copyKind"], self._work(row, f"Memcpy {_COPIES.get(row['copyKind'], row['copyKind'])}"))
            for row in self.rows("CUPTI_ACTIVITY_KIND_MEMCPY")
        ]
        work = [*kernels, *graphs, *sets, *(copy for _, copy in copies)]
        return Trace(
            tool="nsys",
            cuda=bool(self._calls or work),
            ranges=list(self._ranges()),
            reads=[self._read(copy) for kind, copy in copies if kind == _TO_HOST],
            launches=[call for call in self._calls.values() if LAUNCH.match(call.name)],
            work=work,
        )

    def _ranges(self) -> Iterator[Event]:
        events = list(self.rows("NVTX_EVENTS"))
        ours = {self._domain(row) for row in events if row["eventType"] == _DOMAIN and self._text(row) == DOMAIN}
        for row in events:
            if row["eventType"] in (_PUSH_POP, _START_END) and row["end"] is not None and self._domain(row) in ours:
                yield Event(self._text(row), row["start"] / 1e3, row["end"] / 1e3, row["globalTid"])

    def _domain(self, row: Any) -> tuple[int, int]:
        return row["globalTid"] // _PROCESS, _column(row, "domainId", 0)

    def _text(self, row: Any) -> str:
        """The text of a row, which is among the strings if it was registered."""
        text = _column(row, "text", None)
        return str(self._strings.get(_column(row, "textId", None), "") if text is None else text)

    def _kernel(self, row: Any) -> str:
        names = (self._strings.get(_column(row, name, -1)) for name in ("shortName", "demangledName"))
        return next((name for name in names if name), "?")

    def _work(self, row: Any, name: str) -> Work:
        process = _column(row, "globalPid", 0) // _PROCESS
        asked = self._calls.get((process, row["correlationId"]))
        return Work(name, row["start"] / 1e3, row["end"] / 1e3, asked)

    @staticmethod
    def _read(copy: Work) -> Event:
        if copy.asked is None:
            return Event(copy.name, copy.begin, copy.end, -1)
        return Event(copy.name, copy.asked.begin, copy.asked.end, copy.asked.thread)


def _column(row: Any, name: str, default: Any) -> Any:
    """A column that not every version of nsys writes."""
    value = row[name] if name in row.keys() else None  # noqa: SIM118  (a Row holds values, not names)
    return default if value is None else value
