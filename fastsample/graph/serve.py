"""``sample(graph=...)``: which recordings serve a run, or why none does."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from typing import Any

import torch

from ..errors import CaptureError
from ..run import PlanRun, Run
from . import auto, lent
from .captured import Captured
from .drive import Drive
from .recorders import BusyError, recorder_for
from .request import MODES, Request, refusal
from .steps import Steps
from .store import STORE, Store
from .whole import WholeRun


class Served:
    """What a run is served by: ``run`` and ``drive``, or nothing and the reason ``why``."""

    def __init__(self, mode: str, why: str | None = None) -> None:
        self.run: Run | None = None
        self.drive: Drive | None = None
        self._mode, self._why = mode, why
        self._steps: Any = None
        self._before = (0, 0)

    def by(self, kept: Any, run: Run, drive: Drive, before: tuple[int, int]) -> None:
        self.run, self.drive, self._steps, self._before = run, drive, kept, before

    @property
    def mb(self) -> float:
        """Megabytes of what serves it."""
        return 0.0 if self._steps is None else float(self._steps.bytes) / 1e6

    def stats(self) -> dict[str, Any]:
        """For ``stats["graph"]``: ``used`` (kind of recording, or None), ``why`` not, and what this run did."""
        made = self._steps
        counts = (0, 0) if made is None else (made.captures - self._before[0], made.replays - self._before[1])
        return {
            "mode": self._mode,
            "used": None if made is None else made.kind,
            "why": self._why,
            "captures": counts[0],
            "replays": counts[1],
        }


def check_mode(graph: Any) -> None:
    """Raise ``ValueError`` unless it is one of the modes, or a `Captured`."""
    if not isinstance(graph, Captured) and graph not in MODES:
        raise ValueError(f"graph: got {graph!r}, allowed are {', '.join(map(repr, MODES))}")


@contextmanager
def serve(graph: Any, request: Request) -> Iterator[Served]:
    """Serve a run: within this context its recordings are its own.  ``graph``: a mode, or a `Captured`.

    Raises `CaptureError` where nothing can be recorded; ``"auto"`` says why instead, once, and serves nothing.
    """
    store, mode = (graph.store, graph.mode) if isinstance(graph, Captured) else (STORE, graph)
    if isinstance(request.run, PlanRun):  # a procedure that knew its plan after all
        request = replace(request, plan=request.run.plan)
    whole = mode == "whole" or request.plan is None
    why = refusal(request, whole)
    with ExitStack() as stack:
        if mode == "auto":
            yield _chosen(request, why, whole, stack)
            return
        if why is not None:
            raise CaptureError(f"graph={mode!r}: {why}")
        yield stack.enter_context(_recorded(store, mode, request, whole))


def _chosen(request: Request, why: str | None, whole: bool, stack: ExitStack) -> Served:
    """The way that ``"auto"`` takes."""
    if why is None and not auto.saves(request.x.device):
        why = f"{request.x.device.type}: a recorded call list saves nothing"
    if why is None:
        try:
            name = request.name(request.conds, *_course(request))
        except CaptureError as error:
            why = str(error)
    if why is not None:
        auto.say(why)
        return Served("auto", why)
    verdict = auto.verdict_on(request, name)
    verdict.runs += 1
    if verdict.why is None and verdict.runs == 1:
        return Served("auto", "first run of this configuration; recorded from the second on")
    if verdict.why is None:
        try:
            served = stack.enter_context(_recorded(STORE, "auto", request, whole))
        except BusyError as error:
            return Served("auto", str(error))
        except CaptureError as error:
            verdict.why = str(error)
        except torch.OutOfMemoryError as error:
            verdict.why = f"memory: {str(error).splitlines()[0]}"
        else:
            kept = STORE.find(lent.owner(request.model), name)
            if kept is None:
                verdict.why = f"memory: its recordings need {served.mb:.1f} MB, the limit is {STORE.megabytes:g} MB"
            elif not verdict.timed:
                assert served.drive is not None
                verdict.timed, verdict.why = True, auto.slower(request, served.drive)
                if verdict.why is not None:
                    STORE.remove(lent.owner(request.model), name)
            if verdict.why is None:
                return served
    auto.say(verdict.why)
    return Served("auto", verdict.why)


@contextmanager
def _recorded(store: Store, mode: str, request: Request, whole: bool) -> Iterator[Served]:
    conds = request.conds
    owner, name = lent.owner(request.model), request.name(conds, *_course(request))
    kept: Any = store.find(owner, name)
    if kept is None:
        kept = _new(request, conds)
    with kept.turn:
        served, before = Served(mode), (kept.captures, kept.replays)
        run, drive = kept.begin(request, conds, whole)
        store.put(owner, name, kept)  # what it holds has grown; it may be too much to be kept beyond this run
        report = getattr(request.run, "stats", None)
        if report is not None and request.plan is not None:
            vars(run)["stats"] = report
        served.by(kept, run, drive, before)
        yield served


def _new(request: Request, conds: Any) -> Any:
    recorder = recorder_for(request.x.device)
    return WholeRun(request, conds, recorder) if request.plan is None else Steps(request, conds, recorder)


def _course(request: Request) -> tuple[Any, ...]:
    """Of a procedure, what it does whatever the numbers are."""
    if request.plan is not None:
        return ()
    course = getattr(request.run, "course", None)
    if course is None:
        raise CaptureError("solver: decides on the host while it runs, from what the network says")
    return type(request.run), course()
