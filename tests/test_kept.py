"""Memory that a small run leaves to the next: the same bits, and nothing that anybody still holds is written again."""

from __future__ import annotations

import gc
import weakref

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.utils.weak import WeakIdKeyDictionary

import fastsample
from fastsample import kept, native, remember
from fastsample.choosing import plan_for
from fastsample.models.network import Network
from fastsample.run import PlanRun

from .together import together

pytestmark = pytest.mark.skipif(not native.load_for("cpu"), reason="no compiled CPU library")
SHAPE = (2, 3, 4)
SOLVERS = ["ddim", "dpmpp-2m", "sde-dpmpp-2m", "unipc", "sa-solver", "heun", "dpmpp-2s", "deis"]


def smooth(x, t):
    return torch.tanh(x) * 0.9 + 1e-4 * t.view(-1, 1, 1).to(x.dtype)


NET, NET2 = Network(smooth), Network(lambda x, t: torch.tanh(x) * 0.9)


@pytest.fixture(autouse=True)
def fresh():
    remember.forget()
    yield
    remember.forget()


@pytest.fixture
def never(monkeypatch):
    """Runs in this block share nothing."""

    def draw(make):
        with monkeypatch.context() as patch:
            patch.setattr("fastsample.run.place_of", lambda *_: None)
            return make()

    return draw


@pytest.fixture
def taken(monkeypatch):
    """How many runs began on memory of a run before."""
    count = [0]
    plain = kept.Kept.load

    def load(self, key):
        count[0] += 1
        return plain(self, key)

    monkeypatch.setattr(kept.Kept, "load", load)
    return count


def left(solver="dpmpp-2m", steps=12, net=NET):
    return list(plan_for(net, solver=solver, steps=steps).to("cpu").kept.values())


def draw(seed, *, solver="dpmpp-2m", x=SHAPE, steps=12, net=NET, **more):
    return fastsample.sample(net, x, solver=solver, steps=steps, seed=seed, **more)


@pytest.mark.parametrize("solver", SOLVERS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64])
def test_same_bits_whatever_was_before(never, taken, solver, dtype):
    want = [never(lambda s=s: draw(s, solver=solver, dtype=dtype)) for s in range(3)]
    assert taken[0] == 0
    results = [draw(s, solver=solver, dtype=dtype) for s in (0, 1, 2, 0, 1, 2)]
    assert taken[0] == 5  # all but the first
    assert all(torch.equal(x, want[n % 3]) for n, x in enumerate(results))
    assert len({x.data_ptr() for x in results}) == len(results)


def test_the_start_and_the_layout_of_the_state(never, taken):
    x = torch.randn(2, 3, 4, 5, generator=torch.Generator().manual_seed(0))
    net = Network(lambda x, t: torch.tanh(x))
    starts = [{}, {"start": 4}, {"start": 0.5}]
    layouts = [x, x.to(memory_format=torch.channels_last), x.mT.contiguous().mT, x.expand(2, 3, 4, 5)]
    for more in starts:
        for y in layouts:
            want = never(lambda y=y, more=more: draw(3, x=y, net=net, **more))
            for _ in range(3):
                got = draw(3, x=y, net=net, **more)
                assert torch.equal(got, want) and got.stride() == want.stride()
    assert taken[0] > 0


def test_guidance_scaled_input_and_another_dtype_of_the_network(never, taken):
    net = Network(
        lambda x, t, c: torch.tanh(x) * c.view(-1, 1, 1).to(x.dtype), prediction="edm", input_scaling="edm",
        time="log-sigma", dtype=torch.bfloat16,
    )  # fmt: skip
    path = fastsample.make_path("edm", "karras", steps=9)
    plan = fastsample.make_plan("dpmpp-2m", path, prediction="edm", input_scaling="edm", time="log-sigma", guidance=3.0)

    def run(seed):
        given = {"cond": torch.full((2,), 0.5), "uncond": torch.full((2,), 0.25)}
        return fastsample.sample(net, SHAPE, plan=plan, seed=seed, **given)

    want = [never(lambda s=s: run(s)) for s in (0, 1)]
    assert all(torch.equal(run(n % 2), want[n % 2]) for n in range(6))
    assert taken[0] > 2


HOLD = {
    "state": lambda x, t: x,
    "view": lambda x, t: x[1:, ..., 2],
    "detached": lambda x, t: x.detach(),
    "data": lambda x, t: x.data,
    "array": lambda x, t: x.numpy(),
    "pack": lambda x, t: torch.from_dlpack(x.view(-1)),
    "storage": lambda x, t: x.untyped_storage(),
    "time": lambda x, t: t,
    "time view": lambda x, t: t[:1],
    "time array": lambda x, t: t.numpy(),
}


def value(held):
    if isinstance(held, torch.UntypedStorage):
        return bytes(held)
    return held.clone() if isinstance(held, torch.Tensor) else held.copy()


@pytest.mark.parametrize("what", list(HOLD))
@pytest.mark.parametrize("when", [0, 5, 11])
def test_what_a_network_holds_is_not_written_by_a_later_run(never, what, when):
    held, calls = [], [0]

    def net(x, t):
        if calls[0] == 12 * 2 + when:  # of the third run, the first on memory that is kept
            held.append(HOLD[what](x, t))
        calls[0] += 1
        return smooth(x, t)

    network = Network(net)
    want = [never(lambda s=s: draw(s)) for s in range(7)]
    results = [draw(s, net=network) for s in range(3)]
    (one,) = held
    before = value(one)
    results += [draw(s, net=network) for s in range(3, 7)]
    after = value(one)
    assert bytes(before) == bytes(after) if isinstance(before, bytes) else (before == after).all()
    assert all(torch.equal(x, y) for x, y in zip(results, want, strict=True))


def test_a_callback_may_keep_what_it_sees(never):
    def run(seed, keep):
        return draw(seed, callback=lambda info: keep.append(info), denoised=True)

    want: list = []
    never(lambda: run(5, want))
    for _ in range(3):
        run(0, [])
    seen: list = []
    run(5, seen)
    for seed in range(3):
        run(seed, [])
    assert torch.equal(seen[-1].x, want[-1].x) and torch.equal(seen[-1].denoised, want[-1].denoised)


CHANGES = {
    "time by value": lambda x, t: t.mul_(3.0),
    "time by an array": lambda x, t: t.numpy().__imul__(3.0),
    "time by shape": lambda x, t: t.unsqueeze_(0),
    "time wants a gradient": lambda x, t: t.requires_grad_(),
    "state wants a gradient": lambda x, t: x.requires_grad_(),
    "state by shape": lambda x, t: x.unsqueeze_(0),
    "state elsewhere": lambda x, t: setattr(x, "data", x.clone()),
}


@pytest.mark.parametrize("what", list(CHANGES))
def test_what_a_network_changes_is_let_go(never, what):
    calls = [0]

    def net(x, t):
        out = smooth(x, t)
        if calls[0] == 12 * 3 - 1:  # the last call of the third run
            with torch.inference_mode(False):
                CHANGES[what](x, t)
        calls[0] += 1
        return out if "shape" not in what or out.ndim == x.ndim else out.unsqueeze(0)

    network = Network(net)
    results = []
    for seed in range(7):
        try:
            results.append(draw(seed, net=network))
        except (RuntimeError, ValueError):
            assert seed == 2  # in the run of the change itself
            results.append(None)
    for seed in (3, 4, 5, 6):
        assert torch.equal(results[seed], never(lambda s=seed: draw(s)))


@settings(max_examples=25, deadline=None)
@given(st.lists(st.tuples(st.sampled_from(sorted(HOLD)), st.integers(0, 11), st.booleans()), max_size=6))
def test_patterns_of_holding_and_letting_go(pattern):
    remember.forget()
    held = []
    for seed, (what, when, forget) in enumerate(pattern):
        calls = [0]

        def net(x, t, what=what, when=when, calls=calls):
            if calls[0] == when:
                one = HOLD[what](x, t)
                held.append([one, None])
            calls[0] += 1
            return smooth(x, t)

        network = Network(net)
        draw(seed, net=network)
        held[-1][1] = value(held[-1][0])
        if forget:
            held.pop(0)
        for one, before in held:
            now = value(one)
            assert bytes(now) == bytes(before) if isinstance(now, bytes) else (now == before).all()


def test_a_run_inside_a_run(never):
    def inner(x, t):
        return smooth(x, t) + 1e-3 * draw(int(t[0] * 1e6) % 7).mean()

    network = Network(inner)
    want = [never(lambda s=s: draw(s, net=network)) for s in (0, 1)]
    assert all(torch.equal(draw(n % 2, net=network), want[n % 2]) for n in range(6))


def test_threads(never):
    want = {s: never(lambda s=s: draw(s)) for s in range(8)}
    wrong: list[int] = []

    def work(start):
        for n in range(60):
            seed = (start + n) % 8
            if not torch.equal(draw(seed), want[seed]):
                wrong.append(seed)

    together(work, range(4))
    assert not wrong


def test_errors_and_stops_leave_nothing_wrong(never, taken):
    want = never(lambda: draw(3))
    for _ in range(3):
        draw(1)

    def stop(info):
        if info.call == 4:
            raise fastsample.StopSampling

    def fail(info):
        if info.call == 4:
            raise KeyError("mine")

    early = never(lambda: draw(2, callback=stop))
    for _ in range(2):
        assert torch.equal(draw(2, callback=stop), early)
        with pytest.raises(KeyError, match="mine"):
            draw(2, callback=fail)
        assert torch.equal(draw(3), want)


def test_results_are_ordinary_tensors():
    w = torch.ones((), requires_grad=True)
    for inside in (False, True, False, True, False):
        with torch.inference_mode(inside):
            x = draw(0)
        assert not x.is_inference() and not x._is_view() and not x.requires_grad
        (x * w).sum().backward()


def test_what_is_kept_is_small_and_goes_with_the_plan():
    for _ in range(3):
        draw(0)
    (one,) = left()
    assert isinstance(one, kept.Kept) and sum(x.nbytes for x in one.slots) <= kept.BYTES
    draw(0, x=(5, 3, 4))  # the last kind alone
    assert left() == [torch.float32]
    large = (1, 1, kept.BYTES // 4)
    for _ in range(3):
        draw(0, x=large)
    assert left() == [torch.float32]


def test_a_network_that_always_holds_its_input_is_not_tried_again(taken):
    last = []

    def net(x, t):
        last[:] = [x]
        return smooth(x, t)

    network = Network(net)
    for seed in range(5):
        draw(seed, net=network)
    assert taken[0] == 1 and left(net=network) == [False]


def test_only_those_who_ask_share():
    plan = plan_for(NET, solver="dpmpp-2m", steps=12)
    for _ in range(3):
        draw(0)
    key = fastsample.keys(0, 2)
    like = torch.zeros(()).expand(SHAPE)
    one, two = PlanRun(plan, like, key=key), PlanRun(plan, like, key=key, reuse=True)
    assert one.state.data_ptr() != two.state.data_ptr()
    assert left() == []  # in use


def test_what_hangs_on_a_time_does_not_outlive_the_run(never):
    """An embedding kept by the identity of a time is that of the weights of its run."""
    for hang in ("weak", "attribute"):
        known, weight = WeakIdKeyDictionary(), torch.ones(())

        def net(x, t, hang=hang, known=known, weight=weight):
            found = known.get(t) if hang == "weak" else getattr(t, "_embedded", None)
            if found is None:
                found = weight * t
                if hang == "weak":
                    known[t] = found
                else:
                    t._embedded = found
            return smooth(x, t) + 1e-3 * found.view(-1, 1, 1)

        network = Network(net)
        for seed in range(4):
            weight.mul_(1.5)
            got, known_before = draw(seed, net=network), dict(known)
            known.clear()
            assert torch.equal(got, never(lambda s=seed, n=network: draw(s, net=n))), hang
            del known_before


@pytest.mark.parametrize("what", ["swap", "share", "cut", "transpose", "attribute", "weak"])
def test_the_kind_of_memory_is_looked_at(never, what):
    calls, weak = [0], []

    def net(x, t):
        out = smooth(x, t)
        if calls[0] == 12 * 3 - 1:  # the last call of the third run
            with torch.inference_mode(False):
                if what == "swap":
                    torch.utils.swap_tensors(t, torch.full_like(t, 77.0))
                elif what == "share":
                    t.share_memory_()
                elif what == "cut":
                    t.untyped_storage().resize_(0)
                elif what == "transpose":
                    x.transpose_(1, 2)
                elif what == "attribute":
                    x.note = 1
                else:
                    weak.append(weakref.ref(x))
        calls[0] += 1
        return out

    network, square = Network(net), (2, 3, 3)
    want = [never(lambda s=s: draw(s, x=square)) for s in range(6)]
    for seed in range(6):
        try:
            got = draw(seed, x=square, net=network)
        except (RuntimeError, ValueError):
            assert seed == 2
            continue
        assert seed == 2 or torch.equal(got, want[seed])
        if what == "weak" and seed >= 3:
            assert weak[0]() is None


def test_keys_of_any_layout():
    plan = fastsample.make_plan("ddim", fastsample.make_path("cosine", "log-snr", steps=8))
    x, key = torch.randn(2, 5), fastsample.keys(3, 2)

    def run(given):
        return fastsample.sample(NET2, x, plan=plan, seed=given, start=0)

    want = run(key)
    for _ in range(4):
        assert torch.equal(run(_turned(key)), want)
    assert torch.equal(run(key), want)


def _turned(key):
    """The same keys with strides (1, B)."""
    out = torch.empty(2, len(key), dtype=torch.uint64).T
    out.copy_(key)
    assert not out.is_contiguous()
    return out


def test_many_times_are_not_kept():
    shape, few = (4096, 1), kept.BYTES // (4096 * 16)
    for steps, lasts in ((few, True), (4 * few, False)):
        for _ in range(3):
            fastsample.sample(NET2, shape, solver="ddim", steps=steps, seed=0)
        found = list(plan_for(NET2, solver="ddim", steps=steps).to("cpu").kept.values())
        assert bool(found) is lasts


def test_a_forgotten_plan_is_gone_at_once():
    for _ in range(3):
        draw(0)
    (one,) = left()
    gone = weakref.ref(one)
    del one
    gc.collect()
    gc.disable()
    try:
        remember.forget()
        assert gone() is None
    finally:
        gc.enable()
