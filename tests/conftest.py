"""What tests share: paths made by hand, so that a test of the loop does not lean on schedules and grids."""

from __future__ import annotations

import hashlib
import os
import pathlib
import tempfile

import numpy as np
import pytest
import torch

from fastsample.path import Path


def _own_compile_cache() -> None:
    """Inductor's cache knows nothing of schemas: code for another version of an op must not be found again."""
    folder = pathlib.Path(__file__).parent.parent / "fastsample" / "ops"
    text = b"".join(path.read_bytes() for path in sorted(folder.glob("*.py")))
    name = f"fastsample-inductor-{os.getuid()}-{hashlib.sha256(text).hexdigest()[:16]}"
    os.environ.setdefault("TORCHINDUCTOR_CACHE_DIR", str(pathlib.Path(tempfile.gettempdir()) / name))


_own_compile_cache()


def vp_path(steps: int, low: float = -3.0, high: float = 5.0, final: bool = True) -> Path:
    """Variance-preserving, evenly spaced in log-SNR; ``final`` ends at sigma = 0 and takes one of the steps."""
    lam = np.linspace(low, high, steps if final else steps + 1)
    alpha, sigma = 1 / np.sqrt(1 + np.exp(-2 * lam)), 1 / np.sqrt(1 + np.exp(2 * lam))
    t = np.linspace(1.0, 0.0, steps + 1)
    return Path(np.append(alpha, 1.0), np.append(sigma, 0.0), t) if final else Path(alpha, sigma, t)


@pytest.fixture(autouse=True)
def _few_threads():
    before = torch.get_num_threads()
    torch.set_num_threads(min(2, before))
    yield
    torch.set_num_threads(before)


@pytest.fixture
def fresh_recordings():
    """No recordings before and after, and the limit as it was."""
    from fastsample import graph

    graph.clear()
    before = graph.limit()
    yield
    graph.limit(before)
    graph.clear()


@pytest.fixture
def ranges_off():
    """Named ranges are off, and afterwards as they were."""
    from fastsample.profiling import ranges

    with ranges.Before(ranges._sinks):
        ranges.disable()
        yield
