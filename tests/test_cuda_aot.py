"""The CUDA kernels compile without a GPU: registers, spills, instructions per element."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent


@pytest.mark.skipif(shutil.which("nvcc") is None, reason="no nvcc on the PATH")
def test_code_generation():
    """.ci/aot_cuda.py on sm_90 alone; continuous integration runs all targets."""
    command = [sys.executable, ".ci/aot_cuda.py", "--archs", "90"]
    result = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=300, check=False)
    assert result.returncode == 0, result.stdout + result.stderr[-2000:]
    assert "update_kernel" in result.stdout
