"""RTK-MALA, RTK-ULD and RTK-ULA: few segments, each drawn by a few moves of a Markov chain on its reverse kernel.

Huang, Zou, Dong, Zhang, Ma, Zhang 2024, arXiv 2405.16387.  All network calls of a segment are at its cleaner level.
See docs/reverse-kernel.md; the target is in kernel_target.py, the moves in kernel_moves.py.
"""

from __future__ import annotations

from typing import Any

from fastsample.procedures.kernel_langevin import Langevin
from fastsample.procedures.kernel_mala import Mala
from fastsample.procedures.registry import Procedure, Setting, add

_PAPER = "Huang, Zou, Dong, Zhang, Ma, Zhang 2024, arXiv 2405.16387"
_CHAIN: dict[str, Any] = {"inner": 4, "init": "posterior", "width": None}
_SHARED: dict[str, Any] = {
    "order": 0,
    "stochastic": True,
    "ends": "noisy",
    "usual": {"steps": 5, "grid": "uniform"},
    "steps_called": "segments",
}


def mala(setting: Setting, **options: Any) -> Mala:
    """Algorithms 1 and 2 of the paper."""
    return Mala(setting, **options)


def uld(setting: Setting, *, friction: float, **options: Any) -> Langevin:
    """Algorithms 1 and 3 of the paper."""
    return Langevin(setting, friction=friction, **options)


def ula(setting: Setting, **options: Any) -> Langevin:
    """RTK-MALA without its accept step."""
    return Langevin(setting, friction=None, **options)


add(
    Procedure(
        "rtk-mala",
        mala,
        "reverse transition kernels by Metropolis-adjusted Langevin chains",
        f"{_PAPER}, algorithm 2",
        nfe="inner + 1",
        options={
            **_CHAIN,
            "theta": None,
            "estimator": "auto",
            "radii": None,
            "adapt": None,
            "uniforms": None,
        },
        **_SHARED,
    )
)
add(
    Procedure(
        "rtk-uld",
        uld,
        "reverse transition kernels by underdamped Langevin dynamics",
        f"{_PAPER}, algorithm 3",
        nfe="inner + 1",
        options={**_CHAIN, "theta": 1.0, "friction": 2.0},
        **_SHARED,
    )
)
add(
    Procedure(
        "rtk-ula",
        ula,
        "reverse transition kernels by unadjusted Langevin chains",
        f"{_PAPER}, algorithm 2 without the accept step",
        nfe="inner + 1",
        options={**_CHAIN, "theta": 1.0},
        **_SHARED,
    )
)
