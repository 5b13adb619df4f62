"""Operands of machine code as text."""

from __future__ import annotations

import re
import struct

MASK = 0xFFFFFFFF
WIDTH = {".U8": 1, ".S8": 1, ".U16": 2, ".S16": 2, ".64": 8, ".128": 16, ".256": 32}
_REGISTER = re.compile(r"U?R(?:\d+|Z)")
_PREDICATE = re.compile(r"!?U?P(?:\d|T)$")


class UnknownError(Exception):
    """A value that the code needs depends on what is not known here."""


def register_of(x: str) -> str | None:
    """The register that an operand names, without suffixes."""
    match = _REGISTER.match(x)
    return match.group() if match else None


def is_predicate(x: str) -> bool:
    return _PREDICATE.match(x) is not None


def signed(x: int) -> int:
    return x - (1 << 32) if x >> 31 & 1 else x


def half(x: str) -> int:
    """The bits of an immediate in half precision."""
    return int(struct.unpack("<H", struct.pack("<e", float(x)))[0])


def width_of(op: str) -> int:
    """Bytes of a load or store."""
    return next((n for suffix, n in WIDTH.items() if suffix in op), 4)
