"""The Poisson midpoint method as it is written, step by step, and the normals of its collapsed moves."""

from __future__ import annotations

import itertools

import numpy as np

from fastsample.path import Path
from fastsample.solvers.fine_tables import FineTable

from .exact import Mixture
from .golden_cases import GOLDEN

STEMS = (
    "pmm_ldm_ddpm_small_K10",
    "pmm_ve_ddpm_small_K10",
    "pmm_ve_sde_ei_K10",
    "pmm_vplinear_ddpm_large_K10",
    "pmm_vplinear_ddpm_small_K10",
)


def recorded(stem):
    """Arrays of a recorded run, and its table."""
    with np.load(GOLDEN / f"{stem}.npz") as file:
        data = {name: file[name] for name in file.files}
    return data, FineTable(Path(data["alphas"], data["sigmas"]), data["a"], data["b"], data["s"])


def eps_of(path, mixture=None):
    """eps_hat (level, x (B, D)); a level is one number or one per sample."""
    mixture = mixture or Mixture()

    def at(j, x):
        return (x - path.alpha[j] * mixture.x0(x, path.alpha[j], path.sigma[j])) / path.sigma[j]

    def eps(level, x):
        if np.ndim(level) == 0:
            return at(level, x)
        return np.concatenate([at(j, x[b : b + 1]) for b, j in enumerate(level)])

    return eps


def literal(table, eps, x, sizes, weights, h, z):
    """The loop over fine steps: states at the ends of windows.  h (M, B) bool, z (M, B, D); one weight per window."""
    states, j = [x], 0
    for size, weight in zip(sizes, weights, strict=True):
        eps0, m, frozen = eps(j, x), x, j
        for k in range(j, j + size):
            a, b, s = table.a[k], table.b[k], table.s[k]
            # at the start of a window the correction is zero: eps(m) is eps0
            gap = eps(k, m) - eps0 if k > frozen and h[k].any() else 0.0 * eps0
            x = a * x + b * (eps0 + weight * h[k][:, None] * gap) + s * z[k]
            m = a * m + b * eps0 + s * z[k]
        states.append(x)
        j += size
    return np.stack(states)


def chosen_of(windows, h):
    """Midpoints as ``Windows.draw`` returns them, of h (M, B) bool."""
    drawn = []
    for w in windows:
        index = np.where(h[w.start : w.end].T, np.arange(w.start, w.end), w.end)
        drawn.append(np.sort(index, axis=1)[:, : h[w.start : w.end].sum(0).max()])
    return drawn


def mask_of(windows, drawn):
    """h (M, B) bool of midpoints as ``Windows.draw`` returns them."""
    h = np.zeros((len(windows.table), len(drawn[0])), bool)
    for window, ms in zip(windows, drawn, strict=True):
        for b, m in enumerate(ms):
            h[m[m < window.end], b] = True
    return h


def moves(windows, h):
    """(i, q) of all moves of a sample whose midpoints are h (M,) bool."""
    found = []
    for window in windows:
        stops = [window.start, *(i for i in range(window.start + 1, window.end) if h[i]), window.end]
        found += list(itertools.pairwise(stops))
    return found


def collapsed(table, windows, h, z):
    """The normal of every move, by the number of its draw: what the fine steps between add up to, over its deviation.

    h (M, B) bool, z (M, B, D).
    """
    noise = {0: np.zeros_like(z[0])}
    for b in range(h.shape[1]):
        for i, q in moves(windows, h[:, b]):
            after = np.append(np.cumprod(table.a[i + 1 : q][::-1])[::-1], 1.0)
            parts = after * table.s[i:q]
            size = np.linalg.norm(parts)
            total = (parts[:, None] * z[i:q, b]).sum(0)
            noise.setdefault(1 + i, np.zeros_like(z[0]))[b] = total / size if size else 0.0
    return noise
