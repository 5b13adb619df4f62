"""Real clients: pipelines of diffusers give the same results with our schedulers in the place of theirs.

Bound.  A step of stock rounds its intermediate results to float32 at most 32 times, each by 2^-24 of the largest number
in the state; ours rounds less.  What an error made in a step does to the result is measured: stock runs again with
``DELTA`` times the largest number of the state, with random signs, added to what every step returns.  The two results
may differ by 32 * 2^-24 / DELTA times what that changed.
"""

from __future__ import annotations

import functools
from typing import Any

import diffusers
import numpy as np
import pytest
import torch

import fastsample
from fastsample.integrations.diffusers.swap import classes

from .tiny_pipelines import BUILDERS, SD_BETAS

DELTA = 1e-4
ROUNDINGS = 32
FLOW = {"prediction_type": "flow_prediction", "use_flow_sigmas": True}
CASES: list[tuple[str, str, dict[str, Any], int]] = [
    ("stable_diffusion", "EulerDiscreteScheduler", SD_BETAS, 6),
    ("stable_diffusion", "EulerAncestralDiscreteScheduler", SD_BETAS, 6),
    ("stable_diffusion", "DPMSolverMultistepScheduler", {**SD_BETAS, "use_karras_sigmas": True}, 6),
    ("stable_diffusion", "DDIMScheduler", {**SD_BETAS, "clip_sample": False}, 6),
    ("stable_diffusion", "PNDMScheduler", {**SD_BETAS, "skip_prk_steps": True}, 6),
    ("stable_diffusion", "UniPCMultistepScheduler", SD_BETAS, 6),
    ("stable_diffusion", "HeunDiscreteScheduler", SD_BETAS, 4),
    ("stable_diffusion", "LMSDiscreteScheduler", SD_BETAS, 5),
    ("sdxl", "EulerDiscreteScheduler", {**SD_BETAS, "timestep_spacing": "leading"}, 6),
    ("sdxl", "DPMSolverMultistepScheduler", {**SD_BETAS, "algorithm_type": "sde-dpmsolver++"}, 6),
    ("sd3", "FlowMatchEulerDiscreteScheduler", {"shift": 3.0}, 6),
    ("flux", "FlowMatchEulerDiscreteScheduler", {"shift": 3.0, "use_dynamic_shifting": True}, 6),
    ("img2img", "DPMSolverMultistepScheduler", SD_BETAS, 8),
    ("img2img", "EulerDiscreteScheduler", SD_BETAS, 8),
    ("img2img", "DDIMScheduler", {**SD_BETAS, "clip_sample": False}, 8),
    ("img2img", "HeunDiscreteScheduler", SD_BETAS, 6),
    ("inpaint", "EulerAncestralDiscreteScheduler", SD_BETAS, 6),
    ("inpaint", "DPMSolverMultistepScheduler", SD_BETAS, 6),
    ("inpaint", "UniPCMultistepScheduler", SD_BETAS, 6),
    ("lcm", "LCMScheduler", {k: v for k, v in SD_BETAS.items() if k != "steps_offset"}, 4),
    ("wan", "FlowMatchEulerDiscreteScheduler", {"shift": 5.0}, 5),
    ("wan", "UniPCMultistepScheduler", {**FLOW, "flow_shift": 3.0}, 6),
    ("dit", "DDIMScheduler", {}, 5),
    ("ddpm", "DDPMScheduler", {}, 12),
    ("ddim", "DDIMScheduler", {}, 10),
]
OURS = classes()


def _run(pipe: Any, call: dict[str, Any], steps: int) -> np.ndarray:
    made = pipe(**call, num_inference_steps=steps, generator=torch.Generator().manual_seed(7), return_dict=False)[0]
    return np.asarray(made.detach() if isinstance(made, torch.Tensor) else made)


def _disturbed(pipe: Any, call: dict[str, Any], steps: int) -> np.ndarray:
    plain, signs = pipe.scheduler.step, torch.Generator().manual_seed(8)

    @functools.wraps(plain)  # pipelines look at its signature
    def step(*args: Any, **kwargs: Any) -> Any:
        result = plain(*args, **kwargs)
        x = result[0]
        moved = x + DELTA * x.abs().max() * torch.randn(x.shape, generator=signs).sign()
        if isinstance(result, tuple):
            return (moved, *result[1:])
        result["prev_sample"] = moved
        return result

    pipe.scheduler.step = step
    try:
        return _run(pipe, call, steps)
    finally:
        del pipe.scheduler.step


@pytest.mark.parametrize(("kind", "name", "config", "steps"), CASES, ids=[f"{c[0]}-{c[1][:-9]}" for c in CASES])
def test_same_result(kind: str, name: str, config: dict[str, Any], steps: int) -> None:
    if name not in OURS:
        pytest.skip(f"no {name} of ours")
    torch.manual_seed(0)
    pipe, call = BUILDERS[kind](getattr(diffusers, name)(**config))
    stock = _run(pipe, call, steps)
    moved = _disturbed(pipe, call, steps)
    assert np.isfinite(stock).all() and np.abs(stock).max() > 0
    with fastsample.accelerate(pipe) as undo:
        assert type(pipe.scheduler) is OURS[name] and "scheduler" in undo.names
        ours = _run(pipe, call, steps)
    assert type(pipe.scheduler) is getattr(diffusers, name)
    bound = ROUNDINGS * 2.0**-24 / DELTA * np.abs(moved - stock).max()
    assert np.abs(ours - stock).max() <= bound
    np.testing.assert_array_equal(_run(pipe, call, steps), stock)  # undone


class _Policy(torch.nn.Module):
    """A small 1-D U-Net on actions (B, horizon, channels) with the time and an observation as conditions."""

    def __init__(self, channels: int = 2, width: int = 16, seen: int = 6) -> None:
        super().__init__()
        self.condition = torch.nn.Linear(seen + 8, width)
        self.first = torch.nn.Conv1d(channels, width, 3, padding=1)
        self.down = torch.nn.Conv1d(width, width, 3, stride=2, padding=1)
        self.up = torch.nn.ConvTranspose1d(width, width, 4, stride=2, padding=1)
        self.last = torch.nn.Conv1d(2 * width, channels, 3, padding=1)

    def forward(self, actions: torch.Tensor, t: torch.Tensor, observed: torch.Tensor) -> torch.Tensor:
        waves = t.reshape(-1, 1) / 100.0 * 2.0 ** torch.arange(4)
        waves = torch.cat([waves.sin(), waves.cos()], dim=1).expand(len(actions), -1)
        condition = self.condition(torch.cat([observed, waves], dim=1))[..., None]
        x = torch.nn.functional.mish(self.first(actions.transpose(1, 2)) + condition)
        y = self.up(torch.nn.functional.mish(self.down(x)))
        return self.last(torch.cat([x, y], dim=1)).transpose(1, 2)


def _act(policy: _Policy, scheduler: Any, steps: int, delta: float = 0.0) -> torch.Tensor:
    """The loop of Diffusion Policy: known entries are overwritten before each call; no device in ``set_timesteps``."""
    draws, signs = torch.Generator().manual_seed(1), torch.Generator().manual_seed(2)
    actions = torch.randn(3, 16, 2, generator=draws)
    known, observed = torch.full((3, 2, 2), 0.25), torch.linspace(-1, 1, 18).reshape(3, 6)
    scheduler.set_timesteps(steps)
    for t in scheduler.timesteps:
        actions[:, :2] = known
        actions = scheduler.step(policy(actions, t, observed), t, actions, generator=draws).prev_sample
        if delta:
            actions = actions + delta * actions.abs().max() * torch.randn(actions.shape, generator=signs).sign()
    return actions


@pytest.mark.parametrize(("name", "steps"), [("DDPMScheduler", 100), ("DDIMScheduler", 10), ("DDIMScheduler", 16)])
@pytest.mark.parametrize("prediction", ["epsilon", "sample"])
@torch.no_grad()
def test_diffusion_policy(name: str, steps: int, prediction: str) -> None:
    config = {"num_train_timesteps": 100, "beta_schedule": "squaredcos_cap_v2", "prediction_type": prediction}
    torch.manual_seed(0)
    policy = _Policy().eval()
    stock = getattr(diffusers, name)(**config)
    wanted = _act(policy, stock, steps)
    moved = _act(policy, stock, steps, DELTA)

    class Robot:
        noise_scheduler = stock

    robot = Robot()
    robot.noise_scheduler = stock  # an attribute of its own
    fastsample.accelerate(robot)
    assert type(robot.noise_scheduler) is OURS[name]
    found = _act(policy, robot.noise_scheduler, steps)
    assert (found - wanted).abs().max() <= ROUNDINGS * 2.0**-24 / DELTA * (moved - wanted).abs().max()
