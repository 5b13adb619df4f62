"""The tables of docs/kernels.md that come from sass.csv, between marks in the page."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

PAGE = Path(__file__).resolve().parents[2] / "docs" / "kernels.md"
BEGIN, END = "<!-- sass.csv: begin -->", "<!-- sass.csv: end -->"
Record = dict[str, str]


def text(records: Sequence[Record]) -> str:
    """The generated part: the points of the usual jobs, then what each bound holds."""
    shown = [r for r in records if r["terms"] in ("1", "2", "3", "4", "8") and (r["terms"], r["outputs"]) != ("8", "1")]
    lines = [
        "| state | K | outputs | noise | instructions | registers | blocks | loads of a turn | in flight, KiB"
        " | needed, KiB | issue | bound |",
        "|---|---|---|---|---|---|---|---|---|---|---|---|",
    ]
    for r in shown:
        if (r["outputs"] == "3" and r["terms"] != "8") or not r["instructions"] or r["dtype"] == "fp64":
            continue
        cells = ("dtype", "terms", "outputs", "noise", "instructions", "registers", "blocks", "loads", "in_flight")
        lines.append("| " + " | ".join(r[c] for c in (*cells, "needed", "issue", "bound")) + " |")
    counts = {bound: sum(r["bound"] == bound for r in records) for bound in ("memory", "issue", "latency")}
    lines += [
        "",
        f"Of {sum(counts.values())} points, the bound is " + ", ".join(f"{k}: {n}" for k, n in counts.items()),
    ]
    return "\n".join(lines) + ".\n"


def fill(page: str, records: Sequence[Record]) -> str:
    """The page with its generated part renewed."""
    before, rest = page.split(BEGIN)
    return f"{before}{BEGIN}\n{text(records)}{END}{rest.split(END)[1]}"


def write(records: Sequence[Record]) -> None:
    PAGE.write_text(fill(PAGE.read_text(), records))
