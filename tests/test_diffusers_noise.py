"""The noise of torch's generators inside the schedulers: large states, lists of generators, half precision."""

from __future__ import annotations

from typing import Any

import diffusers
import pytest
import torch
from diffusers.utils.torch_utils import randn_tensor
from torch import Tensor

import fastsample.integrations.diffusers as ours
from fastsample import native, torch_stream
from fastsample.integrations.diffusers.draws import draw
from fastsample.integrations.diffusers.spare import Spare

pytestmark = pytest.mark.skipif(not native.load_for("cpu"), reason="no compiled CPU library")
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


def test_it_is_the_library_that_draws(monkeypatch: pytest.MonkeyPatch) -> None:
    drawn, fill = [], torch_stream._fill

    def counted(before: Tensor, out: Tensor) -> bool:
        drawn.append(tuple(out.shape))
        return fill(before, out)

    torch_stream.randn((9999,), generator=None, dtype=torch.float32)
    monkeypatch.setattr(torch_stream, "_fill", counted)
    run(ours, "DDPMScheduler", torch.float32, "one", (2, 4, 32, 32))
    assert drawn == [(2, 4, 32, 32)] * 4  # the last step has none
    drawn.clear()
    run(ours, "DDPMScheduler", torch.float32, "list", (2, 4, 32, 33))
    assert drawn == [(1, 4, 32, 33)] * 8


def test_fewer_generators_than_samples() -> None:
    with pytest.raises(IndexError):
        draw(torch.empty(3, 70, 70), generators("list", 2), torch.float32, Spare())
