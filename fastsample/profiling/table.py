"""A summary as text."""

from __future__ import annotations

import io
from typing import Any

from .summary import PARTS

_COUNTS = {
    "ops": "torch ops outside the network",
    "launches": "launches outside the network",
    "host_reads": "host reads outside the network",
    "state_allocations": "allocations of state size outside the network",
    "network_launches": "launches in the network",
    "network_host_reads": "host reads in the network",
}


def text(summary: dict[str, Any], width: int = 110) -> str:
    """Tables of ``summarize``."""
    from rich.console import Console

    console = Console(file=io.StringIO(), width=width, color_system=None)
    counts, seconds = summary["counts"], summary["seconds"]
    console.print(
        f"{', '.join(summary['solvers'])}: {counts['run']} runs, {counts['step']} steps, "
        f"{counts['network']} network calls, {counts['update']} updates, traced by {summary['tool']}"
    )
    console.print(_times(summary, seconds))
    console.print(_per_step(summary))
    if summary["device"] is not None:
        console.print(_device(summary["device"]))
    for title, rows in (("host ops, own time", summary["top_ops"]), ("device work", summary["top_work"])):
        if rows:
            console.print(_top(title, rows))
    file = console.file
    assert isinstance(file, io.StringIO)
    return file.getvalue()


def _table(title: str, *columns: str) -> Any:
    from rich import box
    from rich.table import Table

    table = Table(title=title, box=box.SIMPLE, title_justify="left")
    table.add_column(columns[0])
    for column in columns[1:]:
        table.add_column(column, justify="right")
    return table


def _times(summary: dict[str, Any], seconds: dict[str, float]) -> Any:
    table = _table("host time", "part", "seconds", "share", "median of one, us")
    for name in ("runs", *PARTS, "gaps"):
        if name not in ("runs", "network", "update", "gaps") and not summary["counts"][name]:
            continue
        each = summary["each"].get("step" if name == "runs" else name)
        share = f"{seconds[name] / seconds['runs']:.1%}" if seconds["runs"] and name != "capture" else ""
        label = {"runs": "runs (a step)", "capture": "capture, before runs"}.get(name, name)
        table.add_row(label, f"{seconds[name]:.4f}", share, f"{each['median']:.1f}" if each else "")
    return table


def _per_step(summary: dict[str, Any]) -> Any:
    table = _table(f"per {summary['unit']}", "what", "least", "median", "most", "sum")
    for name, label in _COUNTS.items():
        found = summary["per_step"][name]
        cells = ["not seen", "", "", ""] if found is None else [f"{found[k]:g}" for k in _SPREAD]
        table.add_row(label, *cells)
    return table


_SPREAD = ("least", "median", "most", "sum")


def _device(device: dict[str, float]) -> Any:
    table = _table("device time", "asked for in", "seconds")
    for name, value in device.items():
        table.add_row(name, f"{value:.4f}")
    return table


def _top(title: str, rows: list[dict[str, Any]]) -> Any:
    table = _table(title, "name", "count", "us")
    for row in rows:
        table.add_row(row["name"], str(row["count"]), f"{row['microseconds']:.1f}")
    return table
