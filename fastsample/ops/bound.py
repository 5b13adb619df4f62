"""Bound calls of ``update_`` on the CPU: checked once, then repeated with other addresses and without the dispatcher.

A call of the op costs about 3.5 us, a bound one less than 1 us; on states of a few thousand elements that is most of a
step.  The arithmetic and its bits are the same, for the library runs the same function.
"""

from __future__ import annotations

import ctypes
import weakref
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from . import library

_functions: tuple[Any, Any, Any] | None = None
_NATIVE = ("auto", "native")
_modes = torch._C._len_torch_dispatch_stack
_overrides = torch._C._len_torch_function_stack
_profiled = torch._C._autograd._profiler_enabled
_is_compiling = torch.compiler.is_compiling
_transforms, _tracing = torch._C._functorch.peek_interpreter_stack, torch._C._get_tracing_state


def untraced() -> bool:
    """Whether tensors are what they seem: no compiler, no dispatch mode, no transform, no trace."""
    return not (_is_compiling() or _modes() or _transforms() or _tracing())


def free() -> bool:
    """Whether a call may go past the dispatcher: nobody watches, traces or transforms it, or has another backend."""
    return untraced() and not (_overrides() or _profiled()) and library._forced in _NATIVE


def usual(x: Any) -> bool:
    """Whether the address of a tensor says where its elements are, in order."""
    return type(x) is Tensor and x.is_cpu and x.is_contiguous() and not x.is_neg()


def _loaded() -> tuple[Any, Any, Any] | None:
    """Call, unbind and keys of the loaded CPU library; None if another backend serves the CPU."""
    global _functions
    from .. import native

    if library.forced() not in _NATIVE or not native.load_for("cpu"):
        return None
    if _functions is None:
        found = ctypes.CDLL(native.loaded_from("cpu"))
        call, unbind, keys = found.fastsample_call, found.fastsample_unbind, found.fastsample_keys
        call.argtypes, call.restype = (ctypes.c_void_p, ctypes.c_void_p), ctypes.c_int
        unbind.argtypes, unbind.restype = (ctypes.c_void_p,), None
        keys.argtypes, keys.restype = (ctypes.c_uint64, ctypes.c_int64, ctypes.c_void_p), None
        _functions = call, unbind, keys
    return _functions


def write_keys(seed: int, keys: Tensor) -> bool:
    """Write the keys of samples 0 .. B-1 into new memory ``(B, 2)`` uint64; False if no library is in use so far."""
    functions = _functions and free() and _loaded()
    if not functions or not keys.is_cpu:
        return False
    functions[2](seed, len(keys), keys.data_ptr())
    return True


class Bound:
    """A call of ``update_`` on tensors of these shapes, strides and dtypes.

    ``addresses``: of the step, the key (0 without), the outputs, the terms and the noise tensors, to be set by the
    caller, who answers for what lies there: memory on the host of the same shapes, strides and dtypes.  ``handle``
    and ``at`` are what functions of the library take: the bound call and where its addresses are.
    """

    __slots__ = ("__weakref__", "_call", "_table", "addresses", "at", "handle")

    def __init__(self, handle: int, size: int, table: Tensor, functions: tuple[Any, Any, Any]) -> None:
        self.handle, self._call, self._table = ctypes.c_void_p(handle), functions[0], table  # the table is read
        self.addresses = (ctypes.c_int64 * size)()
        self.at = ctypes.c_void_p(ctypes.addressof(self.addresses))
        weakref.finalize(self, functions[1], self.handle)

    def __call__(self) -> bool:
        """Do it; False if nothing was touched because memory overlaps in a way that only the op may judge."""
        return bool(self._call(self.handle, self.at))


def bind(
    outs: Sequence[Tensor],
    terms: Sequence[Tensor],
    table: Tensor,
    step: Tensor,
    key: Tensor | None,
    noise: Sequence[Tensor] = (),
) -> Bound | None:
    """The bound form of a call, its addresses set; None where there is none: other devices, backends or layouts."""
    tensors = [*outs, *terms, *noise]
    functions = _loaded() if all(type(x) is Tensor and x.is_cpu for x in tensors) else None
    if functions is None:
        return None
    handle = torch.ops.fastsample.bind_update(list(outs), list(terms), table, step, key, list(noise))
    if not handle:
        return None
    bound = Bound(handle, 2 + len(tensors), table, functions)
    bound.addresses[:] = [step.data_ptr(), 0 if key is None else key.data_ptr(), *(x.data_ptr() for x in tensors)]
    return bound
