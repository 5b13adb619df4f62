"""Known solvers as documents of the unified sampling framework."""

from __future__ import annotations

import difflib
from typing import Any

from fastsample.solvers.usf_schedule import Document, check

# order, form, relaxation at order 2, corrector
_MULTISTEP: dict[str, tuple[int, str, str | None, bool]] = {
    "ddim": (1, "x0", None, False),
    "dpmpp-2m": (2, "x0", "dpmsolver-2", False),
    "dpmpp-2m-taylor": (2, "x0", None, False),
    "dpmpp-3m": (3, "x0", None, False),
    "dpm-2m": (2, "eps", "dpmsolver-2", False),
    "dpm-2m-taylor": (2, "eps", None, False),
    "dpm-3m": (3, "eps", None, False),
    **{
        f"unipc-{order}-{variant}": (order, "x0", relaxation, True)
        for order in (1, 2, 3, 4)
        for variant, relaxation in (("bh1", "unipc-bh1"), ("bh2", "dpmsolver-2"), ("exact", None))
    },
}
# order, relaxation at order 2; sub-steps are ordinary steps of the path
_SINGLESTEP: dict[str, tuple[int, str | None]] = {
    "dpm-2s": (2, "dpmsolver-2"),
    "dpm-2s-taylor": (2, None),
    "dpm-3s": (3, None),
}
KNOWN = (*_MULTISTEP, *_SINGLESTEP)


def known(name: str, steps: int, *, form: str | None = None, lower_order_final: bool = True) -> Document:
    """The document of a solver of ``KNOWN`` for a run of ``steps`` steps; ``form`` replaces its form.

    Orders rise over the first steps and, with ``lower_order_final``, fall over the last ones.  The singlestep solvers
    count every sub-step as a step (their paths hold the inner levels); what is left over is of lower order.
    As in the authors' program correctors are never relaxed: "unipc-...-bh1" and "-bh2" differ from the solver "unipc"
    in the corrector of their first-order steps ("-exact" does not).
    Raises ``ValueError`` for other names.
    """
    if name not in KNOWN:
        close = difflib.get_close_matches(str(name), KNOWN, n=1)
        hint = f"; did you mean {close[0]}?" if close else ""
        raise ValueError(f"schedule: got {name!r}, allowed are a document or {', '.join(KNOWN)}{hint}")
    made: list[dict[str, Any]] = []
    for i in range(steps):
        if name in _SINGLESTEP:
            highest, relaxation = _SINGLESTEP[name]
            order, usual, corrector = 1 + i % highest, "eps", False
            start, points = -order, [-1 - j for j in range(order - 1)]
            full = order == highest
        else:
            highest, usual, relaxation, corrector = _MULTISTEP[name]
            order = min(highest, i + 1, steps - i if lower_order_final else highest)
            start, points, full = -1, [-2 - j for j in range(order - 1)], True
        relaxed = relaxation if order == 2 and full else None
        derivatives = [{"points": points, "relaxation": relaxed if k == 0 else None} for k in range(order - 1)]
        made.append(
            {
                "form": form or usual,
                "order": order,
                "start": start,
                "derivatives": derivatives,
                "corrector": "pseudo" if corrector and i + 1 < steps else None,
            }
        )
    return check({"steps": made})
