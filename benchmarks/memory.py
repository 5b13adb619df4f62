"""Peak memory of a whole run beyond what was there before it, in states: ours, diffusers, k-diffusion, by hand.

    python -m benchmarks.memory [--quick] [--gpu] [--size 2^22] [--out FOLDER]

The network allocates its output and nothing else, and the caller keeps the start noise, so what is counted is the
solver's: the state, its history, its temporaries, and one output of the network.  All float32.
"""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

if __package__ in (None, ""):  # run as a file
    sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
os.environ.setdefault("KINETO_LOG_LEVEL", "5")  # the profiler that counts bytes is chatty

import torch
from torch import Tensor

import fastsample
from benchmarks import loop_programs as programs
from benchmarks.harness import Record, peak_bytes
from benchmarks.loop_cases import LINEAR, Case, Job, job
from benchmarks.member import Run, parse, parser
from benchmarks.steps import UnavailableError
from benchmarks.update import _number

STEPS = 8  # enough to fill every history
OURS, DROP_IN, STOCK, BY_HAND, K_DIFFUSION = "fastsample", "fastsample-drop-in", "diffusers", "by-hand", "k-diffusion"


@dataclass(frozen=True)
class Solver:
    """A solver, the class of diffusers and the function of k-diffusion that do the same, where there are such."""

    name: str
    scheduler: str = ""
    config: dict[str, Any] = field(default_factory=dict)
    function: str = ""


SOLVERS = (
    Solver("euler", "EulerDiscreteScheduler", function="sample_euler"),
    Solver("euler-ancestral", "EulerAncestralDiscreteScheduler", function="sample_euler_ancestral"),
    Solver("heun", "HeunDiscreteScheduler", function="sample_heun"),
    Solver("ddim", "DDIMScheduler", {"clip_sample": False}),
    Solver("ddpm", "DDPMScheduler", {"clip_sample": False}),
    Solver("dpmpp-2m", "DPMSolverMultistepScheduler", function="sample_dpmpp_2m"),
    Solver("dpmpp-3m", "DPMSolverMultistepScheduler", {"solver_order": 3}),
    Solver("sde-dpmpp-2m", "DPMSolverMultistepScheduler", {"algorithm_type": "sde-dpmsolver++"}, "sample_dpmpp_2m_sde"),
    Solver("dpmpp-2s", "DPMSolverSinglestepScheduler"),
    Solver("deis", "DEISMultistepScheduler", {"solver_order": 3}),
    Solver("unipc", "UniPCMultistepScheduler"),
    Solver("lms", "LMSDiscreteScheduler", function="sample_lms"),
    Solver("plms", "PNDMScheduler", {"skip_prk_steps": True}),
    Solver("sa", "SASolverScheduler"),
)
QUICK = ("euler", "ddpm", "dpmpp-2m", "sde-dpmpp-2m", "unipc", "sa")
TEXTBOOK = ("ddim", "ddpm", "dpmpp-2m")  # of which a loop by hand is at hand


def network(x: Tensor, t: Tensor) -> Tensor:
    """Allocates its output."""
    return x * 0.5


def main(argv: Sequence[str] | None = None) -> int:
    """Run the benchmark; exit code 0 whatever the figures are."""
    options = _options(argv)
    out = Run("memory", options)
    skipped: dict[str, str] = {}
    out.facts["skipped"] = skipped
    shape = (1, options.size)
    config = {"shape": list(shape), "dtype": "float32", "steps": STEPS}
    state = 4 * options.size
    print(f"peak bytes of a run over {state} bytes of state")
    for solver in options.solvers:
        x = torch.randn(shape, generator=torch.Generator().manual_seed(0)).to(options.device)
        cells = []
        for name, make in MAKERS.items():
            try:
                run = make(solver, x)
            except UnavailableError as error:
                skipped[f"{name}, {solver.name}"] = str(error)
                continue
            with torch.inference_mode():
                peak = peak_bytes(run, torch.inference_mode, options.device)
            figures = [("peak_memory", "B", (float(peak),) * 3), ("peak_states", "states", (peak / state,) * 3)]
            mode = "noise" if fastsample.solvers.registry.find(solver.name).stochastic else "deterministic"
            out.add(name, mode, {**config, "solver": solver.name}, figures, kernel=f"memory {solver.name}")
            cells.append(f"{name} {peak / state:.2f}")
            out.save()
        print(f"  {solver.name:16} {'   '.join(cells)}", flush=True)
    return out.end(plot)


def _ours(solver: Solver, x: Tensor) -> Callable[[], Any]:
    model = fastsample.Network(network, "eps")
    return lambda: fastsample.sample(model, x, solver=solver.name, steps=STEPS, seed=0, check=False)


def _scheduler(module: Any, solver: Solver, x: Tensor) -> Callable[[], Any]:
    if not hasattr(module, solver.scheduler):
        raise UnavailableError("no such class")
    told = torch.zeros(1, device=x.device)

    def run() -> Tensor:
        made = getattr(module, solver.scheduler)(**solver.config)  # a kept one would hold the history of its last run
        made.set_timesteps(STEPS, device=x.device)
        y = x if made.init_noise_sigma == 1.0 else x * float(made.init_noise_sigma)
        for t in made.timesteps:
            y = made.step(network(made.scale_model_input(y, t), told), t, y, return_dict=False)[0]
        return y

    return run


def _drop_in(solver: Solver, x: Tensor) -> Callable[[], Any]:
    _stock(solver, x)  # it needs diffusers
    import fastsample.integrations.diffusers as module

    return _scheduler(module, solver, x)


def _stock(solver: Solver, x: Tensor) -> Callable[[], Any]:
    try:
        import diffusers
    except ImportError as error:
        raise UnavailableError(f"diffusers cannot be imported ({error})") from error
    return _scheduler(diffusers, solver, x)


def _by_hand(solver: Solver, x: Tensor) -> Callable[[], Any]:
    if solver.name not in TEXTBOOK:
        raise UnavailableError("no loop by hand")
    config = LINEAR | ({"clip_sample": False} if solver.name != "dpmpp-2m" else {})
    case = Case("memory", tuple(x.shape), solver.name, "", config, STEPS, lambda *_: network)
    made: Job = job(case, x.device.type)
    return programs.by_hand(made).run


def _k_diffusion(solver: Solver, x: Tensor) -> Callable[[], Any]:
    if not solver.function:
        raise UnavailableError("no such function")
    try:
        from k_diffusion import sampling
    except ImportError as error:
        raise UnavailableError(f"k-diffusion cannot be imported ({error})") from error
    sigmas = sampling.get_sigmas_karras(STEPS, 0.03, 14.6, device=x.device)
    run = getattr(sampling, solver.function)
    return lambda: run(lambda y, sigma, **_: network(y, sigma), x, sigmas, disable=True)


MAKERS: dict[str, Callable[[Solver, Tensor], Callable[[], Any]]] = {
    OURS: _ours, DROP_IN: _drop_in, STOCK: _stock, K_DIFFUSION: _k_diffusion, BY_HAND: _by_hand,
}  # fmt: skip


def plot(records: Sequence[Record], path: Path) -> None:
    """Bars: states per run, a group per solver."""
    from matplotlib import pyplot

    rows = [r for r in records if r.metric_name == "peak_states"]
    solvers = list(dict.fromkeys(r.kernel_name for r in rows))
    names = [name for name in MAKERS if any(r.kernel_provider == name for r in rows)]
    figure, axis = pyplot.subplots(figsize=(8, 0.45 * len(solvers) + 1.2))
    height = 0.8 / max(1, len(names))
    for i, name in enumerate(names):
        chosen = [r for r in rows if r.kernel_provider == name]
        places = [solvers.index(r.kernel_name) + (i + 0.5) * height - 0.4 for r in chosen]
        axis.barh(places, [r.y_value_50 for r in chosen], 0.9 * height, label=name)
    axis.set_yticks(range(len(solvers)), [s.removeprefix("memory ") for s in solvers])
    axis.invert_yaxis()
    axis.set(xlabel="peak of a run in states, beyond the start noise")
    axis.grid(axis="x", alpha=0.3)
    axis.legend(fontsize="small")
    figure.tight_layout()
    figure.savefig(path, dpi=110)


def _options(argv: Sequence[str] | None) -> argparse.Namespace:
    made = parser("memory", __doc__, "six solvers, 2^18 elements")
    made.add_argument("--size", type=_number, help="elements of the state, as 2^22")
    made.add_argument("--solvers", help=f"of {','.join(s.name for s in SOLVERS)}")
    options = parse(made, argv, full=0.0, quick=0.0, gpu=0.0)
    options.size = options.size or (2**18 if options.quick else 2**26 if options.gpu else 2**22)
    known = [s.name for s in SOLVERS]
    wanted = list(QUICK if options.quick else known) if options.solvers is None else options.solvers.split(",")
    wrong = [name for name in wanted if name not in known]
    if wrong:
        made.error(f"--solvers: got {', '.join(wrong)}, allowed are {', '.join(known)}")
    options.solvers = [s for s in SOLVERS if s.name in wanted]
    return options


if __name__ == "__main__":
    sys.exit(main())
