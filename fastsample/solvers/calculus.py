"""Coefficients of exponential Adams steps: the one calculus behind DDIM, DPM-Solver(++), DEIS, UniPC and SA-Solver.

Over one step of half log-SNR ``h`` the linear part of the diffusion ODE/SDE is solved exactly and D (x0_hat or eps_hat)
is replaced by a polynomial through its values at the nodes ``s_j = (lam_j - lam) / h``.  With tau the noise level of
the SDE (0: probability flow) and z = (1 + tau^2) h,

    x0 form:   x' = (sigma'/sigma) e^{-tau^2 h} x + alpha' sum_j beta_j D_j + sigma' sqrt(1 - e^{-2 tau^2 h}) xi
    eps form:  x' = (alpha'/alpha) x - (1 + tau^2) sigma' sum_j beta_j D_j + tau sigma' sqrt(e^{2h} - 1) xi

where the beta solve ``sum_j beta_j s_j^k = w_k``.  Exact moments are ``w_k = k! z phi_{k+1}(-z)`` (x0) and
``k! h phi_{k+1}(h)`` (eps); published solvers change some of them (``moments``).
DPM-Solver: Lu et al. 2022, arXiv 2206.00927 and 2211.01095; UniPC: Zhao et al. 2023, arXiv 2302.04867.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

from fastsample.path import Level, step_size

SERIES = 2.0  # below this |argument| the recursions lose digits and the series is used
VARIANTS = ("exact", "mid", "bh1", "3m", "3m-diffusers", "3s-diffusers")


def phi(x: float, count: int) -> list[float]:
    """``phi_1(x) .. phi_count(x)``, phi_k(x) = sum_m x^m / (m + k)!, to full double precision."""
    if abs(x) >= SERIES:
        values = [math.expm1(x) / x]
        for k in range(1, count):
            values.append((values[-1] - 1.0 / math.factorial(k)) / x)
        return values
    term, total, m = 1.0 / math.factorial(count), 0.0, 0
    while abs(term) > 1e-18 * abs(total) or m < 2:
        total += term
        m += 1
        term *= x / (m + count)
    values = [total]
    for k in range(count - 1, 0, -1):  # downwards the recursion is stable for small arguments
        values.append(x * values[-1] + 1.0 / math.factorial(k))
    return values[::-1]


def moments(variant: str, count: int, form: str, h: float, tau2: float = 0.0) -> list[float]:
    """``w_0 .. w_{count-1}`` of a step of size ``h``.

    ``"exact"``; ``"mid"`` (two nodes: midpoint, "dpmsolver", bh2) has w_1 = w_0/2; ``"bh1"`` (two nodes) has w_1 = z/2;
    ``"3m"`` (three nodes) has half of the exact w_2, as the published third-order multistep does; ``"3m-diffusers"``
    has its sign error on top, ``"3s-diffusers"`` is the same error in the exact moments.  One node has no choice.
    """
    z = (1.0 + tau2) * h if form == "x0" else h
    if math.isinf(z):
        base = [1.0 / math.factorial(k) for k in range(count)]
    elif form == "x0":
        base = [z * value for value in phi(-z, count)]
    else:
        base = [z * value for value in phi(z, count)]
    if count == 1:
        return base
    if variant == "exact":
        return [math.factorial(k) * value for k, value in enumerate(base)]
    if variant == "mid" and count == 2:
        return [base[0], 0.5 * base[0]]
    if variant == "bh1" and count == 2:
        return [base[0], 0.5 * z]
    if variant == "3m" and count == 3:
        return base
    if variant == "3m-diffusers" and count == 3:
        return [base[0], base[1], base[2] - 1.0]
    if variant == "3s-diffusers" and count == 3:
        return [base[0], base[1], 2.0 * (base[2] - 1.0)]
    raise ValueError(f"variant: {variant!r} does not exist for {count} nodes; allowed are {', '.join(VARIANTS)}")


def solve_nodes(nodes: Sequence[float], w: Sequence[float]) -> list[float]:
    """``beta`` of the node 0 and of ``nodes`` (none of them 0, all different): ``sum_j beta_j s_j^k = w_k``."""
    betas = []
    for i, s in enumerate(nodes):
        others = [q for j, q in enumerate(nodes) if j != i]
        poly, scale = [1.0], s  # coefficients of prod (x - q), lowest first
        for q in others:
            poly = [high - q * low for low, high in zip([*poly, 0.0], [0.0, *poly], strict=True)]
            scale *= s - q
        betas.append(sum(c * w[k + 1] for k, c in enumerate(poly)) / scale)
    return [w[0] - sum(betas), *betas]


def linear_part(form: str, start: Level, end: Level, tau2: float = 0.0) -> tuple[float, float, float]:
    """``(a, c, factor)``: weight of the state, of the noise, and the factor of the beta."""
    h = step_size(start, end)
    if form == "x0":
        drift = math.exp(-tau2 * h) if tau2 else 1.0
        noise = end.sigma * math.sqrt(-math.expm1(-2.0 * tau2 * h)) if tau2 else 0.0
        return end.sigma / start.sigma * drift, noise, end.alpha
    noise = math.sqrt(tau2) * end.sigma * math.sqrt(math.expm1(2.0 * h)) if tau2 else 0.0
    return end.alpha / start.alpha, noise, -(1.0 + tau2) * end.sigma


def adams(
    form: str, start: Level, end: Level, nodes: Sequence[float] = (), variant: str = "exact", tau2: float = 0.0
) -> tuple[float, list[float], float]:
    """``(a, b, c)`` of a step: ``b`` belongs to the node 0 (D of this call), then to ``nodes`` in their order.

    A corrector is the same with the node 1 among ``nodes``.  ``sum b + alpha a = alpha'`` and
    ``a^2 sigma^2 + c^2 = sigma'^2`` hold in the x0 form for every choice.
    """
    a, c, factor = linear_part(form, start, end, tau2)
    w = moments(variant, len(nodes) + 1, form, step_size(start, end), tau2)
    return a, [factor * beta for beta in solve_nodes(nodes, w)], c
