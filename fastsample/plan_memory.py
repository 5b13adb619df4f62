"""The memory of a plan: its slots and calls, what calls have in common, and its tensors on a device."""

from __future__ import annotations

import math
from collections.abc import Hashable, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from fastsample import row
from fastsample.path import Array

if TYPE_CHECKING:
    import torch

COND, UNCOND = -1, -2  # term numbers of the network's outputs
NOISE_WEIGHTS = np.array([row.g(k, r) for r in range(row.MAX_NOISES) for k in range(row.MAX_OUTPUTS)])  # columns
_SMALL_BATCH = 4096  # samples: their times are kept from run to run


def output_term(branch: int, part: int = 0, back: int = 0, parts: int = 1) -> int:
    """Term number of a part of the network's output: of this branch (1: unconditional), ``back`` calls ago."""
    return -1 - branch - 2 * (part + parts * back)


def output_of(term: int, parts: int = 1) -> tuple[int, int, int]:
    """Branch, part and how many calls back of a negative term number."""
    rest, branch = divmod(-1 - term, 2)
    back, part = divmod(rest, parts)
    return branch, part, back


@dataclass(frozen=True)
class Slot:
    """One tensor of the bank, of the state's shape.

    ``role`` says its dtype: ``"state"`` (the state's), ``"input"`` (the network's: a scaled copy of x for the next
    call) or ``"x0"`` (preview of x0_hat, the state's).
    """

    name: str
    role: str = "state"


@dataclass(frozen=True)
class Call:
    """One network call and the row after it.

    ``ask``: bank slot handed to the network.  ``terms``: what the row's columns stand for; >= 0 a bank slot, -1 the
    network's output (conditional or only), -2 its unconditional output, in general ``output_term``: a plan of two parts
    has the halves of the output, and the output of the call before may be a term too.  ``outputs``: bank slots written;
    one of them may be a term as well (the history is a ring, the new D overwrites the oldest).
    """

    ask: int
    terms: tuple[int, ...]
    outputs: tuple[int, ...]


class Pattern(NamedTuple):
    """The memory of a call, as a loop wants it: calls of one pattern differ in their row alone.

    ``places``: per term that is an output of the network ``(term, branch, part, back)``, see ``output_of``; branch and
    part are None where there is but one.  ``keep``: the next row reads this call's output too.  ``noisy``: the row uses
    noise.
    """

    call: Call
    places: tuple[tuple[int, int | None, int | None, int], ...]
    keep: bool
    noisy: bool


@dataclass(frozen=True)
class DevicePlan:
    """The tensors of a plan on one device.

    ``table`` float64 (calls, 48); ``starts`` float64 (3, 48), noise, state, data; ``steps``: 0-dim int64 views,
    one per call, to be handed to the op (no host value is ever uploaded inside the loop); ``told`` float64 (calls,) or
    (calls, 2): the times of the network.
    """

    table: torch.Tensor
    starts: torch.Tensor
    steps: tuple[torch.Tensor, ...]
    told: torch.Tensor
    _times: dict[tuple[int, torch.dtype], torch.Tensor] = field(default_factory=dict, repr=False)
    kept: dict[Hashable, Any] = field(default_factory=dict, repr=False)  # `PlanRun.leave`

    def times(self, batch: int, dtype: torch.dtype) -> torch.Tensor:
        """What each call tells the network, ``(calls, batch)`` or ``(calls, batch, 2)``: new memory."""
        found = self._times.get((batch, dtype))
        if found is None:
            found = times_of(self.told.to(dtype), batch)
            if batch <= _SMALL_BATCH:
                self._times.clear()  # the last one alone: runs of one program are mostly of one size
                self._times[batch, dtype] = found
        return unpadded(found.clone(), batch, self.told.shape[1:])


def times_of(told: torch.Tensor, batch: int) -> torch.Tensor:
    """Per call the times of all samples, ``(calls, batch)`` or ``(calls, 2 batch)``, padded to a multiple of 16 bytes.

    A network that Inductor compiled copies what is not aligned to 16 bytes before each call.
    """
    rows = told[:, None].expand(-1, batch, *told.shape[1:]).reshape(len(told), math.prod(told.shape[1:], start=batch))
    out = rows.new_zeros(len(told), -(-rows.shape[1] // 4) * 4)  # 16 bytes are 4 of float32, 2 of float64
    out[:, : rows.shape[1]] = rows
    return out


def unpadded(rows: torch.Tensor, batch: int, rest: Sequence[int]) -> torch.Tensor:
    """The times ``(calls, batch, *rest)`` of `times_of`, a view; those of each call are dense."""
    return rows[:, : math.prod(rest, start=batch)].view(len(rows), batch, *rest)


def shown_by(calls: Sequence[Call], table: Array, own: int) -> tuple[int, ...]:
    """Per call the slot of x0_hat: ``own`` where the call writes it, else the one to which it writes D itself."""
    shown = []
    for call, values in zip(calls, table, strict=True):
        weights = [[values[row.w(k, j)] for j in range(row.MAX_TERMS)] for k in range(len(call.outputs))]
        plain = [k for k, others in enumerate(weights) if values[row.w_d(k)] == 1.0 and not any(others)]
        shown.append(own if own in call.outputs else call.outputs[plain[-1]])
    return tuple(shown)


def patterns_of(calls: Sequence[Call], parts: int, noisy: Sequence[bool]) -> tuple[Pattern, ...]:
    """The patterns of calls, of which these use noise."""
    outputs = [[(n, *output_of(j, parts)) for n, j in enumerate(call.terms) if j < 0] for call in calls]
    guided = any(branch for call in outputs for _, branch, _, _ in call)
    kept = [any(back for *_, back in call) for call in [*outputs[1:], []]]
    places = [
        tuple((n, branch if guided else None, part if parts > 1 else None, back) for n, branch, part, back in call)
        for call in outputs
    ]
    return tuple(map(Pattern, calls, places, kept, noisy))
