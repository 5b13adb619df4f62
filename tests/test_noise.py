"""The noise contract: words, keys and normals against golden data, equal bits, and the law."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import fastsample
from fastsample import native, noise
from fastsample.building import BuildError

GOLDEN = np.load(Path(__file__).parent / "golden" / "philox_stateless_golden.npz")
KEYS = torch.from_numpy(GOLDEN["keys"])
# Largest distance to Box-Muller in float64 from the same float32 uniforms: 5.9e-7 in 3.2e8 draws.
NORMAL_ERROR = 6e-7


@pytest.fixture(scope="module")
def core():
    try:
        return native.core()
    except BuildError as error:
        pytest.skip(f"no compiler or pybind11: {error}")


def exact_normals(words: np.ndarray) -> np.ndarray:
    """Box-Muller in float64 from the float32 uniforms of words (n, 4)."""
    u = (words.astype(np.float32).astype(np.float64) * 2.0**-32 + 2.0**-33).astype(np.float32).astype(np.float64)
    radius, angle = np.sqrt(-2 * np.log(u[:, 0::2])), 2 * np.pi * u[:, 1::2]
    return np.stack([radius * np.cos(angle), radius * np.sin(angle)], axis=-1).reshape(len(words), 4)


@pytest.mark.parametrize("i", range(len(KEYS)))
def test_golden_words_uniforms_normals_and_keys(i, core):
    key, n = KEYS[i : i + 1], int(GOLDEN["n"])
    seed, offset = (int(v) for v in GOLDEN["keys"][i])
    words = noise.words(key.view(torch.int64)[0, 0], key.view(torch.int64)[0, 1] + torch.arange(-(-n // 4)))
    assert np.array_equal(words.numpy(), GOLDEN[f"words_{i}"])
    assert np.array_equal(core.words(seed, offset, -(-n // 4)), GOLDEN[f"words_{i}"])
    assert np.array_equal(noise.uniform((1, n), key)[0].numpy(), GOLDEN[f"uniform_f32_{i}"])
    assert np.array_equal(core.uniforms(seed, offset, n), GOLDEN[f"uniform_f32_{i}"])
    z = noise.normal_like(torch.empty(1, n), key)[0].numpy()
    assert np.abs(z - GOLDEN[f"normal_f32_{i}"]).max() <= 2e-6
    assert np.array_equal(z, core.normals(seed, offset, n))
    z = noise.normal_like(torch.empty(1, n, dtype=torch.float64), key)[0].numpy()
    assert np.abs(z - GOLDEN[f"normal_f64_{i}"]).max() <= 1e-14
    assert np.array_equal(noise.split(key, 5)[0].numpy(), GOLDEN[f"split5_{i}"])
    assert np.array_equal(noise.fold_in(key, 17)[0].numpy(), GOLDEN[f"fold_in_17_{i}"])


def test_batched_golden_normals():
    key = torch.from_numpy(GOLDEN["batched_keys"])[:, 0].contiguous()
    expected = GOLDEN["batched_normal_f32"]
    z = noise.normal_like(torch.empty(expected.shape), key)
    assert np.abs(z.numpy() - expected).max() <= 2e-6


def test_normals_are_within_the_stated_error_of_float64(core):
    words = core.words(11, 5, 1_000_000)
    assert np.abs(core.box_muller(words) - exact_normals(words)).max() <= NORMAL_ERROR


def test_normals_at_the_edges_of_the_uniforms(core):
    edge = np.array(
        [0, 1, 2, 127, 128, 2**23, 2**24 - 1, 2**31 - 1, 2**31, 2**32 - 257, 2**32 - 129, 2**32 - 1], np.uint32
    )
    a, b = np.meshgrid(edge, edge)
    words = np.stack([a.ravel(), b.ravel(), b.ravel(), a.ravel()], axis=1)
    z = core.box_muller(words)
    assert np.isfinite(z).all()
    error = np.abs(z - exact_normals(words)) / np.maximum(1.0, np.abs(exact_normals(words)) / 5)
    assert error.max() <= NORMAL_ERROR


def test_reference_agrees_to_2_ulp(core):
    key = torch.tensor([[3, 4]], dtype=torch.int64).view(torch.uint64)
    z = noise.reference_normals(key, (1, 400_000), 0, False)[0].numpy()
    expected = core.normals(3, 4, 400_000)
    assert (np.abs(z - expected) <= 2 * np.spacing(np.abs(expected))).all()


@settings(max_examples=50, deadline=None)
@given(
    seed=st.integers(0, 2**64 - 1),
    offset=st.one_of(st.integers(0, 2**64 - 1), st.integers(2**32 - 40, 2**32 + 40)),
    numel=st.integers(0, 300),
    draw=st.integers(0, 2**31 - 1),
)
def test_bits_of_the_kernel_equal_the_core_for_any_key(core, seed, offset, numel, draw):
    key = torch.from_numpy(np.array([[seed, offset]], dtype=np.uint64))
    z = noise.normal_like(torch.empty(1, numel), key, draw)[0].numpy()
    counter = (offset + draw * -(-numel // 4)) % 2**64
    assert np.array_equal(z, core.normals(seed, counter, numel))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_noise_does_not_depend_on_dtype_batch_split_or_layout(dtype):
    key = noise.keys(5, 6)
    whole = noise.normal_like(torch.empty(6, 3, 5, 7), key)
    assert torch.equal(noise.normal_like(torch.empty(6, 3, 5, 7, dtype=dtype), key), whole.to(dtype))
    parts = [noise.normal_like(torch.empty(2, 3, 5, 7), noise.keys(5, [i, i + 1])) for i in (0, 2, 4)]
    assert torch.equal(torch.cat(parts), whole)
    last = torch.empty(6, 3, 5, 7).to(memory_format=torch.channels_last)
    assert torch.equal(noise.normal_like(last, key), whole)


def test_draws_and_samples_are_uncorrelated_and_never_repeat():
    """Correlations of 2^18 pairs; each exceeds 5.5 sigma with probability 4e-8 under independence, 1e-6 for all 27."""
    n = 2**18
    z = [noise.normal_like(torch.empty(2, n), noise.keys(1, 2), draw) for draw in (0, 1, 2)]
    rows = torch.cat(z).double()
    rows = torch.cat([rows, noise.normal_like(torch.empty(1, n), noise.keys(2, 1)).double()])
    correlation = torch.corrcoef(rows) - torch.eye(7)
    assert correlation.abs().max() < 5.5 / math.sqrt(n)
    lanes = torch.corrcoef(rows[0].reshape(-1, 4).T) - torch.eye(4)
    assert lanes.abs().max() < 5.5 / math.sqrt(n / 4)


def test_law_of_the_normals():
    """Four moments at 5.5 sigma and Kolmogorov-Smirnov at level 1e-6; fixed seed, false-alarm rate below 2e-6."""
    n = 2**20
    z = noise.normal_like(torch.empty(1, n), noise.keys(12, 1))[0].double()
    for power, mean, variance in ((1, 0, 1), (2, 1, 2), (3, 0, 15), (4, 3, 96)):
        assert abs((z**power).mean() - mean) < 5.5 * math.sqrt(variance / n)
    sorted_z = z.sort().values
    cdf = 0.5 * (1 + torch.erf(sorted_z / math.sqrt(2)))
    grid = torch.arange(n, dtype=torch.float64) / n
    distance = torch.maximum((cdf - grid).abs().max(), (cdf - grid - 1 / n).abs().max())
    assert distance * math.sqrt(n) < math.sqrt(-0.5 * math.log(1e-6 / 2))


def test_keys_per_sample_seeds_and_generator():
    folded = noise.keys(9, [4, 5])
    assert torch.equal(folded, noise.keys(9, 6)[4:])
    assert torch.equal(noise.keys([7, 8], 2)[1], noise.keys(8, 1)[0])
    assert torch.equal(noise.keys(2**64 - 1, 1), noise.fold_in(torch.tensor([[-1, 0]]).view(torch.uint64), 0))
    one = noise.keys_from_generator(torch.Generator().manual_seed(3), 4)
    assert torch.equal(one, noise.keys_from_generator(torch.Generator().manual_seed(3), 4))
    generator = torch.Generator().manual_seed(3)
    noise.keys_from_generator(generator, 4)
    assert not torch.equal(one, noise.keys_from_generator(generator, 4))


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: noise.keys(-1, 2), "seed: got -1"),
        (lambda: noise.keys(2**64, 2), "seed: got"),
        (lambda: noise.keys([1, 2, 3], 2), "seed: got 3 seeds for 2 samples"),
        (lambda: noise.keys(0, -1), "sample_ids: got -1"),
        (lambda: noise.keys(0, [-1]), "sample_ids: got -1"),
        (lambda: noise.keys(0, torch.zeros(2)), "sample_ids: got shape"),
        (lambda: noise.split(torch.zeros(2), 1), "key: got shape"),
        (lambda: noise.split(noise.keys(0, 1), -1), "count: got -1"),
        (lambda: noise.fold_in(noise.keys(0, 1), -1), "data: got -1"),
        (lambda: noise.uniform((3, 4), noise.keys(0, 2)), "shape: got"),
    ],
)
def test_bad_arguments_are_named(call, message):
    with pytest.raises(ValueError, match=message):
        call()


@pytest.mark.parametrize("seed", [0, 1, 2**63 - 1, 2**63, 2**64 - 1, 0x123456789ABCDEF0])
def test_keys_of_few_samples_are_those_of_many(seed):
    many = noise.keys(seed, 64)
    for count in range(10):
        assert torch.equal(noise.keys(seed, count), many[:count])
        assert noise.keys(seed, count).shape == (count, 2)
    for bad in (-1, 2**64):
        with pytest.raises(ValueError, match="seed"):
            noise.keys(bad, 2)


@pytest.mark.parametrize("count", [2, 20])
def test_a_bool_is_no_seed(count):
    with pytest.raises(ValueError, match="seed: got True"):
        noise.keys(True, count)


def test_keys_are_made_inside_of_traces_and_transforms():
    from torch.fx.experimental.proxy_tensor import make_fx

    fastsample.sample(lambda x, t: x, (2, 4), steps=6, seed=0)  # the library is in use
    want = noise.keys(5, 3)
    graph = make_fx(lambda x: x + noise.keys(5, 3).view(torch.int64)[:, :1].double())(torch.zeros(3, 1).double())
    assert torch.equal(graph(torch.zeros(3, 1).double()), want.view(torch.int64)[:, :1].double())
    torch.func.grad(lambda x: (x * noise.keys(5, 3).view(torch.int64).double().sum()).sum())(torch.ones(2).double())
