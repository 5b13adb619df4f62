"""NVIDIA machine code as text: instructions of a disassembly, kernels of an object, and the tools that write them."""

from __future__ import annotations

import importlib.util
import re
import shutil
import subprocess
from dataclasses import dataclass
from pathlib import Path

_LINE = re.compile(r"/\*([0-9a-f]{4,})\*/\s+(?:@(!?U?P\w+)\s+)?([A-Z][\w.]*)([^;]*);")
_NAME = re.compile(
    r"update_kernelI([fd])NS\w*?_(?:(5Alike)INS\w*?_)?(3All|5Mixed)I(?:LNS\w*?_?5DTypeE(\d)E)?Li(\d)EE+"
    r"Li(\d)ELi(\d)ELNS\w*?_5NoiseE(\d)ELb(\d)E"
)


@dataclass(frozen=True, slots=True)
class Instruction:
    """One line: ``guard`` is the predicate it is under (``!P0``, ``""``), ``op`` its name with all suffixes."""

    address: int
    guard: str
    op: str
    operands: tuple[str, ...]

    def target(self) -> int | None:
        """Where a branch with a fixed target goes."""
        if not self.op.startswith(("BRA", "CALL")):
            return None
        return next((int(x, 16) for x in reversed(self.operands) if x.startswith("0x")), None)


@dataclass(frozen=True)
class Kernel:
    """The code of a kernel and what it takes."""

    name: str
    code: tuple[Instruction, ...]
    registers: int
    stack: int  # bytes; spills and the arrays of library functions


def cuobjdump() -> str | None:
    """That of Triton's package, else of the toolkit."""
    spec = importlib.util.find_spec("triton")
    for folder in spec.submodule_search_locations or [] if spec else []:
        path = Path(folder) / "backends" / "nvidia" / "bin" / "cuobjdump"
        if path.exists():
            return str(path)
    return shutil.which("cuobjdump")


def parse(text: str) -> tuple[Instruction, ...]:
    """Instructions of a disassembly, without the padding after the end."""
    code = []
    for address, guard, op, rest in _LINE.findall(text):
        operands = tuple(part.strip().replace(".reuse", "") for part in rest.split(",")) if rest.strip() else ()
        code.append(Instruction(int(address, 16), guard, op, operands))
    while code and code[-1].op == "NOP":
        code.pop()
    return tuple(code)


def kernels(path: Path, tool: str) -> dict[str, Kernel]:
    """The kernels of an object or cubin by their (mangled) names."""
    command = [tool, "-sass", "-res-usage", str(path)]
    dump = subprocess.run(command, check=True, capture_output=True, text=True).stdout
    usage = {
        name: (int(registers), int(stack))
        for name, registers, stack in re.findall(r"Function (\S+):\s+REG:(\d+) STACK:(\d+)", dump)
    }
    found = {}
    for part in dump.split("Function : ")[1:]:
        name = part.split(maxsplit=1)[0]
        found[name] = Kernel(name, parse(part), *usage[name])
    return found


def instance(mangled: str) -> str | None:
    """The arguments of an instantiation of ``update_kernel``, as benchmarks/sass/points.cpp prints them."""
    match = _NAME.search(mangled)
    if match is None:
        return None
    compute, alike, storage, *rest = match.groups()
    return "-".join([compute, *([alike] if alike else []), storage, *(group or "x" for group in rest)])
