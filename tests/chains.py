"""Random calls of ``metropolis_``, and what they leave in the tensors they write."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from fastsample import decision, noise, row

FLOATS = (torch.float32, torch.bfloat16, torch.float16)
ROWS = 3


@dataclasses.dataclass
class Call:
    """Arguments of ``metropolis_``.  ``outs``: dtypes; the first is written over ``proposal`` if ``in_place``."""

    state: Tensor
    cache: Tensor
    proposal: Tensor
    fresh: Tensor
    terms: list[Tensor]
    outs: list[torch.dtype]
    chain: Tensor
    table: Tensor
    step: Tensor
    key: Tensor | None
    noise: list[Tensor]
    uniform: Tensor | None
    in_place: bool = False

    @property
    def exact(self) -> bool:
        """Whether all backends must give the same bits: normals of float64 go through libm."""
        tensors = [self.state, self.cache, self.proposal, self.fresh, *self.terms]
        return self.key is None or torch.float64 not in [*(x.dtype for x in tensors), *self.outs]

    def run(self, op: Callable[..., Any], *more: Any, device: str = "cpu") -> tuple[dict[str, Tensor], Any]:
        """What ``op`` writes, by name, on the CPU, and what it returns; the call itself stays as it is."""

        def there(x: Tensor) -> Tensor:
            """A copy with the same strides."""
            memory = torch.full((x.untyped_storage().nbytes() // x.element_size(),), math.nan, dtype=x.dtype)
            copy = memory.to(device).as_strided(x.shape, x.stride(), x.storage_offset())
            return copy.copy_(x)

        def plain(x: Tensor | None) -> Tensor | None:
            return None if x is None else x.to(device, copy=True)

        state, cache, proposal, fresh = map(there, (self.state, self.cache, self.proposal, self.fresh))
        shape = tuple(self.state.shape)
        outs = [torch.full(shape, math.nan, dtype=t, device=device) for t in self.outs]
        if self.in_place:
            outs[0] = proposal
        chain, terms, given = plain(self.chain), [there(x) for x in self.terms], [there(x) for x in self.noise]
        rest = (plain(self.table), plain(self.step), plain(self.key), given, plain(self.uniform))
        result = op(state, cache, outs, chain, proposal, fresh, terms, *rest, *more)
        assert chain is not None
        written = {"state": state, "cache": cache, "chain": chain}
        written |= {f"outs[{i}]": x for i, x in enumerate(outs)}
        return {name: x.cpu() for name, x in written.items()}, result


def layout(x: Tensor, kind: int) -> Tensor:
    """The same values: 0 contiguous, 1 with gaps, 2 the last two dimensions changed, 3 off an aligned address."""
    if kind == 1:
        return torch.stack([x, x], -1)[..., 0]
    if kind == 2 and x.dim() > 2:
        return x.transpose(-1, -2).contiguous().transpose(-1, -2)
    if kind == 3:
        return torch.cat([x.flatten()[:1], x.flatten()])[1:].reshape(x.shape)
    return x


def call(
    shape: Sequence[int],
    seed: int = 0,
    *,
    dtypes: Sequence[torch.dtype] = (torch.float32,),
    terms: int = 1,
    outs: int = 2,
    strided: bool = False,
    per_sample: bool = False,
    given: bool = False,
    radii: bool = False,
    energy: bool = False,
    in_place: bool = False,
) -> Call:
    """A call whose chains accept about as often as not; ``given``: noise and uniforms as tensors."""
    g = torch.Generator().manual_seed(seed)
    count = max(1, math.prod(shape[1:]))

    def pick(n: int) -> int:
        return int(torch.randint(n, (1,), generator=g))

    def tensor() -> Tensor:
        x = torch.randn(tuple(shape), generator=g, dtype=torch.float64).to(dtypes[pick(len(dtypes))])
        return layout(x, pick(4) if strided else 0)

    def weights(names: Sequence[str]) -> dict[str, float]:
        drawn = torch.randn(len(names), generator=g, dtype=torch.float64).tolist()
        return {name: value / count**0.5 for name, value in zip(names, drawn, strict=True) if pick(4)}

    names = decision.OPERANDS[: 4 + terms]
    rows = []
    for i in range(ROWS):
        outputs: list[dict[int | str, float]] = []
        for k in range(outs):
            w = torch.randn(8, generator=g, dtype=torch.float64).tolist()
            outputs.append({j: w[j] for j in range(2 + terms) if pick(3)} | {"D": w[6], f"xi{k % 2}": w[7]})
        D = {j: 0.5 - 0.2 * j for j in range(2 + terms)}
        move = row.make_row(D=D, outputs=outputs, limits=(-0.8, 1.1) if i else None, draws=[1 + i, 2**30 + i])
        rows.append(
            decision.make_decision(
                move,
                A=weights(names) if i != 1 else None,
                G=weights(names),
                H=weights(names),
                kappa=0.3 * i,
                energy=energy,
                radii=((2 * count) ** 0.5, count**0.5) if radii and i != 2 else (math.inf, math.inf),
                draw=5 + i,
            )
        )
    chain = torch.randn(shape[0], 5, generator=g, dtype=torch.float64)
    chain[:, 4] = 3
    key = None if given else noise.keys(seed, shape[0])
    return Call(
        *(tensor() for _ in range(4)),
        terms=[tensor() for _ in range(terms)],
        outs=[dtypes[pick(len(dtypes))] for _ in range(outs)],
        chain=chain,
        table=torch.stack([torch.from_numpy(r) for r in rows]),
        step=torch.randint(ROWS, (shape[0],), generator=g) if per_sample else torch.tensor(pick(ROWS)),
        key=key,
        noise=[tensor() for _ in range(2)] if given else [],
        uniform=torch.rand(shape[0], generator=g, dtype=torch.float64) if given else None,
        in_place=in_place,
    )


def assert_equal(got: dict[str, Tensor], expected: dict[str, Tensor], exact: bool, note: object = "") -> None:
    """The same bits (NaN where NaN), or for float64 normals the same to rounding; chains always the same bits."""
    assert got.keys() == expected.keys()
    for name, x in expected.items():
        if exact or not name.startswith("outs"):
            assert torch.equal(got[name].nan_to_num(77.0), x.nan_to_num(77.0)), (name, note)
        else:
            torch.testing.assert_close(got[name], x, rtol=1e-13, atol=1e-13, equal_nan=True)
