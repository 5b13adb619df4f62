"""The kernels by name."""

from __future__ import annotations

import difflib
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True)
class Facts:
    """``calls``: of the target per step.  ``velocity``: whether chains have one.  ``options``: names and defaults.

    ``step``: what ``step_size`` is.
    """

    name: str
    about: str
    paper: str
    calls: str
    step: str
    velocity: bool = False
    options: Mapping[str, Any] = field(default_factory=dict)


_WINDOW: dict[str, Any] = {"window": 32, "midpoints": "one", "shared": False}
_TIMES: dict[str, Any] = {"theta": None, "shared": False}

KERNELS = {
    facts.name: facts
    for facts in (
        Facts("lmc", "Euler steps, no correction (also called ula)", "Roberts and Tweedie 1996", "1", "h"),
        Facts(
            "mala",
            "the same with a Metropolis step",
            "Besag 1994; Roberts and Tweedie 1996",
            "1, plus those between z and z' of the estimator",
            "tau",
            options={"estimator": "auto", "radii": None, "uniforms": None},
        ),
        Facts("uld", "underdamped, force frozen", "Cheng et al. 2018, arXiv 1707.03663", "1", "h", True),
        Facts(
            "rlmc",
            "randomized midpoint, overdamped",
            "He, Balasubramanian, Erdogdu 2020, arXiv 2011.03176",
            "2",
            "h",
            options=_TIMES,
        ),
        Facts(
            "rlmc-underdamped",
            "randomized midpoint, underdamped",
            "Shen and Lee 2019, arXiv 1909.05503",
            "2",
            "h",
            True,
            options=_TIMES,
        ),
        Facts(
            "plmc",
            "Poisson midpoint, overdamped",
            "Kandasamy and Nagaraj 2024, arXiv 2405.17068",
            "1 and one per midpoint",
            "of a window",
            options=_WINDOW,
        ),
        Facts(
            "plmc-underdamped",
            "Poisson midpoint, underdamped",
            "Kandasamy and Nagaraj 2024, arXiv 2405.17068",
            "1 and one per midpoint",
            "of a window",
            True,
            options=_WINDOW,
        ),
    )
}
_ALIASES = {"ula": "lmc", "underdamped-rlmc": "rlmc-underdamped", "underdamped-plmc": "plmc-underdamped"}


def find(kernel: Any) -> Facts:
    """The kernel of a name; raises ``ValueError`` with close ones."""
    if not isinstance(kernel, str):
        raise TypeError(f"kernel: got {type(kernel).__name__}, allowed is a name (str)")
    key = kernel.lower().replace("_", "-")
    key = _ALIASES.get(key, key)
    if key not in KERNELS:
        close = difflib.get_close_matches(key, KERNELS, n=1)
        hint = f"; did you mean {close[0]}?" if close else ""
        raise ValueError(f"kernel: got {kernel!r}, allowed are {', '.join(KERNELS)}{hint}")
    return KERNELS[key]


def complete(facts: Facts, options: Mapping[str, Any]) -> dict[str, Any]:
    """Defaults updated by ``options``, and ``friction`` of kernels with a velocity.  Raises ``ValueError``."""
    known = dict(facts.options) | ({"friction": None, "velocity": None} if facts.velocity else {})
    for name in options:
        if name not in known:
            allowed = ", ".join(sorted(known)) or "none"
            raise ValueError(f"option: the kernel {facts.name!r} has no option {name!r}, allowed are {allowed}")
    return {**known, **options}
