"""The Triton kernel compiles for NVIDIA targets without a GPU, and its machine code is what it should be."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("triton")
from triton.backends import backends

ROOT = Path(__file__).parent.parent


@pytest.mark.skipif("nvidia" not in backends, reason="this Triton has no NVIDIA backend")
def test_code_generation(tmp_path):
    """A few points of .ci/aot_triton.py: no spills, 16-byte accesses, the budget of instructions per element."""
    environment = {k: v for k, v in os.environ.items() if k != "TRITON_INTERPRET"}
    environment["TRITON_CACHE_DIR"] = str(tmp_path)
    command = [sys.executable, ".ci/aot_triton.py", "--quick"]
    result = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=300)
    assert result.returncode == 0, result.stdout + result.stderr[-2000:]
    assert re.search(r"sm_90  bf16 K=3 noise=key +\d+ +\d", result.stdout), result.stdout
