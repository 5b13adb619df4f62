"""How well chains have mixed: split R-hat and effective sample size of rank-normalised draws.

Vehtari, Gelman, Simpson, Carpenter, Buerkner 2021, arXiv 1903.08008: each chain is cut into two halves, draws are
replaced by the normal quantiles of their ranks, and R-hat is the larger of that of the draws (location) and of their
distances to the median (scale).  A value above 1.01 says that the chains do not agree yet.
"""

from __future__ import annotations

import math

import numpy as np
import numpy.typing as npt
import torch

Array = npt.NDArray[np.float64]


def split_rhat(draws: Array) -> Array:
    """Rank-normalised split R-hat of ``draws`` ``(n, chains, ...)``; shape ``(...)``.

    NaN where there are fewer than 4 draws per chain, where draws are not finite or do not vary.
    """
    halves, flat, shape = _prepare(draws)
    values = np.full(flat, np.nan)
    for k in range(flat):
        x = halves[k]
        if x.shape[1] >= 2 and _varies(x):
            values[k] = max(_rhat(_normal_scores(x)), _rhat(_normal_scores(np.abs(x - np.median(x)))))
    return values.reshape(shape)


def bulk_ess(draws: Array) -> Array:
    """Effective number of independent draws, of ``draws`` ``(n, chains, ...)`` rank-normalised and split: the bulk.

    The autocorrelation of all chains together, summed as long as it is positive (Geyer 1992), monotone.  At most
    ``S log10(S)`` of S draws.  NaN as `split_rhat`.
    """
    halves, flat, shape = _prepare(draws)
    values = np.full(flat, np.nan)
    for k in range(flat):
        if halves[k].shape[1] >= 2 and _varies(halves[k]):
            values[k] = _ess(_normal_scores(halves[k]))
    return values.reshape(shape)


def _prepare(draws: Array) -> tuple[Array, int, tuple[int, ...]]:
    """Half chains ``(quantities, 2 chains, n // 2)``, the number of quantities, their shape."""
    x = np.asarray(draws, dtype=np.float64)
    if x.ndim < 2:
        raise ValueError(f"draws: got shape {x.shape}, allowed is (draws, chains, ...)")
    (n, chains), shape = x.shape[:2], x.shape[2:]
    half, flat = n // 2, math.prod(shape)
    x = x.reshape(n, chains, flat)
    halves = np.concatenate([x[:half], x[n - half :]], axis=1)  # (half, 2 chains, flat); an odd middle draw is left out
    return np.ascontiguousarray(halves.transpose(2, 1, 0)), flat, shape


def _varies(x: Array) -> bool:
    return bool(np.isfinite(x).all() and x.max() > x.min())


def _normal_scores(x: Array) -> Array:
    """Normal quantiles of ``(rank - 3/8) / (S + 1/4)``; equal draws share the mean of their ranks."""
    flat = x.ravel()
    _, place, count = np.unique(flat, return_inverse=True, return_counts=True)
    ends = np.cumsum(count)
    rank = (ends - (count - 1) / 2.0)[place]
    scores: Array = torch.special.ndtri(torch.from_numpy((rank - 0.375) / (flat.size + 0.25))).numpy()
    return scores.reshape(x.shape)


def _rhat(x: Array) -> float:
    n = x.shape[1]
    within = x.var(axis=1, ddof=1).mean()
    between = x.mean(axis=1).var(ddof=1)
    return float(np.sqrt((n - 1) / n + between / within)) if within > 0.0 else math.nan


def _ess(x: Array) -> float:
    chains, n = x.shape
    covariance = _autocovariance(x).mean(axis=0)  # each over n, so that lag 0 is var (n - 1) / n
    within = covariance[0] * n / (n - 1.0)
    total = covariance[0] + x.mean(axis=1).var(ddof=1)
    correlation = 1.0 - (within - covariance) / total
    correlation[0] = 1.0
    pairs = correlation[: n - n % 2].reshape(-1, 2).sum(axis=1)
    positive = int(np.argmax(pairs <= 0.0)) if (pairs <= 0.0).any() else len(pairs)
    tau = -1.0 + 2.0 * float(np.minimum.accumulate(pairs[:positive]).sum())
    draws = chains * n
    return float(draws / max(tau, 1.0 / math.log10(max(draws, 2))))


def _autocovariance(x: Array) -> Array:
    n = x.shape[1]
    size = 1 << (2 * n - 1).bit_length()
    spectrum = np.fft.rfft(x - x.mean(axis=1, keepdims=True), size, axis=1)
    covariance: Array = np.fft.irfft(np.abs(spectrum) ** 2, size, axis=1)[:, :n] / n
    return covariance
