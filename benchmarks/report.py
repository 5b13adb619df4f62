"""From times to the CSV records, the table, the rows where we lose, and the promised figures."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from .harness import Times, ratio
from .member import Figure
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


def figures(p: Point) -> Iterator[tuple[str, dict[str, Any], list[Figure]]]:
    """Per program of a point: its name, the configuration, all figures."""
    config: dict[str, Any] = {"shape": list(p.job.shape), "dtype": p.dtype, "device": p.job.device}
    config |= {"cache": "cold" if p.cold else "warm", "touched_bytes": p.touched_bytes}
    for name, times in p.times.items():
        found: list[Figure] = []
        middle, low, high = times.quantiles()
        found.append(("time", "us", (1e6 * middle, 1e6 * low, 1e6 * high)))
        n = p.job.numel
        found.append(("time_per_element", "ns", (1e9 * middle / n, 1e9 * low / n, 1e9 * high / n)))
        fast, least, most = p.bandwidth(name)
        found.append(("bandwidth", "GB/s", (1e-9 * fast, 1e-9 * least, 1e-9 * most)))
        if name not in YARDSTICKS:
            found += [(f"fraction_of_{yard}", "1", p.fraction(name, yard)) for yard in YARDSTICKS]
        if name in p.hosts:
            middle, low, high = p.hosts[name].quantiles()
            found.append(("host_time", "us", (1e6 * middle, 1e6 * low, 1e6 * high)))
        if name in p.peaks:
            found.append(("peak_memory", "B", (p.peaks[name],) * 3))
        if p.ours and name not in (p.ours, *YARDSTICKS):
            found.append((f"time_over_{p.ours}", "1", ratio(times, p.times[p.ours])))
        yield name, config, found


def text(points: Sequence[Point], facts: dict[str, Any]) -> str:
    """What is printed at the end."""
    lines = [facts["gpu"]["name"]] if "gpu" in facts else []
    lines += [f"skipped {name}: {reason.splitlines()[0]}" for name, reason in facts.get("skipped", {}).items()]
    groups = sorted({(p.case, p.dtype, p.cold) for p in points})
    for case, dtype, cold in groups:
        lines += [
            "",
            f"{case}, {dtype}{', cold L2' if cold else ''}: us per step (x = times ours), ours also in % of copy",
        ]
        lines += _table([p for p in points if (p.case, p.dtype, p.cold) == (case, dtype, cold)])
    lines += ["", "Where we lose (a peer is faster than ours in the same rounds):"]
    lines += losses(points) or ["  nowhere in this run"]
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
    """The figures the project promises for a 2-core CPU, or for a GPU: what, figure, wanted, verdict."""
    return _gpu_promises(points) if "gpu" in facts else _cpu_promises(points, facts)


def _item(what: str, wanted: str, found: tuple[str, bool] | None) -> dict[str, str]:
    figure, good = found or ("not measured in this run", False)
    verdict = "not measured" if found is None else ("reached" if good else "NOT reached")
    return {"what": what, "figure": figure, "wanted": wanted, "verdict": verdict}


def _at(points: Sequence[Point], shape: tuple[int, ...], case: str, dtype: str = "float32") -> list[Point]:
    """Warm and cold, where both were measured."""
    return [p for p in points if (p.job.shape, p.case, p.dtype) == (shape, case, dtype) and "native" in p.times]


def _over(p: Point | None, peers: Sequence[str], wanted: float) -> tuple[str, bool] | None:
    """The fastest of the peers against ours."""
    measured = [name for name in peers if p and name in p.times]
    if p is None or not measured:
        return None
    name = min(measured, key=lambda peer: ratio(p.times[peer], p.times["native"])[0])
    middle, low, high = ratio(p.times[name], p.times["native"])
    return f"{middle:.1f}x {name} (20-80 %: {low:.1f}-{high:.1f})", middle >= wanted


def _share(p: Point | None, wanted: float) -> tuple[str, bool] | None:
    if p is None:
        return None
    copy, add = p.fraction("native")[0], p.fraction("native", "add")[0]
    return f"{100 * copy:.0f} % ({100 * add:.0f} % of an in-place add_)", copy >= wanted


def _gpu_promises(points: Sequence[Point]) -> list[dict[str, str]]:
    items = []
    for case, wanted in (("deterministic", 0.9), ("noise", 0.85)):
        for dtype in ("float32", "bfloat16"):
            large = [p for p in points if p.job.state_bytes >= 64e6 and "native" in p.times]
            chosen = [p for p in large if (p.case, p.dtype) == (case, dtype)]
            worst = min(chosen, key=lambda p: p.fraction("native")[0], default=None)
            what = f"update {case}, {dtype}, states of 64 MB and more, the worst: share of copy bandwidth"
            items.append(_item(what, f">= {100 * wanted:g} %", _share(worst, wanted)))
    found = [_over(p, COMPILED, 1.7) for p in _at(points, (1, 2**26), "noise", "bfloat16")]
    worst_ratio = min((f for f in found if f), key=lambda f: f[1], default=None)
    items.append(_item("SDE step, bfloat16, 2^26: over torch.compile", ">= 1.7x", worst_ratio))
    return items


def _cpu_promises(points: Sequence[Point], facts: dict[str, Any]) -> list[dict[str, str]]:
    items: list[dict[str, str]] = []

    def add(what: str, wanted: str, found: tuple[str, bool] | None) -> None:
        items.append(_item(what, wanted, found))

    def at(shape: tuple[int, ...], case: str) -> Point | None:
        return next(iter(_at(points, shape, case)), None)

    for case, wanted in (("deterministic", 0.9), ("noise", 0.6)):
        p = at((1, 2**24), case) if facts["threads"] == 2 else None
        what = f"update {case}, float32, 2^24, 2 threads: share of copy bandwidth"
        add(what, f">= {100 * wanted:g} %", _share(p, wanted))

    limit = 1.2 if facts["cpu_isa"] == "avx512" else 2.0
    p, found = at((1, 2**24), "noise"), None
    if p and facts["threads"] == 2:
        ns = 1e9 * p.times["native"].quantiles()[0] / p.job.numel
        found = f"{ns:.2f} ns, {100 * p.fraction('native')[0]:.0f} % of copy bandwidth", ns <= limit
    add(f"the same with noise, {facts['cpu_isa']}: ns per element", f"<= {limit}", found)

    p = at((16, 4, 128, 128), "noise")
    add("SDE step (16, 4, 128, 128): over diffusers", ">= 10x", _over(p, ["diffusers"], 10.0))
    add("SDE step (16, 4, 128, 128): over torch.compile", ">= 3x", _over(p, COMPILED, 3.0))

    for case in ("deterministic", "noise"):
        p, found = at((1, 4, 8, 8), case), None
        if p:
            us = 1e6 * p.times["native"].quantiles()[0]
            against = _over(p, ["diffusers"], 0.0)
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
