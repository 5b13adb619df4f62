"""Recorded runs of the authors' own programs, and a replay of plans on them in numpy float64.

A case has the network's raw outputs and the noise, so a replay needs no network and no random numbers.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path as File
from typing import Any

import numpy as np

from fastsample import row
from fastsample.plan import COND, UNCOND, Call, Plan

GOLDEN = File(__file__).parent / "golden"


class Case:
    """One recorded run: ``cfg`` and its arrays by name."""

    def __init__(self, file: Any, name: str, stem: str) -> None:
        self.cfg = json.loads(str(file[f"{name}/cfg"]))
        self._arrays = {k.split("/")[1]: file[k] for k in file.files if k.startswith(f"{name}/") and k[-3:] != "cfg"}
        self.id = f"{stem}-{name}"

    def __getitem__(self, key: str) -> Any:
        return self._arrays[key]

    def __contains__(self, key: str) -> bool:
        return key in self._arrays

    def __repr__(self) -> str:
        return self.id


def cases(stem: str) -> list[Case]:
    """All cases of the halves ``stem_a.npz`` and ``stem_b.npz`` that are here."""
    paths = [p for half in "ab" if (p := GOLDEN / f"{stem}_{half}.npz").exists()]
    assert paths, f"no golden file {stem}"
    found = []
    for path in paths:
        with np.load(path) as file:
            found += [Case(file, name, stem) for name in sorted({k.split("/")[0] for k in file.files if "/" in k})]
    return found


def apply_row(values: np.ndarray, call: Call, get: Any, draws: Any) -> list[np.ndarray]:
    """One row in float64, as docs/row.md says; ``get(term)`` and ``draws(number)`` give tensors, only when needed."""
    terms = list(enumerate(call.terms))
    y = sum(values[row.p(j)] * get(s) for j, s in terms if values[row.p(j)])
    d = np.clip(y, values[row.LO], values[row.HI])
    outputs = []
    for k in range(len(call.outputs)):
        out = sum(values[row.w(k, j)] * get(s) for j, s in terms if values[row.w(k, j)])
        out = out + (values[row.w_d(k)] * d if values[row.w_d(k)] else 0.0)
        for r in range(row.MAX_NOISES):
            if values[row.g(k, r)]:
                out = out + values[row.g(k, r)] * draws(int(values[row.DRAW + r]))
        outputs.append(out)
    return outputs


class Replay:
    """A run of a plan in float64: ``asked`` and ``states`` per call, then ``x``.

    ``outputs`` is a list or a function (call, x); ``draws`` a list or a function of the draw number; ``replace`` may
    exchange the state after a call.
    """

    def __init__(
        self,
        plan: Plan,
        x: np.ndarray,
        outputs: Any,
        draws: Sequence[Any] | Any = (),
        start: str = "state",
        replace: Any = None,
    ) -> None:
        bank: dict[int, Any] = {0: x}
        draw = draws if callable(draws) else draws.__getitem__
        self.asked: list[np.ndarray] = []
        self.states: list[np.ndarray] = []
        self.previews: list[np.ndarray] = []
        first = apply_row(plan.start(start), plan.prologue, bank.__getitem__, draw)
        bank.update(zip(plan.prologue.outputs, first, strict=True))
        for i, (call, values) in enumerate(zip(plan.calls, plan.table, strict=True)):
            self.asked.append(bank[call.ask])
            e = outputs(i, bank[call.ask]) if callable(outputs) else outputs[i]
            pair = e if isinstance(e, tuple) else (e, None)
            now = {**bank, COND: pair[0], UNCOND: pair[1]}
            new = apply_row(values, call, now.__getitem__, draw)
            bank.update(zip(call.outputs, new, strict=True))
            if replace is not None:
                bank[0] = replace(i, bank[0])
            self.states.append(bank[0])
            if plan.shown:
                self.previews.append(np.broadcast_to(bank[plan.shown[i]], x.shape))  # a row may be all zeros
        self.x = bank[0]
