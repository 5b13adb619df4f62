"""Memory of large outputs on the CPU that nobody holds any more, taken again for the next ones.

A step writes new tensors of the size of the state.  Up to 32 MB the C library gets such memory from its
heap, gives the top of the heap back to the system when it is free, and the system hands out new pages, which it has to
clear first: at a few megabytes that takes longer than the arithmetic.  A ``Spare`` keeps the memory instead.
"""

from __future__ import annotations

import math
import os
from collections import deque
from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from fastsample.ops.bound import untraced

LEAST, MOST = 2**19, 2**25  # bytes: below hardly any page was seen to come back, above every allocation is a mapping
_BUFFERS = 16  # UniPC and SA-Solver of the highest order have 10 to 12 in use at once
_DEFAULT_MB = "256"

_CPU = torch.device("cpu")  # said, because there may be another default
_address = getattr(torch._C, "_storage_address", None)
_holders = getattr(torch._C, "_storage_Use_Count", None)
_below_views: Any = getattr(torch._C, "_AutoDispatchBelowADInplaceOrView", None)
_inference = torch.is_inference_mode_enabled


class _Base(NamedTuple):
    """A private tensor, which keeps its storage alive, and what to know it by."""

    key: tuple[Any, ...]
    base: Tensor
    storage: int  # address of the object that counts its holders
    place: int  # address of the numbers


class Spare:
    """At most 16 buffers and ``FASTSAMPLE_SPARE_MB`` megabytes (256; 0: none) of one scheduler.

    A buffer is free when its storage has one holder, the tensor kept here: every other tensor on it, view, numpy array
    or capsule is a holder as well, so that what a caller keeps, or what a term of the same step reads, is not handed
    out.  What is handed out is a tensor of its own, as from ``torch.empty_like``: no view, a version counter of its
    own, an inference tensor exactly where ``torch.empty_like`` gives one.  Threads may share a ``Spare``: a buffer is
    out of the list while somebody looks at it.
    """

    def __init__(self) -> None:
        self._kept: deque[_Base] = deque()
        self._bytes = -1  # how many may be kept; -1: not asked yet

    def take(self, like: Tensor, dtype: torch.dtype, flat: bool = False) -> Tensor | None:
        """A tensor with the shape and the strides of ``like`` (``flat``: contiguous) and ``dtype``, not initialised.

        ``None``: make one.  Ask ``fits(like)`` first.  Raises ``ValueError`` for a bad ``FASTSAMPLE_SPARE_MB``.
        """
        strides = _contiguous(like.shape) if flat and not like.is_contiguous() else like.stride()
        kept, key = self._kept, (like.shape, strides, dtype)
        for _ in range(len(kept)):
            try:
                one = kept.popleft()
            except IndexError:  # other threads are looking at the rest
                break
            its, base, storage, place = one
            if _holders(storage) == 1 and its == key:  # type: ignore[misc]
                if base.data_ptr() != place:  # resized or moved to shared memory: a storage like any other
                    continue
                made = _alias(base)
                kept.append(one)
                return made
            kept.append(one)
        return self._new(key)

    def _new(self, key: tuple[Any, ...]) -> Tensor | None:
        shape, strides, dtype = key
        size = shape.numel() * dtype.itemsize
        if self._bytes < 0:
            self._bytes = _budget()
        if size > self._bytes or not _dense(shape, strides):
            return None
        kept = self._kept
        for _ in range(len(kept)):
            try:
                one = kept.popleft()
            except IndexError:
                break
            if one.key[0] == shape:  # the run has another shape now: what the last one left is let go
                kept.append(one)
        used = size + sum(one.base.nbytes for one in kept.copy())
        while kept and (len(kept) >= _BUFFERS or used > self._bytes):
            try:
                used -= kept.popleft().base.nbytes
            except IndexError:
                break
        base = torch.empty_strided(shape, strides, dtype=dtype, device=_CPU)
        made = _alias(base)
        kept.append(_Base(key, base, _address(base), base.data_ptr()))  # type: ignore[misc]
        return made

    def clear(self) -> None:
        """Let all go."""
        self._kept.clear()


def _alias(base: Tensor) -> Tensor:
    # set_ makes a storage that was cut meanwhile large enough again, and beside .data it knows of inference mode
    if _inference():
        return base.new_empty(0).set_(base)  # type: ignore[call-overload,no-any-return]
    with _below_views():  # the version of a new tensor is 0
        return base.new_empty(0).set_(base)  # type: ignore[call-overload,no-any-return]


def _contiguous(shape: Sequence[int]) -> tuple[int, ...]:
    return tuple(math.prod(shape[i:]) for i in range(1, len(shape) + 1))


def _dense(shape: Sequence[int], strides: Sequence[int]) -> bool:
    """Whether elements fill their memory, each with a place of its own: strides that ``empty_like`` keeps."""
    expected = 1
    for stride, size in sorted((s, n) for n, s in zip(shape, strides, strict=True) if n != 1):
        if stride != expected:
            return False
        expected *= size
    return True


def _budget() -> int:
    text = os.environ.get("FASTSAMPLE_SPARE_MB") or _DEFAULT_MB
    try:
        value = float(text)
    except ValueError:
        value = -1.0
    if not 0 <= value < float("inf"):
        raise ValueError(f"FASTSAMPLE_SPARE_MB: got {text!r}, allowed are numbers >= 0")
    return int(value * 1e6)


def _counts() -> bool:
    """Whether this torch tells the holders of a storage, and they are what is said above."""
    if None in (_address, _holders, _below_views):
        return False
    base = torch.empty(1, dtype=torch.float32, device=_CPU)
    storage = _address(base)  # type: ignore[misc]
    alone = _holders(storage)  # type: ignore[misc]
    held = _alias(base)
    return alone == 1 and _holders(storage) == 2 and held.data_ptr() == base.data_ptr()  # type: ignore[misc]


def fits(like: Tensor) -> bool:
    """Whether outputs like this one are kept: plain large tensors on the CPU, outside of tracing and transforms."""
    return (
        type(like) is Tensor  # these two first: traced tensors may have no size to compare
        and untraced()
        and LEAST <= like.nbytes <= MOST
        and like.is_cpu
    )


if not _counts():

    def fits(like: Tensor) -> bool:
        """Nothing is kept: this torch does not tell who holds a storage."""
        return False
