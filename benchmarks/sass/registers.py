"""Registers, predicates and constant memory of one thread; what is not known is None."""

from __future__ import annotations

import math
import struct

from .code import Instruction
from .operands import MASK, UnknownError, is_predicate, register_of, signed, width_of

Value = int | None
FLOAT, WORD = struct.Struct("<f"), struct.Struct("<I")


class Registers:
    """The state that instructions read and write."""

    def __init__(self, constants: dict[int, int], thread: int) -> None:
        self.constants, self.thread = constants, thread
        self.r: dict[str, Value] = {}
        self.p: dict[str, bool | None] = {}
        self.pending: dict[str, int] = {}  # register -> number of the load that fills it

    def predicate(self, x: str) -> bool | None:
        invert, name = x.startswith("!"), x.lstrip("!")
        value = True if name in ("PT", "UPT") else self.p.get(name)
        return value if value is None or not invert else not value

    def value(self, x: str, at: int = 0) -> Value:
        """The 32 bits of an operand; of the register ``at`` after it."""
        if x.startswith("-") and not x[1:2].isdigit() and not x.startswith("-INF"):
            value = self.value(x[1:], at)
            return None if value is None else (~value & MASK) + 1
        if x.startswith("~"):
            value = self.value(x[1:], at)
            return None if value is None else ~value & MASK
        if x.startswith("|"):
            return None
        if x.startswith("c["):
            return self.constant(x, 4 * at, 4)
        name = register_of(x)
        if name is not None:
            if name in ("RZ", "URZ"):
                return 0
            kind, number = name.rstrip("0123456789"), int(name.lstrip("UR"))
            return self.r.get(f"{kind}{number + at}")
        if at:
            return None
        try:
            return int(x, 16 if "0x" in x else 10) & MASK
        except ValueError:
            return None

    def known(self, x: str, at: int = 0) -> int:
        value = self.value(x, at)
        if value is None:
            raise UnknownError(x)
        return value

    def wide(self, x: str) -> int:
        """64 bits: a register and the next."""
        return (self.known(x) & MASK) | (0 if x in ("RZ", "URZ") else (self.known(x, 1) & MASK) << 32)

    def number(self, x: str) -> float:
        """An operand as float32."""
        named = {"+INF": math.inf, "-INF": -math.inf, "+QNAN": math.nan, "INF": math.inf}
        if x in named:
            return named[x]
        if register_of(x) is None and not x.startswith("c["):
            return float(x)
        return float(FLOAT.unpack(WORD.pack(self.known(x) & MASK))[0])

    def set(self, x: str, value: Value, at: int = 0) -> None:
        name = register_of(x)
        if name is None or name in ("RZ", "URZ"):
            return
        kind, number = name.rstrip("0123456789"), int(name.lstrip("UR"))
        self.r[f"{kind}{number + at}"] = None if value is None else value & MASK
        self.pending.pop(f"{kind}{number + at}", None)

    def set_wide(self, x: str, value: int) -> None:
        self.set(x, value)
        self.set(x, value >> 32, 1)

    def set_predicate(self, x: str, value: bool | None) -> None:
        if x.lstrip("!") not in ("PT", "UPT"):
            self.p[x] = value

    def forget(self, i: Instruction) -> None:
        """The destinations of an instruction become unknown."""
        if i.op.startswith(("ST", "BAR", "MEMBAR")) or not i.operands:
            return
        count = width_of(i.op) // 4 if i.op.startswith("LD") else 2 if ".64" in i.op or i.op[0] == "D" else 1
        if ".WIDE" in i.op or "F64" in i.op.split(".")[1:2] or "U64" in i.op:
            count = 2
        for at in range(max(1, count)):
            self.set(i.operands[0], None, at)
        for x in i.operands[: 3 if is_predicate(i.operands[0]) else 4]:
            if not is_predicate(x):
                if x is not i.operands[0]:
                    break
                continue
            if not x.startswith("!") and x not in ("PT", "UPT"):
                self.p[x] = None

    def constant(self, x: str, at: int, size: int) -> Value:
        inside = x.split("][")[1].rstrip("]")
        address = at
        for part in inside.replace("+-", "+#-").replace("#", "").split("+"):
            address += signed(self.known(part)) if register_of(part) else int(part, 16)
        found = [self.constants.get(address + k) for k in range(size)]
        return None if None in found else sum(b << 8 * k for k, b in enumerate(found) if b is not None)
