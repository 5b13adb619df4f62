"""Plans of two parts at work: packed memory, noise, gradients, backends, refusals."""

from __future__ import annotations

import json

import pytest
import torch

import fastsample
from fastsample import GaussianMixture, Network, PhaseSpace, make_path, make_plan, sample
from fastsample.bank import Bank, halves
from fastsample.cli import main
from fastsample.plan import Plan, output_of, output_term
from fastsample.solvers import names

from .phase_cases import gaussian_law

PSLD = PhaseSpace()
NAMES = names("phase-space")
RING = GaussianMixture.ring()


def plan_of(name, steps=4, **options):
    process = PhaseSpace(**{k: options.pop(k) for k in ("Gamma", "nu") if k in options})
    return make_plan(name, make_path(process, "quadratic", steps), **process.options, **options)


def images(channels=3):
    """A phase-space network of images that is any function at all, for states (B, 2 channels, 4, 5)."""

    def fn(z, t):
        return torch.tanh(z.roll(1, 2) - t.to(z.dtype).reshape(-1, 1, 1, 1)) + 0.1 * z

    return Network(fn, space=PSLD, shape=(channels, 4, 5))


@pytest.mark.parametrize("name", NAMES)
def test_a_run_is_its_rows_in_any_batch(name):
    """Against the reference in float64; the bits of two halves of the batch; the same from JSON."""
    plan = plan_of(name, last="mean")
    whole = sample(images(), 4, plan=plan, seed=3)
    assert whole.shape == (4, 3, 4, 5)
    assert whole.is_contiguous()
    parts = [sample(images(), 2, plan=plan, seed=3, sample_ids=[k, k + 1]) for k in (0, 2)]
    assert torch.equal(torch.cat(parts), whole)
    assert torch.equal(sample(images(), 4, plan=Plan.from_json(plan.to_json()), seed=3), whole)
    with fastsample.use_backend("reference"):
        slow = sample(images(), 4, plan=plan, seed=3)
    torch.testing.assert_close(slow, whole, rtol=2e-4, atol=2e-4 * float(whole.abs().max()))


@pytest.mark.parametrize("name", ["roba", "psld-whitened", "rvv", "sscs"])
def test_gradients_pass_through_a_run(name):
    plan = plan_of(name, 3, Gamma=0.05, nu=4.0, guidance=1.5 if name != "psld-whitened" else None)
    shift = torch.zeros(2, 3, 4, 5, dtype=torch.float64, requires_grad=True)
    pair = name != "psld-whitened"

    def fn(z, t):
        eps = torch.tanh(z) + torch.cat([shift, -shift], 1)
        return (eps, 0.5 * eps) if pair else eps

    z = torch.randn(2, 6, 4, 5, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    made = sample(fn, z, plan=plan, seed=1, grad=True)
    plain = sample(lambda z, t: _detached(fn(z, t)), z, plan=plan, seed=1)
    torch.testing.assert_close(made.detach(), plain, rtol=1e-12, atol=1e-11)
    (grad,) = torch.autograd.grad(made.sum(), shift)
    h = 1e-6
    with torch.no_grad():
        shift += h
        up = sample(fn, z, plan=plan, seed=1).sum()
        shift -= 2 * h
        down = sample(fn, z, plan=plan, seed=1).sum()
    assert float(grad.sum()) == pytest.approx(float(up - down) / (2 * h), rel=1e-5)


def _detached(out):
    return tuple(o.detach() for o in out) if isinstance(out, tuple) else out.detach()


def test_memory():
    """One packed tensor, which the network sees as it is; position and momentum are views; rows write in place."""
    plan, seen = plan_of("rvv", 3), []

    def fn(z, t):
        seen.append((z.data_ptr(), z.shape, z.is_contiguous()))
        return torch.zeros_like(z)

    sample(Network(fn, space=PSLD), (2, 3, 4, 5), plan=plan, seed=0)
    assert len({ptr for ptr, _, _ in seen}) == 1
    assert {(shape, dense) for _, shape, dense in seen} == {((2, 6, 4, 5), True)}
    kicks = [call for call in plan.calls if call.outputs == (1,)]
    assert len(kicks) == 3  # a kick writes the momentum alone

    bank = Bank(plan, torch.empty(2, 3, 4, 5).to(memory_format=torch.channels_last))
    assert bank.asked[0].is_contiguous(memory_format=torch.channels_last)
    assert bank.tensors[1].data_ptr() == bank.asked[0].data_ptr() + 3 * 4
    assert bank.bytes == 2 * 6 * 4 * 5 * 4


def test_start_is_the_prior_and_draws_are_numbered():
    plan = plan_of("rse", 1)
    x, m = torch.randn(2, 3, 2), torch.randn(2, 3, 2)
    first = []
    sample(_watch(first), (3, 2), plan=plan, noise={0: x[0], 1: m[0]} | {0: torch.randn(3, 2), 1: m[0]})
    xi = {0: torch.randn(3, 2), 1: torch.randn(3, 2)}
    sample(_watch(first), (3, 2), plan=plan, noise=xi)
    torch.testing.assert_close(first[-1], torch.cat([xi[0], PSLD.M**0.5 * xi[1]], 1))
    # noise that comes before the first call is part of the start, and costs no draw
    plan = plan_of("roba", 3)
    assert plan.draws == 2 + 2 * 4
    numbers = [tuple(values[[44, 45]]) for values in plan.table]
    assert numbers == [(2, 3), (4, 5), (0, 1), (0, 1)]  # the last two rows have no noise
    assert not plan.table[2:, [37, 38, 41, 42]].any()


def _watch(seen):
    def fn(z, t):
        seen.append(z.clone())
        return torch.zeros_like(z)

    return Network(fn, space=PSLD)


def test_start_from_data_is_the_kernel():
    """Noised data have the mean and the covariance of the kernel at the first level, momentum included."""
    path = make_path(PSLD, "quadratic", 10)[6:]
    plan, seen = make_plan("rse", path, **PSLD.options), []
    data = torch.full((1, 100_000), 2.0, dtype=torch.float64)
    sample(_watch(seen), data, plan=plan, seed=0, start=0)
    x, m = halves(seen[0])
    t, S = float(path.t[0]), PSLD.covariance(float(path.t[0]))
    psi = PSLD.flow(PSLD.b(t))
    # five standard errors of a mean and of a covariance: a false alarm in 3e5 seeds
    for got, mean, var in ((x, 2 * psi[0, 0], S.xx), (m, 2 * psi[1, 0], S.mm)):
        assert abs(float(got.mean()) - mean) < 5 * (var / 1e5) ** 0.5
        assert abs(float(got.var()) - var) < 5 * var * (2 / 1e5) ** 0.5
    both = float(((x - x.mean()) * (m - m.mean())).mean())
    assert abs(both - S.xm) < 5 * (2 * S.xx * S.mm / 1e5) ** 0.5


@pytest.mark.parametrize("name", ["psld-em", "sscs", "noba", "roba", "rbao", "robab"])
def test_samples_have_the_law_of_the_rows(name):
    """256,000 float32 samples, noise made in the kernel, against the mean and the variance that the table gives.

    Five standard errors each: a false alarm in 3e5 seeds for each of the twelve numbers.
    """
    plan = plan_of(name, 20)
    mean, cov = gaussian_law(plan, PSLD, 1.0, 0.5)
    data = GaussianMixture(torch.ones(1, 64), 0.5)
    x = sample(data.phase_space(), 4000, plan=plan, seed=5).double()
    count = x.numel()
    assert abs(float(x.mean()) - mean[0]) < 5 * (cov[0, 0] / count) ** 0.5
    assert abs(float(x.var()) - cov[0, 0]) < 5 * cov[0, 0] * (2 / count) ** 0.5


def test_trajectory_callback_and_preview():
    seen = []
    out = sample(
        RING.phase_space(),
        64,
        solver="roba",
        steps=5,
        seed=0,
        return_trajectory=True,
        denoised=True,
        dtype=torch.float64,
        callback=lambda info: seen.append((info.step, info.x.shape, info.denoised.clone())),
    )
    assert out.states.shape == (7, 64, 2)  # the start, five steps, the step to data
    assert torch.equal(out.states[-1], out.x)
    assert [step for step, _, _ in seen] == [0, 1, 2, 3, 4, 5]
    assert {shape for _, shape, _ in seen} == {(64, 2)}
    # the last preview is the expected data at t = 1e-3; with last="mean" the run ends there
    mean = sample(RING.phase_space(), 64, solver="roba", steps=5, seed=0, dtype=torch.float64, last="mean")
    torch.testing.assert_close(seen[-1][2], mean, rtol=1e-12, atol=1e-12)
    plain = sample(RING.phase_space(), 64, solver="roba", steps=5, seed=0, dtype=torch.float64)
    torch.testing.assert_close(plain, out.x, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_networks_of_low_precision(dtype):
    asked = []

    def fn(z, t):
        asked.append(z.dtype)
        return torch.tanh(z)

    wide = sample(Network(lambda z, t: torch.tanh(z.to(dtype)).float(), space=PSLD), (3, 4), solver="rvv", seed=0)
    low = sample(Network(fn, space=PSLD, dtype=dtype), (3, 4), solver="rvv", seed=0)
    assert set(asked) == {dtype}
    assert low.dtype == torch.float32
    assert torch.equal(low, wide)


def test_score_networks_and_guidance():
    data = RING.phase_space()

    def score(z, t):
        K = torch.tensor(PSLD.K(float(t[0])))
        return -torch.einsum("rs,bsd->brd", K, data.fn(z, t).reshape(-1, 2, 2)).reshape(z.shape)

    for name in ("roba", "psld-whitened", "cvv"):
        eps = sample(data, 16, solver=name, steps=6, seed=1, dtype=torch.float64)
        made = sample(Network(score, "score", space=PSLD), (16, 2), solver=name, steps=6, seed=1, dtype=torch.float64)
        torch.testing.assert_close(made, eps, rtol=1e-8, atol=1e-8)
    pair = Network(lambda z, t: (data.fn(z, t), 0.3 * data.fn(z, t)), space=PSLD)
    one = Network(lambda z, t: (2.0 - 0.3) * data.fn(z, t), space=PSLD)
    guided, plain = (
        sample(net, (16, 2), solver="rvv", steps=6, seed=1, dtype=torch.float64, **more)
        for net, more in ((pair, {"guidance": 2.0}), (one, {}))
    )
    torch.testing.assert_close(guided, plain, rtol=1e-9, atol=1e-9)


def test_networks_of_the_momentum_alone():
    """Gamma = 0 (CLD): a network may return C channels, or 2 C of which the first are not used."""
    cld = PhaseSpace(0.0, 4.0)
    whole = Network(
        lambda z, t: torch.cat([torch.full_like(halves(z)[0], torch.nan), torch.tanh(halves(z)[1])], 1), space=cld
    )
    half = Network(lambda z, t: torch.tanh(halves(z)[1]), space=cld)
    for name in ("roba", "psld-em", "cvv"):
        a, b = (sample(net, (4, 3), solver=name, steps=5, seed=0) for net in (whole, half))
        assert torch.equal(a, b)
    with pytest.raises(ValueError, match=r"model: returned shape \(4, 3\), need that of x, \(4, 6\)"):
        sample(Network(half.fn, space=PSLD), (4, 3), solver="roba", seed=0)


def test_history_is_kept_and_not_overwritten():
    """The output of the call before is a term: its tensor itself, so a network must not write over it."""
    buffer = torch.empty(2, 6)

    def reuses(z, t):
        return torch.tanh(z, out=buffer)

    with pytest.raises(ValueError, match="model: wrote its output over that of the call before"):
        sample(Network(reuses, space=PSLD), (2, 3), solver="psld-whitened", seed=0)
    first = sample(Network(reuses, space=PSLD), (2, 3), solver="psld-whitened", order=1, seed=0)
    assert torch.equal(first, sample(Network(torch_tanh, space=PSLD), (2, 3), solver="psld-whitened", order=1, seed=0))


def torch_tanh(z, t):
    return torch.tanh(z)


def test_terms_of_outputs():
    for parts in (1, 2):
        terms = {output_term(b, p, k, parts): (b, p, k) for b in (0, 1) for p in range(parts) for k in (0, 1)}
        assert len(terms) == 4 * parts
        assert all(output_of(term, parts) == key for term, key in terms.items())
    assert (output_term(0), output_term(1)) == (-1, -2)


def test_a_path_of_ones_own():
    path = make_path(PSLD, [1.0, 0.6, 0.3, 0.1, 0.01])
    x = sample(RING.phase_space(), 4, solver="roba", path=path, seed=0)
    assert torch.equal(x, sample(RING.phase_space(), 4, solver="roba", grid=path.t, steps=4, seed=0))


def test_command_line(tmp_path, capsys):
    """The exact network follows the process that the options name."""
    words = ["sample", "--model", "mixture", "--steps", "6", "-n", "50", "--out", str(tmp_path), "--no-progress"]
    assert main([*words, "--solver", "roba", "--Gamma", "0.02", "--nu", "4.02"]) == 0
    report = json.loads((tmp_path / "report.json").read_text())
    assert report["nfe"] == 7
    assert report["plan"]["options"]["Gamma"] == 0.02
    assert report["distance"]["sliced_w2"] > 0
    assert main([*words, "--solver", "psld-ode", "--rtol", "0.01"]) == 0
    assert main(["plan", "sscs", "--steps", "3", "--Gamma", "0", "--nu", "4"]) == 0
    assert main(["sample", "--model", "digits", "--solver", "roba", "--out", str(tmp_path)]) == 2
    assert "'digits' does not say that it is a network of phase space" in capsys.readouterr().err


def test_nfe_and_text():
    assert [plan_of(name, 5).nfe for name in ("roba", "rvv", "nvv", "psld-em")] == [6, 10, 15, 6]
    stats = {}
    sample(RING.phase_space(), 4, solver="csps_d", steps=5, seed=0, stats=stats)
    assert stats["nfe"] == 10
    text = str(plan_of("psld-whitened", 3))
    assert "e'_m" in text and "slots x, m" in text
    assert "xi[2]" in str(plan_of("sps-s", 3))
