"""Static figures of every point of the CUDA kernel of update, and their comparison with those that are committed."""

from __future__ import annotations

import csv
import os
import shutil
import subprocess
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path

from .code import Kernel, cuobjdump, instance, kernels
from .machine import Machine, Trace
from .model import blocks_per_processor, limits
from .operands import UnknownError

HERE = Path(__file__).resolve().parent
CSRC = HERE.parents[1] / "csrc"
RESULTS = HERE.parent / "results" / "sass.csv"
PARAMETERS, SHARED, THREAD = 0x210, 0x400, 64  # where sm_90 keeps them; a thread that stages nothing of a row
TENSORS = 13  # points.cpp: tensor n begins at n + 1 times 64 GiB
MARGIN = 1.05  # of instructions, before a point fails


@dataclass(frozen=True)
class Row:
    """One point.  ``instructions``: of an element; ``once``: of a thread before and after its loop."""

    dtype: str
    terms: int
    outputs: int
    noise: str
    instance: str
    elements: int
    instructions: float | None  # None: the library's float64 functions branch on values
    once: int | None
    registers: int
    stack: int
    loads: str  # of a turn, as 3x16: three of 16 bytes
    stores: str
    read: float  # bytes of an element
    written: float
    blocks: int  # of 128 threads on a processor
    in_flight: float  # KiB of a processor
    needed: float
    issue: float | None  # of the bandwidth of an H200
    bound: str

    def name(self) -> str:
        return f"{self.dtype} K={self.terms} outputs={self.outputs} noise={self.noise}"


def rows(compiled: Path, folder: Path) -> list[Row]:
    """The table of an object of csrc/cuda/update.cu for sm_90.  ``folder``: for a small host program."""
    tool = cuobjdump()
    if tool is None:
        raise FileNotFoundError("no cuobjdump (it comes with triton and with the CUDA toolkit)")
    code = {name: kernel for mangled, kernel in kernels(compiled, tool).items() if (name := instance(mangled))}
    program = folder / "points"
    compiler = os.environ.get("CXX") or shutil.which("g++") or "c++"
    flags = ["-std=c++17", "-O1", "-ffp-contract=off", f"-I{CSRC}"]
    subprocess.run([compiler, *flags, str(HERE / "points.cpp"), "-o", str(program)], check=True)
    runs = [
        subprocess.run([str(program), turns], check=True, capture_output=True, text=True).stdout.splitlines()
        for turns in ("2", "3")
    ]
    return [_row(code, *lines) for lines in zip(*runs, strict=True)]


def _row(code: dict[str, Kernel], two: str, three: str) -> Row:
    dtype, terms, outputs, noise, name, elements, *_ = two.split()
    kernel, piece = code[name], int(elements)
    short, long = _follow(kernel, two), _follow(kernel, three)
    common = dtype, int(terms), int(outputs), noise, name, piece
    blocks = blocks_per_processor(kernel.registers)
    if short is None or long is None:
        return Row(*common, None, None, kernel.registers, kernel.stack, "", "", 0, 0, blocks, 0, 0, None, "")
    turn = long.issued - short.issued
    loads, stores = long.loads[len(short.loads) :], long.stores[len(short.stores) :]
    read, written = sum(n for n, _ in loads) / piece, sum(n for n, _ in stores) / piece
    found = limits(turn / piece, read, written, long.in_flight, kernel.registers)
    return Row(
        *common,
        instructions=round(turn / piece, 2),
        once=short.issued - 2 * turn,
        registers=kernel.registers,
        stack=kernel.stack,
        loads=_widths(n for n, _ in loads),
        stores=_widths(n for n, _ in stores),
        read=read,
        written=written,
        blocks=blocks,
        in_flight=round(found.in_flight, 1),
        needed=round(found.needed, 1),
        issue=round(found.issue, 3),
        bound=found.bound,
    )


def _follow(kernel: Kernel, line: str) -> Trace | None:
    """What thread THREAD does with the parameters and the row of a line of points.cpp; None if values decide."""
    *_, parameters, shared = line.split()
    constants = dict(enumerate(bytes.fromhex(parameters) + bytes(256), PARAMETERS))  # what follows is not asked for
    memory = dict(enumerate(bytes.fromhex(shared), SHARED))
    try:
        return Machine(
            kernel.code, constants, memory, THREAD, lambda at: at is not None and 0 < at >> 36 < TENSORS
        ).run()
    except UnknownError:
        if kernel.stack == 0:  # only the library of float64 may do that
            raise
        return None


def _widths(sizes: Iterable[int]) -> str:
    counted = list(sizes)
    return " ".join(f"{counted.count(n)}x{n}" for n in sorted(set(counted), reverse=True))


def write(path: Path, table: Sequence[Row]) -> None:
    with path.open("w", newline="") as file:
        out = csv.DictWriter(file, [f.name for f in fields(Row)], lineterminator="\n")
        out.writeheader()
        out.writerows({k: "" if v is None else v for k, v in asdict(row).items()} for row in table)


def read(path: Path = RESULTS) -> list[dict[str, str]]:
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


def faults(table: Sequence[Row], committed: Sequence[dict[str, str]]) -> list[str]:
    """What is worse than the committed table, by the name of the point."""
    known = {(r["dtype"], int(r["terms"]), int(r["outputs"]), r["noise"]): r for r in committed}
    found = []
    for row in table:
        before = known.get((row.dtype, row.terms, row.outputs, row.noise))
        if before is None:
            found.append(f"{row.name()}: not in {RESULTS.name}; run python -m benchmarks.sass")
            continue
        if row.instructions is not None and before["instructions"]:
            budget = MARGIN * float(before["instructions"])
            if row.instructions > budget:
                found.append(f"{row.name()}: {row.instructions} instructions per element, allowed are {budget:.1f}")
        elif before["instructions"]:
            found.append(f"{row.name()}: its code can no longer be followed")
        for what in ("loads", "stores"):
            if (now := getattr(row, what)) != before[what]:
                found.append(f"{row.name()}: {what} {now}, were {before[what]}")
        if row.blocks < int(before["blocks"]):
            found.append(f"{row.name()}: {row.blocks} blocks on a processor, were {before['blocks']}")
        if row.stack > int(before["stack"]):
            found.append(f"{row.name()}: {row.stack} bytes of stack, were {before['stack']}")
    return found
