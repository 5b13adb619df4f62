"""The members of the suite, and how they are run: one process each, one after another, each with a limit."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent


GUARD = 5.0  # a member that takes this many times what it should is ended: it hangs


@dataclass(frozen=True)
class Member:
    """A module of this folder, and what its results mean.

    ``pairs``: a program of ours and the peers that do the same job, or none.  ``quick``, ``full`` and ``gpu`` are the
    seconds that it may take on an idle machine with 2 cores or a GPU; ``gpu`` 0: a GPU says nothing new.  ``metric`` is
    what is compared, less is better.  ``calls``: a figure belongs to one call of the network, so that its share of a
    step can be told.  ``needs``: a package without which nothing can be measured.
    """

    name: str
    about: str
    pairs: tuple[tuple[str, tuple[str, ...]], ...] = ()
    quick: float = 30
    full: float = 120
    gpu: float = 60
    metric: str = "time"
    calls: bool = True
    needs: str = ""
    gpu_promises: tuple[str, ...] = ()

    @property
    def ours(self) -> tuple[str, ...]:
        return tuple(name for name, _ in self.pairs)


COMPILED = ("compile", "compile-inplace", "compile-drawn")
LOOPS = ("diffusers", "compiled-step", "compiled-step-in-place", "compiled-step-and-net", "by-hand")
LOOPS_OURS = (
    *("fastsample", "fastsample-graph", "fastsample-graph-whole"),
    *("fastsample-compiled-loop", "fastsample-compiled-net", "fastsample-compiled-step"),
)
BY_HAND = ("eager", *COMPILED, "k-diffusion", "diffusers")

MEMBERS = (
    Member(
        "update",
        "One step of DPM-Solver++ 2M, deterministic or SDE, between two calls of the network: `fastsample::update_` in "
        "place against PyTorch by hand, the same under torch.compile, and the arithmetic of k-diffusion and diffusers.",
        (("native", BY_HAND), ("triton", BY_HAND), ("native-checked", ()), ("reference", ())),
        quick=60,
        full=240,
        gpu=160,
        gpu_promises=(
            "update without noise, states of 64 MB and more: >= 90 % of copy bandwidth",
            "update with noise, states of 64 MB and more: >= 85 % of copy bandwidth",
            "SDE step, bfloat16, 2^26: >= 1.7x over torch.compile",
        ),
    ),
    Member(
        "schedulers",
        "`step` of the drop-in schedulers through the class, as a pipeline calls it, against the stock class of "
        "diffusers. `fastsample` draws torch's noise (the numbers of stock), `fastsample-counter` makes its own.",
        (("fastsample", ("diffusers",)), ("fastsample-counter", ("diffusers",))),
        quick=20,
        full=110,
        gpu=50,
        needs="diffusers",
    ),
    Member(
        "metropolis",
        "What lies between two calls of the network in a Langevin sampler: log-ratio, choice and next proposal of "
        "RTK-MALA, and the underdamped step of RTK-ULD, against PyTorch by hand and under torch.compile.",
        (("fastsample", ("eager", *COMPILED)),),
        quick=15,
        full=60,
        gpu=50,
        gpu_promises=("metropolis, 64 x 10^6: >= 80 % of copy bandwidth",),
    ),
    Member(
        "threshold",
        "A step of DPM-Solver++ 2M with dynamic thresholding against diffusers (`fastsample`), the quantile alone "
        "(`threshold_`) against `torch.quantile`, and guidance rescale (`rescale_`) against the tensor formula.",
        (("fastsample", ("diffusers",)), ("threshold_", ("torch.quantile",)), ("rescale_", ("torch-rescale",))),
        quick=10,
        full=40,
        gpu=30,
    ),
    Member(
        "brownian",
        "One query of a Brownian path in a 20-step run of an SDE sampler: ours, prepared for the run or not, against "
        "the tree of torchsde. `randn_like` draws independent noise, another and smaller job.",
        (("fastsample", ("torchsde", "randn_like")), ("fastsample-unprepared", ("torchsde",))),
        quick=10,
        full=110,
        gpu=30,
    ),
    Member(
        "normals",
        "Normals of a CPU generator: `torch_stream.randn`, which gives the bits of `torch.randn`, against it. "
        "`fastsample-counter` is addressed noise, `numpy` another stream: other numbers.",
        (("fastsample", ("torch.randn",)),),
        quick=8,
        full=25,
        gpu=0,
        calls=False,
    ),
    Member(
        "loop",
        "Whole runs, per call of the network, set-up included: `sample` with a ready plan, the same recorded (`graph`: "
        "a CUDA graph on a GPU, a list of calls on a CPU), with a compiled network, the whole run (`Loop`) or a step "
        "(`StepLoop`) as one graph of torch.compile, and the drop-in scheduler, against the loop of diffusers, the "
        "step under torch.compile, and the textbook by hand. All give the same samples.",
        (*((name, LOOPS) for name in LOOPS_OURS), ("fastsample-drop-in", ("diffusers",))),
        quick=45,
        full=300,
        gpu=35,
        gpu_promises=("captured loop, beyond the network: <= 4 us per step",),
    ),
    Member(
        "memory",
        "Most bytes alive in a whole run beyond the start noise, in states, with a network that allocates its output "
        "alone: `sample` and the drop-in schedulers against diffusers, k-diffusion where it is installed, and by hand.",
        (("fastsample", ("diffusers", "k-diffusion", "by-hand")), ("fastsample-drop-in", ("diffusers",))),
        metric="peak_states",
        calls=False,
        quick=20,
        full=60,
        gpu=10,
    ),
    Member(
        "scaling",
        "One update over the size of the state, over the batch and over threads, and whole runs over the number of "
        "steps: fixed cost, slope, and the knee where the two are equal.",
        quick=35,
        full=160,
        gpu=15,
    ),
    Member(
        "quality",
        "Digit-FID of samples of the shipped digit network over its calls, for every sampler that runs on it, and the "
        "distance to the fine solution of the probability flow where a sampler adds no noise.",
        quick=55,
        full=390,
        gpu=0,
    ),
)


@dataclass(frozen=True)
class Outcome:
    name: str
    outcome: str  # ok, skipped, failed, over its limit
    seconds: float


def find(names: Sequence[str]) -> list[Member]:
    """Members in the order of the suite, all if no name is given.  Raises ``ValueError`` for an unknown name."""
    known = [m.name for m in MEMBERS]
    unknown = [name for name in names if name not in known]
    if unknown:
        raise ValueError(f"--only: got {', '.join(unknown)}, allowed are {', '.join(known)}")
    return [m for m in MEMBERS if not names or m.name in names]


def missing(member: Member) -> str:
    """Why a member cannot run here, or nothing."""
    return f"{member.needs} is not installed" if member.needs and not find_spec(member.needs) else ""


def limit(member: Member, quick: bool, gpu: bool) -> float:
    """Seconds after which a member is ended."""
    return GUARD * (member.gpu if gpu else member.quick if quick else member.full)


def run(member: Member, arguments: Sequence[str], seconds: float | None, root: Path, quiet: bool = False) -> Outcome:
    """Run a member as ``python -m benchmarks.NAME`` in ``root``, whose packages are the ones imported."""
    path = os.pathsep.join([str(root), *filter(None, [os.environ.get("PYTHONPATH")])])
    begin = time.monotonic()
    sink = subprocess.DEVNULL if quiet else None
    process = subprocess.Popen(
        [sys.executable, "-m", f"benchmarks.{member.name}", *arguments],
        cwd=root,
        env={**os.environ, "PYTHONPATH": path, "PYTHONUNBUFFERED": "1"},
        stdout=sink,
        stderr=subprocess.STDOUT if quiet else None,
        start_new_session=True,  # so that what it has started ends with it
    )
    try:
        code = process.wait(seconds)
    except subprocess.TimeoutExpired:
        return Outcome(member.name, f"over its limit of {seconds:g} s", time.monotonic() - begin)
    finally:
        if process.poll() is None:  # the limit, or Ctrl-C here
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()
    return Outcome(member.name, "ok" if code == 0 else f"failed, exit {code}", time.monotonic() - begin)
