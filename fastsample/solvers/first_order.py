"""Solvers that look at one call only: Euler, DDIM, DDIM inversion, DDPM, Euler-Maruyama.

All but the last are one family, ``x' = a x + (alpha' - alpha a) x0_hat + c xi`` with ``a = sqrt(sigma'^2 - c^2)/sigma``
which keeps the law of x at the level (alpha', sigma') whatever c is.  They differ in c alone.
"""

from __future__ import annotations

import math

from fastsample.path import SAME_LEVEL, Level, Path, step_size
from fastsample.solvers.registry import Solver, add, check_choice, check_range
from fastsample.solvers.step import Step


def same(start: Level, end: Level) -> bool:
    """Whether a step between two levels is the identity."""
    return abs(step_size(start, end)) < SAME_LEVEL


def identity(index: int, start: Level, form: str = "x0") -> Step:
    """The step that changes nothing (a grid that repeats a level); the network is asked all the same."""
    return Step(index, start, a=1.0, b=(0.0,), form=form)


def transfer(
    index: int, start: Level, end: Level, c: float = 0.0, keep_raw: bool = False, s_noise: float = 1.0
) -> Step:
    """One step of the family; ``keep_raw`` writes it with eps_hat of before the clipping of x0_hat."""
    left = math.sqrt(max(end.sigma**2 - c * c, 0.0))
    if keep_raw:
        return Step(index, start, a=0.0, b=(end.alpha,), raw=left, c=s_noise * c)
    a = left / start.sigma
    return Step(index, start, a=a, b=(end.alpha - start.alpha * a,), c=s_noise * c)


def ancestral_noise(start: Level, end: Level, eta: float = 1.0) -> float:
    """``eta sigma' sqrt(1 - e^{-2h})``: for eta = 1 the posterior standard deviation of DDPM."""
    return eta * end.sigma * math.sqrt(-math.expm1(-2.0 * step_size(start, end)))


def pairs(path: Path, name: str, reverse: bool = False) -> list[tuple[int, Level, Level]]:
    if path.reverse != reverse:
        way = "from data to noise; see Path.reversed()" if reverse else "from noise to data"
        raise ValueError(f"path: {name!r} runs {way}, got a path the other way")
    levels = path.levels()
    return [(i, levels[i], levels[i + 1]) for i in range(path.steps)]


def ddim(path: Path, *, eta: float, use_clipped: bool) -> list[Step]:
    """DDIM(eta).  Without ``use_clipped`` the direction term keeps the raw eps_hat when x0_hat is clipped."""
    check_range("eta", eta, 0.0, 1.0)
    return [
        identity(i, start)
        if same(start, end)
        else transfer(i, start, end, ancestral_noise(start, end, eta), keep_raw=not use_clipped)
        for i, start, end in pairs(path, "ddim")
    ]


def ddim_inverse(path: Path) -> list[Step]:
    """DDIM towards noise: eps_hat is asked on the cleaner state, at the time of the noisier level it goes to."""
    steps = []
    for i, start, end in pairs(path, "ddim-inverse", reverse=True):
        at = Level(start.alpha, start.sigma, end.t)
        a = 1.0 if same(start, end) else end.alpha / start.alpha
        b = 0.0 if same(start, end) else end.sigma - a * start.sigma
        steps.append(Step(i, at, a=a, b=(b,), form="eps"))
    return steps


def ddpm(path: Path, *, variance: str) -> list[Step]:
    """Ancestral sampling; ``variance``: "small" (posterior) or "large" (that of the forward step, VP: beta)."""
    check_choice("variance", variance, ("small", "large"))
    steps = []
    for i, start, end in pairs(path, "ddpm"):
        if same(start, end):
            steps.append(identity(i, start))
            continue
        step = transfer(i, start, end, ancestral_noise(start, end))
        if variance == "large" and end.sigma > 0:
            # sigma^2 - (alpha/alpha')^2 sigma'^2 = sigma^2 (1 - e^{-2h})
            c = start.sigma * math.sqrt(-math.expm1(-2.0 * step_size(start, end)))
            step = Step(i, start, step.a, step.b, c)
        steps.append(step)
    return steps


def euler(path: Path, *, s_churn: float, s_tmin: float, s_tmax: float, s_noise: float, renoise: bool) -> list[Step]:
    """Euler in sigma/alpha, which is Euler in t for rectified flow and equals DDIM; with the churn of EDM.

    Churn raises the level to (1 + gamma) sigma before the call, gamma = min(s_churn/N, sqrt(2) - 1) for s_tmin <=
    sigma/alpha <= s_tmax.  ``renoise`` goes to clean data and back to sigma' with fresh noise in every step.
    """
    churn = Churn(path, s_churn, s_tmin, s_tmax, s_noise)
    steps = []
    for i, start, end in pairs(path, "euler"):
        start, lift = churn(start)
        c = end.sigma if renoise else 0.0
        step = identity(i, start) if same(start, end) else transfer(i, start, end, c)
        steps.append(Step(i, start, step.a, step.b, step.c, lift=lift))
    return steps


class Churn:
    """Where a step starts after churn, and the noise that brings the state there (``Step.lift``)."""

    def __init__(self, path: Path, s_churn: float, s_tmin: float, s_tmax: float, s_noise: float) -> None:
        check_range("s_churn", s_churn, 0.0)
        check_range("s_tmin", s_tmin, 0.0)
        check_range("s_noise", s_noise, 0.0)
        if not isinstance(s_tmax, (int, float)) or not s_tmax >= s_tmin:
            raise ValueError(f"s_tmax: got {s_tmax!r}, allowed are numbers >= s_tmin = {s_tmin}")
        self.gamma = min(s_churn / path.steps, math.sqrt(2.0) - 1.0)
        self.low, self.high, self.s_noise = s_tmin, s_tmax, s_noise
        # t is known at the raised level only where t is sigma/alpha; elsewhere the call must not be told t
        self.ve = bool((path.alpha > 0).all()) and bool((path.t == path.rho).all())

    def __call__(self, start: Level) -> tuple[Level, float]:
        """The raised level and the standard deviation of the noise."""
        if not (self.gamma > 0 and self.low <= start.rho <= self.high):
            return start, 0.0
        up = (1.0 + self.gamma) * start.sigma
        lift = self.s_noise * start.sigma * math.sqrt(self.gamma * (2.0 + self.gamma))
        return Level(start.alpha, up, up / start.alpha if self.ve else math.nan), lift


def euler_maruyama(path: Path, *, tau: float) -> list[Step]:
    """Euler-Maruyama on the reverse SDE of noise level tau, in the state's own coordinates.

    ``x' = x + [f x + (1 + tau^2)/2 (g^2/sigma) eps_hat] dt + tau g sqrt(|dt|) xi`` with the increments of the path:
    f dt = log(alpha'/alpha) and g^2 |dt| = alpha^2 (rho^2 - rho'^2).  A step to sigma' = 0 returns x0_hat.
    """
    tau2 = check_range("tau", tau, 0.0) ** 2
    steps = []
    for i, start, end in pairs(path, "euler-maruyama"):
        if start.alpha == 0.0:
            raise ValueError("path: 'euler-maruyama' needs alpha > 0 (its drift is infinite at alpha = 0)")
        if same(start, end) or end.sigma == 0.0:
            steps.append(identity(i, start) if same(start, end) else transfer(i, start, end))
            continue
        drift = math.log(end.alpha / start.alpha)
        g2 = -math.expm1(-2.0 * step_size(start, end)) * start.sigma**2
        b = -0.5 * (1.0 + tau2) * g2 / start.sigma
        steps.append(Step(i, start, a=1.0 + drift, b=(b,), c=math.sqrt(tau2 * g2), form="eps"))
    return steps


add(
    Solver(
        "euler",
        euler,
        "straight line to x0_hat in sigma/alpha (flow matching: in t), with EDM's churn",
        "Karras et al. 2022, arXiv 2206.00364, algorithm 2; Lipman et al. 2022, arXiv 2210.02747",
        order=1,
        aliases=("flow-euler", "k-euler"),
        options={"s_churn": 0.0, "s_tmin": 0.0, "s_tmax": 1e30, "s_noise": 1.0, "renoise": False},
    )
)
add(
    Solver(
        "ddim",
        ddim,
        "first-order exponential step; eta = 1 is ancestral sampling",
        "Song, Meng, Ermon 2020, arXiv 2010.02502, equation 12",
        order=1,
        options={"eta": 0.0, "use_clipped": False},
    )
)
add(
    Solver(
        "ddim-inverse",
        ddim_inverse,
        "DDIM from data to noise",
        "Song, Meng, Ermon 2020, arXiv 2010.02502, equation 13",
        order=1,
        aliases=("ddim-inversion",),
        ends="inverse",
    )
)
add(
    Solver(
        "ddpm",
        ddpm,
        "ancestral sampling with fixed variance",
        "Ho, Jain, Abbeel 2020, arXiv 2006.11239, algorithm 2",
        order=1,
        stochastic=True,
        options={"variance": "small"},
    )
)
add(
    Solver(
        "euler-maruyama",
        euler_maruyama,
        "plain discretisation of the reverse SDE",
        "Song et al. 2020, arXiv 2011.13456, equation 6",
        order=1,
        stochastic=True,
        aliases=("em",),
        options={"tau": 1.0},
    )
)
