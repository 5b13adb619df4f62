"""The ideal phase-space network of a Gaussian mixture.

Of mode k the pair (x, m) at time t is normal with mean ``Psi (mu_k, 0)`` and, in every coordinate on its own, the 2x2
covariance ``Psi diag(s_k^2, gamma M) Psi^T + Sigma_0 = L_k L_k^T``.  With ``y_k = L_k^-1 (z - Psi (mu_k, 0))``

    score = -sum_k r_k L_k^-T y_k          eps = -K^-1 score = sum_k r_k L^T L_k^-T y_k

with the responsibilities r_k of the modes and the root L of the covariance that the network knows.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from ..bank import halves
from ..solvers.phase import moments
from ..solvers.phase.process import PhaseSpace
from .network import Network

if TYPE_CHECKING:
    from .mixture import GaussianMixture


def phase_network(mixture: GaussianMixture, process: PhaseSpace | None = None) -> Network:
    """A `Network` ``fn(z, t)`` for ``z`` ``(B, 2 C, ...)`` that returns ``E[eps | z]`` of that shape and dtype.

    Computed in float64 for float64 ``z``, else in float32; all that depends on t alone in float64.
    """
    process = PhaseSpace() if process is None else process
    shape = (2 * mixture.shape[0], *mixture.shape[1:])

    def ideal(z: Tensor, t: Tensor) -> Tensor:
        if z.shape[1:] != shape:
            raise ValueError(f"x: got shape {tuple(z.shape)}, need (B, {', '.join(map(str, shape))})")
        return expected_eps(mixture, process, z, t)

    return Network(
        ideal, "eps", shape=mixture.shape, exact=mixture._exact, space=process, name="mixture in phase space"
    )


def expected_eps(mixture: GaussianMixture, process: PhaseSpace, z: Tensor, t: Tensor) -> Tensor:
    """``E[eps | z]`` of states ``(B, 2 C, ...)`` at times ``(B,)``."""
    dtype = torch.float64 if z.dtype == torch.float64 else torch.float32
    x, m = (half.reshape(len(z), 1, -1).to(dtype) for half in halves(z))
    means, log_weights = mixture._means.to(x), mixture._weights.log().to(x)

    b = process.b(t.to(torch.float64)).reshape(-1, 1)  # (B, 1), against (K,) of the modes

    def covariance(variance: Any) -> moments.Covariance:
        s = moments.covariance(process.Gamma, process.nu, b, variance, process.gamma * process.M, torch)
        return moments.Covariance(s.xx + process.jitter, s.xm, s.mm + process.jitter)  # the law a network is shown

    own = moments.lower(covariance(mixture._std.to(b.device) ** 2), torch)
    root = (moments.lower if process.factor == "lower" else moments.upper)(covariance(0.0), torch)
    to_score = moments.inverse_transposed(own)
    psi = moments.flow(process.c, process.d, b, torch)

    def cast(value: Any) -> Tensor:
        return torch.as_tensor(value, device=x.device).to(dtype)[..., None]  # (B, K or 1, 1)

    y_x = (x - cast(psi.xx) * means) / cast(own.xx)
    y_m = (m - cast(psi.mx) * means - cast(own.mx) * y_x) / cast(own.mm)
    squares = (y_x * y_x + y_m * y_m).sum(-1)
    dim = x.shape[-1]
    volume = (dim * ((own.xx * own.mm).log() + math.log(2.0 * math.pi))).to(dtype)
    share = (log_weights - volume - 0.5 * squares).softmax(1)[..., None]
    # -score of each half; L_k^-T is upper triangular
    pull_x = (share * (cast(to_score.xx) * y_x + cast(to_score.xm) * y_m)).sum(1)
    pull_m = (share * (cast(to_score.mm) * y_m)).sum(1)
    level = [cast(value)[:, 0] for value in root]
    eps_x = level[0] * pull_x + level[2] * pull_m
    eps_m = level[1] * pull_x + level[3] * pull_m
    half = halves(z)[0].shape
    return torch.cat([eps_x.reshape(half), eps_m.reshape(half)], dim=1).to(z.dtype)
