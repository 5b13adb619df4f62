"""Finding, building and choosing compiled libraries; equal bits across instruction sets."""

from __future__ import annotations

import os
import subprocess
import sys
import threading

import pytest
import torch

from fastsample import building, native
from fastsample.ops import BackendError, use_backend

DIGEST = """
import hashlib, torch
from fastsample import native, noise
from fastsample.ops import update_
from fastsample.info import cpu_isa
from tests.rows import random_call
digest = hashlib.sha256()
for seed in range(40):
    call = random_call(seed)
    outs = [torch.empty(call.shape, dtype=t) for t in call.out_dtypes]
    update_(outs, call.terms, call.table, call.step, call.key, call.noise)
    for out in outs:
        if out.dtype != torch.float64:
            digest.update(out.contiguous().view(torch.uint8).numpy().tobytes())
print(cpu_isa(), digest.hexdigest())
"""


def run(code, **env):
    merged = {**os.environ, **env}
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=merged, check=False)


@pytest.mark.slow
def test_bits_are_equal_on_every_instruction_set():
    """Base (libm fma), AVX2 and AVX-512 loops, as far as this host has them."""
    if not native.load_for("cpu"):
        pytest.skip(native.why_not("cpu"))
    seen = {}
    for isa in ("base", "avx2", "avx512"):
        result = run(DIGEST, FASTSAMPLE_CPU_ISA=isa)
        assert result.returncode == 0, result.stderr
        name, digest = result.stdout.split()
        seen[name] = digest
    assert "base" in seen
    assert len(set(seen.values())) == 1, seen


def test_without_a_compiler_the_reference_runs_with_one_warning(tmp_path):
    code = """
import warnings, torch
from fastsample import noise
with warnings.catch_warnings(record=True) as caught:
    warnings.simplefilter("always")
    a = noise.normal_like(torch.empty(2, 5), noise.keys(0, 2))
    b = noise.normal_like(torch.empty(2, 5), noise.keys(0, 2))
assert torch.equal(a, b)
print(len(caught), caught[0].message)
"""
    env = {"CXX": str(tmp_path / "no-such-compiler"), "FASTSAMPLE_CACHE_DIR": str(tmp_path)}
    if native._prebuilt("libfastsample_cpu.so"):
        pytest.skip("a prebuilt library came with the package")
    result = run(code, **env)
    assert result.returncode == 0, result.stderr
    assert result.stdout.startswith("1 fastsample: no compiled backend for cpu (no C++ compiler found")
    result = run(code, FASTSAMPLE_DISABLE_JIT="1", FASTSAMPLE_CACHE_DIR=str(tmp_path))
    assert "FASTSAMPLE_DISABLE_JIT is set" in result.stdout
    result = run(code, FASTSAMPLE_BACKEND="native", **env)
    assert result.returncode == 1
    assert "BackendError: backend native on cpu: no C++ compiler found" in result.stderr


def test_backend_from_the_environment():
    code = (
        "import torch; from fastsample import noise, native; noise.normal_like(torch.empty(1, 2), noise.keys(0, 1)); "
    )
    assert run(code + "print(native.loaded_from('cpu'))", FASTSAMPLE_BACKEND="reference").stdout == "\n"
    wrong = run(code, FASTSAMPLE_BACKEND="fast")
    assert "ValueError: backend: got 'fast', allowed are auto, native, triton, reference" in wrong.stderr


def test_import_compiles_nothing_and_writes_nothing(tmp_path):
    code = "import fastsample, fastsample.ops, fastsample.noise; from fastsample import native; print(native._state)"
    result = run(code, FASTSAMPLE_CACHE_DIR=str(tmp_path / "cache"))
    assert result.stdout == "{}\n", result.stderr
    assert not (tmp_path / "cache").exists()


def test_use_backend_restores_and_refuses():
    with pytest.raises(ValueError, match="backend: got 'fast'"), use_backend("fast"):
        pass
    if not torch.cuda.is_available() and os.environ.get("TRITON_INTERPRET") != "1":
        with pytest.raises(BackendError, match="backend triton"), use_backend("triton"):
            pass


def test_cache_is_built_once_and_keyed_on_flags(tmp_path, monkeypatch):
    """Four threads ask at once; one builds, the folder holds the finished library and nothing half-written."""
    try:
        library = building.Library(
            "probe",
            "libprobe.so",
            (building.Unit("core/philox.h", ("-x", "c++", "-std=c++20"), "probe"),),
            ("-shared",),
        )
        building.compiler()
        building.ninja()
    except building.BuildError as error:
        pytest.skip(str(error))
    monkeypatch.setenv("FASTSAMPLE_CACHE_DIR", str(tmp_path))
    monkeypatch.delenv("FASTSAMPLE_DISABLE_JIT", raising=False)
    builds = []
    original = building.build
    monkeypatch.setattr(building, "build", lambda *a: builds.append(1) or original(*a))
    paths = []
    threads = [threading.Thread(target=lambda: paths.append(native._cached(lambda: library))) for _ in range(4)]
    for t in threads:
        t.start()
    for t in threads:
        t.join()
    assert len(builds) == 1
    assert len(set(paths)) == 1
    assert [p.name for p in paths[0].parent.iterdir()] == ["libprobe.so"]
    other = building.Library(
        "probe", "libprobe.so", (building.Unit("core/philox.h", ("-x", "c++"), "probe"),), ("-shared",)
    )
    assert building.cache_key(other) != building.cache_key(library)


def test_a_failed_build_says_why_and_leaves_nothing(tmp_path):
    broken = building.Library(
        "bad", "libbad.so", (building.Unit("core/row.h", ("-no-such-flag",), "bad"),), ("-shared",)
    )
    try:
        building.compiler()
    except building.BuildError as error:
        pytest.skip(str(error))
    with pytest.raises(building.BuildError, match="no-such-flag"):
        building.build(broken, tmp_path)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.slow
def test_the_cuda_library_builds_without_a_cuda_torch(tmp_path):
    """One architecture; it needs libtorch_cuda and the stable shim only, and no CUDA runtime library."""
    try:
        path = building.build(building.cuda_library(["90"]), tmp_path)
    except building.BuildError as error:
        if "nvcc is not on the PATH" in str(error):
            pytest.skip(str(error))
        raise
    dynamic = subprocess.run(["objdump", "-p", str(path)], capture_output=True, text=True, check=True).stdout
    needed = {line.split()[1] for line in dynamic.splitlines() if "NEEDED" in line}
    assert "libtorch_cuda.so" in needed
    assert not any("cudart" in name for name in needed)
    symbols = subprocess.run(["nm", "-D", "-u", str(path)], capture_output=True, text=True, check=True).stdout
    assert "aoti_torch_get_current_cuda_stream" in symbols
    assert "_ZN2at" not in symbols, "uses the unstable C++ interface"
