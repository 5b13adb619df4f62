"""``fastsample doctor --audit``: what a scheduler does to an accelerator, counted without one.

The scheduler runs on a device that is only pretended (torch sees the device ``meta``; small numbers live on the host,
hidden).  Every op passes through ``Trap``, which counts what a real device would feel: reads that make the host wait,
copies from the host, launches over the whole state, launches over less, and ops on tiny host tensors.
"""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import diffusers
import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode, return_and_correct_aliasing
from torch.utils._pytree import tree_flatten, tree_map

from . import engine

DEVICE = torch.device("meta")
_READS = {
    "_local_scalar_dense",
    "equal",
    "nonzero",
    "masked_select",
    "_linalg_check_errors",
    "is_nonzero",
    "unique_dim",
}
_NO_LAUNCH = {"empty", "empty_like", "empty_strided", "new_empty", "new_empty_strided", "lift_fresh", "detach", "alias"}


@dataclass
class Counts:
    """What happened in one call.

    ``reads``: device to host, each a full wait.  ``copies``: host to device.  ``full``: launches that read or write a
    tensor as large as the state.  ``tiny``: all other launches.  ``host``: ops on host tensors.
    """

    reads: int = 0
    copies: int = 0
    full: int = 0
    tiny: int = 0
    host: int = 0
    names: list[str] = field(default_factory=list)


class OnDevice(Tensor):
    """A tensor of the pretended device: ``hidden`` are its numbers; views share a storage as real ones do."""

    hidden: Tensor

    @staticmethod
    def __new__(cls, values: Tensor) -> OnDevice:
        made = Tensor._make_wrapper_subclass(
            cls,
            values.size(),
            strides=values.stride(),
            storage_offset=values.storage_offset(),
            dtype=values.dtype,
            device=DEVICE,
        )
        made.hidden = values
        return made

    def tolist(self) -> Any:
        """Read, as for any tensor of a device."""
        return self.cpu().tolist()

    def __repr__(self) -> str:  # type: ignore[override]
        return f"OnDevice({tuple(self.shape)}, {self.dtype})"

    @classmethod
    def __torch_dispatch__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:  # type: ignore[override]
        raise RuntimeError("a tensor of the audit was used after it")


class _Numbers(TorchFunctionMode):
    """``torch.tensor(numbers, device=...)`` as what it is: a host tensor, then a copy."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = dict(kwargs or {})
        device = kwargs.get("device")
        if func in (torch.tensor, torch.as_tensor, torch.asarray) and device is not None:
            del kwargs["device"]
            return func(*args, **kwargs).to(device)
        return func(*args, **kwargs)


class Trap(TorchDispatchMode):
    """Counts the ops of a block into ``counts``; ``size``: number of elements of the state."""

    def __init__(self, size: int) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.size = size
        self.counts = Counts()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = dict(kwargs or {})
        name = func._schema.name.partition("::")[2].removesuffix("_") or func._schema.name
        inside = [x for x in tree_flatten((args, kwargs))[0] if isinstance(x, Tensor)]
        ours = [x for x in inside if isinstance(x, OnDevice)]
        target = torch.device(kwargs["device"]) if kwargs.get("device") is not None else None
        if func.namespace == "fastsample":
            return self._launch_ours(func, ours, args, kwargs)
        if target == DEVICE:
            kwargs["device"] = torch.device("cpu")
        plain = tree_map(lambda x: x.hidden if isinstance(x, OnDevice) else x, (args, kwargs))
        made = func(*plain[0], **plain[1])
        if name in _READS and ours:
            return self._count("reads", func, made)
        if name in ("to_copy", "_to_copy", "copy") and target not in (None, DEVICE) and ours:
            return self._count("reads", func, made)
        if name == "copy" and isinstance(args[0], OnDevice) != isinstance(args[1], OnDevice):
            self._count("copies" if isinstance(args[0], OnDevice) else "reads", func, None)
            return args[0]
        if not ours and target != DEVICE:
            if not _is_view(func) and name not in _NO_LAUNCH:
                self._count("host", func, None)
            return made
        result = tree_map(lambda x: OnDevice(x) if isinstance(x, Tensor) else x, made)
        if name in ("to_copy", "_to_copy") and not ours:
            return self._count("copies", func, result)
        if _hides_a_read(args):
            self._count("reads", func, None)
        if not _is_view(func) and name not in _NO_LAUNCH:
            sizes = [x.numel() for x in (*ours, *(y for y in tree_flatten(result)[0] if isinstance(y, Tensor)))]
            self._count("full" if max(sizes) >= self.size else "tiny", func, None)
        return return_and_correct_aliasing(func, args, kwargs, result)

    def _count(self, kind: str, func: Any, result: Any) -> Any:
        setattr(self.counts, kind, getattr(self.counts, kind) + 1)
        self.counts.names.append(f"{kind}: {func}")
        return result

    def _launch_ours(self, func: Any, ours: Sequence[Tensor], args: Any, kwargs: Any) -> Any:
        """An op of this package is one launch; its values are not computed."""
        if len(ours) == 0:
            return func(*args, **kwargs)
        if any(isinstance(x, Tensor) and not isinstance(x, OnDevice) for x in tree_flatten((args, kwargs))[0]):
            raise RuntimeError(f"{func}: got tensors of the host and of the device")
        self._count("full", func, None)
        if not func._schema.returns:
            return None
        terms, dtypes = args[0], args[6] if len(args) > 6 else kwargs.get("dtypes", ())
        return [OnDevice(torch.empty_like(terms[0].hidden, dtype=dtype)) for dtype in dtypes or [terms[0].dtype]]


def _is_view(func: Any) -> bool:
    return any(r.alias_info is not None and not r.alias_info.is_write for r in func._schema.returns)


def _hides_a_read(args: Any) -> bool:
    """Whether the shape of the result depends on numbers of the device: indexing with a mask."""
    indices = args[1] if len(args) > 1 and isinstance(args[1], (list, tuple)) else ()
    return any(isinstance(x, OnDevice) and x.dtype in (torch.bool, torch.uint8) for x in indices)


@dataclass(frozen=True)
class Audit:
    """Counts of ``set_timesteps`` and of every step (``scale_model_input`` where there is one, and ``step``)."""

    name: str
    setup: Counts
    steps: list[Counts]

    def worst(self, kind: str) -> int:
        """The largest count of a kind in any step."""
        return max(int(getattr(step, kind)) for step in self.steps)

    def middle(self, kind: str) -> int:
        """The count of a kind in the middle of the run, where histories are full."""
        return int(getattr(self.steps[len(self.steps) // 2], kind))


def audit(
    scheduler: Any,
    steps: int = 10,
    shape: Sequence[int] = (2, 4, 64, 64),
    dtype: torch.dtype = torch.float32,
    output: Sequence[int] | None = None,
    **step: Any,
) -> Audit:
    """Count what a scheduler of diffusers does in a run of ``steps``; its times live on the device too.

    ``shape``, ``dtype``: of the network's output and the state; ``output``: shape of the output if it is another (with
    a learned variance it has twice the channels).  ``step``: more arguments of ``step``, such as ``eta``.
    The noise that torch draws is a launch.  The scheduler should be one of its own: it stays on the pretended device.
    """
    trap = Trap(math.prod(shape))
    counted: list[Counts] = []
    with engine.own_tables(), torch.no_grad(), _Numbers(), trap:
        x, e = (torch.randn(size, dtype=dtype, device=DEVICE) for size in (shape, output or shape))
        trap.counts = Counts()
        scheduler.set_timesteps(steps, device=DEVICE)
        if hasattr(scheduler, "set_begin_index"):
            scheduler.set_begin_index(0)
        setup = trap.counts
        for t in list(scheduler.timesteps):
            trap.counts = Counts()
            if hasattr(scheduler, "scale_model_input"):
                scheduler.scale_model_input(x, t)
            x = scheduler.step(e, t, x, return_dict=False, **step)[0]
            counted.append(trap.counts)
    return Audit(type(scheduler).__name__, setup, counted)


def find(name: str) -> type[Any]:
    """The class of ``name``: ours, or that of diffusers after ``diffusers.``.  Raises ``ValueError`` for another."""
    from .swap import classes, stock_class

    ours = classes()
    known = {**ours, **{f"diffusers.{key}": stock_class(cls) for key, cls in ours.items()}}
    for suffix in ("", "Scheduler", "DiscreteScheduler", "MultistepScheduler"):
        if name + suffix in known:
            return known[name + suffix]
        other = getattr(diffusers, name.removeprefix("diffusers.") + suffix, None)
        if name.startswith("diffusers.") and isinstance(other, type) and hasattr(other, "set_timesteps"):
            return other
    raise ValueError(f"audit: got {name!r}, allowed are all, diffusers.X for any scheduler X, and {', '.join(ours)}")


def run(
    name: str, options: dict[str, Any], steps: int, shape: Sequence[int], dtype: str, say: Callable[[str], None]
) -> None:
    """Audit one scheduler, or with ``"all"`` all of ours beside stock's, and say a table."""
    from .swap import classes

    names = [name] if name != "all" else [n for key in classes() for n in (f"diffusers.{key}", key)]
    found_classes = [(one, find(one)) for one in names]
    say("Worst step of a run, after set_timesteps and set_begin_index(0), with the times on the device.")
    say(f"{'scheduler':48} {'reads':>6} {'copies':>7} {'full':>5} {'tiny':>5} {'host':>5}   reads, copies before")
    for one, cls in found_classes:
        accepted = inspect.signature(cls.step).parameters
        config = {k: v for k, v in options.items() if k not in accepted}
        unknown = sorted(set(config) - set(inspect.signature(cls.__init__).parameters))
        if unknown:
            raise ValueError(f"option: got {', '.join(unknown)}, which neither {cls.__name__} nor its step takes")
        call = {k: v for k, v in options.items() if k in accepted}
        try:
            found = audit(cls(**config), steps, shape, getattr(torch, dtype), **call)
        except RuntimeError as error:
            say(f"{one:48} does not run on this device: {' '.join(str(error).split())[:60]}")
            continue
        cells = [found.worst(kind) for kind in ("reads", "copies", "full", "tiny", "host")]
        row = " ".join(f"{cell:>{width}}" for cell, width in zip(cells, (6, 7, 5, 5, 5), strict=True))
        say(f"{one:48} {row}   {found.setup.reads}, {found.setup.copies}")
