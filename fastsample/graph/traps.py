"""What cannot be recorded, found while it runs: host reads, shapes that depend on data, uploads in every call."""

from __future__ import annotations

import os
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode

from ..errors import CaptureError

_TORCH, _OURS = os.path.dirname(torch.__file__), os.path.dirname(os.path.dirname(__file__))
_TAGS = {
    torch.Tag.data_dependent_output: "reads a number on the host",
    torch.Tag.dynamic_output_shape: "makes a tensor whose shape depends on the data",
}
_INDEXING = ("aten::index", "aten::index_put", "aten::index_put_", "aten::_index_put_impl_", "aten::_unsafe_index")
_METHODS: dict[Any, str] = {
    getattr(Tensor, name): name for name in ("item", "tolist", "numpy", "__array__", "__bool__", "__float__", "__int__")
}
_stance = threading.RLock()  # that of torch belongs to the process: threads that put back each other's would lose it
_METHODS[Tensor.__index__] = "__index__"


class Traps:
    """A context in which everything that a recording would miss raises `CaptureError`, which says what and where."""

    def __init__(self) -> None:
        self._modes: tuple[Any, ...] = (_Methods(), _Ops())  # type: ignore[no-untyped-call]

    def __enter__(self) -> None:
        for mode in self._modes:
            mode.__enter__()

    def __exit__(self, *error: Any) -> None:
        for mode in reversed(self._modes):
            mode.__exit__(*error)


class _Methods(TorchFunctionMode):
    """Methods that read memory of the CPU without an op."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func in _METHODS:
            raise CaptureError(f"reads a number on the host ({_METHODS[func]}{_where()})")
        return func(*args, **(kwargs or {}))


class _Ops(TorchDispatchMode):
    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        check(func, args, kwargs)
        out = func(*args, **(kwargs or {}))
        check_devices(func, args, out)
        return out


def check(func: Any, args: Any, kwargs: Any) -> None:
    """Raise `CaptureError` if a call of an op cannot be recorded."""
    name = func._schema.name
    if name in _INDEXING:  # tagged, but only masks make it so
        masks = args[1] if len(args) > 1 else ()
        if any(isinstance(index, Tensor) and index.dtype in (torch.bool, torch.uint8) for index in masks):
            raise CaptureError(f"indexes by a mask, whose number of elements depends on the data ({name}{_where()})")
        return
    for tag, what in _TAGS.items():
        if tag in func.tags:
            raise CaptureError(f"{what} ({name}{_where()})")


def check_devices(func: Any, args: Any, out: Any) -> None:
    """Raise `CaptureError` if an op has copied between host and device."""
    name = func._schema.name
    if name == "aten::copy_":
        to, source = args[0], args[1]
    elif name == "aten::_to_copy":
        to, source = out, args[0]
    else:
        return
    if to.device.type == source.device.type:
        return
    if to.device.type == "cpu":
        raise CaptureError(f"copies from the device to the host ({name}{_where()})")
    if not source.is_pinned() and source.numel():
        raise CaptureError(f"copies from the host to the device in every call ({name}{_where()})")


def _where() -> str:
    """The line of the caller's own code, outside torch and this package."""
    frame: Any = sys._getframe(1)
    while frame is not None:
        path = frame.f_code.co_filename
        if not path.startswith((_TORCH, _OURS)) and not path.startswith("<"):
            return f" at {os.path.basename(path)}:{frame.f_lineno}"
        frame = frame.f_back
    return ""


def trapped(body: Callable[[], Any]) -> Any:
    """Run ``body`` within `Traps`."""
    with as_written(), Traps():
        return body()


@contextmanager
def as_written() -> Iterator[None]:
    """Compiled networks run as they were written: kernels of a compiler are no ops, so a list would miss them."""
    if "torch._dynamo" not in sys.modules:
        yield
        return
    with _stance, torch.compiler.set_stance("force_eager"):
        yield
