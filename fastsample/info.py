"""``fastsample info``: versions, devices, and per op the active backend and why not the better one."""

from __future__ import annotations

import ctypes
import importlib.metadata
import os
import platform
import sys

VARIABLES = {
    "FASTSAMPLE_BACKEND": "auto, native, triton or reference; a forced one that cannot run raises",
    "FASTSAMPLE_DISABLE_JIT": "1: never compile at first use; prebuilt library or reference only",
    "FASTSAMPLE_CACHE_DIR": "where libraries built at first use go (default: the user's cache folder)",
    "FASTSAMPLE_CUDA_ARCHS": "for example 80;90: GPU architectures to compile for (default: the GPU at hand)",
    "FASTSAMPLE_LOG": "debug, info or warning: log level of the fastsample logger, to stderr",
}


def facts() -> dict[str, object]:
    """Versions, devices and backends as plain data; builds the CPU library if that was not tried yet."""
    import torch

    from . import native
    from .ops import library

    devices = ["cpu"] + (["cuda"] if torch.cuda.is_available() else [])
    ops = {op.rstrip("_"): {device: _backend(op, device) for device in devices} for op in library.names()}
    if "cuda" not in devices:
        for backends in ops.values():
            backends["cuda"] = {"active": "none", "from": "", "why_not_native": _why_no_cuda()}
    return {
        "fastsample": _version("fastsample"),
        "python": platform.python_version(),
        "torch": torch.__version__,
        "triton": _version("triton"),
        "platform": platform.platform(),
        "devices": [f"cpu, {torch.get_num_threads()} threads, {cpu_isa() or 'no compiled loops'}"]
        + [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())],
        "ops": ops,
        "environment": {name: os.environ.get(name, "") for name in VARIABLES},
        "cache": str(native.cache_dir()),
    }


def _backend(op: str, device: str) -> dict[str, str]:
    """Which backend serves an op on a device, from which library, and why not the native one."""
    from . import native
    from .ops import library

    forced = library.forced()
    found = native.load_for(device) if forced in ("auto", "native") else False
    why, source = native.why_not(device), native.loaded_from(device)
    if found and not library.served(op, device):
        found, why, source = False, f"{source} has no {op}", ""
    active = "native" if found else "reference"
    if (forced == "native" and not found) or (forced == "triton" and device == "cpu"):
        active = f"none: {forced} was forced and cannot run"
    elif forced != "auto":
        active = forced
    if found and source == "triton":
        active = "triton"
    return {"active": active, "from": source, "why_not_native": why}


def cpu_isa() -> str:
    """The instruction set of the loaded CPU loops: ``"avx512"``, ``"avx2"``, ``"base"``; empty if none is loaded."""
    from . import native

    path = native.loaded_from("cpu")
    if not path:
        return ""
    function = ctypes.CDLL(path).fastsample_cpu_isa
    function.restype = ctypes.c_char_p
    return str(function().decode())


def main() -> int:
    """Print the facts."""
    found = facts()
    for name in ("fastsample", "python", "torch", "triton", "platform", "cache"):
        print(f"{name:12} {found[name]}")
    for device in found["devices"]:  # type: ignore[attr-defined]
        print(f"{'device':12} {device}")
    for op, backends in found["ops"].items():  # type: ignore[attr-defined]
        for device, backend in backends.items():
            print(f"{op + ' / ' + device:16} {backend['active']:10} {backend['from']}")
            if backend["why_not_native"] and backend["active"] != "native":
                print(f"{'':16} not native: {backend['why_not_native']}")
    for name, meaning in VARIABLES.items():
        print(f"{name:24} {os.environ.get(name, '(not set)'):12} {meaning}")
    return 0


def _why_no_cuda() -> str:
    import torch

    if not torch.version.cuda:
        return f"torch {torch.__version__} is built without CUDA"
    return "torch finds no CUDA device"


def _version(name: str) -> str:
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        if name == "fastsample":
            from . import __version__

            return __version__
        return "not installed"


if __name__ == "__main__":
    sys.exit(main())
