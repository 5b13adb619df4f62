"""How the compiled libraries are built: an own ninja file, a cache keyed on all that matters, one atomic rename.

Standard library only, and nothing of this package is imported: ``setup.py`` uses this file where torch may be missing.
"""

from __future__ import annotations

import dataclasses
import hashlib
import importlib.util
import os
import platform
import shutil
import subprocess
import sys
import sysconfig
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path

ABI_TARGET = "0x020a000000000000"  # libtorch stable ABI of torch 2.10: the oldest with lists and parallel_for
COMMON = (
    "-std=c++20",
    "-fmacro-prefix-map={root}/=",
    "-fPIC",
    "-fno-math-errno",
    "-ffp-contract=off",
    "-fvisibility=hidden",
    "-Wall",
)
# gcc 12 at -O3 drops terms 5 to 8 in csrc/cpu/update.cpp (sanitizers find no fault there); tests/test_update.py guards.
OPTIMISE = ("-O2", "-fno-aggressive-loop-optimizations", "-Wno-uninitialized", "-Wno-maybe-uninitialized")
X86 = {"x86_64", "AMD64"}
CUDA_ARCHS = ("75", "80", "86", "90", "100", "120")


class BuildError(RuntimeError):
    """A library cannot be built here; the message says why and what to do."""


@dataclasses.dataclass(frozen=True)
class Unit:
    """One source file, compiled once with its own flags."""

    source: str
    flags: tuple[str, ...]
    name: str
    compiler: str = "cxx"


@dataclasses.dataclass(frozen=True)
class Library:
    """A shared library: its units, link flags and the file name it gets.

    ``stub``: the name of an empty shared library to link against, for one that is there only at run time.
    """

    name: str
    filename: str
    units: tuple[Unit, ...]
    link: tuple[str, ...]
    stub: str = ""


def source_root() -> Path:
    """The folder of the C++ sources: inside the installed package, or beside it in a checkout."""
    here = Path(__file__).resolve().parent
    for folder in (here / "_csrc", here.parent / "csrc"):
        if (folder / "core" / "row.h").exists():
            return folder
    raise BuildError(f"the C++ sources are missing (looked in {here / '_csrc'} and {here.parent / 'csrc'})")


def torch_root() -> Path:
    """The folder of the torch package, found without importing it."""
    spec = importlib.util.find_spec("torch")
    if spec is None or not spec.submodule_search_locations:
        raise BuildError("torch is not importable here, and its headers are needed")
    return Path(next(iter(spec.submodule_search_locations)))


def cpu_library(sanitize: bool = False) -> Library:
    """The CPU implementation of the ops; the loops are compiled once per instruction set."""
    torch = torch_root()
    extra = ("-g", "-O1", "-fsanitize=address,undefined", "-fno-sanitize-recover=undefined") if sanitize else OPTIMISE
    flags = (*extra, *COMMON)
    isas: list[tuple[str, tuple[str, ...]]] = [("isa_base", ())]
    if platform.machine() in X86:
        isas += [("isa_avx2", ("-march=x86-64-v3",)), ("isa_avx512", ("-march=x86-64-v4",))]
    units = [
        Unit(f"cpu/{name}.cpp", (*flags, *march, f"-DFS_ISA={isa}"), f"{name}_{isa}")
        for name in ("update", "brownian", "threshold", "rescale", "metropolis", "torch_stream")
        for isa, march in isas
    ]
    includes = (f"-DTORCH_TARGET_VERSION={ABI_TARGET}", "-isystem", str(torch / "include"))
    units += [Unit(f"{name}.cpp", (*flags, *includes), name) for name in ("torch_cpu", "torch_stream")]
    link = ("-shared", f"-L{torch / 'lib'}", "-ltorch_cpu", "-lc10", *(extra[2:3] if sanitize else ()))
    return Library("cpu", "libfastsample_cpu.so", tuple(units), link)


def cuda_library(archs: Sequence[str] = ()) -> Library:
    """The CUDA implementation of the ops, for ``archs``, else ``FASTSAMPLE_CUDA_ARCHS``, else all common ones.

    Needs nvcc, but neither a GPU nor a CUDA build of torch: libtorch_cuda is then replaced by a stub of its name.
    """
    torch, nvcc = torch_root(), shutil.which("nvcc") or shutil.which("nvcc", path=str(_cuda_home() / "bin"))
    if nvcc is None:
        raise BuildError("nvcc is not on the PATH (nor under CUDA_HOME); install the CUDA toolkit")
    wish = [arch.strip() for arch in os.environ.get("FASTSAMPLE_CUDA_ARCHS", "").replace(",", ";").split(";")]
    chosen = [arch.replace(".", "") for arch in archs or [w for w in wish if w] or CUDA_ARCHS]
    if not all(arch.rstrip("af").isdigit() for arch in chosen):
        raise BuildError(f"FASTSAMPLE_CUDA_ARCHS: got {';'.join(chosen)}, allowed are numbers such as 80;90")
    targets = [flag for arch in chosen for flag in ("-gencode", f"arch=compute_{arch},code=sm_{arch}")]
    if not archs:
        targets += ["-gencode", "arch=compute_90,code=compute_90"]
    # -fmad=false: the fma of csrc/core are written out, and nothing else may be contracted
    device = ("-std=c++17", "-O3", "-fmad=false", "-Xcompiler", "-fPIC,-fvisibility=hidden", "-Xfatbin=-compress-all")
    host = ("-O2", *COMMON, f"-DTORCH_TARGET_VERSION={ABI_TARGET}", "-isystem", str(torch / "include"))
    units = (
        *(
            Unit(f"cuda/{name}.cu", (*device, *targets), f"{name}_cuda", nvcc)
            for name in ("update", "brownian", "threshold", "rescale", "metropolis")
        ),
        Unit("torch_cuda.cpp", host, "torch_cuda"),
    )
    has_cuda = (torch / "lib" / "libtorch_cuda.so").exists()
    runtime = _cudart_folder(Path(nvcc).resolve().parent.parent)
    link: tuple[str, ...] = (
        "-shared",
        f"-L{torch / 'lib'}",
        "-ltorch_cpu",
        "-lc10",
        "-Wl,--no-as-needed",
        "-L.",
        "-ltorch_cuda",
    )
    link += (f"-L{runtime}", "-lcudart_static", "-lrt", "-lpthread", "-ldl", "-Wl,--exclude-libs,ALL")
    return Library("cuda", "libfastsample_cuda.so", units, link, "" if has_cuda else "libtorch_cuda.so")


def core_library() -> Library:
    """The pybind11 module ``_core``: csrc/core for tests and tools."""
    if importlib.util.find_spec("pybind11") is None:
        raise BuildError("pybind11 is not importable here; pip install pybind11")
    import pybind11

    includes = ("-isystem", sysconfig.get_paths()["include"], "-isystem", pybind11.get_include())
    # fma as an instruction where there is one: the library function is the same number, slower
    units = (Unit("core_module.cpp", (*OPTIMISE, *COMMON, *includes), "core_module"),)
    suffix = sysconfig.get_config_var("EXT_SUFFIX") or ".so"
    return Library("core", f"_core{suffix}", units, ("-shared",))


def compiler() -> str:
    """The C++ compiler: ``$CXX``, else g++, c++ or clang++ on the PATH."""
    wish = os.environ.get("CXX")
    for name in [wish] if wish else ["g++", "c++", "clang++"]:
        path = shutil.which(name)
        if path:
            return path
    raise BuildError(f"no C++ compiler found (looked for {wish or 'g++, c++, clang++'}); install g++ or set CXX")


def ninja() -> list[str]:
    """The command that runs ninja: the Python package's, else the one on the PATH."""
    spec = importlib.util.find_spec("ninja")
    if spec is not None:
        return [sys.executable, "-m", "ninja"]
    path = shutil.which("ninja")
    if path:
        return [path]
    raise BuildError("ninja not found; pip install ninja")


def cache_key(library: Library) -> str:
    """Hash of all that the result depends on: sources, flags, compilers, ABI target."""
    digest = hashlib.sha256(repr((dataclasses.astuple(library), ABI_TARGET, sys.platform)).encode())
    for command in sorted({_command(unit) for unit in library.units}):
        version = subprocess.run([command, "--version"], capture_output=True, text=True, check=False)
        digest.update(version.stdout.encode())
    for path in sorted(source_root().rglob("*")):
        if path.suffix in (".h", ".cpp", ".cu", ".cuh"):
            digest.update(path.name.encode() + path.read_bytes())
    return digest.hexdigest()[:20]


def build(library: Library, folder: Path, log: Callable[[str], None] = lambda _: None) -> Path:
    """Build ``library`` into ``folder`` and return its path.  Raises ``BuildError``; leaves nothing half-written."""
    target = folder / library.filename
    folder.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix="build-", dir=folder) as work:
        (Path(work) / "build.ninja").write_text(_ninja_file(library))
        log(f"building {target}")
        result = subprocess.run([*ninja(), "-C", work], capture_output=True, text=True, check=False)
        if result.returncode != 0:
            raise BuildError(f"building {library.filename} failed:\n{result.stdout[-4000:]}{result.stderr[-2000:]}")
        os.replace(Path(work) / library.filename, target)
    return target


def _cuda_home() -> Path:
    return Path(os.environ.get("CUDA_HOME") or os.environ.get("CUDA_PATH") or "/usr/local/cuda")


def _cudart_folder(beside_nvcc: Path) -> Path:
    homes = (beside_nvcc, _cuda_home())  # nvcc on the PATH may be a wrapper somewhere else
    for home in homes:
        for folder in (home / "lib64", home / "lib", *home.glob("targets/*/lib")):
            if (folder / "libcudart_static.a").exists():
                return folder
    raise BuildError(f"libcudart_static.a is missing (looked under {' and '.join(map(str, homes))}); set CUDA_HOME")


def _command(unit: Unit) -> str:
    if unit.compiler == "cxx":
        return compiler()
    path = shutil.which(unit.compiler)
    if path is None:
        raise BuildError(f"{unit.compiler} is not on the PATH")
    return path


def _quote(words: Sequence[str]) -> str:
    return " ".join(word.replace("$", "$$").replace(" ", "$ ") for word in words)


def _ninja_file(library: Library) -> str:
    root = source_root()
    lines = [
        "rule compile",
        "  command = $cc $flags -MMD -MF $out.d -c $in -o $out",
        "rule link",
        f"  command = {compiler()} $in -o $out {_quote(library.link)}",
        "rule stub",
        f"  command = echo | {compiler()} -shared -x c - -Wl,-soname,$out -o $out",
    ]
    if library.stub:
        lines.append(f"build {library.stub}: stub")
    objects = []
    for unit in library.units:
        objects.append(f"{unit.name}.o")
        lines += [f"build {objects[-1]}: compile {_quote([str(root / unit.source)])}"]
        flags = [flag.replace("{root}", str(root)) for flag in unit.flags]  # no paths of this machine in messages
        lines += [f"  cc = {_command(unit)}", f"  flags = {_quote(flags)}"]
    needs = f" | {library.stub}" if library.stub else ""
    lines += [f"build {library.filename}: link {' '.join(objects)}{needs}", f"default {library.filename}", ""]
    return "\n".join(lines)
