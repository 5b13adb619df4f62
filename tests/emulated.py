"""A function of a static 64-bit ARM program, run in an emulator: a loader for calls without system calls.

Needs ziglang (the compiler) and unicorn (the processor), the extra ``arm``.
"""

from __future__ import annotations

import os
import struct
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt

Words = npt.NDArray[np.uint32]
PAGE = 4096
DATA, STACK, STOP = 0x60000000, 0x70000000, 0x50000000  # far from where programs lie
ROOM = 1 << 20  # bytes of each


def compile_for_arm(flags: Sequence[str], sources: Sequence[Path], folder: Path) -> list[Path]:
    """The object files of sources for 64-bit ARM."""
    objects = [folder / f"{source.stem}.o" for source in sources]
    for source, made in zip(sources, objects, strict=True):
        _zig(["c++", *flags, "-c", str(source), "-o", str(made)], folder)
    return objects


def link_for_arm(objects: Sequence[Path], program: Path) -> None:
    """A static program without a C library."""
    _zig(["cc", "-static", "-nostdlib", *map(str, objects), "-o", str(program)], program.parent)


def _zig(words: Sequence[str], folder: Path) -> None:
    command = [sys.executable, "-m", "ziglang", words[0], "-target", "aarch64-linux-musl", *words[1:]]
    cache = {name: str(folder / "zig") for name in ("ZIG_GLOBAL_CACHE_DIR", "ZIG_LOCAL_CACHE_DIR")}
    done = subprocess.run(command, capture_output=True, text=True, check=False, env={**os.environ, **cache})
    assert done.returncode == 0, done.stderr


def call(program: Path, symbol: str, words: Words) -> Words:
    """What ``int64_t symbol(const uint32_t* words, uint32_t* to)`` writes, as many words as it says."""
    import unicorn
    from unicorn import arm64_const as arm

    elf = program.read_bytes()
    machine = unicorn.Uc(unicorn.UC_ARCH_ARM64, unicorn.UC_MODE_ARM)
    machine.reg_write(arm.UC_ARM64_REG_CPACR_EL1, 3 << 20)  # floating point is allowed
    segments = list(_loaded(elf))
    low = min(at for _, at, _, _ in segments) // PAGE * PAGE
    high = max(at + memory for _, at, _, memory in segments)
    machine.mem_map(low, -(-(high - low) // PAGE) * PAGE)
    for offset, at, size, _ in segments:
        machine.mem_write(at, elf[offset : offset + size])
    for region in (DATA, STACK):
        machine.mem_map(region, ROOM)
    machine.mem_map(STOP, PAGE)
    machine.mem_write(DATA, words.tobytes())
    for register, value in (
        (arm.UC_ARM64_REG_X0, DATA),
        (arm.UC_ARM64_REG_X1, DATA + PAGE),
        (arm.UC_ARM64_REG_SP, STACK + ROOM - 64),
        (arm.UC_ARM64_REG_LR, STOP),
    ):
        machine.reg_write(register, value)
    machine.emu_start(_address(elf, symbol), STOP)
    count = machine.reg_read(arm.UC_ARM64_REG_X0)
    return np.frombuffer(bytes(machine.mem_read(DATA + PAGE, 4 * count)), np.uint32)


def _loaded(elf: bytes):
    """Offset, address, bytes in the file and bytes in memory of the segments of an ELF program."""
    (start,) = struct.unpack_from("<Q", elf, 32)
    (count,) = struct.unpack_from("<H", elf, 56)
    for i in range(count):
        kind, _, offset, at, _, size, memory, _ = struct.unpack_from("<IIQQQQQQ", elf, start + 56 * i)
        if kind == 1:
            yield offset, at, size, memory


def _address(elf: bytes, symbol: str) -> int:
    (start,) = struct.unpack_from("<Q", elf, 40)
    (count,) = struct.unpack_from("<H", elf, 60)
    sections = [struct.unpack_from("<IIQQQQIIQQ", elf, start + 64 * i) for i in range(count)]
    for _, kind, _, _, offset, size, link, _, _, entry in sections:
        if kind != 2:
            continue
        names = sections[link][4]
        for at in range(offset, offset + size, entry):
            name, _, _, _, value, _ = struct.unpack_from("<IBBHQQ", elf, at)
            if elf[names + name : elf.index(b"\0", names + name)] == symbol.encode():
                return int(value)
    raise KeyError(symbol)
