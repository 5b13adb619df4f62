"""Pictures of the suite, drawn from the records alone, so that they can be drawn again without measuring."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from .harness import Record

OVER = "time_over_"


def ratios(records: Sequence[Record], path: Path) -> None:
    """Bars: time of each peer over ours, a group per point, a colour per pair."""
    from matplotlib import pyplot

    found = [r for r in records if r.metric_name.startswith(OVER)]
    points = list(dict.fromkeys(_point(r) for r in found))
    pairs = list(dict.fromkeys(_pair(r) for r in found))
    if not found:
        return
    figure, axis = pyplot.subplots(figsize=(9, (0.16 * len(pairs) + 0.15) * len(points) + 1.5))
    height = 0.8 / len(pairs)
    for i, pair in enumerate(pairs):
        chosen = [r for r in found if _pair(r) == pair]
        places = [points.index(_point(r)) + (i + 0.5) * height - 0.4 for r in chosen]
        spread = [[r.y_value_50 - r.y_value_20 for r in chosen], [r.y_value_80 - r.y_value_50 for r in chosen]]
        middle = [r.y_value_50 for r in chosen]
        axis.barh(places, middle, 0.9 * height, xerr=spread, label=pair, error_kw={"linewidth": 0.8})
    axis.set_yticks(range(len(points)), points)
    axis.invert_yaxis()
    axis.set(xscale="log", xlabel="times the time of ours")
    axis.axvline(1, color="black", linewidth=0.8)
    axis.grid(axis="x", alpha=0.3)
    axis.legend(fontsize="small", loc="upper left", bbox_to_anchor=(1, 1))
    figure.tight_layout()
    figure.savefig(path, dpi=100)


def times_over_size(records: Sequence[Record], path: Path) -> None:
    """Lines: time of each program over the number of elements, a panel per mode, dtype and state of the cache."""
    from matplotlib import pyplot

    found: list[tuple[Record, dict[str, Any]]] = [
        (r, json.loads(r.extra_benchmark_config_str)) for r in records if r.metric_name == "time"
    ]
    found = [(r, c) for r, c in found if c["shape"] == [1, r.x_value]]  # given shapes are not part of the curve
    panels = sorted({_panel(r, c) for r, c in found})
    names = list(dict.fromkeys(r.kernel_provider for r, _ in found))
    if not found:
        return
    figure, axes = pyplot.subplots(1, len(panels), figsize=(4 * len(panels), 4.2), sharey=True, squeeze=False)
    for axis, panel in zip(axes[0], panels, strict=True):
        for i, name in enumerate(names):
            line = sorted(
                (r.x_value, r.y_value_50, r.y_value_20, r.y_value_80)
                for r, c in found
                if _panel(r, c) == panel and r.kernel_provider == name
            )
            if line:
                sizes, middle, low, high = zip(*line, strict=True)
                style = "--" if name in ("copy", "add") else "-"
                axis.plot(sizes, middle, style, marker=".", label=name, color=f"C{i}")
                axis.fill_between(sizes, low, high, color=f"C{i}", alpha=0.15, linewidth=0)
        axis.set(yscale="log", xlabel="elements", title=", ".join(filter(None, panel)))
        axis.set_xscale("log", base=2)
        axis.grid(alpha=0.3)
    axes[0][0].set_ylabel("us per step")
    handles = {t: h for a in axes[0] for h, t in zip(*a.get_legend_handles_labels(), strict=True)}
    axes[0][-1].legend(handles.values(), handles.keys(), fontsize="small", loc="upper left", bbox_to_anchor=(1, 1))
    figure.tight_layout()
    figure.savefig(path, dpi=100)


def _panel(r: Record, config: dict[str, Any]) -> tuple[str, str, str]:
    return r.kernel_operation_mode, config["dtype"], "cold L2" if config.get("cache") == "cold" else ""


def _pair(r: Record) -> str:
    return f"{r.kernel_provider} / {r.metric_name.removeprefix(OVER)}"


def _point(r: Record) -> str:
    config = json.loads(r.extra_benchmark_config_str)
    half = ", bfloat16 network" if config.get("network") == "bfloat16" else ""
    return f"{r.kernel_operation_mode} {' x '.join(map(str, config['shape']))}{half}"
