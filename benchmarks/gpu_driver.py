"""A small run of every CUDA path of ``update_`` and ``metropolis_``, for compute-sanitizer (benchmarks/gpu.py)."""

from __future__ import annotations

import math

import torch

from fastsample import ops
from tests import chains
from tests.rows import random_call


def to_device(x: torch.Tensor) -> torch.Tensor:
    """A copy with the same strides: all of the memory under a sliced tensor moves with it."""
    return x._base.cuda().as_strided(x.shape, x.stride(), x.storage_offset()) if x._base is not None else x.cuda()


def main() -> None:
    for dtypes in ([torch.float32], [torch.bfloat16], [torch.float16], [torch.float64], None):
        for contiguous in (True, False):
            for seed in range(0, 30, 1 if contiguous else 3):
                if seed % 10 == 6:  # 131,074 elements take long under a checker
                    continue
                call = random_call(seed, dtypes=dtypes, contiguous=contiguous)
                outs = [torch.full(call.shape, math.nan, dtype=t, device="cuda") for t in call.out_dtypes]
                key = None if call.key is None else call.key.cuda()
                terms, given = [to_device(x) for x in call.terms], [to_device(x) for x in call.noise]
                ops.update_(outs, terms, call.table.cuda(), call.step.cuda(), key, given)
    # small samples, a block, clusters, two launches; pieces and element by element
    for dtypes in ([torch.float32], [torch.float64], chains.FLOATS):
        for seed, shape in enumerate([(70, 2), (9, 20), (3, 1026), (2, 12288), (1, 8195), (1, 33_000)]):
            for strided in (False, True) if shape[1] < 10_000 else (False,):
                options = {"dtypes": dtypes, "strided": strided, "per_sample": seed % 2 == 1}
                chains.call(shape, seed, terms=4, radii=True, **options).run(ops.metropolis_, device="cuda")
    torch.cuda.synchronize()
    print("done")


if __name__ == "__main__":
    main()
