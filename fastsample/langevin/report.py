"""What a run of chains says of itself, and what it watches to be able to."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from .diagnostics import bulk_ess, split_rhat

Array = npt.NDArray[np.float64]
Monitor = Callable[[Tensor], Tensor]

ALL = 32  # chains of no more elements are watched in every element
_SOME = 8


@dataclass(frozen=True)
class Report:
    """A finished run.

    ``kernel``; ``calls``: of the target, start and warm-up included, and ``calls_warmup`` of them; ``steps``,
    ``warmup``: iterations; ``step_size``: of the last iteration, one number or a list, one per chain; ``acceptance``:
    rate of each chain ``(B,)`` after the warm-up, None without an accept step; ``watched``: names of the quantities of
    which ``rhat`` and ``ess`` ``(m,)`` speak (split R-hat and bulk effective sample size, over all chains), and
    ``draws`` of each chain that they are made of.  ``graph``: None, or as ``stats["graph"]`` of `fastsample.sample`:
    ``mode``, kind of recording ``used`` or None, ``why`` not, ``captures``, ``replays`` of iterations.
    """

    kernel: str
    steps: int
    warmup: int
    step_size: Any
    calls: int
    calls_warmup: int
    acceptance: Array | None
    watched: tuple[str, ...]
    draws: int
    rhat: Array
    ess: Array
    graph: dict[str, Any] | None = None

    @property
    def acceptance_mean(self) -> float | None:
        """Mean over the chains."""
        return None if self.acceptance is None else float(self.acceptance.mean())

    def to_dict(self) -> dict[str, Any]:
        """JSON values; None where a number is not finite."""

        def plain(values: Array) -> list[float | None]:
            return [float(v) if np.isfinite(v) else None for v in values]

        made = {name: getattr(self, name) for name in ("kernel", "steps", "warmup", "calls", "calls_warmup", "draws")}
        made |= {"step_size": np.asarray(self.step_size).tolist(), "watched": list(self.watched)}
        made |= {"acceptance_mean": self.acceptance_mean, "rhat": plain(self.rhat), "ess": plain(self.ess)}
        made |= {} if self.graph is None else {"graph": self.graph}
        return made | {"acceptance": None if self.acceptance is None else plain(self.acceptance)}

    def __str__(self) -> str:
        lines = [f"{self.kernel}: {self.warmup} + {self.steps} steps, {self.calls} calls of the target per chain"]
        if self.acceptance is not None:
            low, high = self.acceptance.min(), self.acceptance.max()
            lines.append(f"acceptance {self.acceptance_mean:.3f} (chains {low:.3f} to {high:.3f})")
        if self.watched and np.isfinite(self.rhat).any():
            rhat, ess = np.nanmax(self.rhat), np.nanmin(self.ess)
            lines.append(
                f"R-hat at most {rhat:.3f}, effective draws at least {ess:.0f}, of {len(self.watched)} quantities"
            )
        return "\n".join(lines)


class Watch:
    """Keeps quantities ``(draws, B, m)`` of the states, on their device, in memory taken before the run."""

    def __init__(self, monitor: Any, x: Tensor, draws: int) -> None:
        size = x[0].numel()
        self.names: tuple[str, ...] = ()
        if monitor is None or monitor is False:
            self._see: Monitor | None = None
        elif callable(monitor):
            self._see = _checked(monitor)
            self.names = tuple(f"monitor[{i}]" for i in range(self._see(x).shape[1]))
        elif monitor != "auto":
            raise ValueError(f"monitor: got {monitor!r}, allowed are 'auto', None and a function of x")
        elif size <= ALL:
            self._see, self.names = lambda y: y.reshape(len(y), -1), tuple(f"x[{i}]" for i in range(size))
        else:
            places = torch.linspace(0, size - 1, _SOME, dtype=torch.float64).long()
            self.names = ("mean", "mean square", *(f"x[{i}]" for i in places.tolist()))
            self._see = _summary(places.to(x.device))
        shape = (draws if self._see is not None else 0, len(x), len(self.names))
        wide = torch.float64 if x.dtype == torch.float64 else torch.float32
        self._kept, self._count = torch.empty(shape, dtype=wide, device=x.device), 0

    def __call__(self, x: Tensor) -> None:
        if self._see is not None:
            self._kept[self._count].copy_(self._see(x))
            self._count += 1

    def finish(self) -> tuple[Array, Array]:
        """R-hat and effective sample sizes ``(m,)``; waits for the device."""
        seen = self._kept[: self._count].double().cpu().numpy()
        return split_rhat(seen), bulk_ess(seen)


def _checked(monitor: Callable[[Tensor], Any]) -> Monitor:
    def see(x: Tensor) -> Tensor:
        seen = monitor(x)
        if not isinstance(seen, Tensor) or seen.ndim not in (1, 2) or len(seen) != len(x):
            got = tuple(seen.shape) if isinstance(seen, Tensor) else type(seen).__name__
            raise ValueError(f"monitor: returned {got}, need ({len(x)},) or ({len(x)}, m)")
        return seen.reshape(len(x), -1)

    return see


def _summary(places: Tensor) -> Monitor:
    def see(x: Tensor) -> Tensor:
        flat = x.reshape(len(x), -1)
        wide = torch.float64 if x.dtype == torch.float64 else torch.float32
        square = torch.linalg.vector_norm(flat, dim=1, keepdim=True, dtype=wide).square() / flat.shape[1]
        return torch.cat([flat.mean(1, keepdim=True, dtype=wide), square, flat[:, places].to(wide)], dim=1)

    return see
