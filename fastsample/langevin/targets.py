"""What is sampled: a density known by its score, by its energy, or by a diffusion network at one noise level.

Every target ends up as the gradient of its potential U = -log p, linear in the state and the raw output of one call:
``grad U(x) = P x + Q e``.  Nothing is converted on its way: P and Q go into the rows.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, Protocol

import torch
from torch import Tensor

from ..models.network import as_network
from ..predictions import input_scale, to_eps

Function = Callable[[Tensor], Any]


class Target(Protocol):
    """What a chain needs of a target.

    ``P``, ``Q``: see the module.  ``kappa``: the call is fed ``kappa x``.  ``input_dtype``: of what it is fed; None:
    that of the state.  ``has_energy``: whether ``evaluate`` gives energies too.
    """

    P: float
    Q: float
    kappa: float
    input_dtype: torch.dtype | None
    has_energy: bool

    def evaluate(self, fed: Tensor, energy: bool) -> tuple[Tensor, Tensor | None]:
        """The raw output ``(B, ...)`` at what is fed, and the energies ``(B,)`` if they are asked for."""


class Score:
    """A density by its score.

    Args:
        fn: ``fn(x)`` is grad log p, shaped like ``x`` ``(B, ...)``, in any floating dtype; a new tensor at each call.
        energy: ``energy(x)`` is -log p up to a constant, ``(B,)``, if it is known; "mala" can then be exact.

    Raises ``TypeError`` for what cannot be called.
    """

    P, Q, kappa = 0.0, -1.0, 1.0
    input_dtype: torch.dtype | None = None

    def __init__(self, fn: Function, energy: Function | None = None) -> None:
        self._fn, self._energy = _callable("fn", fn), None if energy is None else _callable("energy", energy)
        self.called = (self._fn, self._energy)
        self.has_energy = energy is not None

    def evaluate(self, fed: Tensor, energy: bool) -> tuple[Tensor, Tensor | None]:
        return self._fn(fed), self._energy(fed) if energy and self._energy is not None else None


class Energy:
    """A density by its energy ``U = -log p`` up to a constant.

    Args:
        fn: ``fn(x)`` is ``(B,)`` for ``x`` ``(B, ...)``, each chain's from its own state alone (no batch statistics).
        gradient: ``gradient(x)``, shaped like ``x``.  None: of ``fn``, by autograd.
        wide: call ``fn`` on a float64 copy of the state: energies of float32 chains then keep the digits of their
            differences, which the Metropolis step lives on, for one more tensor of the size of the state.

    Only "mala" uses the energies; the other kernels use the gradient.  Raises ``TypeError`` for what cannot be called.
    """

    P, Q, kappa = 0.0, 1.0, 1.0
    input_dtype: torch.dtype | None = None
    has_energy = True

    def __init__(self, fn: Function, gradient: Function | None = None, *, wide: bool = False) -> None:
        self._fn, self._gradient = _callable("fn", fn), None if gradient is None else _callable("gradient", gradient)
        self._wide, self.called = bool(wide), (self._fn, self._gradient)

    def evaluate(self, fed: Tensor, energy: bool) -> tuple[Tensor, Tensor | None]:
        x = fed.double() if self._wide else fed
        if self._gradient is not None:
            return self._gradient(fed), self._fn(x) if energy else None
        with torch.enable_grad():
            x = x.detach().requires_grad_()
            value = self._fn(x)
            if not isinstance(value, Tensor) or value.shape != (len(x),):
                raise ValueError(f"energy: returned {_shape(value)}, need ({len(x)},), one number per chain")
            (gradient,) = torch.autograd.grad(value.sum(), x)
        return gradient.to(fed.dtype), value.detach()


class AtLevel:
    """The density of a diffusion model at one noise level: that of ``alpha x0 + sigma eps`` of data x0.

    Args:
        network: anything that ``fastsample.sample`` takes: ``network(x, t)``, a `Network`, a `GaussianMixture`.
        alpha, sigma: the level; ``sigma > 0`` unless the network predicts the score.
        t: what the network is told.  None: from the level, for networks that are told a log-SNR or a noise level.
        prediction: what the network predicts, if it does not say so itself.
        cond: its condition, as in ``fastsample.sample``; without guidance, whose output is no gradient.
        energy: ``energy(x)``: -log p of the level up to a constant, ``(B,)``.  None: the network's own, if it has one.

    Raises ``ValueError`` for a level without density or a prediction that does not determine the score there.
    """

    def __init__(
        self,
        network: Any,
        alpha: float,
        sigma: float,
        t: float | None = None,
        prediction: str | None = None,
        *,
        cond: Any = None,
        energy: Function | None = None,
    ) -> None:
        net = as_network(network, prediction=prediction)
        for name, value in (("alpha", alpha), ("sigma", sigma)):
            if not 0.0 <= value < math.inf:
                raise ValueError(f"{name}: got {value!r}, allowed are finite numbers >= 0")
        self.kappa = input_scale(net.input_scaling, alpha, sigma) if alpha or sigma else math.nan
        if net.prediction == "score":
            self.P, self.Q = 0.0, -1.0
        elif sigma == 0.0:
            raise ValueError("sigma: got 0, where only a network of the score has a density to sample")
        else:
            p, q = to_eps(net.prediction, alpha, sigma, kappa=self.kappa)
            self.P, self.Q = p / sigma, q / sigma
        self.t = _told(net.time, alpha, sigma) if t is None else float(t)
        self.input_dtype = net.dtype
        self.has_energy = energy is not None or net.energy is not None
        self._energy = None if energy is None else _callable("energy", energy)
        self._net, self._cond, self._times = net, cond, torch.empty(0)
        self.called = (net.fn, net.energy, self._energy)

    def evaluate(self, fed: Tensor, energy: bool) -> tuple[Tensor, Tensor | None]:
        times, wide = self._times, torch.float64 if fed.dtype == torch.float64 else torch.float32
        if times.shape != (len(fed),) or times.device != fed.device or times.dtype != wide:
            times = self._times = torch.full((len(fed),), self.t, dtype=wide, device=fed.device)
            cond = self._net.condition(self._cond, fed)
            self._predict, self._known = self._net.given(cond), self._net.energy_given(cond)
        value = None
        if energy and self._energy is not None:
            value = self._energy(fed if self.kappa == 1.0 else fed / self.kappa)
        elif energy and self._known is not None:
            value = self._known(fed, times)
        out: Tensor = self._predict(fed, times)  # type: ignore[assignment]
        return out, value


def as_target(target: Any) -> Target:
    """``target`` if it is one; raises ``TypeError`` that says how to make one."""
    if all(hasattr(target, name) for name in ("P", "Q", "kappa", "evaluate", "has_energy")):
        found: Target = target
        return found
    raise TypeError(
        f"target: got {type(target).__name__}, allowed are langevin.Score(fn), langevin.Energy(fn) and "
        "langevin.AtLevel(network, alpha, sigma, ...)"
    )


def check_output(out: Any, like: Tensor) -> None:
    """Raise unless a target's output is a floating tensor of the state's shape and device."""
    if not isinstance(out, Tensor):
        raise TypeError(f"target: returned {type(out).__name__}, need a tensor shaped like x")
    if out.shape != like.shape or out.device != like.device:
        need = f"{tuple(like.shape)} on {like.device}"
        raise ValueError(f"target: returned {_shape(out)} on {out.device}, need that of x, {need}")
    if not out.is_floating_point():
        raise TypeError(f"target: returned {out.dtype}, need a floating dtype")


def check_energy(value: Any, batch: int) -> None:
    """Raise unless energies are one number per chain."""
    if not isinstance(value, Tensor) or value.shape != (batch,):
        raise ValueError(f"energy: returned {_shape(value)}, need ({batch},), one number per chain")


def _told(time: str, alpha: float, sigma: float) -> float:
    if time in ("log-snr", "sigma", "log-sigma") and alpha > 0.0 and sigma > 0.0:
        log_snr = math.log(alpha / sigma)
        return {"log-snr": log_snr, "sigma": sigma / alpha, "log-sigma": -0.25 * log_snr}[time]
    raise ValueError(f"t: got None, but a network that is told {time!r} at this level needs a number")


def _callable(name: str, fn: Any) -> Function:
    if not callable(fn):
        raise TypeError(f"{name}: got {type(fn).__name__}, need a callable of x")
    found: Function = fn
    return found


def _shape(value: Any) -> str:
    return f"shape {tuple(value.shape)}" if isinstance(value, Tensor) else type(value).__name__
