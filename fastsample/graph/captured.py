"""``fastsample.capture``: recordings that belong to the caller."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from ..plan import Plan
from .store import Store


class Captured:
    """What `capture` returns: ``run(x=None, **arguments)``.

    Args:
        x: as `fastsample.sample`; None: the shape of the example, to start from noise.
        arguments: as `fastsample.sample`, such as ``seed``, ``cond``, ``callback``; ``plan`` may be another one.

    ``captures`` counts recordings made so far, ``bytes`` is the memory that they hold.
    """

    def __init__(self, model: Any, plan: Plan, example: Any, whole: bool, arguments: dict[str, Any]) -> None:
        self._model, self._plan = model, plan
        self._shape = tuple(example.shape) if isinstance(example, Tensor) else example
        self._kind: dict[str, Any] = {name: arguments[name] for name in ("dtype", "device") if name in arguments}
        if isinstance(example, Tensor):
            self._kind = {"dtype": example.dtype, "device": example.device, **self._kind}
        self.store, self.mode, self.captures = Store(float("inf")), "whole" if whole else "on", 0
        self(example, **{"seed": 0, "check": False, **arguments})

    def __call__(self, x: Any = None, **arguments: Any) -> Any:
        from ..loop import sample

        arguments = {"plan": self._plan, **self._kind, **arguments}
        stats: dict[str, Any] = {} if arguments.get("stats") is None else arguments["stats"]
        arguments["stats"] = stats
        made = sample(self._model, self._shape if x is None else x, graph=self, **arguments)  # type: ignore[arg-type]
        self.captures += stats["graph"]["captures"]
        return made

    @property
    def bytes(self) -> int:
        return self.store.bytes()

    def __repr__(self) -> str:
        return f"Captured({self._plan!r}, captures={self.captures}, mb={self.bytes / 1e6:.3g})"


def capture(model: Any, plan: Plan, example: Any, *, whole: bool = False, **arguments: Any) -> Captured:
    """Record the run of a plan, and return what replays it.

    Args:
        model, plan: as `fastsample.sample`.
        example: as its ``x``: a shape ``(B, ...)`` or a tensor.
        whole: one recording of all calls instead of one per kind of call; then no callback can be had.
        arguments: of `fastsample.sample` for the run that is made to record, such as ``cond`` and ``uncond``, whose
            values do not matter here, and ``dtype`` and ``device``, which hold for all runs.

    Returns:
        A `Captured`: ``run(seed=3, cond=labels)`` gives what ``sample(model, x, plan=plan, seed=3, cond=labels)``
        gives, to the bit.  Other plans, starts, seeds and conditions are copied into its memory; what they do for the
        first time (a kind of call, a shape) is recorded then.  It keeps the model in memory, and one run at a time.

    Raises:
        CaptureError: the run cannot be recorded; the message says why.
        TypeError, ValueError: as `fastsample.sample`.
    """
    return Captured(model, plan, example, whole, arguments)
