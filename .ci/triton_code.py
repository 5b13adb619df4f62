"""What the ahead-of-time checks of Triton kernels share: compiling for a target, and reading the machine code."""

from __future__ import annotations

import dataclasses
import re
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import torch
import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

sys.path.insert(0, str(Path(__file__).parent.parent))

TOOLS = Path(triton.__file__).parent / "backends" / "nvidia" / "bin"
CAPABILITIES = (80, 90, 100, 120)
SHORT = {torch.float32: "fp32", torch.bfloat16: "bf16", torch.float16: "fp16", torch.float64: "fp64"}
LARGE, SMALL = (8, 1 << 21), (4, 4096)


def compiled(kernel: Any, named: dict[str, Any], cc: int, warps: int) -> Any:
    """A kernel for a target, by the arguments of its launch."""
    options = {"num_warps": warps, "enable_fp_fusion": False}
    return triton.compile(source(kernel, named), target=GPUTarget("cuda", cc, 32), options=options)


def source(kernel: Any, named: dict[str, Any]) -> ASTSource:
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
