"""The CPU's stand-in for a CUDA graph: a list of the ops that ran, with the tensors that they ran on.

It has a graph's meaning, not its speed: memory is that of the recording, ops run in their order, and no Python of the
network or of a sampler runs again.  So all that is built on graphs can be tested without a GPU.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from .traps import as_written, check, trapped

_EMPTY = ("aten::empty", "aten::empty_like", "aten::new_empty", "aten::empty_strided", "aten::new_empty_strided")


class CallList:
    """A recording; ``replay()`` runs it again."""

    def __init__(self, calls: list[tuple[Any, ...]], size: int) -> None:
        self._calls, self.bytes = calls, size

    def __len__(self) -> int:
        return len(self._calls)

    def replay(self) -> None:
        """Run the ops again; what they make goes to the memory of the recording."""
        for function, args, kwargs, targets in self._calls:
            made = function(*args, **kwargs)
            if targets:
                results = list(_tensors(made))
                for place, target in targets:
                    _copy(target, results[place])


class CallListRecorder:
    """Records ``body`` as a `CallList`."""

    name = "call list"

    def record(self, body: Callable[[], Any], before: Callable[[], Any]) -> CallList:
        """As `Recorder.record`; one warm-up."""
        with as_written():
            before()
            trapped(body)
            before()
            listing = _Listing()
            with listing:
                body()
        return CallList(listing.calls, sum(listing.sizes.values()))

    def begin(self) -> None:
        """The CPU has done all work when it returns."""

    end = begin


class _Listing(TorchDispatchMode):
    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.calls: list[tuple[Any, ...]] = []
        self.sizes: dict[int, int] = {}  # bytes by storage

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        check(func, args, kwargs)
        out = func(*args, **kwargs)
        given = {_memory(x) for x in _tensors((args, kwargs))}
        fresh = [(n, x) for n, x in enumerate(_tensors(out)) if _memory(x) not in given]
        self.sizes.update((_memory(x), x.untyped_storage().nbytes()) for _, x in fresh)
        targets = [] if func._schema.name in _EMPTY else fresh
        if func._schema.is_mutable or targets:  # else a view: its memory is that of the recording already
            self.calls.append((func, args, kwargs, targets))
        return out


def _tensors(value: Any) -> Iterator[Tensor]:
    """The tensors in arguments or results of an op, in order."""
    if isinstance(value, Tensor):
        yield value
    elif isinstance(value, (tuple, list)):
        for part in value:
            yield from _tensors(part)
    elif isinstance(value, dict):
        for part in value.values():
            yield from _tensors(part)


def _memory(x: Tensor) -> int:
    return int(x.untyped_storage()._cdata)


def _copy(target: Tensor, value: Tensor) -> None:
    if 0 in target.stride():  # elements that share memory cannot be written one by one
        target.untyped_storage().copy_(value.untyped_storage(), non_blocking=False)
    else:
        target.copy_(value)
