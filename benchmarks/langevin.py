"""Inner iterations of Langevin samplers for `benchmarks.metropolis`: ours, by hand in PyTorch, and torch.compile.

``mala``: decide, select and propose of RTK-MALA with the trapezoid estimator (Huang et al. 2024, arXiv 2405.16387):
the target's gradient is ``e / s + (r / v)(r z - x)``.  ``uld``: its underdamped step, two states and two correlated
noises.  The network's output is a fixed tensor: what is timed lies between two calls of the network.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from fastsample import decision, noise, ops, row

R, V, S = 0.8, 0.3, 0.5  # alpha ratio, variance of the kernel, sigma
TAU, GAMMA = 0.02, 2.0
HELD = 65536  # elements of a sample that a cluster of sm_90 holds, five float32 tensors (csrc/cuda/choose_form.h)
ROWS = 16  # steps of a run, used in turn: no uniform and no noise comes twice in a row

OURS, EAGER, COPY = "fastsample", "eager", "copy"
COMPILED = ("compile", "compile-drawn")


@dataclass(frozen=True)
class Job:
    """What is done, on a state ``(batch, numel)`` float32, with a network of another dtype or the same."""

    step: str
    batch: int
    numel: int
    network: torch.dtype = torch.float32
    wanted: float | None = None  # times faster than eager

    @property
    def name(self) -> str:
        half = ", bfloat16 network" if self.network != torch.float32 else ""
        return f"{self.step} {self.batch} x {self.numel}{half}"

    @property
    def bytes(self) -> int:
        """Declared: each tensor once.  Of mala without what an accepted proposal moves (state and cache)."""
        half = 2 if self.network == torch.bfloat16 else 4
        state = self.batch * self.numel
        return state * (3 * 4 + 2 * half + 4 + (half if half == 2 else 0) if self.step == "mala" else 5 * 4 + half)

    def moved(self, device: str) -> int:
        """The same with what is read twice: a GPU's second launch, where a sample does not fit on chip."""
        again = device == "cuda" and self.step == "mala" and self.numel > HELD  # chosen state and output, and x
        half = 2 if self.network == torch.bfloat16 else 4
        return self.bytes + (self.batch * self.numel * (8 + half) if again else 0)

    def tensors(self, device: str = "cpu") -> dict[str, Tensor]:
        generator = torch.Generator().manual_seed(1)

        def normal(dtype: torch.dtype = torch.float32) -> Tensor:
            return torch.randn(self.batch, self.numel, generator=generator).to(device, dtype)

        z, x = normal(), normal()
        z_new = z + math.sqrt(2 * TAU) * normal()
        return {"z": z, "x": x, "z_new": z_new, "e": normal(self.network), "e_new": normal(self.network), "u": normal()}


def mala_table(network_input: bool) -> Tensor:
    """The rows of a run: gradients at both ends, the next proposal, and a copy of it for the network."""
    move = {0: 1 - TAU * R * R / V, 1: -TAU / S, 2: TAU * R / V, "xi0": math.sqrt(2 * TAU)}
    rows = [
        decision.make_decision(
            row.make_row(outputs=[move] * (1 + network_input), draws=[i + 1]),
            G={"state": R * R / V, "cache": 1 / S, "term0": -R / V},
            H={"proposal": R * R / V, "fresh": 1 / S, "term0": -R / V},
            kappa=TAU / 4,
            draw=i,
        )
        for i in range(ROWS)
    ]
    return torch.stack([torch.from_numpy(r) for r in rows])


def uld_weights() -> dict[str, float]:
    """Of section 3 of the paper's underdamped step: exponentials of the friction and the factor of the covariance."""
    gt = GAMMA * TAU
    e, p1 = math.exp(-gt), -math.expm1(-gt) / GAMMA
    p2 = (TAU - p1) / GAMMA
    var_u, cov = -math.expm1(-2 * gt), GAMMA * p1 * p1
    var_z = sum((-1) ** n * (4 - 2.0**n) * gt**n / math.factorial(n) for n in range(3, 20)) / GAMMA**2
    lu = math.sqrt(var_u)
    return {"e": e, "p1": p1, "p2": p2, "lu": lu, "l1": cov / lu, "l2": math.sqrt(var_z - (cov / lu) ** 2)}


def uld_table() -> Tensor:
    """Terms z, u, e, x; outputs z, u."""
    k = uld_weights()
    quadratic, push = R * R / V, R / V
    z = {0: 1 - k["p2"] * quadratic, 1: k["p1"], 2: -k["p2"] / S, 3: k["p2"] * push, "xi0": k["l1"], "xi1": k["l2"]}
    u = {0: -k["p1"] * quadratic, 1: k["e"], 2: -k["p1"] / S, 3: k["p1"] * push, "xi0": k["lu"]}
    rows = [row.make_row(outputs=[z, u], draws=[2 * i, 2 * i + 1]) for i in range(ROWS)]
    return torch.stack([torch.from_numpy(r) for r in rows])


def mala(
    z: Tensor, grad: Tensor, z_new: Tensor, e_new: Tensor, x: Tensor, count: Tensor, uniform: Tensor, xi: Tensor
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """By hand: the gradient at the state is kept from the iteration before.  Next state, gradient, proposal, count."""
    grad_new = e_new.float() / S + (R / V) * (R * z_new - x)
    log_ratio = (TAU / 4) * ((grad - grad_new) * (grad + grad_new)).sum(1)
    accept = torch.log(uniform) < log_ratio
    chosen = accept[:, None]
    z, grad = torch.where(chosen, z_new, z), torch.where(chosen, grad_new, grad)
    return z, grad, z - TAU * grad + math.sqrt(2 * TAU) * xi, count + accept


def uld(z: Tensor, u: Tensor, e: Tensor, x: Tensor, xi: Tensor, xi_z: Tensor) -> tuple[Tensor, Tensor]:
    """By hand: the next state and velocity."""
    k = uld_weights()
    grad = e.float() / S + (R / V) * (R * z - x)
    return (
        z + k["p1"] * u - k["p2"] * grad + k["l1"] * xi + k["l2"] * xi_z,
        k["e"] * u - k["p1"] * grad + k["lu"] * xi,
    )


def build(job: Job, device: str = "cpu", compiled: bool = True) -> dict[str, Callable[[], Any]]:
    """The programs of a job, each on tensors of its own; ``state`` of ours is what the test looks at."""
    make = _mala_programs if job.step == "mala" else _uld_programs
    t = job.tensors(device)
    target = torch.empty_like(t["z"])
    programs: dict[str, Callable[[], Any]] = {COPY: lambda: target.copy_(t["z"])}
    return programs | make(job, device, compiled)


def _steps(device: str) -> itertools.cycle[Tensor]:
    return itertools.cycle([torch.tensor(i, device=device) for i in range(ROWS)])


def _mala_programs(job: Job, device: str, compiled: bool) -> dict[str, Callable[[], Any]]:
    t, steps = job.tensors(device), _steps(device)
    half = job.network != torch.float32
    table, key = mala_table(half).to(device), noise.keys(0, job.batch, device)
    chain = torch.zeros(job.batch, 5, dtype=torch.float64, device=device)
    outs = [t["z_new"], torch.empty_like(t["e"])][: 1 + half]

    def fused() -> None:
        ops.metropolis_(t["z"], t["e"], outs, chain, t["z_new"], t["e_new"], [t["x"]], table, next(steps), key)

    def drawn(step: Callable[..., Any], *draws: Tensor) -> Any:
        made = list(step(*held, *draws))
        held[:3], held[5] = made[:3], made[3]
        return made[2].to(job.network) if half else made[2]

    def inside(*tensors: Tensor) -> Any:
        return mala(*tensors, torch.rand(job.batch, device=device), torch.randn_like(tensors[0]))

    p = job.tensors(device)
    first = p["e"].float() / S + (R / V) * (R * p["z"] - p["x"])
    held = [p["z"], first, p["z_new"], p["e_new"], p["x"], torch.zeros(job.batch, device=device)]
    programs: dict[str, Callable[[], Any]] = {OURS: fused, EAGER: lambda: drawn(inside)}
    if compiled:
        whole, part = (torch.compile(f, fullgraph=True, dynamic=False) for f in (inside, mala))
        programs[COMPILED[0]] = lambda: drawn(whole)
        programs[COMPILED[1]] = lambda: drawn(part, torch.rand(job.batch, device=device), torch.randn_like(held[0]))
    return programs


def _uld_programs(job: Job, device: str, compiled: bool) -> dict[str, Callable[[], Any]]:
    t, p, steps = job.tensors(device), job.tensors(device), _steps(device)
    table, key = uld_table().to(device), noise.keys(0, job.batch, device)

    def fused() -> None:
        ops.update_([t["z"], t["u"]], [t["z"], t["u"], t["e"], t["x"]], table, next(steps), key)

    def drawn(step: Callable[..., Any], *draws: Tensor) -> None:
        p["z"], p["u"] = step(p["z"], p["u"], p["e"], p["x"], *draws)

    def inside(z: Tensor, *rest: Tensor) -> Any:
        return uld(z, *rest, torch.randn_like(z), torch.randn_like(z))

    programs: dict[str, Callable[[], Any]] = {OURS: fused, EAGER: lambda: drawn(inside)}
    if compiled:
        whole, part = (torch.compile(f, fullgraph=True, dynamic=False) for f in (inside, uld))
        programs[COMPILED[0]] = lambda: drawn(whole)
        programs[COMPILED[1]] = lambda: drawn(part, torch.randn_like(p["z"]), torch.randn_like(p["z"]))
    return programs
