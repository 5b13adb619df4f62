"""What a loop and a sampler say to each other: ``asks()`` yields ``(x, t)`` and is sent the network's output."""

from __future__ import annotations

from collections.abc import Generator
from dataclasses import dataclass
from typing import Protocol

from torch import Tensor

Output = Tensor | tuple[Tensor, Tensor]
Asks = Generator[tuple[Tensor, Tensor], Output, None]


@dataclass(frozen=True)
class StepInfo:
    """Where a run is, after network call ``call`` and its update.

    ``x`` ``(B, ...)`` is the live state, not a copy: clone what you keep. ``denoised`` is the network's estimate of the
    data at this call, shaped like ``x``, if it was asked for. ``t`` is what the network was told. ``step`` counts
    intervals of the path, of which some solvers take several calls. A change of ``x`` in place is seen by the next call
    unless the plan has a slot ``"input"`` (a scaled copy for the network, already written).
    """

    call: int
    step: int
    calls: int | None
    steps: int | None
    t: float
    x: Tensor
    denoised: Tensor | None = None


class Run(Protocol):
    """What a loop needs of a sampler at work.

    It may also have ``stats()``, a mapping of JSON values for reports, asked for when the run has ended.
    """

    guided: bool
    """Whether it wants a pair of outputs."""

    @property
    def calls(self) -> int | None:
        """How many calls there will be; None if nobody knows."""

    @property
    def state(self) -> Tensor:
        """The state ``(B, ...)`` as it is now."""

    def asks(self) -> Asks:
        """Yields ``(x, t)``, is sent the network's output."""

    def info(self, call: int) -> StepInfo:
        """Where the run is after this call."""

    def ends_step(self, call: int) -> bool:
        """Whether the state after this call is one of the path."""
