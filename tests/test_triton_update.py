"""The Triton backend of update, interpreted on the CPU in a process of its own."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("triton")
ROOT = Path(__file__).parent.parent


def test_triton_cases_in_the_interpreter():
    """Runs the files of cases with TRITON_INTERPRET=1, which must be set before Triton is imported."""
    cases = ["tests/triton_cases.py", "tests/triton_clock_cases.py"]
    command = [sys.executable, "-m", "pytest", "-x", "-p", "no:cacheprovider", *cases]
    environment = {**os.environ, "TRITON_INTERPRET": "1", "OMP_NUM_THREADS": "1"}
    result = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=600)
    assert result.returncode == 0, result.stdout[-8000:] + result.stderr[-2000:]
    assert " passed" in result.stdout, result.stdout[-2000:]
    print(result.stdout.strip().splitlines()[-1])
