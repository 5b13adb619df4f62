"""Compile the Triton kernels for NVIDIA targets without a GPU, and check the machine code.

    python .ci/aot_triton.py [--quick] [--table]

Points of update: dtype x K terms x noise, on compute capabilities 8.0, 9.0, 10.0 and 12.0, with the launch that a large
dense state gets, and a few others (small, strided, three outputs, a step per sample).  Fails on a spill, on shared
memory, on an access of a dense tensor that is not 16 bytes wide, and on 5 % more instructions per element on sm_90 than
in benchmarks/results/sass_triton.csv, which --table renews.  The other kernels: aot_triton_others.py.
"""

from __future__ import annotations

import argparse
import collections
import concurrent.futures
import csv
import dataclasses
import itertools
import re
import sys
import time
from typing import Any

import aot_triton_others
import torch
from triton_code import CAPABILITIES, LARGE, SHORT, SMALL, Instruction, compiled, disassemble

from benchmarks.sass.table import MARGIN, RESULTS
from fastsample.triton import update as backend
from fastsample.triton.kernel import update_kernel

TABLE = RESULTS.with_name("sass_triton.csv")
COLUMNS = ("dtype", "terms", "noise", "instructions", "registers")


@dataclasses.dataclass(frozen=True)
class Point:
    cc: int
    dtype: torch.dtype
    terms: int
    noise: str  # "none", "key", "one" (key, second noise compiled out: for counting only), "tensor"
    outs: int = 1
    shape: tuple[int, ...] = LARGE
    layout: str = "dense"
    per_sample: bool = False
    clock: bool = False  # writes the time and moves the clock too

    def name(self) -> str:
        extra = "".join(
            [
                f" N={self.outs}" if self.outs > 1 else "",
                " small" if self.shape == SMALL else "",
                f" {self.layout}" if self.layout != "dense" else "",
                " steps" if self.per_sample else "",
                " clock" if self.clock else "",
            ]
        )
        return f"sm_{self.cc:<3} {SHORT[self.dtype]} K={self.terms} noise={self.noise}{extra}"


@dataclasses.dataclass
class Report:
    point: Point
    registers: int
    executed: float  # instructions per element
    seconds: float
    faults: list[str]


def arguments(point: Point) -> tuple[dict[str, Any], backend.Launch]:
    """The arguments of the launch that ``update_`` makes for this point, by name."""

    def tensor() -> torch.Tensor:
        x = torch.empty(point.shape, dtype=point.dtype, device="meta")
        return x if point.layout == "dense" else x[..., ::2]

    outs, terms = [tensor() for _ in range(point.outs)], [tensor() for _ in range(point.terms)]
    noise = [tensor()] if point.noise == "tensor" else []
    key = torch.empty(point.shape[0], 2, dtype=torch.uint64, device="meta") if point.noise in ("key", "one") else None
    step = torch.empty(point.shape[:1] if point.per_sample else (), dtype=torch.int64, device="meta")
    table = torch.empty(4, 48, dtype=torch.float64, device="meta")
    times = torch.empty(point.shape[0], device="meta") if point.clock else None
    clock = torch.empty(2, dtype=torch.int64, device="meta") if point.clock else None
    launch = backend.describe(outs, terms, step, key, noise)
    values = (tuple(outs), tuple(terms), tuple(noise), table, step, key, times, clock, 4, *launch.static)
    named = dict(zip(update_kernel.arg_names, values, strict=True))
    if point.noise == "one":
        named["R"] = 1
    return named, launch


def examine(point: Point) -> Report:
    """Compile one point and look at what came out."""
    begin = time.perf_counter()
    named, launch = arguments(point)
    built = compiled(update_kernel, named, point.cc, launch.warps)
    code, registers, stack, local = disassemble(built)
    faults = []
    # The library's float64 sin and cos keep 40 to 48 bytes on the stack for huge arguments, which do not occur.
    if stack > (48 if point.dtype == torch.float64 and named["key"] is not None else 0) or local:
        faults.append(f"spills (stack {stack}, local {local})")
    if point.layout == "dense":
        if built.metadata.shared > (16 if point.clock else 0):  # the count of programs, told to all threads
            faults.append(f"{built.metadata.shared} bytes of shared memory")
        faults += accesses(point, code, named)
        # In PTX, since the assembler may make one branch of several equal predicates.
        if re.search(r"^\s*ld\.global\.v", built.asm["ptx"], re.MULTILINE):
            faults.append("a load of a term without predicate")
    if point.dtype == torch.bfloat16 and not any(i.op.startswith(("F2FP.BF16", "F2F.BF16")) for i in code):
        faults.append("no rounding conversion to bfloat16")
    per_thread = named["BLOCK"] // (32 * launch.warps)
    executed = float("nan")
    if point.dtype != torch.float64 and not point.clock:  # the library's log, sin and cos of float64 branch
        executed = count(code, named["ROUNDS"], 1 if point.noise in ("key", "one") else 0) / (
            per_thread * named["ROUNDS"]
        )
    return Report(point, registers, executed, time.perf_counter() - begin, faults)


def accesses(point: Point, code: list[Instruction], named: dict[str, Any]) -> list[str]:
    """Faults of loads and stores: those of tensors are 16 bytes wide."""
    loads = [i for i in code if i.op.startswith("LDG") and "CONSTANT" not in i.op]  # those are the library's tables
    stores = [i for i in code if i.op.startswith("STG")]
    beside = [i for i in stores if ".128" not in i.op and ".256" not in i.op]  # time, clock, and its scratch
    if point.clock and beside and len(beside) <= 3:
        stores = [i for i in stores if i not in beside]
    vector = [i for i in loads if ".128" in i.op or ".256" in i.op]
    scalar = [i for i in loads if i not in vector and ".64" in i.op]  # row, step and key
    reads = named["K"] + len(named["noise"])
    faults = []
    if len(vector) < reads or len(stores) < named["N"]:
        faults.append(f"{len(vector)} wide loads of {reads} tensors, {len(stores)} stores of {named['N']}")
    if len(vector) + len(scalar) != len(loads) or any(".128" not in i.op and ".256" not in i.op for i in stores):
        faults.append(f"narrow accesses {dict(collections.Counter(i.op for i in loads + stores))}")
    return faults


def count(code: list[Instruction], rounds: int, noises: int) -> float:
    """Instructions that a thread issues in the full blocks of a row whose weights are all nonzero.

    The path is every instruction, predicated ones too, in the order of the code, but (1) of the square root's branches
    the quick one, since the other serves arguments that are zero, subnormal or infinite, (2) only ``noises`` blocks of
    noise, since a second noise without weight is jumped over.  The loop over blocks runs ``rounds`` times.
    """
    place = {i.address: n for n, i in enumerate(code)}
    back = [n for n, i in enumerate(code) if i.target is not None and i.target < i.address and rounds > 1]
    begin, end = (place[code[back[0]].target], back[0]) if back else (len(code), len(code))  # type: ignore[index]
    n, total, made = 0, 0.0, 0
    while n < len(code):
        instruction = code[n]
        total += rounds if begin <= n <= end else 1
        if instruction.op == "EXIT" and not instruction.predicated:
            break
        if (
            instruction.op.startswith("BRA")
            and instruction.target is not None
            and instruction.target > instruction.address
        ):
            skipped = code[n + 1 : place[instruction.target]]
            if not instruction.predicated:
                n = place[instruction.target]
                continue
            if len(skipped) > 150:  # a noise block: philox and Box-Muller of 8 or 16 elements
                made += 1
                if made > noises:
                    n = place[instruction.target]
                    continue
            elif any(i.op.startswith("CALL") for i in skipped):
                n = place[instruction.target]
                continue
        if n == end:
            break
        n += 1
    return total if made >= noises else float("nan")


def points(quick: bool) -> list[Point]:
    if quick:
        return [
            Point(90, torch.bfloat16, 3, "one"),
            Point(90, torch.bfloat16, 3, "key"),
            Point(90, torch.bfloat16, 3, "none"),
            Point(80, torch.float32, 2, "key"),
            Point(120, torch.float16, 8, "tensor", shape=SMALL),
            Point(100, torch.float64, 2, "key", per_sample=True),
            Point(90, torch.bfloat16, 3, "key", clock=True),
        ]
    # every number of terms for one target, which the table is of; the fewest, the usual and the most for the others
    sweep = [
        (cc, *rest)
        for cc in CAPABILITIES
        for rest in itertools.product(SHORT, range(1, 9) if cc == 90 else (1, 3, 4, 8), ("none", "key", "tensor"))
    ]
    others = [
        point
        for cc, dtype in itertools.product(CAPABILITIES, SHORT)
        for point in (
            Point(cc, dtype, 3, "one"),
            Point(cc, dtype, 3, "key", shape=SMALL),
            Point(cc, dtype, 3, "key", outs=3, per_sample=True),
            Point(cc, dtype, 2, "key", layout="strided"),
            Point(cc, dtype, 0, "key"),
            Point(cc, dtype, 3, "key", clock=True),
            Point(cc, dtype, 3, "none", clock=True, per_sample=True),
        )
    ]
    return [Point(*p) for p in sweep] + others


def cell(point: Point) -> tuple[str, str, str] | None:
    """Where a point stands in the table; None: it is not in it."""
    plain = Point(90, point.dtype, point.terms, point.noise)
    return (SHORT[point.dtype], str(point.terms), point.noise) if point == plain else None


def over_budget(report: Report, budgets: dict[tuple[str, str, str], float]) -> str | None:
    """The fault of a point that issues more instructions than the committed table has."""
    here = cell(report.point)
    if here is None or report.point.dtype == torch.float64:
        return None
    if here not in budgets:
        return f"not in {TABLE.name}; run .ci/aot_triton.py --table"
    if report.executed <= MARGIN * budgets[here]:
        return None
    return f"more than {MARGIN * budgets[here]:.1f} instructions per element"


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="a few points")
    parser.add_argument("--table", action="store_true", help="only sm_90, and write the table")
    parser.add_argument("--jobs", type=int, default=2)
    options = parser.parse_args()
    begin = time.perf_counter()
    wanted = [p for p in points(options.quick) if cell(p) or not options.table]
    with concurrent.futures.ProcessPoolExecutor(options.jobs) as pool:
        checks = () if options.table else aot_triton_others.CHECKS
        pending = [pool.submit(check, options.quick) for check in checks]  # the longest first
        reports = list(pool.map(examine, wanted, chunksize=1 if options.quick else 8))
    if options.table:
        with TABLE.open("w", newline="") as file:
            out = csv.writer(file, lineterminator="\n")
            out.writerow(COLUMNS)
            for r in reports:
                executed = "" if r.executed != r.executed else f"{r.executed:.2f}"
                out.writerow([*(cell(r.point) or ()), executed, r.registers])
        print(f"written: {TABLE}")
    with TABLE.open(newline="") as file:
        lines = list(csv.DictReader(file))
    budgets = {(r["dtype"], r["terms"], r["noise"]): float(r["instructions"]) for r in lines if r["instructions"]}
    print(f"{'point':<46} registers  instructions/element")
    for r in reports:
        if fault := over_budget(r, budgets):
            r.faults.append(fault)
        figure = "" if r.executed != r.executed else f"{r.executed:.1f}"
        print(f"{r.point.name():<46} {r.registers:>9}  {figure:>20}  {'; '.join(r.faults)}")
    others = [fault for check in pending for fault in check.result()]
    for fault in others:
        print(fault)
    bad = sum(bool(r.faults) for r in reports) + len(others)
    print(f"{len(reports)} points, {bad} bad, {time.perf_counter() - begin:.0f} s")
    return 1 if bad else 0


if __name__ == "__main__":
    sys.exit(main())
