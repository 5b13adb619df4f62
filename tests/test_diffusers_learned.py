"""DDPM with a variance that the network has learned: counter noise, half precision, gradients."""

from __future__ import annotations

import pytest
import torch

pytest.importorskip("diffusers")
import diffusers

import fastsample

from .lockstep import network, start
from .test_diffusers_exact import SHAPE, made


@pytest.mark.parametrize("kind", ["learned", "learned_range"])
def test_ddpm_counter_noise_of_a_learned_variance(kind: str) -> None:
    """The noise of the keys, times the deviation of each element: as when the caller gives that noise."""
    counter, given = (made("DDPMScheduler", "strict", 6, n, seed=3, variance_type=kind) for n in ("counter", "torch"))
    keys = fastsample.noise.keys(3, SHAPE[0])
    x = start(*SHAPE)
    for i, t in enumerate(counter.timesteps):
        e = torch.cat([network(x, i), torch.tanh(network(x, i + 9)).abs()], dim=1)
        xi = fastsample.noise.normal_like(x, keys, 1 + 1000 - int(t))
        given._draw = lambda *_, xi=xi: (xi, None)
        got = counter.step(e, t, x)
        want = given.step(e, t, x)
        assert torch.equal(got.prev_sample, want.prev_sample)
        assert torch.equal(got.pred_original_sample, want.pred_original_sample)
        x = got.prev_sample
    with pytest.raises(ValueError, match=r"model_output: got 3 channels, with variance_type='learned.*' allowed are 6"):
        counter.step(x, counter.timesteps[0], x)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("spacing", ["leading", "trailing"])
def test_ddpm_learned_range_in_half_precision(dtype: torch.dtype, spacing: str) -> None:
    """Against the formula in float64; the last step of "trailing" has deviations from 1e-10 to 0.5."""
    ours = made("DDPMScheduler", "exact", variance_type="learned_range", timestep_spacing=spacing, clip_sample=False)
    table, times = ours.alphas_cumprod.double(), ours.timesteps.tolist()
    for i, (t, following) in enumerate(zip(times, [*times[1:], -1], strict=True)):
        x, e, xi = (start(*SHAPE, seed=10 * i + k).to(dtype) for k in range(3))
        v = torch.linspace(-1, 1, x.numel()).reshape(SHAPE).to(dtype)
        ours._draw = lambda *_, xi=xi: (xi, None)
        got = ours.step(torch.cat([e, v], dim=1), t, x).prev_sample
        now, then = table[t], table[following] if following >= 0 else torch.ones((), dtype=torch.float64)
        beta = 1 - now / then
        small = ((1 - then) / (1 - now) * beta).clamp(min=1e-20)
        mean = then.sqrt() * beta / (1 - now) * ((x - (1 - now).sqrt() * e.double()) / now.sqrt())
        mean = mean + (now / then).sqrt() * (1 - then) / (1 - now) * x
        share = (v.double() + 1) / 2
        want = mean + (0.5 * (share * beta.log() + (1 - share) * small.log())).exp() * xi * (t > 0)
        assert (got.double() - want).abs().max() <= 3 * torch.finfo(dtype).eps / 2 * want.abs().max()


def test_ddpm_gradients_of_a_learned_variance() -> None:
    ours = made("DDPMScheduler", "strict", variance_type="learned_range", clip_sample=False)
    stock = diffusers.DDPMScheduler(variance_type="learned_range", clip_sample=False)
    stock.set_timesteps(6)
    found = []
    for scheduler in (stock, ours):
        x = start(*SHAPE).requires_grad_()
        e = torch.cat([start(*SHAPE, seed=5), torch.tanh(start(*SHAPE, seed=6))], dim=1).requires_grad_()
        g = torch.Generator().manual_seed(2)
        out = scheduler.step(e, scheduler.timesteps[2], x, generator=g, return_dict=False)[0]
        (out * start(*SHAPE, seed=7)).sum().backward()
        found.append((out.detach(), x.grad, e.grad))
    for a, b in zip(*found, strict=True):
        torch.testing.assert_close(b, a, rtol=2e-5, atol=2e-5)
    assert found[1][2][:, 3:].abs().max() > 0.01
