"""Our schedulers against stock over configurations: every result of every step within 64 float32 roundings."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

pytest.importorskip("diffusers")
import diffusers

from fastsample.integrations.diffusers.swap import classes

from .lockstep import Edit, assert_close, network, pairs, start

OURS = classes()
Case = tuple[str, dict[str, Any], dict[str, Any], dict[str, Any]]
EULER, ANCESTRAL = "EulerDiscreteScheduler", "EulerAncestralDiscreteScheduler"
EDM, FLOW = "EDMEulerScheduler", "FlowMatchEulerDiscreteScheduler"
DDIM, DDPM, INVERSE = "DDIMScheduler", "DDPMScheduler", "DDIMInverseScheduler"
DPM, EDM_DPM, DEIS = "DPMSolverMultistepScheduler", "EDMDPMSolverMultistepScheduler", "DEISMultistepScheduler"
SHAPE = (2, 3, 4, 4)
CHURN = {"s_churn": 3.0, "s_tmin": 0.2, "s_tmax": 40.0, "s_noise": 1.01}
SPACINGS = ("linspace", "leading", "trailing")


def cases() -> list[Case]:
    """``(class, configuration, arguments of set_timesteps, arguments of step)``."""
    found: list[Case] = []

    def add(
        name: str, *, grid: dict[str, Any] | None = None, step: dict[str, Any] | None = None, **config: Any
    ) -> None:
        found.append((name, config, grid or {}, step or {}))

    for spacing in SPACINGS:
        for name in (EULER, ANCESTRAL, DDIM, DDPM, DPM, DEIS):
            add(name, timestep_spacing=spacing, steps_offset=1, prediction_type="v_prediction")
        add(INVERSE, timestep_spacing=spacing) if spacing != "linspace" else None
    for table in ({"beta_schedule": "squaredcos_cap_v2"}, {"trained_betas": np.linspace(1e-4, 0.03, 1000)}):
        for name in (EULER, ANCESTRAL, DDIM, DDPM, DPM, DEIS):
            add(name, **table)
    for name in (EULER, ANCESTRAL, DDIM, DPM):
        add(name, rescale_betas_zero_snr=True, timestep_spacing="trailing", prediction_type="v_prediction")
    for name in (EULER, DPM, DEIS):
        for remap in ("karras", "exponential", "beta"):
            add(name, **{f"use_{remap}_sigmas": True})
    for prediction in ("sample", "v_prediction"):
        for name in (EULER, DDIM, DDPM, INVERSE, DPM, DEIS):
            add(name, prediction_type=prediction, **({"set_alpha_to_one": False} if name == INVERSE else {}))

    add(EULER, step=CHURN)
    add(EULER, step=CHURN, prediction_type="v_prediction")
    add(EULER, interpolation_type="log_linear")
    add(EULER, final_sigmas_type="sigma_min")
    add(EULER, timestep_type="continuous", prediction_type="v_prediction")
    add(EULER, grid={"timesteps": [900, 700, 300, 40]})
    add(EULER, grid={"sigmas": [10.0, 4.0, 1.0, 0.1, 0.0]})
    add(EDM, step=CHURN)
    add(EDM, prediction_type="v_prediction", sigma_schedule="exponential", sigma_data=1.0)
    add(FLOW, shift=3.0)
    add(FLOW, use_dynamic_shifting=True, grid={"num_inference_steps": 6, "mu": 0.8})
    add(FLOW, use_dynamic_shifting=True, time_shift_type="linear", grid={"num_inference_steps": 6, "mu": 0.8})
    add(FLOW, shift_terminal=0.1)
    add(FLOW, invert_sigmas=True)
    add(FLOW, stochastic_sampling=True, shift=2.0)
    add(FLOW, grid={"sigmas": [1.0, 0.6, 0.3, 0.1]})
    add(FLOW, grid={"sigmas": [1.0, 0.6, 0.3], "timesteps": [1000.0, 500.0, 200.0]})
    for remap in ("karras", "exponential", "beta"):
        add(FLOW, **{f"use_{remap}_sigmas": True})

    add(DDIM, step={"eta": 1.0})
    add(DDIM, step={"eta": 0.4}, clip_sample=False, set_alpha_to_one=False)
    add(DDIM, step={"use_clipped_model_output": True}, clip_sample_range=0.3)
    add(DDIM, step={"eta": 0.7, "variance_noise": start(*SHAPE, seed=8)}, clip_sample=False)
    add(DDIM, grid={"num_inference_steps": 7})
    for kind in ("fixed_small", "fixed_small_log", "fixed_large"):
        add(DDPM, variance_type=kind)
        add(DDPM, variance_type=kind, clip_sample=False, beta_schedule="squaredcos_cap_v2", timestep_spacing="linspace")
    for kind in ("learned", "learned_range"):
        add(DDPM, variance_type=kind, clip_sample_range=0.5)
    add(DDPM, grid={"timesteps": [900, 400, 100, 99, 1]})

    for order in (1, 2, 3):
        for algorithm in ("dpmsolver++", "sde-dpmsolver++", "dpmsolver", "sde-dpmsolver"):
            for solver in ("midpoint", "heun"):
                last = "zero" if algorithm.endswith("++") else "sigma_min"
                if (algorithm == "sde-dpmsolver" and order == 3) or (order != 2 and solver == "heun"):
                    continue
                config = {"solver_order": order, "algorithm_type": algorithm, "solver_type": solver}
                add(DPM, **config, final_sigmas_type=last)
                if algorithm.endswith("++") and not (algorithm.startswith("sde") and order == 3):
                    add(EDM_DPM, **config)
        add(DEIS, solver_order=order)
    add(DPM, use_lu_lambdas=True)
    add(DPM, use_flow_sigmas=True, flow_shift=3.0, prediction_type="flow_prediction")
    add(DEIS, use_flow_sigmas=True, flow_shift=3.0, prediction_type="flow_prediction", solver_order=3)
    add(DPM, euler_at_final=True, solver_order=3)
    add(DPM, lower_order_final=False, solver_order=3)
    add(DPM, lower_order_final=False, solver_order=3, grid={"num_inference_steps": 17})
    add(DPM, lambda_min_clipped=-5.1)
    add(DPM, grid={"timesteps": [900, 700, 300, 40]})
    add(DPM, variance_type="learned_range")
    add(DPM, algorithm_type="sde-dpmsolver++", step={"variance_noise": start(*SHAPE, seed=8)})
    add(EDM_DPM, final_sigmas_type="sigma_min", sigma_schedule="exponential", euler_at_final=True)
    for name in (DDIM, DDPM, DPM, EDM_DPM, DEIS):
        add(name, thresholding=True, sample_max_value=2.0, dynamic_thresholding_ratio=0.8)
    return found


CASES = cases()
IDS = [f"{name[:-9]}-{'-'.join(f'{k}={v}'[:28] for k, v in {**c, **s}.items())}" for name, c, _, s in CASES]


def _pair(case: Case) -> tuple[Any, Any]:
    name, config, grid, _ = case
    made = getattr(diffusers, name)(**config), OURS[name](**config)
    for scheduler in made:
        scheduler.set_timesteps(**(grid or {"num_inference_steps": 6}))
    return made


@pytest.mark.parametrize("case", CASES, ids=IDS)
def test_against_stock(case: Case) -> None:
    _, config, _, step = case
    known = start(*SHAPE, seed=9)
    inpaint: Edit = lambda i, x: torch.where(torch.arange(4) < 2, known / (1 + i), x)  # noqa: E731
    channels = 2 if str(config.get("variance_type")).startswith("learned") else 1
    for edit in (None, inpaint):
        stock, ours = _pair(case)
        assert_close(pairs(stock, ours, start(*SHAPE), edit=edit, channels=channels, **step))
        if hasattr(stock, "sigmas"):
            assert torch.equal(stock.sigmas, ours.sigmas)


def test_flow_per_token_times() -> None:
    """A level per token: (B, tokens) times."""
    stock, ours = _pair((FLOW, {}, {}, {}))
    x, e = start(2, 5, 3), start(2, 5, 3, seed=1)
    for t in stock.timesteps:
        times = t * torch.linspace(0.3, 1.0, 5).expand(2, 5)
        want, got = (s.step(e, t, x, per_token_timesteps=times, return_dict=False)[0] for s in (stock, ours))
        assert torch.equal(want, got)
        x = want


def test_edm_denoised_given() -> None:
    stock, ours = _pair((EDM, {}, {}, {}))
    x, d, t = 80.0 * start(*SHAPE), start(*SHAPE, seed=1), stock.timesteps[0]
    want, got = (s.step(x, t, x, pred_original_sample=d, return_dict=False) for s in (stock, ours))
    assert all(torch.equal(a, b) for a, b in zip(want, got, strict=True))


def test_a_history_from_outside() -> None:
    """Lists assigned by a caller are used."""
    for name in (DPM, DEIS, EDM_DPM):
        stock, ours = _pair((name, {}, {}, {}))
        history = [start(*SHAPE, seed=5), start(*SHAPE, seed=6)]
        for s in (stock, ours):
            s.model_outputs, s.lower_order_nums, s._step_index = list(history), 2, 3
            s.is_scale_input_called = True
        x, e, t = start(*SHAPE), start(*SHAPE, seed=1), stock.timesteps[3]
        want, got = (s.step(e, t, x, return_dict=False)[0] for s in (stock, ours))
        assert (want - got).abs().max() <= 64 * 2.0**-24 * 40
        assert len(ours.model_outputs) == 2 and ours.lower_order_nums == stock.lower_order_nums
        torch.testing.assert_close(ours.model_outputs[-1], stock.model_outputs[-1], rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("name", [EULER, ANCESTRAL, EDM, FLOW, DDIM, DDPM, INVERSE, DPM, EDM_DPM, DEIS])
def test_half_precision_rounds_once(name: str, dtype: torch.dtype) -> None:
    """Error of a step on a half-precision state against the same step of float64: ours is one rounding of the result
    (and of the history), and never worse than stock's by more than that."""
    stock, ours = _pair((name, {}, {}, {}))
    exact = OURS[name]()
    exact.set_timesteps(6)
    ulp = torch.finfo(dtype).eps / 2
    x = (start(*SHAPE) * min(float(getattr(stock, "init_noise_sigma", 1.0)), 1e3)).to(dtype)
    draws = [{"generator": torch.Generator().manual_seed(4)} if name in (ANCESTRAL, DDPM) else {} for _ in range(2)]
    noise_free = name not in (ANCESTRAL, DDPM)
    largest = 0.0
    for i, t in enumerate(stock.timesteps):
        e = network(x, i)
        for s in (stock, ours, exact):
            if hasattr(s, "scale_model_input"):
                s.scale_model_input(x, t)
        want = stock.step(e, t, x, return_dict=False, **draws[0])[0].double()
        got = ours.step(e, t, x, return_dict=False, **draws[1])[0].double()
        largest = max(largest, float(want.abs().max()), float(e.abs().max()))
        if noise_free:
            true = exact.step(e.double(), t, x.double(), return_dict=False)[0]
            error, stocks = (float((y - true).abs().max()) for y in (got, want))
            assert error <= 3 * ulp * largest  # the state, and two entries of the history with weights of about 1
            assert error <= stocks + 2 * ulp * largest
        else:
            assert (got - want).abs().max() <= 8 * ulp * largest
        x = want.to(dtype)
