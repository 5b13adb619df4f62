"""Differences of a potential that is known by its gradient only, from gradients on the way between two points.

The Metropolis step needs ``df = f(z') - f(z)``.  With ``d = z' - z`` it is the line integral of ``d . grad f``, for
which every rule of quadrature is an estimator.  Huang et al. 2024, arXiv 2405.16387, algorithm 2; the line integral of
learned scores: Sjoeberg et al. 2023, arXiv 2307.14012.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

ESTIMATORS = ("energy", "trapezoid", "simpson", "taylor1", "line(1)", "line(2)", "line(3)")
MOST_NODES = 3  # outputs between z and z' that rows of metropolis_ are made for here


@dataclass(frozen=True)
class Estimator:
    """``df = d . (ends[0] grad f(z) + ends[1] grad f(z') + sum_k weights[k] grad f(z + nodes[k] d))``."""

    ends: tuple[float, float] = (0.0, 0.0)
    nodes: tuple[float, ...] = ()
    weights: tuple[float, ...] = ()
    energy: bool = False


def estimator(name: str) -> Estimator:
    """The estimator of a name; raises ``ValueError`` for one that is none.

    ``trapezoid`` costs no call but hardly corrects anything; ``simpson`` and ``line(n)`` (Gauss-Legendre) cost 1 and n
    calls per proposal; ``taylor1`` is not antisymmetric in z and z', so its chain is reversible for no law at all: it
    is there to compare.
    """
    if name == "energy":
        return Estimator(energy=True)
    if name == "trapezoid":
        return Estimator((0.5, 0.5))
    if name == "taylor1":
        return Estimator((1.0, 0.0))
    if name == "simpson":
        return Estimator((1.0 / 6.0, 1.0 / 6.0), (0.5,), (2.0 / 3.0,))
    found = re.fullmatch(r"line\((\d+)\)", name) if isinstance(name, str) else None
    if found is None or not 1 <= int(found[1]) <= MOST_NODES:
        raise ValueError(f"estimator: got {name!r}, allowed are auto, {', '.join(ESTIMATORS)}")
    x, w = np.polynomial.legendre.leggauss(int(found[1]))
    return Estimator(nodes=tuple((0.5 * (x + 1.0)).tolist()), weights=tuple((0.5 * w).tolist()))


def settle_radii(radii: Sequence[float | None] | None) -> tuple[float, float]:
    """The greatest ``|z' - z|`` and ``|z'|`` that are accepted; infinite where there is none."""
    inf = float("inf")
    if radii is None:
        return inf, inf
    try:
        move, norm = (inf if value is None else float(value) for value in radii)
    except (TypeError, ValueError):
        move = norm = -1.0
    if not (move > 0.0 and norm > 0.0):
        raise ValueError(f"radii: got {radii!r}, allowed are None and (|z' - z|, |z'|), numbers > 0 or None")
    return move, norm
