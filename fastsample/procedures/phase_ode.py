"""The black-box solver of PSLD: Dormand-Prince 5(4) with adaptive steps on the probability flow of (x, m).

As the authors run it (SciPy's RK45 on s = 1 - t, the whole batch as one vector), then half a step of the score to data.
One error for the whole batch is read on the host after every attempt, so samples of one batch share their steps.  Every
network call is two updates: the slope, which is a row of x, m and the output, and the next stage, a row of slopes.
Pandey, Mandt 2023, arXiv 2303.01748; Dormand, Prince 1980.
"""

from __future__ import annotations

import math
from collections.abc import Generator, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from fastsample import row
from fastsample.bank import halves, packed_like
from fastsample.path import Array
from fastsample.procedures.control import positive
from fastsample.procedures.registry import Procedure, Setting, add
from fastsample.profiling.ranges import ranged
from fastsample.run import Asks, Output, PlanRun, StepInfo, check_output
from fastsample.solvers.phase import assemble, baselines
from fastsample.solvers.phase.process import OPTIONS, check_path, process_of

NODES = (0.0, 1 / 5, 3 / 10, 4 / 5, 8 / 9, 1.0, 1.0)
STAGES = (
    (1 / 5,),
    (3 / 40, 9 / 40),
    (44 / 45, -56 / 15, 32 / 9),
    (19372 / 6561, -25360 / 2187, 64448 / 6561, -212 / 729),
    (9017 / 3168, -355 / 33, 46732 / 5247, 49 / 176, -5103 / 18656),
    (35 / 384, 0.0, 500 / 1113, 125 / 192, -2187 / 6784, 11 / 84),
)
ERROR = (-71 / 57600, 0.0, 71 / 16695, -71 / 1920, 17253 / 339200, -22 / 525, 1 / 40)
SAFETY, LEAST, MOST, ORDER = 0.9, 0.2, 10.0, 4

Told = Generator[tuple[Tensor, Tensor], Output, None]


class BlackBox:
    """A run from the first level of a path to its last; the levels between do not count.

    ``accepted`` and ``rejected`` count attempts, of six calls each; two calls more find the first step, one is the
    last.

    Raises:
        ValueError: an option that is not allowed.
        FloatingPointError: while running: the error is not finite, or no step is small enough.
    """

    calls = None

    def __init__(self, setting: Setting, *, rtol: float, atol: float, last: str, **options: Any) -> None:
        self._process = process_of(options)
        check_path(setting.path, self._process, "psld-ode")
        self._rtol, self._atol = positive("rtol", rtol), positive("atol", atol)
        if setting.grad:
            raise ValueError("grad: 'psld-ode' writes in place, no gradient passes through its steps")
        network = dict(setting.network)
        self._weights = network.pop("guidance")
        if network.pop("denoised"):
            raise ValueError("denoised: 'psld-ode' makes no estimate of the data on its way")
        if network["time"] != "t":
            raise ValueError(f"time: got {network['time']!r}, 'psld-ode' tells the time of the process, 't'")
        if self._weights is not None and np.ndim(self._weights):
            raise ValueError("guidance: got one weight per call, but nobody knows how many there will be; give one")
        self.guided = self._weights is not None
        self._prediction = network["prediction"]
        ends, levels = setting.path, setting.path.levels()
        self._t, self._end = levels[0].t, levels[-1].t
        stages = baselines.last_step(self._process, ends.steps, levels[-1], last)
        self._last = stages[0] if stages else None
        # made before memory is touched: it refuses all that a plan refuses; its start is that of this run
        made = assemble.Made(self._process, baselines.euler(ends, self._process))
        plan = assemble.assemble("psld-ode", ends, made, options={}, guidance=None, denoised=False, **network)
        with torch.inference_mode(False), torch.no_grad():
            given: dict[str, Any] = {"key": setting.key, "noise": setting.noise}
            begun = PlanRun(plan, setting.x, start=setting.start, **given)
            self._z = begun.asked
            x = halves(self._z)[0]
            self._next, self._gap = packed_like(x), packed_like(x)
            self._slopes = [packed_like(x) for _ in NODES]
        self._update = ranged("update", torch.ops.fastsample.update_.default)
        self._step = torch.zeros((), dtype=torch.int64, device=x.device)
        self.accepted = self.rejected = self.told = 0
        self._ended = -1
        self._result: Tensor | None = None

    @property
    def state(self) -> Tensor:
        return halves(self._z)[0] if self._result is None else self._result

    def ends_step(self, call: int) -> bool:
        return call == self._ended

    def info(self, call: int) -> StepInfo:
        done = self.accepted + (self._result is not None and self._last is not None)
        step = done - (call == self._ended)
        return StepInfo(call, step, calls=None, steps=None, t=self._t, x=self.state)

    def stats(self) -> dict[str, Any]:
        """Attempts accepted and rejected."""
        return {"accepted": self.accepted, "rejected": self.rejected}

    def asks(self) -> Asks:
        slopes = self._slopes
        yield from self._slope(self._z, self._t, slopes[0])
        h, rejected = (yield from self._first()), False
        if not math.isfinite(h):
            raise FloatingPointError("the error of a step is not finite: the network returned NaN or infinity")
        while self._t > self._end:
            if not h > 10.0 * math.ulp(1.0):
                raise FloatingPointError(
                    f"the step size fell to {h:.3g} at t = {self._t:.6g}: no step keeps rtol and atol"
                )
            arrives = h >= self._t - self._end
            h = self._t - self._end if arrives else h
            for k, weights in enumerate(STAGES):
                self._combine(self._next, [self._z, *slopes[: k + 1]], [1.0, *(h * w for w in weights)])
                t = self._end if arrives and NODES[k + 1] == 1.0 else self._t - h * NODES[k + 1]
                yield from self._slope(self._next, t, slopes[k + 1])
            error = self._error(h)
            if not math.isfinite(error):
                raise FloatingPointError("the error of a step is not finite: the network returned NaN or infinity")
            factor = MOST if error == 0.0 else SAFETY * error ** (-1.0 / (ORDER + 1))
            if error >= 1.0:
                self.rejected, rejected, h = self.rejected + 1, True, h * max(LEAST, factor)
                continue
            self._t = self._end if arrives else self._t - h
            h, rejected = h * min(MOST, factor, 1.0 if rejected else MOST), False
            self._z, self._next = self._next, self._z
            slopes[0], slopes[-1] = slopes[-1], slopes[0]  # the last slope is the first of the next step
            self.accepted, self._ended = self.accepted + 1, self.told - 1
        if self._last is not None:
            told = yield from self._ask(self._z, self._t)
            self._apply(self._z, self._last.A, self._last.E, self._t, told, self._z)
            self._ended = self.told - 1
        self._result = self.state.clone()  # not half of a tensor

    def _ask(self, z: Tensor, t: float) -> Generator[tuple[Tensor, Tensor], Output, Output]:
        wide = torch.float64 if z.dtype == torch.float64 else torch.float32
        told = yield z, torch.full((len(z),), t, dtype=wide, device=z.device)
        if self.told == 0:
            check_output(told, z, guided=self.guided)
        self.told += 1
        return told

    def _slope(self, z: Tensor, t: float, out: Tensor) -> Told:
        """d z / d s, s = -t."""
        told = yield from self._ask(z, t)
        beta, process = float(self._process.beta(t)), self._process
        self._apply(out, -process.drift(beta), -0.5 * process.diffusion(beta) @ process.K(t), t, told, z)

    def _apply(self, out: Tensor, A: Array, E: Array, t: float, told: Output, z: Tensor) -> None:
        """``A z + E eps``, of what the network said at z and t."""
        E = E if self._prediction == "eps" else -E @ self._process.root(t).T
        outputs, W = (told,) if isinstance(told, Tensor) else told, [A]
        W += [E] if not self.guided else [self._weights * E, (1.0 - self._weights) * E]
        self._row(halves(out), [half for tensor in (z, *outputs) for half in halves(tensor)], np.concatenate(W, axis=1))

    def _combine(self, out: Tensor, terms: Sequence[Tensor], weights: Sequence[float]) -> None:
        self._row([out], terms, np.array([weights]))

    def _row(self, outs: Sequence[Tensor], terms: Sequence[Tensor], W: Array) -> None:
        values = row.blank(1)
        for k, line in enumerate(W):
            for j, weight in enumerate(line):
                values[0, row.w(k, j)] = weight
        table = torch.tensor(values, dtype=torch.float64, device=self._step.device)
        self._update(list(outs), list(terms), table, self._step, None, [])

    def _first(self) -> Generator[tuple[Tensor, Tensor], Output, float]:
        """Size of the first step, from the change of the slope over a small one (Hairer, Norsett, Wanner, II.4)."""
        z, slope, length = self._z, self._slopes[0], self._t - self._end
        scale = z.double().abs().mul_(self._rtol).add_(self._atol)
        size, speed = _norm(z / scale), _norm(slope / scale)
        h = min(1e-6 if min(size, speed) < 1e-5 else 0.01 * size / speed, length)
        self._combine(self._next, [z, slope], [1.0, h])
        yield from self._slope(self._next, self._t - h, self._slopes[1])
        change = _norm((self._slopes[1] - slope) / scale) / h
        most = max(speed, change)
        after = max(1e-6, 1e-3 * h) if most <= 1e-15 else (0.01 / most) ** (1.0 / (ORDER + 1))
        return min(100.0 * h, after, length)

    def _error(self, h: float) -> float:
        """Root mean square of the difference of both orders, in units of what is allowed."""
        used = [k for k, weight in enumerate(ERROR) if weight]
        self._combine(self._gap, [self._slopes[k] for k in used], [h * ERROR[k] for k in used])
        scale = torch.maximum(self._z.double().abs(), self._next.double().abs()).mul_(self._rtol).add_(self._atol)
        return _norm(self._gap / scale)


def _norm(x: Tensor) -> float:
    return math.sqrt(float(x.double().square().mean())) if x.numel() else 0.0


def black_box(setting: Setting, **options: Any) -> BlackBox:
    """Begin a run."""
    return BlackBox(setting, **options)


add(
    Procedure(
        "psld-ode",
        black_box,
        "phase space: Dormand-Prince 5(4) with adaptive steps on the probability flow of (x, m)",
        "Pandey, Mandt 2023, arXiv 2303.01748",
        order=5,
        nfe="6 per attempt",
        options={"rtol": 1e-5, "atol": 1e-5, "last": "half", **OPTIONS},
        ends="noisy",
        usual={"grid": "quadratic", "steps": 1},
        model="phase-space",
    )
)
