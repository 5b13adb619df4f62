"""The picture of the benchmark of scaling: four panels, log-log."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from benchmarks.harness import Record

PANELS = (
    ("time", "one update, one thread on a CPU"),
    ("time_of_batch", "one update, the same elements as more samples"),
    ("time_of_run", "a whole run, network that does nothing"),
    ("time_on_threads", "one update on threads of a CPU"),
)


def plot(records: Sequence[Record], path: Path) -> None:
    """Microseconds over what varies, a line per program; dots: the knees."""
    from matplotlib import pyplot

    found = [p for p in PANELS if any(r.metric_name == p[0] for r in records)]
    figure, axes = pyplot.subplots(1, max(1, len(found)), figsize=(4.6 * max(1, len(found)), 4.2), squeeze=False)
    for axis, (metric, title) in zip(axes[0], found, strict=False):
        rows = [r for r in records if r.metric_name == metric]
        for i, (name, mode) in enumerate(dict.fromkeys((r.kernel_provider, r.kernel_operation_mode) for r in rows)):
            chosen = sorted(
                (r for r in rows if (r.kernel_provider, r.kernel_operation_mode) == (name, mode)),
                key=lambda r: r.x_value,
            )
            x = [r.x_value for r in chosen]
            label = name if mode == "deterministic" else f"{name}, noise"
            axis.plot(x, [r.y_value_50 for r in chosen], marker=".", color=f"C{i}", label=label)
            axis.fill_between(
                x, [r.y_value_20 for r in chosen], [r.y_value_80 for r in chosen], color=f"C{i}", alpha=0.15, lw=0
            )
            if metric == "time":
                _knee(axis, records, name, mode, f"C{i}")
        axis.set(xscale="log", yscale="log", xlabel=rows[0].x_label, ylabel="us", title=title)
        axis.title.set_fontsize(9)
        axis.grid(True, alpha=0.3)
        axis.legend(fontsize=7)
    figure.tight_layout()
    figure.savefig(path, dpi=110)


def _knee(axis: object, records: Sequence[Record], name: str, mode: str, colour: str) -> None:
    fits = {
        r.metric_name: r.y_value_50
        for r in records
        if (r.kernel_provider, r.kernel_operation_mode, r.kernel_name) == (name, mode, "scaling size")
    }
    if "knee" in fits:
        axis.plot(fits["knee"], 2 * fits["fixed_cost"], "o", color=colour)  # type: ignore[attr-defined]
