"""The lanes of every instruction set make the same bits: each operation, runs of normals, the loop of ``update``.

NEON is compiled by ziglang and run in an emulator (the extra ``arm``); the others run here.
"""

from __future__ import annotations

import ctypes
import importlib.util
import platform
import subprocess
from pathlib import Path

import numpy as np
import pytest

from fastsample import building
from tests.emulated import call, compile_for_arm, link_for_arm

ROOT = building.source_root().parent
SOURCES = [
    ROOT / "csrc" / "cpu" / "update.cpp",
    ROOT / "csrc" / "cpu" / "torch_stream.cpp",
    ROOT / "tests" / "lanes_body.cpp",
]
FLAGS = ["-std=c++20", "-O2", "-ffp-contract=off", "-fno-math-errno", f"-I{ROOT / 'csrc'}"]
MARCH = {"isa_base": [], "isa_avx2": ["-march=x86-64-v3"], "isa_avx512": ["-march=x86-64-v4"]}
NEEDS = {"isa_avx2": {"avx2", "fma"}, "isa_avx512": {"avx512f", "avx512bw", "avx512vl", "avx512dq"}}
SPECIAL = [0, 1, 0x80000000, 0x7FC00001, 0xFF800000, 0x7F7FFFFF, 0xFFFFFFFF, 0x3F800000, 0x7F800001, 0x33000000]


def words(seed):
    made = np.random.default_rng(seed).integers(0, 2**32, 64, dtype=np.uint32)
    made[8 : 8 + len(SPECIAL)] = SPECIAL
    return made


def flags_of(cpu):
    """What Linux says a processor can do."""
    try:
        return set(cpu.read_text().split())
    except OSError:
        return set()


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("lanes")


@pytest.fixture(scope="module")
def here(folder):
    """A function of the words per instruction set of this processor."""
    try:
        compiler = building.compiler()
    except building.BuildError as error:
        pytest.skip(str(error))
    found = {}
    can = flags_of(Path("/proc/cpuinfo"))
    for isa, march in MARCH.items():
        wanted = {"isa_base": set(), "isa_avx2": {"avx2", "fma"}, "isa_avx512": {"avx512f", "avx512bw", "avx512vl"}}[
            isa
        ]
        if march and (platform.machine() not in building.X86 or not wanted <= can):
            continue
        library = folder / f"{isa}.so"
        command = [compiler, *FLAGS, *building.OPTIMISE, "-Wno-psabi", *march, f"-DFS_ISA={isa}", "-shared", "-fPIC"]
        done = subprocess.run([*command, *map(str, SOURCES), "-o", str(library)], capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
        function = ctypes.CDLL(str(library)).lanes
        function.restype = ctypes.c_int64

        def run(given, function=function):
            out = np.zeros(1 << 16, np.uint32)
            count = function(given.ctypes.data_as(ctypes.c_void_p), out.ctypes.data_as(ctypes.c_void_p))
            return out[:count]

        found[isa] = run
    return found


@pytest.mark.parametrize("seed", range(5))
def test_instruction_sets_of_this_processor(here, seed):
    given = words(seed)
    base = here["isa_base"](given)
    assert len(base) > 9000
    assert len(np.unique(base)) > 5000  # numbers, not zeros
    for run in here.values():
        assert np.array_equal(run(given), base)


def test_other_words_make_other_numbers(here):
    a, b = here["isa_base"](words(0)), here["isa_base"](words(1))
    assert len(a) != len(b) or (a != b).mean() > 0.5


@pytest.mark.skipif(
    any(importlib.util.find_spec(name) is None for name in ("ziglang", "unicorn")),
    reason="needs ziglang and unicorn: pip install -e '.[arm]'",
)
def test_neon_in_an_emulator(here, folder):
    program = folder / "neon"
    link_for_arm(compile_for_arm([*FLAGS, "-Wall", "-DFS_ISA=isa_base", "-DFS_PROGRAM"], SOURCES, folder), program)
    for seed in range(5):
        given = words(seed)
        assert np.array_equal(call(program, "lanes", given), here["isa_base"](given))


@pytest.mark.skipif(importlib.util.find_spec("ziglang") is None, reason="needs ziglang: pip install -e '.[arm]'")
def test_every_loop_compiles_for_arm(folder):
    sources = [ROOT / "csrc" / "cpu" / f"{name}.cpp" for name in ("brownian", "threshold", "rescale", "metropolis")]
    compile_for_arm([*FLAGS, "-Wall", "-DFS_ISA=isa_base"], sources, folder)
