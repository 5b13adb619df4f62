"""Find the compiled libraries, else build them once, else say why not.

Nothing here runs at import.  The first call of an op asks ``load_for(device)``: a library that came with the package is
loaded, else one is built into the cache under a file lock.  A failure is remembered, reported in one warning with the
remedy, and the reference runs instead.
"""

from __future__ import annotations

import logging
import os
import threading
import warnings
from collections.abc import Callable
from pathlib import Path
from types import ModuleType

from . import building

log = logging.getLogger("fastsample")
_lock = threading.RLock()
_state: dict[str, bool] = {}
_reason: dict[str, str] = {}
_path: dict[str, str] = {}


def load_for(device: str) -> bool:
    """Make the best compiled backend of a device type (``"cpu"``, ``"cuda"``) serve the ops; ``False`` if none can."""
    state = _state.get(device)
    if state is None:
        with _lock:
            state = _state.get(device)
            if state is None:
                state = _state[device] = _load(device)
    return state


def why_not(device: str) -> str:
    """Why no compiled library serves a device type, and what to do; empty if one does or none was tried."""
    return _reason.get(device, "")


def loaded_from(device: str) -> str:
    """Where the library that serves a device type lies; empty if none is loaded."""
    return _path.get(device, "")


def cache_dir() -> Path:
    """``FASTSAMPLE_CACHE_DIR``, else the user's cache folder."""
    wish = os.environ.get("FASTSAMPLE_CACHE_DIR")
    if wish:
        return Path(wish).expanduser()
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "fastsample"


def core() -> ModuleType:
    """The pybind11 module ``_core`` (csrc/core for tests and tools), prebuilt or built now.  Raises ``BuildError``."""
    import importlib.util

    library = building.core_library()
    path = _prebuilt(library.filename) or _cached(building.core_library)
    spec = importlib.util.spec_from_file_location("fastsample._core", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def _load(device: str) -> bool:
    import torch

    try:
        if device == "cpu":
            path = _prebuilt("libfastsample_cpu.so") or _cached(building.cpu_library)
        elif device == "cuda":
            if not torch.version.cuda:
                raise building.BuildError("this torch has no CUDA")
            path = _prebuilt("libfastsample_cuda.so") or _cached(_cuda_library)
        else:
            raise building.BuildError(f"no compiled library exists for {device}")
        torch.ops.load_library(str(path))
        _path[device] = str(path)
        log.info("%s: native (%s)", device, path)
        return True
    except (building.BuildError, OSError, RuntimeError) as error:
        _reason[device] = str(error)
    from .ops import library

    if device != "cpu" and library.forced() == "auto" and _use_triton(device):
        return True
    if library.forced() != "auto":
        return False  # whoever forced a backend gets an error, not a warning
    first = _reason[device].splitlines()[0] if _reason[device] else "unknown"
    warnings.warn(
        f"fastsample: no compiled backend for {device} ({first}); the slower PyTorch reference runs. "
        "`fastsample info` says more.",
        RuntimeWarning,
        stacklevel=4,
    )
    return False


def _use_triton(device: str) -> bool:
    from .ops import library

    try:
        import triton  # type: ignore[import-untyped]  # noqa: F401
    except ImportError as error:
        _reason[device] += f"; and triton cannot be imported ({error})"
        return False
    library.register_triton(device)
    _path[device] = "triton"
    log.info("%s: triton, because: %s", device, _reason[device])
    return True


def _prebuilt(filename: str) -> Path | None:
    path = Path(__file__).resolve().parent / "lib" / filename
    return path if path.exists() else None


def _cached(make: Callable[[], building.Library]) -> Path:
    if os.environ.get("FASTSAMPLE_DISABLE_JIT", "0") not in ("", "0"):
        raise building.BuildError("FASTSAMPLE_DISABLE_JIT is set and no prebuilt library came with the package")
    from filelock import FileLock

    library = make()
    folder = cache_dir() / f"{library.name}-{building.cache_key(library)}"
    target = folder / library.filename
    if not target.exists():
        folder.mkdir(parents=True, exist_ok=True)
        with FileLock(str(folder) + ".lock"):
            if not target.exists():
                building.build(library, folder, log.info)
    return target


def _cuda_library() -> building.Library:
    import torch

    if os.environ.get("FASTSAMPLE_CUDA_ARCHS") or not torch.cuda.is_available():
        return building.cuda_library()
    found = {torch.cuda.get_device_capability(i) for i in range(torch.cuda.device_count())}
    return building.cuda_library([f"{major}{minor}" for major, minor in sorted(found)])
