"""Frechet distance of digits: how far a set of samples lies from 5,000 real MNIST digits, in the eyes of a small CNN.

The measure is that of Heusel, Ramsauer, Unterthiner, Nessler and Hochreiter (2017, arXiv 1706.08500, equation 6), with
the 64 features of a digit classifier (``examples/train_digits/train_features.py``) in place of Inception's. Numbers
compare with each other, never with a published FID.
"""

from __future__ import annotations

from functools import lru_cache
from itertools import pairwise

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fastsample.models.digits import DATA, SHAPE, read_data

FEATURES = 64
WEIGHTS = DATA / "digit_features.safetensors"


class FeatureNet(nn.Module):
    """Digit classifier: four convolutions, 64 features, 10 logits. Images (B, 1, 28, 28) float in [-1, 1]."""

    def __init__(self) -> None:
        super().__init__()
        widths = (1, 16, 32, 48, 64)
        self.convs = nn.ModuleList(nn.Conv2d(i, o, 3, padding=1, bias=False) for i, o in pairwise(widths))
        self.norms = nn.ModuleList(nn.BatchNorm2d(o) for o in widths[1:])
        self.drop = nn.Dropout(0.3)
        self.last = nn.Linear(widths[-1] * 9, FEATURES)
        self.head = nn.Linear(FEATURES, 10)

    def features(self, images: Tensor) -> Tensor:
        """(B, 64), before the last activation."""
        h = images
        for i, (conv, norm) in enumerate(zip(self.convs, self.norms, strict=True)):
            h = F.silu(norm(conv(h)))
            if i != 2:  # 28 -> 14 -> 7 -> 7 -> 3
                h = F.avg_pool2d(h, 2)
        out: Tensor = self.last(self.drop(h.flatten(1)))
        return out

    def forward(self, images: Tensor) -> Tensor:
        """Logits (B, 10)."""
        out: Tensor = self.head(self.drop(F.silu(self.features(images))))
        return out


def load_features(device: torch.device | str = "cpu") -> FeatureNet:
    """The frozen feature network, float32, eval mode.

    Raises:
        FileNotFoundError: the package data is missing.
        ImportError: safetensors is not installed.
    """
    net = FeatureNet()
    net.load_state_dict({k[4:]: v for k, v in read_data(WEIGHTS).items() if k.startswith("net.")})
    return net.eval().requires_grad_(False).to(device)


@lru_cache(maxsize=4)
def _network(device: str) -> FeatureNet:
    return load_features(device)


@lru_cache(maxsize=1)
def _real_moments() -> tuple[Tensor, Tensor]:
    return moments(real_features())


def real_features() -> Tensor:
    """Features of the 5,000 real digits, (5000, 64) float64: 500 of each class, in class order."""
    return read_data(WEIGHTS)["real"].double()


def _check_images(images: Tensor) -> None:
    if not isinstance(images, Tensor):
        raise TypeError(f"images: got {type(images).__name__}, need a tensor (N, 1, 28, 28)")
    if images.ndim != 4 or tuple(images.shape[1:]) != SHAPE:
        raise ValueError(f"images: got shape {tuple(images.shape)}, need (N, 1, 28, 28)")
    if images.dtype != torch.uint8 and not images.is_floating_point():
        raise TypeError(f"images: got dtype {images.dtype}, need a float in [-1, 1] or uint8 in [0, 255]")
    if images.is_floating_point() and not bool(images.isfinite().all()):
        raise ValueError("images: got NaN or infinity, need finite values in [-1, 1]")


def _ready(images: Tensor) -> Tensor:
    """What a saved 8-bit picture would hold, as float32 in [-1, 1]: samples are measured as people see them."""
    if images.dtype != torch.uint8:
        images = ((images.float().clamp(-1, 1) + 1) * 127.5).round()
    return images.float() / 127.5 - 1


@torch.inference_mode()
def _map(images: Tensor, batch: int, logits: bool) -> Tensor:
    _check_images(images)
    if batch < 1:
        raise ValueError(f"batch: got {batch}, need at least 1")
    net = _network(str(images.device))
    call = net if logits else net.features
    parts = [call(_ready(part)) for part in torch.split(images, batch)]
    return torch.cat(parts).double().cpu()


def digit_features(images: Tensor, batch: int = 500) -> Tensor:
    """Features of digits.

    Args:
        images: (N, 1, 28, 28), float in [-1, 1] (clamped, rounded to 8 bits) or uint8 in [0, 255]; any device.
        batch: images per call of the network.

    Returns:
        (N, 64) float64 on the CPU.

    Raises:
        TypeError: ``images`` is no tensor, or neither float nor uint8.
        ValueError: wrong shape, NaN or infinity, ``batch < 1``.
    """
    return _map(images, batch, logits=False)


def classify_digits(images: Tensor, batch: int = 500) -> Tensor:
    """Class 0..9 of each image, (N,) int64 on the CPU. Arguments and errors as for `digit_features`."""
    return _map(images, batch, logits=True).argmax(1)


def moments(features: Tensor) -> tuple[Tensor, Tensor]:
    """Mean (D,) and unbiased covariance (D, D), float64, of features (N, D) with N >= 2."""
    if features.ndim != 2 or len(features) < 2:
        raise ValueError(f"features: got shape {tuple(features.shape)}, need (N, D) with N >= 2")
    features = features.double()
    mean = features.mean(0)
    away = features - mean
    return mean, away.T @ away / (len(features) - 1)


def _root(cov: Tensor, name: str) -> Tensor:
    """Symmetric square root. Eigenvalues below zero by rounding count as zero; real negative ones are an error."""
    values, vectors = torch.linalg.eigh(cov)
    largest = float(values.abs().max())
    if float(values.min()) < -1e-8 * largest:
        raise ValueError(
            f"{name}: got an eigenvalue of {float(values.min()):.3g}, need a positive semi-definite matrix"
        )
    root: Tensor = (vectors * values.clamp_min(0).sqrt()) @ vectors.T
    return root


def frechet_distance(mu1: Tensor, cov1: Tensor, mu2: Tensor, cov2: Tensor) -> float:
    """Squared Frechet distance of two Gaussians: ``|mu1 - mu2|^2 + tr(cov1 + cov2 - 2 (cov1 cov2)^(1/2))``.

    Heusel et al. (2017, arXiv 1706.08500, equation 6). The trace of the root is the nuclear norm of
    ``cov1^(1/2) cov2^(1/2)``: symmetric roots and singular values only, so that singular covariances (fewer samples
    than features) lose no digits and no complex number appears.

    Args:
        mu1, mu2: (D,), any float dtype; computed in float64 on the CPU.
        cov1, cov2: (D, D), symmetric positive semi-definite.

    Raises:
        TypeError: an argument is no floating tensor.
        ValueError: shapes that do not fit, NaN or infinity, a covariance that is not symmetric or not semi-definite.
    """
    arguments = {"mu1": mu1, "cov1": cov1, "mu2": mu2, "cov2": cov2}
    for name, value in arguments.items():
        if not isinstance(value, Tensor) or not value.is_floating_point():
            raise TypeError(f"{name}: got {getattr(value, 'dtype', type(value).__name__)}, need a floating tensor")
    if mu1.ndim != 1 or len(mu1) == 0:
        raise ValueError(f"mu1: got shape {tuple(mu1.shape)}, need (D,) with D >= 1")
    d = len(mu1)
    for name, value in arguments.items():
        need = (d,) if name.startswith("mu") else (d, d)
        if tuple(value.shape) != need:
            raise ValueError(f"{name}: got shape {tuple(value.shape)}, need {need} as mu1 has {d} elements")
        if not bool(value.isfinite().all()):
            raise ValueError(f"{name}: got NaN or infinity, need finite values")
        if value.ndim == 2:
            skew = float((value - value.T).abs().max())
            if skew > 1e-5 * float(value.abs().max()):
                raise ValueError(f"{name}: got an asymmetry of {skew:.3g}, need a symmetric matrix")
    mu1, cov1, mu2, cov2 = (value.detach().double().cpu() for value in (mu1, cov1, mu2, cov2))
    cross = torch.linalg.svdvals(_root(cov1, "cov1") @ _root(cov2, "cov2")).sum()
    distance = (mu1 - mu2).square().sum() + cov1.trace() + cov2.trace() - 2 * cross
    return max(float(distance), 0.0)  # rounding can take equal Gaussians below zero


def digit_fid(images: Tensor, batch: int = 500) -> float:
    """Digit-FID: Frechet distance between the features of ``images`` and of the 5,000 real digits; smaller is better.

    The estimate has a bias that falls as 1/N, so compare equal N. Most of the features' variance lies between the
    classes, so the balance of the classes counts as much as N: give every class equally often, or draw all labels at
    random, but compare like with like. Floors, N real digits against the other real ones, mean of 8 splits:

    ======================  =====  =====  =====  =====  =====
    N                         100    200    500   1000   2500
    equal number per class   1.44   0.68   0.26   0.13   0.10
    drawn at random          6.75   2.91   1.26   0.65   0.41
    ======================  =====  =====  =====  =====  =====

    Args:
        images: (N, 1, 28, 28), N >= 2, float in [-1, 1] or uint8 in [0, 255], as for `digit_features`.
        batch: images per call of the network.

    Raises:
        TypeError, ValueError: as `digit_features`; also fewer than 2 images.
    """
    _check_images(images)
    if len(images) < 2:
        raise ValueError(f"images: got {len(images)}, need at least 2")
    return frechet_distance(*moments(digit_features(images, batch)), *_real_moments())


def sliced_distance(x: Tensor, y: Tensor, directions: int = 64, seed: int = 0) -> float:
    """Sliced 2-Wasserstein distance of two sets of as many samples ``(N, ...)``, in their unit.

    Root mean square, over random directions and over the sorted projections, of the differences of the two (Bonneel,
    Rabin, Peyre and Pfister 2015).  Two sets of one law are not at 0 but at a floor that falls as 1/sqrt(N): report it
    beside.

    Raises:
        ValueError: sets of another shape, or empty.
    """
    if x.shape != y.shape or not x.numel():
        raise ValueError(f"y: got shape {tuple(y.shape)}, need that of x, {tuple(x.shape)}, not empty")
    x, y = x.flatten(1).double(), y.flatten(1).double()
    generator = torch.Generator(device="cpu").manual_seed(seed)
    ways = torch.randn(x.shape[1], directions, generator=generator, dtype=torch.float64).to(x.device)
    ways = ways / ways.norm(dim=0)
    gap = (x @ ways).sort(0).values - (y @ ways).sort(0).values
    return float(gap.square().mean().sqrt())
