"""``fastsample profile``: a job under nsys, or under torch.profiler in this process; its trace, and what it says."""

from __future__ import annotations

import importlib.util
import os
import runpy
import shutil
import subprocess
import sys
import time
import traceback
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from .. import report
from . import nsys_trace, table, torch_trace
from .ranges import Before, enable
from .summary import summarize
from .trace import Trace, write_chrome

TOOLS = ("auto", "nsys", "torch")


@dataclass(frozen=True)
class Job:
    """What is profiled: a command of fastsample, or a script, a module or a line of Python with its arguments."""

    words: tuple[str, ...]

    @classmethod
    def of(cls, words: Sequence[str], commands: Sequence[str]) -> Job:
        """Raises ``ValueError`` for anything else."""
        allowed = f"fastsample's own {', '.join(commands)}, and python SCRIPT"
        if not words:
            raise ValueError(f"job: got none, give it after --, such as -- sample --steps 5; allowed are {allowed}")
        if words[0] not in (*commands, "python"):
            raise ValueError(f"job: got {words[0]!r}, allowed are {allowed}")
        if words[0] == "python":
            if len(words) < 2 or (words[1] in ("-c", "-m") and len(words) < 3):
                raise ValueError(f"job: got {' '.join(words)!r}, need python SCRIPT, -m MODULE or -c CODE")
            if words[1].startswith("-") and words[1] not in ("-c", "-m"):
                raise ValueError(f"job: got the option {words[1]!r} of python, allowed are -c and -m")
            if not words[1].startswith("-") and not Path(words[1]).is_file():
                raise ValueError(f"job: the file {words[1]} does not exist")
        return cls(tuple(words))

    @property
    def command(self) -> list[str]:
        """As a command of its own."""
        own = self.words[1:] if self.words[0] == "python" else ("-m", "fastsample", *self.words)
        return [sys.executable, *own]

    def run(self, main: Callable[[list[str]], Any]) -> int:
        """In this process; its exit code.  ``main`` runs a command of fastsample, whose errors pass through."""
        if self.words[0] != "python":
            code = main(list(self.words))
            return code if isinstance(code, int) else 0
        arguments, path = sys.argv, list(sys.path)
        try:
            _python(self.words[1:])
        except SystemExit as end:
            return end.code if isinstance(end.code, int) else int(end.code is not None)
        except Exception:
            traceback.print_exc()
            return 1
        finally:
            sys.argv, sys.path[:] = arguments, path
        return 0


def _python(words: Sequence[str]) -> None:
    """As ``python WORDS`` would."""
    kind, rest = words[0], list(words[1:])
    if kind == "-m":
        sys.argv, sys.path[:0] = rest, [os.getcwd()]
        runpy.run_module(rest[0], run_name="__main__", alter_sys=True)
    elif kind == "-c":
        sys.argv, sys.path[:0] = ["-c", *rest[1:]], [""]
        exec(compile(rest[0], "<string>", "exec"), {"__name__": "__main__"})
    else:
        sys.argv, sys.path[:0] = list(words), [str(Path(kind).resolve().parent)]
        runpy.run_path(kind, run_name="__main__")


def profile(
    words: Sequence[str],
    out: Path,
    tool: str,
    *,
    commands: Sequence[str],
    main: Callable[[list[str]], Any],
    say: Callable[[str], Any],
) -> int:
    """Run a job, write ``trace.json.gz``, ``summary.json`` and ``summary.txt`` (and nsys's own files) into ``out``.

    ``tool``: ``"nsys"``, ``"torch"``, or ``"auto"``: nsys if it is on the PATH.  ``commands``: those of fastsample that
    may be a job; ``main`` runs one.  Returns the exit code of the job; if that is not 0, nothing is written.

    Raises:
        ValueError: an unknown tool or job, no run in the job, a folder that cannot be written.
        ImportError: nsys without the package nvtx.
        OSError: nsys is wanted and absent, or fails.
    """
    job = Job.of(words, commands)
    if tool not in TOOLS:
        raise ValueError(f"--tool: got {tool!r}, allowed are {', '.join(TOOLS)}")
    nsys = shutil.which("nsys")
    if tool == "nsys" and nsys is None:
        raise FileNotFoundError("--tool: got nsys, which is not on the PATH; install Nsight Systems or use torch")
    try:
        with report.output_folder(out) as folder:
            begin = time.perf_counter()
            if nsys is not None and tool != "torch":
                trace = _under_nsys(nsys, job, folder, say)
            else:
                trace = _under_torch(job, folder, main)
            summary = {"job": list(job.words), "seconds_of_job": time.perf_counter() - begin, **summarize(trace)}
            shown = table.text(summary)
            (folder / "summary.txt").write_text(shown)
            report.write_json(folder / "summary.json", summary)
            names = sorted(file.name for file in folder.iterdir())
    except _FailedError as failed:
        print(f"fastsample: {failed}", file=sys.stderr)
        return failed.code
    say(shown)
    for name in names:
        say(f"{out / name}")
    return 0


class _FailedError(Exception):
    def __init__(self, code: int) -> None:
        super().__init__(f"job: ended with exit code {code}; no profile is written")
        self.code = code


def _under_torch(job: Job, folder: Path, main: Callable[[list[str]], Any]) -> Trace:
    import torch
    from torch.profiler import ProfilerActivity

    activities = [ProfilerActivity.CPU, *([ProfilerActivity.CUDA] if torch.cuda.is_available() else [])]
    before: Before = enable(nvtx=False, torch_profiler=True)
    with before, torch.profiler.profile(activities=activities, profile_memory=True) as seen:
        code = job.run(main)
        if torch.cuda.is_available():
            torch.cuda.synchronize()
    if code:
        raise _FailedError(code)
    path = folder / "trace.json.gz"
    seen.export_chrome_trace(str(path))
    return torch_trace.read(path)


def nsys_commands(nsys: str, job: Job, stem: Path) -> list[list[str]]:
    """Profile, then export to SQLite."""
    traced = ["--trace=cuda,nvtx,osrt", "--sample=none", "--force-overwrite=true", f"--output={stem}"]
    exported = ["--type=sqlite", "--force-overwrite=true", f"--output={stem}.sqlite", f"{stem}.nsys-rep"]
    return [[nsys, "profile", *traced, *job.command], [nsys, "export", *exported]]


def _under_nsys(nsys: str, job: Job, folder: Path, say: Callable[[str], Any]) -> Trace:
    if importlib.util.find_spec("nvtx") is None:
        raise ImportError("nvtx: the package is not installed, and nsys knows ranges by it; pip install nvtx")
    stem = folder / "trace"
    environment = {**os.environ, "FASTSAMPLE_NVTX": "1"}
    for command in nsys_commands(nsys, job, stem):
        say(" ".join(command))
        code = subprocess.run(command, env=environment, check=False).returncode
        if code and command[1] == "profile":
            raise _FailedError(code)
        if code:
            raise OSError(f"nsys: {command[1]} ended with exit code {code}")
    trace = nsys_trace.read(stem.with_suffix(".sqlite"))
    write_chrome(trace, folder / "trace.json.gz")
    return trace
