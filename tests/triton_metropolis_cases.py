"""The Triton backend of metropolis_: the bits of the compiled CPU op.

Not collected by itself: tests/test_triton_metropolis.py runs this file in a process with TRITON_INTERPRET=1 (Triton
reads the variable once, at import), and it may be run as it is on a machine with a GPU.
"""

from __future__ import annotations

import math
import os

import pytest
import torch
import triton
import triton.language as tl

from fastsample import decision, native, noise, ops, row
from fastsample.triton import metropolis as backend
from fastsample.triton import metropolis_kernel, normal
from fastsample.triton import update as update_backend
from tests.triton_cases import fused  # noqa: F401  (an interpreter with an exact fma)

INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1"
DEVICE = "cpu" if INTERPRETED else "cuda"
HALF = (torch.float32, torch.float16)  # the interpreter cuts bfloat16 off instead of rounding
NAMES = ("state", "cache", "outs", "chain", "proposal", "fresh", "terms", "table", "step", "key", "noise", "uniform")


def random_call(seed, shape=(4, 37), dtypes=HALF, terms=None, outs=None, layouts=True):
    """Arguments of a call by name; what of a row is zero, the steps and where noise comes from depend on the seed."""
    g = torch.Generator().manual_seed(seed)

    def pick(n):
        return int(torch.randint(n, (1,), generator=g))

    def tensor():
        x = torch.randn(shape, generator=g).to(dtypes[pick(len(dtypes))])
        kind = pick(4) if layouts else 0
        if kind == 1:
            return torch.stack([x, x], -1)[..., 0]
        if kind == 2 and x.dim() == 4:
            return x.contiguous(memory_format=torch.channels_last)
        return torch.cat([x, x], 1)[:, : shape[1]] if kind == 3 else x

    batch, n_terms, n_outs = shape[0], seed % 5 if terms is None else terms, seed // 2 % 4 if outs is None else outs
    weights = torch.randn(3, decision.COLUMNS, generator=g, dtype=torch.float64)
    weights *= torch.rand(3, decision.COLUMNS, generator=g) < 0.7
    table = torch.zeros_like(weights)
    used = [4 * j + k for j in range(2 + n_terms) for k in range(4)] + [row.LO + 1, row.LO + 2, row.LO + 3]
    used += [row.g(k, r) for k in range(3) for r in range(2)]
    used += [decision.RATIO + 4 * j + k for j in range(4 + n_terms) for k in range(3)]
    table[:, used] = weights[:, used]
    table[:, row.LO], table[:, row.HI] = (-0.8, 1.1) if seed % 3 else (-math.inf, math.inf)
    table[:, row.DRAW], table[:, row.DRAW + 1], table[:, decision.DRAW] = 3, 40, 7
    table[:, decision.KAPPA] = 0.01
    table[:, decision.RATIO : decision.KAPPA] *= 0.2
    table[:, decision.ENERGY] = torch.tensor([1.0, 0.0, 1.0])
    size = math.prod(shape[1:]) ** 0.5
    table[:, decision.RADIUS] = torch.tensor([math.inf, 1.42 * size, math.inf])
    table[:, decision.RADIUS + 1] = torch.tensor([math.inf, math.inf, size])
    given = seed % 4 == 3
    proposal = tensor()
    call = {
        "state": tensor(),
        "cache": tensor(),
        "outs": [tensor() for _ in range(n_outs)],
        "chain": torch.randn(batch, 5, generator=g, dtype=torch.float64),
        "proposal": proposal,
        "fresh": tensor(),
        "terms": [tensor() for _ in range(n_terms)],
        "table": table,
        "step": torch.randint(3, (batch,), generator=g) if seed % 2 else torch.tensor(seed // 2 % 3),
        "key": None if given else noise.keys(seed, batch),
        "noise": [tensor() for _ in range(pick(3))] if given else [],
        "uniform": torch.rand(batch, generator=g, dtype=torch.float64) if given or seed % 8 == 5 else None,
    }
    if n_outs and seed % 3 == 1:
        call["outs"][n_outs - 1] = proposal
    return call


def copy(call, device):
    """The same call with memory of its own: laid out alike, and an output that is the proposal still is."""
    made = {}

    def move(x):
        if isinstance(x, list):
            return [move(y) for y in x]
        if x is not None and id(x) not in made:
            made[id(x)] = torch.empty_strided(x.shape, x.stride(), dtype=x.dtype, device=device).copy_(x)
        return None if x is None else made[id(x)]

    return {name: move(x) for name, x in call.items()}


def written(call):
    return [call["state"], call["cache"], *call["outs"], call["chain"]]


def run(call):
    call = copy(call, DEVICE)
    backend.metropolis_(*(call[name] for name in NAMES))
    return [x.cpu() for x in written(call)]


def on_the_cpu(call):
    if not native.load_for("cpu"):
        pytest.skip(f"no native CPU library: {native.why_not('cpu')}")
    call = copy(call, "cpu")
    ops.metropolis_(*(call[name] for name in NAMES))
    return written(call)


def same(got, want):
    for i, (x, y) in enumerate(zip(got, want, strict=True)):
        assert torch.equal(x.isnan(), y.isnan()), i
        assert torch.equal(x.nan_to_num(7.0), y.nan_to_num(7.0)), (i, (x.double() - y.double()).abs().max())


@pytest.fixture
def small_tiles(monkeypatch):
    """One warp and several blocks per program, so that small tensors take every path."""
    monkeypatch.setattr(update_backend, "_TILES", ((math.inf, (1, 3)),))
    monkeypatch.setattr(backend, "_launches", {})


@pytest.mark.parametrize("seed", range(30))
def test_bits_of_the_cpu(seed, small_tiles):
    shape = [(4, 37), (3, 2, 5, 6), (5, 1), (2, 4, 130), (1, 700)][seed % 5]
    call = random_call(seed, shape)
    want = on_the_cpu(call)
    same(run(call), want)


def test_some_accept_and_some_reject():
    taken = [on_the_cpu(random_call(seed))[-1][:, 3] for seed in range(30)]
    assert 0.2 < torch.cat(taken).mean() < 0.8


@pytest.mark.parametrize("n", [1, 4095, 4097, 20_001])
def test_sums_of_many_blocks(n, monkeypatch):
    monkeypatch.setattr(update_backend, "_TILES", ((math.inf, (8, 4)),))  # few programs: the interpreter is slow
    monkeypatch.setattr(backend, "_launches", {})
    call = random_call(0, (2, n), (torch.float32,), terms=1, outs=1)
    same(run(call), on_the_cpu(call))


def test_more_blocks_than_strands(monkeypatch):
    """With blocks of the workspace made by hand: 300 of them, in strands of 128."""
    g = torch.Generator().manual_seed(0)
    sums = torch.randn(300, 3, generator=g, dtype=torch.float64)
    out = torch.zeros(3, dtype=torch.float64, device=DEVICE)
    _fold_kernel[(1,)](sums.to(DEVICE), out, 300)
    strands = torch.zeros(128, 3, dtype=torch.float64)
    for b in range(300):
        strands[b % 128] += sums[b]
    while len(strands) > 1:
        strands = strands[: len(strands) // 2] + strands[len(strands) // 2 :]
    assert torch.equal(out.cpu(), strands[0])


@triton.jit
def _fold_kernel(sums, out, blocks):
    totals = metropolis_kernel.fold_blocks(sums, blocks, 3)
    for m in tl.static_range(3):
        tl.store(out + m, totals[m])


@pytest.mark.parametrize("dtypes", [(torch.float64,), (torch.bfloat16,), (torch.float64, torch.bfloat16)])
def test_other_dtypes(dtypes):
    """The interpreter rounds an fma of float64 twice and cuts bfloat16 off: there to rounding, on a GPU nearly so."""
    for seed in (3, 6, 8):  # the float64 log, sin and cos of a key's noise are libm's
        call = random_call(seed, dtypes=dtypes, layouts=False)
        for got, want in zip(run(call), on_the_cpu(call), strict=True):
            ulp = torch.finfo(torch.bfloat16 if got.dtype == torch.bfloat16 else torch.float64).eps
            if torch.bfloat16 in dtypes:
                ulp = max(ulp, 2.0**-23)
            assert ((got.double() - want.double()).abs() <= 40 * ulp * (1 + want.double().abs())).all()


def test_nothing_depends_on_the_batch_the_layout_or_the_launch(monkeypatch):
    call = random_call(1, (5, 3, 6, 8), (torch.float32,), layouts=False) | {"step": torch.tensor([0, 1, 2, 0, 1])}
    want = run(call)
    for change in ({"_MAX_BATCH": 2}, {"_TILES": ((math.inf, (1, 2)),)}):
        for name, value in change.items():
            monkeypatch.setattr(backend if name == "_MAX_BATCH" else update_backend, name, value)
        monkeypatch.setattr(backend, "_launches", {})
        same(run(call), want)
    last = {
        name: [y.contiguous(memory_format=torch.channels_last) for y in x] if name in ("outs", "terms") else x
        for name, x in call.items()
    }
    last["state"] = call["state"].contiguous(memory_format=torch.channels_last)
    same(run(last), want)
    for b in range(5):
        one = {
            name: x[b : b + 1] if name in ("state", "cache", "chain", "proposal", "fresh", "step", "key") else x
            for name, x in call.items()
        }
        one |= {name: [x[b : b + 1] for x in call[name]] for name in ("outs", "terms", "noise")}
        same(run(one), [x[b : b + 1] for x in want])


def test_the_uniform_of_a_chain():
    key = torch.cat([noise.keys(3, 5), torch.tensor([[5, 2**64 - 3], [2**64 - 1, 2**32 - 2]], dtype=torch.uint64)])
    out = torch.zeros(7, dtype=torch.float64, device=DEVICE)
    for draw in (0, 5, 2**31 - 1):
        _uniform_kernel[(7,)](key.to(DEVICE), draw, out)
        assert torch.equal(out.cpu(), noise.choice_uniform(key, draw))


@triton.jit
def _uniform_kernel(key, draw, out):
    b = tl.program_id(0)
    counter = tl.load(key + 2 * b + 1) + (tl.zeros((), tl.int64) + draw).to(tl.uint64)
    r0, r1, _, _ = normal.philox(tl.load(key + 2 * b), counter, third=1 << 30)
    tl.store(out + b, normal.unit_wide(r0, r1))


def test_steps_out_of_range_reject_and_give_nan():
    call = random_call(1, (4, 40), outs=2, terms=1)
    call["step"] = torch.tensor([0, 3, -1, 2])
    state, cache, *outs, chain = run(call)
    inside = {name: x[[0, 3]] if name in ("step", "key", "chain") else x for name, x in call.items()}
    inside |= {name: call[name][[0, 3]] for name in ("state", "cache", "proposal", "fresh")}
    inside |= {name: [x[[0, 3]] for x in call[name]] for name in ("outs", "terms")}
    same([x[[0, 3]] for x in (state, cache, *outs, chain)], run(inside))
    for got, before in ((state, call["state"]), (cache, call["cache"])):
        assert torch.equal(got[1:3], before[1:3])
    for out in outs:
        assert out[1:3].isnan().all()
    before = call["chain"]
    assert chain[1:3, 2].isnan().all() and (chain[1:3, 3] == 0).all()
    assert torch.equal(chain[1:3, [0, 1, 4]], before[1:3][:, [0, 1, 4]])
    call["table"] = call["table"][:0]
    state, cache, *outs, chain = run(call)
    assert all(out.isnan().all() for out in outs) and (chain[:, 3] == 0).all()


def test_nan_rejects_in_its_own_chain_and_what_has_no_weight_is_not_read():
    call = random_call(0, (3, 50), (torch.float32,), terms=2, outs=1)
    call["table"][:, 4 * 3 : 4 * 4] = 0
    call["table"][:, decision.a(5) : decision.a(5) + 3] = 0
    call["terms"][1].fill_(math.nan)
    plain = call | {"terms": [call["terms"][0], torch.zeros(3, 50)]}
    want = run(plain)
    same(run(call), want)
    call["fresh"][1, 7] = math.nan
    call["table"][:, decision.h(3)] = 1.0
    plain["table"] = call["table"]
    got = run(call)
    assert got[-1][1, 2].isnan() and got[-1][1, 3] == 0
    assert torch.equal(got[0][1], call["state"][1])
    same([x[[0, 2]] for x in got], [x[[0, 2]] for x in run(plain | {"fresh": call["fresh"].nan_to_num(0.0)})])


@pytest.mark.parametrize("shape", [(0, 3), (3, 0)])
def test_empty(shape):
    call = random_call(1, shape, terms=1, outs=1, layouts=False)
    same(run(call), on_the_cpu(call))


def test_memory_around_what_is_written_is_not_touched(small_tiles):
    for n in (31, 300):
        call = random_call(2, (3, n), (torch.float32,), terms=1, outs=1, layouts=False)
        names = ("state", "cache")
        memory = {name: torch.full((3, n + 64), math.nan, device=DEVICE) for name in (*names, "out")}
        chain = torch.full((5, 5), math.nan, dtype=torch.float64, device=DEVICE)
        call = copy(call, DEVICE)
        views = {name: memory[name][:, 32 : 32 + n].copy_(call[name]) for name in names}
        views |= {"outs": [memory["out"][:, 32 : 32 + n]], "chain": chain[1:4].copy_(call["chain"])}
        backend.metropolis_(*((call | views)[name] for name in NAMES))
        for x in memory.values():
            assert x[:, :32].isnan().all() and x[:, 32 + n :].isnan().all()
            assert x[:, 32 : 32 + n].isfinite().all()
        assert chain[[0, 4]].isnan().all()


def test_launches_are_remembered_and_bad_calls_refused(monkeypatch):
    monkeypatch.setattr(backend, "_launches", {})
    call = random_call(0, terms=1, outs=1, layouts=False)
    for step in range(3):
        run(call | {"step": torch.tensor(step)})
    assert len(backend._launches) == 1
    with pytest.raises(ValueError, match=r"fresh: got shape \(4, 36\)"):
        run(call | {"fresh": call["fresh"][:, :36]})
    with pytest.raises(ValueError, match=r"chain: got shape \(3, 5\)"):
        run(call | {"chain": call["chain"][:3]})
    assert len(backend._launches) == 1


def test_the_dispatcher_reaches_triton():
    call = random_call(0)
    want = run(call)
    call = copy(call, DEVICE)
    with ops.use_backend("triton"):
        ops.metropolis_(*(call[name] for name in NAMES))
    same([x.cpu() for x in written(call)], want)
