"""`fastsample info` explains itself."""

from __future__ import annotations

import os
import subprocess
import sys

from fastsample import info, native


def test_facts_name_every_backend_and_the_reason():
    found = info.facts()
    assert set(found["ops"]) >= {"update", "brownian", "threshold", "rescale", "metropolis"}
    assert len({backends["cpu"]["active"] for backends in found["ops"].values()}) == 1
    backends = found["ops"]["update"]
    assert backends["cpu"]["active"] in ("native", "reference")
    if backends["cpu"]["active"] == "native":
        assert backends["cpu"]["from"] == native.loaded_from("cpu")
        assert info.cpu_isa() in ("base", "avx2", "avx512")
    else:
        assert backends["cpu"]["why_not_native"]
    assert backends["cuda"]["active"] != "none" or backends["cuda"]["why_not_native"]


def test_printed_without_a_compiler_it_says_why(tmp_path):
    env = {**os.environ, "CXX": str(tmp_path / "nothing"), "FASTSAMPLE_CACHE_DIR": str(tmp_path)}
    command = [sys.executable, "-m", "fastsample.info"]
    result = subprocess.run(command, capture_output=True, text=True, env=env, check=False)
    assert result.returncode == 0, result.stderr
    if not native._prebuilt("libfastsample_cpu.so"):
        assert "update / cpu     reference" in result.stdout
        assert "not native: no C++ compiler found" in result.stdout
    for name in info.VARIABLES:
        assert name in result.stdout
