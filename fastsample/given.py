"""What a run is given from outside: the outputs of the network, and noise in place of keys."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
from torch import Tensor

from . import row
from .plan_memory import NOISE_WEIGHTS

Noise = Sequence[Tensor | None] | Mapping[int, Tensor] | Callable[[int], Tensor]


Array = npt.NDArray[np.float64]


def check_apart(told: Any, before: Any) -> None:
    """Raise ``ValueError`` if a network has written over the output that a row still reads."""
    pairs = zip(told, before, strict=True) if isinstance(told, (tuple, list)) else [(told, before)]
    if any(new.data_ptr() == old.data_ptr() and new.numel() for new, old in pairs):
        raise ValueError("model: wrote its output over that of the call before, which this solver uses too; copy it")


def check_output(told: Any, x: Tensor, *, guided: bool, also: tuple[int, ...] | None = None) -> None:
    """Raise ``TypeError`` or ``ValueError`` unless a network's output belongs to ``x``: before memory is touched.

    ``also``: another shape that is allowed.
    """
    outputs = [told]
    if guided:
        if not isinstance(told, (tuple, list)) or len(told) != 2:
            kind = type(told).__name__
            raise TypeError(f"model: returned {kind}, need a pair (conditional, unconditional) under guidance")
        outputs = list(told)
    for out in outputs:
        if not isinstance(out, Tensor):
            raise TypeError(f"model: returned {type(out).__name__}, need a tensor shaped like x")
        if out.shape != x.shape and out.shape != also:
            raise ValueError(f"model: returned shape {tuple(out.shape)}, need that of x, {tuple(x.shape)}")
        if not out.is_floating_point():
            raise TypeError(f"model: returned {out.dtype}, need a floating dtype")


def draws_of(values: Array) -> list[int]:
    """The draw of each noise tensor of a row ``(48,)`` or longer; none if the row uses no noise."""
    used = values[NOISE_WEIGHTS].reshape(row.MAX_NOISES, row.MAX_OUTPUTS).any(axis=1)
    if not used.any():
        return []
    # A noise of weight zero is never read, so that of noise 1 may stand in the place of noise 0.
    return [int(values[row.DRAW + (r if used[r] else 1)]) for r in range(used[1] + 1)]


class Recorded:
    """Noise that a caller gives in place of keys: one tensor per draw, or a function of the number of the draw.

    ``rows``: of the run, in order.  A function is asked once for each draw, also where two of them use it.
    """

    def __init__(self, noise: Noise, draws: int, rows: Iterable[Array] = ()) -> None:
        self.late, self._draws = callable(noise), draws
        self._noise = noise if callable(noise) else _by_number(noise)
        self._uses = Counter(draw for values in rows if self.late for draw in set(draws_of(values)))
        self._held: dict[int, Tensor] = {}

    def of_row(self, values: Array, x: Tensor) -> list[Tensor]:
        """The noise tensors of a row ``(48,)`` or longer that is applied to tensors like ``x``."""
        draws = draws_of(values)
        made = {draw: self(draw, x) for draw in dict.fromkeys(draws)}
        return [made[draw] for draw in draws]

    def __call__(self, draw: int, x: Tensor) -> Tensor:
        """The noise of a draw for the state ``x``; raises ``TypeError`` or ``ValueError`` if it is not like ``x``."""
        xi = self._held.pop(draw, None)
        xi = self._ask(draw, x) if xi is None else xi
        self._uses[draw] -= 1
        if self._uses[draw] > 0:  # a copy: the function may write the next draw to the same memory
            self._held[draw] = xi.clone()
        return xi

    def _ask(self, draw: int, x: Tensor) -> Tensor:
        xi = self._noise(draw) if callable(self._noise) else self._noise.get(draw)
        if xi is None:
            raise ValueError(f"noise: got none for draw {draw}; the plan has {self._draws} draws (0 is the start)")
        if not isinstance(xi, Tensor) or not xi.is_floating_point():
            raise TypeError(f"noise: draw {draw} is {getattr(xi, 'dtype', type(xi).__name__)}, need a floating tensor")
        if xi.shape != x.shape or xi.device != x.device:
            raise ValueError(
                f"noise: draw {draw} has shape {tuple(xi.shape)} on {xi.device}, need {tuple(x.shape)} on {x.device}"
            )
        return xi


def _by_number(noise: Sequence[Tensor | None] | Mapping[int, Tensor]) -> dict[int, Tensor]:
    if isinstance(noise, Mapping):
        return dict(noise)
    if isinstance(noise, Tensor):  # (draws, B, ...)
        return dict(enumerate(noise.unbind(0)))
    return {n: xi for n, xi in enumerate(noise) if xi is not None}
