"""fastsample::metropolis_: the log-ratio, the choice and the move on every backend, against plain formulas."""

from __future__ import annotations

import dataclasses
import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from fastsample import decision, native, noise, row
from fastsample.building import BuildError
from fastsample.ops import metropolis_, use_backend
from tests.metropolis_cases import ESTIMATORS, check, copy, make, rtk, same_call, table_of

F64, F32, BF16, F16 = torch.float64, torch.float32, torch.bfloat16, torch.float16


@pytest.fixture(params=["native", "reference"])
def backend(request):
    if request.param == "native" and not native.load_for("cpu"):
        pytest.skip(f"no native CPU library: {native.why_not('cpu')}")
    with use_backend(request.param):
        yield request.param


@pytest.fixture(scope="module")
def core():
    try:
        return native.core()
    except BuildError as error:
        pytest.skip(f"no compiler or pybind11: {error}")


MIXES = {
    "float64": F64,
    "float32": F32,
    "bfloat16": BF16,
    "float16": F16,
    "network": [F32, BF16, F32, BF16, F32],  # a state in float32, a network in bfloat16
    "one wide": [F32, F16, F64, BF16],
}


@pytest.mark.parametrize("mix", MIXES.values(), ids=MIXES)
@pytest.mark.parametrize("numel", [2, 3, 17, 511, 512, 513, 2049, 4096, 4097, 100_003])
def test_against_float64(backend, mix, numel):
    estimator = list(ESTIMATORS)[numel % len(ESTIMATORS)]
    batch = 3 if numel > 10_000 else 24
    got = check(make((batch, numel), mix, table_of(rtk(estimator)), terms=3, seed=numel))
    if batch == 24:
        assert 1 <= got.chain[:, 3].sum() <= 23  # both ways are tried


@pytest.mark.parametrize("estimator", ESTIMATORS)
@pytest.mark.parametrize("given", [False, True], ids=["keyed", "given"])
def test_estimators_steps_and_outputs(backend, estimator, given):
    table = table_of(*(rtk(estimator, tau=0.01 * (i + 1), draw=5 + i, draws=(2 * i, 2 * i + 1)) for i in range(3)))
    steps = torch.tensor([2, 0, 1, 1, 2, 0, 0])
    for outs in range(4):
        check(make((7, 5, 9), F32, table, outs=outs, step=steps, given=given, seed=outs))
    check(make((7, 5, 9), F64, table, outs=3, step=steps, given=given))
    check(make((7, 5, 9), F32, table, step=torch.tensor(1), given=given, uniform=True))


def test_any_strides(backend):
    call = make((5, 4, 9, 11), F32, table_of(rtk("simpson")), outs=3)
    expected = check(call)
    for name in ("state", "cache", "proposal", "fresh"):
        for other in (
            getattr(call, name).transpose(-1, -2).contiguous().transpose(-1, -2),
            torch.stack([getattr(call, name), torch.ones(5, 4, 9, 11)], dim=-1)[..., 0],
            getattr(call, name).to(memory_format=torch.channels_last),
        ):
            assert same_call(check(dataclasses.replace(call, **{name: other})), expected)
    last = [x.contiguous(memory_format=torch.channels_last) for x in call.outs]
    broadcast = [call.terms[0], call.terms[1][:1].expand(5, 4, 9, 11), call.terms[2]]
    check(dataclasses.replace(call, outs=last, terms=broadcast))


def test_the_proposal_may_be_an_output(backend):
    call = make((9, 700), F32, outs=2)
    expected = check(call)
    for spread in (False, True):
        made = dataclasses.replace(call, state=copy(call.state), cache=copy(call.cache), chain=call.chain.clone())
        proposal = torch.stack([call.proposal, call.proposal], -1)[..., 0] if spread else copy(call.proposal)
        made.proposal = proposal
        made.outs = [proposal, torch.empty_like(call.outs[1])]
        metropolis_(*(getattr(made, f.name) for f in dataclasses.fields(made)))
        assert same_call(made, expected)


@pytest.mark.parametrize("shape", [(0, 3), (2, 0), (4,), (3, 1, 1)])
def test_small_and_empty(backend, shape):
    check(make(shape, F32, table_of(rtk("energy"))))


def test_radii(backend):
    """Too far a step, or too far a proposal, is rejected whatever the ratio; at the radius it is not."""
    call = make((40, 30), F32, uniform=True)
    call.uniform[:] = 1e-300  # the ratio accepts all
    step = (call.proposal.double() - call.state.double()).norm(dim=1)
    reach = call.proposal.double().norm(dim=1)
    middle, far = (float(x.sort().values[19:21].mean()) for x in (step, reach))
    for radii in ((middle, math.inf), (math.inf, far), (middle, far), (1e300, 0.0)):
        call.table = table_of(rtk(radii=radii))
        got = check(call, (step <= radii[0]) & (reach <= radii[1]))
        assert 0 < got.chain[:, 3].sum() < 40 or radii[1] == 0
    call = dataclasses.replace(call, state=torch.zeros(40, 30), proposal=torch.zeros(40, 30))
    call.proposal[:, 7] = 3.0
    call.table = table_of(rtk(radii=(3.0, 3.0)))
    check(call, torch.ones(40, dtype=torch.bool))


def test_nan_rejects_and_stays_in_its_sample(backend):
    call = make((6, 5000), F32, uniform=True)
    call.uniform[:] = 0.0  # log U = -inf: all that is not NaN accepts
    call.fresh[1, 77], call.proposal[2, 4999], call.terms[0][3, 0] = math.nan, math.inf, math.nan
    call.chain[4, 0] = math.nan  # not read without energies
    got = check(call)
    assert got.chain[:, 3].tolist() == [1, 0, 0, 0, 1, 1]
    assert got.outs[0][[0, 1, 2, 4, 5]].isfinite().all()  # what is rejected reaches no output
    call.table = table_of(rtk("energy"))
    assert check(call).chain[4, 3] == 0


def test_what_has_no_weight_is_not_read(backend):
    """NaN in operands without weight reaches nothing; nor does the proposal where it has none."""
    call = make((5, 600), F32, uniform=True)
    call.terms[1].fill_(math.nan), call.terms[2].fill_(math.nan)
    call.uniform[:] = 0.0
    check(call, torch.ones(5, dtype=torch.bool))
    call.table = table_of(decision.make_decision(G={"state": 1.0}, H={"cache": 1.0}, kappa=0.1))
    call.proposal.fill_(math.nan), call.fresh.fill_(math.nan)
    call.outs = []
    check(call, torch.ones(5, dtype=torch.bool))


def test_direct_formula():
    """The simplified log-ratio is the textbook one (Roberts and Tweedie 1996, section 1.4) for a known energy."""
    generator = torch.Generator().manual_seed(1)
    tau, r, v = 0.02, 0.8, 0.3
    z, xi, x = (torch.randn(6, 50, generator=generator, dtype=F64) for _ in range(3))
    f, grad = (lambda y: (y**4 / 4 + torch.sin(y)).sum(1)), (lambda y: y**3 + torch.cos(y))

    def whole(y):
        return f(y) + ((x - r * y) ** 2).sum(1) / (2 * v)

    def slope(y):
        return grad(y) + r / v * (r * y - x)

    z_new = z - tau * slope(z) + math.sqrt(2 * tau) * xi
    forth, back = z_new - z + tau * slope(z), z - z_new + tau * slope(z_new)
    expected = whole(z) - whole(z_new) + ((forth**2).sum(1) - (back**2).sum(1)) / (4 * tau)
    call = make((6, 50), F64, table_of(rtk("energy", tau=tau, r=r, v=v, sigma=1.0)), terms=1)
    call = dataclasses.replace(call, state=z, cache=grad(z), proposal=z_new, fresh=grad(z_new), terms=[x])
    call.chain[:, 0], call.chain[:, 1] = f(z), f(z_new)
    for name in ("native", "reference"):
        if name == "native" and not native.load_for("cpu"):
            continue
        with use_backend(name):
            got = check(call)
        assert ((got.chain[:, 2] - expected) / (1 + expected.abs())).abs().max() <= 1e-12


@pytest.mark.parametrize("estimator", ["energy", "trapezoid", "simpson", "line(2)"])
def test_back_is_minus_forth(backend, estimator):
    """Reversibility: log rho(z, z') = -log rho(z', z) for estimators symmetric in the ends; taylor1 is not."""
    call = make((8, 3000), F64, table_of(rtk(estimator)))
    turned = dataclasses.replace(
        call, state=call.proposal, proposal=call.state, cache=call.fresh, fresh=call.cache, chain=call.chain.clone()
    )
    turned.chain[:, 0], turned.chain[:, 1] = call.chain[:, 1], call.chain[:, 0]
    forth, back = call.run().chain[:, 2], turned.run().chain[:, 2]
    assert ((forth + back).abs() <= 1e-12 * (1 + forth.abs())).all()


def test_taylor1_is_not_reversible(backend):
    call = make((8, 3000), F64, table_of(rtk("taylor1")))
    turned = dataclasses.replace(call, state=call.proposal, proposal=call.state, cache=call.fresh, fresh=call.cache)
    assert ((call.run().chain[:, 2] + turned.run().chain[:, 2]).abs() > 1e-6).all()


def test_chains_keep_the_law():
    """MALA on N(0, 1) with its energy, from exact draws: after 12 steps of tau = 0.9 the law is the same.

    4096 chains of 8 coordinates.  Bounds: 5.2 standard errors of mean and variance, false alarm 4e-7; without the
    choice the variance is 1 / (1 - tau / 2) = 1.82, off by 100 standard errors.
    """
    batch, dim, tau = 4096, 8, 0.9
    move = row.make_row(outputs=[{0: 1 - tau, "xi0": math.sqrt(2 * tau)}], draws=[0])
    rows = []
    for i in range(12):
        move[row.DRAW] = i + 1
        rows.append(
            decision.make_decision(
                move,
                A={"state": 0.5, "proposal": 0.5},
                G={"state": 1.0},
                H={"proposal": 1.0},
                kappa=tau / 4,
                energy=True,
                draw=i,
            )
        )
    table, key, chain = table_of(*rows), noise.keys(12, batch), torch.zeros(batch, 5, dtype=F64)
    z = noise.normal_like(torch.empty(batch, dim, dtype=F64), noise.keys(11, batch))
    proposal = (1 - tau) * z + math.sqrt(2 * tau) * noise.normal_like(z, key)
    empty = torch.zeros_like(z)
    chain[:, 0] = (z * z).sum(1) / 2
    for i in range(12):
        chain[:, 1] = (proposal * proposal).sum(1) / 2
        metropolis_(z, empty, [proposal], chain, proposal, torch.zeros_like(z), [], table, torch.tensor(i), key)
    count = z.numel()
    assert z.mean().abs() <= 5.2 / math.sqrt(count)
    assert (z.var() - 1).abs() <= 5.2 * math.sqrt(2 / count)
    assert 0.3 < chain[:, 4].mean() / 12 < 0.9


@settings(max_examples=60, deadline=None)
@given(
    batch=st.integers(1, 6),
    sample=st.lists(st.integers(1, 9), min_size=0, max_size=3),
    mix=st.lists(st.sampled_from([F64, F32, BF16, F16]), min_size=1, max_size=4),
    estimator=st.sampled_from(sorted(ESTIMATORS)),
    outs=st.integers(0, 3),
    given=st.booleans(),
    flip=st.booleans(),
    seed=st.integers(0, 2**20),
)
def test_any_call(batch, sample, mix, estimator, outs, given, flip, seed):
    table = table_of(rtk(estimator), rtk(estimator, tau=0.1))
    steps = torch.tensor([(seed >> b) & 1 for b in range(batch)])
    call = make((batch, *sample), mix, table, outs=outs, step=steps, given=given, seed=seed)
    if flip and len(sample) > 1:
        call.proposal = call.proposal.mT.contiguous().mT
        call.state = call.state.mT.contiguous().mT
    for name in ("native", "reference"):
        if name == "native" and not native.load_for("cpu"):
            continue
        with use_backend(name):
            check(call)


@settings(max_examples=60, deadline=None)
@given(seed=st.integers(0, 2**64 - 1), offset=st.integers(0, 2**64 - 1), draw=st.integers(0, 2**31 - 1))
def test_uniform_of_a_choice(core, seed, offset, draw):
    key = torch.from_numpy(np.array([[seed, offset]], dtype=np.uint64))
    u = float(noise.choice_uniform(key, draw))
    assert u == core.choice_uniform(seed, offset, draw)
    assert 0 < u <= 1


def test_uniforms_are_uniform():
    """2^16 of them in 64 bins: chi square below 149 (63 degrees; false alarm 6e-9); unlike those of normals' words."""
    u = noise.choice_uniform(noise.keys(3, 2**16))
    counts = torch.histc(u, 64, 0, 1)
    assert float(((counts - 1024) ** 2 / 1024).sum()) < 149
    assert u.unique().numel() == 2**16
    wide = noise.uniform((2**16, 1), noise.keys(3, 2**16))[:, 0]
    assert torch.corrcoef(torch.stack([u, wide.double()]))[0, 1].abs() < 5.5 / 2**8
