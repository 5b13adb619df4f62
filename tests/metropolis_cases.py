"""Calls of ``metropolis_``: how tests make them, run them on copies, and check all that came out."""

from __future__ import annotations

import dataclasses
import math

import torch
from torch import Tensor

from fastsample import decision, noise, row
from fastsample.ops import metropolis_, update_

ZERO = torch.zeros((), dtype=torch.int64)
ESTIMATORS = {
    "energy": {"cache": 0.5, "fresh": 0.5},
    "trapezoid": {},
    "taylor1": {"cache": -0.5, "fresh": 0.5},
    "simpson": {"cache": 1 / 3, "fresh": 1 / 3, "term1": -2 / 3},
    "line(2)": {"cache": 0.5, "fresh": 0.5, "term1": -0.5, "term2": -0.5},
}


def rtk(estimator="trapezoid", *, tau=0.02, r=0.8, v=0.3, sigma=0.5, draw=3, radii=(math.inf, math.inf), draws=(1, 2)):
    """A row of RTK-MALA (Huang et al. 2024) for an eps network; term0 is the condition x."""
    quadratic = {"term0": -r / v}
    return decision.make_decision(
        row.make_row(
            D={0: 1.0, 1: -0.1},
            outputs=[
                {0: 1 - tau * r * r / v, 1: -tau / sigma, 2: tau * r / v, "xi0": math.sqrt(2 * tau)},
                {0: 0.5, 2: 0.25, "xi1": 1.5},
                {"D": 0.75, 1: 0.1},
            ],
            limits=(-1.5, 1.5),
            draws=draws,
        ),
        A={name: weight / sigma for name, weight in ESTIMATORS[estimator].items()},
        G={"state": r * r / v, "cache": 1 / sigma} | quadratic,
        H={"proposal": r * r / v, "fresh": 1 / sigma} | quadratic,
        kappa=tau / 4,
        energy=estimator == "energy",
        radii=radii,
        draw=draw,
    )


def table_of(*rows) -> Tensor:
    return torch.stack([torch.from_numpy(r) for r in rows])


@dataclasses.dataclass
class Call:
    """The arguments of one call; ``run`` leaves them as they are and returns what a call on copies wrote."""

    state: Tensor
    cache: Tensor
    outs: list[Tensor]
    chain: Tensor
    proposal: Tensor
    fresh: Tensor
    terms: list[Tensor]
    table: Tensor
    step: Tensor = ZERO
    key: Tensor | None = None
    noise: list[Tensor] = dataclasses.field(default_factory=list)
    uniform: Tensor | None = None

    def run(self) -> Call:
        made = dataclasses.replace(self, state=copy(self.state), cache=copy(self.cache), chain=self.chain.clone())
        made.outs = [copy(x).fill_(math.nan) for x in self.outs]
        metropolis_(*(getattr(made, f.name) for f in dataclasses.fields(made)))
        return made

    @property
    def operands(self) -> list[Tensor]:
        return [self.state, self.proposal, self.cache, self.fresh, *self.terms]

    def operands_in_one(self) -> list[Tensor]:
        """The operands in the dtype of the arithmetic."""
        return [x.to(self.dtype) for x in self.operands]

    @property
    def dtype(self) -> torch.dtype:
        wide = any(x.dtype == torch.float64 for x in [*self.operands, *self.outs])
        return torch.float64 if wide else torch.float32

    def part(self, which: slice) -> Call:
        """The same call for some of the samples."""
        changes = {}
        for f in dataclasses.fields(self):
            x = getattr(self, f.name)
            if isinstance(x, list):
                changes[f.name] = [y[which] for y in x]
            elif x is not None and x.dim() and f.name != "table":
                changes[f.name] = x[which]
        return dataclasses.replace(self, **changes)


def copy(x: Tensor) -> Tensor:
    """The same values in other memory of the same strides."""
    return torch.empty_strided(x.shape, x.stride(), dtype=x.dtype).copy_(x)


def make(shape, dtypes=torch.float32, table=None, *, terms=3, outs=2, step=ZERO, seed=0, given=False, uniform=False):
    """A call in which about half of the chains accept.

    ``dtypes``: one, or those of (state, cache, proposal, fresh, term0, ...), cyclically; the outputs have the last of
    them, the state's, and the network's.
    """
    generator = torch.Generator().manual_seed(seed)
    dtypes = list(dtypes) if isinstance(dtypes, (list, tuple)) else [dtypes]

    def normal(size=1.0):
        return size * torch.randn(shape, generator=generator, dtype=torch.float64)

    numel = math.prod(shape[1:])
    scale = max(numel, 1) ** -0.25  # the log-ratio is a sum of numel terms of random sign
    z, e = normal(), normal()
    all_ = [z, e, z + normal(scale), e + normal(scale), *(normal() for _ in range(terms))]
    state, cache, proposal, fresh, *others = (x.to(dtypes[i % len(dtypes)]) for i, x in enumerate(all_))
    batch = shape[0]
    chain = torch.zeros(batch, 5, dtype=torch.float64)
    chain[:, :2] = torch.randn(batch, 2, generator=generator, dtype=torch.float64)
    chain[:, 2:4], chain[:, 4] = math.nan, torch.arange(batch)
    kinds = [dtypes[-1], dtypes[0], dtypes[1 % len(dtypes)]]
    return Call(
        state,
        cache,
        [torch.empty(shape, dtype=kinds[k]) for k in range(outs)],
        chain,
        proposal,
        fresh,
        others,
        table_of(rtk()) if table is None else table,
        step,
        None if given else noise.keys(seed + 100, batch),
        [normal().to(dtypes[0]) for _ in range(2)] if given else [],
        torch.rand(batch, generator=generator, dtype=torch.float64) if given or uniform else None,
    )


def rows_of(call: Call) -> Tensor:
    return call.table[call.step.reshape(-1)].expand(len(call.state), -1)


def exact(call: Call) -> tuple[Tensor, Tensor]:
    """The log-ratio in float64, and how far rounding may move it: 48 units of all products in sum."""
    rows, dims = rows_of(call), call.state.dim()
    u = [x.double() for x in call.operands]

    def weighted(column, size=False):
        parts = [product(rows[:, column(j)], x) for j, x in enumerate(u)]
        return sum(p.abs() if size else p for p in parts)

    def product(weight, x):
        weight = weight.reshape(-1, *(1,) * (dims - 1))
        return torch.where(weight == 0, 0, weight * x)

    def total(x):
        return x.reshape(len(x), math.prod(x.shape[1:])).sum(1)

    q, g, h = (weighted(c) for c in (decision.a, decision.g, decision.h))
    size = weighted(decision.a, True), weighted(decision.g, True) + weighted(decision.h, True)
    kappa = rows[:, decision.KAPPA].reshape(-1, *(1,) * (dims - 1))
    some = (rows[:, decision.RATIO : decision.KAPPA : 4] != 0).any(1)
    value = total(product(some.double(), (u[1] - u[0]) * q) + kappa * (g - h) * (g + h))
    bound = total(product(some.double(), (u[1].abs() + u[0].abs()) * size[0]) + kappa * size[1] ** 2)
    energies = torch.where(rows[:, decision.ENERGY] != 0, call.chain[:, 0] - call.chain[:, 1], 0)
    unit = 2.0**-24 if call.dtype == torch.float32 else 2.0**-53
    return value + energies, 48 * unit * (bound + energies.abs()) + 1e-15


def check(call: Call, decided: Tensor | None = None) -> Call:
    """Run a call and hold all of its results to what docs/metropolis.md says; returns what it wrote."""
    got = call.run()
    rows, batch = rows_of(call), len(call.state)
    ratio, bound = exact(call)
    finite = ratio.isfinite()
    assert ((got.chain[:, 2] - ratio).abs() <= bound)[finite].all(), (got.chain[:, 2] - ratio, bound)
    assert torch.equal(got.chain[:, 2].isnan(), ratio.isnan())

    u = call.uniform
    if u is None:
        u = noise.choice_uniform(call.key, rows[:, decision.DRAW].to(torch.int64))
    accept = torch.log(u) < got.chain[:, 2]
    d = call.proposal.to(call.dtype) - call.state.to(call.dtype)
    for k, x in enumerate((d, call.proposal)):
        radius = rows[:, decision.RADIUS + k]
        accept &= (x.double().reshape(batch, math.prod(d.shape[1:])).norm(dim=1) <= radius) | radius.isinf()
    if decided is not None:
        assert torch.equal(accept, decided)
    assert torch.equal(got.chain[:, 3], accept.double())
    assert torch.equal(got.chain[:, 4], call.chain[:, 4] + accept)
    assert torch.equal(got.chain[:, 1], call.chain[:, 1])
    assert same(got.chain[:, 0], torch.where(accept, call.chain[:, 1], call.chain[:, 0]))

    chosen = accept.reshape(-1, *(1,) * (call.state.dim() - 1))
    pairs = [(call.state, call.proposal, got.state), (call.cache, call.fresh, got.cache)]
    values = []
    for old, new, written in pairs:
        values.append(torch.where(chosen, new.to(call.dtype), old.to(call.dtype)))
        assert same(written, torch.where(chosen, new.to(call.dtype).to(old.dtype), old))
    if got.outs:  # the move is a row of update, to the bit
        moved = [torch.empty(x.shape, dtype=x.dtype) for x in got.outs]
        move = call.table[:, : row.COLUMNS].contiguous()
        update_(moved, [*values, *(x.to(call.dtype) for x in call.terms)], move, call.step, call.key, call.noise)
        assert all(same(x, y) for x, y in zip(got.outs, moved, strict=True))
    return got


def same(x: Tensor, y: Tensor) -> bool:
    """Equal bits, but that any NaN is equal to any other."""
    return x.dtype == y.dtype and torch.equal(x.double().nan_to_num(7e33), y.double().nan_to_num(7e33))


def same_call(a: Call, b: Call) -> bool:
    """Whether two runs wrote the same."""
    written = [(a.state, b.state), (a.cache, b.cache), (a.chain, b.chain), *zip(a.outs, b.outs, strict=True)]
    return all(same(x, y) for x, y in written)
