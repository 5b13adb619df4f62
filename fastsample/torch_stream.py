"""Normals of torch's CPU generators in a fifth of the time: the numbers, and the state that is left, are torch's own.

``torch.randn`` on a CPU takes one word after another from MT19937, on one thread.  The compiled library makes the same
words by vectors and shares them among threads (csrc/cpu/torch_stream.cpp).  The stream and its arithmetic belong to
torch and may change with its version or processor, so they are compared, once per dtype and process, with
``torch.randn``; where one bit differs ``torch.randn`` itself is called.  docs/noise.md has the figures.
"""

from __future__ import annotations

import ctypes
import math
import sys
import threading
from collections.abc import Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor

from .ops import bound

LEAST = 4096  # elements: below, torch.randn is as fast
_CODES = {torch.float32: 1, torch.float16: 2, torch.bfloat16: 3}
_CHECKED = (16400, 2047)  # normals that are compared; the second count has an odd end
_CPU = torch.device("cpu")
_alike: dict[torch.dtype, bool] = {}
_call: Any = partial.__call__
_function: Any = None
_differ: Any = None
_locked: bool = getattr(sys, "_is_gil_enabled", lambda: True)()


class _Room(threading.local):
    """The bytes of a generator after a draw, per thread."""

    def __init__(self) -> None:
        self.after = torch.empty(0, dtype=torch.uint8, device=_CPU)


_room = _Room()


def randn(
    shape: Sequence[int], *, generator: torch.Generator | None, dtype: torch.dtype, out: Tensor | None = None
) -> Tensor:
    """``torch.randn(shape, generator=generator, dtype=dtype, device="cpu", out=out)``, to the bit.

    ``generator``: one of the CPU, or ``None`` for the default one; it is left as torch leaves it.  ``out``: contiguous
    memory of this shape and dtype.  float32, float16 and bfloat16 of 4096 elements and more are drawn here, all else,
    and all that is traced, watched or transformed, by torch.

    Threads that draw from one generator at the same time get the numbers in no order, as with torch.
    """
    if math.prod(shape) >= LEAST and dtype in _CODES and bound.free():
        out = torch.empty(shape, dtype=dtype, device=_CPU) if out is None else out
        if bound.usual(out) and _draw(generator, out):
            return out
    return torch.randn(shape, generator=generator, dtype=dtype, device=_CPU, out=out)


def randn_like(x: Tensor) -> Tensor:
    """``torch.randn_like(x)``, to the bit; drawn here for contiguous tensors on the CPU."""
    if x.is_cpu and type(x) is Tensor and x.is_contiguous():
        return randn(x.shape, generator=None, dtype=x.dtype)
    return torch.randn_like(x)


def _draw(generator: torch.Generator | None, out: Tensor) -> bool:
    alike = _alike.get(out.dtype)
    if alike is None:
        alike = _alike[out.dtype] = _locked and _compare(out.dtype)
    if not alike:
        return False
    own = torch.default_generator if generator is None else generator
    if own.device != _CPU:
        return False
    before = own.get_state()
    if not _fill(before, out):
        return False
    # The function holds the lock of the interpreter, and map lets nobody in between its two calls: a draw of another
    # thread was before the first, where it is seen, or comes after the second.
    met, _ = map(_call, (partial(own.get_state), partial(own.set_state, _room.after)))
    if _differ(met.data_ptr(), before.data_ptr(), before.numel()) == 0:
        return True
    own.set_state(met)
    return False


def _fill(before: Tensor, out: Tensor) -> bool:
    """Write the normals, and the state after them to ``_room``; False if this state is not understood."""
    if _room.after.shape != before.shape:
        _room.after = before.clone()
    code = _CODES[out.dtype]
    return bool(_function(before.data_ptr(), _room.after.data_ptr(), before.numel(), out.data_ptr(), out.numel(), code))


def _compare(dtype: torch.dtype) -> bool:
    """Whether normals of this dtype, and states after them, are those of this torch."""
    global _differ, _function
    from . import native

    if not native.load_for("cpu"):
        return False
    if _function is None:
        library = ctypes.PyDLL(native.loaded_from("cpu"))
        _differ, _function = library.memcmp, library.fastsample_randn
        _differ.argtypes = (ctypes.c_void_p, ctypes.c_void_p, ctypes.c_size_t)
        _function.argtypes = (*[ctypes.c_void_p] * 2, ctypes.c_int64, ctypes.c_void_p, *[ctypes.c_int64] * 2)
        _function.restype = ctypes.c_int
    theirs = torch.Generator().manual_seed(0x5EED)
    torch.randn(5, generator=theirs, device=_CPU)  # in the middle of a state, with a normal that is kept for later
    for count in _CHECKED:
        before, made = theirs.get_state(), torch.empty(count, dtype=dtype, device=_CPU)
        if not _fill(before, made):
            return False
        wanted = torch.randn(count, generator=theirs, dtype=dtype, device=_CPU)
        if not (torch.equal(made, wanted) and torch.equal(_room.after, theirs.get_state())):
            return False
    return True
