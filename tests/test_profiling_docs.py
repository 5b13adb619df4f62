"""The commands of docs/profiling.md: our options exist, those of Nsight are among the known ones."""

from __future__ import annotations

import re
import shlex
import sys
from pathlib import Path

import click
import pytest
import torch

import fastsample
from benchmarks import counters
from fastsample.cli import cli
from fastsample.profiling.job import TOOLS, Job, nsys_commands
from fastsample.profiling.ranges import _COLORS

PAGE = (Path(__file__).parent.parent / "docs" / "profiling.md").read_text()
COMMANDS = [line for block in re.findall(r"```sh\n(.*?)```", PAGE, re.S) for line in block.strip().splitlines()]

# Long options of the manuals (Nsight Systems 2025.6 user guide, Nsight Compute CLI 2025) that we use; True: has a value
NSYS = {
    "profile": {"trace": True, "sample": True, "force-overwrite": True, "output": True, "cuda-graph-trace": True},
    "stats": {"report": True},
    "export": {"type": True, "force-overwrite": True, "output": True},
}
NSYS_VALUES = {
    "trace": {"cuda", "nvtx", "osrt", "cublas", "cudnn", "none"},
    "sample": {"process-tree", "system-wide", "none"},
    "force-overwrite": {"true", "false"},
    "cuda-graph-trace": {"graph", "node"},
    "type": {"sqlite"},
    "report": {"nvtx_sum", "nvtx_gpu_proj_sum", "cuda_gpu_kern_sum", "cuda_api_sum"},
}
NCU = {
    **dict.fromkeys(("set", "kernel-name", "kernel-name-base", "launch-skip", "launch-count", "metrics"), True),
    **dict.fromkeys(("export", "import", "page", "print-units", "log-file", "nvtx-include"), True),
    **dict.fromkeys(("nvtx", "csv", "force-overwrite"), False),
}
NCU_VALUES = {
    "set": {"basic", "detailed", "full", "roofline"},
    "page": {"details", "raw", "source", "session"},
    "print-units": {"auto", "base"},
    "kernel-name-base": {"function", "demangled", "mangled"},
}


def check_fastsample(words):
    """The words of a command of ours are understood; nothing runs."""
    command = cli.commands[words[0]]
    context = command.make_context(words[0], list(words[1:]))
    if words[0] == "profile":
        words = [word if word != "script.py" else __file__ for word in context.params["job"]]
        job = Job.of(words, ("sample", "compare"))
        assert context.params["tool"] in TOOLS
        if job.words[0] != "python":
            check_fastsample(job.words)
    else:
        assert not context.args, context.args


def check_application(words):
    if words[0] == "fastsample":
        check_fastsample(words[1:])
    else:
        assert words[0] == "python"


def check_nsys(words):
    known, rest = NSYS[words[0]], list(words[1:])
    while rest and rest[0].startswith("-"):
        name, equals, value = rest.pop(0).removeprefix("--").partition("=")
        assert name in known, name
        value = value if equals else rest.pop(0)
        assert set(value.split(",")) <= NSYS_VALUES.get(name, {value, *value.split(",")}), value
    if words[0] == "profile":
        check_application(rest)
    else:
        assert len(rest) == 1 and rest[0].endswith(".nsys-rep")


def check_ncu(words):
    rest, given = list(words), set()
    while rest and rest[0].startswith("-"):
        name = rest.pop(0).removeprefix("--")
        given.add(name)
        assert name in NCU, name
        if NCU[name]:
            value = rest.pop(0)
            assert value in NCU_VALUES.get(name, {value})
            assert not name.startswith("launch-") or value.isdigit()
            assert name != "nvtx-include" or re.fullmatch(r"fastsample@(\w+)/", value)[1] in _COLORS
    if "import" not in given:
        check_application(rest)


def check(words):
    tool, *rest = words
    if tool == "fastsample":
        check_fastsample(rest)
    elif tool == "nsys":
        check_nsys(rest)
    elif tool == "ncu":
        check_ncu(rest)
    else:
        assert rest[:2] == ["-m", "benchmarks.counters"]
        with pytest.raises(SystemExit) as end:
            counters.main([*rest[2:], "--help"])
        assert end.value.code == 0


@pytest.mark.parametrize("command", COMMANDS)
def test_commands(command, capsys):
    check(shlex.split(command))


def test_what_is_run_is_checked_too(tmp_path):
    """The words that `fastsample profile` and `make gpu` give to the tools, up to the application."""

    def tools_own(words):
        return words[: words.index(sys.executable)] if sys.executable in words else words

    profile, export = nsys_commands("nsys", Job(("sample", "--steps", "3")), tmp_path / "trace")
    check([*tools_own(profile), "python"])
    check(export)
    check([*tools_own(counters.command("ncu", tmp_path / "x.csv")), "python"])


def test_the_checks_can_fail():
    for wrong in (
        "fastsample profile --speed 3 -- sample",
        "fastsample profile -- plan ddim",
        "nsys profile --traces=cuda python x.py",
        "nsys profile --trace=gpu python x.py",
        "ncu --kernel regex:x python x.py",
        "ncu --nvtx --nvtx-include fastsample@udpate/ python x.py",
    ):
        with pytest.raises((AssertionError, click.ClickException, ValueError)):
            check(shlex.split(wrong))


def test_the_page_names_every_range_and_metric():
    assert len(COMMANDS) == 10
    for kind in _COLORS:
        assert f"| `{kind}" in PAGE or f", `{kind}" in PAGE
    named = set(re.findall(r"`((?:\w+__)[\w.]+)`", PAGE))
    assert named <= set(counters.METRICS)
    assert {counters.DRAM, counters.SM, counters.L1, counters.L2, counters.WAVES, counters.REGISTERS} <= named


def test_the_example_runs():
    code = re.search(r"```python\n(.*?)```", PAGE, re.S)[1].replace("(16, 4, 64, 64)", "(2, 1, 4, 4)")
    pytest.importorskip("nvtx")
    exec(code, {"fastsample": fastsample, "net": lambda x, t: 0.1 * x, "torch": torch})
    assert not fastsample.profiling.enabled()


def test_the_roof_of_the_example():
    """The arithmetic of "The roof by hand"."""
    for number in ("9.0e11", "168 us", "I = 62 are 145 us", "I = 106 (noise) 248 us", "below 72", "2.6 us"):
        assert number in PAGE
    n, bandwidth, rate = 2**26, 4.0e12, 132 * 4 * 1.7e9
    assert rate == pytest.approx(9.0e11, rel=0.01)
    assert n * 10 / bandwidth == pytest.approx(168e-6, rel=0.005)
    assert n * 62 / (32 * rate) == pytest.approx(145e-6, rel=0.005)
    assert n * 106 / (32 * rate) == pytest.approx(248e-6, rel=0.005)
    assert 32 * rate * 10 / bandwidth == pytest.approx(72, abs=0.5)
    assert 2**20 * 10 / bandwidth == pytest.approx(2.6e-6, rel=0.01)
