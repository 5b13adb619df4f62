"""The small trained network that ships with the package: class-conditional MNIST digits, v-prediction.

A UNet on 28 -> 14 -> 7 pixels with one attention layer at the bottom. It was trained on the CPU by
``examples/train_digits/train.py``; it exists so that samplers can be compared on a real network in seconds.
"""

from __future__ import annotations

import math
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

SHAPE = (1, 28, 28)
CLASSES = 10
NULL_CLASS = 10  # label of "no class", the unconditional branch of classifier-free guidance
PREDICTION = "v"  # v = alpha * eps - sigma * x0
TIME = "log-snr"  # the time argument is lambda = log(alpha / sigma)
LAMBDA_RANGE = (-6.0, 8.0)  # trained range; the conditioning is clamped to it

DATA = Path(__file__).parent / "data"
WEIGHTS = DATA / "digits.safetensors"
HELD = DATA / "digits_held.safetensors"

_WIDTHS = (24, 64, 112)  # channels at 28, 14 and 7 pixels
LADDER = DATA / "digits_ladder.safetensors"
LADDER_WIDTHS = ((8, 16, 24), (16, 32, 56))  # of the smaller networks of the ladder, whose top is the network above
LADDER_COSTS = (0.17, 0.43, 1.0)  # time of a call on 64 digits on one CPU core, the top being 1
_EMBED = 128
_HEADS = 4


def _check(x: Tensor, lam: Tensor, label: Tensor) -> None:
    for name, value in (("x", x), ("lam", lam)):
        if not value.is_floating_point():
            raise TypeError(f"{name}: got dtype {value.dtype}, need a floating dtype")
    if label.dtype != torch.int64:
        raise TypeError(f"label: got dtype {label.dtype}, need int64")
    if x.ndim != 4 or tuple(x.shape[1:]) != SHAPE:
        raise ValueError(f"x: got shape {tuple(x.shape)}, need (B, 1, 28, 28)")
    for name, value in (("lam", lam), ("label", label)):
        if tuple(value.shape) != (x.shape[0],):
            raise ValueError(f"{name}: got shape {tuple(value.shape)}, need ({x.shape[0]},): one value a sample of x")


class _Block(nn.Module):
    """Residual block: norm, SiLU, conv; norm, scale and shift from the embedding, SiLU, conv that starts at zero."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.norm1 = nn.GroupNorm(8, width)
        self.conv1 = nn.Conv2d(width, width, 3, padding=1)
        self.norm2 = nn.GroupNorm(8, width, affine=False)
        self.film = nn.Linear(_EMBED, 2 * width)
        self.conv2 = nn.Conv2d(width, width, 3, padding=1)
        nn.init.zeros_(self.conv2.weight)
        nn.init.zeros_(self.film.weight)

    def forward(self, x: Tensor, emb: Tensor) -> Tensor:
        h = self.conv1(F.silu(self.norm1(x)))
        scale, shift = self.film(emb)[:, :, None, None].chunk(2, dim=1)
        h = torch.addcmul(shift, self.norm2(h), 1 + scale)
        result: Tensor = x + self.conv2(F.silu(h))
        return result


class _Attention(nn.Module):
    """Self-attention over the 49 pixels of the smallest level."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.norm = nn.GroupNorm(8, width)
        self.qkv = nn.Linear(width, 3 * width)
        self.out = nn.Linear(width, width)
        nn.init.zeros_(self.out.weight)

    def forward(self, x: Tensor) -> Tensor:
        b, c, h, w = x.shape
        tokens = self.norm(x).flatten(2).transpose(1, 2)
        q, k, v = self.qkv(tokens).reshape(b, h * w, 3, _HEADS, c // _HEADS).permute(2, 0, 3, 1, 4)
        scores = (q * (c // _HEADS) ** -0.5) @ k.transpose(-1, -2)  # 49 x 49: a fused backward is slower here
        mixed = (scores.softmax(-1).to(v.dtype) @ v).transpose(1, 2).reshape(b, h * w, c)
        result: Tensor = x + self.out(mixed).transpose(1, 2).reshape(b, c, h, w)
        return result


class DigitsNet(nn.Module):
    """Class-conditional UNet for MNIST digits; 0.9 M parameters at its usual ``widths`` (multiples of 8, per level).

    ``net(x, lam, label) -> v`` with ``x = alpha * x0 + sigma * eps``, ``alpha^2 + sigma^2 = 1``, digits ``x0`` in
    [-1, 1] and ``v = alpha * eps - sigma * x0`` (Salimans and Ho 2022, arXiv 2202.00512, appendix D).
    """

    frequencies: Tensor

    def __init__(self, widths: tuple[int, int, int] = _WIDTHS) -> None:
        super().__init__()
        a, b, c = widths
        low, high = math.log(0.15), math.log(3.0)
        self.register_buffer("frequencies", torch.linspace(low, high, 16).exp(), persistent=False)
        self.time = nn.Sequential(nn.Linear(32, _EMBED), nn.SiLU(), nn.Linear(_EMBED, _EMBED))
        self.label = nn.Embedding(CLASSES + 1, _EMBED)
        nn.init.normal_(self.label.weight, std=0.3)
        self.stem = nn.Conv2d(1, a, 3, padding=1)
        self.down = nn.ModuleList([_Block(a), _Block(b)])
        self.shrink = nn.ModuleList([nn.Conv2d(a, b, 2, stride=2), nn.Conv2d(b, c, 2, stride=2)])
        self.middle = nn.ModuleList([_Block(c), _Attention(c), _Block(c)])
        self.grow = nn.ModuleList([nn.ConvTranspose2d(b, a, 2, stride=2), nn.ConvTranspose2d(c, b, 2, stride=2)])
        self.up = nn.ModuleList([_Block(a), _Block(b)])
        self.head_norm = nn.GroupNorm(8, a)
        self.head = nn.Conv2d(a, 1, 3, padding=1)
        nn.init.zeros_(self.head.weight)

    def forward(self, x: Tensor, lam: Tensor, label: Tensor) -> Tensor:
        """Predict v.

        Args:
            x: (B, 1, 28, 28), any float dtype; computed in the dtype of the weights.
            lam: (B,), half log-SNR log(alpha / sigma); the conditioning is clamped to [-6, 8].
            label: (B,) int64, 0..9 or ``NULL_CLASS``. The range is not checked here: that would stop a GPU.

        Returns:
            v, shape and dtype of ``x``.

        Raises:
            TypeError: ``x`` or ``lam`` is not floating, or ``label`` is not int64.
            ValueError: a shape other than the above.
        """
        _check(x, lam, label)
        dtype = self.stem.weight.dtype
        lam = lam.to(dtype).clamp(*LAMBDA_RANGE)
        angles = lam[:, None] * self.frequencies
        emb = F.silu(self.time(torch.cat([angles.cos(), angles.sin()], dim=1)) + self.label(label))
        h = self.stem(x.to(dtype))
        skips = []
        for block, shrink in zip(self.down, self.shrink, strict=True):
            h = block(h, emb)
            skips.append(h)
            h = shrink(h)
        first, attention, second = self.middle
        h = second(attention(first(h, emb)), emb)
        for i in (1, 0):
            h = self.up[i](self.grow[i](h) + skips[i], emb)
        v: Tensor = self.head(F.silu(self.head_norm(h)))
        return v.to(x.dtype)


def read_data(path: Path) -> dict[str, Tensor]:
    """The tensors of a packaged safetensors file, or an error that says what is missing."""
    try:
        from safetensors.torch import load_file
    except ImportError as error:
        raise ImportError("the shipped digits need safetensors: pip install safetensors") from error
    if not path.is_file():
        raise FileNotFoundError(f"{path} is missing from this installation: install the package again")
    return load_file(path)


def load_digits(device: torch.device | str = "cpu", dtype: torch.dtype = torch.float32) -> DigitsNet:
    """The trained network: eval mode, no gradients of the weights.

    Args:
        device: where to put it.
        dtype: a floating dtype for weights and arithmetic. The file holds float16; float64 adds no knowledge but
            makes the network a smooth function for tests of convergence order.

    Raises:
        TypeError: ``dtype`` is not a floating dtype.
        FileNotFoundError: the package data is missing.
        ImportError: safetensors is not installed.
    """
    if not isinstance(dtype, torch.dtype) or not dtype.is_floating_point:
        raise TypeError(f"dtype: got {dtype}, need a floating dtype such as torch.float32")
    weights = read_data(WEIGHTS)
    net = DigitsNet()
    net.load_state_dict({name: value.float() for name, value in weights.items()})
    return net.eval().requires_grad_(False).to(device=device, dtype=dtype)


def load_digit_ladder(device: torch.device | str = "cpu", dtype: torch.dtype = torch.float32) -> list[DigitsNet]:
    """The shipped network and two smaller ones that were taught to predict what it predicts, the cheapest first.

    ``examples/train_digits/train_ladder.py`` made them.  Arguments and errors as `load_digits`.
    """
    weights, nets = read_data(LADDER), []
    for level, widths in enumerate(LADDER_WIDTHS):
        net, mark = DigitsNet(widths), f"{level}."
        net.load_state_dict({k.removeprefix(mark): v.float() for k, v in weights.items() if k.startswith(mark)})
        nets.append(net.eval().requires_grad_(False).to(device=device, dtype=dtype))
    return [*nets, load_digits(device, dtype)]


def held_digits() -> tuple[Tensor, Tensor]:
    """100 real digits that training never saw, 10 of each class: images (100, 1, 28, 28) float32 in [-1, 1], labels.

    Real pictures to start from: image-to-image, inversion, tests.

    Raises:
        FileNotFoundError: the package data is missing.
        ImportError: safetensors is not installed.
    """
    held = read_data(HELD)
    return held["images"].float() / 127.5 - 1, held["labels"]
