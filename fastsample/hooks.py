"""What follows a run: the recorder of its states, the callback, the progress bar."""

from __future__ import annotations

import sys
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from .protocol import Run, StepInfo


class Recorder:
    """Keeps the states of the path; its memory is taken before the first call."""

    def __init__(self, run: Run, steps: int | None, grad: bool) -> None:
        self._run, self._count, self._grad = run, 1, grad
        self._kept: list[Tensor] | Tensor
        if grad or steps is None:
            self._kept = [run.state if grad else run.state.clone()]
        else:
            self._kept = run.state.new_empty((steps + 1, *run.state.shape))
            self._kept[0].copy_(run.state)

    def __call__(self, call: int) -> None:
        if not self._run.ends_step(call):
            return
        if isinstance(self._kept, list):
            self._kept.append(self._run.state if self._grad else self._run.state.clone())
        else:
            self._kept[self._count].copy_(self._run.state)
        self._count += 1

    def value(self) -> Tensor:
        """The states so far, ``(kept, B, ...)``."""
        return torch.stack(self._kept) if isinstance(self._kept, list) else self._kept[: self._count]


def caller(run: Run, callback: Callable[[StepInfo], Any]) -> Callable[[int], Any]:
    """A callback as a hook.  Raises ``TypeError`` if it is not callable."""
    if not callable(callback):
        raise TypeError(f"callback: got {type(callback).__name__}, need a callable")
    return lambda call: callback(run.info(call))


class Bar:
    """The progress bar as a context whose value is a list of no or one hook."""

    def __init__(self, progress: bool | str, calls: int | None, title: str) -> None:
        if progress not in (True, False, "always"):
            raise ValueError(f"progress: got {progress!r}, allowed are True, False and 'always'")
        self._bar: Any = None
        if progress == "always" or (progress and sys.stderr.isatty()):
            from tqdm import tqdm

            self._bar = tqdm(total=calls, desc=title, unit="call", file=sys.stderr, leave=progress == "always")

    def __enter__(self) -> list[Callable[[int], Any]]:
        return [] if self._bar is None else [lambda call: self._bar.update()]

    def __exit__(self, *error: Any) -> None:
        if self._bar is not None:
            self._bar.close()
