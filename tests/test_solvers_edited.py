"""Anchored rows against diffusers when the caller edits the state between the calls and starts in the middle."""

from __future__ import annotations

import numpy as np
import pytest

from fastsample.path import Path
from fastsample.plan import make_plan

from .golden_cases import Replay

torch = pytest.importorskip("torch")
diffusers = pytest.importorskip("diffusers")
N, BEGIN = 9, 2


def run(scheduler, begin: int, edits: bool):
    """A run of a scheduler in float64 on random outputs: (start, outputs, draws, edits, end)."""
    rng = np.random.default_rng(11)
    calls = len(scheduler.timesteps) - begin
    outputs, draws, changes = rng.standard_normal((3, calls, 2, 5))
    changes = changes * edits
    start = rng.standard_normal((2, 5))
    scheduler.set_begin_index(begin)
    noise = iter(draws)
    module = __import__(type(scheduler).__module__, fromlist=["x"])
    original = getattr(module, "randn_tensor", None)
    if original is not None:
        module.randn_tensor = lambda *args, **kwargs: torch.tensor(next(noise))
    try:
        x = torch.tensor(start)
        for i, t in enumerate(scheduler.timesteps[begin:]):
            x = scheduler.step(torch.tensor(outputs[i]), t, x).prev_sample
            x = x + torch.tensor(changes[i])
    finally:
        if original is not None:
            module.randn_tensor = original
    return start, outputs, draws, changes, x.numpy()


def path_of(scheduler, begin: int) -> Path:
    rho = scheduler.sigmas.double().numpy()
    alpha = 1 / np.sqrt(1 + rho**2)
    return Path(alpha, rho * alpha, np.append(scheduler.timesteps.numpy(), 0.0))[begin:]


def widen(scheduler):
    scheduler.set_timesteps(N)
    scheduler.sigmas = scheduler.sigmas.double()
    return scheduler


@pytest.mark.parametrize("edits", [False, True], ids=["plain", "edited"])
@pytest.mark.parametrize("order", [1, 2, 3])
@pytest.mark.parametrize("disabled", [[], [3, 5]], ids=["all", "some"])
def test_unipc(order, disabled, edits):
    scheduler = diffusers.UniPCMultistepScheduler(solver_order=order, disable_corrector=disabled)
    scheduler = widen(scheduler)
    start, outputs, _, changes, end = run(scheduler, BEGIN, edits)
    shifted = [i - BEGIN for i in disabled]
    plan = make_plan("unipc", path_of(scheduler, BEGIN), order=order, disable_corrector=shifted, anchored=True)
    replay = Replay(plan, start, outputs, replace=lambda i, x: x + changes[i])
    np.testing.assert_allclose(replay.x, end, rtol=0, atol=1e-10)


@pytest.mark.parametrize("edits", [False, True], ids=["plain", "edited"])
@pytest.mark.parametrize("orders", [(1, 1), (2, 2), (3, 4)], ids=str)
def test_sa_solver(orders, edits):
    p, c = orders
    scheduler = widen(diffusers.SASolverScheduler(predictor_order=p, corrector_order=c))
    start, outputs, draws, changes, end = run(scheduler, BEGIN, edits)
    plan = make_plan(
        "sa",
        path_of(scheduler, BEGIN),
        predictor_order=p,
        corrector_order=c,
        tau=1.0,
        tau_window=(200, 800),
        tau_at="start",
        mode="diffusers",
        anchored=True,
    )
    replay = Replay(plan, start, outputs, lambda n: draws[n - 1], replace=lambda i, x: x + changes[i])
    np.testing.assert_allclose(replay.x, end, rtol=0, atol=1e-10)


@pytest.mark.parametrize("edits", [False, True], ids=["plain", "edited"])
@pytest.mark.parametrize("skip", [False, True], ids=["runge-kutta", "heun"])
def test_pndm(skip, edits):
    scheduler = diffusers.PNDMScheduler(skip_prk_steps=skip)
    scheduler.set_timesteps(N)
    scheduler.alphas_cumprod = scheduler.alphas_cumprod.double()
    scheduler.final_alpha_cumprod = scheduler.alphas_cumprod[0]
    rng = np.random.default_rng(12)
    times = scheduler.timesteps.numpy()
    outputs, changes = rng.standard_normal((2, len(times), 2, 5))
    changes, start = changes * edits, rng.standard_normal((2, 5))
    x = torch.tensor(start)
    for i, t in enumerate(scheduler.timesteps):
        x = scheduler.step(torch.tensor(outputs[i]), int(t), x).prev_sample + torch.tensor(changes[i])

    table, stride = scheduler.alphas_cumprod.numpy(), 1000 // N

    def level(row, told=None):
        squared = table[max(int(row), 0)]
        return [np.sqrt(squared), np.sqrt(1 - squared), float(row if told is None else told)]

    path = Path(*np.array([level(times[0] - stride * k) for k in range(N + 1)]).T)
    options = {}
    if not skip:
        told = times[:12].reshape(3, 4)
        options["middles"] = [m for a, b, c, _ in told for m in (level(a - stride // 2, b), level(c))]
    plan = make_plan("plms" if skip else "f-pndm", path, anchored=True, **options)
    replay = Replay(plan, start, outputs, replace=lambda i, x: x + changes[i])
    np.testing.assert_allclose(replay.x, x.numpy(), rtol=0, atol=1e-10)
