"""Adaptive DPM-Solver: recorded runs of the authors' programs, control, accuracy, and the loop around it."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from fastsample import GaussianMixture, make_plan, noise, procedures, sample
from fastsample.loop import drive
from fastsample.path import Path
from fastsample.procedures import control
from fastsample.procedures.adaptive import Adaptive
from fastsample.schedules import DiscreteVP, VPLinear
from fastsample.solvers import registry
from fastsample.solvers.assemble import DEFAULTS

from .exact import Mixture, exact_flow
from .golden_cases import cases
from .orders import VP


def begin(name, path, x, prediction="x0", schedule=None, network=None, **options):
    procedure = procedures.get(name)
    shared = {**DEFAULTS, "prediction": prediction, **(network or {})}
    keys = noise.keys(7, len(x))
    setting = procedures.Setting(path, schedule, shared, x, "state", keys, None, None, False)
    return procedure.make(setting, **registry.complete(procedure, options))


def replay(case, run, times):
    """The recorded network's answers in their order; what was asked, and when, must be what the program asked."""
    asked = []

    def network(x, t):
        call = len(asked)
        asked.append(float(t[0]))
        np.testing.assert_allclose(x, case["eval_x"][call], rtol=0, atol=1e-10)
        return torch.tensor(case["eval_out"][call])

    drive(run, network)
    assert len(asked) == len(case["eval_x"])
    if times is not None:
        np.testing.assert_allclose(asked, case["eval_t"], rtol=times, atol=0)
    np.testing.assert_allclose(run.state, case["x_0"], rtol=0, atol=1e-10)


@pytest.mark.parametrize("case", cases("kdiffusion_adaptive"), ids=str)
def test_k_diffusion(case):
    cfg = case.cfg
    path = Path(np.ones(2), [cfg["sigma_max"], cfg["sigma_min"]])
    options = {name: cfg[name] for name in ("order", "rtol", "atol")}
    run = begin("dpm-adaptive", path, torch.tensor(case["x_T"]), **options)
    replay(case, run, times=1e-10)
    assert (run.accepted, run.rejected, run.told) == (cfg["n_accept"], cfg["n_reject"], cfg["nfe"])


@pytest.mark.parametrize("case", cases("dpmsolver_adaptive"), ids=str)
def test_dpm_solver(case, monkeypatch):
    cfg = case.cfg
    # the authors' program rounds this factor to float32
    exact = control.inverse_root
    monkeypatch.setattr(control, "inverse_root", lambda error, order: float(np.float32(exact(error, order))))
    linear = cfg["schedule"] == "vp_linear"
    schedule = VPLinear(t_min=cfg["t_end"]) if linear else DiscreteVP.scaled_linear()
    end = cfg["t_end"] if linear else 0.0
    ends = np.array([schedule.t_max, end])
    path = Path(schedule.alpha(ends), schedule.sigma(ends), ends)
    assert float(path.alpha[0]) == pytest.approx(case["eval_alpha"][0], rel=1e-12)
    options = {name: cfg[name] for name in ("order", "rtol", "atol", "h_init", "theta")}
    form = {"dpmsolver": "eps", "dpmsolver++": "x0"}[cfg["algorithm"]]
    x = torch.tensor(case["x_T"])
    run = begin("dpm-solver-adaptive", path, x, cfg["prediction"], schedule, form=form, **options)
    replay(case, run, times=1e-10 if linear else None)


def ends_of(name, tolerance, **options):
    """Largest error of the end against the exact flow, and the calls."""
    mixture = Mixture()
    start = torch.randn(8, 4, generator=torch.Generator().manual_seed(7), dtype=torch.float64) * float(VP.sigma(0.6))
    path = Path(VP.alpha([0.6, 0.05]), VP.sigma([0.6, 0.05]), [0.6, 0.05])
    run = begin(name, path, start, "x0", VP, rtol=tolerance, atol=tolerance, h_init=0.01, **options)

    def network(x, t):
        return torch.from_numpy(mixture.x0(x.numpy(), float(VP.alpha(float(t[0]))), float(VP.sigma(float(t[0])))))

    drive(run, network)
    exact = exact_flow(mixture.x0, VP, 0.6, 0.05, start.numpy(), 1280)[-1]
    return float(np.abs(run.state.numpy() - exact).max()), run.told


@pytest.mark.parametrize("name", ["dpm-adaptive", "dpm-solver-adaptive"])
@pytest.mark.parametrize("order", [2, 3])
@pytest.mark.parametrize("form", ["x0", "eps"])
def test_error_follows_the_tolerance(name, order, form):
    """Eight times less tolerance: eight times less error, and 8^(1/order) times the calls."""
    tolerances = (1e-2 / 64, 1e-2 / 512) if order == 2 else (1e-2 / 512, 1e-2 / 4096)
    (coarse, few), (fine, many) = (ends_of(name, tolerance, order=order, form=form) for tolerance in tolerances)
    assert coarse / fine == pytest.approx(8.0, rel=0.2)
    assert many / few == pytest.approx(8 ** (1 / order), rel=0.15)


def test_through_the_loop():
    """By name, on the model's own schedule: near what many steps of a plan give; the same bits again."""
    model, shape = GaussianMixture.ring(), (16, 2)
    calls = []
    out = sample(model, shape, solver="dpm-adaptive", rtol=1e-3, atol=1e-4, seed=3, callback=calls.append)
    fine = sample(model, shape, solver="dpm-3s", steps=300, seed=3)
    assert (out - fine).abs().max() < 5e-3
    assert torch.equal(out, sample(model, shape, solver="dpm_adaptive", rtol=1e-3, atol=1e-4, seed=3))
    assert [info.call for info in calls] == list(range(len(calls)))
    assert calls[-1].calls is None
    assert calls[-1].step + 1 < len(calls) / 2
    whole = sample(model, shape, solver="dpm-solver-adaptive", seed=3, return_trajectory=True)
    assert torch.equal(whole.states[-1], whole.x)
    start = sample(model, shape, solver="dpm-3s", steps=300, seed=3, return_trajectory=True).states[0]
    assert torch.equal(whole.states[0], start)


def test_denoised_progress_dtype_and_start(capsys):
    model, previews = GaussianMixture.ring(), []
    options = {"solver": "dpm-solver-adaptive", "order": 2, "seed": 1}

    def look(info):
        previews.append(info.denoised.clone())

    out = sample(model, (4, 2), denoised=True, callback=look, denoise=True, progress="always", **options)
    assert torch.equal(previews[-1], out)
    assert "dpm-solver-adaptive" in capsys.readouterr().err
    half = sample(model, (4, 2), dtype=torch.bfloat16, **options)
    assert half.dtype == torch.bfloat16
    assert (half - sample(model, (4, 2), **options)).abs().max() < 0.1
    data = torch.zeros(4, 2)
    assert sample(model, data, start=0.3, **options).isfinite().all()
    assert sample(lambda x, t: x, (0, 2), **options).shape == (0, 2)


def test_to_clean_data():
    """sigma = 0 at the end: the last call's x0_hat is the result."""
    path = Path(np.ones(4), [9.0, 1.0, 0.1, 0.0])
    x = torch.tensor([[3.0, -2.0]], dtype=torch.float64)
    run = begin("dpm-adaptive", path, x, rtol=1e-3, atol=1e-3)
    drive(run, lambda x, t: x / (1 + t[:, None] ** 2))  # data N(0, 1): the exact end is x / sqrt(1 + sigma^2)
    assert run.state.numpy() == pytest.approx((x / 82**0.5 / 1.01**0.5).numpy(), rel=1e-3)
    assert run.ends_step(run.told - 1)


@pytest.mark.parametrize("network", [{"guidance": 3.0}, {"input_scaling": "vp"}, {"clip": 0.8}, {"denoised": True}])
def test_networks(network):
    """Guidance, a scaled input, limits and previews as in a plan."""
    path, x = Path(np.ones(2), [9.0, 0.1]), torch.randn(4, 3, generator=torch.Generator().manual_seed(0))

    def told(x, t):
        scale = (1 + t[:, None] ** 2).sqrt() if "input_scaling" in network else 1.0
        guess = (scale * x).tanh()
        return (guess / 3.0, torch.zeros_like(guess)) if "guidance" in network else guess

    runs = [begin("dpm-adaptive", path, x, network=options) for options in (network, {})]
    drive(runs[0], told)
    drive(runs[1], lambda x, t: x.tanh().clamp(-0.8, 0.8) if "clip" in network else x.tanh())
    assert runs[0].guided == ("guidance" in network)
    torch.testing.assert_close(runs[0].state, runs[1].state, rtol=1e-4, atol=1e-4)


def test_noise_keeps_the_law():
    """On data N(0, 1/4) the variance of 20000 ends is within 4 sqrt(2/n) = 4 % of the truth: false alarm 6e-5 each,
    seed fixed; the method's own error at this tolerance is below 0.2 %."""
    path = Path(np.ones(2), [20.0, 0.02])
    x = 20.0 * torch.randn(20000, 1, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    ends = []
    for eta in (0.0, 1.0):
        run = begin("dpm-adaptive", path, x, rtol=1e-4, atol=1e-4, eta=eta)
        drive(run, lambda x, t: 0.25 / (0.25 + t[:, None] ** 2) * x)
        assert float(run.state.var()) == pytest.approx(0.25 + 0.02**2, rel=0.04)
        ends.append(run.state)
    correlation = torch.corrcoef(torch.cat([ends[1], x], 1).T)[0, 1]
    assert abs(correlation) < 0.3
    assert float(torch.corrcoef(torch.cat([ends[0], x], 1).T)[0, 1]) > 0.999


def test_a_change_by_a_callback_is_seen():
    path, x = Path(np.ones(2), [9.0, 0.1]), torch.full((1, 2), 5.0, dtype=torch.float64)
    run, seen = begin("dpm-adaptive", path, x), []

    def network(x, t):
        seen.append(x.clone())
        return 0.0 * x

    def replace(call):
        if run.ends_step(call):
            run.state.fill_(2.5)

    drive(run, network, [replace])
    assert any(torch.equal(x, torch.full_like(x, 2.5)) for x in seen)
    assert torch.equal(run.state, torch.full_like(x, 2.5))


def test_gradient():
    path = Path(np.ones(2), [3.0, 0.1])
    x = torch.tensor([[3.0, -2.0]], dtype=torch.float64, requires_grad=True)
    setting = procedures.Setting(path, None, {**DEFAULTS, "prediction": "x0"}, x, "state", None, {}, None, True)
    procedure = procedures.get("dpm-adaptive")
    run = procedure.make(setting, **registry.complete(procedure, {}))
    drive(run, lambda x, t: 0.25 / (0.25 + t[:, None] ** 2) * x)  # linear: the gradient is the ratio of end and start
    (gradient,) = torch.autograd.grad(run.state.sum(), x)
    torch.testing.assert_close(gradient, (run.state / x).detach(), rtol=1e-9, atol=0)


BAD = [
    ({"order": 4}, "order: got 4"),
    ({"rtol": -1.0}, "rtol: got"),
    ({"atol": 0.0}, "atol: got"),
    ({"h_init": 0}, "h_init: got"),
    ({"norm": "sum"}, "norm: got"),
    ({"form": "v"}, "form: got"),
    ({"pcoeff": "x"}, "pcoeff: got"),
    ({"accept_safety": 0.0}, "accept_safety: got"),
    ({"eta": -0.1}, "eta: got"),
    ({"theta": 0.9}, "option: 'dpm-adaptive' has no option 'theta'"),
    ({"clip": -1.0}, "clip: got"),
    ({"path": Path([1.0, 1.0], [1.0, 0.0])}, "path: an adaptive solver needs"),
    ({"path": Path([0.1, 0.9], [0.9, 0.1], rates=np.ones((2, 2))), "prediction": "flow"}, "prediction: what a flow"),
    ({"path": Path([1.0, 1.0], [9.0, 0.1]), "steps": 4}, "path: got steps"),
]


@pytest.mark.parametrize(("options", "message"), BAD, ids=lambda v: v if isinstance(v, str) else "")
def test_bad_input(options, message):
    with pytest.raises(ValueError, match=message):
        sample(lambda x, t: x, (2, 2), solver="dpm-adaptive", **options)


def test_what_cannot_go_on():
    path, x = Path(np.ones(2), [9.0, 0.1]), torch.ones(2, 2)
    with pytest.raises(FloatingPointError, match="not finite"):
        drive(begin("dpm-adaptive", path, x), lambda x, t: x * float("nan"))
    rough = torch.Generator().manual_seed(0)

    def jumping(x, t):
        return torch.randn(x.shape, generator=rough, dtype=x.dtype)

    for name in ("dpm-adaptive", "dpm-solver-adaptive"):
        with pytest.raises(FloatingPointError, match="step size fell"):
            drive(begin(name, path, x.double(), rtol=0.0, atol=1e-20), jumping)
    with pytest.raises(ValueError, match="has no plan"):
        make_plan("dpm-adaptive", path)
    with pytest.raises(ValueError, match="is taken"):
        procedures.add(procedures.get("dpm-adaptive"))
    assert isinstance(begin("dpm-adaptive", path, x), Adaptive)
    assert "accept_safety=0.81" in registry.describe("dpm-adaptive")
