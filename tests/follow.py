"""A plan on a recorded run: what the network was asked, when, and where the run ended."""

from __future__ import annotations

from typing import Any

import numpy as np

from .golden_cases import Case, Replay


def follow(case: Case, plan: Any, draws: Any = (), atol: float = 1e-10, end: str = "x_0") -> None:
    """Every input of the network and the end within ``atol``; times to the roundings of the recording program."""
    run = Replay(plan, case["x_T"], case["eval_out"], draws)
    assert len(run.asked) == len(case["eval_x"])
    np.testing.assert_allclose(run.asked, case["eval_x"], rtol=0, atol=atol)
    np.testing.assert_allclose(run.x, case[end], rtol=0, atol=atol)
    np.testing.assert_allclose(plan.t, case["eval_t"], rtol=1e-12, atol=1e-15)
