"""``graph="auto"``: record where it pays.  A configuration runs eagerly first; from its second run on it is recorded,
timed both ways once, and the faster way is kept.  Where nothing is recorded, the reason is said once."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Hashable
from typing import Any

import torch

from ..run import PlanRun, Run
from . import lent
from .drive import Drive
from .request import Request
from .store import Store

log = logging.getLogger("fastsample")

CALLS, ROUNDS = 4, 3  # network calls that are timed, how often; the best counts
REMEMBERED = 4096  # configurations


class Verdict:
    """What is known of one configuration: how often it ran, why it is not recorded, whether it was timed."""

    bytes = 1  # so that the limit of a store is a number of them

    def __init__(self) -> None:
        self.runs, self.timed = 0, False
        self.why: str | None = None

    def facts(self) -> dict[str, Any]:
        return {"runs": self.runs, "why": self.why}


_verdicts = Store(REMEMBERED / 1e6)


_said: set[str] = set()


def forget() -> None:
    """Forget all verdicts, and what was said."""
    _verdicts.clear()
    _said.clear()


def say(why: str) -> None:
    """Tell the log why nothing is recorded, each reason once."""
    if why not in _said:
        if len(_said) < REMEMBERED:
            _said.add(why)
        log.info("graph=auto runs eagerly: %s", why)


def saves(device: torch.device) -> bool:
    """Whether a recording can be faster than what it was made of."""
    return device.type == "cuda"


def verdict_on(request: Request, name: Hashable) -> Verdict:
    """The verdict on a configuration, made at its first run."""
    owner = lent.owner(request.model)
    found = _verdicts.find(owner, name)
    if not isinstance(found, Verdict):
        found = Verdict()
        _verdicts.put(owner, name, found)
    return found


def timed(device: torch.device, body: Callable[[], Any]) -> float:
    """Seconds of ``body`` with all the work that it leaves to the device: the best of some rounds."""
    best = float("inf")
    for _ in range(ROUNDS):
        _wait(device)
        begin = time.perf_counter()
        body()
        _wait(device)
        best = min(best, time.perf_counter() - begin)
    return best


def slower(request: Request, drive: Drive) -> str | None:
    """Time a run both ways, of a plan its first network calls; why the eager way is to be kept, or None."""
    r, device = request, request.x.device
    predict = r.network.guided(r.cond, r.uncond) if r.guided and r.cond is not None else r.network.given(r.cond)
    shared: dict[str, Any] = {"start": r.start, "key": r.key, "noise": r.noise, "input_dtype": r.network.dtype}
    calls = drive.calls if r.plan is None else min(CALLS, drive.calls)

    def begun() -> Run:
        if r.plan is not None:
            return PlanRun(r.plan, r.x, **shared)
        assert r.begin is not None
        return r.begin(r.x, energy=r.network.energy_given(r.cond), grad=False, **shared)

    def eager() -> None:
        asks = begun().asks()
        try:
            ask = next(asks)
            for _ in range(calls):
                ask = asks.send(predict(*ask))
        except StopIteration:
            pass

    def replayed() -> None:
        if r.plan is None:  # a replay copies from a run that has begun
            begun()
        drive.some(calls)

    with torch.inference_mode():
        before, after = timed(device, eager), timed(device, replayed)
        drive.restart()
    if after < before:
        return None
    return f"eager is faster: {1e6 * before:.0f} us against {1e6 * after:.0f} us for {calls} network calls"


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
