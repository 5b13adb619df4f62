"""Drop-in schedulers and k-diffusion functions on a CUDA device: steps never wait; the numbers of the CPU."""

from __future__ import annotations

import pytest
import torch

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device"),
]
diffusers = pytest.importorskip("diffusers")
OURS = pytest.importorskip("fastsample.integrations.diffusers")
NAMES = [name for name in OURS.__all__ if name.endswith("Scheduler")]


def run(scheduler, device, steps=6, checked=False):
    """A whole run on a made-up network with counter noise; with ``checked`` every synchronisation raises."""
    scheduler.use(noise="counter", seed=5)
    scheduler.set_timesteps(steps, device=device)
    if hasattr(scheduler, "set_begin_index"):
        scheduler.set_begin_index(0)
    x = torch.randn(2, 4, 16, 16, generator=torch.Generator().manual_seed(0)).to(device)
    x = x * float(getattr(scheduler, "init_noise_sigma", 1.0))
    times = list(scheduler.timesteps)
    if checked:
        torch.cuda.synchronize()
        torch.cuda.set_sync_debug_mode("error")
    try:
        for t in times:
            seen = scheduler.scale_model_input(x, t) if hasattr(scheduler, "scale_model_input") else x
            x = scheduler.step(0.5 * seen, t, x, return_dict=False)[0]
    finally:
        torch.cuda.set_sync_debug_mode("default")
    return x


@pytest.mark.parametrize("name", NAMES)
def test_steps_never_wait_and_agree_with_the_cpu(name):
    with torch.no_grad():
        on_gpu = run(getattr(OURS, name)(), "cuda", checked=True).cpu()
        on_cpu = run(getattr(OURS, name)(), "cpu")
    # the network 0.5 x is one rounding on both; states grow to sigma_max
    torch.testing.assert_close(on_gpu, on_cpu, rtol=1e-5, atol=1e-5 * float(on_cpu.abs().max()))


@pytest.mark.parametrize("name", ["DPMSolverMultistepScheduler", "UniPCMultistepScheduler", "EulerDiscreteScheduler"])
def test_a_step_can_be_captured(name):
    """The table is device memory: one graph of a step gives what the step gives."""
    with torch.no_grad():
        plain, captured = getattr(OURS, name)(), getattr(OURS, name)()
        x = torch.randn(2, 4, 16, 16, device="cuda")
        for scheduler in (plain, captured):
            scheduler.set_timesteps(6, device="cuda")
            scheduler.set_begin_index(0)
        t = plain.timesteps[0]
        want = plain.step(0.5 * x, t, x, return_dict=False)[0]
        captured.step(0.5 * x, t, x, return_dict=False)  # warm
        captured.set_timesteps(6, device="cuda")
        captured.set_begin_index(0)
        graph, t = torch.cuda.CUDAGraph(), captured.timesteps[0]
        with torch.cuda.graph(graph):
            made = captured.step(0.5 * x, t, x, return_dict=False)[0]
        graph.replay()
        torch.testing.assert_close(made, want, rtol=0, atol=0)


@pytest.mark.parametrize("name", ["sample_dpmpp_2m_sde", "sample_euler_ancestral", "sample_heun", "sample_dpmpp_sde"])
def test_k_diffusion_functions_do_not_wait(name):
    import fastsample.integrations.k_diffusion as k

    function = k.SAMPLERS[name]
    sigmas = k.get_sigmas_karras(6, 0.03, 14.6, device="cuda")
    x = torch.randn(2, 4, 16, 16, device="cuda") * 14.6
    calls = 0

    def model(x, sigma, **extra):
        nonlocal calls
        if calls == 0:  # the sigmas were read before the first call; from here on nothing is
            torch.cuda.set_sync_debug_mode("error")
        calls += 1
        return x / (1 + sigma.reshape(-1, 1, 1, 1) ** 2)

    try:
        out = function(model, x, sigmas, {"seed": 3}, disable=True)
    finally:
        torch.cuda.set_sync_debug_mode("default")
    assert out.isfinite().all() and calls >= 6
