"""Timing, memory, machine facts and the CSV: what every benchmark shares."""

from __future__ import annotations

import contextlib
import csv
import itertools
import json
import os
import platform
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass, fields
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

import numpy as np
import torch

Advance = Callable[[], None]
Clock = Callable[[], float]
Active = Callable[[], contextlib.AbstractContextManager[None]]

BLOCK_S = 0.002  # a timed block lasts at least this long, so that the clock and the loop do not count
QUEUE = 32  # steps of one block on a GPU: some twelve launches each still fit into the launch queue
WARM_CALLS, MEASURED = 3, "measured call"
CLOCK_HZ = 2e9  # about that of a GPU, to turn the time the host needs for a block into cycles of waiting


@dataclass(frozen=True)
class Timed:
    """A program to time: ``copies`` of its loop body on different memory, called in turn."""

    copies: tuple[Advance, ...]
    active: Active = contextlib.nullcontext


@dataclass(frozen=True)
class Times:
    """Seconds per call, one sample per block; ``rounds`` says in which round each was taken."""

    samples: np.ndarray
    rounds: np.ndarray

    def quantiles(self) -> tuple[float, float, float]:
        """Median, 20 % and 80 %."""
        middle, low, high = np.quantile(self.samples, [0.5, 0.2, 0.8])
        return float(middle), float(low), float(high)


def ratio(of: Times, to: Times) -> tuple[float, float, float]:
    """Median, 20 % and 80 % of the ratios of samples of the same round: drift of the machine cancels."""
    _, i, j = np.intersect1d(of.rounds, to.rounds, return_indices=True)
    middle, low, high = np.quantile(of.samples[i] / to.samples[j], [0.5, 0.2, 0.8])
    return float(middle), float(low), float(high)


def measure(
    programs: dict[str, Timed],
    device: str,
    min_time: float,
    min_rounds: int = 3,
    max_rounds: int = 400,
    clock: Clock = time.perf_counter,
) -> dict[str, Times]:
    """Time the programs in turn, block by block, until each has ``min_time`` seconds and ``min_rounds`` blocks.

    ``clock``: on a CPU, what is read before and after a block; ``time.thread_time`` for programs of one thread on a
    busy machine, as it stands still while other programs have the processor.

    On a GPU a block is timed by events behind a wait as long as the host needs to enqueue it, so that the device does
    not wait for the host (it does for a program that reads from the device; that is part of its time).
    """
    blocks = {name: _Block(timed, device, clock) for name, timed in programs.items()}
    spent = dict.fromkeys(programs, 0.0)
    samples: dict[str, list[float]] = {name: [] for name in programs}
    rounds: dict[str, list[int]] = {name: [] for name in programs}
    for number in range(max_rounds):
        busy = False
        for name, block in blocks.items():
            if spent[name] >= min_time and len(samples[name]) >= min_rounds:
                continue
            busy = True
            start = time.perf_counter()
            samples[name].append(block.run())
            spent[name] += time.perf_counter() - start
            rounds[name].append(number)
        if not busy:
            break
    return {name: Times(np.array(samples[name]), np.array(rounds[name])) for name in programs}


def host_time(timed: Timed, device: str, calls: int = 50, blocks: int = 7) -> Times:
    """Seconds of the host per call.  On a GPU: to enqueue, on an idle device, not to finish."""
    samples = []
    with timed.active():
        for _ in range(blocks):
            if device == "cuda":
                torch.cuda.synchronize()
            samples.append(_wall(timed.copies, calls) / calls)
        if device == "cuda":
            torch.cuda.synchronize()
    return Times(np.array(samples), np.arange(blocks))


class _Block:
    """Some calls of one program, timed together; successive blocks go on through its copies."""

    def __init__(self, timed: Timed, device: str, clock: Clock) -> None:
        self.timed, self.cuda, self.first, self.wait, self.clock = timed, device == "cuda", 0, 0, clock
        with timed.active():  # warm up: compile, touch all memory
            _wall(timed.copies, max(3, len(timed.copies)))
            if self.cuda:
                torch.cuda.synchronize()
                self.calls = QUEUE
                self.wait = int(1.5 * CLOCK_HZ * _wall(timed.copies, QUEUE))
                torch.cuda.synchronize()
                return
            self.calls = 1
            while (seconds := _wall(timed.copies, self.calls, clock=clock)) < BLOCK_S:
                wish = int(self.calls * BLOCK_S / max(seconds, 1e-9)) + 1
                self.calls = max(2 * self.calls, min(64 * self.calls, wish))

    def run(self) -> float:
        """Seconds per call."""
        with self.timed.active():
            seconds = self._events() if self.cuda else _wall(self.timed.copies, self.calls, self.first, self.clock)
        self.first += self.calls
        return seconds / self.calls

    def _events(self) -> float:
        start, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
        steps = _turns(self.timed.copies, self.calls, self.first)
        torch.cuda._sleep(self.wait)
        start.record()
        for step in steps:
            step()
        end.record()
        end.synchronize()
        return float(start.elapsed_time(end)) * 1e-3


def _turns(copies: Sequence[Advance], calls: int, first: int) -> list[Advance]:
    return [copies[(first + i) % len(copies)] for i in range(calls)]


def _wall(copies: Sequence[Advance], calls: int, first: int = 0, clock: Clock = time.perf_counter) -> float:
    steps = _turns(copies, calls, first)
    start = clock()
    for step in steps:
        step()
    return clock() - start


def peak_bytes(step: Advance, active: Active, device: str) -> int:
    """Most bytes of tensors alive in one call beyond those alive before it.

    CPU: from the allocation events of torch.profiler, which sees torch's allocator and not a library's own malloc.
    """
    with active():
        step()
        if device == "cuda":
            torch.cuda.synchronize()
            torch.cuda.reset_peak_memory_stats()
            before = torch.cuda.memory_allocated()
            step()
            torch.cuda.synchronize()
            return torch.cuda.max_memory_allocated() - before
        with torch.profiler.profile(
            activities=[torch.profiler.ProfilerActivity.CPU], profile_memory=True, acc_events=True
        ) as profile:
            for _ in range(WARM_CALLS):  # so that what the measured call frees was seen to be allocated
                step()
            with torch.profiler.record_function(MEASURED):
                step()
    with tempfile.TemporaryDirectory() as folder:
        trace = Path(folder) / "trace.json"
        profile.export_chrome_trace(str(trace))
        events = json.loads(trace.read_text())["traceEvents"]
    start = next(e["ts"] for e in events if e["name"] == MEASURED and e.get("cat") == "user_annotation")
    changes = sorted((e["ts"], e["args"]["Ev Idx"], e["args"]["Bytes"]) for e in events if e["name"] == "[memory]")
    return int(max(itertools.accumulate((size for ts, _, size in changes if ts >= start), initial=0)))


@dataclass(frozen=True)
class Record:
    """One line of the CSV; the columns of Liger-Kernel's benchmark data, with our version."""

    kernel_name: str
    kernel_provider: str
    kernel_operation_mode: str
    metric_name: str
    metric_unit: str
    x_name: str
    x_label: str
    x_value: int
    y_value_50: float
    y_value_20: float
    y_value_80: float
    extra_benchmark_config_str: str
    gpu_name: str  # of the CPU where there is no GPU in the measurement
    timestamp: str
    fastsample_version: str


COLUMNS = tuple(f.name for f in fields(Record))


def write_csv(path: Path, records: Iterable[Record]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w", newline="") as file:
        writer = csv.DictWriter(file, COLUMNS)
        writer.writeheader()
        writer.writerows(asdict(record) for record in records)


def now() -> str:
    return datetime.now(timezone.utc).strftime("%Y-%m-%d %H:%M:%S")


def machine(device: str) -> dict[str, Any]:
    """What the numbers depend on, and the load of the machine before anything was timed."""
    load = os.getloadavg()
    from fastsample import info, native

    found: dict[str, Any] = {
        "load_average_at_start": [round(x, 2) for x in load],
        "cpu": cpu_name(),
        "cpu_count": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "last_level_cache": _text(Path("/sys/devices/system/cpu/cpu0/cache/index3/size")),
        "platform": platform.platform(),
        "python": platform.python_version(),
        "torch": torch.__version__,
        "environment": {
            k: v
            for k, v in sorted(os.environ.items())
            if k.startswith(("FASTSAMPLE_", "OMP_", "MKL_", "TORCHINDUCTOR_"))
        },
        "native_library": {d: native.load_for(d) and native.loaded_from(d) != "triton" for d in {"cpu", device}},
        "compiler": _compiler(),
        **{name: info._version(name) for name in ("fastsample", "triton", "diffusers", "numpy")},
    }
    found["cpu_isa"] = info.cpu_isa()
    if device == "cuda":
        properties = torch.cuda.get_device_properties(0)
        found["gpu"] = {
            "name": properties.name,
            "capability": f"{properties.major}.{properties.minor}",
            "multiprocessors": properties.multi_processor_count,
            "memory_bytes": properties.total_memory,
            "l2_bytes": properties.L2_cache_size,
            "cuda": torch.version.cuda,
            "driver": _first_line(["nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader"]),
        }
    return found


def cpu_name() -> str:
    for line in _text(Path("/proc/cpuinfo")).splitlines():
        if line.startswith("model name"):
            return line.split(":", 1)[1].strip()
    return platform.processor() or "unknown CPU"


def device_name(device: str) -> str:
    return torch.cuda.get_device_name(0) if device == "cuda" else cpu_name()


def _compiler() -> str:
    from fastsample import building

    try:
        return _first_line([building.compiler(), "--version"])
    except building.BuildError:
        return ""


def _first_line(command: Sequence[str]) -> str:
    try:
        done = subprocess.run(command, capture_output=True, text=True, check=True, timeout=20)
    except (OSError, subprocess.SubprocessError):
        return ""
    return (done.stdout.splitlines() or [""])[0]


def _text(path: Path) -> str:
    try:
        return path.read_text().strip()
    except OSError:
        return ""
