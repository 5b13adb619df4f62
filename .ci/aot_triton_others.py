"""The Triton kernels beside update's, ahead of time: ``brownian``, ``threshold``, ``rescale``, ``metropolis``."""

from __future__ import annotations

import itertools

import torch
from triton_code import CAPABILITIES, LARGE, SHORT, SMALL, compiled, disassemble

from fastsample.triton import brownian as brownian_backend
from fastsample.triton import metropolis as metropolis_backend
from fastsample.triton import rescale as rescale_backend
from fastsample.triton import threshold as threshold_backend
from fastsample.triton.brownian_kernel import brownian_kernel
from fastsample.triton.reduce_kernel import threshold_count_kernel


def brownian_faults(quick: bool) -> list[str]:
    """Compile the kernel of ``brownian`` for a large dense output: no spills, stores of at least 8 bytes."""
    faults = []
    for cc, dtype in itertools.product((90,) if quick else CAPABILITIES, SHORT):

        def tensor(dtype: torch.dtype, *shape: int) -> torch.Tensor:
            return torch.empty(shape, dtype=dtype, device="meta")

        out, step = tensor(dtype, *LARGE), tensor(torch.int64)
        arguments, _, warps = brownian_backend.describe(out, step)
        table = (tensor(torch.uint64, LARGE[0], 2), tensor(torch.int64, 20, 46), tensor(torch.float64, 20, 46))
        named = dict(zip(brownian_kernel.arg_names, (out, *table, step, 20, 46, *arguments), strict=True))
        code, registers, stack, local = disassemble(compiled(brownian_kernel, named, cc, warps))
        stores = [i.op for i in code if i.op.startswith("STG")]
        name = f"sm_{cc:<3} {SHORT[dtype]} brownian"
        print(f"{name:<46} {registers:>9}")
        if stack > (48 if dtype == torch.float64 else 0) or local:
            faults.append(f"{name}: spills (stack {stack}, local {local})")
        if not stores or not all(".64" in op or ".128" in op for op in stores):
            faults.append(f"{name}: stores {stores}")
    return faults


def reduce_faults(quick: bool) -> list[str]:
    """Compile the kernels of ``threshold`` and ``rescale``: no spills, and wide loads of a large dense state."""
    faults = []
    dtypes = (torch.float32, torch.float64) if quick else tuple(SHORT)
    for cc, dtype in itertools.product((90,) if quick else CAPABILITIES, dtypes):

        def tensor(dtype: torch.dtype, *shape: int) -> torch.Tensor:
            return torch.empty(shape, dtype=dtype, device="meta")

        def rows(n: int) -> torch.Tensor:
            return tensor(torch.float64, n, 48)

        few, many = [tensor(dtype, *SMALL)] * 2, [tensor(dtype, *LARGE)] * 2
        step, counts, state = tensor(torch.int64, 4), tensor(torch.int32, 8, 1 << 16), tensor(torch.int64, 8, 4)
        launches = [threshold_backend.small(rows(4), few, rows(3), step, 0.995, 1.0, 2.0)]
        for level in range(4 if dtype == torch.float64 else 2):
            made = threshold_backend.passes(
                rows(8), counts, state, many, rows(3), tensor(torch.int64), 0.995, 1.0, 2.0, level
            )
            launches += [(*launch, 4) for launch in made]
        made = rescale_backend.describe(rows(8), many, rows(3), tensor(torch.int64), 0, 1)
        launches += [(*launch, 4) for launch in made]
        for kernel, arguments, _, warps in launches:
            named = dict(zip(kernel.arg_names, arguments, strict=True))
            code, registers, stack, local = disassemble(compiled(kernel, named, cc, warps))
            name = f"sm_{cc:<3} {SHORT[dtype]} {kernel.__name__}"
            print(f"{name:<46} {registers:>9}")
            if stack or local:
                faults.append(f"{name}: spills (stack {stack}, local {local})")
            loads = [i.op for i in code if i.op.startswith("LDG")]
            if kernel is threshold_count_kernel and sum(".128" in op or ".64" in op for op in loads) < len(many):
                faults.append(f"{name}: loads {loads}")
    return faults


def metropolis_faults(quick: bool) -> list[str]:
    """Compile the kernels of ``metropolis`` with all terms and outputs, dense and strided: no spills, wide accesses."""
    faults = []
    dtypes = (torch.float32, torch.bfloat16) if quick else tuple(SHORT)
    for cc, dtype, strided in itertools.product((90,) if quick else CAPABILITIES, dtypes, (False, True)):
        batch, terms, outs = LARGE[0], 4, 3

        def tensor(dtype: torch.dtype, *shape: int) -> torch.Tensor:
            return torch.empty(shape, dtype=dtype, device="meta")

        def states(n: int, dtype: torch.dtype = dtype, strided: bool = strided) -> list[torch.Tensor]:
            return [tensor(dtype, *LARGE)[..., :: 2 if strided else 1] for _ in range(n)]

        (state, cache, proposal, fresh), others, to = states(4), states(terms), states(outs)
        step, key = tensor(torch.int64, batch), tensor(torch.uint64, batch, 2)
        launches = metropolis_backend.describe(state, cache, to, proposal, fresh, others, step, key, [])
        work, chain, table = (tensor(torch.float64, n, m) for n, m in ((batch, 1538), (batch, 5), (20, 96)))
        numbers, last = (work, chain, table, step, key), (20, 512)
        for launch, pointers in (
            (launches[0], ((state, proposal, cache, fresh, *others), *numbers, None)),
            (launches[1], ((state, cache), (proposal, fresh), tuple(to), tuple(others), (), *numbers)),
        ):
            kernel = launch.kernel
            named = dict(zip(kernel.arg_names, (*pointers, *last, *launch.static), strict=True))
            code, registers, stack, local = disassemble(compiled(kernel, named, cc, launch.warps))
            name = f"sm_{cc:<3} {SHORT[dtype]} {kernel.__name__}{' strided' if strided else ''}"
            print(f"{name:<46} {registers:>9}")
            # The library's float64 sin and cos, as in examine.
            if stack > (48 if dtype == torch.float64 and launch is launches[1] else 0) or local:
                faults.append(f"{name}: spills (stack {stack}, local {local})")
            wide = sum(".128" in i.op or ".256" in i.op for i in code if i.op.startswith(("LDG", "STG")))
            if launch is launches[1] and not strided and wide < 4 + terms + 2 + outs:
                faults.append(f"{name}: {wide} wide accesses")
    return faults


CHECKS = (metropolis_faults, brownian_faults, reduce_faults)
