"""``BrownianTreeNoiseSampler``: the noise sampler of k-diffusion and ComfyUI without a tree in memory."""

from __future__ import annotations

import itertools
import math
import warnings

import pytest
import torch

from fastsample import brownian, noise
from fastsample.brownian import BrownianMotion, BrownianTreeNoiseSampler

SIGMAS = (torch.linspace(14.6146 ** (1 / 7), 0.0292 ** (1 / 7), 20, dtype=torch.float64) ** 7).tolist()
X = torch.empty(3, 4, 8, 8)


def sampler(**options):
    return BrownianTreeNoiseSampler(X, **{"sigma_min": 0.0292, "sigma_max": 14.6146, "seed": 5, **options})


def test_is_the_normalised_increment():
    motion = BrownianMotion(0.0292, 14.6146, X, 5)
    draw = sampler()
    for a, b in [(14.6146, 7.0), (3.0, 0.5), (0.5, 3.0)]:
        torch.testing.assert_close(draw(a, b), motion(a, b) / abs(b - a) ** 0.5, rtol=2e-6, atol=2e-6)
        assert torch.equal(draw(a, b), -draw(b, a))


def test_unit_variance_and_independent_steps():
    """3 * 2^16 elements, 19 variances and 18 correlations within 5 standard errors: false alarm below 2.2e-5."""
    x = torch.empty(3, 2**16)
    draw = BrownianTreeNoiseSampler(x, 0.0292, 14.6146, seed=1)
    before = None
    for a, b in itertools.pairwise(SIGMAS):
        z = draw(a, b).double()
        assert abs(z.square().mean() - 1) < 5 * (2 / z.numel()) ** 0.5
        if before is not None:
            assert abs((z * before).mean()) < 5 / z.numel() ** 0.5
        before = z


def test_prepared_or_not_tensors_or_numbers():
    plain, prepared = sampler(), sampler()
    prepared.prepare(torch.tensor([*SIGMAS, 0.0], dtype=torch.float64))
    for i, (a, b) in enumerate(itertools.pairwise(SIGMAS)):
        expected = plain(a, b)
        assert torch.equal(prepared(a, b), expected)
        assert torch.equal(
            prepared(torch.tensor(a, dtype=torch.float64), torch.tensor([b], dtype=torch.float64)), expected
        )
        assert torch.equal(prepared.at(i), expected)
        assert torch.equal(prepared.at(torch.tensor(i)), expected)
    assert torch.equal(prepared(9.0, 1.0), plain(9.0, 1.0)), "a pair that was not prepared"
    mixed = prepared.at(torch.tensor([3, 0, 7]))
    assert torch.equal(mixed[1], plain(SIGMAS[0], SIGMAS[1])[1])
    prepared.prepare([(9.0, 1.0), (9.0, 3.0)])  # pairs, as a solver with two stages asks
    assert torch.equal(prepared.at(1), plain(9.0, 3.0))


def test_prepared_calls_compute_no_weights(monkeypatch):
    draw = sampler()
    draw.prepare(SIGMAS)
    monkeypatch.setattr(brownian, "combination", None)
    draw(SIGMAS[4], SIGMAS[5])
    with pytest.raises(TypeError):
        draw(9.0, 1.0)


def test_seeds():
    assert torch.equal(sampler()(3, 1), sampler()(3, 1))
    assert not torch.equal(sampler()(3, 1), sampler(seed=6)(3, 1))
    listed = sampler(seed=[7, 8, 9])(3, 1)
    alone = BrownianTreeNoiseSampler(X[:1], 0.0292, 14.6146, seed=[8])(3, 1)
    assert torch.equal(listed[1], alone[0]), "a sample's seed alone decides"
    torch.manual_seed(3)
    first, second = sampler(seed=None)(3, 1), sampler(seed=None)(3, 1)
    torch.manual_seed(3)
    assert torch.equal(sampler(seed=None)(3, 1), first)
    assert not torch.equal(first, second)
    assert torch.equal(sampler(seed=2**64 - 1)(3, 1), sampler(seed=[2**64 - 1] * 3, cpu=True)(3, 1)) is False


def test_the_run_s_draws_are_other_numbers():
    """Draws and nodes of one key are uncorrelated: 5 standard errors, false alarm 6e-7."""
    x = torch.empty(1, 2**16)
    z = BrownianTreeNoiseSampler(x, 0.0, 1.0, seed=5)(0.0, 1.0)  # the first node alone
    start = noise.normal_like(x, noise.keys(5, 1))
    assert abs((z * start).mean()) < 5 / 2**8


def test_transform_may_decrease():
    def time(sigma):
        return -sigma.log()

    draw = sampler(transform=time)
    motion = BrownianMotion(-math.log(14.6146), -math.log(0.0292), X, 5)
    expected = motion(-math.log(7.0), -math.log(2.0)) / math.log(3.5) ** 0.5
    torch.testing.assert_close(draw(7.0, 2.0), expected, rtol=3e-6, atol=3e-6)


def test_levels_outside_the_path():
    draw = sampler()
    with pytest.warns(RuntimeWarning, match="outside"):
        assert torch.equal(draw(1.0, 0.0), draw(1.0, 0.0292))
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # within tol, as float32 levels are, nothing is said
        draw(14.6146 + 2e-7, 1.0)
        draw.prepare([14.6146, 0.0292, 0.0])
    assert not draw.at(1).any(), "an interval of no length has no noise"
    assert not draw(1.0, 1.0).any()
    with pytest.raises(ValueError, match="closer than tol"):
        draw(1.0, 1.0 + 1e-9)


def test_dtypes_and_strides_of_the_state():
    expected = sampler()(9.0, 1.0)
    for x in (X.half(), X.bfloat16(), X.contiguous(memory_format=torch.channels_last)):
        out = BrownianTreeNoiseSampler(x, 0.0292, 14.6146, seed=5)(9.0, 1.0)
        assert out.dtype == x.dtype and out.stride() == x.stride()
        assert torch.equal(out, expected.to(x.dtype))


def test_nothing_is_kept():
    draw = sampler()
    before = {k: id(v) for k, v in vars(draw).items()}
    for a, b in itertools.pairwise(SIGMAS):
        draw(a, b)
    assert {k: id(v) for k, v in vars(draw).items()} == before and not draw._rows


def test_bad_use():
    with pytest.raises(ValueError, match="nothing is prepared"):
        sampler().at(0)
    draw = sampler()
    draw.prepare(SIGMAS)
    with pytest.raises(ValueError, match=r"step: got 19, allowed are 0..18"):
        draw.at(19)
    with pytest.raises(ValueError, match=r"sigmas: got shape \(2, 3\)"):
        draw.prepare(torch.zeros(2, 3))
    with pytest.raises(ValueError, match="t0, t1"):
        sampler(sigma_min=14.6146)
