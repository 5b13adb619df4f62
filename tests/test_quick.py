"""Steps of drop-ins past the dispatcher: the bits of the op, and the op wherever anything is unusual."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

pytest.importorskip("diffusers")

from fastsample import native
from fastsample.integrations.diffusers import DPMSolverMultistepScheduler as Dpm
from fastsample.integrations.diffusers import EulerDiscreteScheduler, engine, quick
from fastsample.integrations.diffusers.quick import Quick
from fastsample.integrations.diffusers.swap import classes
from fastsample.ops import use_backend

from .lockstep import start
from .spares import run, scheduler_of
from .together import together

pytestmark = pytest.mark.skipif(not native.load_for("cpu"), reason="no compiled CPU library")
NAMES = sorted(classes())
SHAPE = (2, 4, 8, 6)


@pytest.fixture(autouse=True)
def own_tables():
    with engine.own_tables(), torch.no_grad():
        yield


@pytest.fixture
def turns(monkeypatch: pytest.MonkeyPatch) -> dict[bool, int]:
    """How often a bound call did the step (True) or left it to the op (False)."""
    count = {True: 0, False: 0}
    plain = Quick.__call__

    def counted(self: Quick, *args: Any) -> Any:
        made = plain(self, *args)
        count[made is not None] += 1
        return made

    monkeypatch.setattr(Quick, "__call__", counted)
    return count


def by_the_op(monkeypatch: pytest.MonkeyPatch, draw: Any) -> Any:
    with monkeypatch.context() as patch:
        patch.setattr(quick, "_free", lambda: False)
        return draw()


def equal(a: list[Tensor], b: list[Tensor]) -> bool:
    pairs = zip(a, b, strict=True)
    return all(torch.equal(x, y) and x.dtype is y.dtype and x.stride() == y.stride() for x, y in pairs)


@pytest.mark.parametrize("noise", ["torch", "counter"])
@pytest.mark.parametrize("name", NAMES)
def test_bits_are_those_of_the_op(name: str, noise: str, turns: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    x = start(*SHAPE)
    want = by_the_op(monkeypatch, lambda: run(scheduler_of(name, noise), x, steps=8))
    assert turns[True] == 0
    one = scheduler_of(name, noise)
    assert equal(run(one, x, steps=8), want)
    first = dict(turns)
    if noise == "counter" or name not in (
        "DDPMScheduler",
        "LCMScheduler",
    ):  # the same scheduler again: nothing to learn
        run(one, x, steps=8)
    else:
        run(scheduler_of(name, noise), x, steps=8)
    assert turns[True] > first[True]


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64])
@pytest.mark.parametrize("config", [{}, {"algorithm_type": "sde-dpmsolver++"}, {"solver_order": 3}])
def test_dtypes(dtype: torch.dtype, config: Any, turns: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    x = start(*SHAPE).to(dtype)
    want = by_the_op(monkeypatch, lambda: run(Dpm(**config), x, steps=9))
    assert equal(run(Dpm(**config), x, steps=9), want)
    assert turns[True] > 3


def test_shapes_take_turns(turns: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    shapes = [(2, 3), (5, 4, 2), (1, 4, 8, 8), (2, 3, 4, 5, 6)]

    def draw() -> list[Tensor]:
        made = []
        for _ in range(3):
            for shape in shapes:
                made += run(Dpm(), start(*shape), steps=6)
        return made

    assert equal(by_the_op(monkeypatch, draw), draw())
    assert turns[True] > 20


class Other(torch.Tensor):
    """A tensor of another class."""


def wide(x: Tensor) -> Tensor:
    return torch.cat([x, x], dim=1)[:, : x.shape[1]]


UNUSUAL = {
    "strides": lambda x: x.mT.contiguous().mT,
    "slices": wide,
    "dtype": lambda x: x.double(),
    "expanded": lambda x: x[:, :1].expand_as(x),
    "negative": lambda x: torch._neg_view(x),
    "parameter": lambda x: torch.nn.Parameter(x, requires_grad=False),
    "subclass": lambda x: x.as_subclass(Other),
}


@pytest.mark.parametrize("what", list(UNUSUAL))
def test_the_unusual_goes_through_the_op(what: str, turns: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    def draw() -> list[Tensor]:
        s = EulerDiscreteScheduler()
        s.set_timesteps(10)
        x, made = start(*SHAPE) * s.init_noise_sigma, []
        for i, t in enumerate(s.timesteps):
            out = torch.tanh(s.scale_model_input(x, t))
            out = UNUSUAL[what](out) if i % 2 else out
            x = s.step(out, t, x, return_dict=False)[0].as_subclass(Tensor)
            made.append(x.clone())
        return made

    assert equal(by_the_op(monkeypatch, draw), draw())
    assert turns[True] >= 3 and turns[False] >= 5


def test_another_shape_is_the_error_of_the_op() -> None:
    s = EulerDiscreteScheduler()
    s.set_timesteps(10)
    x = start(*SHAPE)
    s.scale_model_input(x, s.timesteps[0])
    for i in range(3):
        x = s.step(x * 0.5, s.timesteps[i], x, return_dict=False)[0]
    with pytest.raises(RuntimeError, match="one shape"):
        s.step(x[:1], s.timesteps[3], x)


class Seen(TorchDispatchMode):
    def __init__(self) -> None:
        super().__init__()
        self.updates = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.updates += func is torch.ops.fastsample.update_.default
        return func(*args, **(kwargs or {}))


def test_who_watches_sees_the_op(turns: Any) -> None:
    s, x = Dpm(), start(*SHAPE)
    run(s, x, steps=8)
    before = turns[True]
    with Seen() as seen:
        run(s, x, steps=8)
    assert seen.updates == 8
    with use_backend("reference"):
        run(s, x, steps=8)
    with torch.enable_grad():
        run(s, x, steps=8)
    assert turns[True] == before


def test_results_do_not_share_memory_and_gradients_flow_again(turns: Any) -> None:
    s, x = Dpm(), start(*SHAPE)
    made = [y for _ in range(3) for y in run(s, x, steps=8)]
    assert turns[True] > 0 and len({y.data_ptr() for y in made}) == len(made)
    with torch.enable_grad():
        w = torch.ones((), requires_grad=True)
        s.set_timesteps(4)
        s.step(x * w, s.timesteps[0], x)[0].sum().backward()
        assert w.grad is not None
        (made[-1] * w).sum().backward()


def test_threads_on_one_table(monkeypatch: pytest.MonkeyPatch) -> None:
    x = start(*SHAPE)
    want = by_the_op(monkeypatch, lambda: run(Dpm(), x, steps=8))
    wrong: list[int] = []

    def work(n: int) -> None:
        with torch.no_grad():
            for _ in range(25):
                if not equal(run(Dpm(), x, steps=8), want):
                    wrong.append(n)

    together(work, range(4))
    assert not wrong


def test_who_always_comes_with_another_shape_is_served_by_the_op(turns: Any) -> None:
    for n in range(1, 3 * quick._BINDS):
        run(Dpm(), start(1, n), steps=3)
    (rows,) = engine._tables.values()
    (device,) = rows._devices.values()
    assert device[2] is not None and len(device[2]._kinds) <= quick._BINDS


def test_a_table_that_grows_has_calls_of_its_own(monkeypatch: pytest.MonkeyPatch) -> None:
    def draw() -> list[Tensor]:
        made = []
        for eta in (0.0, 0.3, 0.7, 1.0):  # new rows in one table
            s = scheduler_of("DDIMScheduler", "counter")
            s.set_timesteps(12)
            x = start(*SHAPE)
            for t in s.timesteps:
                x = s.step(torch.tanh(x), t, x, eta=eta, return_dict=False)[0]
                made.append(x.clone())
        return made

    assert equal(by_the_op(monkeypatch, draw), draw())
