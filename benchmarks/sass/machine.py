"""Follow the machine code of one thread: which instructions it issues for a given row, without a GPU.

Integers, predicates and the tests of weights are computed; what depends on the values of tensors is unknown and stays
so.  A branch on something unknown is not followed by guess: it raises, except where it jumps over a call (the slow
paths of the library's functions, which ordinary arguments do not take).  Written for sm_90.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from .arithmetic import Arithmetic
from .code import Instruction
from .operands import MASK, UnknownError, is_predicate, register_of, width_of
from .registers import Value


@dataclass
class Trace:
    """What a thread did: ``loads`` and ``stores`` are (bytes, address or None) in order, those that were on."""

    issued: int = 0
    guesses: int = 0  # branches over a call that were taken unseen
    loads: list[tuple[int, Value]] = field(default_factory=list)
    stores: list[tuple[int, Value]] = field(default_factory=list)
    in_flight: int = 0  # most bytes of loads issued and not yet needed


class Machine(Arithmetic):
    """One thread.  ``constants`` and ``shared`` are memory by address; ``counts(address)``: a load of a tensor."""

    def __init__(
        self,
        code: Sequence[Instruction],
        constants: dict[int, int],
        shared: dict[int, int],
        thread: int,
        counts: Callable[[Value], bool],
    ) -> None:
        super().__init__(constants, thread)
        self.code, self.shared, self.counts = code, shared, counts
        self.place = {instruction.address: n for n, instruction in enumerate(code)}
        self.sizes: list[int] = []  # of loads in flight, by number; 0: arrived
        self.trace = Trace()

    def run(self, limit: int = 200_000) -> Trace:
        """From the first instruction to the exit."""
        n: int | None = 0
        while n is not None:
            if self.trace.issued > limit:
                raise UnknownError(f"no end after {limit} instructions")
            n = self.step(n)
        return self.trace

    def step(self, n: int) -> int | None:
        i = self.code[n]
        self.trace.issued += 1
        on = self.predicate(i.guard) if i.guard else True
        base = i.op.split(".")[0]
        if base in ("BRA", "EXIT", "CALL", "RET"):
            return self.branch(n, i, base, on)
        if on is None:
            self.forget(i)
        elif on:
            self.wait_for(i)
            handler = getattr(self, f"op_{base.lower()}", None)
            if handler is None:
                self.forget(i)
            else:
                try:
                    handler(i)
                except UnknownError:
                    self.forget(i)
        return n + 1

    def branch(self, n: int, i: Instruction, base: str, on: bool | None) -> int | None:
        for x in i.operands:
            if is_predicate(x) and on is not False:
                extra = self.predicate(x)
                on = False if extra is False else None if extra is None or on is None else True
        target = i.target()
        if on is None and base == "BRA" and target is not None and target > i.address:
            over = self.code[n + 1 : self.place[target]]
            if any(x.op.startswith("CALL") for x in over):
                self.trace.guesses += 1
                return self.place[target]
        if on is None:
            raise UnknownError(f"{i.address:#x}: {i.op} {', '.join(i.operands)} depends on what is not known")
        if not on:
            return n + 1
        if base == "EXIT":
            return None
        if base == "RET":
            back = self.value(i.operands[0].split()[0])
            if back is None:
                raise UnknownError(f"{i.address:#x}: returns to an unknown place")
            return self.place[back]
        if target is None:
            raise UnknownError(f"{i.address:#x}: {i.op} without a target")
        return self.place[target]

    def address(self, x: str) -> Value:
        """Of an operand ``[R6+0x10]`` or ``desc[UR10][R40.64+0x8]``."""
        total = 0
        for part in x.rsplit("[", 1)[1].rstrip("]").replace("+-", "+#-").replace("#", "").split("+"):
            name = register_of(part)
            if name is None:
                total += int(part, 16)
                continue
            low = self.value(name)
            high = self.value(name, 1) if ".64" in part else 0
            if low is None or high is None:
                return None
            total += (low & MASK) | (high & MASK) << 32
        return total

    def wait_for(self, i: Instruction) -> None:
        """A register that a load fills is read or written again: that load, and those before it, have arrived."""
        for x in i.operands if self.pending else ():
            name = register_of(x.lstrip("-~|!"))
            number = self.pending.get(name) if name else None
            if number is not None:
                for k in range(number + 1):
                    self.sizes[k] = 0
                self.pending = {reg: k for reg, k in self.pending.items() if k > number}

    def op_ldg(self, i: Instruction) -> None:
        size, address = width_of(i.op), self.address(i.operands[1])
        self.forget(i)
        if self.counts(address):
            self.trace.loads.append((size, address))
            self.sizes.append(size)
            number = int((register_of(i.operands[0]) or "R0").lstrip("UR"))
            for at in range(max(1, size // 4)):
                self.pending[f"R{number + at}"] = len(self.sizes) - 1
            self.trace.in_flight = max(self.trace.in_flight, sum(self.sizes))

    def op_stg(self, i: Instruction) -> None:
        self.trace.stores.append((width_of(i.op), self.address(i.operands[0])))

    def op_sts(self, i: Instruction) -> None:
        pass

    def op_lds(self, i: Instruction) -> None:
        address, size = self.address(i.operands[1]), width_of(i.op)
        for at in range(max(1, size // 4)):
            found = [None if address is None else self.shared.get(address + 4 * at + k) for k in range(min(4, size))]
            value = None if None in found else sum(b << 8 * k for k, b in enumerate(found) if b is not None)
            self.set(i.operands[0], value, at)

    def op_ldc(self, i: Instruction) -> None:
        size = width_of(i.op)
        for at in range(max(1, size // 4)):
            self.set(i.operands[0], self.constant(i.operands[1], 4 * at, min(4, size)), at)

    op_uldc = op_ldc
