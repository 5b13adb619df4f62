"""Phase-space plans against truth: recorded runs, and the exact law of a Gaussian through the rows of a plan."""

from __future__ import annotations

import json
from pathlib import Path as File
from typing import Any

import numpy as np
import torch

from fastsample import GaussianMixture, PhaseSpace, row
from fastsample.plan import Plan, output_of

_FILE = np.load(File(__file__).parent / "golden" / "psld.npz")
_CASES = json.loads(str(_FILE["cases"]))


class Recorded:
    """One recorded run; equal arrays of several runs are stored once."""

    def __init__(self, name: str) -> None:
        self.name, self._numbers = name, _CASES[name]

    def __contains__(self, key: str) -> bool:
        return key in self._numbers or f"{self.name}/{key}" in _FILE.files

    def __getitem__(self, key: str) -> Any:
        value = self._numbers.get(key, f"{self.name}/{key}")
        return _FILE[value] if isinstance(value, str) else value

    def __repr__(self) -> str:
        return self.name


def recorded(*prefixes: str) -> list[Recorded]:
    return [Recorded(name) for name in _CASES if name.startswith(prefixes)]


def mixture() -> GaussianMixture:
    """The five modes in four dimensions of the recorded runs."""
    g = torch.Generator().manual_seed(0)
    double = {"generator": g, "dtype": torch.float64}
    means = 1.5 * torch.randn(5, 4, **double)
    std = 0.2 + 0.4 * torch.rand(5, **double)
    return GaussianMixture(means, std, 0.5 + torch.rand(5, **double))


def maps(plan: Plan) -> list[tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]]:
    """Per call A, E, P, N ``(2, 2)`` as the rows of a plan have them."""
    found = []
    for call, values in zip(plan.calls, plan.table, strict=True):
        A, E, P, N = np.eye(2), np.zeros((2, 2)), np.zeros((2, 2)), np.zeros((2, 2))
        for k, slot in enumerate(call.outputs):
            if slot > 1:
                continue
            A[slot] = 0.0
            for j, term in enumerate(call.terms):
                weight = values[row.w(k, j)]
                if term >= 0:
                    A[slot, term] = weight
                else:
                    _, part, back = output_of(term, 2)
                    (P if back else E)[slot, part] = weight
            N[slot] = [values[row.g(k, r)] for r in range(2)]
        found.append((A, E, P, N))
    return found


def gaussian_law(plan: Plan, process: PhaseSpace, mu: float, s: float) -> tuple[np.ndarray, np.ndarray]:
    """Mean ``(2,)`` and covariance ``(2, 2)`` of the end of a run on data N(mu, s^2), start included: no sampling.

    The exact network is ``eps = H (z - Psi (mu, 0))``, so that every row maps normal laws to normal laws; the eps of
    the call before is carried along as part of the state.
    """
    kept = gaussian_network(process, mu, s)
    mean, cov = np.zeros(4), np.zeros((4, 4))
    start = plan.start("noise")
    N = np.array([[start[row.g(k, r)] for r in range(2)] for k in range(2)])
    cov[:2, :2] = N @ N.T
    for t, (A, E, P, N) in zip(plan.t, maps(plan), strict=True):
        H, c = kept(float(t))
        T = np.block([[A + E @ H, P], [H, np.zeros((2, 2))]])
        shift = np.concatenate([-E @ H @ c, -H @ c])
        mean, cov = T @ mean + shift, T @ cov @ T.T
        cov[:2, :2] += N @ N.T
    return mean[:2], cov[:2, :2]


def gaussian_network(process: PhaseSpace, mu: float, s: float):
    """``t -> H, c`` with ``E[eps | z] = H (z - c)`` for data N(mu, s^2)."""
    from fastsample.solvers.phase import moments

    def kept(t: float) -> tuple[np.ndarray, np.ndarray]:
        S = moments.covariance(process.Gamma, process.nu, process.b(t), s * s, process.gamma * process.M)
        full = np.array([[S.xx, S.xm], [S.xm, S.mm]])
        return process.root(t).T @ np.linalg.inv(full), process.flow(process.b(t))[:, 0] * mu

    return kept
