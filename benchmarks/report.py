"""From times to the CSV records, the table, the rows where we lose, and the promised figures."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from .harness import Record, Times, ratio
from .steps import CHECKED, COMPILED, OURS, PEERS, YARDSTICKS, Job


@dataclass(frozen=True)
class Point:
    """What was measured at one shape, dtype and case; dictionaries are per program."""

    job: Job
    case: str
    dtype: str
    cold: bool
    touched_bytes: int  # of all copies of the memory of one program
    times: dict[str, Times]
    hosts: dict[str, Times]
    peaks: dict[str, int]

    @property
    def ours(self) -> str | None:
        """The backend a user gets here: the first of native, triton, reference that ran."""
        return next((name for name in OURS if name in self.times), None)

    @property
    def label(self) -> str:
        return f"{tuple(self.job.shape)} {self.dtype} {self.case}{' cold L2' if self.cold else ''}"

    def bytes(self, name: str) -> int:
        """Declared traffic of a program."""
        return {"copy": 2, "add": 3}.get(name, 5) * self.job.state_bytes

    def bandwidth(self, name: str) -> tuple[float, float, float]:
        """Declared bytes per second: median, 20 %, 80 %."""
        middle, low, high = self.times[name].quantiles()
        return self.bytes(name) / middle, self.bytes(name) / high, self.bytes(name) / low

    def fraction(self, name: str, yardstick: str = "copy") -> tuple[float, float, float]:
        """Bandwidth of a program over that of a yardstick in the same rounds."""
        middle, low, high = ratio(self.times[yardstick], self.times[name])
        scale = self.bytes(name) / self.bytes(yardstick)
        return scale * middle, scale * low, scale * high


def records(points: Sequence[Point], device: str, timestamp: str, version: str, threads: int) -> list[Record]:
    """All figures of all points; three numbers each: median, 20 %, 80 %."""
    lines: list[Record] = []
    for p in points:
        config: dict[str, Any] = {"shape": p.job.shape, "dtype": p.dtype, "device": p.job.device}
        config |= {"threads": threads} if p.job.device == "cpu" else {}
        config |= {"cache": "cold" if p.cold else "warm", "touched_bytes": p.touched_bytes}
        for name, times in p.times.items():
            figures: list[tuple[str, str, tuple[float, float, float]]] = []
            middle, low, high = times.quantiles()
            figures.append(("time", "us", (1e6 * middle, 1e6 * low, 1e6 * high)))
            n = p.job.numel
            figures.append(("time_per_element", "ns", (1e9 * middle / n, 1e9 * low / n, 1e9 * high / n)))
            fast, least, most = p.bandwidth(name)
            figures.append(("bandwidth", "GB/s", (1e-9 * fast, 1e-9 * least, 1e-9 * most)))
            if name not in YARDSTICKS:
                figures += [(f"fraction_of_{yard}", "1", p.fraction(name, yard)) for yard in YARDSTICKS]
            if name in p.hosts:
                middle, low, high = p.hosts[name].quantiles()
                figures.append(("host_time", "us", (1e6 * middle, 1e6 * low, 1e6 * high)))
            figures.append(("peak_memory", "B", (p.peaks[name],) * 3))
            if p.ours and name not in (p.ours, *YARDSTICKS):
                figures.append((f"time_over_{p.ours}", "1", ratio(times, p.times[p.ours])))
            lines += [
                Record(
                    "update",
                    name,
                    p.case,
                    metric,
                    unit,
                    "numel",
                    "elements of the state",
                    n,
                    *values,
                    json.dumps(config),
                    device,
                    timestamp,
                    version,
                )
                for metric, unit, values in figures
            ]
    return lines


def text(points: Sequence[Point], facts: dict[str, Any], skipped: dict[str, str]) -> str:
    """What is printed at the end."""
    lines = [f"{facts['cpu']}, {facts['threads']} threads, {facts['cpu_isa'] or 'no compiled CPU library'}"]
    if "gpu" in facts:
        lines.append(facts["gpu"]["name"])
    lines.append(f"torch {facts['torch']}, load average at start {facts['load_average_at_start']}")
    lines += [f"skipped {name}: {reason.splitlines()[0]}" for name, reason in skipped.items()]
    groups = sorted({(p.case, p.dtype, p.cold) for p in points})
    for case, dtype, cold in groups:
        lines += [
            "",
            f"{case}, {dtype}{', cold L2' if cold else ''}: us per step (x = times ours), ours also in % of copy",
        ]
        lines += _table([p for p in points if (p.case, p.dtype, p.cold) == (case, dtype, cold)])
    lines += ["", "Where we lose (a peer is faster than ours in the same rounds):"]
    lines += losses(points) or ["  nowhere in this run"]
    lines += ["", "Must reach:"]
    for item in must_reach(points, facts):
        lines.append(f"  {item['verdict']:12} {item['what']}: {item['figure']} (wanted {item['wanted']})")
    return "\n".join(lines)


def _table(points: Sequence[Point]) -> list[str]:
    names = [name for name in (*OURS, CHECKED, *PEERS) if any(name in p.times for p in points)]
    rows = [["shape", "copy", *names]]
    for p in points:
        cells = ["x".join(map(str, p.job.shape)), f"{1e6 * p.times['copy'].quantiles()[0]:.4g}"]
        for name in names:
            if name not in p.times:
                cells.append("-")
                continue
            cell = f"{1e6 * p.times[name].quantiles()[0]:.4g}"
            if name == p.ours:
                cell += f" {100 * p.fraction(name)[0]:.0f}%"
            elif p.ours:
                cell += f" x{ratio(p.times[name], p.times[p.ours])[0]:.3g}"
            cells.append(cell)
        rows.append(cells)
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
    return ["  ".join(cell.rjust(width) for cell, width in zip(row, widths, strict=True)) for row in rows]


def losses(points: Sequence[Point]) -> list[str]:
    """One line per peer and point where the peer is faster."""
    lines = []
    for p in points:
        for name in PEERS:
            if p.ours and name in p.times:
                middle, low, high = ratio(p.times[name], p.times[p.ours])
                if middle < 1.0:
                    lines.append(f"  {p.label}: {name} takes {middle:.2f} of {p.ours} (20-80 %: {low:.2f}-{high:.2f})")
    return lines


def must_reach(points: Sequence[Point], facts: dict[str, Any]) -> list[dict[str, str]]:
    """The figures the project promises for a 2-core CPU: what, figure, wanted, verdict."""
    items: list[dict[str, str]] = []

    def add(what: str, wanted: str, found: tuple[str, bool] | None) -> None:
        figure, good = found or ("not measured in this run", False)
        verdict = "not measured" if found is None else ("reached" if good else "NOT reached")
        items.append({"what": what, "figure": figure, "wanted": wanted, "verdict": verdict})

    def at(shape: tuple[int, ...], case: str) -> Point | None:
        key = (shape, case, "float32", "cpu")
        found = [p for p in points if (p.job.shape, p.case, p.dtype, p.job.device) == key and "native" in p.times]
        return found[0] if found else None

    def over(p: Point | None, peers: Sequence[str], wanted: float) -> tuple[str, bool] | None:
        measured = [name for name in peers if p and name in p.times]
        if p is None or not measured:
            return None
        name = min(measured, key=lambda peer: ratio(p.times[peer], p.times["native"])[0])
        middle, low, high = ratio(p.times[name], p.times["native"])
        return f"{middle:.1f}x {name} (20-80 %: {low:.1f}-{high:.1f})", middle >= wanted

    p = at((1, 2**24), "deterministic")
    found = None
    if p:
        copy, add_ = p.fraction("native")[0], p.fraction("native", "add")[0]
        found = f"{100 * copy:.0f} % ({100 * add_:.0f} % of an in-place add_)", copy >= 0.85
    add("3 reads + 2 writes, float32, 2^24, no noise: share of copy bandwidth", ">= 85 %", found)

    limit = 1.2 if facts["cpu_isa"] == "avx512" else 2.0
    p, found = at((1, 2**24), "noise"), None
    if p and facts["threads"] == 2:
        ns = 1e9 * p.times["native"].quantiles()[0] / p.job.numel
        found = f"{ns:.2f} ns, {100 * p.fraction('native')[0]:.0f} % of copy bandwidth", ns <= limit
    add(f"same with noise, 2 threads, {facts['cpu_isa']}: ns per element", f"<= {limit}", found)

    p = at((16, 4, 128, 128), "noise")
    add("SDE step (16, 4, 128, 128): over diffusers", ">= 10x", over(p, ["diffusers"], 10.0))
    add("SDE step (16, 4, 128, 128): over torch.compile", ">= 3x", over(p, COMPILED, 3.0))

    for case in ("deterministic", "noise"):
        p, found = at((1, 4, 8, 8), case), None
        if p:
            us = 1e6 * p.times["native"].quantiles()[0]
            against = over(p, ["diffusers"], 0.0)
            checked = f" ({1e6 * p.times[CHECKED].quantiles()[0]:.2f} us with checks)" if CHECKED in p.times else ""
            found = f"{us:.2f} us{checked}" + (f", {against[0]}" if against else ""), us <= 12.0
        add(f"(1, 4, 8, 8) {case}: a step from Python", "<= 12 us", found)

    worst = max(
        (p for p in points if "native" in p.peaks), key=lambda p: p.peaks["native"] / p.job.state_bytes, default=None
    )
    found = None
    if worst:
        found = (
            f"at most {worst.peaks['native']} B, at {worst.label} of {worst.job.state_bytes} B",
            worst.peaks["native"] < worst.job.state_bytes,
        )
    add("in-place step: bytes allocated", "< one state", found)
    return items


def plot(points: Sequence[Point], path: Path) -> None:
    """Time per step over size, one panel per case and dtype, one line per program."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    groups = sorted({(p.case, p.dtype, p.cold) for p in points})
    names = [n for n in (*YARDSTICKS, *OURS, CHECKED, *PEERS) if any(n in p.times for p in points)]
    figure, axes = pyplot.subplots(1, len(groups), figsize=(5 * len(groups), 4.5), sharey=True, squeeze=False)
    shown = {}
    for axis, group in zip(axes[0], groups, strict=True):
        chosen = [p for p in points if (p.case, p.dtype, p.cold) == group and p.job.shape == (1, p.job.numel)]
        chosen.sort(key=lambda p: p.job.numel)
        for i, name in enumerate(names):
            found = [(p.job.numel, *p.times[name].quantiles()) for p in chosen if name in p.times]
            if not found:
                continue
            sizes, *times = zip(*found, strict=True)
            middle, low, high = ([1e6 * t for t in column] for column in times)
            style = "--" if name in YARDSTICKS else "-"
            (shown[name],) = axis.plot(sizes, middle, style, marker=".", label=name, color=f"C{i}")
            axis.fill_between(sizes, low, high, color=f"C{i}", alpha=0.15, linewidth=0)
        case, dtype, cold = group
        axis.set(yscale="log", xlabel="elements", title=f"{case}, {dtype}{', cold L2' if cold else ''}")
        axis.set_xscale("log", base=2)
        axis.grid(alpha=0.3)
    axes[0][0].set_ylabel("us per step")
    axes[0][-1].legend(
        handles=[shown[n] for n in names if n in shown], fontsize="small", loc="upper left", bbox_to_anchor=(1, 1)
    )
    figure.tight_layout()
    figure.savefig(path, dpi=120)
    pyplot.close(figure)
