"""What a point can reach on an H200 according to its machine code alone: a model, not a measurement.

Three limits.  Memory: bytes over bandwidth.  Issue: four schedulers of a processor issue one instruction of a warp per
cycle each.  Latency (Little's law): to keep memory busy, the bytes on their way to a processor must be at least its
share of the bandwidth times the time a load takes; what waits is what the threads that fit have asked for at once.
Writes are posted and need no thread to wait, so only the read share of the traffic has to be in flight.
"""

from __future__ import annotations

from dataclasses import dataclass

PROCESSORS = 132
BANDWIDTH = 4.8e12  # bytes a second
LATENCY = 750e-9  # seconds from a load to its data under load
CLOCK = 1.75e9  # cycles a second that it holds under load; its boost clock is higher
SCHEDULERS, LANES = 4, 32
REGISTERS, MOST_WARPS, MOST_BLOCKS = 65536, 64, 32
BLOCK = 128


def blocks_per_processor(registers: int, threads: int = BLOCK) -> int:
    """Blocks that fit with this many registers a thread; they are handed out to warps in units of 8 a thread."""
    warps = threads // LANES
    of_warp = -(-registers // 8) * 8 * LANES
    return min(MOST_BLOCKS, MOST_WARPS // warps, REGISTERS // of_warp // warps)


@dataclass(frozen=True)
class Limits:
    """``issue``: bytes a second that instructions allow, over the bandwidth.  Others in KiB of a processor."""

    issue: float
    in_flight: float
    needed: float

    @property
    def bound(self) -> str:
        """What is reached first: memory if neither of the others is in the way."""
        if self.in_flight < self.needed and self.in_flight / self.needed < self.issue:
            return "latency"
        return "issue" if self.issue < 1 else "memory"


def limits(
    instructions: float, read: float, written: float, flying: int, registers: int, threads: int = BLOCK
) -> Limits:
    """Per element: instructions, bytes read and written; ``flying`` bytes a thread waits for at once."""
    rate = PROCESSORS * SCHEDULERS * LANES * CLOCK / instructions  # elements a second
    resident = blocks_per_processor(registers, threads) * threads
    needed = BANDWIDTH * LATENCY / PROCESSORS * read / (read + written)
    return Limits(rate * (read + written) / BANDWIDTH, resident * flying / 1024, needed / 1024)
