"""The noise of torch's generators inside the schedulers: large states, lists of generators, half precision."""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from typing import Any

import diffusers
import pytest
import torch
from diffusers.utils.torch_utils import randn_tensor
from torch import Tensor
from torch.overrides import BaseTorchFunctionMode

import fastsample.integrations.diffusers as ours
from fastsample import native, torch_stream
from fastsample.integrations.diffusers.draws import draw
from fastsample.integrations.diffusers.engine import own_tables
from fastsample.integrations.diffusers.spare import Spare

pytestmark = [
    pytest.mark.skipif(not native.load_for("cpu"), reason="no compiled CPU library"),
    pytest.mark.skipif(
        torch.backends.cpu.get_cpu_capability() not in ("AVX2", "AVX512"), reason="torch draws in another way here"
    ),
]
NOISY = {
    "DDPMScheduler": {},
    "SASolverScheduler": {},
    "DPMSolverMultistepScheduler": {"algorithm_type": "sde-dpmsolver++"},
    "EulerAncestralDiscreteScheduler": {},
    "KDPM2AncestralDiscreteScheduler": {},
    "LCMScheduler": {},
    "TCDScheduler": {},
    "EDMDPMSolverMultistepScheduler": {"algorithm_type": "sde-dpmsolver++"},
}


def generators(kind: str, batch: int) -> Any:
    if kind == "none":
        return None
    made = [torch.Generator().manual_seed(10 + i) for i in range(batch if kind == "list" else 1)]
    return made if kind in ("list", "list of one") else made[0]


@torch.no_grad()
def run(module: Any, name: str, dtype: torch.dtype, kind: str, shape: tuple[int, ...]) -> tuple[Tensor, list[Tensor]]:
    scheduler = getattr(module, name)(**NOISY[name])
    scheduler.set_timesteps(5)
    generator = generators(kind, shape[0])
    g = torch.Generator().manual_seed(0)
    x, e = (torch.randn(shape, generator=g).to(dtype) for _ in range(2))
    x = x * scheduler.init_noise_sigma
    for t in scheduler.timesteps:
        scheduler.scale_model_input(x, t)
        x = scheduler.step(e, t, x, generator=generator, return_dict=False)[0]
    used = generator if isinstance(generator, list) else [torch.default_generator if generator is None else generator]
    return x, [one.get_state() for one in used]


@pytest.mark.parametrize("kind", ["one", "list", "none"])
@pytest.mark.parametrize("name", NOISY)
def test_large_states_get_the_noise_of_stock(name: str, kind: str) -> None:
    shape = (2, 4, 32, 33)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(3)
        wanted, states = run(diffusers, name, torch.float32, kind, shape)
        torch.manual_seed(3)
        made, mine = run(ours, name, torch.float32, kind, shape)
    assert float((made - wanted).abs().max()) <= 1e-5 * float(wanted.abs().max())
    assert all(torch.equal(a, b) for a, b in zip(mine, states, strict=True))


@pytest.mark.parametrize("kind", ["one", "list", "list of one", "none"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16, torch.float64])
@pytest.mark.parametrize("shape", [(3, 4, 33, 32), (2, 4, 256, 256), (1, 5), (0, 4, 8, 8), (2, 70, 70)])
def test_the_numbers_of_randn_tensor(shape: tuple[int, ...], dtype: torch.dtype, kind: str) -> None:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(8)
        wanted = (
            torch.empty(shape, dtype=dtype)  # randn_tensor cannot join nothing
            if kind == "list" and shape[0] == 0
            else randn_tensor(shape, generator=generators(kind, shape[0]), dtype=dtype)
        )
        torch.manual_seed(8)
        made = draw(torch.empty(shape, dtype=dtype), generators(kind, shape[0]), dtype, Spare())
    assert made.dtype == dtype
    assert torch.equal(made, wanted)


@pytest.fixture
def drawn(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """Shapes of the tensors that the library drew, and "step" for each draw inside a step."""
    seen: list[Any] = []
    fill, update = torch_stream._fill, torch_stream._update

    def filled(out: Tensor, before: Tensor, after: Tensor) -> int:
        seen.append(tuple(out.shape))
        return fill(out, before, after)

    def updated(*args: Any) -> int:
        done = update(*args)
        seen.append("step" if done else "refused")
        return done

    torch_stream.randn((9999,), generator=torch.Generator(), dtype=torch.float32)
    monkeypatch.setattr(torch_stream, "_fill", filled)
    monkeypatch.setattr(torch_stream, "_update", updated)
    return seen


def needs_known(dtype: torch.dtype) -> None:
    if dtype is not torch.float64 and not torch_stream.ready(torch.Generator(), dtype):
        pytest.skip(f"this torch draws {dtype} in another way")  # 2.11 does so with 16 bits


def test_one_pass_draws_and_steps(drawn: list[Any], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch_stream, "_alone", lambda: True)  # whatever threads other tests have left
    with own_tables():
        run(ours, "DDPMScheduler", torch.float32, "one", (2, 4, 32, 32))
        assert drawn == [(2, 4, 32, 32), "step", "step", "step"]  # the first is learnt from; the last step has none
        needs_known(torch.bfloat16)
        run(ours, "DDPMScheduler", torch.bfloat16, "none", (2, 4, 32, 32))
        assert drawn[4:] == [(2, 4, 32, 32), "step", "step", "step"]


@pytest.mark.parametrize(
    ("kind", "dtype", "shape", "tensors"),
    [
        ("list", torch.float32, (2, 4, 32, 33), [(1, 4, 32, 33)] * 8),
        ("one", torch.float32, (2, 4, 33, 33), [(2, 4, 33, 33)] * 4),  # samples of no multiple of 16
        ("one", torch.float64, (2, 4, 32, 32), []),
    ],
)
def test_where_it_draws_a_tensor(kind: str, dtype: Any, shape: Any, tensors: list[Any], drawn: list[Any]) -> None:
    run(ours, "DDPMScheduler", dtype, kind, shape)
    assert drawn == tensors


@pytest.mark.parametrize("threads", [1, 2, 3])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("shape", [(1, 4, 128, 128), (5, 4, 8, 26), (300, 16), (3, 7, 80, 16)])
@pytest.mark.parametrize("name", ["DDPMScheduler", "LCMScheduler", "DPMSolverMultistepScheduler"])
def test_bits_of_a_draw_inside_a_step(name: str, shape: Any, dtype: Any, threads: int, drawn: list[Any]) -> None:
    """Those of the same row with the noise as a tensor."""
    needs_known(dtype)
    drawn.clear()
    before = torch.get_num_threads()
    try:
        with own_tables():
            torch.set_num_threads(1)
            with BaseTorchFunctionMode():  # draws with torch, and steps through the op
                wanted, states = run(ours, name, dtype, "one", shape)
            assert not drawn
            torch.set_num_threads(threads)
            made, mine = run(ours, name, dtype, "one", shape)
    finally:
        torch.set_num_threads(before)
    assert drawn.count("step") >= 2
    assert torch.equal(made, wanted)
    assert torch.equal(mine[0], states[0])


@pytest.mark.parametrize("algorithm", ["data_prediction", "noise_prediction"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("orders", [(1, 1), (2, 2), (3, 4)])
def test_sa_solver_with_the_noise_inside(orders: Any, dtype: Any, algorithm: str, drawn: list[Any]) -> None:
    """As near to float64 as with the noise kept for the corrector, also where the two ways change within a run."""
    needs_known(dtype)
    config = {"algorithm_type": algorithm, "predictor_order": orders[0], "corrector_order": orders[1]}

    @torch.no_grad()
    def run_sa(module: Any, dtype: Any, watched: Callable[[int], bool]) -> Tensor:
        scheduler = module.SASolverScheduler(**config)
        scheduler.set_timesteps(9)
        g, noises = torch.Generator().manual_seed(0), torch.Generator().manual_seed(1)
        x = torch.randn(1, 4, 32, 32, generator=g).to(dtype)
        for i, t in enumerate(scheduler.timesteps):
            e = (0.9 * x + 0.1 * torch.sin(3 * x.float())).to(dtype)
            with BaseTorchFunctionMode() if watched(i) else contextlib.nullcontext():
                x = scheduler.step(e, t, x, generator=noises, return_dict=False)[0]
            if module is ours:
                assert (scheduler.last_noise is None) == (not watched(i))
        return x.double()

    exact = run_sa(diffusers, torch.float32, lambda i: False)
    stock = run_sa(diffusers, dtype, lambda i: False)
    with own_tables():
        given, inside, mixed = (run_sa(ours, dtype, w) for w in (lambda i: True, lambda i: False, lambda i: i % 3 == 1))
    assert drawn.count("step") >= 4
    unit = 2.0**-22 if dtype is torch.float32 else 2.0**-7  # of one rounding; the noise form makes some hundred of it
    for made in (given, inside, mixed):
        assert float((made - exact).abs().max()) <= max(
            256 * unit * float(exact.abs().max()), 2 * float((stock - exact).abs().max())
        )


def test_a_step_without_noise_still_draws(drawn: list[Any]) -> None:
    """As that of diffusers does: the last one of an ancestral run."""
    with own_tables():
        for _ in range(2):
            drawn.clear()
            _, states = run(ours, "EulerAncestralDiscreteScheduler", torch.float32, "one", (1, 4, 32, 32))
    _, theirs = run(diffusers, "EulerAncestralDiscreteScheduler", torch.float32, "one", (1, 4, 32, 32))
    assert torch.equal(states[0], theirs[0])
    assert drawn == ["step"] * 4 + [(1, 4, 32, 32)]


def test_another_thread_that_drew_meanwhile(monkeypatch: pytest.MonkeyPatch) -> None:
    """The step is made again, with the numbers after those of the other."""
    shape, update = (1, 4, 32, 32), torch_stream._update
    x, e = torch.randn(2, *shape, generator=torch.Generator().manual_seed(0)).unbind()

    @torch.no_grad()
    def steps(module: Any, generator: torch.Generator, between: Any) -> Tensor:
        scheduler, at = module.DDPMScheduler(), x
        scheduler.set_timesteps(5)
        for t in scheduler.timesteps[:3]:
            between()
            at = scheduler.step(e, t, at, generator=generator, return_dict=False)[0]
        return at

    mine, theirs = torch.Generator().manual_seed(1), torch.Generator().manual_seed(1)
    steps(ours, torch.Generator(), lambda: None)  # from now on the steps draw themselves

    def interrupted(*args: Any) -> int:
        done = update(*args)
        torch.randn(3, generator=mine)
        return done

    monkeypatch.setattr(torch_stream, "_update", interrupted)
    made = steps(ours, mine, lambda: None)
    wanted = steps(diffusers, theirs, lambda: torch.randn(3, generator=theirs))
    assert float((made - wanted).abs().max()) < 1e-5 * float(wanted.abs().max())
    assert torch.equal(mine.get_state(), theirs.get_state())


@pytest.mark.parametrize(
    "generator", [[None], [torch.Generator(), None], [None, torch.Generator()], [torch.Generator()]]
)
def test_odd_lists_of_generators(generator: Any) -> None:
    """Do what they do in diffusers."""
    like, made = torch.empty(2, 70, 70), []
    for program in (
        lambda: randn_tensor(like.shape, generator=generator, device=like.device, dtype=torch.float32),
        lambda: draw(like, generator, torch.float32, Spare()),
    ):
        for one in generator:
            (one or torch.default_generator).manual_seed(5)
        try:
            made.append(program())
        except Exception as error:
            made.append(type(error))
    assert made[0] == made[1] if isinstance(made[0], type) else torch.equal(made[0], made[1])


def test_fewer_generators_than_samples() -> None:
    with pytest.raises(IndexError):
        draw(torch.empty(3, 70, 70), generators("list", 2), torch.float32, Spare())
