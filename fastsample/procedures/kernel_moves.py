"""Moves of the chains on a reverse transition kernel, and the log-ratio of their choices.  Host, float64.

With the step tau and the gradient of the potential g (kernel_target.py):

    ULA, MALA   z' = z - tau grad g(z) + sqrt(2 tau) xi
    ULD         underdamped Langevin with the force frozen over the step, exact otherwise (fastsample.langevin.ou)

MALA accepts z' with probability min(1, rho).  The quadratic part of g drops out: with d = z' - z

    log rho = -df + d . (grad f + grad f') / 2 + (tau / 4)(|grad g|^2 - |grad g'|^2),    df = f(z') - f(z)

and df alone must come from an energy, or from scores on the way from z to z' (fastsample.langevin.estimators).
Huang et al. 2024, arXiv 2405.16387, algorithms 2 and 3.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from fastsample import row
from fastsample.langevin import ou
from fastsample.langevin.estimators import Estimator
from fastsample.path import Array
from fastsample.procedures.kernel_target import Combo, Segment, mix


def proposal(segment: Segment, tau: float) -> Combo:
    """z' of a step tau, from z, e, x and xi0."""
    return mix((1.0, {"z": 1.0, "xi0": (2.0 * tau) ** 0.5}), (-tau, segment.force))


def between(node: float, moved: Combo) -> Combo:
    """``z + node (z' - z)``."""
    return mix((1.0 - node, {"z": 1.0}), (node, moved))


def ratio(segment: Segment, how: Estimator) -> tuple[Combo, Combo, Combo]:
    """Weights A, G, H of the operands of ``metropolis_`` (docs/metropolis.md), by the names of their tensors.

    ``z1``, ``f`` are the proposal and the output there; ``e1``, ``e2``, ... those between.
    """
    grad = segment.grad
    at_end = _renamed(grad, {"z": "z1", "e": "f"})
    q = mix((0.5 - how.ends[0], grad), (0.5 - how.ends[1], at_end))
    for k, (node, weight) in enumerate(zip(how.nodes, how.weights, strict=True), 1):
        inside = {f"e{k}": grad["e"], "z": (1.0 - node) * grad.get("z", 0.0), "z1": node * grad.get("z", 0.0)}
        q = mix((1.0, q), (-weight, inside))
    g = segment.force
    return q, g, _renamed(g, {"z": "z1", "e": "f"})


def _renamed(combo: Combo, names: Mapping[str, str]) -> Combo:
    return {names.get(source, source): weight for source, weight in combo.items()}


def move(terms: Sequence[str], outputs: Sequence[Combo], draws: Sequence[int] = (), share: float = 1.0) -> Array:
    """A row ``(48,)`` of ``update_`` that writes combinations of the named terms and of the draws xi0, xi1.

    Under guidance the output is two terms, ``"e"`` and ``"e-"``, of which ``share`` and ``1 - share`` are taken.
    """
    weights: list[dict[int | str, float]] = []
    for combo in outputs:
        found: dict[int | str, float] = {}
        for source, weight in combo.items():
            if source in ("xi0", "xi1"):
                found[source] = weight
            elif weight != 0.0:
                found[terms.index(source)] = weight * (share if source == "e" and "e-" in terms else 1.0)
                if source == "e" and "e-" in terms:
                    found[terms.index("e-")] = weight * (1.0 - share)
        weights.append(found)
    return row.make_row(outputs=weights, draws=draws)


def kick(segment: Segment, friction: float, tau: float) -> tuple[Combo, Combo]:
    """z and the velocity u after an underdamped move of length tau, from z, u, e, x and two noises."""
    m, force = ou.move(friction, tau), segment.force
    z = mix((1.0, {"z": 1.0, "u": m.p1, "xi0": m.l_1, "xi1": m.l_2}), (-m.p2, force))
    return z, mix((1.0, {"u": m.e, "xi0": m.l_v}), (-m.p1, force))
