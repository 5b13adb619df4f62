"""What `fastsample.sample` asks of graphs, why it may be refused, and under which name its recordings are kept."""

from __future__ import annotations

from collections.abc import Callable, Hashable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ..models.network import Network
from ..ops import library
from ..plan import Plan
from ..run import Noise, Run, _parts
from . import lent, trees

MODES = ("off", "on", "whole", "auto")


@dataclass(frozen=True)
class Request:
    """A run that is to be served by recordings.

    ``plan``, or of a procedure ``run``, which has begun, and ``begin``, which begins another.  ``x``, ``start``,
    ``key``, ``noise``: as `PlanRun`.  ``cond``, ``uncond``: as the network takes them.  ``hooked``: whether something
    looks at the run after every call.
    """

    model: Any
    network: Network
    plan: Plan | None
    run: Run | None
    begin: Callable[..., Run] | None
    x: Tensor
    start: str
    key: Tensor | None
    noise: Noise | None
    guided: bool
    cond: Any
    uncond: Any
    grad: bool
    hooked: bool

    @property
    def conds(self) -> Any:
        """The conditions as a recording keeps them."""
        return lent.joined(self.network, self.guided, self.cond, self.uncond)

    def name(self, conds: Any, *more: Hashable) -> Hashable:
        """What two runs that share memory and recordings have in common."""
        return (
            lent.name_of(self.model, self.network),
            layout(self.x if self.plan is None else _parts(self.plan, self.x, self.start)[0]),
            trees.signature(conds),
            ambient(self.x.device),
            more if self.plan is None else fits(self.plan),
        )


def refusal(request: Request, whole: bool) -> str | None:
    """Why a run cannot be recorded, as far as that is known before it is tried; None if nothing speaks against it."""
    if request.grad:
        return "grad: gradients need the graph of autograd, which a recording has not"
    if request.noise is not None:
        return "noise: given from outside; recorded runs make theirs from keys"
    if request.x.device.type not in ("cpu", "cuda"):
        return f"device {request.x.device.type} has no graphs here"
    if request.x.numel() == 0:
        return "x: has no elements"
    if request.plan is not None and request.plan.nfe == 0:
        return "plan: makes no network call"
    if whole and request.hooked:
        return "callback, progress and return_trajectory look at every step, and a recording of a whole run has none"
    return None


def layout(x: Tensor) -> Hashable:
    """Shape, strides of a tensor like it, dtype and device."""
    return x.shape, torch.empty_like(x, device="meta").stride(), x.dtype, x.device


def ambient(device: torch.device) -> Hashable:
    """What else decides which kernels run."""
    kind = device.type
    casting = torch.get_autocast_dtype(kind) if torch.is_autocast_enabled(kind) else None
    exact = torch.are_deterministic_algorithms_enabled()
    return library.forced(), casting, torch.get_float32_matmul_precision(), exact


def fits(plan: Plan) -> Hashable:
    """What plans must agree in to share memory."""
    return plan.parts, plan.guided, plan.targets is not None
