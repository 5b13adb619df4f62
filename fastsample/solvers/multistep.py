"""DPM-Solver and DPM-Solver++ multistep, deterministic and stochastic, orders 1 to 3."""

from __future__ import annotations

import math
from itertools import pairwise
from typing import Any

from fastsample.path import SAME_LEVEL, Path, step_size
from fastsample.solvers.calculus import adams
from fastsample.solvers.first_order import identity, same, transfer
from fastsample.solvers.registry import Solver, add, check_choice, check_range
from fastsample.solvers.step import Step

SECOND = {"midpoint": "mid", "heun": "exact", "bh1": "bh1"}
THIRD = {"published": "3m", "exact": "exact", "diffusers": "3m-diffusers"}


def multistep(
    path: Path,
    *,
    form: str,
    order: int,
    lower_order_final: bool | int,
    euler_at_final: bool,
    solver_type: str = "midpoint",
    third: str = "published",
    eta: float = 0.0,
    s_noise: float = 1.0,
) -> list[Step]:
    """Exponential Adams on the last ``order`` values of x0_hat or eps_hat, orders rising at the start.

    Args:
        solver_type: second order: "midpoint", "heun" (exact moments) or "bh1".
        third: third order: "published" (half of the exact second-derivative term, as in every public code), "exact",
            or "diffusers" (stochastic x0 form only: the sign error of that library, to reproduce its numbers).
        lower_order_final: order at most N - i in runs of fewer steps than this number (diffusers 15, the authors'
            code 10); True always, False or 0 never.  A step to sigma = 0 is first order in any case.
        euler_at_final: the last step is first order.
        eta: tau^2, noise level of the SDE; s_noise: factor of the noise.
    """
    check_choice("solver_type", solver_type, tuple(SECOND))
    check_choice("third", third, tuple(THIRD))
    tau2, s_noise = check_range("eta", eta, 0.0), check_range("s_noise", s_noise, 0.0)
    if third == "diffusers" and (form != "x0" or tau2 == 0.0):
        raise ValueError("third: 'diffusers' exists for the stochastic x0 form only; allowed are published, exact")
    if not isinstance(lower_order_final, (bool, int)) or lower_order_final < 0:
        raise ValueError(f"lower_order_final: got {lower_order_final!r}, allowed are True, False or a number of steps")
    if path.reverse and tau2:
        raise ValueError("eta: must be 0 on a path from data to noise")
    levels, n = path.levels(), path.steps
    lam = [level.lam for level in levels]
    lower = lower_order_final is True or n < int(lower_order_final)
    variants = {1: "exact", 2: SECOND[solver_type], 3: THIRD[third]}
    steps = []
    for i, (start, end) in enumerate(pairwise(levels)):
        if same(start, end):
            steps.append(identity(i, start, form))
            continue
        if end.sigma == 0.0:
            if form == "eps":
                raise ValueError("path: a solver on eps_hat cannot step to sigma = 0; end the path at sigma > 0")
            steps.append(transfer(i, start, end))
            continue
        if start.sigma == 0.0 or (start.alpha == 0.0 and form == "eps"):
            raise ValueError(f"path: a solver on {form}_hat cannot start at {start}")
        limit = min(order, n - i) if lower else order
        if euler_at_final and i == n - 1:
            limit = 1
        h = step_size(start, end)
        places: list[tuple[int, float]] = []  # (how many calls back, node); repeated or infinite nodes say nothing
        for j in range(1, min(limit, i + 1)):
            gap = lam[i - j] - lam[i]
            if math.isfinite(gap) and abs(gap) > SAME_LEVEL and all(abs(gap / h - s) > SAME_LEVEL for _, s in places):
                places.append((j, gap / h))
        a, weights, c = adams(form, start, end, [s for _, s in places], variants[1 + len(places)], tau2)
        b = [weights[0]] + [0.0] * max((j for j, _ in places), default=0)
        for (j, _), weight in zip(places, weights[1:], strict=True):
            b[j] = weight
        steps.append(Step(i, start, a, tuple(b), s_noise * c, form))
    return steps


def _family(name: str, form: str, stochastic: bool, orders: tuple[int, ...], paper: str) -> None:
    quantity = "x0_hat" if form == "x0" else "eps_hat"
    for order in orders:

        def steps(path: Path, order: int = order, **options: Any) -> list[Step]:
            return multistep(path, form=form, order=order, **options)

        options: dict[str, Any] = {"lower_order_final": 15, "euler_at_final": False}
        if order >= 2:
            options["solver_type"] = "midpoint"
        if order >= 3:
            options["third"] = "published"
        if stochastic:
            options.update(eta=1.0, s_noise=1.0)
        full = f"{name}-{order}{'m' if order > 1 else ''}"
        kind = "of the diffusion SDE" if stochastic else "of the diffusion ODE"
        known_as = full.replace("dpm", "dpm-solver", 1)
        add(
            Solver(
                full,
                steps,
                f"exponential multistep {kind} on {quantity}, order {order}",
                paper,
                order=min(order, 2),
                stochastic=stochastic,
                aliases=(known_as,),
                options=options,
                ends="clean" if form == "x0" else "noisy",
            )
        )


_family("dpmpp", "x0", False, (1, 2, 3), "Lu et al. 2022, arXiv 2211.01095, algorithm 2")
_family("sde-dpmpp", "x0", True, (1, 2, 3), "Lu et al. 2022, arXiv 2211.01095, equation 18")
_family("dpm", "eps", False, (1, 2, 3), "Lu et al. 2022, arXiv 2206.00927")
_family("sde-dpm", "eps", True, (1, 2), "Lu et al. 2022, arXiv 2211.01095, equation 17")
