"""Reading results: the one CSV schema, the JSON beside it, and points, which are rows of one job side by side."""

from __future__ import annotations

import csv
import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from .harness import COLUMNS, Record

TYPES: dict[str, Any] = {"x_value": int, "y_value_50": float, "y_value_20": float, "y_value_80": float}
FACTS = ("timestamp", "cpu", "threads", "torch", "fastsample", "load_average_at_start", "must_reach")
PROMISE = {"what", "figure", "wanted", "verdict"}
VERDICTS = ("reached", "NOT reached", "not measured")
SAME_JOB = ("touched_bytes", "nodes", "threads", "scheduler", "config")  # say nothing that tells points apart
SECONDS = {"s": 1.0, "ms": 1e-3, "us": 1e-6, "ns": 1e-9}


def read_csv(path: Path) -> list[Record]:
    """The records of a file.  Raises ``ValueError`` that names file, line and column where they break the schema."""
    with path.open(newline="") as file:
        reader = csv.DictReader(file)
        if tuple(reader.fieldnames or ()) != COLUMNS:
            raise ValueError(f"{path.name}: got columns {reader.fieldnames}, allowed are {', '.join(COLUMNS)}")
        return [_record(row, f"{path.name}, line {number}") for number, row in enumerate(reader, 2)]


def _record(row: dict[str, Any], where: str) -> Record:
    if None in row or None in row.values():
        raise ValueError(f"{where}: got {sum(v is not None for v in row.values())} cells, allowed are {len(COLUMNS)}")
    values = {}
    for column, text in row.items():
        try:
            values[column] = TYPES.get(column, str)(text)
        except ValueError as error:
            raise ValueError(f"{where}, {column}: got {text!r}, need a number") from error
    record = Record(**values)
    if not record.y_value_20 <= record.y_value_50 <= record.y_value_80:
        raise ValueError(f"{where}: the median {record.y_value_50} is not between its 20 % and 80 % quantiles")
    if not isinstance(json.loads(record.extra_benchmark_config_str), dict):
        raise ValueError(f"{where}, extra_benchmark_config_str: need a JSON object")
    return record


@dataclass(frozen=True)
class Results:
    """What one run of a member has left: ``MEMBER-DEVICE.csv`` and ``.json``."""

    path: Path  # of the CSV
    records: list[Record]
    facts: dict[str, Any]

    @property
    def member(self) -> str:
        return self.path.stem.split("-")[0]

    @property
    def device(self) -> str:
        return self.path.stem.split("-")[1]


def load(folder: Path) -> list[Results]:
    """All results of a folder, by name.  Raises ``ValueError`` where a file breaks the schema."""
    found = []
    for path in sorted(folder.glob("*-*.csv")):
        if "." in path.stem:  # such as quality-cpu.partial, from which an interrupted run goes on
            continue
        if not path.with_suffix(".json").exists():
            raise ValueError(f"{path.name}: {path.stem}.json is not there")
        facts = json.loads(path.with_suffix(".json").read_text())
        missing = [name for name in FACTS if name not in facts]
        if missing:
            raise ValueError(f"{path.stem}.json: {', '.join(missing)} missing")
        for item in facts["must_reach"]:
            if not item.keys() >= PROMISE or item["verdict"] not in VERDICTS:
                raise ValueError(f"{path.stem}.json, must_reach: got {item}, need {', '.join(sorted(PROMISE))}")
        found.append(Results(path, read_csv(path), facts))
    return found


@dataclass(frozen=True)
class Point:
    """One job: per program and metric its record."""

    label: str
    rows: dict[str, dict[str, Record]]

    def value(self, program: str, metric: str = "time") -> tuple[float, float, float] | None:
        """Median, 20 %, 80 %, times in seconds; None if it was not measured."""
        r = self.rows.get(program, {}).get(metric)
        if r is None:
            return None
        unit = SECONDS.get(r.metric_unit, 1.0)
        return unit * r.y_value_50, unit * r.y_value_20, unit * r.y_value_80

    def ratio(self, peer: str, ours: str, metric: str = "time") -> tuple[float, float, float] | None:
        """A peer over ours: the ratio measured in the same rounds, else the quotient of medians."""
        for program, name in ((peer, f"{metric}_over_{ours}"), (ours, f"speedup_over_{peer}")):
            r = self.rows.get(program, {}).get(name)
            if r is not None and (metric == "time" or program == peer):
                return r.y_value_50, r.y_value_20, r.y_value_80
        a, b = self.value(peer, metric), self.value(ours, metric)
        return None if a is None or b is None or 0 in b else (a[0] / b[0], a[1] / b[2], a[2] / b[1])


def points(results: Results) -> list[Point]:
    """Rows of equal job side by side, labelled by what varies in the file."""
    found: dict[str, dict[str, dict[str, Record]]] = {}
    for record, label in zip(results.records, labels(results.records, results.member), strict=True):
        found.setdefault(label, {}).setdefault(record.kernel_provider, {})[record.metric_name] = record
    return [Point(label, rows) for label, rows in found.items()]


def labels(records: Sequence[Record], member: str) -> list[str]:
    """What job each record belongs to, in words: kernel, shape, and whatever is not the same for all records."""
    parts = [_parts(r, member) for r in records]
    names = list(dict.fromkeys(name for part in parts for name in part))
    always = ("kernel", "shape")
    varying = [n for n in names if n in always or len({str(part.get(n)) for part in parts}) > 1]
    return [", ".join(_text(n, part[n]) for n in varying if part.get(n) not in (None, "")) for part in parts]


def _parts(r: Record, member: str) -> dict[str, Any]:
    config = json.loads(r.extra_benchmark_config_str)
    kernel = r.kernel_name.removeprefix("scheduler ").removeprefix(f"{member} ")
    parts = {"kernel": "" if kernel == member else kernel, "mode": r.kernel_operation_mode}
    for name, value in config.items():
        said = isinstance(value, str) and value in parts.values()  # such as the solver that the kernel is named after
        if name not in SAME_JOB and isinstance(value, str | int | float) and not said:
            parts[name] = value
    shape = config.get("shape")
    return {**parts, "shape": "x".join(map(str, shape)) if shape else f"{r.x_name} {r.x_value}"}


def _text(name: str, value: Any) -> str:
    return str(value) if name in ("kernel", "mode", "shape", "dtype") else f"{name} {value}"


def whole_step(ours: float, ratio: float, network: float) -> tuple[float, float]:
    """Share of ours in a step with a network of ``network`` seconds, and how much faster the whole step is."""
    return ours / (ours + network), (ratio * ours + network) / (ours + network)


def metrics(records: Iterable[Record]) -> list[str]:
    return list(dict.fromkeys(r.metric_name for r in records))
