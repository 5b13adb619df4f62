"""Reverse transition kernels: recorded runs, starts, predictions, calls, inputs, guidance."""

from __future__ import annotations

import warnings

import numpy as np
import pytest
import torch

from fastsample import Network, sample
from fastsample.loop import drive
from fastsample.path import Path
from fastsample.procedures import kernel_target
from fastsample.solvers.express import Network as Predicts

from .kernels import SOLVERS, TIMES, Recorded, begin, network_of, no_energy, one_run, ou, recorded_mixture

TOL = 1e-12
ESTIMATORS = {"exact": "energy", "trap": "trapezoid", "simpson": "simpson"}


def width_of(case):
    """The width that the recorded step sizes were made with."""
    return float(recorded_mixture().std.min())


@pytest.mark.parametrize("grid", ["ou", "vplinear"])
@pytest.mark.parametrize("estimator", ESTIMATORS)
def test_recorded_mala(grid, estimator):
    """States, log-ratios and decisions of every inner move."""
    case = Recorded(f"rtkmala_{grid}_n4_S4_{estimator}")
    d, mixture = case.data, recorded_mixture()
    fn, energy = network_of(mixture, case.path)
    run = begin(
        "rtk-mala",
        case.path,
        case.x,
        recorded=case.noise,
        energy=energy,
        inner=case.inner,
        init="prior",
        theta=1.0,
        width=width_of(case),
        estimator=ESTIMATORS[estimator],
        uniforms=d["u"],
    )
    calls = 2 if estimator == "simpson" else 1
    states, inner = [run.state.clone()], []

    def look(call):
        k, n = divmod(call, 1 + calls * case.inner)
        if n and n % calls == 0:
            inner.append((run.state.clone(), run.chain[k].clone()))
        if run.ends_step(call):
            states.append(run.state.clone())

    made = drive(run, fn, [look])
    assert made == run.calls == case.segments * (1 + calls * case.inner)
    np.testing.assert_allclose(torch.stack(states), d["states"], rtol=0, atol=TOL)
    np.testing.assert_allclose(run.stats()["step_sizes"], d["tau"], rtol=TOL)
    chains = torch.stack([chain for _, chain in inner]).reshape(case.segments, case.inner, -1, 5)
    np.testing.assert_allclose(torch.stack([z for z, _ in inner]).reshape(d["inner"].shape), d["inner"], atol=TOL)
    np.testing.assert_allclose(chains[..., 2], d["log_accept"], rtol=0, atol=TOL)
    assert np.array_equal(chains[..., 3].numpy().astype(bool), d["accepted"])
    assert run.stats()["acceptance"] == pytest.approx(d["accepted"].mean(), abs=1e-15)


@pytest.mark.parametrize("grid", ["ou", "vplinear"])
@pytest.mark.parametrize("theta", [0.8, 1.5])
def test_recorded_uld(grid, theta):
    case = Recorded(f"rtkuld_{grid}_n4_S4_th{theta}")
    d = case.data
    fn, _ = network_of(recorded_mixture(), case.path)
    options = {"inner": case.inner, "init": "prior", "theta": theta, "width": width_of(case)}
    run = begin("rtk-uld", case.path, case.x, recorded=case.noise, **options)
    states, inner = [run.state.clone()], []

    def look(call):
        inner.append(run.state.clone())
        if run.ends_step(call):
            states.append(inner[-1])

    assert drive(run, fn, [look]) == case.segments * case.inner
    np.testing.assert_allclose(torch.stack(states), d["states"], rtol=0, atol=TOL)
    np.testing.assert_allclose(torch.stack(inner).reshape(d["inner_z"].shape), d["inner_z"], rtol=0, atol=TOL)
    np.testing.assert_allclose(run.stats()["friction"], d["gamma"], rtol=TOL)
    np.testing.assert_allclose(run.stats()["step_sizes"], d["tau"], rtol=TOL)


@pytest.mark.parametrize("law", kernel_target.STARTS)
def test_starts(law):
    """Mean and variance of the first chain: recorded noise in, state out."""
    path, mixture = ou(TIMES), recorded_mixture()
    exact, _ = network_of(mixture, path)
    segment = kernel_target.segments(path, Predicts("score", levels=path.levels()), 0.1)[0]
    x = torch.randn(5, 4, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    xi = torch.randn(5, 4, generator=torch.Generator().manual_seed(2), dtype=torch.float64)
    run = begin("rtk-ula", path, x, recorded=lambda draw: xi, init=law, width=0.1, inner=1)
    asks, told = run.asks(), []
    point, t = next(asks)
    score = exact(x, torch.tensor([TIMES[0]]))
    if law in ("posterior", "gaussian_rtk"):
        assert torch.equal(point, x)
        assert float(t[0]) == TIMES[0]
        point, t = asks.send(score)
    assert float(t[0]) == TIMES[1]
    told.append(point.clone())
    r, v = np.exp(-1.0), -np.expm1(-2.0)
    bound = 1.0 / (0.01 * np.exp(-2.0) - np.expm1(-2.0))
    assert (segment.r, segment.v, segment.bound) == pytest.approx((r, v, bound), rel=1e-14)
    mean, variance = {
        "prior": (x / r, v / r**2),
        "posterior": ((x + v * score) / r, v * -np.expm1(-2.0) / -np.expm1(-4.0)),
        "gaussian_rtk": (x / r + v / r**2 * score, v / r**2),
        "paper_mala": (r * x / (v * (2 * bound + r**2 / v)), 1.0 / (2 * bound + r**2 / v)),
        "paper_uld": (0 * x, v / r**2),
    }[law]
    torch.testing.assert_close(told[0], mean + np.sqrt(variance) * xi, rtol=0, atol=TOL)


def test_the_posterior_start_has_the_mean_of_the_kernel():
    """Tweedie's mean against the exact mixture of the kernel, to rounding."""
    from .kernels import ExactKernel

    path, mixture = ou(TIMES), recorded_mixture()
    x = torch.randn(7, 4, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    start = kernel_target.segments(path, Predicts("score", levels=path.levels()), 0.0)[0].begin("posterior")
    weights, means, _ = ExactKernel(mixture, path[0], path[1]).at(x.numpy())
    mean = start["x"] * x + start["e"] * mixture.score(x, path[0].alpha, path[0].sigma)
    np.testing.assert_allclose(mean, (weights[..., None] * means).sum(1), rtol=0, atol=TOL)


@pytest.mark.parametrize("solver", SOLVERS)
@pytest.mark.parametrize("prediction", ["eps", "x0", "v", "flow", "edm"])
def test_predictions(solver, prediction):
    """Every kind of network gives the run of the score network."""
    options = {"init": "gaussian_rtk", "width": 0.3}
    path = ou(TIMES)
    rates = np.stack([-path.sigma, path.alpha], axis=1) * 0 + [-1.0, 1.0]  # u = eps - x0
    path = Path(path.alpha, path.sigma, path.t, rates)
    if solver == "rtk-mala":
        options |= {"estimator": "simpson"}
    plain, _ = one_run(solver, path, **options)
    other, _ = one_run(solver, path, prediction, **options)
    torch.testing.assert_close(other.state, plain.state, rtol=0, atol=1e-11)


CALLS = [  # per run of 2 segments with 3 moves each
    ("rtk-mala", {"init": "prior", "estimator": "energy"}, 2 * 4),
    ("rtk-mala", {"init": "prior", "estimator": "trapezoid"}, 2 * 4),
    ("rtk-mala", {"init": "prior", "estimator": "taylor1"}, 2 * 4),
    ("rtk-mala", {"init": "prior", "estimator": "simpson"}, 2 * 7),
    ("rtk-mala", {"init": "prior", "estimator": "line(1)"}, 2 * 7),
    ("rtk-mala", {"init": "prior", "estimator": "line(3)"}, 2 * 13),
    ("rtk-mala", {"init": "posterior"}, 1 + 2 * 4),
    ("rtk-mala", {"init": "gaussian_rtk", "network": {"denoise": True}}, 1 + 2 * 4),
    ("rtk-uld", {"init": "paper_uld"}, 2 * 3),
    ("rtk-ula", {"init": "posterior"}, 2 * 4),
    ("rtk-uld", {"init": "paper_mala", "network": {"denoise": True}}, 2 * 3 + 1),
]


@pytest.mark.parametrize(("solver", "options", "calls"), CALLS, ids=lambda v: v if isinstance(v, str) else "")
def test_calls(solver, options, calls):
    """How many, and all of a segment at its cleaner level."""
    run, asked = one_run(solver, inner=3, **options)
    assert len(asked) == run.calls == run.told == run.stats()["nfe"] == calls
    times = [t for _, t in asked]
    extra = [TIMES[0]] if "rtk-mala" in solver and run.law in ("posterior", "gaussian_rtk") else []
    assert times[: len(extra)] == extra
    assert set(times) <= set(TIMES) if run.law in ("posterior", "gaussian_rtk") else {*TIMES[1:]}
    assert times == sorted(times, reverse=True)
    assert all(t == info.t for t, info in zip(times, map(run.info, range(calls)), strict=True))
    assert run.ends_step(calls - 1)


def test_the_points_between():
    """simpson asks in the middle, line(3) at the nodes of Gauss and Legendre."""
    for name, nodes in (("simpson", [0.5]), ("line(3)", [0.5 - 0.15**0.5, 0.5, 0.5 + 0.15**0.5])):
        _, asked = one_run("rtk-mala", inner=1, init="prior", estimator=name)
        points = [x for x, _ in asked[: 2 + len(nodes)]]
        for point, node in zip(points[1:-1], nodes, strict=True):
            torch.testing.assert_close(point, points[0] + node * (points[-1] - points[0]), rtol=0, atol=TOL)


@pytest.mark.parametrize("solver", SOLVERS)
def test_denoised_end_and_previews(solver):
    path, mixture = ou(TIMES), recorded_mixture()
    plain, _ = one_run(solver)
    last, _ = one_run(solver, network={"denoise": True, "denoised": True})
    expected = mixture.x0(plain.state, path[-1].alpha, path[-1].sigma)
    torch.testing.assert_close(last.state, expected, rtol=0, atol=TOL)
    assert last.info(0).denoised.isfinite().all()
    if solver != "rtk-mala":  # the last call of MALA is at a proposal
        torch.testing.assert_close(last.info(last.calls - 1).denoised, expected, rtol=0, atol=TOL)


@pytest.mark.parametrize("solver", SOLVERS)
def test_pure_noise_tells_nothing(solver):
    """A segment from alpha = 0 is a plain chain on p_s: the same whatever the condition is."""
    path = Path([0.0, 0.6, 0.9], [1.0, 0.4, 0.1], [1.0, 0.4, 0.1])
    for law in kernel_target.STARTS:
        run, asked = one_run(solver, path, init=law)
        assert asked[0][1] == 0.4  # not asked at alpha = 0
        segment = run.segments[0]
        assert (segment.r, segment.v, segment.pull) == (0.0, 1.0, 0.0)
        assert segment.begin(law) == {"xi0": pytest.approx(np.hypot(0.6, 0.4))}
        assert kernel_target.mix((1.0, segment.force), (-1.0, segment.grad)) == pytest.approx(
            {"e": 0.0, "z": 0.0, "x": 0.0}, abs=0
        )


@pytest.mark.parametrize("solver", SOLVERS)
def test_scaled_and_narrow_inputs(solver):
    """A network that is fed the scaled state, and one in bfloat16: the tensor it sees is written by the same pass."""
    path = ou(TIMES).ve()
    mixture = recorded_mixture()
    plain, _ = one_run(solver, path, "eps")
    at = {float(level.t): level for level in path.levels()}

    def scaled(x, t):
        level = at[float(t[0])]
        return mixture.eps(x * np.hypot(1.0, level.sigma), 1.0, level.sigma)

    fed, asked = one_run(solver, path, "eps", fn=scaled, network={"input_scaling": "vp"}, **no_energy(solver))
    plain, _ = one_run(solver, path, "eps", **no_energy(solver))
    torch.testing.assert_close(fed.state, plain.state, rtol=0, atol=1e-10)
    assert asked[-1][0].data_ptr() != fed.state.data_ptr()

    seen = []

    def small(x, t):
        seen.append(x.dtype)
        return torch.tanh(x) * 0.5

    out = {}
    network = Network(small, "eps", time="sigma", dtype=torch.bfloat16)
    x = sample(network, (64, 3), solver=solver, steps=3, inner=2, width=0.3, seed=0, stats=out)
    assert set(seen) == {torch.bfloat16}
    assert x.dtype == torch.float32
    assert solver != "rtk-mala" or 0.2 < out["acceptance"] <= 1.0


@pytest.mark.parametrize("solver", SOLVERS)
def test_guidance(solver):
    """Branches that agree give the unguided run; the accept step warns that it corrects nothing."""
    mixture, path = recorded_mixture(), ou(TIMES)
    exact, _ = network_of(mixture, path)
    plain, _ = one_run(solver, fn=exact, **no_energy(solver))
    with warnings.catch_warnings(record=True) as seen:
        warnings.simplefilter("always")
        both, _ = one_run(
            solver,
            fn=lambda x, t: (exact(x, t), exact(x, t)),
            network={"guidance": 3.0, "denoised": True},
            **no_energy(solver),
        )
    assert both.guided
    torch.testing.assert_close(both.state, plain.state, rtol=0, atol=1e-11)
    assert [w.category for w in seen] == ([UserWarning] if solver == "rtk-mala" else [])
    shift = torch.tensor([0.3, 0.0, 0.0, 0.0], dtype=torch.float64)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        options = {"network": {"guidance": 2.0}, **no_energy(solver)}
        mixed, _ = one_run(solver, fn=lambda x, t: (exact(x, t), exact(x, t) - shift), **options)
        by_hand, _ = one_run(solver, fn=lambda x, t: exact(x, t) + shift, **no_energy(solver))
    torch.testing.assert_close(mixed.state, by_hand.state, rtol=0, atol=1e-10)
