"""The torch library ``fastsample``: where ops are defined, and the choice of backend per device.

Schema, fake and autograd live here in Python, the reference is the fallback of every device, and a compiled library or
Triton only adds the implementation of a dispatch key.  So every op exists, traces and can be tested uncompiled.
"""

from __future__ import annotations

import contextlib
import logging
import os
import threading
import warnings
from collections.abc import Callable, Iterator
from typing import Any

import torch

from ..errors import BackendError

log = logging.getLogger("fastsample")

BACKENDS = ("auto", "native", "triton", "reference")
_lock = threading.RLock()
_reference: dict[str, Callable[..., Any]] = {}
_triton: dict[str, Callable[..., Any]] = {}
_override: torch.library.Library | None = None


def _known(name: str) -> str:
    known = {"cuda": "native", "cpu": "native", "torch": "reference"}.get(name, name)
    if known not in BACKENDS:
        raise ValueError(f"backend: got {name!r}, allowed are {', '.join(BACKENDS)} (cuda and cpu mean native)")
    return known


_forced = _known(os.environ.get("FASTSAMPLE_BACKEND") or "auto")
_level = (os.environ.get("FASTSAMPLE_LOG") or "").upper()
if _level:
    if _level not in ("DEBUG", "INFO", "WARNING", "ERROR"):
        raise ValueError(f"FASTSAMPLE_LOG: got {_level.lower()!r}, allowed are debug, info, warning, error")
    log.addHandler(logging.StreamHandler())
    log.setLevel(_level)
lib = torch.library.Library("fastsample", "DEF")  # after the checks: a second try to import must be able to make it


def add_backend(op: str, *, reference: Callable[..., Any], triton: Callable[..., Any]) -> None:
    """Register the reference of ``op`` as the fallback of every device, and remember its Triton form."""
    _reference[op], _triton[op] = reference, triton
    lib.impl(op, _first_use(op), "CompositeExplicitAutograd")


def names() -> list[str]:
    """The ops that have backends."""
    return list(_reference)


def served(op: str, device: str) -> bool:
    """Whether a loaded library, or Triton, implements ``op`` on a device type."""
    return bool(torch._C._dispatch_has_kernel_for_dispatch_key(f"fastsample::{op}", device.upper()))


def forced() -> str:
    """The backend asked for by ``use_backend`` or ``FASTSAMPLE_BACKEND``, else ``"auto"``."""
    return _forced


def force(name: str) -> None:
    """Run every op on backend ``name`` from now on, in the whole process.  See ``use_backend``."""
    global _override, _forced
    name = _known(name)
    with _lock:
        functions: dict[str, Callable[..., Any]] = {}
        if name == "reference":
            functions = _reference
        elif name == "triton":
            _require_triton()
            functions = _triton
        elif name == "native":
            _require_native()
        if _override is not None:
            _override._destroy()
            _override = None
        _forced = name
        if functions:
            _override = torch.library.Library("fastsample", "IMPL")
            keys = ("CPU", "CUDA", "XPU") if name == "reference" else ("CUDA", "XPU", *_interpreted())
            with warnings.catch_warnings():
                warnings.filterwarnings("ignore", "Warning only once for all operators")
                for op, function in functions.items():
                    for key in keys:
                        _override.impl(op, function, key, allow_override=True)


@contextlib.contextmanager
def use_backend(name: str) -> Iterator[None]:
    """Run the ops of this block on one backend: ``"native"``, ``"triton"``, ``"reference"`` or ``"auto"``.

    The choice holds for the whole process, not only for this thread.  Raises ``BackendError`` if that backend cannot
    run here (it never falls back), ``ValueError`` for an unknown name.
    """
    before = _forced
    force(name)
    try:
        yield
    finally:
        force(before)


def _first_use(op: str) -> Callable[..., Any]:
    """The kernel of last resort: it loads the compiled backend if one can be had, and is then never asked again."""

    def fallback(*args: Any) -> Any:
        from .. import native

        device = _device_of(args)
        if _forced in ("auto", "native") and native.load_for(device):
            if _forced == "native" and native.loaded_from(device) == "triton":
                raise BackendError(f"backend native on {device}: {native.why_not(device)}")
            if served(op, device):
                return getattr(torch.ops.fastsample, op)(*args)
            if _forced == "auto":  # a library that lacks this op
                return _reference[op](*args)
            raise BackendError(f"backend native on {device}: {native.loaded_from(device)} has no {op}")
        if _forced == "native":
            raise BackendError(f"backend native on {device}: {native.why_not(device)}")
        if _forced == "triton":
            _require_triton()
            return _triton[op](*args)
        return _reference[op](*args)

    return fallback


def _device_of(args: tuple[Any, ...]) -> str:
    for arg in args:
        if isinstance(arg, torch.Tensor):
            return arg.device.type
        if isinstance(arg, (list, tuple)) and arg and isinstance(arg[0], torch.Tensor):
            return str(arg[0].device.type)
    return "cpu"


def _require_native() -> None:
    from .. import native

    for device in ("cpu", "cuda") if torch.cuda.is_available() else ("cpu",):
        if not native.load_for(device) or native.loaded_from(device) == "triton":
            raise BackendError(f"backend native on {device}: {native.why_not(device)}")


def _interpreted() -> tuple[str, ...]:
    return ("CPU",) if os.environ.get("TRITON_INTERPRET") == "1" else ()


def _require_triton() -> None:
    try:
        import triton  # type: ignore[import-untyped]  # noqa: F401
    except ImportError as error:
        raise BackendError(
            f"backend triton: cannot import triton ({error}); install it, or use another backend"
        ) from error
    if not torch.cuda.is_available() and not _interpreted():
        raise BackendError("backend triton: no GPU here; set TRITON_INTERPRET=1 before the start to run it on the CPU")


def register_triton(device: str) -> None:
    """Make Triton the implementation of every op on ``device`` (used where no compiled library serves it)."""
    for op, function in _triton.items():
        lib.impl(op, function, device.upper())
