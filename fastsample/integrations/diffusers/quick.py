"""Steps on the CPU past the dispatcher: a row's call checked once, then other addresses (``fastsample.ops.bound``).

On a small state the dispatcher takes longer than the arithmetic.  Whatever is unusual, such as strides, subclasses,
modes or gradients, goes through the op.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from typing import TYPE_CHECKING, NamedTuple

import torch
from torch import Tensor

from fastsample.ops import bound

from .spare import LEAST, Spare, fits

if TYPE_CHECKING:
    from .draws import Pending

_GIVEN, _KEYED, _PENDING = range(3)  # where noise comes from: a tensor (or nowhere), a key, a generator
_BINDS = 32  # calls that a table has ready: who comes with a new shape in every call is served by the op

_grad = torch.is_grad_enabled
_free, _usual = bound.free, bound.usual
_empty_like = torch.empty_like


def new_like(like: Tensor, dtypes: Sequence[torch.dtype], spare: Spare | None) -> list[Tensor]:
    """Outputs of a step: new tensors like the state, their memory from ``spare`` where that has some."""
    own = like.dtype
    kept = spare if spare is not None and like.nbytes >= LEAST and fits(like) else None
    if kept is None:
        return [_empty_like(like) if dtype is own else _empty_like(like, dtype=dtype) for dtype in dtypes]
    outs: list[Tensor] = []
    for dtype in dtypes:
        out = kept.take(like, dtype)
        if out is None:
            out = _empty_like(like) if dtype is own else _empty_like(like, dtype=dtype)
        outs.append(out)
    return outs


@functools.lru_cache(maxsize=64)
def _no_key(batch: int) -> Tensor:
    """A key that is never read: a bound call knows by it that noise is no tensor."""
    with torch.inference_mode(False):
        return torch.zeros((batch, 2), dtype=torch.uint64, device="cpu")


class _Kind(NamedTuple):
    """A bound call and what its tensors are; whoever uses it has it alone."""

    bound: bound.Bound
    source: int
    shape: torch.Size
    terms: int
    dtypes: tuple[torch.dtype, ...]
    kinds: tuple[torch.dtype, ...]


class Quick:
    """The bound calls of one table on the CPU."""

    __slots__ = ("_kinds", "_left", "_table")

    def __init__(self, table: Tensor) -> None:
        self._table, self._left = table, _BINDS
        self._kinds: list[_Kind] = []

    def __call__(
        self,
        step: Tensor,
        terms: list[Tensor],
        dtypes: tuple[torch.dtype, ...],
        key: Tensor | None,
        noises: list[Tensor],
        spare: Spare | None,
        pending: Pending | None = None,
        tries: int = 3,
    ) -> list[Tensor] | None:
        """The outputs of a row; None where it must go through the op.  ``tries``: of kinds that do not fit."""
        if _grad() or not _free():
            return None
        try:
            kind = self._kinds.pop()  # at once: no other thread has it now
        except IndexError:
            return None
        operands = terms + noises if noises else terms
        call, source, shape, terms_of, made, kinds = kind
        alike = made == dtypes and terms_of == len(terms) and len(kinds) == len(operands)
        alike = alike and source == (_PENDING if pending is not None else _GIVEN if key is None else _KEYED)
        if not alike or terms[0].shape != shape:
            self._kinds.insert(0, kind)
            return self(step, terms, dtypes, key, noises, spare, pending, tries - 1) if tries else None
        addresses, place = call.addresses, 2 + len(dtypes)
        for x, dtype in zip(operands, kinds):  # noqa: B905  (strict costs a tenth of a microsecond)
            if not (_usual(x) and x.dtype is dtype and x.shape == shape):
                self._kinds.append(kind)
                return None
            addresses[place] = x.data_ptr()
            place += 1
        outs = new_like(terms[0], dtypes, spare)
        place = 2
        for out in outs:
            addresses[place] = out.data_ptr()
            place += 1
        addresses[0] = step.data_ptr()
        if key is not None:
            addresses[1] = key.data_ptr()
        done = call() if pending is None else pending.call(call)
        self._kinds.append(kind)
        return outs if done else None

    def learn(
        self,
        step: Tensor,
        outs: list[Tensor],
        terms: list[Tensor],
        key: Tensor | None,
        noises: list[Tensor],
        pending: Pending | None = None,
    ) -> None:
        """Have a call like this one ready, which was just done by the op."""
        if self._left <= 0 or _grad() or not _free():
            return
        source = _GIVEN if key is None else _KEYED
        if pending is not None:
            source, noises, key = _PENDING, [], _no_key(len(outs[0]))
        operands = (*terms, *noises)
        if not all(map(_usual, (*outs, *operands))):
            return
        shape, dtypes, kinds = outs[0].shape, tuple(x.dtype for x in outs), tuple(x.dtype for x in operands)
        what = source, shape, len(terms), dtypes, kinds
        if any(kind[1:] == what for kind in self._kinds.copy()):
            return
        self._left -= 1
        call = bound.bind(outs, terms, self._table, step, key, noises)
        if call is not None:
            self._kinds.append(_Kind(call, *what))
