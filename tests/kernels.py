"""Reverse transition kernels on exact mixtures: runs without the loop, the recorded ones, and the exact law."""

from __future__ import annotations

import numpy as np
import torch

from fastsample import GaussianMixture, noise, procedures
from fastsample.loop import drive
from fastsample.path import Path
from fastsample.solvers import registry
from fastsample.solvers.assemble import DEFAULTS

from .exact import Mixture
from .golden_cases import GOLDEN


def begin(name, path, x, *, prediction="score", key=None, recorded=None, energy=None, network=None, **options):
    """The run of a procedure on the state ``x`` at the first level of a path."""
    procedure = procedures.get(name)
    key = noise.keys(5, len(x)) if key is None and recorded is None else key
    shared = {**DEFAULTS, "prediction": prediction, **(network or {})}
    setting = procedures.Setting(path, None, shared, x, "state", key, recorded, None, False, energy)
    return procedure.make(setting, **registry.complete(procedure, options))


SOLVERS = ("rtk-mala", "rtk-uld", "rtk-ula")
TIMES = (2.0, 1.0, 0.4)


def one_run(name, path=None, prediction="score", mixture=None, fn=None, batch=6, **options):
    """The run from a fixed state of the exact network, ended; and what the network was asked."""
    path, mixture = ou(TIMES) if path is None else path, mixture or recorded_mixture()
    exact, energy = network_of(mixture, path, prediction)
    x = torch.randn(batch, *mixture.shape, generator=torch.Generator().manual_seed(3), dtype=torch.float64)
    run, asked = begin(name, path, x, prediction=prediction, energy=energy, **options), []

    def network(x, t):
        asked.append((x.clone(), float(t[0])))
        return (fn or exact)(x, t)

    drive(run, network)
    return run, asked


def no_energy(solver):
    return {"estimator": "trapezoid"} if solver == "rtk-mala" else {}


def levels(path):
    """Times are names here: ``(alpha, sigma)`` by what the network is told."""
    return {float(level.t): (level.alpha, level.sigma) for level in path.levels()}


def network_of(mixture, path, prediction="score"):
    """The exact network of a mixture on the levels of a path, and its energy."""
    at = levels(path)

    def fn(x, t):
        alpha, sigma = at[float(t[0])]
        if prediction in ("score", "eps", "x0", "v", "flow"):
            return getattr(mixture, prediction)(x, alpha, sigma)
        total = float(np.hypot(sigma, 0.5 * alpha))  # edm: raw F of x0 = c_skip x / alpha + c_out F
        return (mixture.x0(x, alpha, sigma) - 0.25 * alpha / total**2 * x) * total / (0.5 * sigma)

    return fn, lambda x, t: -mixture.log_prob(x, *at[float(t[0])])


def ou(times):
    """The path of the paper's forward process dx = -x dt + sqrt(2) dB."""
    times = np.asarray(times, dtype=np.float64)
    return Path(np.exp(-times), np.sqrt(-np.expm1(-2.0 * times)), times)


def recorded_mixture():
    m = Mixture()
    return GaussianMixture(torch.tensor(m.mu), torch.tensor(np.sqrt(m.s2)), torch.tensor(m.w))


class Recorded:
    """One of the recorded runs (tests/golden/rtk*.npz) and the noise of it by draw."""

    def __init__(self, stem):
        with np.load(GOLDEN / f"{stem}.npz") as file:
            self.data = {name: file[name] for name in file.files}
        d = self.data
        times = np.arange(len(d["alphas"]), dtype=np.float64)[::-1]
        self.path = Path(d["alphas"], d["sigmas"], times)
        self.segments, self.inner = len(times) - 1, int(d["S"])
        self.x, self.noise = torch.tensor(d["x_T"]), {}
        per_move = ["xi"] if "xi" in d else ["n1", "n2"]
        for k in range(self.segments):
            draws = [d[name][k] for name in ("init_noise", "init_vel") if name in d]
            for j in range(self.inner):
                draws += [d[name][k, j] for name in per_move]
            first = 1 + k * len(draws)
            self.noise.update({first + n: torch.tensor(xi) for n, xi in enumerate(draws)})


class ExactKernel:
    """The law of z = x_s given x = x_t for mixture data: again a mixture, with its distribution function.

    Weights w_k N(x; alpha_t mu_k, r^2 V_k + v), variances c_k = 1 / (1 / V_k + r^2 / v), means
    c_k (alpha_s mu_k / V_k + r x / v), with V_k = alpha_s^2 s_k^2 + sigma_s^2.
    """

    def __init__(self, mixture, start, end):
        self.mu, self.s2, self.w = mixture.means.numpy(), mixture.std.numpy() ** 2, mixture.weights.numpy()
        self.r = start.alpha / end.alpha
        self.v = start.sigma**2 - self.r**2 * end.sigma**2
        self.var = end.alpha**2 * self.s2 + end.sigma**2
        self.start, self.end = start, end

    def at(self, x):
        """Weights (B, K), means (B, K, d), variances (K,) of the law at conditions x (B, d)."""
        wide = self.r**2 * self.var + self.v
        gap = x[:, None] - self.start.alpha * self.mu
        logs = np.log(self.w) - 0.5 * (x.shape[1] * np.log(wide) + (gap**2).sum(-1) / wide)
        weights = np.exp(logs - logs.max(1, keepdims=True))
        c = 1.0 / (1.0 / self.var + self.r**2 / self.v)
        means = c[:, None] * (self.end.alpha * self.mu / self.var[:, None] + (self.r / self.v) * x[:, None])
        return weights / weights.sum(1, keepdims=True), means, c

    def draw(self, x, rng):
        weights, means, c = self.at(x)
        mode = (weights.cumsum(1) < rng.random((len(x), 1))).sum(1).clip(max=len(c) - 1)
        return means[np.arange(len(x)), mode] + np.sqrt(c[mode])[:, None] * rng.standard_normal(x.shape)


def mixture_cdf(weights, means, variances):
    """Distribution function of a one-dimensional mixture, for `ks`."""
    from scipy.special import ndtr

    return lambda z: (weights * ndtr((z[:, None] - means) / np.sqrt(variances))).sum(1)


def ks(sample, cdf):
    """Kolmogorov-Smirnov distance of a sample (n,) to a law; above 1.95 / sqrt(n) by chance once in a thousand."""
    z = np.sort(sample)
    value, steps = cdf(z), np.arange(len(z) + 1) / len(z)
    return float(max((steps[1:] - value).max(), (value - steps[:-1]).max()))
