"""Normals from a generator of torch's CPU stream: ours, with torch's bits, against ``torch.randn``; and other streams.

    python -m benchmarks.normals [--quick] [--out FOLDER]

``fastsample-counter`` makes addressed noise (``noise.normal_like``) and ``numpy`` its own stream (PCG64, ziggurat, on
one thread, float32 only): other numbers, for comparison.  Memory is allocated beforehand for all.
"""

from __future__ import annotations

import math
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

if __package__ in (None, ""):  # run as a file
    sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import numpy as np
import torch

from benchmarks import member, plots
from benchmarks.harness import Timed, measure, ratio
from fastsample import noise, row, torch_stream
from fastsample.ops import update_

SHAPES = ((1, 4, 8, 8), (1, 4, 64, 64), (1, 4, 128, 128), (16, 4, 128, 128), (64, 4, 128, 128))
DTYPES = (torch.float32, torch.bfloat16)
OURS, PEER, COUNTER, NUMPY = "fastsample", "torch.randn", "fastsample-counter", "numpy"
plot = plots.ratios


def build(shape: Sequence[int], dtype: torch.dtype) -> dict[str, Callable[[], Any]]:
    """Programs that fill memory of this shape and dtype; ours was seen to give torch's bits."""
    out = torch.empty(tuple(shape), dtype=dtype)
    mine, theirs = torch.Generator().manual_seed(1), torch.Generator().manual_seed(1)
    wanted = torch.randn(out.shape, generator=theirs, dtype=dtype)
    if not torch.equal(torch_stream.randn(out.shape, generator=mine, dtype=dtype), wanted):
        raise RuntimeError("normals of torch_stream are not those of torch")
    table = torch.from_numpy(row.make_row(outputs=[{"xi0": 1.0}], draws=[1])[None])
    step, keys = torch.zeros((), dtype=torch.int64), noise.keys(1, shape[0])
    programs: dict[str, Callable[[], Any]] = {
        OURS: lambda: torch_stream.randn(out.shape, generator=mine, dtype=dtype, out=out),
        PEER: lambda: torch.randn(out.shape, generator=theirs, dtype=dtype, out=out),
        COUNTER: lambda: update_([out], [], table, step, keys),
    }
    if dtype is torch.float32:
        stream, memory = np.random.default_rng(1), out.numpy()
        programs[NUMPY] = lambda: stream.standard_normal(dtype=np.float32, out=memory)
    return programs


def main(argv: Sequence[str] | None = None) -> int:
    """Run the benchmark; exit code 0 whatever the figures are."""
    options = member.parse(member.parser("normals", __doc__, "two shapes, float32"), argv, 0.5, 0.05, 0.05)
    run = member.Run("normals", options)
    for dtype in DTYPES[:1] if options.quick else DTYPES:
        for shape in SHAPES[1:3] if options.quick else SHAPES:
            name, numel = "x".join(map(str, shape)), math.prod(shape)
            with torch.inference_mode():
                programs = build(shape, dtype)
                timed = {name: Timed((program,), torch.inference_mode) for name, program in programs.items()}
                times = measure(timed, "cpu", options.min_time, min_rounds=5)
            print(f"\n{name} {str(dtype)[6:]}")
            for program, of in times.items():
                middle, low, high = of.quantiles()
                lines: list[member.Figure] = [("time", "us", (1e6 * middle, 1e6 * low, 1e6 * high))]
                lines.append(("time_per_element", "ns", tuple(1e9 * q / numel for q in (middle, low, high))))
                if program != OURS:
                    lines.append((f"time_over_{OURS}", "x", ratio(of, times[OURS])))
                print(f"  {program:22}" + "".join(f"  {what} {v[0]:.4g} {unit}" for what, unit, v in lines), flush=True)
                run.add(program, "draw", {"shape": list(shape), "dtype": str(dtype)[6:]}, lines)
            run.save()
    return run.end(plot)


if __name__ == "__main__":
    sys.exit(main())
