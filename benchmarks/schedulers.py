"""Drop-in schedulers against the stock ones of diffusers: time of one ``step`` through the class, and its error.

    python -m benchmarks.schedulers [--quick] [--gpu] [--names UniPC,Euler] [--out benchmarks/results/NAME]

One call is what a pipeline does per network call in the middle of a 20-step run: ``scale_model_input`` where the class
has it, then ``step``.  Ours runs twice: with the noise of torch's generator (the same numbers as stock) and with
counter noise.  Writes NAME.csv, NAME.json and NAME.png; prints the table and the promised ratios.
"""

from __future__ import annotations

import argparse
import inspect
import json
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

if __package__ in (None, ""):  # run as a file
    sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import torch

from benchmarks.harness import Record, Timed, Times, device_name, machine, measure, now, ratio, write_csv

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


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the benchmark; exit code 0 whatever the figures are."""
    import diffusers

    import fastsample.integrations.diffusers as ours

    options = parse(arguments)
    device = "cuda" if options.gpu else "cpu"
    torch.set_num_threads(options.threads)
    facts = machine(device)
    timestamp, started = now(), time.perf_counter()
    records: list[Record] = []
    promised: list[dict[str, Any]] = []
    print(f"{facts['cpu']}, {options.threads} threads, torch {facts['torch']}, load {facts['load_average_at_start']}")
    print(
        f"{'us per network call':24} {'shape':>16} {'stock':>9} {'ours':>9} {'counter':>9}   stock/ours  stock/counter"
    )
    for case in CASES:
        if options.names and case.name not in options.names:
            continue
        if not hasattr(ours, case.scheduler):
            print(f"{case.name:24} not there")
            continue
        for place, shape in enumerate(options.shapes):
            times = _times(
                case, shape, device, getattr(diffusers, case.scheduler), getattr(ours, case.scheduler), options
            )
            records += _records(case, shape, times, device, timestamp, facts)
            promised += _verdict(case, place, shape, times)
            _tell(case, shape, times)
        if options.errors and not options.gpu:
            for name, module in ((STOCK, diffusers), (OURS, ours)):
                value = error(getattr(module, case.scheduler), case, SHAPES[1], torch.bfloat16)
                print(f"{'':24} {name}: bfloat16 error of a step {value:.2f} roundings")
                records.append(
                    _record(
                        case, SHAPES[1], name, "bfloat16_error", "roundings", (value,) * 3, device, timestamp, facts
                    )
                )
        facts["seconds"] = round(time.perf_counter() - started, 1)
        write_csv(options.out.with_suffix(".csv"), records)
        content = {"timestamp": timestamp, **facts, "must_reach": promised}
        options.out.with_suffix(".json").write_text(json.dumps(content, indent=1) + "\n")
    print("\nMust reach:")
    for item in promised:
        print(f"  {item['verdict']:12} {item['what']}: {item['figure']} (wanted {item['wanted']}x)")
    plot(records, options.out.with_suffix(".png"))
    return 0


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


def _verdict(case: Case, place: int, shape: Sequence[int], times: dict[str, Times]) -> list[dict[str, Any]]:
    if case.wanted is None or tuple(shape) != SHAPES[place]:
        return []
    found = []
    for name in (OURS, COUNTER):
        if name in times:
            middle, low, high = ratio(times[STOCK], times[name])
            verdict = "reached" if middle >= case.wanted[place] else "NOT reached"
            what = f"{case.name} {'x'.join(map(str, shape))} {name}"
            figure = f"{middle:.1f}x (20-80 %: {low:.1f}-{high:.1f})"
            found.append({"what": what, "figure": figure, "wanted": case.wanted[place], "verdict": verdict})
    return found


def _record(
    case: Case, shape: Sequence[int], provider: str, metric: str, unit: str, values: tuple[float, float, float],
    device: str, timestamp: str, facts: dict[str, Any],
) -> Record:  # fmt: skip
    config = {"scheduler": case.scheduler, "config": case.config, "shape": list(shape), "threads": facts["threads"]}
    numel = torch.Size(shape).numel()
    return Record(
        f"scheduler {case.name}", provider, "step", metric, unit, "numel", "elements of the state", numel, *values,
        json.dumps(config), device_name(device), timestamp, facts["fastsample"],
    )  # fmt: skip


def _records(
    case: Case, shape: Sequence[int], times: dict[str, Times], device: str, timestamp: str, facts: dict[str, Any]
) -> list[Record]:
    found = []
    for name, of in times.items():
        middle, low, high = (1e3 * q / case.calls for q in of.quantiles())
        found.append(_record(case, shape, name, "time", "ms", (middle, low, high), device, timestamp, facts))
        if name != STOCK:
            values = ratio(times[STOCK], of)
            found.append(_record(case, shape, name, "speedup_over_diffusers", "x", values, device, timestamp, facts))
    return found


def plot(records: Sequence[Record], path: Path) -> None:
    """Speed-up over stock per scheduler, one group of bars per shape."""
    try:
        import matplotlib
    except ImportError:
        print("no plot: matplotlib is not installed")
        return
    matplotlib.use("Agg")
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


def parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="smallest shape only, short")
    parser.add_argument("--gpu", action="store_true")
    parser.add_argument("--names", default="", help="cases, separated by commas")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--min-time", type=float, default=0.5, help="seconds per program and shape")
    parser.add_argument("--errors", action=argparse.BooleanOptionalAction, default=True)
    parser.add_argument("--out", type=Path, default=None)
    options = parser.parse_args(arguments)
    options.names = [name for name in options.names.split(",") if name]
    unknown = set(options.names) - {case.name for case in CASES}
    if unknown:
        parser.error(f"--names: got {', '.join(sorted(unknown))}, allowed are {', '.join(c.name for c in CASES)}")
    options.shapes = SHAPES[:1] if options.quick else SHAPES
    if options.quick:
        options.min_time = min(options.min_time, 0.05)
    if options.out is None:
        folder = Path(__file__).parent / "results"
        options.out = folder / f"schedulers-{'cuda' if options.gpu else 'cpu'}"
    options.out.parent.mkdir(parents=True, exist_ok=True)
    return options


if __name__ == "__main__":
    sys.exit(main())
