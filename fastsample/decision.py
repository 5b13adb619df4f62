"""The layout of one row of ``metropolis_``, and a builder that names its entries.

See docs/metropolis.md for the arithmetic.  A row is ``COLUMNS`` float64 numbers: a row of ``update_`` (the move), then
the weights of the log-ratio by operand, then what belongs to the whole chain.
"""

from __future__ import annotations

import math
from collections.abc import Mapping

import numpy as np
import numpy.typing as npt

from . import row

COLUMNS = 96
MAX_TERMS = 4
OPERANDS = ("state", "proposal", "cache", "fresh", *(f"term{j}" for j in range(MAX_TERMS)))

RATIO, KAPPA, ENERGY, RADIUS, DRAW = 48, 80, 81, 82, 84  # RADIUS + 0, 1

CHAIN = ("energy", "proposed", "log_ratio", "accept", "count")  # columns of the chain's numbers (B, 5)

Array = npt.NDArray[np.float64]


def a(operand: int) -> int:
    """Column of ``A_operand``, the weight in q."""
    return RATIO + 4 * operand


def g(operand: int) -> int:
    """Column of ``G_operand``, the weight in the gradient at the state."""
    return RATIO + 4 * operand + 1


def h(operand: int) -> int:
    """Column of ``H_operand``, the weight in the gradient at the proposal."""
    return RATIO + 4 * operand + 2


def make_decision(
    move: Array | None = None,
    *,
    A: Mapping[str, float] | None = None,
    G: Mapping[str, float] | None = None,
    H: Mapping[str, float] | None = None,
    kappa: float = 0.0,
    energy: bool = False,
    radii: tuple[float, float] = (math.inf, math.inf),
    draw: int = 0,
) -> Array:
    """One row ``(96,)`` float64 of ``metropolis_``.

    ``move``: the row ``(48,)`` of the next proposal over the terms (state, cache, term0, ...), see ``row.make_row``;
    none moves nothing.  ``A``, ``G``, ``H`` map operands (``"state"``, ``"proposal"``, ``"cache"``, ``"fresh"``,
    ``"term0"`` to ``"term3"``) to weights.  ``kappa``: a quarter of the step.  ``energy``: whether the energies of the
    chain enter.  ``radii``: the greatest ``|proposal - state|`` and ``|proposal|``.  ``draw``: the number of the
    uniform.  Raises ``ValueError`` on an unknown operand, a weight that is not finite, a radius that is NaN or below
    0, or a draw that is no whole number in ``[0, 2^31)``.
    """
    decision = np.zeros(COLUMNS, dtype=np.float64)
    decision[: row.COLUMNS] = row.blank() if move is None else _move(move)
    for name, column, weights in (("A", a, A), ("G", g, G), ("H", h, H)):
        for operand, weight in (weights or {}).items():
            if operand not in OPERANDS:
                raise ValueError(f"{name}: got operand {operand!r}, allowed are {', '.join(OPERANDS)}")
            decision[column(OPERANDS.index(operand))] = weight
    decision[KAPPA], decision[ENERGY], decision[DRAW] = kappa, float(bool(energy)), draw
    decision[RADIUS : RADIUS + 2] = radii
    check_decisions(decision[None], "decision")
    return decision


def check_decisions(table: Array, name: str = "table") -> None:
    """Raise ``ValueError`` unless ``table`` is ``(N, 96)`` float64 and all rows are as ``make_decision`` makes them."""
    if table.ndim != 2 or table.shape[1] != COLUMNS or table.dtype != np.float64:
        raise ValueError(f"{name}: got shape {table.shape} dtype {table.dtype}, allowed is (N, {COLUMNS}) float64")
    row.check_table(table[:, : row.COLUMNS], name)
    weights = table[:, RATIO:ENERGY]
    if not np.isfinite(weights).all():
        i, j = np.argwhere(~np.isfinite(weights))[0]
        raise ValueError(f"{name}: row {i} has a weight that is not finite ({weights[i, j]})")
    for column, allowed, good in (
        (ENERGY, "0 or 1", np.isin(table[:, ENERGY], (0, 1))),
        (RADIUS, "a radius of 0 or more", table[:, RADIUS] >= 0),
        (RADIUS + 1, "a radius of 0 or more", table[:, RADIUS + 1] >= 0),
        (DRAW, "a whole number in [0, 2^31)", (table[:, DRAW] % 1 == 0) & (table[:, DRAW] >= 0)),
        (DRAW, "a whole number in [0, 2^31)", table[:, DRAW] < 2**31),
    ):
        if not good.all():
            i = int(np.argmin(good))
            raise ValueError(f"{name}: row {i} has {table[i, column]} in column {column}, allowed is {allowed}")
    unused = np.concatenate([table[:, RATIO + 3 : KAPPA : 4], table[:, DRAW + 1 :]], axis=1)
    if (unused != 0).any():
        raise ValueError(f"{name}: row {int(np.argmax((unused != 0).any(1)))} is not zero where nothing is stored")


def _move(move: Array) -> Array:
    if move.shape != (row.COLUMNS,) or move.dtype != np.float64:
        raise ValueError(f"move: got shape {move.shape} dtype {move.dtype}, allowed is ({row.COLUMNS},) float64")
    return move
