"""The loop: what it asks, what it keeps, what it refuses; equal bits however a batch is cut."""

from __future__ import annotations

import dataclasses
import math
import subprocess
import sys

import numpy as np
import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

import fastsample
from fastsample import GaussianMixture, Network, StopSampling, make_plan, noise, sample
from fastsample.choosing import plan_for
from fastsample.grids import make_path
from fastsample.loop import check_finite, drive
from fastsample.run import PlanRun
from fastsample.schedules import SCHEDULES

from .conftest import vp_path

SOLVERS = ["euler", "ddpm", "dpmpp-2m", "dpmpp-3m", "sde-dpmpp-2m"]
STOCHASTIC = ["ddpm", "euler-maruyama", "sde-dpmpp-2m"]


def rowwise(x, t):
    """A network of elementwise arithmetic alone: its bits do not depend on the batch."""
    return x * 0.5 - x * x * 0.01 + t.reshape(-1, *[1] * (x.ndim - 1)) * 0.1


@pytest.mark.parametrize("solver", SOLVERS)
def test_batch_of_64_has_the_bits_of_64_batches(solver):
    plan = make_plan(solver, vp_path(6))
    whole = sample(rowwise, (64, 3, 5), plan=plan, seed=7)
    parts = [sample(rowwise, (1, 3, 5), plan=plan, seed=7, sample_ids=[i]) for i in range(64)]
    assert torch.equal(whole, torch.cat(parts))


def test_seeds_of_samples():
    plan = make_plan("ddpm", vp_path(5))
    seeds = [11, 5, 2**64 - 1]
    whole = sample(rowwise, (3, 4), plan=plan, seed=seeds)
    for i, seed in enumerate(seeds):
        assert torch.equal(whole[i : i + 1], sample(rowwise, (1, 4), plan=plan, seed=[seed]))


def test_seed_of_a_generator_and_of_torch():
    plan = make_plan("ddpm", vp_path(5))
    runs = [sample(rowwise, (3, 4), plan=plan, seed=torch.Generator().manual_seed(s)) for s in (1, 1, 2)]
    assert torch.equal(runs[0], runs[1])
    assert not torch.equal(runs[0], runs[2])
    torch.manual_seed(3)
    first = sample(rowwise, (3, 4), plan=plan)
    assert not torch.equal(first, sample(rowwise, (3, 4), plan=plan))
    torch.manual_seed(3)
    assert torch.equal(first, sample(rowwise, (3, 4), plan=plan))


def recorded(plan, shape, seed):
    keys = noise.keys(seed, shape[0])
    return [noise.normal_like(torch.empty(shape), keys, draw) for draw in range(plan.draws)]


@pytest.mark.parametrize("solver", STOCHASTIC)
def test_recorded_noise_in_place_of_keys(solver):
    plan = make_plan(solver, vp_path(6))
    xis = recorded(plan, (3, 4, 5), 9)
    keyed = sample(rowwise, (3, 4, 5), plan=plan, seed=9)
    assert torch.equal(keyed, sample(rowwise, (3, 4, 5), plan=plan, noise=xis))
    assert torch.equal(keyed, sample(rowwise, (3, 4, 5), plan=plan, noise=torch.stack(xis)))
    assert torch.equal(keyed, sample(rowwise, (3, 4, 5), plan=plan, noise=dict(enumerate(xis))))


def test_recorded_noise_that_is_missing_or_wrong():
    plan = make_plan("ddpm", vp_path(4))
    xis = recorded(plan, (3, 4), 9)
    with pytest.raises(ValueError, match=r"noise: got none for draw 2"):
        sample(rowwise, (3, 4), plan=plan, noise=xis[:2])
    with pytest.raises(ValueError, match=r"noise: draw 1 has shape \(3, 5\)"):
        sample(rowwise, (3, 4), plan=plan, noise=[xis[0], torch.zeros(3, 5), *xis[2:]])
    with pytest.raises(TypeError, match="noise: draw 1 is torch.int64"):
        sample(rowwise, (3, 4), plan=plan, noise=[xis[0], torch.zeros(3, 4, dtype=torch.int64), *xis[2:]])
    deterministic = make_plan("euler", vp_path(4))
    sample(rowwise, (3, 4), plan=deterministic, noise=xis[:1])  # the start is the only draw


def test_start_at_a_step_noises_the_data_to_its_level():
    path, data = vp_path(10), torch.randn(3, 4, generator=torch.Generator().manual_seed(0))
    xi = noise.normal_like(data, noise.keys(1, 3))
    noised = path.alpha[6] * data.double() + path.sigma[6] * xi.double()
    want = sample(rowwise, noised.float(), path=path[6:], solver="dpmpp-2m")
    for start in (6, 0.4):
        got = sample(rowwise, data, path=path, solver="dpmpp-2m", start=start, seed=1)
        torch.testing.assert_close(got, want, rtol=0, atol=1e-6)
    assert len(sample(rowwise, data, path=path, start=1.0, seed=1, return_trajectory=True).states) == 11


def test_given_state_is_not_written():
    path = vp_path(6)
    x = torch.randn(3, 4, generator=torch.Generator().manual_seed(0))
    before = x.clone()
    out = sample(rowwise, x, path=path)
    assert torch.equal(x, before)
    xi0 = sample(rowwise, (3, 4), path=path, noise=[x / path.sigma[0]])
    torch.testing.assert_close(out, xi0, rtol=1e-5, atol=1e-6)


def test_inversion_returns_to_the_data_it_came_from():
    """DDIM inversion of the exact network, then DDIM: first order, so twice the steps halve the way back's error."""
    m, errors = GaussianMixture.ring(std=0.3), []
    data = m.sample(16, seed=1)
    for steps in (100, 200):
        path = vp_path(steps, -2, 3, final=False)
        noised = float(path.alpha[-1]) * data
        state = sample(m, noised, path=path.reversed(), solver="ddim-inverse")
        errors.append(float((sample(m, state, path=path, solver="ddim") - noised).abs().max()))
    assert errors[1] < 0.6 * errors[0] < 0.06


def test_trajectory():
    plan = make_plan("dpmpp-2m", vp_path(5))
    seen = []
    x, states = sample(
        rowwise, (2, 3), plan=plan, seed=0, return_trajectory=True, callback=lambda info: seen.append(info.x.clone())
    )
    assert states.shape == (6, 2, 3)
    assert torch.equal(states[1:], torch.stack(seen))
    assert torch.equal(states[-1], x)
    start = float(vp_path(5).sigma[0]) * noise.normal_like(x, noise.keys(0, 2)).double()
    torch.testing.assert_close(states[0], start.float(), rtol=2e-7, atol=0)


def test_callback_sees_where_the_run_is():
    plan, seen = make_plan("dpmpp-2m", vp_path(4)), []
    sample(rowwise, (2, 3), plan=plan, seed=0, callback=seen.append)
    assert [info.call for info in seen] == [0, 1, 2, 3]
    assert [info.step for info in seen] == list(plan.step_of)
    assert [info.t for info in seen] == plan.t.tolist()
    assert {(info.calls, info.steps) for info in seen} == {(4, 4)}
    assert all(info.denoised is None for info in seen)


def test_callback_sees_the_denoised_data():
    """The last call of a path that ends at sigma = 0 puts the denoised data into the state."""
    seen = []
    m = GaussianMixture.ring()
    x = sample(
        m,
        (5, 2),
        path=vp_path(6),
        solver="dpmpp-1",
        seed=0,
        denoised=True,
        callback=lambda i: seen.append(i.denoised.clone()),
    )
    torch.testing.assert_close(seen[-1], x, rtol=0, atol=1e-6)
    assert not torch.equal(seen[0], seen[1])


@pytest.mark.parametrize("error", [StopSampling, StopSampling("enough")])
def test_callback_stops_the_run(error):
    plan, calls = make_plan("dpmpp-2m", vp_path(6)), []

    def callback(info):
        calls.append(info.call)
        if info.call == 2:
            raise error

    x, states = sample(rowwise, (2, 3), plan=plan, seed=0, callback=callback, return_trajectory=True)
    whole = sample(rowwise, (2, 3), plan=plan, seed=0, return_trajectory=True).states
    assert calls == [0, 1, 2]
    assert torch.equal(states, whole[:4])
    assert torch.equal(x, whole[3])


def test_callback_may_change_the_state():
    """The network of the next call sees it."""
    plan, asked = make_plan("euler", vp_path(3)), []

    def model(x, t):
        asked.append(x.clone())
        return rowwise(x, t)

    sample(model, (2, 3), plan=plan, seed=0, callback=lambda info: info.x.zero_())
    assert not asked[1].any()


def test_an_error_of_the_network_is_its_own():
    def model(x, t):
        raise StopIteration("out of data")

    with pytest.raises(StopIteration, match="out of data"):
        sample(model, (2, 3), path=vp_path(3), seed=0)


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_numbers_that_are_not_finite(value):
    def model(x, t):
        return x + (value if float(t[0]) < 0.5 else 0)

    with pytest.raises(FloatingPointError, match="network returned NaN or infinity"):
        sample(model, (2, 3), path=vp_path(4), seed=0)
    assert not sample(model, (2, 3), path=vp_path(4), seed=0, check=False).isfinite().any()


def test_nan_survives_the_limits():
    with pytest.raises(FloatingPointError):
        sample(lambda x, t: x * math.nan, (2, 3), path=vp_path(4), seed=0, clip=1.0)


class _Sizes(TorchDispatchMode):
    """Bytes of every storage that an op makes."""

    def __init__(self):
        super().__init__()
        self.made = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        known = {x.untyped_storage().data_ptr() for x in _tensors([args, kwargs or {}])}
        out = func(*args, **(kwargs or {}))
        for x in _tensors([out]):
            if x.untyped_storage().data_ptr() not in known:
                self.made.append(x.untyped_storage().nbytes())
        return out


def _tensors(value):
    if isinstance(value, torch.Tensor):
        yield value
    elif isinstance(value, dict):
        yield from _tensors(list(value.values()))
    elif isinstance(value, (list, tuple)):
        for part in value:
            yield from _tensors(part)


@pytest.mark.parametrize("solver", SOLVERS)
@pytest.mark.parametrize("guidance", [None, 2.0])
def test_a_step_allocates_nothing_of_the_size_of_the_state(solver, guidance):
    """Neither through the dispatcher nor, on the compiled backend, below it (as the profiler sees the allocator)."""
    plan = make_plan(solver, vp_path(8), guidance=guidance).with_denoised()
    x = torch.zeros(2, 64, 64)
    out = torch.ones_like(x) if guidance is None else (torch.ones_like(x), torch.zeros_like(x))
    size = x.numel() * x.element_size()
    with torch.inference_mode():
        run = PlanRun(plan, x, key=noise.keys(0, 2))
        with _Sizes() as sizes:
            drive(run, lambda x, t: out)
        assert max(sizes.made, default=0) < size
        run = PlanRun(plan, x, key=noise.keys(0, 2))
        with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU], profile_memory=True) as profile:
            drive(run, lambda x, t: out)
    if _native():
        largest = max((event.self_cpu_memory_usage for event in profile.events()), default=0)
        assert largest < size


def test_the_bank_is_written_in_place():
    plan = make_plan("dpmpp-3m", vp_path(8))
    with torch.inference_mode():
        run = PlanRun(plan, torch.zeros(2, 8), key=noise.keys(0, 2))
        before = [x.data_ptr() for x in run._slots]
        drive(run, rowwise)
        assert [x.data_ptr() for x in run._slots] == before
        assert len(before) == 1 + 2  # x and a history of two: what the order needs, no more


def test_outputs_of_the_network_are_let_go():
    """At most the output being made is alive: the bank, not a list of outputs, remembers."""
    import gc
    import weakref

    alive = weakref.WeakSet()
    counts = []

    def model(x, t):
        gc.collect()
        counts.append(len(alive))
        out = rowwise(x, t)
        alive.add(out)
        return out

    sample(model, (2, 8), path=vp_path(6), seed=0)
    assert counts == [0] * 6


def _native() -> bool:
    from fastsample import info

    return info.facts()["ops"]["update"]["cpu"]["active"] == "native"


def test_result_is_an_ordinary_tensor():
    w = torch.ones(3, requires_grad=True)
    x = sample(rowwise, (2, 3), path=vp_path(3), seed=0)
    assert not x.is_inference()
    (w * x).sum().backward()
    assert torch.equal(w.grad, x.sum(0))


@pytest.mark.parametrize("solver", ["ddim", "dpmpp-2m", "ddpm"])
def test_gradients_through_the_run(solver):
    """Against central differences in float64, for the start and for a weight of the network."""
    plan = make_plan(solver, vp_path(4))

    def run(x, w):
        out = sample(lambda x, t: torch.tanh(w * x), x, plan=plan, seed=0, grad=True)
        assert out.requires_grad
        return out

    x = torch.randn(2, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(0)).requires_grad_()
    w = torch.tensor(0.7, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(run, (x, w))


def test_gradients_change_no_value():
    plan = make_plan("sde-dpmpp-2m", vp_path(6))
    plain = sample(rowwise, (2, 3), plan=plan, seed=0, return_trajectory=True)
    with_grad = sample(rowwise, (2, 3), plan=plan, seed=0, return_trajectory=True, grad=True)
    assert torch.equal(plain.states, with_grad.states)


def test_guidance_of_a_model_that_returns_a_pair():
    pair = sample(lambda x, t: (x * 0.5, x * 0.25), (2, 3), path=vp_path(5), seed=0, guidance=3.0)
    mixed = sample(lambda x, t: x * (3.0 * 0.5 - 2.0 * 0.25), (2, 3), path=vp_path(5), seed=0)
    torch.testing.assert_close(pair, mixed, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("one_batch", [True, False])
def test_guidance_by_conditions(one_batch):
    calls = []

    def model(x, t, cond):
        calls.append(len(x))
        assert len(t) == len(x) == len(cond["a"])
        return x * cond["a"][:, None]

    network = Network(model, one_batch=one_batch)
    a, b = torch.tensor([0.1, 0.2]), torch.tensor([0.3, 0.4])
    got = sample(network, (2, 3), path=vp_path(5), seed=0, guidance=3.0, cond={"a": a}, uncond={"a": b})
    want = sample(lambda x, t: x * (3 * a - 2 * b)[:, None], (2, 3), path=vp_path(5), seed=0)
    torch.testing.assert_close(got, want, rtol=1e-5, atol=1e-6)
    assert calls == ([4] * 5 if one_batch else [2] * 10)


def test_guidance_per_call_and_the_null_class():
    def model(x, t, label):
        return x * label[:, None] * 0.1

    network = Network(model, classes=3, null_class=3)
    label, weights = torch.tensor([0, 2]), [1.0, 2.0, 0.0]
    got = sample(network, (2, 4), path=vp_path(3), seed=0, guidance=weights, cond=label)
    it = iter(weights)

    def mixed(x, t):
        w = next(it)
        return x * (w * label + (1 - w) * 3)[:, None] * 0.1

    torch.testing.assert_close(got, sample(mixed, (2, 4), path=vp_path(3), seed=0), rtol=1e-5, atol=1e-6)
    free = sample(network, (2, 4), path=vp_path(3), seed=0)
    torch.testing.assert_close(free, sample(lambda x, t: x * 0.3, (2, 4), path=vp_path(3), seed=0))


def test_dtypes_of_state_and_network():
    seen = []

    def model(x, t):
        seen.append((x.dtype, t.dtype))
        return x * 0.5

    plan = make_plan("dpmpp-2m", vp_path(4))
    x = sample(Network(model, dtype=torch.bfloat16), (2, 3), plan=plan, seed=0)
    assert x.dtype == torch.float32
    assert set(seen) == {(torch.bfloat16, torch.float32)}
    seen.clear()
    x = sample(model, (2, 3), plan=plan, seed=0, dtype=torch.float64)
    assert x.dtype == torch.float64
    assert set(seen) == {(torch.float64, torch.float64)}
    seen.clear()
    scaled = make_plan("euler", vp_path(4), input_scaling="edm")
    sample(Network(model, input_scaling="edm", dtype=torch.float16), (2, 3), plan=scaled, seed=0)
    assert set(seen) == {(torch.float16, torch.float32)}


def test_channels_last_in_channels_last_out():
    plan = make_plan("ddpm", vp_path(4))
    x = torch.randn(2, 3, 4, 5, generator=torch.Generator().manual_seed(0))
    dense = sample(rowwise, x, plan=plan, seed=0)
    other = sample(rowwise, x.to(memory_format=torch.channels_last), plan=plan, seed=0)
    assert other.is_contiguous(memory_format=torch.channels_last)
    assert torch.equal(dense, other)


def test_variance_preserving_states_are_not_scaled_twice():
    """A network fed the normalised state is fed the state itself on a VP path: no slot for a copy."""
    network = GaussianMixture.ring().network()
    assert [s.name for s in plan_for(network, path=vp_path(4), solver="euler").slots] == ["x"]
    assert [s.name for s in plan_for(network, path=vp_path(4).ve(), solver="euler").slots] == ["x", "input"]


@pytest.mark.parametrize("prediction", ["eps", "x0", "v"])
def test_variance_preserving_and_exploding_paths_agree(prediction):
    m = GaussianMixture.ring()
    network, path = m.network(prediction), vp_path(12)
    vp = sample(network, (9, 2), path=path, seed=0, dtype=torch.float64)
    xi = noise.normal_like(torch.empty(9, 2, dtype=torch.float64), noise.keys(0, 9))
    ve = sample(network, xi * path.rho[0], path=path.ve(), dtype=torch.float64)
    torch.testing.assert_close(vp, ve, rtol=1e-9, atol=1e-9)


def test_progress_is_a_bar_on_stderr(capsys):
    sample(rowwise, (2, 3), path=vp_path(3), seed=0, progress=True)
    assert capsys.readouterr().err == ""  # no terminal
    sample(rowwise, (2, 3), path=vp_path(3), seed=0, progress="always")
    got = capsys.readouterr()
    assert "3/3" in got.err
    assert got.out == ""


def test_the_mixture_is_sampled_by_its_own_law():
    """DDPM with 200 steps and the exact network: chi-square over 8 modes (7 degrees of freedom: 42 is exceeded with
    probability 5e-7), and the mean squared distance to the nearest mode within 5 standard errors plus 3 % for steps.
    """
    m, n = GaussianMixture.ring(std=0.1), 8000
    x = sample(m, n, path=vp_path(200), solver="ddpm", seed=0).double()
    counts = m.responsibilities(x).argmax(1).bincount(minlength=8).double()
    assert float(((counts - n / 8) ** 2 / (n / 8)).sum()) < 42
    nearest = ((x[:, None] - m.means) ** 2).sum(-1).min(1).values
    assert abs(float(nearest.mean()) / (2 * 0.1**2) - 1) < 5 / math.sqrt(n) + 0.03


@pytest.mark.parametrize(
    ("arguments", "error", "words"),
    [
        ({"x": 4}, ValueError, "does not say its shape"),
        ({"x": (4,)}, ValueError, r"x: got shape \(4,\)"),
        ({"x": "no"}, TypeError, "x: got str"),
        ({"x": torch.zeros(2, 3, dtype=torch.int64)}, TypeError, "x: got torch.int64"),
        ({"dtype": torch.int32}, TypeError, "dtype: got torch.int32"),
        ({"solver": "dpmpp2m"}, ValueError, "solver: got 'dpmpp2m'"),
        ({"start": 2}, ValueError, "start: got a shape"),
        ({"x": torch.zeros(2, 3), "start": 9}, ValueError, r"start: got step 9, allowed are 0..4"),
        ({"x": torch.zeros(2, 3), "start": 0.0}, ValueError, "start: got the fraction"),
        ({"x": torch.zeros(2, 3), "start": True}, TypeError, "start: got bool"),
        ({"steps": 5}, ValueError, "path: got steps"),
        ({"plan": make_plan("euler", vp_path(5))}, ValueError, "path: got a plan too"),
        ({"path": None, "plan": make_plan("euler", vp_path(5)), "eta": 1.0}, ValueError, "eta: got a plan too"),
        ({"sample_ids": [1]}, ValueError, r"sample_ids: got 1, need 2"),
        ({"seed": -1}, ValueError, "seed: got -1"),
        ({"cond": torch.zeros(3)}, ValueError, r"cond: got shape \(3,\), need 2"),
        ({"uncond": torch.zeros(2)}, ValueError, "uncond: got it without guidance"),
        ({"guidance": 2.0, "uncond": torch.zeros(2)}, ValueError, "cond: got none"),
        ({"progress": "yes"}, ValueError, "progress: got 'yes'"),
        ({"callback": 3}, TypeError, "callback: got int"),
        ({"model": 3}, TypeError, "model: got int"),
        ({"model": lambda x, t: x[:, :1]}, ValueError, r"model: returned shape \(2, 1\), need that of x, \(2, 3\)"),
        ({"model": lambda x, t: None}, TypeError, "model: returned NoneType"),
        ({"model": lambda x, t: x.int()}, TypeError, "model: returned torch.int32"),
        ({"guidance": 2.0}, TypeError, "model: returned Tensor, need a pair"),
    ],
)
def test_bad_arguments(arguments, error, words):
    model, x = arguments.pop("model", rowwise), arguments.pop("x", (2, 3))
    with pytest.raises(error, match=words):
        sample(model, x, **{"path": vp_path(5), "seed": 0, **arguments})


def test_a_plan_that_tells_another_time_is_refused():
    plan = fastsample.make_plan("ddim", fastsample.make_path("vp-linear", "log-snr", 3), prediction="v")
    with pytest.raises(ValueError, match="plan: was made with time='t', but the model says 'log-snr'"):
        fastsample.sample(GaussianMixture.ring(), 2, plan=plan)
    network = fastsample.Network(lambda x, t: x, prediction="v", input_scaling="edm")
    with pytest.raises(ValueError, match="plan: was made with input_scaling='none', but the model says 'edm'"):
        fastsample.sample(network, (2, 2), plan=plan)


def test_a_plan_of_another_prediction():
    with pytest.raises(ValueError, match="plan: was made with prediction='eps', but the model says 'v'"):
        sample(Network(rowwise, "v"), (2, 3), plan=make_plan("euler", vp_path(3)), seed=0)


@pytest.mark.parametrize("schedule", list(SCHEDULES))
def test_every_schedule_has_a_usual_grid(schedule):
    """Also one whose log-SNR is infinite at its ends; the last state is clean data."""
    prediction = "flow" if schedule == "flow" else "eps"
    plan = plan_for(Network(rowwise, prediction), schedule=schedule, steps=7)
    assert plan.nfe == plan.path.steps == 7
    assert plan.path.sigma[-1] == 0
    sample(lambda x, t: torch.tanh(x), (2, 3), schedule=schedule, prediction=prediction, steps=7, seed=0)


def test_empty_batch():
    assert sample(rowwise, (0, 3), path=vp_path(3), seed=0).shape == (0, 3)


def test_procedures_speak_the_same_protocol():
    """A sampler that is no plan: any object with asks(), state, info() and ends_step()."""

    class Halve:
        calls = None

        def __init__(self):
            self.state = torch.ones(2, 3)

        def asks(self):
            while float(self.state.max()) > 0.1:  # how long depends on the data
                out = yield self.state, torch.zeros(2)
                self.state = self.state - out

        def info(self, call):
            raise NotImplementedError

        def ends_step(self, call):
            return True

    run, calls = Halve(), []
    drive(run, lambda x, t: x / 2, [calls.append])
    assert calls == [0, 1, 2, 3]
    assert float(run.state.max()) == 1 / 16


def test_import_is_light():
    """``import fastsample`` neither loads torch nor compiles."""
    code = "import sys, fastsample; assert 'torch' not in sys.modules and 'numpy' not in sys.modules; dir(fastsample)"
    subprocess.run([sys.executable, "-c", code], check=True)
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        fastsample.nothing  # noqa: B018


def test_public_names_exist():
    for name in fastsample.__all__:
        assert getattr(fastsample, name) is not None
    assert np.array_equal(sorted(fastsample.__all__), sorted(set(fastsample.__all__)))


def test_stats_are_filled_at_the_end():
    stats: dict = {}
    sample(Network(rowwise, "eps"), (2, 3), solver="heun", steps=3, seed=0, stats=stats)
    assert stats == {"solver": "heun", "nfe": 5}

    def stop(info):
        if info.call == 1:
            raise StopSampling

    sample(Network(rowwise, "eps"), (2, 3), solver="ddim", steps=5, seed=0, callback=stop, stats=stats)
    assert stats["nfe"] == 2


def test_an_entry_says_what_path_is_usual_and_what_steps_are_called(monkeypatch):
    from fastsample.solvers import registry

    entry = dataclasses.replace(
        registry.find("euler"), usual={"steps": 7, "grid": "uniform", "schedule": "cosine"}, steps_called="segments"
    )
    monkeypatch.setitem(registry._solvers, "euler", entry)
    plan = plan_for(Network(rowwise, "eps"), solver="euler")
    assert plan.path == make_path("cosine", "uniform", 7)
    assert plan_for(Network(rowwise, "eps"), solver="euler", segments=3).nfe == 3
    with pytest.raises(ValueError, match="segments: got steps too"):
        plan_for(Network(rowwise, "eps"), solver="euler", segments=3, steps=3)


def test_trajectory_of_a_run_with_a_denoising_call_at_its_end():
    path = make_path("vp-linear", "log-snr", 4)
    x, states = sample(rowwise, (2, 3), solver="ddim", path=path, denoise=True, seed=0, return_trajectory=True)
    assert len(states) == 6
    assert torch.equal(states[-1], x)


def test_trajectory_of_a_plan_whose_calls_take_many_steps():
    path = make_path("ddpm-linear", "trailing", 100)
    network = GaussianMixture.ring().network("eps")
    options = {"solver": "poisson-midpoint-shared", "path": path, "window": 10}
    x, states = sample(network, 2, seed=0, return_trajectory=True, windows=[1] * 50 + [10] * 5, **options)
    assert len(states) == 56
    assert torch.equal(states[-1], x)


@pytest.mark.parametrize("solver", ["sde-dpmpp-2s", "sde-dpmpp-3s", "dpmpp-sde"])
@pytest.mark.parametrize("grad", [False, True])
def test_a_function_of_noise_is_asked_once_for_each_draw(solver, grad):
    """Rows that use the noise of the call before again get the same tensor, also of a function with its own stream."""
    path = make_path("edm", "karras", steps=6)
    plan = make_plan(solver, path, input_scaling="edm", prediction="edm", time="log-sigma", anchored=False)
    generator, buffer, asked, kept = torch.Generator().manual_seed(0), torch.empty(3, 4), [], {}

    def stream(draw):
        asked.append(draw)
        kept[draw] = torch.randn(3, 4, generator=generator)
        return buffer.copy_(kept[draw])  # the same memory for every draw

    def net(x, t):
        return torch.tanh(x)

    got = sample(net, torch.zeros(3, 4), plan=plan, noise=stream, grad=grad)
    assert len(asked) == len(set(asked)) and len(asked) > 3
    assert torch.equal(got, sample(net, torch.zeros(3, 4), plan=plan, noise=kept, grad=grad))


@pytest.mark.parametrize("size", [7, 1 << 18])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64])
@pytest.mark.parametrize("bad", [None, math.nan, math.inf, -math.inf])
def test_check_finite(size, dtype, bad):
    x = torch.full((2, size), torch.finfo(dtype).max if dtype is not torch.float64 else 1e300, dtype=dtype)
    if bad is None:
        return check_finite(x)
    x[1, size // 2] = bad
    with pytest.raises(FloatingPointError):
        check_finite(x)
