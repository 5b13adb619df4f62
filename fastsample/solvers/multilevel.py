"""Which levels of a ladder a step of multilevel Euler-Maruyama asks, and with what weight.

Jacot 2026, arXiv 2603.24594.  With predictions e_0, ..., e_K of growing cost and e_{-1} = 0, a step uses

    e_hat = sum_k B_k / p_k (e_k - e_{k-1}) = sum_k omega_k e_k,    omega_k = B_k / p_k - B_{k+1} / p_{k+1}

with B_k = 1 with probability p_k, else 0: its mean is e_K, and a level whose omega is 0 is not asked.  All of this is
decided on the host, from a stream of its own, before the run.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from fastsample.path import Array, Path
from fastsample.solvers.registry import check_choice, check_range

DRAWS = ("independent", "nested", "systematic")
Flags = npt.NDArray[np.bool_]


def weights(flags: Flags, p: Array) -> Array:
    """``omega`` of the same shape ``(..., K + 1)`` as the Bernoullis ``flags``; ``p`` broadcasts with them."""
    share: Array = np.divide(
        flags, p, out=np.zeros(np.broadcast_shapes(flags.shape, p.shape)), where=np.asarray(flags, bool)
    )
    omega: Array = share.copy()
    omega[..., :-1] -= share[..., 1:]
    return omega


def pair_costs(costs: Sequence[float]) -> Array:
    """Cost of one increment ``e_k - e_{k-1}``: that of both levels."""
    c = np.asarray(costs, dtype=np.float64)
    pairs: Array = c + np.concatenate([[0.0], c[:-1]])
    return pairs


def expected_cost(p: Array, costs: Sequence[float], draws: str = "independent") -> float:
    """Expected cost of a run with probabilities ``(N, K + 1)``: level k is asked unless ``omega_k = 0``."""
    after = np.concatenate([p[:, 1:], np.zeros((len(p), 1))], axis=1)
    both = after if draws == "nested" else p * after  # probability that B_k = B_{k+1} = 1, p falling with k if nested
    cancels = np.where((p == after) & (after > 0), both, 0.0)
    return float(((p + after - both - cancels) * np.asarray(costs)).sum())


def law(levels: int, gamma: float, c: float) -> Array:
    """The paper's ``p_k = min(1, C 2^{-(1 + gamma/2) k})``: errors halve and costs grow ``2^gamma`` times per level."""
    p: Array = np.minimum(1.0, c * 2.0 ** (-(1.0 + gamma / 2.0) * np.arange(levels)))
    return p


def optimum(variances: Array, costs: Sequence[float], b: Array, gains: Array | None = None) -> Callable[[float], Array]:
    """The probabilities of least final variance at a given cost, as a function of the multiplier kappa.

    ``p_k(i) = min(1, kappa G_i |b_i| sqrt(V_k(i) / c_k))`` minimises ``sum G^2 b^2 V (1/p - 1)`` at a fixed
    ``sum p c``.  ``variances`` ``(N, K + 1)`` or ``(K + 1,)``: ``E|e_k - e_{k-1}|^2``, as `fastsample.multilevel.pilot`
    measures; ``b`` ``(N,)``: weight of the prediction in each step; ``gains`` ``(N,)``: growth of a perturbation from
    there to the end, 1 if None.
    """
    g = np.ones(len(b)) if gains is None else np.asarray(gains, dtype=np.float64)
    v = np.broadcast_to(np.asarray(variances, dtype=np.float64), (len(b), len(costs)))
    raw = (g * np.abs(b))[:, None] * np.sqrt(v / pair_costs(costs))
    return lambda kappa: np.minimum(1.0, kappa * raw)


def at_cost(
    make: Callable[[float], Array], budget: float, costs: Sequence[float], steps: int, draws: str = "independent"
) -> Array:
    """Probabilities ``(N, K + 1)`` of a family that grows with its argument, with expected cost ``budget``.

    ``p_0`` is 1: then any prediction can be combined.  Raises ``ValueError`` for a budget below what that alone costs;
    one beyond the largest cost of the family gives all ones.
    """

    def full(c: float) -> Array:
        p = np.array(np.broadcast_to(make(c), (steps, len(costs))))
        p[:, 0] = 1.0
        return np.maximum(p, 1e-12)

    least = costs[0] * steps
    if not budget >= least:
        raise ValueError(
            f"budget: got {budget:g} in units of the cost, need {least:g} or more: the first level runs in each step"
        )
    low, high = -60.0, 60.0  # log2 of the argument
    for _ in range(100):
        middle = (low + high) / 2.0
        low, high = (middle, high) if expected_cost(full(2.0**middle), costs, draws) < budget else (low, middle)
    return full(2.0**low)


def check_probabilities(name: str, value: Any, steps: int, levels: int) -> Array:
    """``(steps, levels)`` in (0, 1], from one row or one row per step.  Raises ``ValueError`` otherwise."""
    try:
        p = np.array(np.broadcast_to(np.asarray(value, dtype=np.float64), (steps, levels)))
    except (TypeError, ValueError):
        raise ValueError(
            f"{name}: got {np.shape(value)}, allowed are {levels} probabilities, or {steps} rows of them"
        ) from None
    if not ((p > 0.0) & (p <= 1.0)).all():
        raise ValueError(f"{name}: got {p[~((p > 0) & (p <= 1))][0]}, allowed are probabilities above 0 and up to 1")
    return p


def probabilities(
    path: Path,
    costs: Sequence[float],
    *,
    p: Any,
    rates: Any,
    budget: float | None,
    gamma: float,
    final: int,
    draws: str,
) -> Array:
    """The table ``(N, K + 1)`` that the options name; see `fastsample.procedures.multilevel`."""
    given = [name for name, value in (("p", p), ("rates", rates), ("budget", budget)) if value is not None]
    if len(given) > 1:
        raise ValueError(f"{given[1]}: got {given[0]} too; both say how often levels are asked, give one of them")
    n, count = path.steps, len(costs)
    if p is not None:
        made = check_probabilities("p", p, n, count)
    elif rates is not None:
        per_unit = np.asarray(rates, dtype=np.float64)
        if per_unit.shape != (count,) or not (per_unit > 0).all():
            raise ValueError(f"rates: got {rates!r}, need {count} numbers above 0, one per level")
        made = np.minimum(1.0, np.abs(np.diff(path.t))[:, None] * per_unit)
    else:
        check_range("gamma", gamma, 0.0)
        share = check_range("budget", 0.25 if budget is None else budget, 0.0, 1.0)
        made = at_cost(lambda c: law(count, gamma, c), share * n * costs[-1], costs, n, draws)
    if isinstance(final, bool) or not isinstance(final, int) or not 0 <= final <= n:
        raise ValueError(f"final: got {final!r}, allowed are 0..{n} steps")
    made[n - final :] = 1.0
    return made


def draw(p: Array, uniforms: Array, kind: str) -> Flags:
    """Bernoullis ``(..., N, K + 1)`` of the probabilities ``(N, K + 1)`` from uniforms of the same shape.

    ``"independent"``; ``"nested"``: one uniform per step (that of level 0) decides all levels, so that the levels asked
    are always the first ones; ``"systematic"``: along the steps of a level the number of ones never differs from the
    sum of its probabilities by one or more (the uniform of step 0 decides).  Every kind has mean p.
    """
    check_choice("draws", kind, DRAWS)
    if kind == "independent":
        flags: Flags = uniforms < p
        return flags
    if kind == "nested":
        if (np.diff(p, axis=-1) > 0).any():
            raise ValueError("draws: 'nested' needs probabilities that do not grow with the level")
        return uniforms[..., :1] < p
    total = np.concatenate([np.zeros((1, p.shape[1])), np.cumsum(p, axis=0)]) + uniforms[..., :1, :]
    return np.diff(np.floor(total), axis=-2) > 0
