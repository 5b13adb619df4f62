"""docs/benchmarks.md from the results alone: the same files always give the same page."""

from __future__ import annotations

import os
import textwrap
from collections.abc import Iterator, Sequence
from pathlib import Path

from . import schema, suite
from .schema import Point, Results
from .suite import Member

NETWORKS = (1e-4, 1e-3, 1e-2, 3e-2)  # seconds of one call of the network
NOT_MEASURED = "not measured"

HEAD = """# Benchmarks

Written by `python -m benchmarks --page` from `benchmarks/results`; do not edit. `python -m benchmarks` measures again
and rewrites it. Method: [benchmarks/README.md](../benchmarks/README.md).

**How to read a ratio.** `10.6x (4.1 1.3 1.03 1.01)`: the peer takes 10.6 times as long as ours between two calls of the
network; in brackets, how much faster a *whole step* becomes when the network takes 0.1, 1, 10 and 30 ms. The column
"share" is what ours takes of that whole step, for the same four networks. With a network of 30 ms nothing here is worth
noticing. **Bold**: the peer is faster. `~`: the 20-80 % range of the ratio holds 1.
"""


def render(folder: Path, page: Path) -> str:
    """The page of the results in ``folder``, with links relative to ``page``."""
    results, members = schema.load(folder), suite.MEMBERS
    link = os.path.relpath(folder.resolve(), page.parent.resolve())
    made = {m.name: [r for r in results if r.member == m.name] for m in members}
    lines = [HEAD, "## Where we lose", "", *_losses(members, made), ""]
    lines += ["## Promised figures", "", *_promises(members, made), ""]
    lines += ["## Machine", "", *_machine(results), ""]
    for member in members:
        lines += [f"## {member.name}", "", textwrap.fill(member.about, 118), ""]
        if not made[member.name]:
            lines += ["No results yet.", ""]
        for found in made[member.name]:
            lines += [*_section(member, found, link), ""]
    return "\n".join(lines).rstrip() + "\n"


def write(folder: Path, page: Path) -> None:
    text = render(folder, page)
    page.parent.mkdir(parents=True, exist_ok=True)
    page.write_text(text)


def table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    """Markdown; the first column is text, the others are numbers."""
    marks = ["---", *["---:"] * (len(head) - 1)]
    return [f"| {' | '.join(cells)} |" for cells in (head, marks, *rows)]


def number(x: float) -> str:
    """Three digits, without an exponent."""
    if abs(x) >= 100:
        return f"{x:.0f}"
    return f"{x:.3g}" if abs(x) >= 1e-4 or x == 0 else f"{x:.1e}"


def percent(share: float) -> str:
    """Two digits."""
    return f"{100 * share:.2g}" if share < 0.995 else "100"


def _section(member: Member, found: Results, link: str) -> Iterator[str]:
    stem, facts = found.path.stem, found.facts
    note = f"; {facts['note']}" if facts.get("note") else ""
    kind = ", quick run" if facts.get("quick") else ""
    load = facts["load_average_at_start"][0]
    yield (
        f"**{stem}**{kind}: {facts['timestamp']}, {_device(found)}, load before {load:.2f}, "
        f"{facts.get('seconds', 0):.0f} s{note}. [All figures]({link}/{stem}.csv), [facts]({link}/{stem}.json)."
    )
    yield ""
    reasons: dict[str, list[str]] = {}
    for what, why in facts.get("skipped", {}).items():
        reasons.setdefault(" ".join(str(why).split()), []).append(what)
    for why, what in reasons.items():
        more = f" and {len(what) - 4} more" if len(what) > 4 else ""
        yield f"- left out: {'; '.join(what[:4])}{more}: {why}"
    if reasons:
        yield ""
    points = schema.points(found)
    yield from _pairs(member, points) if member.pairs else _grids(found)
    if found.path.with_suffix(".png").exists():
        yield ""
        yield f"![{stem}]({link}/{stem}.png)"


def _device(found: Results) -> str:
    gpu = found.facts.get("gpu", {}).get("name")
    return str(gpu) if found.device == "cuda" and gpu else f"{found.facts['threads']} threads"


def _pairs(member: Member, points: Sequence[Point]) -> Iterator[str]:
    """A line per point and program of ours."""
    ran = {name for p in points for name in p.rows}
    peers = [n for n in dict.fromkeys(peer for _, peers in member.pairs for peer in peers) if n in ran]
    several = sum(name in ran for name in member.ours) > 1
    copies = any("fraction_of_copy" in rows for p in points for name, rows in p.rows.items() if name in member.ours)
    unit, scale = ("us", 1e6) if member.metric == "time" else (_unit(points, member), 1.0)
    head = ["point", *(["ours"] if several else []), unit, "20-80 %", *(["of copy"] if copies else [])]
    head += [*(["share, %"] if member.calls else []), *peers]
    lines = []
    for point in points:
        for ours, against in member.pairs:
            found = point.value(ours, member.metric)
            if found is None:
                continue
            middle, low, high = (number(scale * v) for v in found)
            cells = [point.label, *([ours] if several else []), middle, f"{low} - {high}"]
            if copies:
                share = point.rows[ours].get("fraction_of_copy")
                cells.append(f"{100 * share.y_value_50:.0f} %" if share else "")
            if member.calls:
                cells.append(_share(point, ours, found[0]))
            cells += [_cell(member, point, peer, ours) if peer in against else "" for peer in peers]
            lines.append(cells)
    yield from table(head, lines)


def _unit(points: Sequence[Point], member: Member) -> str:
    found = (rows.get(member.metric) for p in points for rows in p.rows.values())
    return next((r.metric_unit for r in found if r), "")


def _share(point: Point, ours: str, seconds: float) -> str:
    """Of ours in a whole step: measured where the network was in the measurement."""
    measured = point.rows[ours].get("solver_share")
    if measured is not None and _whole(point, seconds):
        return f"{percent(max(0.0, measured.y_value_50))} measured"
    return " ".join(percent(schema.whole_step(seconds, 1.0, network)[0]) for network in NETWORKS)


def _whole(point: Point, seconds: float) -> bool:
    """Whether the time is that of a whole step, with a network in it."""
    network = point.value("network")
    return network is not None and network[0] > 0.01 * seconds


def _cell(member: Member, point: Point, peer: str, ours: str) -> str:
    ratio, time = point.ratio(peer, ours, member.metric), point.value(ours, member.metric)
    if ratio is None or time is None or peer not in point.rows:
        return ""
    text = number(ratio[0]) + "x"
    if ratio[0] < 1.0:
        text = f"**{text}**"
    if ratio[1] <= 1.0 <= ratio[2]:
        text += "~"
    if not member.calls or _whole(point, time[0]):
        return text
    whole = (schema.whole_step(time[0], ratio[0], network)[1] for network in NETWORKS)
    return f"{text} ({' '.join(number(gain) for gain in whole)})"


def _grids(found: Results) -> Iterator[str]:
    """A table per metric: programs down, the axis across.  Figures that differ in their options share a cell."""
    for metric in schema.metrics(found.records):
        rows = [r for r in found.records if r.metric_name == metric]
        values = sorted({r.x_value for r in rows})
        cells: dict[str, dict[int, list[str]]] = {}
        for r in rows:
            name = (r.kernel_name.removeprefix(f"{found.member} "), r.kernel_operation_mode, r.kernel_provider)
            title = ", ".join(part for part in dict.fromkeys(name) if part != found.member)
            spread = f" ({number(r.y_value_20)} - {number(r.y_value_80)})" if r.y_value_20 < r.y_value_80 else ""
            cells.setdefault(title, {}).setdefault(r.x_value, []).append(number(r.y_value_50) + spread)
        yield f"{metric}, {rows[0].metric_unit}; across: {rows[0].x_label}"
        yield ""
        lines = [[title, *(" / ".join(line.get(value, ())) for value in values)] for title, line in cells.items()]
        yield from table(["", *map(power, values)], lines)
        yield ""


def power(x: int) -> str:
    """A large power of two as such."""
    return f"2^{x.bit_length() - 1}" if x >= 1024 and x & (x - 1) == 0 else str(x)


def losses(member: Member, found: Results) -> Iterator[tuple[str, str, str, tuple[float, float, float]]]:
    """Point, ours, peer and ratio, where the median of the peer is below ours."""
    for point in schema.points(found):
        for ours, peers in member.pairs:
            for peer in peers:
                ratio = point.ratio(peer, ours, member.metric) if peer in point.rows else None
                if ratio is not None and ratio[0] < 1.0:
                    yield point.label, ours, peer, ratio


def _losses(members: Sequence[Member], made: dict[str, list[Results]]) -> Iterator[str]:
    lines, compared = [], 0
    for member in members:
        for found in made[member.name]:
            for label, ours, peer, (middle, low, high) in losses(member, found):
                spread = f"{number(low)} - {number(high)}"
                sure = "yes" if high < 1.0 else "range holds 1"
                lines.append([f"{found.path.stem}: {label}", ours, peer, f"{number(middle)}x", spread, sure])
            for point in schema.points(found):
                pairs = [(peer, ours) for ours, peers in member.pairs for peer in peers]
                compared += sum(point.ratio(*pair, member.metric) is not None for pair in pairs)
    yield f"{len(lines)} of {compared} comparisons, by member. A ratio is the peer's figure over ours."
    yield ""
    if lines:
        yield from table(["point", "ours", "faster peer", "ratio", "20-80 %", "beyond noise"], lines)


def _promises(members: Sequence[Member], made: dict[str, list[Results]]) -> Iterator[str]:
    lines = []
    for member in members:
        for found in made[member.name]:
            for item in found.facts["must_reach"]:
                verdict = {"reached": "met", "NOT reached": "**not met**"}.get(item["verdict"], item["verdict"])
                lines.append([f"{found.path.stem}: {item['what']}", item["wanted"], item["figure"], verdict])
        if not any(found.device == "cuda" for found in made[member.name]):
            for text in member.gpu_promises:
                what, wanted = text.rsplit(": ", 1)
                lines.append([f"{member.name}-cuda: {what}", wanted, "no GPU in the committed results", NOT_MEASURED])
    verdicts = [line[-1] for line in lines]
    missed, open_ = verdicts.count("**not met**"), verdicts.count(NOT_MEASURED)
    yield f"{verdicts.count('met')} met, {missed} not met, {open_} not measured."
    yield ""
    lines.sort(key=lambda line: ("**not met**", NOT_MEASURED, "met").index(line[-1]))
    yield from table(["what", "wanted", "got (median, 20-80 %)", ""], lines)


def _machine(results: Sequence[Results]) -> Iterator[str]:
    """Facts of every machine and installation once, with the results that they belong to."""
    names: tuple[str, ...] = ("cpu", "cpu_count", "cpu_isa", "last_level_cache", "gpu", "platform", "python", "torch")
    names += ("triton", "diffusers", "numpy", "compiler", "fastsample")
    kinds: dict[tuple[tuple[str, str], ...], list[str]] = {}
    for found in results:
        facts = found.facts | {"gpu": found.facts.get("gpu", {}).get("name", "none in the measurement")}
        key = tuple((name, str(facts.get(name, "not recorded"))) for name in names)
        kinds.setdefault(key, []).append(found.path.stem)
    for facts_, stems in kinds.items():
        yield f"Of {', '.join(stems)}:"
        yield ""
        yield from table(["fact", ""], facts_)
        yield ""
