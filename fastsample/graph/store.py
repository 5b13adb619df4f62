"""Recordings of `sample`, kept up to a limit of memory; the least recently used goes first."""

from __future__ import annotations

import os
import threading
from collections import OrderedDict
from collections.abc import Callable, Hashable
from typing import Any, Protocol

from . import lent


class Kept(Protocol):
    """What a store holds."""

    bytes: int

    def facts(self) -> dict[str, Any]:
        """What it is, as JSON values."""


class _Entry:
    def __init__(self, ref: Callable[[], Any], kept: Kept) -> None:
        self.ref, self.kept = ref, kept


class Store:
    """Recordings by name, each of an owner whose end is theirs; the sum of their ``bytes`` stays below a limit."""

    def __init__(self, megabytes: float) -> None:
        self.megabytes, self.evicted = megabytes, 0
        self._entries: OrderedDict[Hashable, _Entry] = OrderedDict()
        self._lock = threading.RLock()

    def find(self, owner: Any, name: Hashable) -> Kept | None:
        """What was put for this owner under this name, if it is still there; now the most recently used."""
        with self._lock:
            entry = self._entries.get((id(owner), name))
            if entry is None or entry.ref() is not owner:
                return None
            self._entries.move_to_end((id(owner), name))
            return entry.kept

    def put(self, owner: Any, name: Hashable, kept: Kept) -> None:
        """Keep it until the owner is gone or the room is needed."""
        place = (id(owner), name)
        with self._lock:
            self._entries[place] = _Entry(lent.weak(owner, lambda _: self._drop(place)), kept)
            self.trim()

    def remove(self, owner: Any, name: Hashable) -> None:
        """Let go of one."""
        self._drop((id(owner), name))

    def trim(self) -> None:
        """Let go of the least recently used until the rest is below the limit; the very last one too."""
        with self._lock:
            while self._entries and self.bytes() > self.megabytes * 1e6:
                self._entries.popitem(last=False)
                self.evicted += 1

    def bytes(self) -> int:
        """Memory of all that is kept."""
        with self._lock:
            return sum(entry.kept.bytes for entry in self._entries.values())

    def clear(self) -> None:
        """Let go of everything."""
        with self._lock:
            self._entries.clear()

    def facts(self) -> list[dict[str, Any]]:
        """What is kept, the least recently used first."""
        with self._lock:
            return [{**entry.kept.facts(), "mb": entry.kept.bytes / 1e6} for entry in self._entries.values()]

    def _drop(self, place: Hashable) -> None:
        with self._lock:
            self._entries.pop(place, None)


def _from_environment() -> float:
    text = os.environ.get("FASTSAMPLE_GRAPH_MB") or "1024"
    try:
        return _megabytes(float(text))
    except ValueError:
        raise ValueError(f"FASTSAMPLE_GRAPH_MB: got {text!r}, allowed are numbers >= 0") from None


def _megabytes(value: float) -> float:
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not value >= 0:
        raise ValueError(f"megabytes: got {value!r}, allowed are numbers >= 0")
    return float(value)


STORE = Store(_from_environment())


def limit(megabytes: float | None = None) -> float:
    """Megabytes (10^6 bytes) that recordings of `fastsample.sample` may hold; with an argument, set it first.

    The default is 1024, or the environment's ``FASTSAMPLE_GRAPH_MB``.  What `fastsample.capture` returned is the
    caller's and does not count.  Raises ``ValueError`` for a number below 0.
    """
    if megabytes is not None:
        STORE.megabytes = _megabytes(megabytes)
        STORE.trim()
    return STORE.megabytes


def clear() -> None:
    """Let go of all recordings of `fastsample.sample`, and forget what ``graph="auto"`` found."""
    from . import auto

    STORE.clear()
    auto.forget()


def info() -> dict[str, Any]:
    """What is recorded and how much memory it holds, as JSON values."""
    return {
        "limit_mb": STORE.megabytes,
        "used_mb": STORE.bytes() / 1e6,
        "evicted": STORE.evicted,
        "recordings": STORE.facts(),
    }
