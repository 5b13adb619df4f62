"""What drives a replayed run, as `fastsample.loop.drive` drives one that asks."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

from ..profiling.ranges import enabled, ranged


class Drive:
    """Replays a run, which has begun; ``drive(hooks)`` returns how many network calls that stands for.

    Args:
        replays: one per network call, or one for all of them.
        calls: number of network calls.
        restart: begins the run again.
        count: is told how many replays are made.
    """

    def __init__(
        self,
        replays: list[Callable[[], None]],
        calls: int,
        restart: Callable[[], None],
        count: Callable[[int], None],
    ) -> None:
        if enabled():
            within = ranged("replay", lambda replay: replay())  # numbered through the run
            replays = [partial(within, replay) for replay in replays]
        self.calls, self.restart, self._replays, self._count = calls, restart, replays, count

    def __call__(self, hooks: Sequence[Callable[[int], Any]] = ()) -> int:
        from ..loop import StopSampling

        self._count(len(self._replays))
        if not hooks:
            for replay in self._replays:
                replay()
            return self.calls
        for call, replay in enumerate(self._replays):
            replay()
            try:
                for hook in hooks:
                    hook(call)
            except StopSampling:
                return call + 1
        return self.calls

    def some(self, calls: int) -> None:
        """The first calls, from the start."""
        self.restart()
        for replay in self._replays[:calls]:
            replay()
