"""The Gaussian mixture: a data distribution whose ideal network is known exactly, at any dimension.

With data ``x0 ~ sum_k w_k N(mu_k, s_k^2 I)`` the state ``x = alpha x0 + sigma eps`` is again a mixture, with means
``alpha mu_k`` and variances ``v_k = alpha^2 s_k^2 + sigma^2``.  With the responsibilities ``r_k(x)`` of its modes

    score     = -sum_k r_k (x - alpha mu_k) / v_k          eps = -sigma * score
    E[x0 | x] =  sum_k r_k (mu_k + alpha s_k^2 / v_k (x - alpha mu_k))

so that every sampler has a ground truth.  Everything is made of differentiable PyTorch operations.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from .. import noise
from .ladder import Ladder
from .network import Network

if TYPE_CHECKING:
    from ..solvers.phase.process import PhaseSpace

Level = float | Tensor  # a number, or one per sample (B,)

_LADDER = 0x6C6164  # of the fixed random waves of a ladder
_STREAM = 0x6D6978  # exact samples of a seed are independent of the noise that a sampler draws with the same seed
_CHUNK = 1 << 24  # elements of the largest temporary: modes are taken in groups that stay below it


class GaussianMixture:
    """Mixture of K isotropic Gaussians over samples of any shape.

    Args:
        means: ``(K, *shape)``, any float dtype; kept in float64.
        std: standard deviation of every mode, one number >= 0 or ``(K,)``.  0 is a point mass (an empirical data set):
            then nothing can be evaluated at ``sigma = 0``.
        weights: ``(K,)``, >= 0, scaled to sum 1.  None: all equal.

    Results have the dtype of ``x`` and are computed in float64 for float64 ``x``, else in float32.  ``alpha`` and
    ``sigma`` are numbers or tensors ``(B,)``, one per sample.

    Raises:
        TypeError: an argument that is no tensor or sequence of numbers.
        ValueError: no modes, shapes that do not fit, values that are negative or not finite.
    """

    def __init__(self, means: Tensor, std: float | Sequence[float] | Tensor, weights: Any = None) -> None:
        means = _as_double(means, "means")
        if means.ndim < 2 or means.numel() == 0:
            raise ValueError(f"means: got shape {tuple(means.shape)}, need (K, *shape) with K >= 1")
        count = len(means)
        spread = _as_double(std, "std")
        if spread.ndim > 1 or (spread.ndim == 1 and len(spread) != count):
            raise ValueError(f"std: got shape {tuple(spread.shape)}, need one number or ({count},), one per mode")
        mass = torch.ones(count, dtype=torch.float64) if weights is None else _as_double(weights, "weights")
        if tuple(mass.shape) != (count,):
            raise ValueError(f"weights: got shape {tuple(mass.shape)}, need ({count},), one per mode")
        if bool((spread < 0).any()):
            raise ValueError(f"std: got {float(spread.min())}, need 0 or more")
        if bool((mass < 0).any()) or float(mass.sum()) <= 0:
            raise ValueError("weights: need numbers of 0 or more with a positive sum")
        self.shape = tuple(means.shape[1:])
        self._means = means.reshape(count, -1)
        self._std = spread.expand(count).clone()
        self._weights = mass / mass.sum()
        self._ready: dict[tuple[torch.device, torch.dtype], tuple[Tensor, Tensor, Tensor]] = {}

    @property
    def modes(self) -> int:
        """K."""
        return len(self._means)

    @property
    def means(self) -> Tensor:
        """``(K, *shape)`` float64."""
        return self._means.reshape(self.modes, *self.shape)

    @property
    def std(self) -> Tensor:
        """``(K,)`` float64."""
        return self._std

    @property
    def weights(self) -> Tensor:
        """``(K,)`` float64, sum 1."""
        return self._weights

    @classmethod
    def ring(cls, modes: int = 8, radius: float = 1.0, std: float = 0.08) -> GaussianMixture:
        """``modes`` equal Gaussians on a circle in the plane."""
        if modes < 1:
            raise ValueError(f"modes: got {modes}, need 1 or more")
        angle = torch.arange(modes, dtype=torch.float64) * (2 * math.pi / modes)
        return cls(radius * torch.stack([angle.cos(), angle.sin()], dim=1), std)

    # What an ideal network predicts for the state x (B, *shape) at the level (alpha, sigma).

    def eps(self, x: Tensor, alpha: Level, sigma: Level) -> Tensor:
        """Expected noise ``E[eps | x]``, shaped like ``x``."""
        return self._posterior(x, alpha, sigma)[1].reshape(x.shape).to(x.dtype)

    def x0(self, x: Tensor, alpha: Level, sigma: Level) -> Tensor:
        """Expected data ``E[x0 | x]``, shaped like ``x``."""
        return self._posterior(x, alpha, sigma)[0].reshape(x.shape).to(x.dtype)

    def v(self, x: Tensor, alpha: Level, sigma: Level) -> Tensor:
        """Velocity ``alpha E[eps | x] - sigma E[x0 | x]``, shaped like ``x``."""
        x0, eps, a, s = self._posterior(x, alpha, sigma)
        return (a * eps - s * x0).reshape(x.shape).to(x.dtype)

    def flow(self, x: Tensor, alpha: Level, sigma: Level) -> Tensor:
        """Velocity of rectified flow ``E[eps | x] - E[x0 | x]``, shaped like ``x``."""
        x0, eps, _, _ = self._posterior(x, alpha, sigma)
        return (eps - x0).reshape(x.shape).to(x.dtype)

    def score(self, x: Tensor, alpha: Level = 1.0, sigma: Level = 0.0) -> Tensor:
        """Gradient of the log-density of the state, shaped like ``x``."""
        flat, a, s = self._flatten(x, alpha, sigma)
        means, spread, _ = self._constants(flat)
        variance = a**2 * spread**2 + s**2
        share = self._log_joint(flat, a, s).softmax(1) / variance
        value = a * (share @ means) - share.sum(1, keepdim=True) * flat
        return value.reshape(x.shape).to(x.dtype)

    def log_prob(self, x: Tensor, alpha: Level = 1.0, sigma: Level = 0.0) -> Tensor:
        """Log-density ``(B,)`` of the state; of the data itself at the default level."""
        return self._log_joint(*self._flatten(x, alpha, sigma)).logsumexp(1).to(x.dtype)

    def responsibilities(self, x: Tensor, alpha: Level = 1.0, sigma: Level = 0.0) -> Tensor:
        """Probability ``(B, K)`` of each mode given the state."""
        return self._log_joint(*self._flatten(x, alpha, sigma)).softmax(1).to(x.dtype)

    def sample(
        self,
        count: int | None = None,
        *,
        seed: int | Sequence[int] = 0,
        sample_ids: Sequence[int] | Tensor | None = None,
        alpha: float = 1.0,
        sigma: float = 0.0,
        dtype: torch.dtype = torch.float32,
        device: torch.device | str = "cpu",
    ) -> Tensor:
        """Exact independent samples ``(B, *shape)`` of the state at a level; of the data by default.

        A sample depends on ``seed`` and its global index alone: the first ``count`` ones, or those of ``sample_ids``.
        """
        ids = count if sample_ids is None else sample_ids
        if ids is None or (count is not None and sample_ids is not None):
            raise ValueError("count, sample_ids: give exactly one of them")
        key = noise.fold_in(noise.keys(seed, ids, device), _STREAM)
        compute = torch.float64 if dtype == torch.float64 else torch.float32
        u = noise.uniform((len(key), 1), noise.fold_in(key, 0)).double().squeeze(1)
        edges = self._weights.cumsum(0).to(u.device)
        mode = torch.searchsorted(edges, u, right=True).clamp_max(self.modes - 1)
        xi = noise.normal_like(torch.empty(len(key), *self.shape, dtype=compute, device=device), noise.fold_in(key, 1))
        variance = alpha**2 * self._std**2 + sigma**2
        centre = (alpha * self.means).to(device, compute)[mode]
        width = variance.sqrt().to(device, compute)[mode]
        return (centre + width.reshape(-1, *[1] * len(self.shape)) * xi).to(dtype)

    def network(self, prediction: str = "v") -> Network:
        """The ideal network of this data: told the log-SNR and fed the VP-normalised state, so that any path will do.

        ``prediction``: ``"eps"``, ``"x0"`` or ``"v"``; or ``"flow"``, which is told the time of rectified flow
        (``alpha = 1 - t, sigma = t``) and fed the state as it is.  A score is no choice: it has the unit of the state,
        which the log-SNR does not tell.
        """
        facts: dict[str, Any] = {"shape": self.shape, "exact": self._exact, "name": "mixture"}
        facts["width"] = float(self._std.min())
        made: dict[str, Callable[[Tensor, Level, Level], Tensor]] = {
            "eps": self.eps,
            "x0": self.x0,
            "v": self.v,
        }
        if prediction == "flow":
            facts["energy"] = lambda x, t: -self.log_prob(x.double(), 1 - t.double(), t.double())
            return Network(lambda x, t: self.flow(x, 1 - t, t), "flow", schedule="flow", **facts)
        if prediction not in made:
            raise ValueError(f"prediction: got {prediction!r}, allowed are {', '.join([*made, 'flow'])}")
        predict = made[prediction]

        def level(lam: Tensor) -> tuple[Tensor, Tensor]:
            return torch.sigmoid(2 * lam).sqrt(), torch.sigmoid(-2 * lam).sqrt()

        def ideal(x: Tensor, lam: Tensor) -> Tensor:
            return predict(x, *level(lam))

        def energy(x: Tensor, lam: Tensor) -> Tensor:
            return -self.log_prob(x.double(), *level(lam.double()))

        return Network(ideal, prediction, time="log-snr", input_scaling="vp", energy=energy, **facts)

    def ladder(self, levels: int = 5, prediction: str = "eps", error: float = 0.5, gamma: float = 2.5) -> Ladder:
        """The ideal network with errors that halve from level to level, at costs that grow ``2^gamma`` times.

        Level k predicts ``eps + error 2^{-k} sin(W_k x + phi_k)`` with fixed random ``W_k``, ``phi_k``, the last level
        ``eps`` itself: what a ladder of trained networks is in theory (Jacot 2026, arXiv 2603.24594), without training
        one.  ``prediction``: ``"eps"`` only.
        """
        if prediction != "eps" or not isinstance(levels, int) or levels < 1:
            raise ValueError(f"levels, prediction: got {levels!r}, {prediction!r}, allowed are 1 or more and 'eps'")
        ideal = self.network("eps")
        size = self._means.shape[1]

        def level(k: int) -> Network:
            key = noise.fold_in(noise.keys(_LADDER, 1), k)
            w, phase = noise.normal_like(torch.empty(1, size, size), key), noise.uniform((1, size), key, 1)

            def predict(x: Tensor, lam: Tensor) -> Tensor:
                flat = x.flatten(1)
                wave = torch.sin(flat @ w[0].to(flat) / size**0.5 + 2 * math.pi * phase.to(flat))
                out: Tensor = ideal.fn(x, lam) + error * 2.0**-k * wave.reshape(x.shape)
                return out

            facts: dict[str, Any] = {"shape": self.shape, "exact": self._exact, "name": "mixture"}
            return Network(predict, "eps", time="log-snr", input_scaling="vp", **facts)

        return Ladder([*map(level, range(levels - 1)), ideal], [2.0 ** (gamma * k) for k in range(levels)])

    def phase_space(self, process: PhaseSpace | None = None) -> Network:
        """The ideal phase-space network of this data, fed ``(B, 2 C, ...)``: position and momentum along dimension 1.

        ``process``: None for the `PhaseSpace` of the published CIFAR-10 networks.  Samples have at least one dimension.
        """
        from .phase_mixture import phase_network

        return phase_network(self, process)

    def _exact(self, number: int, seed: int) -> Tensor:
        return self.sample(number, seed=seed)

    def _constants(self, like: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Means (K, D), std (K,) and log-weights (K,) on the device and in the dtype of ``like``."""
        where = (like.device, like.dtype)
        if where not in self._ready:
            parts = (self._means, self._std, self._weights.log())
            with torch.inference_mode(False):  # kept for later calls, which may want gradients
                self._ready[where] = tuple(part.to(*where) for part in parts)  # type: ignore[assignment]
        return self._ready[where]

    def _flatten(self, x: Tensor, alpha: Level, sigma: Level) -> tuple[Tensor, Tensor, Tensor]:
        """The state (B, D) and its level (1 or B, 1) in the compute dtype."""
        if not isinstance(x, Tensor) or not x.is_floating_point():
            raise TypeError(f"x: got {getattr(x, 'dtype', type(x).__name__)}, need a floating tensor")
        if x.ndim != len(self.shape) + 1 or tuple(x.shape[1:]) != self.shape:
            raise ValueError(f"x: got shape {tuple(x.shape)}, need (B, {', '.join(map(str, self.shape))})")
        dtype = torch.float64 if x.dtype == torch.float64 else torch.float32
        level = []
        for name, value in (("alpha", alpha), ("sigma", sigma)):
            number = torch.as_tensor(value, dtype=dtype, device=x.device)
            if number.ndim > 1 or (number.ndim == 1 and len(number) not in (1, len(x))):
                raise ValueError(f"{name}: got shape {tuple(number.shape)}, need a number or ({len(x)},)")
            level.append(number.reshape(-1, 1))
        return x.reshape(len(x), -1).to(dtype), level[0], level[1]

    def _log_joint(self, x: Tensor, alpha: Tensor, sigma: Tensor) -> Tensor:
        """Log of weight times density of each mode, (B, K), of a state (B, D)."""
        means, spread, log_weights = self._constants(x)
        group = max(1, _CHUNK // max(1, x.numel()))
        # From plain differences: |x|^2 - 2 x mu + |mu|^2 would lose the digits that decide near a mode.
        squares = [(x[:, None] - alpha[:, :, None] * part).square().sum(-1) for part in means.split(group)]
        variance = alpha**2 * spread**2 + sigma**2
        normal = -0.5 * (torch.cat(squares, 1) / variance + x.shape[1] * (2 * math.pi * variance).log())
        return log_weights + normal

    def _posterior(self, x: Tensor, alpha: Level, sigma: Level) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Expected data and noise (B, D) and the level (1 or B, 1), in the compute dtype."""
        flat, a, s = self._flatten(x, alpha, sigma)
        means, spread, _ = self._constants(flat)
        r = self._log_joint(flat, a, s).softmax(1)
        variance = a**2 * spread**2 + s**2
        keep = r * a * spread**2 / variance
        x0 = (r * s**2 / variance) @ means + keep.sum(1, keepdim=True) * flat
        share = r * s / variance
        eps = share.sum(1, keepdim=True) * flat - a * (share @ means)
        return x0, eps, a, s


def _as_double(value: Any, name: str) -> Tensor:
    try:
        tensor = torch.as_tensor(value).detach().to("cpu", torch.float64)
    except (TypeError, ValueError, RuntimeError) as error:
        raise TypeError(f"{name}: got {type(value).__name__}, need numbers or a tensor") from error
    if not bool(tensor.isfinite().all()):
        raise ValueError(f"{name}: got NaN or infinity, need finite numbers")
    return tensor
