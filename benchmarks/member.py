"""What every member of the suite shares: its options, its files, its promised figures, the end of its run.

A member is a module of this folder with ``main(argv) -> int``.  It takes the options of ``parser`` and writes
``NAME-DEVICE.csv`` (``harness.Record``), ``NAME-DEVICE.json`` (machine facts, promised figures) and ``NAME-DEVICE.png``
into the folder ``--out``.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import sys
import time
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

import torch

from .harness import Record, device_name, machine, now, write_csv

RESULTS = Path(__file__).resolve().parent / "results"
Values = tuple[float, float, float]  # median, 20 %, 80 %
Figure = tuple[str, str, Values]  # metric, unit, values


def parser(name: str, doc: str | None, quick: str) -> argparse.ArgumentParser:
    """The options that all members take; ``quick`` says what a quick run leaves out."""
    p = argparse.ArgumentParser(
        prog=f"python -m benchmarks.{name}", description=doc, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    p.add_argument("--quick", action="store_true", help=quick)
    p.add_argument("--gpu", action="store_true", help="device cuda")
    p.add_argument(
        "--threads", type=int, default=torch.get_num_threads(), help="threads of torch (default %(default)s)"
    )
    p.add_argument("--min-time", type=float, help="seconds per program and point")
    p.add_argument("--out", type=Path, default=RESULTS, metavar="FOLDER", help="default benchmarks/results")
    p.add_argument("--note", default="", help="kept in the JSON, such as what else runs on the machine")
    return p


def parse(
    p: argparse.ArgumentParser, argv: Sequence[str] | None, full: float, quick: float, gpu: float
) -> argparse.Namespace:
    """Read and check the options; ``full``, ``quick`` and ``gpu`` are the usual seconds per program and point."""
    options = p.parse_args(argv)
    if options.gpu and not torch.cuda.is_available():
        p.error("--gpu: torch finds no CUDA device here")
    if options.threads < 1:
        p.error(f"--threads: got {options.threads}, allowed are 1 and more")
    if options.min_time is None:
        options.min_time = quick if options.quick else gpu if options.gpu else full
    options.device = "cuda" if options.gpu else "cpu"
    options.command = ["python", "-m", *p.prog.split()[2:], *(sys.argv[1:] if argv is None else argv)]
    return options


class Run:
    """Records and promised figures of one run.  ``save`` rewrites the files: a run stopped keeps what it has."""

    def __init__(self, name: str, options: argparse.Namespace) -> None:
        torch.set_num_threads(options.threads)
        self.name, self.device, self.folder = name, options.device, options.out
        self.records: list[Record] = []
        self.promised: list[dict[str, str]] = []
        self.facts: dict[str, Any] = machine(options.device)
        self.facts |= {"note": options.note, "quick": options.quick, "command": options.command}
        self.timestamp, self.started = now(), time.perf_counter()
        facts, load = self.facts, self.facts["load_average_at_start"]
        print(f"{name}: {facts['cpu']}, {options.threads} threads, {facts['cpu_isa']}, torch {facts['torch']}")
        if load[0] > 0.3:
            print(f"note: load average {load[0]} at the start: where something else runs, times are worse than real")

    @property
    def seconds(self) -> float:
        return time.perf_counter() - self.started

    def path(self, suffix: str) -> Path:
        return Path(self.folder) / f"{self.name}-{self.device}{suffix}"

    def add(
        self,
        provider: str,
        mode: str,
        config: dict[str, Any],
        figures: Iterable[Figure],
        kernel: str | None = None,
        x: tuple[str, str, int] | None = None,
    ) -> None:
        """Figures of a program at one point.  ``config`` has the shape; ``x`` is the axis, by default the elements."""
        axis = x or ("numel", "elements of the state", math.prod(config["shape"]))
        text = json.dumps(config if self.device == "cuda" else config | {"threads": self.facts["threads"]})
        made = (text, device_name(self.device), self.timestamp, self.facts["fastsample"])
        for metric, unit, values in figures:
            self.records.append(Record(kernel or self.name, provider, mode, metric, unit, *axis, *values, *made))

    def promise(self, what: str, wanted: float, ratio: Values | None) -> None:
        """A ratio ``>= wanted`` that is promised on a CPU, and what was measured (None: not in this run)."""
        if self.device == "cpu":
            self._promise(what, f">= {wanted:g}x", ratio, "x", ratio is not None and ratio[0] >= wanted)

    def promise_on_gpu(self, what: str, wanted: float, unit: str, values: Values, at_most: bool = False) -> None:
        """The same for a figure that is promised on a GPU."""
        if self.device == "cuda":
            good = values[0] <= wanted if at_most else values[0] >= wanted
            self._promise(what, f"{'<=' if at_most else '>='} {wanted:g}{unit}", values, unit, good)

    def _promise(self, what: str, wanted: str, values: Values | None, unit: str, good: bool) -> None:
        figure, verdict = "not measured in this run", "not measured"
        if values is not None:
            figure = f"{values[0]:.1f}{unit} (20-80 %: {values[1]:.1f}-{values[2]:.1f})"
            verdict = "reached" if good else "NOT reached"
        self.promised.append({"what": what, "figure": figure, "wanted": wanted, "verdict": verdict})

    def save(self) -> None:
        self.facts["seconds"] = round(self.seconds, 1)
        self.facts["load_average_at_end"] = [round(x, 2) for x in os.getloadavg()]
        write_csv(self.path(".csv"), self.records)
        content = {"timestamp": self.timestamp, **self.facts, "must_reach": self.promised}
        self.path(".json").write_text(json.dumps(content, indent=1) + "\n")

    def end(self, plot: Callable[[Sequence[Record], Path], None] | None = None) -> int:
        """Save, draw, print the promised figures; exit code 0 whatever they are."""
        self.save()
        if plot is not None:
            draw(plot, self.records, self.path(".png"))
        if self.promised:
            print("\nMust reach:")
        for item in self.promised:
            print(f"  {item['verdict']:12} {item['what']}: {item['figure']} (wanted {item['wanted']})")
        print(f"written: {self.path('.csv')} ({self.seconds:.0f} s)")
        return 0


def draw(plot: Callable[[Sequence[Record], Path], None], records: Sequence[Record], path: Path) -> None:
    """``plot`` without a window; nothing but a line where matplotlib is missing."""
    try:
        import matplotlib
    except ImportError:
        print("no plot: matplotlib is not installed")
        return
    matplotlib.use("Agg")
    from matplotlib import pyplot

    plot(records, path)
    pyplot.close("all")
