"""The network of a recording: lent for the time of a run, so that a recording keeps no network in memory."""

from __future__ import annotations

import functools
import weakref
from collections.abc import Callable, Hashable, Iterator
from contextlib import contextmanager
from types import MethodType
from typing import Any

import torch
from torch import Tensor, nn

from ..models.network import Network, Output, Predictor, _join, uncompiled


class _Lent:
    """A callable in the place of a network's own."""

    fn: Callable[..., Any] | None = None

    def __call__(self, *args: Any) -> Any:
        if self.fn is None:
            raise RuntimeError("a recording asked a network outside of a run")
        return self.fn(*args)


class Borrowed:
    """A network of the same facts whose callables are there only within ``given(network)``."""

    def __init__(self, network: Network) -> None:
        self._places: list[_Lent] = []
        self._energy = _Lent()

        def place(fn: Callable[..., Any]) -> Callable[..., Any]:
            self._places.append(_Lent())
            return self._places[-1]

        self.network = network.wrapped(place)
        self.network.exact = None
        if network.energy is not None:
            self.network.energy = self._energy

    @contextmanager
    def given(self, network: Network) -> Iterator[None]:
        """Within this context the callables are those of ``network``."""
        found: list[Callable[..., Any]] = []

        def seen(fn: Callable[..., Any]) -> Callable[..., Any]:
            found.append(fn)
            return fn

        network.wrapped(seen)
        for place, fn in zip(self._places, found, strict=True):
            place.fn = fn
        self._energy.fn = network.energy
        try:
            yield
        finally:
            for place in (*self._places, self._energy):
                place.fn = None


def joined(network: Network, guided: bool, cond: Any, uncond: Any) -> Any:
    """The conditions as a network wants them: of one branch, a pair, or those of twice the batch in a list."""
    if not guided or cond is None:  # guided without conditions: the network itself returns both branches
        return cond
    both = _join(cond, uncond) if network.one_batch else None
    return (cond, uncond) if both is None else [both]


def predictor(network: Network, guided: bool, conds: Any) -> Predictor:
    """``predict(x, t)`` on conditions made by `joined` that lie in memory that stays."""
    if not guided or conds is None:
        return network.given(conds)
    if isinstance(conds, tuple):
        return network.guided(*conds)
    buffers: dict[Hashable, tuple[Tensor, ...]] = {}

    def predict(x: Tensor, t: Tensor) -> Output:
        batch, kind = len(x), (x.shape, x.dtype, t.dtype)
        if kind not in buffers:  # in a warm-up, before anything is recorded
            with torch.inference_mode(False):
                buffers[kind] = tuple(torch.cat([one.detach(), one.detach()]) for one in (x, t))
        x2, t2 = buffers[kind]
        torch.cat([x, x], out=x2)
        torch.cat([t, t], out=t2)
        out = network(x2, t2, conds[0])
        if not isinstance(out, Tensor) or len(out) != len(x2):
            return out  # type: ignore[no-any-return]  # the check of outputs says what is wrong with it
        return out[:batch], out[batch:]

    return predict


def owner(model: Any) -> Any:
    """The object whose life ends that of its recordings."""
    if type(model) is Network and model.energy is None:
        model = model.fn  # a Network around the same callable is as good
    return model.__self__ if isinstance(model, MethodType) else model  # a bound method is made anew at every access


def weak(thing: Any, gone: Callable[[Any], Any]) -> Callable[[], Any]:
    """A reference that keeps nothing alive; of things that do not allow one, one that does."""
    try:
        return weakref.ref(thing, gone)
    except TypeError:
        return lambda: thing


def name_of(model: Any, network: Network) -> Hashable:
    """What tells two networks of one owner apart, and one network before and after its weights were moved."""
    fn = model.fn if isinstance(model, Network) else model
    method = id(fn.__func__) if isinstance(fn, MethodType) else None
    facts = (type(network), network.prediction, network.time, network.dtype, network.one_batch)
    return (*facts, method, *places_of(fn))


def places_of(fn: Any) -> tuple[Hashable, ...]:
    """Where the tensors and weights lie that a callable is made of, as far as can be seen."""
    parts = list(_parts(fn))
    tensors = tuple(_place(part) for part in parts if isinstance(part, Tensor))
    return tensors, tuple(_places(part) for part in parts if isinstance(part, nn.Module))


def _parts(fn: Any) -> Iterator[Any]:
    """What a callable is made of, as far as can be seen: itself, its object, what it closes over or was given."""
    fn = uncompiled(fn)
    given = (*fn.args, *fn.keywords.values()) if isinstance(fn, functools.partial) else ()
    inner = fn.func if isinstance(fn, functools.partial) else fn
    seen = [fn, inner, getattr(inner, "__self__", None), *given]
    for cell in getattr(inner, "__closure__", None) or ():
        try:
            seen.append(cell.cell_contents)
        except ValueError:  # not filled yet
            continue
    yield from {id(thing): thing for thing in seen}.values()


def _places(module: nn.Module) -> int:
    """Where the weights lie, and whether they are being trained: a recording holds for these alone."""
    weights = tuple(_place(x) for x in (*module.parameters(), *module.buffers()))
    return hash((weights, tuple(part.training for part in module.modules())))


def _place(x: Tensor) -> Hashable:
    if nn.parameter.is_lazy(x):  # has no memory yet
        return 0
    return x.data_ptr(), x.dtype, x.shape, x.stride()
