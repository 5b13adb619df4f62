"""Memory of drop-in schedulers on the CPU that is taken again: the same bits, nothing that anybody holds, few pages."""

from __future__ import annotations

import importlib.util
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

pytest.importorskip("diffusers")

from fastsample.integrations.diffusers import DDPMScheduler, spare
from fastsample.integrations.diffusers import DPMSolverMultistepScheduler as Dpm
from fastsample.integrations.diffusers.spare import Spare
from fastsample.integrations.diffusers.swap import classes

from .lockstep import start
from .spares import SHAPE, kept, low_limit, run, scheduler_of  # noqa: F401

NAMES = sorted(classes())
NOISE = ("torch", "counter")


class News:
    """Counts the buffers that are made anew."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.count = 0
        new = Spare._new

        def counted(this: Spare, key: Any) -> Tensor | None:
            self.count += 1
            return new(this, key)

        monkeypatch.setattr(Spare, "_new", counted)


@pytest.fixture
def news(monkeypatch: pytest.MonkeyPatch) -> News:
    return News(monkeypatch)


def test_this_torch_counts_holders() -> None:
    assert spare._counts() and spare.fits(start(*SHAPE))


# --- the same bits


@pytest.mark.parametrize("noise", NOISE)
@pytest.mark.parametrize("name", NAMES)
def test_bits_are_those_of_new_memory(name: str, noise: str, monkeypatch: pytest.MonkeyPatch) -> None:
    with_spare, x = scheduler_of(name, noise), start(*SHAPE)
    found = [run(with_spare, x), run(with_spare, x)]  # the second time with the memory of the first
    assert kept(with_spare)
    monkeypatch.setenv("FASTSAMPLE_SPARE_MB", "0")
    without = scheduler_of(name, noise)
    want = [run(without, x), run(without, x)]
    assert not kept(without)
    for got_run, want_run in zip(found, want, strict=True):
        assert len(got_run) == len(want_run)
        for a, b in zip(got_run, want_run, strict=True):
            assert torch.equal(a, b) and a.dtype is b.dtype and a.stride() == b.stride()


@pytest.mark.parametrize("mode", [torch.no_grad, torch.inference_mode])
@pytest.mark.parametrize("name", ["DDPMScheduler", "EulerDiscreteScheduler", "HeunDiscreteScheduler"])
def test_bits_without_gradients(name: str, mode: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    with mode():
        found = run(scheduler_of(name), start(*SHAPE))
        monkeypatch.setenv("FASTSAMPLE_SPARE_MB", "0")
        want = run(scheduler_of(name), start(*SHAPE))
    assert all(torch.equal(a, b) for a, b in zip(found, want, strict=True))


@pytest.mark.parametrize("config", [{"thresholding": True}, {"algorithm_type": "sde-dpmsolver++", "solver_order": 3}])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64])
def test_other_dtypes_and_rows_per_sample(dtype: torch.dtype, config: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    x = start(*SHAPE, dtype=dtype)
    scheduler = Dpm(**config)
    found = run(scheduler, x)
    assert {one.key[2] for one in kept(scheduler)} >= {dtype}
    monkeypatch.setenv("FASTSAMPLE_SPARE_MB", "0")
    want = run(Dpm(**config), x)
    assert all(torch.equal(a, b) for a, b in zip(found, want, strict=True))


def test_drawing_into_kept_memory_moves_the_generator_as_ever() -> None:
    for dtype in (torch.float32, torch.float64, torch.bfloat16, torch.float16):
        like, one, two = start(3, 5, 47, 59), torch.Generator().manual_seed(1), torch.Generator().manual_seed(1)
        scheduler = DDPMScheduler()
        first = scheduler._draw(like, one, dtype)[0]
        assert first is not None and torch.equal(first, torch.randn(like.shape, generator=two, dtype=dtype))
        assert torch.equal(one.get_state(), two.get_state()) and len(kept(scheduler)) == 1
        torch.manual_seed(5)
        second = scheduler._draw(like, None, dtype)[0]
        torch.manual_seed(5)
        assert second is not None and torch.equal(second, torch.randn(like.shape, dtype=dtype))


# --- what comes out is a tensor like any other


@pytest.mark.parametrize("inference", [False, True])
def test_outputs_are_tensors_of_their_own(inference: bool) -> None:
    scheduler = DDPMScheduler()
    x = start(*SHAPE)
    scheduler.set_timesteps(10)
    with torch.inference_mode(inference):
        for t in scheduler.timesteps:
            got = scheduler.step(x, t, x)
            for y in (got.prev_sample, got.pred_original_sample):
                assert not y._is_view() and y._base is None and y.is_leaf and not y.requires_grad
                assert y.is_inference() == inference and y.storage_offset() == 0
                assert y.is_contiguous() and y.grad_fn is None and type(y) is Tensor
                if not inference:
                    assert y._version == 0
                    y.add_(1)
                    assert y._version == 1
            address = got.prev_sample.data_ptr()
            y.unsqueeze_(0).resize_(3)  # what a tensor may do to itself
            del got, y
    assert address in {one.place for one in kept(scheduler)}


def test_after_inference_mode_outputs_serve_autograd() -> None:
    scheduler = DDPMScheduler().use(noise="counter", seed=1)
    with torch.inference_mode():
        run(scheduler, start(*SHAPE))
    places = {one.place for one in kept(scheduler)}
    scheduler.set_timesteps(6)
    y = scheduler.step(start(*SHAPE), scheduler.timesteps[0], start(*SHAPE)).prev_sample
    assert y.data_ptr() in places and not y.is_inference()
    weight = torch.ones(SHAPE, requires_grad=True)
    want = y.clone()
    loss = (y * weight).sum()  # y is saved for the way back
    leaf = y.requires_grad_()
    del y, leaf
    for t in scheduler.timesteps[1:]:
        scheduler.step(start(*SHAPE, seed=1), t, start(*SHAPE, seed=2))
    loss.backward()
    assert torch.equal(weight.grad, want)


def test_gradients_go_through_new_tensors() -> None:
    scheduler, x = DDPMScheduler().use(noise="counter", seed=1), start(*SHAPE).requires_grad_()
    scheduler.set_timesteps(10)
    y = scheduler.step(start(*SHAPE, seed=1), scheduler.timesteps[0], x).prev_sample
    y.sum().backward()
    assert y.grad_fn is not None and x.grad is not None and not kept(scheduler)


def test_layouts(monkeypatch: pytest.MonkeyPatch) -> None:
    x = start(*SHAPE).to(memory_format=torch.channels_last)
    many = start(4, 8, 64, 96)
    for like in (x, x.transpose(2, 3), many[1:3, ::2, :, ::2], many[:, :1].expand(4, 3, 64, 96)):
        monkeypatch.delenv("FASTSAMPLE_SPARE_MB", raising=False)
        ours = DDPMScheduler()
        found = run(ours, like)
        monkeypatch.setenv("FASTSAMPLE_SPARE_MB", "0")
        want = run(DDPMScheduler(), like)
        for a, b in zip(found, want, strict=True):
            assert torch.equal(a, b) and a.stride() == b.stride()
        assert {one.key[1] for one in kept(ours)}


# --- nothing new after the first steps


@pytest.mark.parametrize("noise", NOISE)
@pytest.mark.parametrize("name", NAMES)
def test_no_new_memory_after_the_first_run(name: str, noise: str, news: News) -> None:
    scheduler, x = scheduler_of(name, noise), start(*SHAPE)
    steps = 12 if name == "PNDMScheduler" else 8
    with torch.inference_mode():
        run(scheduler, x, steps)
        news.count = 0
        run(scheduler, x, steps)
    assert news.count == 0 and 1 <= len(kept(scheduler)) <= spare._BUFFERS


@pytest.mark.parametrize("name", ["UniPCMultistepScheduler", "SASolverScheduler"])
def test_the_highest_orders_fit(name: str, news: News) -> None:
    config = {"solver_order": 4} if name.startswith("Uni") else {"predictor_order": 4, "corrector_order": 4}
    scheduler = scheduler_of(name, "torch", **config)
    run(scheduler, start(*SHAPE), 14)
    news.count = 0
    run(scheduler, start(*SHAPE), 14)
    assert news.count == 0


def test_the_allocator_is_not_asked(tmp_path: Path) -> None:
    scheduler, x, e = DDPMScheduler().use(noise="counter", seed=1), start(*SHAPE), start(*SHAPE, seed=1)

    def large() -> int:
        """How often a run asks for much memory."""
        with torch.profiler.profile(profile_memory=True, acc_events=True) as profiler:
            y = x
            scheduler.set_timesteps(10)
            for t in scheduler.timesteps:
                y = scheduler.step(e, t, y).prev_sample
        profiler.export_chrome_trace(str(tmp_path / "trace.json"))
        events = json.loads((tmp_path / "trace.json").read_text())["traceEvents"]
        return sum(event["name"] == "[memory]" and event["args"]["Bytes"] >= spare.LEAST for event in events)

    assert large() == 3  # two states and x0_hat
    assert large() == 0


# --- limits


def test_only_between_the_limits() -> None:
    scheduler = DDPMScheduler()
    run(scheduler, start(2, 4, 8, 8), 3)
    assert not kept(scheduler)
    assert spare.fits(torch.empty(spare.LEAST // 4)) and not spare.fits(torch.empty(spare.LEAST // 4 - 1))
    assert spare.fits(torch.empty(spare.MOST // 4)) and not spare.fits(torch.empty(spare.MOST // 4 + 1))


def test_megabytes(monkeypatch: pytest.MonkeyPatch) -> None:
    like = torch.empty(25_000)  # 0.1 MB
    monkeypatch.setenv("FASTSAMPLE_SPARE_MB", "0.35")
    room = Spare()
    held = [room.take(like, torch.float32) for _ in range(9)]
    assert None not in held and len(room._kept) == 3
    monkeypatch.setenv("FASTSAMPLE_SPARE_MB", "0.05")
    assert Spare().take(like, torch.float32) is None
    for text in ("many", "-1", "nan", "inf"):
        monkeypatch.setenv("FASTSAMPLE_SPARE_MB", text)
        with pytest.raises(ValueError, match=f"FASTSAMPLE_SPARE_MB: got '{text}', allowed are numbers >= 0"):
            run(DDPMScheduler(), start(*SHAPE), 2)


def test_never_more_than_so_many() -> None:
    room, like = Spare(), torch.empty(SHAPE)
    held = [room.take(like, torch.float32) for _ in range(50)]
    assert len({y.data_ptr() for y in held if y is not None}) == 50 and len(room._kept) == spare._BUFFERS
    places = {one.place for one in room._kept}
    del held
    again = [room.take(like, torch.float32) for _ in range(spare._BUFFERS)]
    assert {y.data_ptr() for y in again if y is not None} == places


def test_not_while_traced_or_transformed() -> None:
    from torch._subclasses.fake_tensor import FakeTensorMode
    from torch.fx.experimental.proxy_tensor import make_fx
    from torch.utils._python_dispatch import TorchDispatchMode

    class Plain(TorchDispatchMode):
        def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
            return func(*args, **(kwargs or {}))

    x, seen = start(*SHAPE), []

    def look(y: Tensor) -> Tensor:
        seen.append(spare.fits(y))
        return y

    with Plain():
        look(x)
    with FakeTensorMode():
        look(torch.empty(SHAPE))
    look(torch.empty(SHAPE, device="meta"))
    look(torch.nn.Parameter(x))
    torch.vmap(look)(start(2, *SHAPE))
    torch.func.grad(lambda y: look(y).sum())(x)
    torch.jit.trace(look, (x,), check_trace=False)
    torch.compile(look, backend="eager", fullgraph=True, dynamic=True)(x)
    for mode in ("real", "fake", "symbolic"):
        make_fx(look, tracing_mode=mode)(x)
    assert not any(seen)
    assert spare.fits(x)


def test_another_default_device() -> None:
    scheduler, x, e = DDPMScheduler().use(noise="counter", seed=1), start(*SHAPE), start(*SHAPE, seed=1)
    scheduler.set_timesteps(4)
    scheduler.step(e, scheduler.timesteps[0], x)
    with torch.device("meta"):
        assert scheduler.step(e, scheduler.timesteps[1], x).prev_sample.device.type == "cpu"


OTHERS = [(name, None) for name in ("_storage_Use_Count", "_storage_address", "_AutoDispatchBelowADInplaceOrView")]


@pytest.mark.parametrize(("name", "other"), [*OTHERS, ("_storage_Use_Count", lambda _: 1)])
def test_a_torch_that_counts_otherwise(name: str, other: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch._C, name, other)
    spec = importlib.util.spec_from_file_location("spare_again", spare.__file__)
    assert spec is not None and spec.loader is not None
    again = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(again)
    large = torch.empty(again.LEAST)
    assert not again.fits(large) and spare.fits(large)


@pytest.mark.parametrize("name", ["DDPMScheduler", "EulerAncestralDiscreteScheduler"])
def test_another_default_device_and_noise_of_torch(name: str) -> None:
    x = start(*SHAPE)
    s = scheduler_of(name)
    s.set_timesteps(6, device="cpu")
    times = s.timesteps
    with torch.device("meta"):
        s.set_timesteps(6, device="cpu")
        assert torch.equal(s.timesteps, times)
        g = torch.Generator("cpu").manual_seed(3)
        seen = s.scale_model_input(x, times[0])
        got = s.step(seen, times[0], x, generator=g, return_dict=False)[0]
    other = scheduler_of(name)
    other.set_timesteps(6)
    seen = other.scale_model_input(x, times[0])
    want = other.step(seen, times[0], x, generator=torch.Generator("cpu").manual_seed(3), return_dict=False)[0]
    assert torch.equal(got, want)
