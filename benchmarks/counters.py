"""Counters of the update kernel on a GPU, by Nsight Compute: where it stands under the roof.

    python -m benchmarks.counters [--out FOLDER]      run ncu; FOLDER/counters.csv is its CSV, counters.txt the table
    python -m benchmarks.counters --read FILE         the table of such a CSV, on any machine
    python -m benchmarks.counters --work              the launches that ncu looks at, alone

Exit code 77: it cannot be measured here, and the last line says why.  How to read the table: docs/profiling.md.
"""

from __future__ import annotations

import argparse
import csv
import io
import math
import shutil
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
SKIPPED = 77
ELEMENTS = 2**26  # 128 MB of bfloat16: beyond every L2
LAUNCHES = 2  # of a case; the first warms up, the last counts
KERNEL = "update_kernel"
NO_RIGHTS = "ERR_NVGPUCTRPERM"

TIME, DRAM, SM = "gpu__time_duration.sum", "dram__throughput.avg.pct_of_peak_sustained_elapsed", "sm__throughput"
READ, WRITTEN, INSTRUCTIONS = "dram__bytes_read.sum", "dram__bytes_write.sum", "smsp__inst_executed.sum"
SM += ".avg.pct_of_peak_sustained_elapsed"
REGISTERS, WAVES = "launch__registers_per_thread", "launch__waves_per_multiprocessor"
OCCUPANCY = "sm__warps_active.avg.pct_of_peak_sustained_active"
L1, L2 = "l1tex__t_sector_hit_rate.pct", "lts__t_sector_hit_rate.pct"
STALLS = tuple(
    f"smsp__average_warps_issue_stalled_{why}_per_issue_active.ratio"
    for why in ("long_scoreboard", "short_scoreboard", "lg_throttle", "math_pipe_throttle", "wait")
)
METRICS = (TIME, DRAM, SM, READ, WRITTEN, INSTRUCTIONS, REGISTERS, WAVES, OCCUPANCY, L1, L2, *STALLS)


@dataclass(frozen=True)
class Case:
    """One step of DPM-Solver++ 2M (benchmarks/steps.py): 3 reads and 2 writes of state size."""

    backend: str
    dtype: str
    noise: bool

    @property
    def bytes(self) -> int:
        return 5 * ELEMENTS * {"float32": 4, "bfloat16": 2}[self.dtype]

    def __str__(self) -> str:
        return f"{self.backend} {self.dtype} {'noise' if self.noise else 'no noise'}"


CASES = tuple(
    Case(backend, dtype, noise)
    for backend in ("native", "triton")
    for dtype in ("float32", "bfloat16")
    for noise in (False, True)
)


def command(ncu: str, log: Path) -> list[str]:
    """What runs ncu over ``--work``."""
    return [
        *(ncu, "--csv", "--page", "raw", "--print-units", "base", "--force-overwrite", "--log-file", str(log)),
        *("--kernel-name-base", "function", "--kernel-name", f"regex:{KERNEL}"),
        *("--launch-count", str(LAUNCHES * len(CASES)), "--metrics", ",".join(METRICS)),
        *(sys.executable, "-m", "benchmarks.counters", "--work"),
    ]


def work() -> None:
    """Every case, ``LAUNCHES`` times, in the order of ``CASES``."""
    import torch

    from benchmarks import steps

    for case in CASES:
        job = steps.Job((1, ELEMENTS), getattr(torch, case.dtype), case.noise, "cuda")
        (program,) = steps.build(case.backend, job)
        with torch.inference_mode(), program.active():
            for _ in range(LAUNCHES):
                program.advance()
        torch.cuda.synchronize()
        print(case, flush=True)


def read(text: str) -> list[dict[str, str]]:
    """A row per launch, by metric: of ncu's raw page, or of a page with a line per metric.

    Its own messages and the row of units are left out.  Raises ``ValueError`` if there is no table.
    """
    lines = [line for line in text.splitlines() if line.startswith('"')]
    if len(lines) < 3 or not lines[0].startswith('"ID"'):
        raise ValueError("file: has no table of ncu; it is written by ncu --csv --page raw")
    launches: dict[str, dict[str, str]] = {}
    for row in csv.DictReader(io.StringIO("\n".join(lines))):
        if row["ID"]:
            more = {row["Metric Name"]: row["Metric Value"]} if "Metric Name" in row else row
            launches.setdefault(row["ID"], {}).update(more)
    return list(launches.values())


def number(text: str) -> float:
    """A value of ncu; not a number where it has none."""
    try:
        return float(text.replace(",", ""))
    except ValueError:
        return math.nan


def table(rows: Sequence[dict[str, str]]) -> list[str]:
    """A line per case: measured against declared bytes, and the counters that say what holds it back.

    Raises ``ValueError`` if the rows are not ``LAUNCHES`` per case.
    """
    if len(rows) != LAUNCHES * len(CASES):
        raise ValueError(f"file: has {len(rows)} launches, need {LAUNCHES * len(CASES)}")
    lines = [
        f"{'case':26} {'us':>8} {'bytes/declared':>14} {'DRAM %':>7} {'SM %':>6} {'instr/elem':>10} {'regs':>5} "
        f"{'occup %':>7} {'waves':>7} {'L1 %':>5} {'L2 %':>5}  first stall"
    ]
    for case, row in zip(CASES, rows[LAUNCHES - 1 :: LAUNCHES], strict=True):
        value = {name: number(row.get(name, "n/a")) for name in METRICS}
        moved = (value[READ] + value[WRITTEN]) / case.bytes
        each = 32 * value[INSTRUCTIONS] / ELEMENTS  # counted per warp
        stall = max(STALLS, key=lambda name: -1.0 if math.isnan(value[name]) else value[name])
        why = stall.removeprefix("smsp__average_warps_issue_stalled_").partition("_per_")[0]
        lines.append(
            f"{case!s:26} {value[TIME] / 1e3:8.1f} {moved:14.3f} {value[DRAM]:7.1f} {value[SM]:6.1f} {each:10.1f} "
            f"{value[REGISTERS]:5.0f} {value[OCCUPANCY]:7.1f} {value[WAVES]:7.1f} {value[L1]:5.1f} {value[L2]:5.1f}  "
            f"{why} {value[stall]:.1f}"
        )
    return lines


def measure(out: Path) -> int:
    """Run ncu and write what it says; the exit code."""
    ncu = shutil.which("ncu") or "/usr/local/cuda/bin/ncu"
    if not Path(ncu).exists():
        print("ncu is not on this machine")
        return SKIPPED
    out.mkdir(parents=True, exist_ok=True)
    log = out / "counters.csv"
    code = subprocess.run(command(ncu, log), cwd=ROOT, check=False).returncode
    text = log.read_text(errors="replace") if log.exists() else ""
    if NO_RIGHTS in text:
        log.unlink()
        print(f"no right to read the GPU's counters ({NO_RIGHTS}): an administrator must allow it")
        return SKIPPED
    if code:
        print(f"ncu ended with exit code {code}; see {log}")
        return 1
    shown = "\n".join(table(read(text))) + "\n"
    (out / "counters.txt").write_text(shown)
    print(shown, end="")
    return 0


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=ROOT / "benchmarks" / "results" / "counters", help="folder")
    parser.add_argument("--read", type=Path, metavar="FILE", help="a CSV of before")
    parser.add_argument("--work", action="store_true", help="only what ncu looks at")
    chosen = parser.parse_args(arguments)
    if chosen.read is not None:
        try:
            print("\n".join(table(read(chosen.read.read_text()))))
        except (OSError, ValueError) as error:
            parser.error(f"--read: {error}")
        return 0
    if chosen.work:
        work()
        return 0
    return measure(chosen.out)


if __name__ == "__main__":
    sys.exit(main())
