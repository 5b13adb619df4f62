"""What metropolis_ and the builder of its rows refuse, in words, before memory is touched; opcheck; gradients."""

from __future__ import annotations

import dataclasses
import math

import numpy as np
import pytest
import torch

from fastsample import decision, native, row
from fastsample.ops import metropolis_, use_backend
from tests.metropolis_cases import make, rtk, same, table_of

F64 = torch.float64


@pytest.fixture(params=["native", "reference"])
def backend(request):
    if request.param == "native" and not native.load_for("cpu"):
        pytest.skip(f"no native CPU library: {native.why_not('cpu')}")
    with use_backend(request.param):
        yield request.param


def call_with(**changes):
    call = make((4, 6), torch.float32, terms=2, outs=2)
    return dataclasses.replace(call, **{k: v(call) if callable(v) else v for k, v in changes.items()})


def arguments(call):
    return [getattr(call, f.name) for f in dataclasses.fields(call)]


BAD = [
    ({"state": lambda c: c.state.long()}, TypeError, "state: got torch.int64"),
    ({"fresh": lambda c: c.fresh[:, :5]}, ValueError, r"fresh: got shape \(4, 5\)"),
    ({"terms": lambda c: [c.state + 1, torch.zeros(3, 6)]}, ValueError, r"terms\[1\]: got shape \(3, 6\)"),
    ({"terms": lambda c: [c.fresh + 1] * 5}, ValueError, "terms: got 5 tensors, allowed are 0..4"),
    ({"outs": lambda c: [torch.empty(4, 6) for _ in range(4)]}, ValueError, "outs: got 4 tensors"),
    ({"noise": lambda c: [torch.zeros(4, 6)]}, ValueError, "key, noise: got both"),
    ({"key": None, "noise": lambda c: [torch.zeros(4, 6)] * 3}, ValueError, "noise: got 3 tensors"),
    ({"key": None}, ValueError, "key, uniform: got neither"),
    ({"key": lambda c: c.key[:3].clone()}, ValueError, r"key: got shape \(3, 2\)"),
    ({"uniform": torch.zeros(4)}, ValueError, r"uniform: got shape \(4,\) torch.float32"),
    ({"uniform": torch.zeros(5, dtype=F64)}, ValueError, r"uniform: got shape \(5,\)"),
    ({"chain": torch.zeros(4, 4, dtype=F64)}, ValueError, r"chain: got shape \(4, 4\)"),
    ({"chain": torch.zeros(5, 4, dtype=F64).T}, ValueError, "chain: .* with gaps"),
    ({"table": torch.zeros(1, 48, dtype=F64)}, ValueError, r"table: got shape \(1, 48\)"),
    ({"table": torch.zeros(96, dtype=F64)}, ValueError, r"table: got shape \(96,\)"),
    ({"step": torch.zeros(3, dtype=torch.int64)}, ValueError, r"step: got shape \(3,\)"),
    ({"step": torch.tensor(0.0)}, ValueError, "step: got shape"),
    ({"step": torch.tensor(1)}, ValueError, "step: got 1, allowed are 0..0"),
    ({"step": torch.tensor([0, 0, -1, 0])}, ValueError, "step: got .*-1.*, allowed are 0..0"),
    ({"state": lambda c: c.state[:1].expand(4, 6)}, ValueError, "state: got a tensor whose elements share memory"),
    ({"cache": lambda c: c.state}, ValueError, "cache: overlaps the memory of state"),
    ({"proposal": lambda c: c.state}, ValueError, "state: overlaps the memory of proposal; give other memory"),
    ({"fresh": lambda c: c.cache}, ValueError, "cache: overlaps the memory of fresh"),
    ({"outs": lambda c: [c.fresh]}, ValueError, r"outs\[0\]: overlaps the memory of fresh; it may be exactly proposal"),
    ({"outs": lambda c: [c.terms[0]]}, ValueError, r"outs\[0\]: overlaps the memory of terms\[0\]"),
    ({"outs": lambda c: [c.state]}, ValueError, r"outs\[0\]: overlaps the memory of state"),
    ({"outs": lambda c: [c.proposal, c.proposal]}, ValueError, r"outs\[1\]: overlaps the memory of outs\[0\]"),
    ({"outs": lambda c: [c.proposal.view(6, 4).T]}, ValueError, r"outs\[0\]: overlaps the memory of proposal"),
]


@pytest.mark.parametrize(("changes", "error", "message"), BAD)
def test_bad_arguments_are_named(backend, changes, error, message):
    call = call_with(**changes)
    before = [x.clone() for x in (call.state, call.cache, call.chain)]
    with pytest.raises(error, match=message):
        metropolis_(*arguments(call))
    assert all(same(x, y) for x, y in zip(before, (call.state, call.cache, call.chain), strict=True))


def test_plain_numbers_lie_apart_from_what_is_written(backend):
    memory = torch.zeros(1000, dtype=F64)
    call = make((4, 6), F64, terms=1, outs=1)
    memory[:96] = call.table[0]
    chain = memory[80:100].view(4, 5)
    with pytest.raises(ValueError, match="chain: overlaps the memory of table"):
        metropolis_(*arguments(dataclasses.replace(call, chain=chain, table=memory[:96].view(1, 96))))
    with pytest.raises(ValueError, match=r"outs\[0\]: overlaps the memory of table"):
        metropolis_(
            *arguments(dataclasses.replace(call, outs=[memory[90:114].view(4, 6)], table=memory[:96].view(1, 96)))
        )
    with pytest.raises(ValueError, match="chain: overlaps the memory of uniform"):
        metropolis_(*arguments(dataclasses.replace(call, chain=chain, uniform=memory[82:86])))
    with pytest.raises(ValueError, match="chain: overlaps the memory of fresh"):
        metropolis_(*arguments(dataclasses.replace(call, chain=chain, fresh=memory[76:100].view(4, 6))))
    gaps = memory[200:248].view(4, 6, 2)  # a chain between the elements of a term shares none of them
    term = torch.as_strided(memory, (4, 6), (40, 2), 300)
    call = dataclasses.replace(
        call, fresh=gaps[..., 0], cache=gaps[..., 1], terms=[term], chain=memory[312:332].view(4, 5)
    )
    metropolis_(*arguments(call))


def test_opcheck():
    for call in (call_with(), call_with(key=None, noise=[torch.randn(4, 6)], uniform=torch.rand(4, dtype=F64))):
        torch.library.opcheck(torch.ops.fastsample.metropolis_, tuple(arguments(call)))


def test_no_gradient_and_versions():
    call = call_with()
    with pytest.raises(RuntimeError, match="passes no gradient on"):
        metropolis_(*arguments(dataclasses.replace(call, fresh=call.fresh.clone().requires_grad_())))
    x = torch.randn(4, 6, requires_grad=True)
    y = (x * call.state).sum()  # saves the state, which the op then overwrites
    metropolis_(*arguments(call))
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        y.backward()


def test_builder_names_its_columns():
    made = decision.make_decision(
        row.make_row(outputs=[{0: 2.0}]),
        A={"state": 1.0, "term3": 2.0},
        G={"cache": 3.0},
        H={"fresh": 4.0},
        kappa=0.25,
        energy=True,
        radii=(1.0, 2.0),
        draw=9,
    )
    expected = np.zeros(96)
    expected[:48] = row.make_row(outputs=[{0: 2.0}])
    for column, value in ((48, 1), (76, 2), (57, 3), (62, 4), (80, 0.25), (81, 1), (82, 1), (83, 2), (84, 9)):
        expected[column] = value
    assert np.array_equal(made, expected)
    assert np.array_equal(decision.make_decision()[:48], row.blank())
    assert np.isinf(decision.make_decision()[82:84]).all()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"A": {"term4": 1.0}}, "A: got operand 'term4', allowed are state, proposal, cache, fresh, term0"),
        ({"G": {"state": math.nan}}, "decision: row 0 has a weight that is not finite"),
        ({"kappa": math.inf}, "not finite"),
        ({"radii": (-1.0, 1.0)}, "has -1.0 in column 82, allowed is a radius of 0 or more"),
        ({"radii": (1.0, math.nan)}, "has nan in column 83"),
        ({"draw": -1}, "in column 84, allowed is a whole number"),
        ({"draw": 2**31}, "in column 84"),
        ({"draw": 0.5}, "in column 84"),
        ({"move": np.zeros(47)}, r"move: got shape \(47,\)"),
    ],
)
def test_builder_refuses(options, message):
    with pytest.raises(ValueError, match=message):
        decision.make_decision(**options)


def test_tables_are_checked():
    decision.check_decisions(np.stack([rtk(), rtk("energy")]))
    with pytest.raises(ValueError, match=r"table: got shape \(96,\)"):
        decision.check_decisions(rtk())
    for column, value in ((51, 1.0), (90, 1.0), (81, 0.5), (0, math.nan)):
        table = table_of(rtk()).numpy()
        table[0, column] = value
        with pytest.raises(ValueError, match="row 0"):
            decision.check_decisions(table)
