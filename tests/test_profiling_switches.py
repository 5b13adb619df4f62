"""What switches ranges on, and that a tool hears them over the real nvtx."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from fastsample import profiling
from fastsample.profiling import ranges

HERE = Path(__file__).parent


pytestmark = pytest.mark.usefixtures("ranges_off")


def network(x, t):
    return 0.1 * x


# --- switches


def test_switches():
    assert not profiling.enabled()
    with profiling.enable(nvtx=False, torch_profiler=True):
        assert profiling.enabled()
    assert not profiling.enabled()
    with pytest.raises(ValueError, match="nvtx, torch_profiler: got neither"):
        profiling.enable(nvtx=False)


def test_nvtx_missing(monkeypatch):
    monkeypatch.setitem(sys.modules, "nvtx", None)
    with pytest.raises(ImportError, match="pip install nvtx"):
        profiling.enable()


def test_no_ranges_in_a_compiled_graph(monkeypatch):
    ranges.use([ranges.TorchSink()])
    assert profiling.enabled()
    monkeypatch.setattr(torch.compiler, "is_compiling", lambda: True)
    assert not profiling.enabled()
    assert ranges.ranged("update", network) is network


SHORT = "import fastsample; fastsample.sample(lambda x, t: 0.1 * x, (2, 3), solver='ddim', steps=2, seed=0)"


def test_a_tool_hears_nvtx(tmp_path):
    """The real package ``nvtx`` and a real listener, found as Nsight's is: nothing is switched on by hand."""
    pytest.importorskip("nvtx")
    compiler = os.environ.get("CXX") or shutil.which("g++") or shutil.which("c++")
    if compiler is None or not sys.platform.startswith("linux"):
        pytest.skip("no C++ compiler, or not Linux")
    library = tmp_path / "listener.so"
    subprocess.run([compiler, "-shared", "-fPIC", "-o", library, HERE / "nvtx_listener.cpp"], check=True)
    tool = {ranges.TOOL_VARIABLE: str(library), "LISTENER_OUT": str(tmp_path / "heard.txt")}
    environment = {k: v for k, v in os.environ.items() if k != "FASTSAMPLE_NVTX"}
    environment["PYTHONPATH"] = os.pathsep.join([str(HERE.parent), environment.get("PYTHONPATH", "")])
    command = [sys.executable, "-c", SHORT]
    result = subprocess.run(command, env=environment | tool, capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stderr
    step = "push fastsample {0} step ddim\npush fastsample {0} network\n{1}push fastsample {0} update\n{1}{1}"
    end = "pop fastsample\n"
    steps = "".join(step.format(k, end) for k in range(2))
    expected = f"domain fastsample\npush fastsample 2 run ddim 24 bytes\n{steps}{end}"
    assert (tmp_path / "heard.txt").read_text() == expected


@pytest.mark.parametrize(
    ("word", "tool", "on"),
    [(None, None, False), ("1", None, True), ("", "x.so", True), ("0", "x.so", False), ("", "", False)],
)
def test_environment(monkeypatch, word, tool, on):
    pytest.importorskip("nvtx")
    for name, value in (("FASTSAMPLE_NVTX", word), (ranges.TOOL_VARIABLE, tool)):
        monkeypatch.delenv(name, raising=False)
        if value is not None:
            monkeypatch.setenv(name, value)
    ranges._from_environment()
    assert profiling.enabled() == on


def test_environment_refused(monkeypatch):
    monkeypatch.setenv("FASTSAMPLE_NVTX", "yes")
    with pytest.raises(ValueError, match="FASTSAMPLE_NVTX: got 'yes', allowed are 0 and 1"):
        ranges._from_environment()


def test_environment_without_the_package(monkeypatch):
    monkeypatch.setitem(sys.modules, "nvtx", None)
    monkeypatch.setenv("FASTSAMPLE_NVTX", "1")
    with pytest.warns(UserWarning, match="no nvtx ranges: nvtx: the package is not installed"):
        ranges._from_environment()
    assert not profiling.enabled()
