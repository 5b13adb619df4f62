"""Updates past the dispatcher: the same bits as the op, and the op wherever anything is unusual."""

from __future__ import annotations

import gc
import weakref

import numpy as np
import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

import fastsample
from fastsample import native, repeats, row
from fastsample.models.network import Network
from fastsample.noise import keys
from fastsample.ops import bound, update_, use_backend
from fastsample.run import PlanRun

pytestmark = pytest.mark.skipif(not native.load_for("cpu"), reason="no compiled CPU library")
SOLVERS = ["ddim", "dpmpp-2m", "sde-dpmpp-2m", "unipc", "sa-solver", "heun", "deis", "pndm", "dpmpp-2s"]


def smooth(x, t):
    return torch.tanh(x) * 0.9


@pytest.fixture
def turns(monkeypatch):
    """How often a bound call did the update (True) or left it to the op (False)."""
    made: dict[bool, int] = {True: 0, False: 0}
    plain = repeats.Repeats.__call__

    def counted(self, *args):
        done = plain(self, *args)
        made[done] += 1
        return done

    monkeypatch.setattr(repeats.Repeats, "__call__", counted)
    return made


def by_the_op(monkeypatch, draw):
    with monkeypatch.context() as patch:
        patch.setattr(bound, "free", lambda: False)
        return draw()


@pytest.mark.parametrize("solver", SOLVERS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64])
def test_same_bits_as_the_op(turns, monkeypatch, solver, dtype):
    def draw():
        return fastsample.sample(Network(smooth), (3, 5, 7), solver=solver, steps=24, seed=4, dtype=dtype)

    want = by_the_op(monkeypatch, draw)
    assert turns[True] == 0
    assert torch.equal(draw(), want)
    assert turns[True] > 5


def test_guidance_and_phase_space(turns, monkeypatch):
    net = Network(lambda x, t, c: torch.tanh(x + c[:, None]))
    cond, uncond = torch.ones(3), torch.zeros(3)

    def guided():
        return fastsample.sample(net, (3, 6), steps=12, seed=4, guidance=2.0, cond=cond, uncond=uncond)

    assert torch.equal(by_the_op(monkeypatch, guided), guided())
    assert turns[True] > 5
    space = Network(smooth, space=fastsample.PhaseSpace())
    before = turns[True]

    def pair():
        return fastsample.sample(space, (3, 4, 2), solver="sscs", steps=12, seed=4)

    assert torch.equal(by_the_op(monkeypatch, pair), pair())
    assert turns[True] >= before


@pytest.mark.parametrize(
    "unusual",
    [
        lambda out, n: out.double() if n % 2 else out,
        lambda out, n: out.mT.contiguous().mT,
        lambda out, n: torch.nn.Parameter(out, requires_grad=False),
        lambda out, n: torch.stack([out, out], dim=-1)[..., 0],
    ],
    ids=["dtype", "strides", "subclass", "slices"],
)
def test_unusual_outputs_go_through_the_op(turns, monkeypatch, unusual):
    def draw():
        calls = []

        def net(x, t):
            calls.append(1)
            return unusual(smooth(x, t), len(calls))

        return fastsample.sample(Network(net), (3, 5, 7), solver="dpmpp-2m", steps=20, seed=4)

    assert torch.equal(draw(), by_the_op(monkeypatch, draw))
    assert turns[False] > 5


def test_a_network_that_returns_its_input(turns, monkeypatch):
    def draw():
        return fastsample.sample(Network(lambda x, t: x), (3, 5), solver="ddim", steps=12, seed=4)

    assert torch.equal(draw(), by_the_op(monkeypatch, draw))
    assert turns[True] > 5


def test_a_wrong_shape_in_a_late_call_is_the_op_s_error():
    calls = []

    def net(x, t):
        calls.append(1)
        return x[:1] if len(calls) == 9 else x * 0.5

    with pytest.raises(RuntimeError, match="one shape"):
        fastsample.sample(Network(net), (3, 5), solver="ddim", steps=12, seed=4)


class Seen(TorchDispatchMode):
    def __init__(self):
        super().__init__()
        self.updates = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        self.updates += func is torch.ops.fastsample.update_.default
        return func(*args, **(kwargs or {}))


def test_who_watches_the_dispatcher_sees_every_update(turns):
    with Seen() as seen:
        fastsample.sample(Network(smooth), (3, 5), solver="ddim", steps=12, seed=4)
    assert seen.updates == 12 + 1  # and the start
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU]) as profile:
        fastsample.sample(Network(smooth), (3, 5), solver="ddim", steps=12, seed=4)
    assert sum(e.count for e in profile.key_averages() if e.key == "fastsample::update_") == 13
    with use_backend("reference"):
        fastsample.sample(Network(smooth), (3, 5), solver="ddim", steps=12, seed=4)
    assert turns[True] == 0


class TestBound:
    def call(self, outs=None, terms=None, key=None):
        x = torch.randn(2, 9, generator=torch.Generator().manual_seed(0))
        outs = [torch.full_like(x, torch.nan)] if outs is None else outs
        weights = {"xi0": 0.5} if key is not None else {}
        rows = [row.make_row(outputs=[{0: float(n + 1), **weights}], draws=[n]) for n in range(3)]
        table = torch.from_numpy(np.stack(rows))
        steps = torch.arange(4).unbind(0)
        return outs, [x] if terms is None else terms, table, steps, key

    def test_rows_and_addresses(self):
        outs, terms, table, steps, key = self.call(key=keys(3, 2))
        call = bound.bind(outs, terms, table, steps[0], key)
        for n in range(3):
            want = torch.empty_like(outs[0])
            other = terms[0] + n
            update_([want], [other], table, steps[n], key)
            call.addresses[0], call.addresses[3] = steps[n].data_ptr(), other.data_ptr()
            assert call()
            assert torch.equal(outs[0], want)

    def test_refusals_touch_nothing(self):
        buffer = torch.zeros(40)
        outs, terms, table, steps, key = self.call(outs=[buffer[:18].view(2, 9)])
        call = bound.bind(outs, terms, table, steps[0], key)
        before = buffer.clone()
        call.addresses[3] = buffer[4:].data_ptr()  # a part of the output
        assert not call()
        call.addresses[3] = 0
        assert not call()
        call.addresses[3], call.addresses[0] = terms[0].data_ptr(), steps[3].data_ptr()  # there are three rows
        assert not call()
        assert torch.equal(buffer, before)
        call.addresses[0], call.addresses[3] = steps[0].data_ptr(), buffer.data_ptr()  # exactly the output
        assert call()

    def test_what_cannot_be_bound(self):
        outs, terms, table, steps, key = self.call()
        assert bound.bind([outs[0].mT], [torch.randn(2, 9).mT.contiguous()], table, steps[0], key) is None
        assert bound.bind([torch.empty(0, 3)], [torch.empty(0, 3)], table, steps[0], key) is None
        assert bound.bind(outs, terms, table, torch.zeros(2, dtype=torch.int64), key) is None
        with use_backend("reference"):
            assert bound.bind(outs, terms, table, steps[0], key) is None

    def test_it_is_let_go(self):
        outs, terms, table, steps, key = self.call()
        call = bound.bind(outs, terms, table, steps[0], key)
        gone = weakref.ref(call)
        del call
        gc.collect()
        assert gone() is None


@pytest.mark.parametrize("first", ["slices", "channels last", "expanded"])
def test_a_layout_that_changes_after_the_first_call(monkeypatch, first):
    def draw():
        calls = []

        def net(x, t):
            calls.append(1)
            out = smooth(x, t)
            if len(calls) > 8:
                return out.contiguous()
            if first == "slices":
                return torch.cat([out, out], dim=1).chunk(2, dim=1)[0]
            return out.to(memory_format=torch.channels_last) if first == "channels last" else out[:, :1].expand_as(out)

        return fastsample.sample(Network(net), (3, 4, 5, 2), solver="ddim", steps=20, seed=4)

    assert torch.equal(draw(), by_the_op(monkeypatch, draw))


def test_a_callback_that_gives_the_state_other_memory(turns, monkeypatch):
    def draw():
        def other(info):
            if info.call == 7:
                info.x.data = info.x.clone() * 0.5

        return fastsample.sample(Network(smooth), (3, 5), solver="dpmpp-2m", steps=20, seed=4, callback=other)

    assert torch.equal(draw(), by_the_op(monkeypatch, draw))
    assert turns[True] > 0


def test_a_negative_bit_goes_through_the_op(monkeypatch):
    def draw():
        return fastsample.sample(
            Network(lambda x, t: torch._neg_view(x * 0.5)), (3, 5), solver="ddim", steps=12, seed=4
        )

    assert torch.equal(draw(), by_the_op(monkeypatch, draw))


def test_outside_of_inference_mode_the_op_refuses_gradients(turns):
    plan = fastsample.make_plan("ddim", fastsample.make_path("cosine", "log-snr", steps=12))
    run = PlanRun(plan, torch.zeros(3, 5), key=keys(1, 3))
    asks = run.asks()
    x, _ = next(asks)
    for _ in range(8):
        x, _ = asks.send(x * 0.5)
    out = x * torch.ones((), requires_grad=True)
    with pytest.raises(RuntimeError, match="passes no gradient"):
        asks.send(out)
    assert turns[True] == 0
