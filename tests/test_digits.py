"""The shipped digits network: its contract, its error on digits it never saw, and whether its samples are digits."""

from __future__ import annotations

import sys
from itertools import pairwise
from pathlib import Path

import pytest
import torch
from torch import Tensor

from fastsample.metrics import classify_digits, digit_fid
from fastsample.models import digits
from fastsample.models.digits import (
    CLASSES,
    NULL_CLASS,
    PREDICTION,
    SHAPE,
    TIME,
    DigitsNet,
    held_digits,
    load_digit_ladder,
    load_digits,
)


@pytest.fixture(scope="module")
def net() -> DigitsNet:
    return load_digits()


def gen(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def inputs(batch: int, seed: int = 0) -> tuple[Tensor, Tensor, Tensor]:
    x = torch.randn(batch, *SHAPE, generator=gen(seed))
    lam = torch.rand(batch, generator=gen(seed + 1)) * 14 - 6
    return x, lam, torch.arange(batch) % (CLASSES + 1)


def alpha_sigma(lam: Tensor) -> tuple[Tensor, Tensor]:
    return torch.sigmoid(2 * lam).sqrt(), torch.sigmoid(-2 * lam).sqrt()


def test_constants() -> None:
    assert (SHAPE, CLASSES, NULL_CLASS, PREDICTION, TIME) == ((1, 28, 28), 10, 10, "v", "log-snr")


def test_size_on_disk() -> None:
    assert 1e6 < digits.WEIGHTS.stat().st_size < 4e6
    assert sum(file.stat().st_size for file in digits.DATA.iterdir()) < 6e6


def test_loaded_network_is_frozen(net: DigitsNet) -> None:
    assert not net.training
    assert not any(p.requires_grad for p in net.parameters())
    assert 0.4e6 < sum(p.numel() for p in net.parameters()) < 1e6
    assert {p.dtype for p in net.parameters()} == {torch.float32}


@pytest.mark.parametrize("batch", [0, 1, 11])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.float16])
def test_shape_and_dtype_of_the_output(net: DigitsNet, batch: int, dtype: torch.dtype) -> None:
    x, lam, label = inputs(batch)
    out = net(x.to(dtype), lam, label)
    assert out.shape == x.shape and out.dtype == dtype
    assert out.isfinite().all()


def test_weights_in_other_dtypes(net: DigitsNet) -> None:
    x, lam, label = inputs(22)
    exact = load_digits(dtype=torch.float64)(x.double(), lam.double(), label)
    assert exact.dtype == torch.float64
    # Relative error of the whole output: float32 rounding through about 20 layers, bfloat16 likewise.
    for dtype, bound in ((torch.float32, 1e-5), (torch.bfloat16, 0.05)):
        out = load_digits(dtype=dtype)(x, lam, label)
        assert (out.double() - exact).norm() < bound * exact.norm()


def test_samples_do_not_mix(net: DigitsNet) -> None:
    x, lam, label = inputs(11)
    whole = net(x, lam, label)
    for i in (0, 5, 10):
        torch.testing.assert_close(net(x[i : i + 1], lam[i : i + 1], label[i : i + 1])[0], whole[i], rtol=0, atol=2e-5)


def test_time_is_clamped_outside_the_trained_range(net: DigitsNet) -> None:
    x, _, label = inputs(11)
    for far, edge in ((-40.0, -6.0), (float("-inf"), -6.0), (30.0, 8.0), (float("inf"), 8.0)):
        assert torch.equal(net(x, torch.full((11,), far), label), net(x, torch.full((11,), edge), label))
    assert not torch.equal(net(x, torch.full((11,), -1.0), label), net(x, torch.full((11,), 1.0), label))


def test_differentiable_in_the_state(net: DigitsNet) -> None:
    x, lam, label = inputs(3)
    x.requires_grad_()
    (grad,) = torch.autograd.grad(net(x, lam, label).square().sum(), x)
    assert grad.isfinite().all() and grad.abs().max() > 0


@pytest.mark.parametrize(
    ("change", "error", "words"),
    [
        ({"x": torch.zeros(4, 28, 28)}, ValueError, r"x.*\(4, 28, 28\).*\(B, 1, 28, 28\)"),
        ({"x": torch.zeros(4, 1, 32, 32)}, ValueError, r"x.*\(4, 1, 32, 32\)"),
        ({"x": torch.zeros(4, 1, 28, 28, dtype=torch.int32)}, TypeError, r"x.*int32"),
        ({"lam": torch.zeros(())}, ValueError, r"lam.*\(\).*\(4,\)"),
        ({"lam": torch.zeros(5)}, ValueError, r"lam.*\(5,\)"),
        ({"lam": torch.zeros(4, dtype=torch.int64)}, TypeError, r"lam.*int64"),
        ({"label": torch.zeros(3, dtype=torch.int64)}, ValueError, r"label.*\(3,\)"),
        ({"label": torch.zeros(4)}, TypeError, r"label.*float32"),
        ({"label": torch.full((4,), 11)}, IndexError, None),
    ],
)
def test_forward_refuses(net: DigitsNet, change: dict[str, Tensor], error: type[Exception], words: str | None) -> None:
    good = {"x": torch.zeros(4, *SHAPE), "lam": torch.zeros(4), "label": torch.zeros(4, dtype=torch.int64)}
    with pytest.raises(error, match=words):
        net(**{**good, **change})


def test_loading_refuses(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    with pytest.raises(TypeError, match=r"dtype.*int32"):
        load_digits(dtype=torch.int32)
    with monkeypatch.context() as patch:
        patch.setattr(digits, "WEIGHTS", tmp_path / "digits.safetensors")
        with pytest.raises(FileNotFoundError, match=r"digits\.safetensors is missing"):
            load_digits()
    monkeypatch.setitem(sys.modules, "safetensors.torch", None)
    with pytest.raises(ImportError, match="pip install safetensors"):
        load_digits()


def held_error(net: DigitsNet, value: float, given: bool) -> float:
    """Mean square error of v over the 100 held-out digits, 4 noises each."""
    images, labels = held_digits()
    x0, label = images.repeat(4, 1, 1, 1), labels.repeat(4)
    eps = torch.randn(x0.shape, generator=gen(7))
    lam = torch.full((len(x0),), value)
    alpha, sigma = alpha_sigma(lam[0])
    with torch.inference_mode():
        v = net(alpha * x0 + sigma * eps, lam, label if given else torch.full_like(label, NULL_CLASS))
    return float((v - (alpha * eps - sigma * x0)).square().mean())


@pytest.mark.parametrize(("value", "bound"), [(-6.0, 0.25), (-3.0, 0.245), (0.0, 0.063), (2.0, 0.106), (6.0, 0.33)])
def test_prediction_on_digits_it_never_saw(net: DigitsNet, value: float, bound: float) -> None:
    # Seen: 0.230, 0.226, 0.058, 0.098, 0.302. The bounds are 8 to 9 % above; an eighth of the training misses three.
    assert held_error(net, value, given=True) < bound


def test_class_and_no_class_are_both_learned(net: DigitsNet) -> None:
    # Knowing the class must help where the noise hides it, and not knowing it must cost little where it does not.
    assert held_error(net, -3.0, given=True) < 0.9 * held_error(net, -3.0, given=False)
    assert held_error(net, 2.0, given=False) < 1.1 * held_error(net, 2.0, given=True)


@torch.inference_mode()
def ddim(net: DigitsNet, label: Tensor, steps: int, guidance: float) -> Tensor:
    x = torch.randn(len(label), *SHAPE, generator=gen(0))
    free = torch.full_like(label, NULL_CLASS)
    for here, there in pairwise(torch.linspace(-5, 6, steps + 1)):
        lam = here.expand(len(label))
        v = torch.lerp(net(x, lam, free), net(x, lam, label), guidance)
        alpha, sigma = alpha_sigma(here)
        x0, eps = alpha * x - sigma * v, sigma * x + alpha * v
        alpha, sigma = alpha_sigma(there)
        x = alpha * x0 + sigma * eps
    return x


def test_samples_are_the_digits_asked_for(net: DigitsNet) -> None:
    label = torch.arange(100) % 10
    x = ddim(net, label, steps=20, guidance=2.0)
    assert (classify_digits(x) == label).sum() > 90
    noise = torch.randn(x.shape, generator=gen(1))
    assert digit_fid(noise) > 50 * digit_fid(x)
    # Guidance sharpens and so leaves the law of the data; without it the samples lie near real digits.
    images, _ = held_digits()
    free = ddim(net, label, steps=20, guidance=1.0)
    assert digit_fid(free) < 3 * digit_fid(images)  # 100 real digits, so the bias of small sets is in both


def test_the_ladder_comes_nearer_to_the_shipped_network_level_by_level():
    nets = load_digit_ladder()
    assert [sum(p.numel() for p in net.parameters()) for net in nets[:-1]] == [86_329, 267_401]
    images, labels = held_digits()
    lam = torch.linspace(-4, 4, len(images))
    alpha, sigma = (torch.sigmoid(k * lam).sqrt()[:, None, None, None] for k in (2, -2))
    noise = torch.randn(images.shape, generator=torch.Generator().manual_seed(0))
    small, middle, top = (net(alpha * images + sigma * noise, lam, labels) for net in nets)
    errors = [float((v - top).square().mean()) for v in (small, middle)]
    assert errors[1] < 0.7 * errors[0] < 0.04
