"""Frechet distance against closed forms; the digit features and digit-FID against the shipped real digits."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from fastsample.metrics import (
    FEATURES,
    classify_digits,
    digit_features,
    digit_fid,
    frechet_distance,
    moments,
    real_features,
    sliced_distance,
)
from fastsample.models.digits import held_digits


def gen(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def covariance(d: int, seed: int, rank: int | None = None) -> Tensor:
    root = torch.randn(d, rank or 2 * d, generator=gen(seed), dtype=torch.float64)
    return root @ root.T / root.shape[1]


def rotation(d: int, seed: int) -> Tensor:
    q: Tensor = torch.linalg.qr(torch.randn(d, d, generator=gen(seed), dtype=torch.float64))[0]
    return q


def vector(d: int, seed: int) -> Tensor:
    return torch.randn(d, generator=gen(seed), dtype=torch.float64)


@pytest.mark.parametrize("d", [1, 2, 7, 64])
def test_equal_covariances_leave_the_means(d: int) -> None:
    cov, a, b = covariance(d, 1), vector(d, 2), vector(d, 3)
    assert frechet_distance(a, cov, b, cov) == pytest.approx(float((a - b).square().sum()), rel=1e-10)


@pytest.mark.parametrize("d", [1, 5, 64])
def test_same_gaussian_is_zero(d: int) -> None:
    cov, mu = covariance(d, 4), vector(d, 5)
    distance = frechet_distance(mu, cov, mu, cov)
    assert 0 <= distance < 1e-12 * d * float(cov.trace())


@pytest.mark.parametrize("d", [1, 3, 64])
def test_commuting_covariances(d: int) -> None:
    basis = rotation(d, 6)
    p = torch.rand(d, generator=gen(7), dtype=torch.float64) * 10
    q = torch.rand(d, generator=gen(8), dtype=torch.float64)
    mu = vector(d, 9)
    got = frechet_distance(mu, (basis * p) @ basis.T, mu, (basis * q) @ basis.T)
    assert got == pytest.approx(float((p.sqrt() - q.sqrt()).square().sum()), rel=1e-9)


@pytest.mark.parametrize("seed", range(5))
def test_two_dimensions_that_do_not_commute(seed: int) -> None:
    # A 2 x 2 matrix M with eigenvalues >= 0 has tr M^(1/2) = sqrt(tr M + 2 sqrt(det M)).
    one, two = covariance(2, 10 + seed), covariance(2, 20 + seed)
    assert (one @ two - two @ one).abs().max() > 1e-3
    product = one @ two
    root = math.sqrt(float(product.trace()) + 2 * math.sqrt(float(torch.linalg.det(product))))
    want = float(one.trace() + two.trace()) - 2 * root
    mu = vector(2, 30)
    assert frechet_distance(mu, one, mu, two) == pytest.approx(want, rel=1e-9, abs=1e-12)


def test_singular_covariances() -> None:
    # Supports that share nothing: the cross term is zero. A rank-one pair: tr (uu' vv')^(1/2) = |u.v|.
    d = 6
    mu = torch.zeros(d, dtype=torch.float64)
    first, second = torch.zeros(d, d, dtype=torch.float64), torch.zeros(d, d, dtype=torch.float64)
    first[:3, :3], second[3:, 3:] = covariance(3, 31), covariance(3, 32)
    assert frechet_distance(mu, first, mu, second) == pytest.approx(float(first.trace() + second.trace()), rel=1e-10)
    u, v = vector(d, 33), vector(d, 34)
    want = float(u @ u + v @ v - 2 * (u @ v).abs())
    assert frechet_distance(mu, torch.outer(u, u), mu, torch.outer(v, v)) == pytest.approx(want, rel=1e-7)


def test_fewer_samples_than_features() -> None:
    # Rank 9 of 64: the distance of a set to itself stays zero to rounding, without a ridge on the diagonal.
    mu, cov = moments(torch.randn(10, 64, generator=gen(35), dtype=torch.float64))
    assert frechet_distance(mu, cov, mu, cov) < 1e-6


def test_invariances() -> None:
    d = 16
    one, two, a, b = covariance(d, 36), covariance(d, 37), vector(d, 38), vector(d, 39)
    base = frechet_distance(a, one, b, two)
    q = rotation(d, 40)
    assert frechet_distance(b, two, a, one) == pytest.approx(base, rel=1e-10)
    assert frechet_distance(q @ a, q @ one @ q.T, q @ b, q @ two @ q.T) == pytest.approx(base, rel=1e-10)
    assert frechet_distance(3 * a, 9 * one, 3 * b, 9 * two) == pytest.approx(9 * base, rel=1e-10)
    assert frechet_distance(a.float(), one.float(), b.float(), two.float()) == pytest.approx(base, rel=1e-5)


@pytest.mark.parametrize(
    ("change", "error", "words"),
    [
        ({"mu1": torch.zeros(2, 2)}, ValueError, r"mu1.*\(2, 2\)"),
        ({"mu2": torch.zeros(4)}, ValueError, r"mu2.*\(4,\).*\(3,\)"),
        ({"cov1": torch.eye(4)}, ValueError, r"cov1.*\(4, 4\).*\(3, 3\)"),
        ({"cov2": torch.eye(3)[0]}, ValueError, r"cov2"),
        ({"cov2": torch.eye(3) * float("nan")}, ValueError, r"cov2.*NaN"),
        ({"mu1": torch.full((3,), float("inf"))}, ValueError, r"mu1.*infinity"),
        ({"cov1": torch.tensor([[1.0, 0.5, 0], [0, 1, 0], [0, 0, 1]])}, ValueError, r"cov1.*asymmetry"),
        ({"cov1": torch.diag(torch.tensor([1.0, 1.0, -0.1]))}, ValueError, r"cov1.*eigenvalue"),
        ({"mu1": torch.zeros(3, dtype=torch.int64)}, TypeError, r"mu1.*int64"),
        ({"cov2": [[1.0]]}, TypeError, r"cov2.*list"),
    ],
)
def test_frechet_refuses(change: dict[str, object], error: type[Exception], words: str) -> None:
    good: dict[str, object] = {"mu1": torch.zeros(3), "cov1": torch.eye(3), "mu2": torch.zeros(3), "cov2": torch.eye(3)}
    assert frechet_distance(**good) == 0.0  # type: ignore[arg-type]
    with pytest.raises(error, match=words):
        frechet_distance(**{**good, **change})  # type: ignore[arg-type]


def test_moments() -> None:
    x = torch.randn(50, 8, generator=gen(41), dtype=torch.float64) + 5
    mu, cov = moments(x)
    torch.testing.assert_close(mu, x.mean(0), rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(cov, torch.cov(x.T), rtol=1e-10, atol=1e-12)
    for bad in (x[0], x[:1]):
        with pytest.raises(ValueError, match="features"):
            moments(bad)


def test_real_features_are_those_of_the_shipped_network() -> None:
    real = real_features()
    assert real.shape == (5000, FEATURES) and real.dtype == torch.float64
    images, labels = held_digits()
    rows = labels * 500 + 450 + torch.arange(100) % 10  # held-out digits are the last 50 of each class
    got = digit_features(images)
    assert got.shape == (100, FEATURES) and got.dtype == torch.float64
    # Stored as float16: half an ulp is 2^-11 relative; 2e-4 is left for float32 convolutions of another CPU.
    assert ((got - real[rows]).abs() <= real[rows].abs() * 2**-11 + 2e-4).all()


def test_classifier_knows_digits_it_never_saw() -> None:
    images, labels = held_digits()
    assert (classify_digits(images) == labels).sum() >= 97


def test_features_see_eight_bit_pictures() -> None:
    images, _ = held_digits()
    bytes_ = ((images + 1) * 127.5).round().to(torch.uint8)
    want = digit_features(images)
    assert torch.equal(digit_features(bytes_), want)
    assert torch.equal(digit_features(images.double()), want)
    assert torch.equal(digit_features(images + 0.3 / 127.5), want)  # less than half a grey level
    beyond = torch.where(images == -1, -1.7, images)
    assert torch.equal(digit_features(beyond), want)
    torch.testing.assert_close(digit_features(images, batch=7), want, rtol=0, atol=1e-4)


def test_digit_fid_orders_pictures() -> None:
    images, _ = held_digits()
    noise = torch.randn(100, 1, 28, 28, generator=gen(42))
    real, blurred = digit_fid(images), digit_fid(torch.nn.functional.avg_pool2d(images, 5, 1, 2))
    assert real < 3 < 40 < blurred
    assert digit_fid(noise) > 300
    assert digit_fid(images[:10]) > real  # one class


@pytest.mark.parametrize(
    ("images", "error", "words"),
    [
        (torch.zeros(4, 28, 28), ValueError, r"images.*\(4, 28, 28\).*\(N, 1, 28, 28\)"),
        (torch.zeros(4, 3, 28, 28), ValueError, r"images.*\(4, 3, 28, 28\)"),
        (torch.zeros(4, 1, 28, 28, dtype=torch.int64), TypeError, r"images.*int64"),
        (torch.full((4, 1, 28, 28), float("nan")), ValueError, r"images.*NaN"),
        ([[0.0]], TypeError, r"images.*list"),
    ],
)
def test_images_are_checked(images: Tensor, error: type[Exception], words: str) -> None:
    for call in (digit_features, classify_digits, digit_fid):
        with pytest.raises(error, match=words):
            call(images)


def test_counts_are_checked() -> None:
    with pytest.raises(ValueError, match=r"images.*got 1"):
        digit_fid(torch.zeros(1, 1, 28, 28))
    with pytest.raises(ValueError, match=r"batch.*got 0"):
        digit_features(torch.zeros(2, 1, 28, 28), batch=0)


def test_class_balance_is_worth_more_than_size() -> None:
    # As the docstring says: 500 real digits of all classes alike beat 1000 drawn at random, on the mean of 4 seeds.
    real = real_features().reshape(10, 500, FEATURES)
    whole = moments(real.flatten(0, 1))
    drawn, alike = 0.0, 0.0
    for seed in range(4):
        order = torch.randperm(5000, generator=gen(seed))[:1000]
        drawn += frechet_distance(*moments(real.flatten(0, 1)[order]), *whole)
        pick = torch.randperm(500, generator=gen(seed))[:50]
        alike += frechet_distance(*moments(real[:, pick].flatten(0, 1)), *whole)
    assert alike < drawn


def test_sliced_distance_of_a_shift_is_its_length_over_the_root_of_the_dimension():
    torch.manual_seed(0)
    x = torch.randn(50, 3, dtype=torch.float64)
    shift = torch.tensor([3.0, 0.0, 4.0], dtype=torch.float64)
    assert sliced_distance(x, x) == 0.0
    assert sliced_distance(x, x[torch.randperm(50)]) < 1e-12
    assert sliced_distance(x, x + shift, directions=20000) == pytest.approx(5 / 3**0.5, rel=0.02)
    with pytest.raises(ValueError, match="y: got shape"):
        sliced_distance(x, x[:-1])
