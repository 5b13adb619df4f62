"""``accelerate`` and ``patch_diffusers``: what they change, and that all of it can be taken back."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

pytest.importorskip("diffusers")
import diffusers
import diffusers.schedulers

import fastsample
from fastsample.integrations.diffusers import DDIMScheduler, DDPMScheduler, EulerDiscreteScheduler
from fastsample.integrations.diffusers.base import Fused
from fastsample.integrations.diffusers.guidance import rescale_noise_cfg
from fastsample.integrations.diffusers.swap import classes, stock_class

from .lockstep import ULP, start


def tiny(scheduler: Any) -> Any:
    unet = diffusers.UNet2DModel(
        sample_size=8,
        block_out_channels=(4, 4),
        norm_num_groups=2,
        layers_per_block=1,
        down_block_types=("DownBlock2D",) * 2,
        up_block_types=("UpBlock2D",) * 2,
    )
    return diffusers.DDPMPipeline(unet=unet, scheduler=scheduler)


def test_accelerate_and_undo() -> None:
    stock = diffusers.DDPMScheduler(beta_schedule="squaredcos_cap_v2", clip_sample_range=2.0)
    pipe = tiny(stock)
    undo = fastsample.accelerate(pipe, mode="exact", noise="counter", seed=7)
    assert type(pipe.scheduler) is DDPMScheduler and undo.names == ["scheduler"]
    assert (pipe.scheduler.mode, pipe.scheduler.noise, pipe.scheduler.seed) == ("exact", "counter", 7)
    assert pipe.scheduler.config.clip_sample_range == 2.0 and pipe.components["scheduler"] is pipe.scheduler
    assert torch.equal(pipe.scheduler.betas, stock.betas)
    undo()
    undo()
    assert pipe.scheduler is stock and pipe.config["scheduler"] == ("diffusers", "DDPMScheduler")


def test_blocks_nest_and_errors_pass() -> None:
    stock = diffusers.DDPMScheduler()
    pipe = tiny(stock)
    with fastsample.accelerate(pipe):
        with fastsample.accelerate(pipe, mode="exact"):  # ours already: only the mode changes
            assert pipe.scheduler.mode == "exact"
        assert pipe.scheduler.mode == "strict"
    assert pipe.scheduler is stock
    with pytest.raises(ZeroDivisionError), fastsample.accelerate(pipe):
        _ = 1 / 0
    assert pipe.scheduler is stock


def test_what_the_caller_put_there_stays() -> None:
    pipe = tiny(diffusers.DDPMScheduler())
    with fastsample.accelerate(pipe):
        pipe.scheduler = other = DDIMScheduler.from_config(pipe.scheduler.config)
    assert pipe.scheduler is other


def test_several_and_inner_schedulers() -> None:
    class Policy:
        pass

    class Own(diffusers.DDIMScheduler):
        pass

    policy: Any = Policy()
    policy.noise_scheduler, policy.second = diffusers.DDPMScheduler(), diffusers.EulerDiscreteScheduler()
    policy.inner, policy.own, policy.number = tiny(diffusers.DDPMScheduler()), Own(), 3
    with fastsample.accelerate(policy) as undo:
        assert sorted(undo.names) == ["noise_scheduler", "scheduler", "second"]
        assert type(policy.second) is EulerDiscreteScheduler and type(policy.inner.scheduler) is DDPMScheduler
        assert type(policy.own) is Own  # a class of the caller's does what the caller wrote
    assert type(policy.noise_scheduler) is type(policy.inner.scheduler) is diffusers.DDPMScheduler


def test_mistakes() -> None:
    with pytest.raises(ValueError, match="pipe: got Linear with no scheduler; schedulers that can be replaced are"):
        fastsample.accelerate(torch.nn.Linear(2, 2))
    pipe = tiny(diffusers.DDPMScheduler())
    with pytest.raises(ValueError, match="mode: got 'fast', allowed are strict, exact"):
        fastsample.accelerate(pipe, mode="fast")
    assert type(pipe.scheduler) is diffusers.DDPMScheduler
    with pytest.raises(ValueError, match="noise: got 'white'"):
        fastsample.patch_diffusers(noise="white")
    assert diffusers.DDPMScheduler is not DDPMScheduler


def test_files_load_without_this_package(tmp_path: Path) -> None:
    pipe = tiny(diffusers.DDPMScheduler(beta_end=0.03))
    with fastsample.accelerate(pipe):
        pipe.save_pretrained(tmp_path / "a")
    with fastsample.patch_diffusers():
        tiny(diffusers.DDPMScheduler(beta_end=0.03)).save_pretrained(tmp_path / "b")
    for folder in ("a", "b"):
        assert json.loads((tmp_path / folder / "model_index.json").read_text())["scheduler"] == [
            "diffusers",
            "DDPMScheduler",
        ]
        assert "fastsample" not in (tmp_path / folder / "scheduler" / "scheduler_config.json").read_text()
        loaded = diffusers.DDPMPipeline.from_pretrained(tmp_path / folder)
        assert type(loaded.scheduler) is diffusers.DDPMScheduler and loaded.scheduler.config.beta_end == 0.03
    with fastsample.patch_diffusers(mode="exact"):
        loaded = diffusers.DDPMPipeline.from_pretrained(tmp_path / "a")
    assert type(loaded.scheduler) is DDPMScheduler and loaded.scheduler.mode == "exact"  # also after the undo


def test_patch_diffusers() -> None:
    names = {name: (getattr(diffusers, name), getattr(diffusers.schedulers, name)) for name in classes()}
    undo = fastsample.patch_diffusers(noise="counter", seed=5)
    try:
        for name, cls in classes().items():
            assert getattr(diffusers, name) is getattr(diffusers.schedulers, name) is cls
            assert stock_class(cls) is names[name][0]
        made = diffusers.DDIMScheduler()
        assert (made.mode, made.noise, made.seed) == ("strict", "counter", 5)
        assert type(diffusers.DDIMPipeline(tiny(made).unet, made).scheduler) is DDIMScheduler
        assert DDIMScheduler in made.compatibles
        made.set_timesteps(3)  # the way to stock's code does not go through the replaced names
    finally:
        undo()
    assert all((getattr(diffusers, n), getattr(diffusers.schedulers, n)) == pair for n, pair in names.items())
    assert Fused._defaults == {"mode": "strict", "noise": "torch", "seed": None}
    assert type(diffusers.DDIMPipeline(tiny(made).unet, made).scheduler) is diffusers.DDIMScheduler


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16, torch.float16])
def test_guidance_rescale(dtype: torch.dtype) -> None:
    """Against the formula in float64: one rounding of the result, and in float64 those of the factor."""
    cfg, text = start(3, 4, 5, 6, dtype=dtype), 0.3 * start(3, 4, 5, 6, dtype=dtype, seed=1)
    spread = [x.double().flatten(1).std(dim=1).reshape(3, 1, 1, 1) for x in (text, cfg)]
    for phi in (0.0, 0.7, 1.0):
        want = cfg.double() * (phi * spread[0] / spread[1] + 1.0 - phi)
        got = rescale_noise_cfg(cfg, text, guidance_rescale=phi)
        assert got.dtype is dtype and got is not cfg
        assert (got - want).abs().max() <= (8 if dtype is torch.float64 else 1) * torch.finfo(dtype).eps * float(
            want.abs().max()
        )
    a, b = cfg.double().requires_grad_(), text.double()
    assert torch.autograd.gradcheck(lambda x: rescale_noise_cfg(x, b, 0.7), (a,))


def test_guidance_rescale_of_a_module_is_counted() -> None:
    from .tiny_pipelines import BUILDERS, StableDiffusionXL

    module = sys.modules[StableDiffusionXL.__module__]
    stock = module.rescale_noise_cfg
    pipes = [BUILDERS["sdxl"](diffusers.EulerDiscreteScheduler())[0] for _ in range(2)]
    undo = [fastsample.accelerate(pipe) for pipe in pipes]
    assert module.rescale_noise_cfg is rescale_noise_cfg
    x, y = start(2, 3, 4, 4), start(2, 3, 4, 4, seed=1)
    assert (module.rescale_noise_cfg(x, y, 0.7) - stock(x, y, 0.7)).abs().max() <= 8 * ULP * float(x.abs().max())
    undo[0]()
    assert module.rescale_noise_cfg is rescale_noise_cfg
    undo[1]()
    assert module.rescale_noise_cfg is stock


def test_fastsample_alone_does_not_import_diffusers() -> None:
    code = (
        "import fastsample, sys; fastsample.__dir__(); from fastsample import *; assert 'diffusers' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
