"""Normals of torch's CPU generators in a fifth of the time: the numbers, and the state that is left, are torch's own.

``torch.randn`` on a CPU takes one word after another from MT19937, on one thread.  The compiled library makes the same
words by vectors and shares them among threads (csrc/cpu/torch_stream.cpp).  The stream and its arithmetic belong to
torch and may change with its version or processor, so they are compared, once per dtype and process, with
``torch.randn``; where one bit differs ``torch.randn`` itself is called.  docs/noise.md has the figures.
"""

from __future__ import annotations

import ctypes
import math
import threading
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor

from .ops import bound

LEAST = 4096  # elements: below, torch.randn is as fast
BLOCK = 16  # normals that torch makes together; a draw inside a step needs samples of a multiple
_CODES = {torch.float32: 1, torch.float16: 2, torch.bfloat16: 3}
_CHECKED = (16400, 2047)  # normals that are compared; the second count has an odd end
_CPU = torch.device("cpu")
_is_compiling = torch.compiler.is_compiling
_alike: dict[torch.dtype, bool] = {}
_call: Any = partial.__call__
_SHORT = 2**18  # elements: a draw of less keeps the lock of the interpreter, so that fewer threads draw in vain
_library: Any = None
_released: Any = None  # the same functions, while which other threads run
# Of generators, by address: whose turn it is, and memory for a state
_turns: list[tuple[Any, list[Tensor]]] = [(threading.RLock(), []) for _ in range(64)]
_torch: Any = torch._C._VariableFunctions  # where torch.randn is from


def randn(
    shape: Sequence[int], *, generator: torch.Generator | None, dtype: torch.dtype, out: Tensor | None = None
) -> Tensor:
    """``torch.randn(shape, generator=generator, dtype=dtype, device="cpu", out=out)``, to the bit.

    ``generator``: one of the CPU, or ``None`` for the default one; it is left as torch leaves it.  ``out``: contiguous
    memory of this shape and dtype.  float32, float16 and bfloat16 of 4096 elements and more are drawn here, all else,
    and all that is traced, watched or transformed, by torch.

    Calls of this function from several threads with one generator take turns; with the default generator, torch draws
    while other threads of Python are alive.  A generator of its own that a thread draws from here must not be drawn
    from by ``torch.randn`` in another at the same moment: that draw may be lost.
    """
    # Traced sizes are not compared: they would become conditions of the trace
    if not _is_compiling() and math.prod(shape) >= LEAST and ready(generator, dtype):
        room = torch.empty(shape, dtype=dtype, device=_CPU) if out is None else out
        if bound.usual(room) and _take(generator, partial(_fill, room)):
            return room
    if generator is None and out is None:  # torch.compile does not take them as None where sizes are symbols
        return torch.randn(shape, dtype=dtype, device=_CPU)
    return torch.randn(shape, generator=generator, dtype=dtype, device=_CPU, out=out)


def randn_like(x: Tensor) -> Tensor:
    """``torch.randn_like(x)``, to the bit; drawn here for contiguous tensors on the CPU.

    Who has put another function in the place of ``torch.randn_like`` is asked.
    """
    if bound.free() and torch.randn_like is _torch.randn_like and type(x) is Tensor and x.is_cpu and x.is_contiguous():
        return randn(x.shape, generator=None, dtype=x.dtype, out=torch.empty_like(x))
    return torch.randn_like(x)


def ready(generator: torch.Generator | None, dtype: torch.dtype) -> bool:
    """Whether normals of this dtype may be drawn here now, from this generator, and nobody has replaced torch.randn."""
    if dtype not in _CODES or torch.randn is not _torch.randn or not bound.free():
        return False
    if not (_alone() if generator is None else generator.device == _CPU):
        return False
    alike = _alike.get(dtype)
    if alike is None:
        # float32 first: rounding to 16 bits hides from a few thousand numbers what another arithmetic makes of them
        single = dtype is torch.float32 or ready(generator, torch.float32)
        alike = _alike[dtype] = single and _compare(dtype)
    return alike


def _alone() -> bool:
    """Whether no other thread of Python is alive that may draw from the default generator."""
    if threading.active_count() == 1:
        return True
    mine = threading.current_thread()
    return all(thread is mine or type(thread).__name__ == "TMonitor" for thread in threading.enumerate())  # tqdm's


def call(update: bound.Bound, generator: torch.Generator | None, dtype: torch.dtype, count: int) -> bool:
    """Do a bound ``update_`` whose noise is the next draw of the generator, as if it were a tensor of this dtype.

    ``count``: normals.  ``update`` was bound with some key, which is not read; its row has one noise, its samples have
    a multiple of 16 elements, and its arithmetic is float32.  Ask ``ready`` first.  ``False``: nothing was drawn, the
    outputs hold nothing, and it needs another way.
    """
    return _take(generator, partial(_update, update, _CODES[dtype], count))


def _take(generator: torch.Generator | None, make: Callable[[Tensor, Tensor], int]) -> bool:
    """Draw by ``make(before, after)``, which writes the state after the draw; False if nothing was drawn."""
    own = torch.default_generator if generator is None else generator
    turn, rooms = _turns[id(own) // 64 % len(_turns)]
    with turn:
        before = own.get_state()
        after = rooms.pop() if rooms else torch.empty_like(before)
        done = make(before, after)
        if done:
            # map calls one after the other, and no thread of Python between: what torch drew meanwhile for another one
            # is seen, and must not be given again
            now, _ = map(_call, (partial(own.get_state), partial(own.set_state, after)))
            if _library.memcmp(now.data_ptr(), before.data_ptr(), before.numel()):
                own.set_state(now)
                done = 0
        rooms.append(after)
        return bool(done)


def _fill(out: Tensor, before: Tensor, after: Tensor) -> int:
    """Write normals, and the state after them; 0 if the state before them is not understood."""
    library = _library if out.numel() < _SHORT else _released
    made: int = library.fastsample_randn(
        before.data_ptr(), after.data_ptr(), before.numel(), _CODES[out.dtype], out.data_ptr(), out.numel()
    )
    return made


def _update(update: bound.Bound, code: int, count: int, before: Tensor, after: Tensor) -> int:
    library = _library if count < _SHORT else _released
    made: int = library.fastsample_call_with_stream(
        update.handle, update.at, before.data_ptr(), after.data_ptr(), before.numel(), code
    )
    return made


def _load() -> bool:
    global _library, _released
    from . import native

    if _library is None and native.load_for("cpu"):
        pointer, number = ctypes.c_void_p, ctypes.c_int64
        found = []
        for kind in (ctypes.CDLL, ctypes.PyDLL):
            library = kind(native.loaded_from("cpu"))
            library.memcmp.argtypes = (pointer, pointer, ctypes.c_size_t)
            library.fastsample_randn.argtypes = (pointer, pointer, number, number, pointer, number)
            library.fastsample_call_with_stream.argtypes = (pointer, pointer, pointer, pointer, number, number)
            found.append(library)
        _released, _library = found
    return _library is not None


def _compare(dtype: torch.dtype) -> bool:
    """Whether normals of this dtype, and states after them, are those of this torch."""
    if not _load():
        return False
    theirs = torch.Generator().manual_seed(0x5EED)
    torch.randn(5, generator=theirs, device=_CPU)  # in the middle of a state, with a normal that is kept for later
    for count in _CHECKED:
        before, made = theirs.get_state(), torch.empty(count, dtype=dtype, device=_CPU)
        after = torch.empty_like(before)
        if not _fill(made, before, after):
            return False
        wanted = torch.randn(count, generator=theirs, dtype=dtype, device=_CPU)
        if not (torch.equal(made, wanted) and torch.equal(after, theirs.get_state())):
            return False
    return True
