"""Named ranges of a run: ``run``, ``step``, ``network``, ``update``, ``capture``, ``replay``.

A function that is called in a loop is wrapped once before the loop (`ranged`), and only if ranges are on: a loop with
ranges off makes the calls of a loop that never heard of them.  The first word of a range says what it is; the number
that goes with it, which nvtx shows as its payload, counts ranges of that kind within the run.
"""

from __future__ import annotations

import functools
import os
import threading
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from types import TracebackType
from typing import TYPE_CHECKING, Any, Protocol, TypeVar

import torch

if TYPE_CHECKING:
    from ..protocol import Run

DOMAIN = "fastsample"
TOOL_VARIABLE = "NVTX_INJECTION64_PATH"  # names the library that listens to nvtx
# 0xAARRGGBB
_COLORS = {
    "run": 0xFF9E9E9E,
    "step": 0xFFBDBDBD,
    "network": 0xFF4C78A8,
    "update": 0xFFF58518,
    "capture": 0xFFE45756,
    "replay": 0xFF54A24B,
}

Function = TypeVar("Function", bound=Callable[..., Any])


class Sink(Protocol):
    """Where ranges go.  They nest, per thread."""

    def push(self, text: str, number: int) -> None:
        """Begin a range."""

    def pop(self) -> None:
        """End the one begun last."""


class NvtxSink:
    """To any tool that listens to nvtx; to nowhere if there is none.  Raises ``ImportError`` without the package."""

    def __init__(self) -> None:
        try:
            import nvtx
        except ImportError as error:
            raise ImportError("nvtx: the package is not installed; pip install nvtx") from error
        self._domain = nvtx.get_domain(DOMAIN)
        self.pop = self._domain.pop_range

    def push(self, text: str, number: int) -> None:
        color = _COLORS.get(text.partition(" ")[0], 0xFF9E9E9E)
        self._domain.push_range(self._domain.get_event_attributes(message=text, color=color, payload=number))


class TorchSink:
    """To torch.profiler, under the name that Nsight Systems prints: ``fastsample:network``."""

    def __init__(self) -> None:
        self._own = threading.local()

    def push(self, text: str, number: int) -> None:
        made = torch.autograd.profiler.record_function(f"{DOMAIN}:{text}", str(number))
        made.__enter__()
        self._own.__dict__.setdefault("open", []).append(made)

    def pop(self) -> None:
        self._own.open.pop().__exit__(None, None, None)


_sinks: tuple[Sink, ...] = ()
_followed: list[tuple[type, str, str, Any]] = []  # the last: what the class itself defines, if anything


class Before:
    """What `enable` returns: as a context it brings back what was on before."""

    def __init__(self, sinks: tuple[Sink, ...]) -> None:
        self._sinks = sinks

    def __enter__(self) -> None:
        return None

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        use(self._sinks)


def enabled() -> bool:
    """Whether runs that begin now have ranges.  Never while torch.compile traces: a range would break its graph."""
    return bool(_sinks) and not torch.compiler.is_compiling()


def enable(*, nvtx: bool = True, torch_profiler: bool = False) -> Before:
    """Give runs that begin from now on ranges; also ``with enable(): ...``.

    Args:
        nvtx: to the tools of Nsight and all others that listen to nvtx, in the domain ``"fastsample"``.
        torch_profiler: as ``record_function`` ranges.  It costs a few microseconds each.

    Raises:
        ImportError: the package ``nvtx`` is missing.
        ValueError: neither is wanted.
    """
    if not (nvtx or torch_profiler):
        raise ValueError("nvtx, torch_profiler: got neither, need one of them (disable() switches ranges off)")
    before = Before(_sinks)
    use((*([NvtxSink()] if nvtx else []), *([TorchSink()] if torch_profiler else [])))
    return before


def disable() -> None:
    """No ranges in runs that begin from now on."""
    use(())


def use(sinks: Sequence[Sink]) -> None:
    """Send ranges to these."""
    global _sinks
    _sinks = tuple(sinks)
    for owner, name, text, own in _followed:
        if name in owner.__dict__ and own is None:
            delattr(owner, name)
        if _sinks or own is not None:
            setattr(owner, name, own if not _sinks else _outermost(text, getattr(owner, name) if own is None else own))


def follow(owner: type, name: str, text: str) -> None:
    """Put every call of a method in a range while ranges are on: the class itself changes, off it is as written.

    A method that calls that of its parent makes one range, not two.
    """
    _followed.append((owner, name, text, owner.__dict__.get(name)))
    if _sinks:
        use(_sinks)


def _push(sinks: Sequence[Sink], text: str, number: int) -> None:
    for sink in sinks:
        sink.push(text, number)


def _pop(sinks: Sequence[Sink]) -> None:
    for sink in reversed(sinks):
        sink.pop()


@contextmanager
def range_of(text: str, number: int = 0) -> Iterator[None]:
    """A range around a block that runs once, such as a capture; nothing while ranges are off."""
    sinks = _sinks if enabled() else ()  # of now, whatever the block switches
    _push(sinks, text, number)
    try:
        yield
    finally:
        _pop(sinks)


def ranged(text: str, function: Function) -> Function:
    """``function`` in a range, numbered from 0, or ``function`` itself while ranges are off.  Ask before a loop."""
    if not enabled():
        return function
    sinks, number = _sinks, 0

    def inside(*args: Any, **kwargs: Any) -> Any:
        nonlocal number
        _push(sinks, text, number)
        number += 1
        try:
            return function(*args, **kwargs)
        finally:
            _pop(sinks)

    return inside  # type: ignore[return-value]


def _outermost(text: str, function: Callable[..., Any]) -> Callable[..., Any]:
    @functools.wraps(function)
    def inside(self: Any, *args: Any, **kwargs: Any) -> Any:
        if getattr(_within, "yes", False):
            return function(self, *args, **kwargs)
        _within.yes = True
        try:
            with range_of(f"{text} {type(self).__name__}", getattr(self, "_step_index", None) or 0):
                return function(self, *args, **kwargs)
        finally:
            _within.yes = False

    return inside


_within = threading.local()


class RunRanges:
    """The ranges of one run that is driven by ask and tell; a context around its loop.

    ``run SOLVER N bytes`` (N: the size of the state) holds one ``step SOLVER`` per step of the path, each with its
    network calls, its updates and its hooks.
    """

    def __init__(self, run: Run, title: str) -> None:
        self._run, self._title, self._sinks = run, title, _sinks
        self._step, self._call, self._inside = 0, 0, False

    @classmethod
    def of(cls, run: Run, title: str) -> RunRanges | None:
        """None while ranges are off, and for a run without a title, which is part of something else."""
        return cls(run, title) if enabled() and title else None

    def __enter__(self) -> RunRanges:
        state = self._run.state
        _push(self._sinks, f"run {self._title} {state.numel() * state.element_size()} bytes", self._run.calls or 0)
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        if self._inside:  # stopped in the middle of a step
            _pop(self._sinks)
        _pop(self._sinks)

    def network(self, predict: Function) -> Function:
        """``predict`` in its range; the first of a step also begins the step."""

        def inside(*ask: Any, **more: Any) -> Any:
            if not self._inside:
                _push(self._sinks, f"step {self._title}", self._step)
                self._inside = True
            _push(self._sinks, "network", self._call)
            self._call += 1
            try:
                return predict(*ask, **more)
            finally:
                _pop(self._sinks)

        return inside  # type: ignore[return-value]

    def told(self, call: int) -> None:
        """A hook, the last of a call: ends the step where the run does."""
        if self._run.ends_step(call):
            _pop(self._sinks)
            self._inside = False
            self._step += 1


def in_run(run: Run, drive: Any, title: str) -> Any:
    """``drive``, which replays a run, in the range of the run; itself while ranges are off."""
    ranges = RunRanges.of(run, title)
    if ranges is None:
        return drive

    def inside(*args: Any) -> Any:
        with ranges:
            return drive(*args)

    return inside


def _from_environment() -> None:
    word = os.environ.get("FASTSAMPLE_NVTX", "")
    if word not in ("", "0", "1"):
        raise ValueError(f"FASTSAMPLE_NVTX: got {word!r}, allowed are 0 and 1")
    if word == "1" or (word == "" and os.environ.get(TOOL_VARIABLE)):
        try:
            enable()
        except ImportError as error:
            warnings.warn(f"no nvtx ranges: {error}", stacklevel=2)


_from_environment()
