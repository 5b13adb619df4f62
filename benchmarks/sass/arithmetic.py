"""What instructions compute: integers, predicates, tests of floats, the divisions of integers."""

from __future__ import annotations

import math
import struct
from collections.abc import Callable, Sequence

from .code import Instruction
from .operands import MASK, UnknownError, half, is_predicate, register_of, signed
from .registers import FLOAT, WORD, Registers, Value

_COMPARE: dict[str, Callable[[float, float], bool]] = {
    "EQ": lambda a, b: a == b,
    "NE": lambda a, b: a != b and not (math.isnan(a) or math.isnan(b)),
    "NEU": lambda a, b: a != b,
    "LT": lambda a, b: a < b,
    "LE": lambda a, b: a <= b,
    "GT": lambda a, b: a > b,
    "GE": lambda a, b: a >= b,
    "LTU": lambda a, b: not a >= b,
    "LEU": lambda a, b: not a > b,
    "GTU": lambda a, b: not a <= b,
    "GEU": lambda a, b: not a < b,
    "EQU": lambda a, b: a == b or math.isnan(a) or math.isnan(b),
}


class Arithmetic(Registers):
    """``op_NAME`` computes instruction NAME; it raises ``UnknownError`` if an operand is not known."""

    # -- moves, integers ---------------------------------------------------------------------------------------------

    def op_mov(self, i: Instruction) -> None:
        self.set(i.operands[0], self.value(i.operands[1]))

    op_umov = op_r2ur = op_mov

    def op_cs2r(self, i: Instruction) -> None:
        known = 0 if i.operands[1] == "SRZ" else None
        self.set(i.operands[0], known)
        if ".32" not in i.op:
            self.set(i.operands[0], known, 1)

    def op_s2r(self, i: Instruction) -> None:
        known = {"SR_TID.X": self.thread, "SR_CTAID.X": 0, "SR_CgaCtaId": 0, "SR_CTAID.Y": 0}
        self.set(i.operands[0], known.get(i.operands[1]))

    op_s2ur = op_s2r

    def op_hfma2(self, i: Instruction) -> None:
        d, a, b, high, low = i.operands[:5]
        if a.lstrip("-") != "RZ" or b != "RZ":
            raise UnknownError(i.op)
        self.set(d, half(high) << 16 | half(low))

    def split(self, i: Instruction) -> tuple[list[str], list[str], list[str]]:
        """Destination predicates, sources, source predicates of an addition."""
        rest = list(i.operands[1:])
        outs: list[str] = []
        ins: list[str] = []
        while rest and is_predicate(rest[0]):
            outs.append(rest.pop(0))
        while rest and is_predicate(rest[-1]):
            ins.insert(0, rest.pop())
        return outs, rest, ins

    def carry(self, ins: Sequence[str]) -> int:
        total = 0
        for x in ins:
            value = self.predicate(x)
            if value is None:
                raise UnknownError(x)
            total += value
        return total

    def op_iadd3(self, i: Instruction) -> None:
        outs, sources, ins = self.split(i)
        total = sum(self.known(x) for x in sources) + (self.carry(ins) if ".X" in i.op else 0)
        self.set(i.operands[0], total)
        for k, x in enumerate(outs):
            self.set_predicate(x, (total >> 32) > k)

    op_uiadd3 = op_viadd = op_iadd3

    def op_imad(self, i: Instruction) -> None:
        outs, (a, b, c), ins = self.split(i)
        x, y = self.known(a) & MASK, self.known(b) & MASK
        if ".U32" not in i.op and (".WIDE" in i.op or ".HI" in i.op):
            x, y = signed(x), signed(y)
        extra = self.carry(ins) if ".X" in i.op else 0
        if ".WIDE" in i.op or ".HI" in i.op:
            total = x * y + self.wide(c) + extra
            for p in outs:
                self.set_predicate(p, bool(total >> 64))
            if ".HI" in i.op:
                self.set(i.operands[0], total >> 32)
            else:
                self.set_wide(i.operands[0], total)
            return
        self.set(i.operands[0], x * y + self.known(c) + extra)
        for p in outs:
            self.set_predicate(p, None)

    op_uimad = op_imad

    def op_lop3(self, i: Instruction) -> None:
        operands = list(i.operands)
        outs = []
        while is_predicate(operands[0]):
            outs.append(operands.pop(0))
        d, a, b, c, table = operands[:5]
        lut, values = int(table, 16), [self.value(x) for x in (a, b, c)]
        result: Value = 0
        for k in range(8):  # bits: a 4, b 2, c 1
            if not lut >> k & 1:
                continue
            part: Value = MASK
            for value, bit in zip(values, (4, 2, 1), strict=True):
                if value is not None:
                    part = part & (value if k & bit else ~value) if part is not None else None
                elif (lut >> k & 1) != (lut >> (k ^ bit) & 1):  # the unknown operand matters
                    raise UnknownError(i.op)
            result = result | part if result is not None and part is not None else None
        self.set(d, result)
        for p in outs:
            self.set_predicate(p, bool(result & MASK) if result is not None else None)

    op_ulop3 = op_lop3

    def op_plop3(self, i: Instruction) -> None:
        p, q, a, b, c, lut, lut2 = i.operands[:7]
        values = [self.predicate(x) for x in (a, b, c)]
        for to, table in ((p, int(lut, 16)), (q, int(lut2, 16))):
            if None in values:
                self.set_predicate(to, None)
            else:
                index = sum(bit for value, bit in zip(values, (4, 2, 1), strict=True) if value)
                self.set_predicate(to, bool(table >> index & 1))

    op_uplop3 = op_plop3

    def op_p2r(self, i: Instruction) -> None:
        d, _, a, mask = i.operands[:4]
        bits, chosen = 0, self.known(mask)
        for k in range(7):
            value = self.p.get(f"P{k}")
            if chosen >> k & 1 and value is None:
                raise UnknownError(i.op)
            bits |= bool(value) << k
        self.set(d, (self.known(a) & ~chosen) | (bits & chosen))

    def op_r2p(self, i: Instruction) -> None:
        value, chosen = self.value(i.operands[1]), self.known(i.operands[2])
        for k in range(7):
            if chosen >> k & 1:
                self.p[f"P{k}"] = None if value is None else bool(value >> k & 1)

    def op_sel(self, i: Instruction) -> None:
        d, a, b, p = i.operands[:4]
        on = self.predicate(p)
        if on is None:
            raise UnknownError(i.op)
        self.set(d, self.value(a if on else b))

    op_usel = op_fsel = op_sel

    def op_shf(self, i: Instruction) -> None:
        d, low, by, high = i.operands[:4]
        count = self.known(by) & MASK
        wide = ".U64" in i.op or ".S64" in i.op
        count = min(count, 64 if wide else 32) if ".W" not in i.op else count & (63 if wide else 31)
        lo, hi = self.known(low) & MASK, self.known(high) & MASK
        x = lo | hi << 32
        if ".L" in i.op:
            x <<= count
        else:
            x = (x - (1 << 64) if ".S" in i.op and hi >> 31 else x) >> count
        self.set(d, x >> 32 if ".HI" in i.op else x)

    op_ushf = op_shf

    def op_lea(self, i: Instruction) -> None:
        outs, sources, ins = self.split(i)
        a, b, by = self.known(sources[0]) & MASK, self.known(sources[1]) & MASK, self.known(sources[-1])
        if ".HI" in i.op:
            high = -(a >> 31) & MASK if ".SX32" in i.op else self.known(sources[2]) & MASK
            total = ((((high << 32) | a) << by) >> 32 & MASK) + b
        else:
            total = (a << by & MASK) + b
        total += self.carry(ins) if ".X" in i.op else 0
        self.set(i.operands[0], total)
        for x in outs:
            self.set_predicate(x, bool(total >> 32))

    op_ulea = op_lea

    def op_iabs(self, i: Instruction) -> None:
        self.set(i.operands[0], abs(signed(self.known(i.operands[1]) & MASK)))

    def op_vimnmx(self, i: Instruction) -> None:
        d, a, b, p = i.operands[:4]
        x, y = self.known(a) & MASK, self.known(b) & MASK
        key = (lambda v: v) if ".U32" in i.op else signed
        self.set(d, (min if self.predicate(p) else max)(x, y, key=key))

    op_imnmx = op_vimnmx

    def op_prmt(self, i: Instruction) -> None:
        d, a, selector, c = i.operands[:4]
        data = (self.known(a) & MASK) | (self.known(c) & MASK) << 32
        chosen, result = self.known(selector), 0
        for k in range(4):
            nibble = chosen >> 4 * k & 15
            byte = data >> 8 * (nibble & 7) & 255
            result |= (0xFF if byte >> 7 else 0) << 8 * k if nibble & 8 else byte << 8 * k
        self.set(d, result)

    op_uprmt = op_prmt

    # -- comparisons -------------------------------------------------------------------------------------------------

    def op_isetp(self, i: Instruction) -> None:
        p, q, a, b, combine = i.operands[:5]
        parts = i.op.split(".")[1:]
        compare = _COMPARE[parts[0]]
        x, y = self.known(a) & MASK, self.known(b) & MASK
        if "U32" not in parts:
            x, y = signed(x), signed(y)
        result = compare(x, y)
        if "EX" in parts:
            low = self.predicate(i.operands[5])
            if x == y:
                if low is None:
                    raise UnknownError(i.op)
                result = low
            elif parts[0] in ("EQ", "NE"):
                result = parts[0] == "NE"
        self.combined(i, p, q, result, combine)

    op_uisetp = op_isetp

    def op_fsetp(self, i: Instruction) -> None:
        p, q, a, b, combine = i.operands[:5]
        self.combined(i, p, q, _COMPARE[i.op.split(".")[1]](self.number(a), self.number(b)), combine)

    def op_dsetp(self, i: Instruction) -> None:
        p, q, a, b, combine = i.operands[:5]
        x, y = self.double(a), self.double(b)
        self.combined(i, p, q, _COMPARE[i.op.split(".")[1]](x, y), combine)

    def double(self, x: str) -> float:
        """An operand as float64."""
        if register_of(x) is None:
            return {"+INF": math.inf, "-INF": -math.inf}.get(x) or float(x)
        return float(struct.unpack("<d", struct.pack("<Q", self.wide(x)))[0])

    def combined(self, i: Instruction, p: str, q: str, result: bool, combine: str) -> None:
        other = self.predicate(combine)
        how = next((x for x in i.op.split(".") if x in ("AND", "OR", "XOR")), "AND")
        if other is None and not (how == "AND" and not result) and not (how == "OR" and result):
            raise UnknownError(i.op)
        join: Callable[[bool, bool], bool] = {
            "AND": lambda x, y: x and y,
            "OR": lambda x, y: x or y,
            "XOR": lambda x, y: x != y,
        }[how]
        self.set_predicate(p, join(result, bool(other)))
        self.set_predicate(q, join(not result, bool(other)) if other is not None else None)

    # -- the divisions of integers -----------------------------------------------------------------------------------

    def op_i2f(self, i: Instruction) -> None:
        if ".F64" in i.op or ".RP" not in i.op:
            raise UnknownError(i.op)
        value = self.wide(i.operands[1]) if ".U64" in i.op else self.known(i.operands[1]) & MASK
        self.set(i.operands[0], WORD.unpack(FLOAT.pack(float(value)))[0])

    def op_mufu(self, i: Instruction) -> None:
        if ".RCP" not in i.op or "64" in i.op:
            raise UnknownError(i.op)
        x = self.number(i.operands[1])
        self.set(i.operands[0], WORD.unpack(FLOAT.pack(1 / x if x else math.inf))[0])

    def op_f2i(self, i: Instruction) -> None:
        if "F64" in i.op:
            raise UnknownError(i.op)
        value = int(self.number(i.operands[1]))
        if ".U64" in i.op:
            self.set_wide(i.operands[0], value)
        else:
            self.set(i.operands[0], min(value, MASK))
