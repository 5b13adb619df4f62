"""The layout of one row of a plan, and a builder that names its entries.

See docs/row.md for the arithmetic.  A row is ``COLUMNS`` float64 numbers, term-major.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import numpy as np
import numpy.typing as npt

MAX_TERMS = 8
MAX_OUTPUTS = 3
MAX_NOISES = 2
COLUMNS = 48

LO, HI, TIME = 32, 36, 40
DRAW = 44  # DRAW + r
GUIDANCE, PHI = 46, 47  # what `rescale_` reads

Array = npt.NDArray[np.float64]


def p(term: int) -> int:
    """Column of ``P_term``, the weight of a term in D."""
    return 4 * term


def w(output: int, term: int) -> int:
    """Column of ``W_{output,term}``, the weight of a term in an output."""
    return 4 * term + 1 + output


def w_d(output: int) -> int:
    """Column of ``w_output``, the weight of D in an output."""
    return LO + 1 + output


def g(output: int, noise: int) -> int:
    """Column of ``G_{output,noise}``, the weight of a noise in an output."""
    return HI + 4 * noise + 1 + output


def blank(rows: int | None = None) -> Array:
    """Zero row ``(48,)`` or table ``(rows, 48)`` float64 without clamp limits."""
    table = np.zeros((COLUMNS,) if rows is None else (rows, COLUMNS), dtype=np.float64)
    table[..., LO], table[..., HI] = -math.inf, math.inf
    return table


def make_row(
    *,
    D: Mapping[int, float] | None = None,
    outputs: Sequence[Mapping[int | str, float]] = (),
    limits: tuple[float, float] | None = None,
    draws: Sequence[int] = (),
    time: float = 0.0,
    rescale: tuple[float, float] = (0.0, 0.0),
) -> Array:
    """One row ``(48,)`` float64.

    ``D`` maps term index -> P.  Each output maps term index -> W, ``"D"`` -> w, ``"xi0"``/``"xi1"`` -> G.
    ``draws`` are the numbers of the run's draws that xi0 and xi1 are; ``rescale`` is what ``rescale_`` takes from the
    row, the weight of guidance and phi.  Raises ``ValueError`` on an index out of range or a weight that is not finite.
    """
    row = blank()
    if len(outputs) > MAX_OUTPUTS:
        raise ValueError(f"outputs: got {len(outputs)}, at most {MAX_OUTPUTS} are allowed")
    if len(draws) > MAX_NOISES:
        raise ValueError(f"draws: got {len(draws)}, at most {MAX_NOISES} are allowed")
    for term, weight in (D or {}).items():
        row[p(_term(term))] = weight
    for k, output in enumerate(outputs):
        for source, weight in output.items():
            if source == "D":
                row[w_d(k)] = weight
            elif source in ("xi0", "xi1"):
                r = int(str(source)[2])
                if weight != 0 and r >= len(draws):
                    raise ValueError(
                        f"draws: {source} has weight {weight} but no draw number; got draws={tuple(draws)}"
                    )
                row[g(k, r)] = weight
            else:
                row[w(k, _term(source))] = weight
    if limits is not None:
        row[LO], row[HI] = limits
    for r, draw in enumerate(draws):
        row[DRAW + r] = draw
    row[TIME] = time
    row[GUIDANCE], row[PHI] = rescale
    check_table(row[None], "row")
    return row


def check_table(table: Array, name: str = "table") -> None:
    """Raise ``ValueError`` unless ``table`` is ``(N, 48)`` float64: finite weights, ordered limits, whole draws."""
    if table.ndim != 2 or table.shape[1] != COLUMNS or table.dtype != np.float64:
        raise ValueError(f"{name}: got shape {table.shape} dtype {table.dtype}, allowed is (N, {COLUMNS}) float64")
    finite = np.isfinite(table)
    finite[:, LO] = finite[:, HI] = True
    if not finite.all():
        i, j = np.argwhere(~finite)[0]
        raise ValueError(f"{name}: row {i} has a weight that is not finite ({table[i, j]})")
    bad = ~(table[:, LO] <= table[:, HI])
    if bad.any():
        i = int(np.argmax(bad))
        raise ValueError(f"{name}: row {i} has clamp limits lo={table[i, LO]} > hi={table[i, HI]} (or NaN)")
    draws = table[:, DRAW : DRAW + MAX_NOISES]
    if (draws != np.floor(draws)).any() or (draws < 0).any() or (draws >= 2**31).any():
        raise ValueError(f"{name}: draw numbers must be whole and in [0, 2^31), got {draws[draws != np.floor(draws)]}")


def _term(index: int | str) -> int:
    if not isinstance(index, (int, np.integer)) or not 0 <= index < MAX_TERMS:
        raise ValueError(f"term: got {index!r}, allowed are 0..{MAX_TERMS - 1}")
    return int(index)
