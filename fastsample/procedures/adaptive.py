"""DPM-Solver with adaptive step size: every step is tried with two orders, and repeated smaller where they differ.

Of one step's network calls two solutions are made, x_low and x_high.  Their difference, measured in
delta = max(atol, rtol max(|x_low|, |x_low of the step before|)), is one number E for the whole batch, which is read on
the host after every attempt: samples of one batch share their steps, and a batch cut differently takes others.
An attempt is a small plan, run as every plan is; the state from which it began stays until it is accepted.
"""

from __future__ import annotations

import dataclasses
import math
from typing import Any

import numpy as np
import torch
from torch import Tensor

from fastsample import row
from fastsample.path import SAME_LEVEL, Level, Path, step_size
from fastsample.plan import Plan
from fastsample.procedures.control import Classic, Control, Pid, positive
from fastsample.procedures.registry import Procedure, Setting, add
from fastsample.run import Asks, PlanRun, StepInfo
from fastsample.solvers.assemble import assemble
from fastsample.solvers.calculus import adams
from fastsample.solvers.dpm_fast import below, even_group
from fastsample.solvers.first_order import pairs
from fastsample.solvers.registry import check_choice, check_range
from fastsample.solvers.stages import Inside, Stage, stages
from fastsample.solvers.step import Step

CLOSE = 1e-5  # in half log-SNR: a run that is this near to its end has arrived


def embedded(form: str, order: int, start: Level, end: Level, inside: Inside) -> list[Step]:
    """One step with both solutions: the state becomes x_high, ``"low"`` keeps x_low.

    Order 2: one and two calls (r = 1/2).  Order 3: two (r = 1/3) and three calls (r = 1/3, 2/3).
    """
    inner, high = even_group(form, order, start, end, inside)
    a, b, _ = adams(form, start, end, [] if order == 2 else [1.0 / 3.0], "mid")
    rows = stages(0, start, inner, high, form)
    lower = stages(0, start, inner, Stage(end, a, b), form)[-1]
    low: dict[str | int, float] = {"x": lower.a}
    low.update(enumerate(lower.b))
    return [*rows[:-1], dataclasses.replace(rows[-1], keep={"low": low})]


class Adaptive:
    """A run with adaptive steps, from the first level of a path to its last; the levels between do not count.

    A path that ends at sigma = 0 ends at the level before it, with one more call whose x0_hat is the result.

    Args:
        setting: what the run is made of.
        control: decides on steps.
        form: ``"x0"`` or ``"eps"``, what the steps are polynomials of.
        order: 2 or 3, of the better solution.
        rtol, atol: what differences of the two solutions are measured in.
        norm: E is the root mean square of that, of the whole ``"batch"`` or the largest of a sample (``"max"``).
        eta, s_noise: noise of accepted steps (0: the probability flow), and its factor.

    ``accepted`` and ``rejected`` count attempts, ``told`` counts network calls; ``error`` is E of the last attempt,
    ``between`` the sigma / alpha that it led from and to.

    Raises:
        ValueError: an option that is not allowed, a path without levels between which log-SNR is finite.
        FloatingPointError: while running: E is not finite, or no step is small enough.
    """

    calls = None

    def __init__(
        self,
        setting: Setting,
        control: Control,
        *,
        form: str,
        order: int,
        rtol: float,
        atol: float,
        norm: str,
        eta: float = 0.0,
        s_noise: float = 1.0,
    ) -> None:
        check_choice("form", form, ("x0", "eps"))
        check_choice("norm", norm, ("batch", "max"))
        self._form, self._order, self._norm = form, order, norm
        self._rtol, self._atol = check_range("rtol", rtol, 0.0), positive("atol", atol)
        self._eta, self._s_noise = check_range("eta", eta, 0.0), check_range("s_noise", s_noise, 0.0)
        path = setting.path
        pairs(path, "an adaptive solver")
        levels = path.levels()
        to_zero = levels[-1].sigma == 0.0
        if to_zero:
            levels = levels[:-1]
        if len(levels) < 2 or levels[0].alpha == 0.0:
            raise ValueError("path: an adaptive solver needs two levels with alpha > 0 and sigma > 0")
        if path.rates is not None and setting.network["prediction"] == "flow":
            raise ValueError(
                "prediction: what a flow network means is known at the levels of this path, but an adaptive solver "
                "asks at others; allowed are all other predictions"
            )
        self._network = {**setting.network, "denoise": False}
        self._denoise = bool(setting.network["denoise"]) or to_zero
        self._setting, self._control, self._inside = setting, control, Inside(path, setting.schedule)
        self._level, self._last = levels[0], levels[-1]
        self.guided = self._network["guidance"] is not None
        self.accepted = self.rejected = self.told = 0
        self._ended, self._t = -1, levels[0].t
        self._preview: Tensor | None = None
        self.error, self.between = 0.0, (levels[0].rho, levels[-1].rho)
        # made before memory is touched: it refuses all that a plan refuses
        first = self._plan(embedded(form, order, levels[0], levels[-1], self._inside), levels[-1])
        self._x = self._run(first, setting.x, setting.start).state

    @property
    def state(self) -> Tensor:
        return self._x

    @property
    def at(self) -> Level:
        """The level of the state."""
        return self._level

    @property
    def h(self) -> float:
        """The next step in half log-SNR, unless the end is nearer."""
        return self._control.h

    def stats(self) -> dict[str, Any]:
        return {"steps_accepted": self.accepted, "steps_rejected": self.rejected}

    def ends_step(self, call: int) -> bool:
        return call == self._ended

    def info(self, call: int) -> StepInfo:
        step = self.accepted - (call == self._ended)
        return StepInfo(call, step, calls=None, steps=None, t=self._t, x=self._x, denoised=self._preview)

    def asks(self) -> Asks:
        before = self._x  # x_low of the step before
        while self._last.lam - self._level.lam > CLOSE:
            start, left = self._level, step_size(self._level, self._last)
            h = min(self._control.h, left)
            if not h > SAME_LEVEL:
                raise FloatingPointError(
                    f"the step size fell to {h:.3g} at log-SNR {start.lam:.6g}: no step keeps rtol and atol"
                )
            end = self._last if h == left else self._inside(start.lam + h)
            down, up = below(start, end, self._eta, self._last.lam)
            plan = self._plan(embedded(self._form, self._order, start, down, self._inside), down)
            tried = yield from self._through(plan)
            low = tried.slot("low")
            error = self.error = self._error(tried.state, low, before)
            self.between = start.rho, end.rho
            if not math.isfinite(error):
                raise FloatingPointError("the error of a step is not finite: the network returned NaN or infinity")
            if not self._control(error, h):
                self.rejected += 1
                continue
            self.accepted += 1
            self._x, before, self._level = self._noised(tried, self._s_noise * up), low, end
            self._ended = self.told - 1
        if self._denoise:
            plan = self._plan([Step(0, self._last, a=0.0, b=(1.0,))], self._last)
            self._x = (yield from self._through(plan)).state
            self.accepted, self._ended = self.accepted + 1, self.told - 1

    def _plan(self, steps: list[Step], end: Level) -> Plan:
        levels = [step.at for step in steps] + [end]
        path = Path(*np.array(levels).T)
        return assemble("adaptive", path, steps, options={}, **self._network)

    def _run(self, plan: Plan, x: Tensor, start: str = "state") -> PlanRun:
        s = self._setting
        # what is made here outlives the run: ordinary tensors
        with torch.inference_mode(False), torch.set_grad_enabled(s.grad):
            given: dict[str, Any] = {"key": s.key, "noise": s.noise, "input_dtype": s.input_dtype, "grad": s.grad}
            return PlanRun(plan, x, start=start, **given)

    def _through(self, plan: Plan) -> Any:
        """Ask for all calls of a plan that begins at the state; its run.  A generator like ``asks``."""
        x = self._x
        scaled = any(slot.role == "input" for slot in plan.slots)
        run = self._run(plan, x) if scaled else None
        if run is None:  # the network sees the state itself, so that a change of it by a callback counts
            wide = torch.float64 if x.dtype == torch.float64 else torch.float32
            with torch.inference_mode(False):
                t = torch.full((len(x),), float(plan.t[0]), dtype=wide, device=x.device)
            told = yield x, t
            run = self._run(plan, x)
            asks = run.asks()
            next(asks)
        else:
            asks = run.asks()
            told = yield next(asks)
        for call in range(plan.nfe):
            self.told, self._t = self.told + 1, float(plan.t[call])
            try:
                ask = asks.send(told)
            except StopIteration:
                ask = None
            self._preview = run.info(call).denoised
            if ask is not None:
                told = yield ask
        return run

    def _error(self, high: Tensor, low: Tensor, before: Tensor) -> float:
        if high.numel() == 0:
            return 0.0
        with torch.no_grad():
            wide = torch.float64 if high.dtype == torch.float64 else torch.float32
            high, low, before = (x.detach().to(wide) for x in (high, low, before))
            delta = torch.maximum(low.abs(), before.abs()).mul_(self._rtol).clamp_(min=self._atol)
            squares = high.sub(low).div_(delta).square_().flatten(1).mean(1)
            return math.sqrt(float(squares.mean() if self._norm == "batch" else squares.max()))

    def _noised(self, tried: PlanRun, c: float) -> Tensor:
        """The state of an attempt plus c xi; xi is the draw that the number of this accepted step names."""
        x = tried.state
        if c == 0.0:
            return x
        values = row.blank(1)
        values[0, row.w(0, 0)], values[0, row.g(0, 0)], values[0, row.DRAW] = 1.0, c, self.accepted
        key, noise = tried.noises(values[0])
        with torch.inference_mode(False), torch.set_grad_enabled(self._setting.grad):
            table = torch.tensor(values, dtype=torch.float64, device=x.device)
            step = torch.zeros((), dtype=torch.int64, device=x.device)
            made: Tensor = torch.ops.fastsample.update.default([x], table, step, key, noise, 1, [])[0]
            return made


def dpm_adaptive(setting: Setting, *, order: int, eta: float, **options: Any) -> Adaptive:
    """The adaptive sampler of k-diffusion: eps_hat, PID control, one E for the batch."""
    _two_or_three(order)
    names = ("h_init", "pcoeff", "icoeff", "dcoeff", "accept_safety")
    control = Pid(1.5 if eta else order, **{name: options.pop(name) for name in names})
    return Adaptive(setting, control, order=order, eta=eta, **options)


def dpm_solver(setting: Setting, *, order: int, h_init: float, theta: float, **options: Any) -> Adaptive:
    """DPM-Solver-12 (order 2) or -23 (order 3) of the authors: the worst sample decides."""
    _two_or_three(order)
    return Adaptive(setting, Classic(order, h_init, theta), order=order, **options)


def _two_or_three(order: int) -> None:
    if isinstance(order, bool) or order not in (2, 3):
        raise ValueError(f"order: got {order!r}, allowed are 2 and 3")


_TOLERANCES = {"rtol": 0.05, "atol": 0.0078, "h_init": 0.05}

add(
    Procedure(
        "dpm-adaptive",
        dpm_adaptive,
        "DPM-Solver with adaptive steps under PID control",
        "k-diffusion (code), after Lu et al. 2022, arXiv 2206.00927, appendix C",
        order=3,
        nfe="2 or 3",
        options={
            "order": 3,
            "form": "eps",
            **_TOLERANCES,
            "pcoeff": 0.0,
            "icoeff": 1.0,
            "dcoeff": 0.0,
            "accept_safety": 0.81,
            "norm": "batch",
            "eta": 0.0,
            "s_noise": 1.0,
        },
        ends="noisy",
    )
)
add(
    Procedure(
        "dpm-solver-adaptive",
        dpm_solver,
        "DPM-Solver-12 (order=2) or -23 with adaptive steps",
        "Lu et al. 2022, arXiv 2206.00927, appendix C",
        order=3,
        nfe="2 or 3",
        options={"order": 3, "form": "eps", **_TOLERANCES, "theta": 0.9, "norm": "max"},
        ends="noisy",
    )
)
