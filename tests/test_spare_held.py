"""Memory of drop-in schedulers that is taken again: never what anybody holds, in whatever form."""

from __future__ import annotations

import copy
import gc
import pickle
import weakref
from collections.abc import Callable
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

pytest.importorskip("diffusers")

from fastsample.integrations.diffusers import DDPMScheduler, EulerDiscreteScheduler, UniPCMultistepScheduler, spare
from fastsample.integrations.diffusers.spare import Spare

from .lockstep import network, start
from .spares import SHAPE, kept, low_limit, run, scheduler_of  # noqa: F401
from .together import together

Keeper = Callable[[], Tensor]


def later(value: Any, back: Callable[[Any], Tensor] = lambda v: v) -> Keeper:
    """Holds a value, and makes a tensor of it when it is looked at."""
    return lambda: back(value)


def _memory(y: Tensor) -> Keeper:
    return later(memoryview(y.numpy()), lambda v: torch.frombuffer(v, dtype=torch.float32).view(SHAPE))


def _storage(y: Tensor) -> Keeper:
    return later(y.untyped_storage(), lambda v: torch.empty(0).set_(v, 0, SHAPE))


def _saved(y: Tensor) -> Keeper:
    weight = torch.ones(SHAPE, requires_grad=True)
    return later((y * weight).sum(), lambda v: torch.autograd.grad(v, weight)[0])


def _touched(y: Tensor) -> Keeper:
    y.untyped_storage()
    return later(y)


KEEPERS: dict[str, Callable[[Tensor], Keeper] | None] = {
    "nothing": None,
    "tensor": later,
    "view": lambda y: later(y.view(-1), lambda v: v.view(SHAPE)),
    "slice": lambda y: later(y[1:, 2, 3:4]),
    "detached": lambda y: later(y.detach()),
    "data": lambda y: later(y.data),
    "numpy": lambda y: later(y.numpy(), torch.from_numpy),
    "capsule": lambda y: later(y.__dlpack__(), torch.from_dlpack),
    "memoryview": _memory,
    "storage": _storage,
    "parameter": lambda y: later(torch.nn.Parameter(y), Tensor.detach),
    "graph": _saved,
    "touched storage": _touched,
    "list": lambda y: later([{"y": y}], lambda v: v[0]["y"]),
}
ONCE = ("capsule", "graph")  # can be opened once
ALL_KEEPERS = st.sampled_from(list(KEEPERS))


def run_and_keep(scheduler: Any, pattern: list[tuple[str, str, int]]) -> None:
    """Steps whose two outputs are kept as said, for so many steps; all that is kept is compared after every step."""
    scheduler.set_timesteps(len(pattern))
    held: list[tuple[int, str, Keeper, Tensor]] = []
    x = start(*SHAPE)
    for i, (t, (first, second, life)) in enumerate(zip(scheduler.timesteps, pattern, strict=True)):
        out = scheduler.step(network(x, i), t, x, return_dict=False)
        for y, how in zip(out, (first, second), strict=False):
            keep = KEEPERS[how]
            if keep is not None:
                held.append((i + life, how, keep(y), y[1:, 2, 3:4].clone() if how == "slice" else y.clone()))
        x = out[0]
        del out, y
        for until, how, got, want in held:
            if until <= i or how not in ONCE:
                assert torch.equal(got(), want)
        held = [one for one in held if one[0] > i]
    for _, _, got, want in held:
        assert torch.equal(got(), want)


@settings(max_examples=60, deadline=None)
@given(
    st.sampled_from(["DDPMScheduler", "DDIMScheduler", "EulerDiscreteScheduler", "UniPCMultistepScheduler"]),
    st.lists(st.tuples(ALL_KEEPERS, ALL_KEEPERS, st.integers(0, 12)), min_size=3, max_size=24),
)
def test_what_is_kept_is_never_written(name: str, pattern: list[tuple[str, str, int]]) -> None:
    run_and_keep(scheduler_of(name, "counter"), pattern)


@pytest.mark.parametrize("how", list(KEEPERS))
@pytest.mark.parametrize("every", [1, 2])
def test_keeping_all_or_every_second(how: str, every: int) -> None:
    run_and_keep(scheduler_of("DDPMScheduler"), [(how if i % every == 0 else "nothing", how, 99) for i in range(30)])


@settings(max_examples=200, deadline=None)
@given(st.lists(st.tuples(st.integers(0, 5), st.sampled_from([torch.float32, torch.bfloat16]), st.booleans())))
def test_a_spare_hands_out_what_nobody_has(asked: list[tuple[int, torch.dtype, bool]]) -> None:
    room, like, held = Spare(), torch.empty(SHAPE), {}
    for slot, dtype, drop in asked:
        if drop:
            held.pop(slot, None)
            continue
        made = room.take(like, dtype)
        assert made is not None and made.data_ptr() not in {y.data_ptr() for y in held.values()}
        held[slot] = made
        del made
    assert len(room._kept) <= spare._BUFFERS


# --- what may happen to the memory of an output


def _resized(y: Tensor) -> None:
    y.untyped_storage().resize_(0)


def _cut(y: Tensor) -> None:
    torch.ops.inductor.resize_storage_bytes_(y, 0)
    torch.ops.inductor.resize_storage_bytes_(y, 64)


def _grown(y: Tensor) -> None:
    y.resize_(7 * y.numel())


def _shared(y: Tensor) -> None:
    y.share_memory_()


def _given_away(y: Tensor) -> None:
    y.data = torch.zeros(3)


@pytest.mark.parametrize("change", [_resized, _cut, _grown, _shared, _given_away])
def test_storages_that_were_changed(change: Callable[[Tensor], None], monkeypatch: pytest.MonkeyPatch) -> None:
    def go() -> list[Tensor]:
        scheduler, e, made = DDPMScheduler().use(noise="counter", seed=1), start(*SHAPE, seed=1), []
        scheduler.set_timesteps(12)
        x = start(*SHAPE)
        for t in scheduler.timesteps:
            out = scheduler.step(e, t, x)
            x = out.prev_sample
            made.append(x.clone())
            change(out.pred_original_sample)
        return made

    found = go()
    monkeypatch.setenv("FASTSAMPLE_SPARE_MB", "0")
    assert all(torch.equal(a, b) for a, b in zip(found, go(), strict=True))


def test_larger_memory_is_let_go() -> None:
    room, like = Spare(), torch.empty(SHAPE)
    y = room.take(like, torch.float32)
    assert y is not None
    y.resize_(7 * y.numel())
    del y
    y = room.take(like, torch.float32)
    assert y is not None and y.untyped_storage().nbytes() == like.nbytes and len(room._kept) == 1


def test_memory_of_other_processes_is_not_taken() -> None:
    room, like = Spare(), torch.empty(SHAPE)
    y = room.take(like, torch.float32)
    assert y is not None
    shared = y.share_memory_().data_ptr()
    del y
    for _ in range(3):
        y = room.take(like, torch.float32)
        assert y is not None and y.data_ptr() != shared and not y.is_shared()


# --- threads, copies, ends


def test_two_threads_step_one_scheduler() -> None:
    scheduler, e = DDPMScheduler().use(noise="counter", seed=1), start(*SHAPE, seed=1)
    scheduler.set_timesteps(20)
    times, x = scheduler.timesteps, start(*SHAPE)
    want, y = [], x
    for t in times:
        y = scheduler.step(e, t, y).prev_sample
        want.append(y.clone())
    wrong: list[int] = []

    def work(keep: int) -> None:
        for _ in range(15):
            held, y = [], x
            for i, t in enumerate(times):
                y = scheduler.step(e, t, y).prev_sample
                if keep and i % keep == 0:
                    held.append((i, y))
                if not torch.equal(y, want[i]):
                    wrong.append(i)
            wrong.extend(i for i, z in held if not torch.equal(z, want[i]))

    together(work, (0, 1, 3))
    assert not wrong and len(kept(scheduler)) <= spare._BUFFERS + 3


def test_copies_have_their_own() -> None:
    scheduler = UniPCMultistepScheduler()
    run(scheduler, start(*SHAPE))
    own = {one.place for one in kept(scheduler)}
    for other in (copy.copy(scheduler), copy.deepcopy(scheduler), pickle.loads(pickle.dumps(scheduler))):
        assert own and not kept(other) and other._spare is not scheduler._spare
        found, want = run(other, start(*SHAPE)), run(scheduler, start(*SHAPE))
        assert all(torch.equal(a, b) for a, b in zip(found, want, strict=True))
        assert not own & {one.place for one in kept(other)}


def test_a_copy_in_the_middle_of_a_run_reads_its_own_history() -> None:
    scheduler, e = UniPCMultistepScheduler(), start(*SHAPE, seed=1)
    scheduler.set_timesteps(8)
    x = start(*SHAPE)
    for t in scheduler.timesteps[:4]:
        x = scheduler.step(e, t, x).prev_sample
    other, y = copy.copy(scheduler), x  # a shallow copy: the history is one list, its tensors are held by it
    other.model_outputs, other.timestep_list = list(scheduler.model_outputs), list(scheduler.timestep_list)
    for t in scheduler.timesteps[4:]:
        x = scheduler.step(e, t, x).prev_sample
    for t in other.timesteps[4:]:
        y = other.step(e, t, y).prev_sample
    assert torch.equal(x, y)


def test_memory_goes_with_the_scheduler_or_another_shape() -> None:
    scheduler = EulerDiscreteScheduler()
    run(scheduler, start(*SHAPE))
    first = [weakref.ref(one.base) for one in kept(scheduler)]
    assert first and all(ref() is not None for ref in first)
    run(scheduler, start(1, 4, 64, 64))
    assert all(ref() is None for ref in first) and {one.key[0] for one in kept(scheduler)} == {(1, 4, 64, 64)}
    scheduler.use()
    assert not kept(scheduler)
    run(scheduler, start(*SHAPE))
    last = weakref.ref(kept(scheduler)[0].base)
    del scheduler
    gc.collect()
    assert last() is None
