"""Virtual Brownian trees: paths W on [t0, t1] that are a function of a key, with nothing kept between queries.

An increment W(b) - W(a) is a linear combination of the normals of the tree's nodes, by the Haar expansion of the white
noise dW (Lévy 1948, Ciesielski 1961): a few dozen numbers found here in exact integers, one kernel for the sum.  The
path depends on the key and on (t0, t1) alone, so any list of times, steps or tolerances sees the same path.
Derivation, numbering, accuracy and cost: docs/brownian.md.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Iterable, Sequence

import torch
from torch import Tensor

from . import noise
from .ops import brownian_

DEPTH = 60  # finest times: 2^-60 of the interval, so that numbers of nodes fit into int64
MEAN = 1  # the node of W(t1) - W(t0); node (level, index) of the tree is 2^(level + 1) + index
Query = tuple[list[int], list[float]]  # numbers of nodes, weights


def snap(x: float, tol: float) -> int:
    """The time ``x`` in [0, 1] in units of ``2^-DEPTH``: of all dyadic numbers within ``tol / 2`` a least deep one."""
    centre, reach = round(math.ldexp(x, DEPTH)), int(math.ldexp(tol / 2, DEPTH))
    low, high = max(centre - reach, 0), min(centre + reach, 1 << DEPTH)
    if low == 0:
        return 0
    zeros = ((low - 1) ^ high).bit_length() - 1  # the highest bit that changes on the way: all below it can be 0
    return high >> zeros << zeros


def combination(a: int, b: int, unit: float = 1.0) -> Query:
    """Nodes and weights of W(b) - W(a), ``a <= b`` in units of ``2^-DEPTH`` of an interval of length ``unit``.

    The weights' squares sum to the time from ``a`` to ``b``.  Numbers decrease: small weights are summed first.
    """
    if a == b:
        return [], []
    numbers, weights = [MEAN], [math.ldexp(b - a, -DEPTH) * math.sqrt(unit)]
    for level in range(DEPTH):
        bits = DEPTH - level
        size, mask = 1 << bits, (1 << bits) - 1
        in_a, in_b = a & mask, b & mask  # how far into its node; 0: on an edge
        if not (in_a or in_b):
            break
        at_a, at_b = a >> bits, b >> bits
        # the integral of the node's Haar function up to a time is a triangle
        high_a, high_b = min(in_a, size - in_a), min(in_b, size - in_b)
        ends = [(at_a, high_b - high_a)] if at_a == at_b else [(at_a, -high_a), (at_b, high_b)]
        scale = math.sqrt(math.ldexp(unit, level))
        for index, height in ends:
            if height:
                numbers.append((2 << level) + index)
                weights.append(math.ldexp(height, -DEPTH) * scale)
    return numbers[::-1], weights[::-1]


def table(queries: Sequence[Query]) -> tuple[Tensor, Tensor]:
    """``nodes`` (N, M) int64 and ``weights`` (N, M) float64 of N queries for ``fastsample::brownian``, on the CPU."""
    width = max([1, *(len(numbers) for numbers, _ in queries)])
    nodes = [numbers + [0] * (width - len(numbers)) for numbers, _ in queries]
    weights = [factors + [0.0] * (width - len(factors)) for _, factors in queries]
    return (
        torch.tensor(nodes, dtype=torch.int64).reshape(-1, width),
        torch.tensor(weights, dtype=torch.float64).reshape(-1, width),
    )


class BrownianMotion:
    """One Brownian path per element on [t0, t1], independent of each other: ``motion(ta, tb)`` is W(tb) - W(ta).

    ``like``: a tensor ``(B, ...)`` whose shape, strides, dtype and device the increments get; its values do not matter.
    ``seed``: a whole number, folded with each sample's global index (``sample_ids``, default ``0..B-1``), one per
    sample, or None for one drawn from torch's global generator.  ``tol``: the resolution, in units of time: a time is
    moved by at most ``tol / 2``, to a dyadic point of the interval.  Increments are exact in law for the moved times.

    Raises ``ValueError`` for an empty or infinite interval, ``tol <= 0`` or bad seeds.
    """

    def __init__(
        self,
        t0: float,
        t1: float,
        like: Tensor,
        seed: int | Sequence[int] | None = None,
        *,
        tol: float = 1e-6,
        sample_ids: Sequence[int] | None = None,
    ) -> None:
        self.t0, self.t1, self.tol = float(t0), float(t1), float(tol)
        if not (math.isfinite(self.t1 - self.t0) and self.t0 < self.t1):
            raise ValueError(f"t0, t1: got {t0}, {t1}, allowed are finite times with t0 < t1")
        if not 0 < self.tol < math.inf:
            raise ValueError(f"tol: got {tol}, allowed is a positive number, in units of time")
        if like.dim() < 1:
            raise ValueError("like: got a tensor without dimensions, allowed is (B, ...)")
        if seed is None:
            seed = int(torch.randint(0, 2**63 - 1, ()).item())
        self.key = noise.keys(seed, like.shape[0] if sample_ids is None else sample_ids, like.device)
        if self.key.shape[0] != like.shape[0]:
            raise ValueError(f"sample_ids: got {self.key.shape[0]} for {like.shape[0]} samples; give one per sample")
        self.like = like.detach()
        self._zero = torch.zeros((), dtype=torch.int64, device=like.device)

    def query(self, ta: float, tb: float, normalise: bool = False) -> Query:
        """Nodes and weights of W(tb) - W(ta), over the root of the time between them if ``normalise``.

        Times outside [t0, t1] are clipped, with a ``RuntimeWarning`` if by more than ``tol``; equal times give zeros.
        Raises ``ValueError`` for times that are not finite, and, if ``normalise``, for different times in [t0, t1]
        that ``tol`` does not tell apart.
        """
        inside = self.t0 <= min(ta, tb) and max(ta, tb) <= self.t1
        ta, tb = self._inside(ta, "ta"), self._inside(tb, "tb")
        length = self.t1 - self.t0
        low, high = (snap((t - self.t0) / length, self.tol / length) for t in sorted((ta, tb)))
        if normalise and low == high and ta != tb and inside:
            raise ValueError(f"ta, tb: got {ta!r}, {tb!r}, closer than tol = {self.tol} resolves; give a smaller tol")
        numbers, weights = combination(low, high, length)
        scale = 1 / math.sqrt(math.ldexp(high - low, -DEPTH) * length) if normalise and high > low else 1.0
        return numbers, [math.copysign(scale, tb - ta) * w for w in weights]

    def table(self, times: Iterable[tuple[float, float]], normalise: bool = False) -> tuple[Tensor, Tensor]:
        """``nodes`` and ``weights`` of many queries ``(ta, tb)``, on the device of the state, for the op."""
        nodes, weights = table([self.query(ta, tb, normalise) for ta, tb in times])
        return nodes.to(self.like.device), weights.to(self.like.device)

    def evaluate(self, nodes: Tensor, weights: Tensor, step: Tensor | None = None) -> Tensor:
        """The increments of query ``step`` (int64 ``()`` or ``(B,)``, default 0) of a table.  No host read."""
        out = torch.empty_like(self.like)
        brownian_(out, self.key, nodes, weights, self._zero if step is None else step)
        return out

    def __call__(self, ta: float, tb: float) -> Tensor:
        """W(tb) - W(ta), like ``like``; minus W(ta) - W(tb) if ``tb < ta``."""
        return self.evaluate(*self.table([(ta, tb)]))

    def _inside(self, t: float, name: str) -> float:
        t = float(t)
        if not math.isfinite(t):
            raise ValueError(f"{name}: got {t}, allowed are finite times")
        clipped = min(max(t, self.t0), self.t1)
        if abs(t - clipped) > self.tol:
            warnings.warn(
                f"{name}: got {t}, outside [{self.t0}, {self.t1}]; clipped to {clipped}", RuntimeWarning, stacklevel=4
            )
        return clipped


class BrownianTreeNoiseSampler:
    """Unit-variance noise of a step from a Brownian path over noise levels: as k-diffusion, ComfyUI and diffusers use.

    ``sampler(sigma, sigma_next)`` is (W(b) - W(a)) / sqrt(|b - a|) for a, b = ``transform`` of the two levels.  So the
    noise of two steps is independent where they do not overlap, and other step counts see the same path.

    ``x``: the state ``(B, ...)``.  ``sigma_min``, ``sigma_max``: the ends of the path, floats or tensors of one
    element.  ``seed``: a whole number, one per sample, or None (torch's global generator); a sample's noise does not
    depend on its batch.  ``transform``: from levels to times, monotone; gets a float64 tensor without dimensions.
    ``cpu`` is accepted and ignored: the numbers are the same on every device.  ``tol``: see ``BrownianMotion``.

    Levels given as tensors on a GPU are read by the host, once per call; pass floats, or ``prepare`` and ``at``.
    The numbers are not those of torchsde, whose tree is another function of the seed.
    """

    def __init__(
        self,
        x: Tensor,
        sigma_min: float | Tensor,
        sigma_max: float | Tensor,
        seed: int | Sequence[int] | None = None,
        transform: Callable[[Tensor], Tensor] = lambda sigma: sigma,
        cpu: bool = False,
        *,
        tol: float = 1e-6,
    ) -> None:
        self.transform = transform
        t0, t1 = sorted((self._time(sigma_min), self._time(sigma_max)))
        self.motion = BrownianMotion(t0, t1, x, seed, tol=tol)
        self._rows: dict[tuple[float, float], int] = {}
        self._table: tuple[Tensor, Tensor] | None = None
        self._steps = torch.empty(0, dtype=torch.int64)

    def prepare(self, sigmas: Sequence[float] | Tensor) -> None:
        """Find the weights of a whole run at once: ``sigmas`` are N + 1 levels, or ``(N, 2)`` pairs of them.

        Calls with these levels then compute no weights, and ``at(i)`` reads nothing from the device.  Levels beyond the
        ends of the path are clipped silently (the final 0 of a list, whose step has no noise).
        """
        levels = torch.as_tensor(sigmas, dtype=torch.float64).detach().cpu()
        if not (levels.dim() == 1 or (levels.dim() == 2 and levels.shape[1] == 2)):
            raise ValueError(f"sigmas: got shape {tuple(levels.shape)}, allowed are (N + 1,) levels or (N, 2) pairs")
        pairs = torch.stack([levels[:-1], levels[1:]], dim=1) if levels.dim() == 1 else levels
        keys = [(float(a), float(b)) for a, b in pairs]
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", RuntimeWarning)
            self._table = self.motion.table([(self._time(a), self._time(b)) for a, b in keys], normalise=True)
        self._rows = {key: i for i, key in enumerate(keys)}
        self._steps = torch.arange(len(keys), device=self._table[0].device)

    def at(self, step: int | Tensor) -> Tensor:
        """The noise of prepared step ``step``: a number, or int64 ``()`` or ``(B,)`` on the device of the state."""
        if self._table is None:
            raise ValueError("at: nothing is prepared; call prepare(sigmas) first")
        if isinstance(step, int):
            if not 0 <= step < len(self._steps):
                raise ValueError(f"step: got {step}, allowed are 0..{len(self._steps) - 1}")
            step = self._steps[step]
        return self.motion.evaluate(*self._table, step)

    def __call__(self, sigma: float | Tensor, sigma_next: float | Tensor) -> Tensor:
        """Unit-variance noise of the step from ``sigma`` to ``sigma_next``, like ``x``.

        Levels outside the path are clipped with a ``RuntimeWarning``; equal levels give zeros.  Raises ``ValueError``
        for levels closer than ``tol``.
        """
        sigma, sigma_next = _number(sigma), _number(sigma_next)
        row = self._rows.get((sigma, sigma_next))
        if row is not None:
            return self.at(row)
        times = (self._time(sigma), self._time(sigma_next))
        return self.motion.evaluate(*self.motion.table([times], normalise=True))

    def _time(self, sigma: float | Tensor) -> float:
        return _number(self.transform(torch.as_tensor(_number(sigma), dtype=torch.float64)))


def _number(value: float | Tensor) -> float:
    return float(value.detach() if isinstance(value, Tensor) else value)
