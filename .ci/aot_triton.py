"""Compile the Triton kernel of update for NVIDIA targets without a GPU, and check the machine code.

    python .ci/aot_triton.py [--quick]

Points: dtype x K terms x noise, on compute capabilities 8.0, 9.0, 10.0 and 12.0, with the launch that a large dense
state gets, and a few others (small, strided, three outputs, a step per sample).  Fails on a spill, on shared memory,
on an access of a dense tensor that is not 16 bytes wide, or on too many instructions per element on sm_90.
"""

from __future__ import annotations

import argparse
import collections
import concurrent.futures
import dataclasses
import itertools
import re
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import torch
import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

sys.path.insert(0, str(Path(__file__).parent.parent))
from fastsample.triton import brownian as brownian_backend
from fastsample.triton import metropolis as metropolis_backend
from fastsample.triton import rescale as rescale_backend
from fastsample.triton import threshold as threshold_backend
from fastsample.triton import update as backend
from fastsample.triton.brownian_kernel import brownian_kernel
from fastsample.triton.kernel import update_kernel
from fastsample.triton.reduce_kernel import threshold_count_kernel

TOOLS = Path(triton.__file__).parent / "backends" / "nvidia" / "bin"
CAPABILITIES = (80, 90, 100, 120)
SHORT = {torch.float32: "fp32", torch.bfloat16: "bf16", torch.float16: "fp16", torch.float64: "fp64"}
LARGE, SMALL = (8, 1 << 21), (4, 4096)
BUDGET = 72  # sm_90 instructions per element, bf16, 3 reads + 1 write, one noise


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


def source(named: dict[str, Any], kernel: Any = update_kernel) -> ASTSource:
    """What Triton's launcher would compile: integers 1 are constants, multiples of 16 marked, pointers aligned."""
    constexprs: dict[tuple[int, ...], Any] = {}
    attributes: dict[tuple[int, ...], Any] = {}
    # Not specialised (kernel.py).
    plain = ("table", "nodes", "weights", "step", "key", "time", "clock", "rows", "width", "work", "chain", "uniform",
             "blocks")  # fmt: skip

    def describe(name: str, value: Any, path: tuple[int, ...]) -> Any:
        if isinstance(value, tuple):
            return tuple(describe(name, v, (*path, i)) for i, v in enumerate(value))
        if isinstance(value, torch.Tensor):
            if name not in plain:
                attributes[path] = [["tt.divisibility", 16]]
            return "*" + {torch.uint64: "u64", torch.int64: "i64", torch.int32: "i32", **SHORT}[value.dtype]
        if isinstance(value, int) and not isinstance(value, bool) and not params[name].is_constexpr:
            if name not in plain and value == 1:
                constexprs[path] = 1
                return "constexpr"
            if name not in plain and value % 16 == 0:
                attributes[path] = [["tt.divisibility", 16]]
            return "i32" if -(2**31) <= value < 2**31 else "i64"
        if isinstance(value, float) and not params[name].is_constexpr:
            return params[name].annotation_type or "fp32"
        constexprs[path] = value
        return "constexpr"

    params = {p.name: p for p in kernel.params}
    signature = {name: describe(name, value, (i,)) for i, (name, value) in enumerate(named.items())}
    return ASTSource(kernel, signature, constexprs=constexprs, attrs=attributes)


def examine(point: Point) -> Report:
    """Compile one point and look at what came out."""
    begin = time.perf_counter()
    named, launch = arguments(point)
    options = {"num_warps": launch.warps, "enable_fp_fusion": False}
    compiled = triton.compile(source(named), target=GPUTarget("cuda", point.cc, 32), options=options)
    code, registers, stack, local = disassemble(compiled)
    faults = []
    # The library's float64 sin and cos keep 40 bytes on the stack for huge arguments, which do not occur.
    if stack > (40 if point.dtype == torch.float64 and named["key"] is not None else 0) or local:
        faults.append(f"spills (stack {stack}, local {local})")
    if point.layout == "dense":
        if compiled.metadata.shared > (16 if point.clock else 0):  # the count of programs, told to all threads
            faults.append(f"{compiled.metadata.shared} bytes of shared memory")
        faults += accesses(point, code, named)
        # In PTX, since the assembler may make one branch of several equal predicates.
        if re.search(r"^\s*ld\.global\.v", compiled.asm["ptx"], re.MULTILINE):
            faults.append("a load of a term without predicate")
    if point.dtype == torch.bfloat16 and not any(i.op.startswith(("F2FP.BF16", "F2F.BF16")) for i in code):
        faults.append("no rounding conversion to bfloat16")
    per_thread = named["BLOCK"] // (32 * launch.warps)
    executed = float("nan")
    if (
        point.dtype != torch.float64 and not point.clock
    ):  # log, sin and cos of float64 come with branches of the library
        executed = count(code, named["ROUNDS"], 1 if point.noise in ("key", "one") else 0) / (
            per_thread * named["ROUNDS"]
        )
    return Report(point, registers, executed, time.perf_counter() - begin, faults)


def disassemble(compiled: Any) -> tuple[list[Instruction], int, int, int]:
    """Instructions, registers, bytes of stack and of local memory."""
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(compiled.asm["cubin"])
        file.flush()
        dump = subprocess.run(
            [str(TOOLS / "cuobjdump"), "-sass", "-res-usage", file.name], check=True, capture_output=True, text=True
        ).stdout
    match = re.search(r"REG:(\d+) STACK:(\d+) SHARED:\d+ LOCAL:(\d+)", dump)
    if match is None:
        raise RuntimeError("cuobjdump -res-usage: no line of registers")
    registers, stack, local = map(int, match.groups())
    return parse(dump), registers, stack, local


def brownian_faults(quick: bool) -> list[str]:
    """Compile the kernel of ``brownian`` for a large dense output: no spills, stores of at least 8 bytes."""
    faults = []
    for cc, dtype in itertools.product((90,) if quick else CAPABILITIES, SHORT):

        def tensor(dtype: torch.dtype, *shape: int) -> torch.Tensor:
            return torch.empty(shape, dtype=dtype, device="meta")

        out, step = tensor(dtype, *LARGE), tensor(torch.int64)
        arguments, _, warps = brownian_backend.describe(out, step)
        table = (tensor(torch.uint64, LARGE[0], 2), tensor(torch.int64, 20, 46), tensor(torch.float64, 20, 46))
        named = dict(zip(brownian_kernel.arg_names, (out, *table, step, 20, 46, *arguments), strict=True))
        options = {"num_warps": warps, "enable_fp_fusion": False}
        compiled = triton.compile(source(named, brownian_kernel), target=GPUTarget("cuda", cc, 32), options=options)
        code, registers, stack, local = disassemble(compiled)
        stores = [i.op for i in code if i.op.startswith("STG")]
        name = f"sm_{cc:<3} {SHORT[dtype]} brownian"
        print(f"{name:<46} {registers:>9}")
        if stack > (40 if dtype == torch.float64 else 0) or local:
            faults.append(f"{name}: spills (stack {stack}, local {local})")
        if not stores or not all(".64" in op or ".128" in op for op in stores):
            faults.append(f"{name}: stores {stores}")
    return faults


def reduce_faults(quick: bool) -> list[str]:
    """Compile the kernels of ``threshold`` and ``rescale``: no spills, and wide loads of a large dense state."""
    faults = []
    dtypes = (torch.float32, torch.float64) if quick else tuple(SHORT)
    for cc, dtype in itertools.product((90,) if quick else CAPABILITIES, dtypes):

        def tensor(dtype: torch.dtype, *shape: int) -> torch.Tensor:
            return torch.empty(shape, dtype=dtype, device="meta")

        def rows(n: int) -> torch.Tensor:
            return tensor(torch.float64, n, 48)

        few, many = [tensor(dtype, *SMALL)] * 2, [tensor(dtype, *LARGE)] * 2
        step, counts, state = tensor(torch.int64, 4), tensor(torch.int32, 8, 1 << 16), tensor(torch.int64, 8, 4)
        launches = [threshold_backend.small(rows(4), few, rows(3), step, 0.995, 1.0, 2.0)]
        for level in range(4 if dtype == torch.float64 else 2):
            made = threshold_backend.passes(
                rows(8), counts, state, many, rows(3), tensor(torch.int64), 0.995, 1.0, 2.0, level
            )
            launches += [(*launch, 4) for launch in made]
        made = rescale_backend.describe(rows(8), many, rows(3), tensor(torch.int64), 0, 1, 7.5, 0.7)
        launches += [(*launch, 4) for launch in made]
        for kernel, arguments, _, warps in launches:
            named = dict(zip(kernel.arg_names, arguments, strict=True))
            options = {"num_warps": warps, "enable_fp_fusion": False}
            compiled = triton.compile(source(named, kernel), target=GPUTarget("cuda", cc, 32), options=options)
            code, registers, stack, local = disassemble(compiled)
            name = f"sm_{cc:<3} {SHORT[dtype]} {kernel.__name__}"
            print(f"{name:<46} {registers:>9}")
            if stack or local:
                faults.append(f"{name}: spills (stack {stack}, local {local})")
            loads = [i.op for i in code if i.op.startswith("LDG")]
            if kernel is threshold_count_kernel and sum(".128" in op or ".64" in op for op in loads) < len(many):
                faults.append(f"{name}: loads {loads}")
    return faults


def metropolis_faults(quick: bool) -> list[str]:
    """Compile the kernels of ``metropolis`` with all terms and outputs, dense and strided: no spills, wide accesses."""
    faults = []
    dtypes = (torch.float32, torch.bfloat16) if quick else tuple(SHORT)
    for cc, dtype, strided in itertools.product((90,) if quick else CAPABILITIES, dtypes, (False, True)):
        batch, terms, outs = LARGE[0], 4, 3

        def tensor(dtype: torch.dtype, *shape: int) -> torch.Tensor:
            return torch.empty(shape, dtype=dtype, device="meta")

        def states(n: int, dtype: torch.dtype = dtype, strided: bool = strided) -> list[torch.Tensor]:
            return [tensor(dtype, *LARGE)[..., :: 2 if strided else 1] for _ in range(n)]

        (state, cache, proposal, fresh), others, to = states(4), states(terms), states(outs)
        step, key = tensor(torch.int64, batch), tensor(torch.uint64, batch, 2)
        launches = metropolis_backend.describe(state, cache, to, proposal, fresh, others, step, key, [])
        work, chain, table = (tensor(torch.float64, n, m) for n, m in ((batch, 1538), (batch, 5), (20, 96)))
        numbers, last = (work, chain, table, step, key), (20, 512)
        for launch, pointers in (
            (launches[0], ((state, proposal, cache, fresh, *others), *numbers, None)),
            (launches[1], ((state, cache), (proposal, fresh), tuple(to), tuple(others), (), *numbers)),
        ):
            kernel = launch.kernel
            named = dict(zip(kernel.arg_names, (*pointers, *last, *launch.static), strict=True))
            options = {"num_warps": launch.warps, "enable_fp_fusion": False}
            compiled = triton.compile(source(named, kernel), target=GPUTarget("cuda", cc, 32), options=options)
            code, registers, stack, local = disassemble(compiled)
            name = f"sm_{cc:<3} {SHORT[dtype]} {kernel.__name__}{' strided' if strided else ''}"
            print(f"{name:<46} {registers:>9}")
            # The library's float64 sin and cos, as in examine.
            if stack > (40 if dtype == torch.float64 and launch is launches[1] else 0) or local:
                faults.append(f"{name}: spills (stack {stack}, local {local})")
            wide = sum(".128" in i.op or ".256" in i.op for i in code if i.op.startswith(("LDG", "STG")))
            if launch is launches[1] and not strided and wide < 4 + terms + 2 + outs:
                faults.append(f"{name}: {wide} wide accesses")
    return faults


@dataclasses.dataclass
class Instruction:
    address: int
    predicated: bool
    op: str
    target: int | None  # of a branch


def parse(sass: str) -> list[Instruction]:
    """Instructions of a disassembly, without the padding after the end."""
    code = []
    for address, guard, op, rest in re.findall(r"/\*([0-9a-f]{4,})\*/\s+(@!?U?P\w+\s+)?([A-Z][\w.]*)([^;]*);", sass):
        target = re.search(r"0x([0-9a-f]+)", rest) if op.startswith("BRA") else None
        guarded = bool(guard) or bool(target and re.search(r"\bU?P[0-9]", rest))  # BRA.U !UP0, 0x...
        code.append(Instruction(int(address, 16), guarded, op, int(target.group(1), 16) if target else None))
    while code and code[-1].op == "NOP":
        code.pop()
    return code


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
    sweep = itertools.product(CAPABILITIES, SHORT, range(1, 9), ("none", "key", "tensor"))
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


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="a few points")
    parser.add_argument("--jobs", type=int, default=2)
    options = parser.parse_args()
    begin = time.perf_counter()
    with concurrent.futures.ProcessPoolExecutor(options.jobs) as pool:
        reports = list(pool.map(examine, points(options.quick), chunksize=1 if options.quick else 8))
    budgeted = [Point(90, torch.bfloat16, 3, noise) for noise in ("one", "key", "none")]
    print(f"{'point':<46} registers  instructions/element")
    for r in reports:
        if r.point in budgeted and not r.executed <= BUDGET:
            r.faults.append(f"more than {BUDGET} instructions per element")
        figure = "" if r.executed != r.executed else f"{r.executed:.1f}"
        print(f"{r.point.name():<46} {r.registers:>9}  {figure:>20}  {'; '.join(r.faults)}")
    others = brownian_faults(options.quick) + reduce_faults(options.quick) + metropolis_faults(options.quick)
    for fault in others:
        print(fault)
    bad = sum(bool(r.faults) for r in reports) + len(others)
    print(f"{len(reports)} points, {bad} bad, {time.perf_counter() - begin:.0f} s")
    return 1 if bad else 0


if __name__ == "__main__":
    sys.exit(main())
