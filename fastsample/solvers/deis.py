"""Adams-Bashforth steps on eps_hat: DEIS in t, in sigma/alpha (LMS) and in log-SNR, and iPNDM with fixed weights.

In the state x/alpha the probability flow is d(x/alpha)/d rho = eps_hat, rho = sigma/alpha.  eps_hat is replaced by the
polynomial through its last values in a coordinate y, and integrated:  a = alpha'/alpha, b_j = alpha' int l_j(y) d rho.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from itertools import pairwise

import numpy as np

from fastsample.path import Level, Path
from fastsample.schedules import Schedule
from fastsample.solvers.calculus import solve_nodes
from fastsample.solvers.first_order import identity, same, transfer
from fastsample.solvers.predictor_corrector import check_count, check_forward, past
from fastsample.solvers.registry import Solver, add, check_choice
from fastsample.solvers.stages import Between
from fastsample.solvers.step import Step
from fastsample.solvers.unipc import unipc

POINTS = 64  # of the Gauss-Legendre quadrature over one step
FIXED = ((1.0,), (3 / 2, -1 / 2), (23 / 12, -16 / 12, 5 / 12), (55 / 24, -59 / 24, 37 / 24, -9 / 24))

Weights = Callable[[int, list[int]], list[float]]


def adams_bashforth(path: Path, order: int, weights: Weights, x0_at_zero: bool = False) -> list[Step]:
    """Steps ``a = alpha'/alpha, b_j = weights(i, past)`` with at most ``order`` values of eps_hat; ``past``: levels of
    the earlier ones.  From alpha = 0, where eps_hat says nothing of the data, the step is of first order on x0_hat."""
    levels = check_forward(path)
    steps = []
    for i, (start, end) in enumerate(pairwise(levels)):
        if same(start, end):
            steps.append(identity(i, start, "eps"))
            continue
        if start.alpha == 0.0 or (x0_at_zero and end.sigma == 0.0):
            steps.append(transfer(i, start, end))
            continue
        before = past(levels, i, order - 1)
        b = [0.0] * (1 + max((i - k for k in before), default=0))
        for k, weight in zip((i, *before), weights(i, before), strict=True):
            b[i - k] = weight
        steps.append(Step(i, start, end.alpha / start.alpha, tuple(b), form="eps"))
    return steps


def lms(path: Path, *, order: int) -> list[Step]:
    """rhoAB-DEIS and the LMS of k-diffusion: eps_hat is a polynomial in sigma/alpha, integrated exactly.

    Args:
        order: number of values, 1 to 4, rising over the first steps and kept to the end (rhoAB-k has k + 1 values).
    """
    check_count("order", order, 1, 4)
    levels = path.levels()

    def weights(i: int, past: list[int]) -> list[float]:
        start, end = levels[i], levels[i + 1]
        gap = (end.alpha * start.sigma - start.alpha * end.sigma) / (start.alpha * end.alpha)  # rho - rho'
        nodes = [(start.rho - levels[k].rho) / gap for k in past]
        return [-end.alpha * gap * beta for beta in solve_nodes(nodes, [1.0 / (k + 1) for k in range(1 + len(past))])]

    return adams_bashforth(path, order, weights)


def tab(path: Path, *, order: int, schedule: str | Schedule | None) -> list[Step]:
    """tAB-DEIS: eps_hat is a polynomial in t, integrated by a Gauss-Legendre rule of 64 points per step.

    A step to sigma = 0 returns x0_hat: t(rho) has no limit there that the path tells.

    Args:
        order: number of values, 1 to 4, rising over the first steps and kept to the end (tAB-k has k + 1 values).
        schedule: None, or the name of the schedule that the path was made of: t inside the steps (``stages.Between``).
    """
    check_count("order", order, 1, 4)
    check_forward(path)
    between, levels = Between(path, schedule), path.levels()
    points, rule = np.polynomial.legendre.leggauss(POINTS)

    def weights(i: int, past: list[int]) -> list[float]:
        start, end = levels[i], levels[i + 1]
        h, gap = end.lam - start.lam, end.t - start.t
        if gap == 0.0 or any(levels[k].t == start.t for k in past):
            raise ValueError(f"path: 'deis-tab' needs times that differ where levels do, got t = {start.t} twice")
        moments = np.zeros(1 + len(past))
        for point, share in zip(points, rule, strict=True):
            lam = start.lam + 0.5 * h * (point + 1.0)
            rate = -0.5 * h * share * math.exp(-lam)  # d rho
            moments += rate * ((between.t(i, lam) - start.t) / gap) ** np.arange(len(moments))
        nodes = [(levels[k].t - start.t) / gap for k in past]
        return [end.alpha * beta for beta in solve_nodes(nodes, moments.tolist())]

    return adams_bashforth(path, order, weights, x0_at_zero=True)


def ipndm(path: Path, *, order: int, from_noise: str) -> list[Step]:
    """iPNDM: the DDIM step on a mix of the last eps_hat with the weights of equal steps.

    Args:
        order: number of values, 1 to 4, rising over the first steps.
        from_noise: a step from alpha = 0: "exact", or "diffusers", whose program takes x0_hat for 0 there and keeps
            that eps_hat for the next steps.
    """
    check_count("order", order, 1, 4)
    check_choice("from_noise", from_noise, ("exact", "diffusers"))
    return fixed_weights(path, order, from_noise == "diffusers")


def fixed_weights(path: Path, order: int, noise_as_diffusers: bool = False) -> list[Step]:
    """The rows of iPNDM; the orders rise again after a repeated level."""
    steps = []
    started = 0  # calls whose eps_hat says something of the data
    for i, (start, end) in enumerate(pairwise(check_forward(path))):
        if same(start, end):
            steps.append(identity(i, start, "eps"))
            started = 0  # the weights are those of equal steps
            continue
        if start.alpha == 0.0 and not noise_as_diffusers:
            steps.append(transfer(i, start, end))
            continue
        started += 1
        a, g = ddim(start, end)
        b = tuple(g * w for w in FIXED[min(started, order) - 1])
        steps.append(Step(i, start, a, b, form="eps"))
    return steps


def ddim(start: Level, end: Level) -> tuple[float, float]:
    """``x' = a x + g eps_hat``; from alpha = 0: x' = sigma' eps_hat."""
    if start.alpha == 0.0:
        return 0.0, end.sigma
    a = end.alpha / start.alpha
    return a, end.sigma - a * start.sigma


def deis(path: Path, *, order: int, lower_order_final: bool | int, corrector: str) -> list[Step]:
    """DEIS of diffusers ("logrho"): a polynomial in log-SNR, exact integrals; a step to sigma = 0 is of first order.

    Args:
        order: number of values, 1 to 4.
        lower_order_final: order at most N - i in runs of fewer steps than this number; True always, False or 0 never.
        corrector: "none", or "first": correct the first step alone, at no cost.  It is of first order otherwise and
            limits the run to order 2.
    """
    check_choice("corrector", corrector, ("none", "first"))
    if not isinstance(lower_order_final, (bool, int)) or lower_order_final < 0:
        raise ValueError(f"lower_order_final: got {lower_order_final!r}, allowed are True, False or a number of steps")
    return unipc(
        path,
        order=order,
        variant="exact",
        form="eps",
        corrector=corrector,
        disable_corrector=(),
        lower_order_final=lower_order_final is True or path.steps < int(lower_order_final),
        anchored=False,
    )


PAPER = "Zhang, Chen 2022, arXiv 2204.13902"
add(
    Solver(
        "deis",
        deis,
        "exponential Adams-Bashforth in log-SNR on eps_hat",
        f"{PAPER}; as in diffusers",
        order=2,
        aliases=("deis-logrho",),
        options={"order": 3, "lower_order_final": 15, "corrector": "none"},
    )
)
add(
    Solver(
        "deis-tab",
        tab,
        "exponential Adams-Bashforth on eps_hat, a polynomial in t",
        f"{PAPER}, section 3.3 (tAB)",
        order=2,
        options={"order": 4, "schedule": None},
    )
)
add(
    Solver(
        "lms",
        lms,
        "exponential Adams-Bashforth on eps_hat, a polynomial in sigma/alpha",
        f"{PAPER}, section 3.3 (rhoAB); Crowson 2022 (k-diffusion)",
        order=2,
        aliases=("deis-rhoab", "k-lms"),
        options={"order": 4},
    )
)
add(
    Solver(
        "ipndm",
        ipndm,
        "DDIM on a mix of the last eps_hat with the weights of equal steps",
        f"{PAPER}, section 3.3 (iPNDM); Liu, Ren, Lin, Zhao 2022, arXiv 2202.09778",
        order=2,
        options={"order": 4, "from_noise": "exact"},
    )
)
