"""Reverse transition kernels: the law of the cleaner state given the noisier one, and how a chain on it starts.

With ``x_t = r x_s + sqrt(v) xi`` between a level s and a noisier one t (``r = alpha_t / alpha_s``,
``v = sigma_t^2 - r^2 sigma_s^2``), the law of z = x_s given x = x_t has the potential and its gradient

    g(z) = f(z) + |x - r z|^2 / (2 v),    f = -log p_s
    grad g(z) = grad f(z) + (r / v)(r z - x),    grad f = eps_hat(z, s) / sigma_s

Huang, Zou, Dong, Zhang, Ma, Zhang 2024, arXiv 2405.16387, algorithm 1.  All here is host arithmetic in float64: each
quantity is a combination of named tensors, ``z`` the chain, ``x`` the condition, ``e`` the network's output.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

from fastsample.path import Level, Path, step_size
from fastsample.solvers.express import Network
from fastsample.solvers.first_order import pairs, same
from fastsample.solvers.registry import check_choice, check_range
from fastsample.solvers.step import Step

Combo = dict[str, float]
"""Weights by source: ``"z"``, ``"x"``, ``"e"``, ``"u"`` (velocity), ``"e1"``, ... (outputs between z and z'), ``"xi0"``
and ``"xi1"`` (noises)."""

STARTS = ("prior", "posterior", "gaussian_rtk", "paper_mala", "paper_uld")


def mix(*parts: tuple[float, Mapping[str, float]]) -> Combo:
    """Sum of combinations, each with its factor."""
    total: Combo = {}
    for factor, combo in parts:
        for source, weight in combo.items():
            total[source] = total.get(source, 0.0) + factor * weight
    return total


@dataclass(frozen=True)
class Segment:
    """One kernel, from the level ``start`` to the cleaner level ``end``, step ``index`` of the path.

    ``grad``: the gradient of f in z and e.  ``bound``: of the curvature of f, ``1 / (alpha_s^2 w^2 + sigma_s^2)`` for
    data that is nowhere narrower than w.  ``before``: the gradient of -log p_t in x and e at ``start``; None where
    r = 0, so that the condition says nothing.
    """

    index: int
    start: Level
    end: Level
    r: float
    v: float
    bound: float
    grad: Combo
    before: Combo | None

    @property
    def pull(self) -> float:
        """Curvature of the Gaussian factor, ``r^2 / v``."""
        return self.r * self.r / self.v

    @property
    def curvature(self) -> float:
        """Bound L_g of the curvature of g: step sizes are measured in it."""
        return self.pull + self.bound

    @property
    def force(self) -> Combo:
        """The gradient of g."""
        return mix((1.0, self.grad), (1.0, {"z": self.pull, "x": -self.r / self.v}))

    def begin(self, law: str) -> Combo:
        """The start of the chain: of x, xi0 and, for ``posterior`` and ``gaussian_rtk``, e, the output at x and t.

        ``prior``: the Gaussian factor alone.  ``posterior``: a step of DDPM, with the mean of the kernel, which is
        ``(x + v score(x, t)) / r`` (Tweedie), and the variance that it has for a single data point.  ``gaussian_rtk``:
        the kernel with log p_s replaced by its line at x, of slope score(x, t); the DDPM of the paper.  ``paper_mala``:
        density ``exp(-L |z|^2 - |x - r z|^2 / (2 v))``.  ``paper_uld``: mean 0 and the variance of the factor.  A
        condition that says nothing (r = 0) leaves ``N(0, alpha_s^2 + sigma_s^2)``.
        """
        check_choice("init", law, STARTS)
        r, v = self.r, self.v
        if r == 0.0:
            return {"xi0": math.hypot(self.end.alpha, self.end.sigma)}
        spread = math.sqrt(v) / r
        if law == "paper_mala":
            precision = 2.0 * self.bound + self.pull
            return {"x": r / (v * precision), "xi0": 1.0 / math.sqrt(precision)}
        if law == "paper_uld":
            return {"xi0": spread}
        centre = {"x": 1.0 / r}
        if law == "prior":
            return {**centre, "xi0": spread}
        assert self.before is not None
        if law == "posterior":
            known = self.end.sigma / self.start.sigma
            return {**mix((1.0, centre), (-v / r, self.before)), "xi0": math.sqrt(v) * known}
        return {**mix((1.0, centre), (-spread * spread, self.before)), "xi0": spread}

    def needs_score(self, law: str) -> bool:
        """Whether the start is made of an output at the noisier level."""
        return law in ("posterior", "gaussian_rtk") and self.r > 0.0


def segments(path: Path, network: Network, width: float) -> list[Segment]:
    """The kernels of a path; levels that repeat make none.

    Raises:
        ValueError: a path from data to noise or without different levels, a width below 0, a path to sigma = 0 whose
            network says nothing about the score there or whose data may be infinitely narrow.
    """
    width = check_range("width", width, 0.0)
    found = []
    for i, start, end in pairs(path, "a reverse transition kernel"):
        if same(start, end):
            continue
        r = start.alpha / end.alpha
        gain = -math.expm1(-2.0 * step_size(start, end)) if r > 0.0 else 1.0
        grad = gradient(network, i + 1, end, "z")
        spread = (end.alpha * width) ** 2 + end.sigma**2
        if spread == 0.0:
            raise ValueError("width: got 0 for a path to sigma = 0; give the smallest standard deviation of the data")
        before = gradient(network, i, start, "x") if r > 0.0 else None
        found.append(Segment(i, start, end, r, start.sigma**2 * gain, 1.0 / spread, grad, before))
    if not found:
        raise ValueError("path: all its levels are the same")
    return found


def gradient(network: Network, index: int, at: Level, state: str) -> Combo:
    """``-score`` at a level of the path: of the state and e."""
    if network.prediction == "score":
        return {"e": -1.0}
    if at.sigma == 0.0:
        raise ValueError(
            f"path: ends at sigma = 0, where a network of {network.prediction} says nothing about the score; end at "
            "sigma > 0 (t_min of make_path or of the schedule) and take denoise=True for a last x0_hat"
        )
    eps = network.convert("eps", Step(index, at, a=0.0, b=(1.0,)))
    return {state: eps["x"] / at.sigma, "e": eps["e"] / at.sigma}


def denoised(network: Network, index: int, at: Level, state: str) -> Combo:
    """x0_hat at a level of the path, of the state and e."""
    x0 = network.convert("x0", Step(index, at, a=0.0, b=(1.0,)))
    return {state: x0["x"], "e": x0["e"]}
