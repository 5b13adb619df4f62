"""Drop-in schedulers against the stock ones of diffusers: time of one ``step`` through the class, and its error.

    python -m benchmarks.schedulers [--quick] [--gpu] [--names UniPC,Euler] [--out FOLDER]

One call is what a pipeline does per network call in the middle of a 20-step run: ``scale_model_input`` where the class
has it, then ``step``.  Ours runs twice: with the noise of torch's generator (the same numbers as stock) and with
counter noise.
"""

from __future__ import annotations

import argparse
import inspect
import sys
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

if __package__ in (None, ""):  # run as a file
    sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import torch

from benchmarks import member
from benchmarks.harness import Record, Timed, Times, measure, ratio

SHAPES = ((1, 4, 8, 8), (1, 4, 128, 128), (16, 4, 128, 128))
STEPS, INDEX = 20, 10  # the middle of a run, where histories are full
STOCK, OURS, COUNTER = "diffusers", "fastsample", "fastsample-counter"


@dataclass(frozen=True)
class Case:
    """A scheduler and its configuration; ``wanted``: promised ratios at the three shapes; ``calls`` per step."""

    name: str
    scheduler: str
    config: dict[str, Any] = field(default_factory=dict)
    step: dict[str, Any] = field(default_factory=dict)
    wanted: tuple[float, float, float] | None = None
    calls: int = 1
    noisy: bool = False


CASES = (
    Case("UniPC", "UniPCMultistepScheduler", wanted=(20, 10, 8)),
    Case("SA-Solver", "SASolverScheduler", wanted=(25, 10, 8), noisy=True),
    Case("DPM++ 2M", "DPMSolverMultistepScheduler", wanted=(6, 5, 4)),
    Case(
        "SDE-DPM++ 2M", "DPMSolverMultistepScheduler", {"algorithm_type": "sde-dpmsolver++"}, {}, (8, 10, 10), 1, True
    ),
    Case("DDPM", "DDPMScheduler", wanted=(6, 8, 10), noisy=True),
    Case(
        "DPM++ 2M thresholding",
        "DPMSolverMultistepScheduler",
        {"thresholding": True, "sample_max_value": 3.0},
        wanted=(5, 10, 15),
    ),
    Case("DDIM", "DDIMScheduler", wanted=(3, 3, 3)),
    Case("Euler", "EulerDiscreteScheduler", wanted=(3, 3, 3)),
    Case("FlowMatch Euler", "FlowMatchEulerDiscreteScheduler", wanted=(1, 1, 1)),
    Case("Euler ancestral", "EulerAncestralDiscreteScheduler", noisy=True),
    Case("DPM++ 3M", "DPMSolverMultistepScheduler", {"solver_order": 3}),
    Case("DPM++ 2S", "DPMSolverSinglestepScheduler"),
    Case("UniPC flow", "UniPCMultistepScheduler", {"use_flow_sigmas": True, "prediction_type": "flow_prediction"}),
    Case("DEIS 3", "DEISMultistepScheduler", {"solver_order": 3}),
    Case("Heun", "HeunDiscreteScheduler", calls=2),
    Case("KDPM2", "KDPM2DiscreteScheduler", calls=2),
    Case("KDPM2 ancestral", "KDPM2AncestralDiscreteScheduler", calls=2, noisy=True),
    Case("FlowMatch Heun", "FlowMatchHeunDiscreteScheduler", calls=2),
    Case("LMS", "LMSDiscreteScheduler"),
    Case("PNDM", "PNDMScheduler", {"skip_prk_steps": True}),
    Case("LCM", "LCMScheduler", noisy=True),
    Case("TCD", "TCDScheduler", noisy=True),
    Case("EDM Euler", "EDMEulerScheduler"),
    Case("EDM DPM++ 2M", "EDMDPMSolverMultistepScheduler"),
    Case("CM", "CMStochasticIterativeScheduler", noisy=True),
)


class Loop:
    """The loop body of a pipeline, always at the same place of the run: the first half of the run is done once."""

    def __init__(
        self, cls: Any, case: Case, shape: Sequence[int], dtype: torch.dtype, device: str, counter: bool
    ) -> None:
        self.scheduler = cls(**case.config)
        if counter:
            self.scheduler.use(noise="counter", seed=0)
        self.case = case
        s = self.scheduler
        self.scaled = hasattr(s, "scale_model_input")
        s.set_timesteps(STEPS, device=device)
        if hasattr(s, "set_begin_index"):
            s.set_begin_index(0)
        g = torch.Generator().manual_seed(0)
        self.x = torch.randn(shape, generator=g).to(device, dtype)
        self.e = torch.randn(shape, generator=g).to(device, dtype)
        self.times = list(s.timesteps)
        self.index = INDEX * case.calls + (1 if case.calls == 2 else 0)
        self.step = {"return_dict": False, **case.step}
        self.generator = {}
        if case.noisy and "generator" in inspect.signature(s.step).parameters:
            self.generator = {"generator": torch.Generator(device).manual_seed(0)}
        x = self.x
        for t in self.times[: self.index]:
            x = self._one(x, t)
        self.x = x
        self.counter = getattr(s, "counter", None)

    def _one(self, x: torch.Tensor, t: Any) -> torch.Tensor:
        s = self.scheduler
        if self.scaled:
            s.scale_model_input(x, t)
        return s.step(self.e, t, x, **self.step, **self.generator)[0]

    def advance(self) -> None:
        """``calls`` network calls' worth of scheduler work, and back to the place."""
        s = self.scheduler
        if self.counter is not None:
            s.counter = self.counter
        elif "_step_index" in s.__dict__:
            s._step_index = self.index
        x = self.x
        for k in range(self.case.calls):
            x = self._one(x, self.times[self.index + k])
        self.x = x


def error(cls: Any, case: Case, shape: Sequence[int], dtype: torch.dtype) -> float:
    """Largest error of one middle step of the same half-precision state against float64, in units of the rounding of
    the result (the spacing of ``dtype`` at its largest value)."""
    import diffusers

    with torch.inference_mode():
        low = Loop(cls, case, shape, dtype, "cpu", False)
        fine = Loop(getattr(diffusers, case.scheduler), case, shape, torch.float64, "cpu", False)
        x, e = low.x.clone(), low.e.clone()
        # one step without history, so that both start from the same numbers
        made = []
        for loop, wide in ((low, dtype), (fine, torch.float64)):
            s = loop.scheduler
            s.set_timesteps(STEPS)
            begin = loop.index
            if hasattr(s, "set_begin_index"):
                s.set_begin_index(begin)
            generator = {"generator": torch.Generator().manual_seed(1)} if loop.generator else {}
            made.append(s.step(e.to(wide), loop.times[begin], x.to(wide), **loop.step, **generator)[0].double())
    spacing = torch.finfo(dtype).eps * float(made[1].abs().max())
    return float((made[0] - made[1]).abs().max()) / spacing


def main(argv: Sequence[str] | None = None) -> int:
    """Run the benchmark; exit code 0 whatever the figures are."""
    import diffusers

    import fastsample.integrations.diffusers as ours

    options = parse(argv)
    run = member.Run("schedulers", options)
    print(
        f"{'us per network call':24} {'shape':>16} {'stock':>9} {'ours':>9} {'counter':>9}   stock/ours  stock/counter"
    )
    for case in CASES:
        if options.names and case.name not in options.names:
            continue
        if not hasattr(ours, case.scheduler):
            print(f"{case.name:24} not there")
            continue
        stock, mine = getattr(diffusers, case.scheduler), getattr(ours, case.scheduler)
        for place, shape in enumerate(SHAPES[:1] if options.quick else SHAPES):
            times = _times(case, shape, options.device, stock, mine, options)
            for name in times:
                run.add(name, "step", _config(case, shape), _figures(case, times, name), f"scheduler {case.name}")
                if case.wanted is not None and name != STOCK:
                    what = f"{case.name} {'x'.join(map(str, shape))} {name}"
                    run.promise(what, case.wanted[place], ratio(times[STOCK], times[name]))
            _tell(case, shape, times)
        if options.errors and not options.gpu:
            for name, cls in ((STOCK, stock), (OURS, mine)):
                value = error(cls, case, SHAPES[1], torch.bfloat16)
                print(f"{'':24} {name}: bfloat16 error of a step {value:.2f} roundings")
                figure = ("bfloat16_error", "roundings", (value,) * 3)
                run.add(name, "step", _config(case, SHAPES[1]), [figure], f"scheduler {case.name}")
        run.save()
    return run.end(plot)


def _config(case: Case, shape: Sequence[int]) -> dict[str, Any]:
    return {"scheduler": case.scheduler, "config": case.config, "shape": list(shape)}


def _figures(case: Case, times: dict[str, Times], name: str) -> list[member.Figure]:
    middle, low, high = (1e3 * q / case.calls for q in times[name].quantiles())
    figures: list[member.Figure] = [("time", "ms", (middle, low, high))]
    if name != STOCK:
        figures.append(("speedup_over_diffusers", "x", ratio(times[STOCK], times[name])))
    return figures


def _times(case: Case, shape: Sequence[int], device: str, stock: Any, mine: Any, options: Any) -> dict[str, Times]:
    programs = {}
    with torch.inference_mode():
        for name, cls in ((STOCK, stock), (OURS, mine), *(((COUNTER, mine),) if case.noisy else ())):
            loop = Loop(cls, case, shape, torch.float32, device, name == COUNTER)
            programs[name] = Timed((loop.advance,), torch.no_grad)
    return measure(programs, device, options.min_time, min_rounds=5)


def _tell(case: Case, shape: Sequence[int], times: dict[str, Times]) -> None:
    cells = [
        f"{1e6 * times[n].quantiles()[0] / case.calls:9.1f}" if n in times else " " * 9 for n in (STOCK, OURS, COUNTER)
    ]
    ratios = [f"{ratio(times[STOCK], times[n])[0]:8.1f}x" for n in (OURS, COUNTER) if n in times]
    print(f"{case.name:24} {'x'.join(map(str, shape)):>16} {' '.join(cells)}   {'   '.join(ratios)}", flush=True)


def plot(records: Sequence[Record], path: Path) -> None:
    """Speed-up over stock per scheduler, one group of bars per shape."""
    from matplotlib import pyplot as plt

    rows = [r for r in records if r.metric_name == "speedup_over_diffusers"]
    names = list(dict.fromkeys((r.kernel_name.removeprefix("scheduler "), r.kernel_provider) for r in rows))
    sizes = sorted({r.x_value for r in rows})
    figure, axis = plt.subplots(figsize=(9, 0.32 * len(names) + 1.5))
    for k, size in enumerate(sizes):
        values = {
            (r.kernel_name.removeprefix("scheduler "), r.kernel_provider): r.y_value_50
            for r in rows
            if r.x_value == size
        }
        places = [i + 0.27 * (k - 1) for i in range(len(names))]
        axis.barh(places, [values.get(name, 0.0) for name in names], height=0.25, label=f"{size:,} elements")
    axis.set_yticks(range(len(names)), [f"{n}{' (counter noise)' if p == COUNTER else ''}" for n, p in names])
    axis.invert_yaxis()
    axis.set(xscale="log", xlabel="times faster than diffusers, one step")
    axis.axvline(1.0, color="black", lw=0.8)
    axis.legend()
    figure.tight_layout()
    figure.savefig(path, dpi=110)


def parse(argv: Sequence[str] | None) -> argparse.Namespace:
    p = member.parser("schedulers", __doc__, "smallest shape only, short, no errors")
    p.add_argument("--names", default="", help="cases, separated by commas")
    p.add_argument("--errors", action=argparse.BooleanOptionalAction, help="of bfloat16 (default: not in a quick run)")
    options = member.parse(p, argv, 0.5, 0.05, 0.05)
    options.names = [name for name in options.names.split(",") if name]
    unknown = set(options.names) - {case.name for case in CASES}
    if unknown:
        p.error(f"--names: got {', '.join(sorted(unknown))}, allowed are {', '.join(c.name for c in CASES)}")
    if options.errors is None:
        options.errors = not options.quick
    return options


if __name__ == "__main__":
    sys.exit(main())
