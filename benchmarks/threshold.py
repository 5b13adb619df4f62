"""Dynamic thresholding and guidance rescale: a step of DPM-Solver++ 2M with ours, with stock diffusers, with torch.

    python -m benchmarks.threshold [--quick] [--gpu] [--out FOLDER]

Programs: ``fastsample`` (``threshold_`` then ``update_``), ``threshold_`` alone, ``diffusers`` (``step`` of the stock
scheduler with ``thresholding=True``), ``torch.quantile`` (of the magnitudes alone), ``rescale_`` alone,
``torch-rescale`` (the tensor formula of the pipelines, without the guidance), and a copy of the state as the yardstick
of bandwidth.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

if __package__ in (None, ""):  # run as a file
    sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import torch

from benchmarks import member, plots
from benchmarks.harness import Timed, Times, measure, ratio
from benchmarks.schedulers import Case, Loop
from fastsample import ops, row

SHAPES = ((1, 4, 8, 8), (1, 4, 128, 128), (16, 4, 128, 128), (1, 3, 1024, 1024))
WANTED = (5.0, 10.0, 15.0, None)  # the step of the scheduler against the stock one; the drop-in adds its host time
OURS, OP, STOCK, QUANTILE = "fastsample", "threshold_", "diffusers", "torch.quantile"
RESCALE, FORMULA = "rescale_", "torch-rescale"
RATIO, LOW, HIGH = 0.995, 1.0, 3.0
GATHER = 4096  # elements of a sample up to which the CPU reads it once
plot = plots.ratios


def build(shape: Sequence[int], device: str) -> tuple[dict[str, Callable[[], Any]], dict[str, int]]:
    """Programs, and the bytes that ours and the copy move."""
    g = torch.Generator().manual_seed(0)
    x, e, u, history = (torch.randn(shape, generator=g).to(device) for _ in range(4))
    alpha, sigma = 0.6, 0.8
    made = row.make_row(
        D={0: 1 / alpha, 1: -sigma / alpha}, outputs=[{0: 0.7, "D": 0.5, 2: -0.2}, {"D": 1.0}], rescale=(7.5, 0.7)
    )
    table, step = torch.from_numpy(made[None]).to(device), torch.zeros((), dtype=torch.int64, device=device)
    rows = torch.empty(shape[0], row.COLUMNS, dtype=torch.float64, device=device)
    samples, new = torch.arange(shape[0], device=device), torch.empty_like(x)
    terms = [x, e, history]

    def threshold() -> None:
        ops.threshold_(rows, terms, table, step, RATIO, LOW, HIGH)

    def fused() -> None:
        threshold()
        ops.update_([new, history], terms, rows, samples)

    def quantile() -> torch.Tensor:
        return torch.quantile(x.abs().reshape(shape[0], -1), RATIO, dim=1)

    def rescale() -> None:
        ops.rescale_(rows, [x, e], table, step, 0, 1)

    def formula() -> torch.Tensor:
        dims = list(range(1, x.dim()))
        scaled = e * (u.std(dim=dims, keepdim=True) / e.std(dim=dims, keepdim=True))
        return 0.7 * scaled + 0.3 * e

    programs: dict[str, Callable[[], Any]] = {"copy": lambda: new.copy_(x), OURS: fused, OP: threshold}
    if x[0].numel() <= 2**24 - 1:
        programs[QUANTILE] = quantile
    programs |= {RESCALE: rescale, FORMULA: formula}
    try:
        import diffusers
    except ImportError:
        pass
    else:
        case = Case("", "DPMSolverMultistepScheduler", {"thresholding": True, "sample_max_value": HIGH})
        loop = Loop(diffusers.DPMSolverMultistepScheduler, case, shape, torch.float32, device, False)
        programs[STOCK] = loop.advance
    state = 4 * x.numel()
    reads = 2 * (1 if x[0].numel() <= GATHER else 2)
    return programs, {"copy": 2 * state, OP: reads * state, OURS: (reads + 5) * state, RESCALE: 2 * state}


def main(argv: Sequence[str] | None = None) -> int:
    """Run the benchmark; exit code 0 whatever the figures are."""
    options = member.parse(member.parser("threshold", __doc__, "smallest shape only, short"), argv, 0.5, 0.05, 0.2)
    run = member.Run("threshold", options)
    for shape, wanted in zip(SHAPES[:1] if options.quick else SHAPES, WANTED, strict=False):
        with torch.inference_mode():
            programs, moved = build(shape, options.device)
            timed = {name: Timed((program,), torch.inference_mode) for name, program in programs.items()}
            times = measure(timed, options.device, options.min_time, min_rounds=5)
        name = "x".join(map(str, shape))
        print(f"\n{name}")
        for program in times:
            lines = figures(program, times, moved)
            print(f"  {program:16}" + "".join(f"  {what} {v[0]:.4g} {unit}" for what, unit, v in lines), flush=True)
            run.add(program, "step", {"shape": list(shape), "dtype": "float32"}, lines)
        if wanted is not None and STOCK in times:
            what = f"{name}: threshold_ and update_ against the step of diffusers"
            run.promise(what, wanted, ratio(times[STOCK], times[OURS]))
        run.save()
    return run.end(plot)


def figures(
    program: str, times: dict[str, Times], moved: dict[str, int]
) -> list[tuple[str, str, tuple[float, float, float]]]:
    """Metric, unit, and median, 20 % and 80 %."""
    middle, low, high = (1e6 * q for q in times[program].quantiles())
    lines = [("time", "us", (middle, low, high))]
    if program in moved and program != "copy":
        share = [moved[program] / moved["copy"] * r for r in ratio(times["copy"], times[program])]
        lines.append(("fraction_of_copy", "1", (share[0], share[1], share[2])))
    peer = {STOCK: OURS, QUANTILE: OP, FORMULA: RESCALE}.get(program)
    if peer:
        lines.append((f"time_over_{peer}", "x", ratio(times[program], times[peer])))
    return lines


if __name__ == "__main__":
    sys.exit(main())
