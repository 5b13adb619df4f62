"""The k-diffusion functions: recorded runs, order of draws, callbacks, levels, patching; ComfyUI's registration."""

from __future__ import annotations

import inspect
import sys
import types

import numpy as np
import pytest
import torch

import fastsample.integrations.k_diffusion as k
from fastsample.brownian import BrownianTreeNoiseSampler
from fastsample.integrations.k_diffusion.driver import run
from fastsample.solvers import registry

from .golden_cases import cases

CASES = [c for stem in ("kdiffusion_ode", "kdiffusion_sde") for c in cases(stem)]


def there(case) -> bool:
    return f"sample_{case.cfg['sampler']}" in k.SAMPLERS


@pytest.mark.parametrize("case", [c for c in CASES if there(c)], ids=str)
def test_recorded_runs(case, monkeypatch):
    """Through the public functions, the recorded network's answers and noise in their order: 1e-10 in float64."""
    cfg, calls, drawn = case.cfg, [], []
    function = k.SAMPLERS[f"sample_{cfg['sampler']}"]
    names = inspect.signature(function).parameters
    options = {key: value for key, value in cfg.items() if key in names}

    def model(x, sigma):
        np.testing.assert_allclose(x, case["eval_x"][len(calls)], rtol=0, atol=1e-10)
        calls.append(sigma)
        return torch.tensor(case["eval_out"][len(calls) - 1])

    def noise(sigma, sigma_next):
        assert sigma.ndim == 0
        drawn.append((float(sigma), float(sigma_next)))
        return torch.tensor(case["noise"][len(drawn) - 1] if "noise" in case else 0.0 * case["x_T"])

    if "noise_sampler" in names:
        options["noise_sampler"] = noise
    else:  # churn draws from torch's own generator
        monkeypatch.setattr(torch, "randn_like", lambda x: noise(x[0, 0], x[0, 0]))
    out = function(model, torch.tensor(case["x_T"]), torch.tensor(case["sigmas"]), disable=True, **options)
    np.testing.assert_allclose(out, case["x_0"], rtol=0, atol=1e-10)
    assert len(calls) == len(case["eval_x"])


def shrink(x, sigma, **extra):
    return x / (1 + sigma.reshape(-1, 1) ** 2)


SIGMAS = k.get_sigmas_karras(7, 0.05, 12.0).double()
X = torch.linspace(-2, 2, 10, dtype=torch.float64).reshape(2, 5) * 12.0


@pytest.mark.parametrize("name", sorted(k.SAMPLERS))
def test_contract(name):
    function, seen = k.SAMPLERS[name], []
    names = list(inspect.signature(function).parameters)
    assert names[:6] == ["model", "x", "sigmas", "extra_args", "callback", "disable"]
    before, kept = X.clone(), {}

    def model(x, sigma, mark):
        assert mark == 3 and sigma.shape == (2,) and sigma.dtype == x.dtype
        kept[float(sigma[0])] = x.clone()
        return shrink(x, sigma)

    def callback(info):
        assert set(info) == {"x", "i", "sigma", "sigma_hat", "denoised"}
        assert torch.equal(info["x"], kept[float(info["sigma_hat"])])
        seen.append((info["i"], float(info["sigma"])))

    torch.manual_seed(0)
    out = function(model, X, SIGMAS, {"mark": 3}, callback, True)
    assert torch.equal(X, before) and out.data_ptr() != X.data_ptr() and out.dtype == X.dtype
    assert seen == [(i, float(SIGMAS[i])) for i in range(7)]
    torch.manual_seed(0)
    assert torch.equal(out, function(model, X, SIGMAS, {"mark": 3}, disable=True))
    for sigmas in (SIGMAS[:1], SIGMAS[:0]):
        assert function(model, X, sigmas, {"mark": 3}) is X
    assert not function(model, X.requires_grad_(), SIGMAS, {"mark": 3}, disable=True).requires_grad
    X.requires_grad_(False)
    part = function(model, X, SIGMAS[:4], {"mark": 3}, disable=True)  # a list that was cut
    assert part.isfinite().all()


def test_churn_draws_like_k_diffusion():
    """One draw before every step, used or not, so that a generator's stream stays the same."""
    x = X.clone()
    for s_tmin in (0.0, 1.0):
        torch.manual_seed(1)
        mine = k.sample_euler(shrink, x, SIGMAS, disable=True, s_churn=3.0, s_tmin=s_tmin)
        after = torch.rand(1)
        torch.manual_seed(1)
        y = x.clone()
        for i in range(len(SIGMAS) - 1):  # Karras et al. 2022, algorithm 2, without its correction
            gamma = min(3.0 / 7, 2**0.5 - 1) if s_tmin <= SIGMAS[i] else 0.0
            eps, up = torch.randn_like(x), SIGMAS[i] * (1 + gamma)
            y = y + eps * (up**2 - SIGMAS[i] ** 2).clamp_min(0).sqrt()
            y = y + (y - shrink(y, up.expand(2))) / up * (SIGMAS[i + 1] - up)
        torch.testing.assert_close(mine, y, rtol=0, atol=1e-12)
        assert torch.equal(after, torch.rand(1))


def test_sde_samplers_use_a_brownian_path_of_the_seed():
    def run_with(seed, sigmas=SIGMAS, x=X):
        return k.sample_dpmpp_2m_sde(lambda x, s, seed: shrink(x, s), x, sigmas, {"seed": seed}, disable=True)

    assert torch.equal(run_with(1), run_with(1)) and not torch.equal(run_with(1), run_with(2))
    assert torch.equal(run_with(1)[:1], run_with(1, x=X[:1]))  # whatever the batch
    noise = BrownianTreeNoiseSampler(X, 0.05, 12.0, seed=1)
    given = k.sample_dpmpp_2m_sde(shrink, X, SIGMAS, disable=True, noise_sampler=lambda a, b: noise(float(a), float(b)))
    torch.testing.assert_close(given, run_with(1), rtol=0, atol=1e-12)


@pytest.mark.parametrize("name", ["unipc", "dpm-2m", "ddim", "deis", "ddpm"])
@pytest.mark.parametrize("flow", [False, True])
def test_any_solver_as_a_function(name, flow):
    sigmas = torch.linspace(0.98, 0.0, 12, dtype=torch.float64) if flow else SIGMAS
    function = k.sampler(name, flow=flow)
    assert function.__name__.startswith("sample_")
    torch.manual_seed(3)
    x = torch.randn(4, 5, dtype=torch.float64) * sigmas[0]

    def exact(x, sigma):  # data N(0, 1/4): linear, so that the end is a multiple of the start where there is no noise
        sigma = sigma.reshape(-1, 1)
        alpha = 1 - sigma if flow else torch.ones_like(sigma)
        return 0.25 * alpha * x / (0.25 * alpha**2 + sigma**2)

    out = function(exact, x, sigmas, disable=True)
    assert out.isfinite().all()
    if not registry.find(name).stochastic:
        torch.testing.assert_close(out / x, (out / x)[:1, :1].expand(4, 5), rtol=1e-9, atol=0)
        assert 0.3 < float((out / x)[0, 0] * sigmas[0]) < 0.7  # the flow maps to standard deviation 1/2


def test_bad_input():
    with pytest.raises(TypeError, match="x: got int"):
        k.sample_euler(shrink, 3, SIGMAS)
    with pytest.raises(ValueError, match="sigmas: got shape"):
        k.sample_euler(shrink, X, SIGMAS[None])
    with pytest.raises(ValueError, match="log-SNR must rise"):
        k.sample_euler(shrink, X, SIGMAS.flip(0)[1:])
    with pytest.raises(ValueError, match="solver_type: got"):
        k.sample_dpmpp_2m_sde(shrink, X, SIGMAS, solver_type="rk4")
    with pytest.raises(ValueError, match="no option"):
        k.sampler("ddim", order=2)
    with pytest.raises(ValueError, match="no option"):
        run(shrink, X, SIGMAS, "ddim", {"order": 2}, None, None, True)
    with pytest.raises(ValueError, match="sigma_min, sigma_max"):
        k.get_sigmas_karras(5, 1.0, 0.1)


def test_schedules():
    """First, last and middle values by hand."""
    for sigmas in (k.get_sigmas_karras(5, 0.1, 10.0), k.get_sigmas_exponential(5, 0.1, 10.0)):
        assert sigmas.shape == (6,) and sigmas[-1] == 0 and sigmas.dtype == torch.float32
        torch.testing.assert_close(sigmas[[0, 4]], torch.tensor([10.0, 0.1]))
    assert float(k.get_sigmas_exponential(5, 0.1, 10.0)[2]) == pytest.approx(1.0)
    assert float(k.get_sigmas_polyexponential(5, 0.1, 10.0, rho=2.0)[2]) == pytest.approx(10 ** (0.25 * 2 - 1))
    assert float(k.get_sigmas_karras(5, 0.1, 10.0, rho=1.0)[2]) == pytest.approx(5.05)
    assert float(k.get_sigmas_vp(3)[0]) == pytest.approx(np.sqrt(np.expm1(19.9 / 2 + 0.1)), rel=1e-6)


def test_patch_and_undo():
    module = types.ModuleType("somebody.sampling")

    def sample_euler(model, x, sigmas, extra_args=None, callback=None, disable=None, s_churn=0.0):
        """Theirs."""

    def sample_lms(model, x, sigmas, extra_args=None, callback=None, disable=None, order=4, secret=1):
        """Has an option that ours does not have."""

    module.sample_euler, module.sample_lms = sample_euler, sample_lms
    undo = k.patch(module)
    assert module.sample_euler is not sample_euler and module.sample_lms is sample_lms
    assert module.sample_euler(shrink, X, SIGMAS, disable=True).isfinite().all()
    undo()
    assert module.sample_euler is sample_euler
    with pytest.raises(ValueError, match="sample_lms"):
        k.patch(module, ["sample_lms"])


@pytest.fixture
def comfy(monkeypatch):
    """The parts of ComfyUI that a sampler pack touches."""
    comfy, kd = types.ModuleType("comfy"), types.ModuleType("comfy.k_diffusion")
    sampling, samplers = types.ModuleType("comfy.k_diffusion.sampling"), types.ModuleType("comfy.samplers")

    def theirs(
        model, x, sigmas, extra_args=None, callback=None, disable=None, eta=1.0, s_noise=1.0, noise_sampler=None
    ):
        return "theirs"

    sampling.sample_euler_ancestral = theirs
    sampling.sample_dpmpp_2m = lambda model, x, sigmas, extra_args=None, callback=None, disable=None: "theirs"

    class KSampler:
        SAMPLERS = ["euler", "uni_pc", "uni_pc_bh2"]  # noqa: RUF012
        DISCARD_PENULTIMATE_SIGMA_SAMPLERS = {"dpm_2"}  # noqa: RUF012

    class KSAMPLER:
        def __init__(self, function, extra_options=None, inpaint_options=None):
            self.sampler_function = function

    samplers.KSampler, samplers.KSAMPLER = KSampler, KSAMPLER
    comfy.k_diffusion, comfy.samplers, kd.sampling = kd, samplers, sampling
    for module in (comfy, kd, sampling, samplers):
        monkeypatch.setitem(sys.modules, module.__name__, module)
    sys.modules.pop("fastsample.integrations.comfyui", None)
    yield comfy
    sys.modules.pop("fastsample.integrations.comfyui", None)


class Patcher:
    """A model as ComfyUI wraps it: ``flow`` says what its sigma means."""

    def __init__(self, flow):
        kind = type("ModelSampling", (type("CONST", (), {}),) if flow else (), {})
        self.inner_model = types.SimpleNamespace(
            model_patcher=types.SimpleNamespace(
                get_model_object=lambda name: kind() if name == "model_sampling" else None
            )
        )

    def __call__(self, x, sigma, **extra):
        return shrink(x, sigma)


def test_comfyui(comfy):
    import fastsample.integrations.comfyui as pack

    names = comfy.samplers.KSampler.SAMPLERS
    assert names[:4] == ["euler", "uni_pc", "uni_pc_bh2", "fastsample_euler"]
    assert "fastsample_dpmpp_2m_sde" in names and "fastsample_unipc" in names
    count = len(names)
    pack.register()
    assert len(names) == count
    sampling = comfy.k_diffusion.sampling
    for flow in (False, True):
        model, sigmas = Patcher(flow), SIGMAS / 20 if flow else SIGMAS
        for name in names[3:]:
            torch.manual_seed(0)
            out = getattr(sampling, f"sample_{name}")(model, X, sigmas, extra_args={}, callback=None, disable=True)
            assert out.isfinite().all(), name
        node = pack.NODE_CLASS_MAPPINGS["FastSampleSampler"]()
        (made,) = node.get_sampler("dpmpp-2m", '{"solver_type": "heun"}', "torch")
        assert (
            made.sampler_function(model, X, sigmas, extra_args={"seed": 3}, callback=None, disable=True)
            .isfinite()
            .all()
        )
    with pytest.raises(ValueError, match="options: got"):
        node.get_sampler("dpmpp-2m", "[1]", "torch")
    assert "dpmpp-2m" in node.INPUT_TYPES()["required"]["solver"][0]


def test_comfyui_replace(comfy):
    import fastsample.integrations.comfyui as pack

    sampling = comfy.k_diffusion.sampling
    undo = pack.replace()
    assert isinstance(sampling.sample_dpmpp_2m(Patcher(False), X, SIGMAS, disable=True), torch.Tensor)
    if "sample_euler_ancestral" in k.SAMPLERS:
        assert isinstance(sampling.sample_euler_ancestral(Patcher(False), X, SIGMAS, disable=True), torch.Tensor)
        assert sampling.sample_euler_ancestral(Patcher(True), X, SIGMAS / 20) == "theirs"  # its formula is another
    undo()
    assert sampling.sample_dpmpp_2m(Patcher(False), X, SIGMAS) == "theirs"


def denoiser(x, sigma):
    """Of a Gaussian of variance 0.25 around 1."""
    s2 = (sigma**2)[:, None]
    return (0.25 * x + s2) / (0.25 + s2)


def exact(x, high, low):
    """Its probability flow."""
    return 1 + (x - 1) * ((0.25 + low**2) / (0.25 + high**2)) ** 0.5


def test_dpm_fast_and_adaptive_go_from_end_to_end():
    x = 10.0 * torch.randn(5, 3, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    end, infos, attempts = exact(x, 10.0, 0.05), [], []
    fast = k.sample_dpm_fast(denoiser, x, 0.05, 10.0, 40, None, infos.append, True)
    assert (fast - end).abs().max() < 2e-3
    assert [info["i"] for info in infos] == list(range(14))
    assert [float(info["sigma"]) for info in infos] == pytest.approx([10 * 200 ** (-i / 14) for i in range(14)])
    made, info = k.sample_dpm_adaptive(
        denoiser, x, 0.05, 10.0, None, lambda i: attempts.append(dict(i)), True, rtol=1e-4, atol=1e-4, return_info=True
    )
    assert (made - end).abs().max() < 1e-3
    assert info["steps"] == info["n_accept"] + info["n_reject"] == len(attempts)
    assert info["nfe"] == 3 * info["steps"]
    assert attempts[-1]["n_accept"] == info["n_accept"]
    assert all(np.isfinite(a["error"]) and a["h"] > 0 for a in attempts)


def test_dpm_fast_and_adaptive_ask_for_noise_between_levels():
    x, asked = torch.full((2, 3), 10.0, dtype=torch.float64), []

    def sampler(a, b):
        asked.append((float(a), float(b)))
        return torch.zeros_like(x)

    k.sample_dpm_fast(denoiser, x, 0.05, 10.0, 8, None, None, True, 1.0, 1.0, sampler)
    assert [a for a, _ in asked[1:]] == pytest.approx([b for _, b in asked[:-1]])
    assert (asked[0][0], asked[-1][1]) == pytest.approx((10.0, 0.05))
    asked.clear()
    k.sample_dpm_adaptive(denoiser, x, 0.05, 10.0, None, None, True, eta=1.0, noise_sampler=sampler)
    assert [a for a, _ in asked[1:]] == pytest.approx([b for _, b in asked[:-1]])
    for wrong in (0.0, -1.0):
        with pytest.raises(ValueError, match="sigma_min, sigma_max: got"):
            k.sample_dpm_fast(denoiser, x, wrong, 10.0, 8)
    with pytest.raises(ValueError, match="n: got 0"):
        k.sample_dpm_fast(denoiser, x, 0.05, 10.0, 0)
