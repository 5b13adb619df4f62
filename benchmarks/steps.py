"""One step of DPM-Solver++ 2M, deterministic or SDE, as several programs do it: the same job for all.

The job: state x, network output e (v-prediction), last prediction D_-1 -> x', D, where D = alpha x - sigma e and
x' = a x + b_0 D + b_1 D_-1 + c xi (Lu et al. 2022, arXiv 2211.01095, midpoint form).  v-prediction, because a loop
that feeds x' back and keeps e fixed then stays bounded, however often it is timed; eps takes as many operations.

Every program is a loop body: ``advance`` replaces the state and the history by the new ones, as a sampler does.
"""

from __future__ import annotations

import contextlib
import math
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor

from fastsample import native, noise, row
from fastsample.ops import BackendError, update_, use_backend

STEPS, INDEX = 20, 10  # the middle step of a usual run: both neighbours exist, no lowering of the order
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}
OURS = ("native", "triton", "reference")
CHECKED = "native-checked"  # the public entry with its argument checks; only told apart where the host's time counts
COMPILED = ("compile", "compile-inplace", "compile-drawn")
PEERS = ("eager", *COMPILED, "k-diffusion", "diffusers")
YARDSTICKS = ("copy", "add")
SMALL = 2**12  # up to here the time of a step is host time


class UnavailableError(RuntimeError):
    """A program that cannot run here; the message says why."""


def rho_path(steps: int = STEPS) -> np.ndarray:
    """sigma/alpha ``(steps + 1,)`` float64 of the usual discrete VP path: linear betas, 1000 times, last 0."""
    kept = np.cumprod(1.0 - np.linspace(1e-4, 0.02, 1000))
    times = np.linspace(0, 999, steps + 1).round()[::-1][:-1].astype(int)
    return np.append(np.sqrt((1.0 - kept[times]) / kept[times]), 0.0)


@dataclass(frozen=True)
class Coefficients:
    """D = alpha x - sigma e; x' = a x + b0 D + b1 D_-1 + c xi."""

    alpha: float
    sigma: float
    a: float
    b0: float
    b1: float
    c: float


def coefficients(rho_last: float, rho: float, rho_next: float, stochastic: bool) -> Coefficients:
    """The midpoint row for three levels of a VP path; ``stochastic`` is the reverse SDE (tau = 1)."""
    alpha, alpha_next = 1.0 / math.hypot(1.0, rho), 1.0 / math.hypot(1.0, rho_next)
    h, h_last = math.log(rho / rho_next), math.log(rho_last / rho)
    tau2 = 1.0 if stochastic else 0.0
    phi = -math.expm1(-(1.0 + tau2) * h)
    beta1 = -0.5 * phi * h / h_last
    return Coefficients(
        alpha=alpha,
        sigma=rho * alpha,
        a=rho_next * alpha_next / (rho * alpha) * math.exp(-tau2 * h),
        b0=alpha_next * (phi - beta1),
        b1=alpha_next * beta1,
        c=rho_next * alpha_next * math.sqrt(-math.expm1(-2.0 * tau2 * h)),
    )


@dataclass(frozen=True)
class Job:
    """Shape ``(B, ...)``, dtype and device of all tensors, and whether noise is added."""

    shape: tuple[int, ...]
    dtype: torch.dtype = torch.float32
    stochastic: bool = False
    device: str = "cpu"

    @property
    def numel(self) -> int:
        return math.prod(self.shape)

    @property
    def state_bytes(self) -> int:
        return self.numel * self.dtype.itemsize

    @property
    def declared_bytes(self) -> int:
        """What the step cannot avoid: read x, e, D_-1; write x', D."""
        return 5 * self.state_bytes

    @property
    def coefficients(self) -> Coefficients:
        last, here, following = map(float, rho_path()[INDEX - 1 : INDEX + 2])
        return coefficients(last, here, following, self.stochastic)

    def inputs(self, seed: int = 0) -> tuple[Tensor, Tensor, Tensor]:
        """x, e, D_-1: standard normals of a fixed seed."""
        g = torch.Generator(self.device).manual_seed(seed)
        x, e, d = (torch.randn(self.shape, generator=g, device=self.device).to(self.dtype) for _ in range(3))
        return x, e, d


@dataclass
class Program:
    """A loop body with its state.  ``active`` is entered around every timed block, outside of the timed part."""

    name: str
    advance: Callable[[], None]
    state: Callable[[], tuple[Tensor, Tensor]]  # (x, D), both in the coordinates of the job
    active: Callable[[], contextlib.AbstractContextManager[None]] = field(default=contextlib.nullcontext)


def ours(name: str, job: Job, xi: Tensor | None = None, seed: int = 0) -> Program:
    """The fused update in place, called as the sampling loop calls it; ``CHECKED``: by ``fastsample.update_``."""
    backend = "native" if name == CHECKED else name
    device = torch.device(job.device).type
    if backend == "triton" and device == "cpu":
        raise UnavailableError("triton needs a GPU")
    if backend == "native" and (not native.load_for(device) or native.loaded_from(device) == "triton"):
        raise UnavailableError(native.why_not(device) or f"no compiled library for {device}")

    def active() -> contextlib.AbstractContextManager[None]:
        return use_backend(backend)

    try:
        with active():
            pass
    except BackendError as error:
        raise UnavailableError(str(error)) from error
    k = job.coefficients
    x, e, d = job.inputs(seed)
    new: dict[int | str, float] = {0: k.a, "D": k.b0, 2: k.b1}
    made = row.make_row(
        D={0: k.alpha, 1: -k.sigma},
        outputs=[{**new, "xi0": k.c} if job.stochastic else new, {"D": 1.0}],
        draws=[1] if job.stochastic else [],
    )
    table = torch.from_numpy(made[None]).to(job.device)
    step = torch.zeros((), dtype=torch.int64, device=job.device)
    key = noise.keys(seed, job.shape[0], job.device) if job.stochastic and xi is None else None
    given = [] if xi is None else [xi]
    outs, terms = [x, d], [x, e, d]
    apply: Callable[..., Any] = update_ if name == CHECKED else torch.ops.fastsample.update_.default

    def advance() -> None:
        apply(outs, terms, table, step, key, given)

    return Program(name, advance, lambda: (x, d), active)


def eager(job: Job, xi: Tensor | None = None, seed: int = 0) -> Program:
    """PyTorch by hand, coefficients made before the loop as Python floats."""
    k = job.coefficients
    x, e, d = job.inputs(seed)

    def advance() -> None:
        nonlocal x, d
        new = k.alpha * x - k.sigma * e
        x = k.a * x + k.b0 * new + k.b1 * d
        if job.stochastic:
            x = x + k.c * (torch.randn_like(x) if xi is None else xi)
        d = new

    return Program("eager", advance, lambda: (x, d))


def _composed(
    x: Tensor, e: Tensor, d: Tensor, table: Tensor, step: Tensor, xi: Tensor | None, stochastic: bool
) -> tuple[Tensor, Tensor]:
    alpha, sigma, a, b0, b1, c = table.index_select(0, step)[0].unbind()
    new = alpha * x - sigma * e
    x = a * x + b0 * new + b1 * d
    if stochastic:
        x = x + c * (torch.randn_like(x) if xi is None else xi)
    return x, new


def _composed_(
    x: Tensor, e: Tensor, d: Tensor, table: Tensor, step: Tensor, xi: Tensor | None, stochastic: bool
) -> None:
    new_x, new = _composed(x, e, d, table, step, xi, stochastic)
    x.copy_(new_x)
    d.copy_(new)


def compiler(in_place: bool) -> Callable[..., Any]:
    """``torch.compile`` at its best: coefficients and step as tensors (no recompilation), one graph, fixed shapes."""
    return torch.compile(_composed_ if in_place else _composed, fullgraph=True, dynamic=False)


def compiled(
    name: str, job: Job, xi: Tensor | None = None, seed: int = 0, function: Callable[..., Any] | None = None
) -> Program:
    """The same composition compiled; ``function`` is the result of ``compiler`` to be shared.

    ``compile`` returns new tensors, ``compile-inplace`` writes into the state, and ``compile-drawn`` does so with noise
    drawn outside of the graph into a tensor that is kept: on a CPU the noise of compiled code is the slower one.
    """
    k = job.coefficients
    x, e, d = job.inputs(seed)
    numbers = torch.tensor([[k.alpha, k.sigma, k.a, k.b0, k.b1, k.c]], dtype=torch.float32, device=job.device)
    step = torch.zeros(1, dtype=torch.int64, device=job.device)
    run = function or compiler(name != "compile")

    def functional() -> None:
        nonlocal x, d
        x, d = run(x, e, d, numbers, step, xi, job.stochastic)

    def in_place() -> None:
        run(x, e, d, numbers, step, xi, job.stochastic)

    drawn = torch.empty_like(x) if name == "compile-drawn" and xi is None else xi

    def draw_then_in_place() -> None:
        if xi is None and drawn is not None:
            drawn.normal_()
        run(x, e, d, numbers, step, drawn, job.stochastic)

    advance = {"compile": functional, "compile-inplace": in_place, "compile-drawn": draw_then_in_place}[name]
    return Program(name, advance, lambda: (x, d))


def k_diffusion(job: Job, xi: Tensor | None = None, seed: int = 0) -> Program:
    """The arithmetic of k-diffusion's 2M and 2M-SDE samplers: state x/alpha, coefficients of tensor operations.

    Noise is ``randn_like``, not its Brownian tree, which costs far more.
    """
    levels = torch.from_numpy(rho_path()).to(torch.float32).to(job.device)
    alpha = job.coefficients.alpha
    next_alpha = 1.0 / math.hypot(1.0, float(rho_path()[INDEX + 1]))
    x, e, d = job.inputs(seed)
    y = (x.float() / alpha).to(job.dtype)
    del x

    def advance() -> None:
        nonlocal y, d
        i = INDEX
        skip = 1.0 / (levels[i] ** 2 + 1.0)
        out = -levels[i] / (levels[i] ** 2 + 1.0) ** 0.5
        new = y * skip + e * out
        if levels[i + 1] == 0:  # the host read is part of the original
            y, d = new, new
            return
        time, time_next, time_last = -levels[i].log(), -levels[i + 1].log(), -levels[i - 1].log()
        h, h_last = time_next - time, time - time_last
        r = h_last / h
        if job.stochastic:
            weight = (-2.0 * h).expm1().neg()
            y = (levels[i + 1] / levels[i] * (-h).exp()) * y + weight * new + (0.5 * weight / r) * (new - d)
            y = y + (torch.randn_like(y) if xi is None else xi) * (levels[i + 1] * weight.sqrt())
        else:
            mixed = (1.0 + 1.0 / (2.0 * r)) * new - (1.0 / (2.0 * r)) * d
            y = (levels[i + 1] / levels[i]) * y - (-h).expm1() * mixed
        d = new

    # after one call the state belongs to the next level: back to the coordinates of the job
    return Program("k-diffusion", advance, lambda: ((y.float() * next_alpha).to(job.dtype), d))


def diffusers(job: Job, xi: Tensor | None = None, seed: int = 0) -> Program:
    """``DPMSolverMultistepScheduler.step`` of the installed diffusers (order 2, midpoint), at one step of a run."""
    try:
        from diffusers import DPMSolverMultistepScheduler
    except ImportError as error:
        raise UnavailableError(f"diffusers cannot be imported ({error})") from error
    scheduler: Any = DPMSolverMultistepScheduler(  # type: ignore[no-untyped-call]
        algorithm_type="sde-dpmsolver++" if job.stochastic else "dpmsolver++",
        solver_order=2,
        solver_type="midpoint",
        prediction_type="v_prediction",
    )
    scheduler.set_timesteps(STEPS, device=job.device)
    own = rho_path()
    if not np.allclose(
        scheduler.sigmas.cpu().double().numpy(), own, rtol=1e-4, atol=0
    ):  # its float32 product of 1000 factors
        raise RuntimeError("diffusers: its levels are not those of the job; this benchmark needs a change")
    scheduler.sigmas = torch.from_numpy(own).to(torch.float32)
    scheduler.set_begin_index(0)
    x, e, d = job.inputs(seed)
    scheduler.model_outputs = [None, d]
    scheduler.lower_order_nums = 2
    time = scheduler.timesteps[INDEX]
    del d

    def advance() -> None:
        nonlocal x
        scheduler._step_index = INDEX  # the only thing that is not a normal run: the same step again
        x = scheduler.step(e, time, x, variance_noise=xi, return_dict=False)[0]

    return Program("diffusers", advance, lambda: (x, scheduler.model_outputs[-1]))


def yardstick(name: str, job: Job, seed: int = 0) -> Program:
    """Bandwidth to compare with: ``copy_`` (1 read, 1 write), or ``add_`` in place (2 reads, 1 write).

    A plain store to memory outside the cache reads it first, so a copy moves three streams on a CPU; ``add_``, as our
    step, moves no more than it declares.
    """
    x, _, d = job.inputs(seed)

    def copy() -> None:
        d.copy_(x)

    def add() -> None:
        d.add_(x, alpha=1e-9)  # stays finite for ever

    return Program(name, copy if name == "copy" else add, lambda: (x, d))


def applies(name: str, job: Job) -> bool:
    """Whether a program says something new here: noise drawn outside needs noise, checks need a small state."""
    if name == CHECKED:
        return job.numel <= SMALL
    return job.stochastic or name != "compile-drawn"


def build(name: str, job: Job, copies: int = 1, xi: Tensor | None = None) -> list[Program]:
    """``copies`` of a program, each on its own memory.  Raises ``UnavailableError`` if it cannot run here."""
    seeds = range(copies)
    if name in (*OURS, CHECKED):
        return [ours(name, job, xi, seed) for seed in seeds]
    if name in COMPILED:
        function = compiler(name != "compile")
        return [compiled(name, job, xi, seed, function) for seed in seeds]
    if name in YARDSTICKS:
        return [yardstick(name, job, seed) for seed in seeds]
    make = {"eager": eager, "k-diffusion": k_diffusion, "diffusers": diffusers}[name]
    return [make(job, xi, seed) for seed in seeds]
