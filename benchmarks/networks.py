"""Networks of the end-to-end benchmark, with random weights: a policy's 1-D UNet and a small diffusion transformer."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn


def _waves(t: Tensor, width: int) -> Tensor:
    """Sines and cosines of times ``(B,)``: ``(B, width)``."""
    rates = torch.exp(torch.arange(width // 2, device=t.device) * (-math.log(10000.0) / (width // 2 - 1)))
    angles = t[:, None] * rates
    return torch.cat([angles.sin(), angles.cos()], dim=1)


def _conv(inward: int, outward: int) -> nn.Sequential:
    return nn.Sequential(nn.Conv1d(inward, outward, 5, padding=2), nn.GroupNorm(8, outward), nn.Mish())


class _Residual(nn.Module):
    """Two convolutions; scale and shift of the first one's result come from the condition."""

    def __init__(self, inward: int, outward: int, condition: int) -> None:
        super().__init__()
        self.first, self.second = _conv(inward, outward), _conv(outward, outward)
        self.film = nn.Sequential(nn.Mish(), nn.Linear(condition, 2 * outward))
        self.skip = nn.Conv1d(inward, outward, 1) if inward != outward else nn.Identity()

    def forward(self, x: Tensor, condition: Tensor) -> Tensor:
        scale, shift = self.film(condition)[:, :, None].chunk(2, dim=1)
        out: Tensor = self.second(scale * self.first(x) + shift) + self.skip(x)
        return out


class PolicyUNet(nn.Module):
    """Noise prediction for a sequence of actions ``(B, horizon, actions)`` given an observation, at times ``(B,)``.

    The conditional 1-D UNet of Diffusion Policy (Chi et al. 2023, arXiv 2303.04137): FiLM from time and observation,
    two residual blocks per level, kernel 5.  Its usual widths are (256, 512, 1024), 65 M parameters.
    """

    def __init__(self, actions: int = 2, observed: int = 10, widths: tuple[int, ...] = (64, 128, 256)) -> None:
        super().__init__()
        embed = widths[0]
        self.embed = embed
        self.time = nn.Sequential(nn.Linear(embed, 4 * embed), nn.Mish(), nn.Linear(4 * embed, embed))
        condition = embed + observed
        self.register_buffer("observation", torch.linspace(-1.0, 1.0, observed)[None])
        pairs = list(zip((actions, *widths[:-1]), widths, strict=True))

        def two(inward: int, outward: int) -> nn.ModuleList:
            return nn.ModuleList([_Residual(inward, outward, condition), _Residual(outward, outward, condition)])

        self.down = nn.ModuleList(two(i, o) for i, o in pairs)
        self.shrink = nn.ModuleList(nn.Conv1d(w, w, 3, stride=2, padding=1) for w in widths[:-1])
        self.middle = two(widths[-1], widths[-1])
        self.up = nn.ModuleList(two(2 * o, i) for i, o in reversed(pairs[1:]))
        self.grow = nn.ModuleList(nn.ConvTranspose1d(w, w, 4, stride=2, padding=1) for w in reversed(widths[:-1]))
        self.last = nn.Sequential(_conv(widths[0], widths[0]), nn.Conv1d(widths[0], actions, 1))

    def forward(self, x: Tensor, t: Tensor) -> Tensor:
        condition = torch.cat([self.time(_waves(t, self.embed)), self.observation.expand(len(x), -1)], dim=1)
        h, kept = x.transpose(1, 2), []
        for i, (one, two) in enumerate(self.down):
            h = two(one(h, condition), condition)
            kept.append(h)
            if i < len(self.shrink):
                h = self.shrink[i](h)
        for block in self.middle:
            h = block(h, condition)
        for (one, two), grow in zip(self.up, self.grow, strict=True):
            h = grow(two(one(torch.cat([h, kept.pop()], dim=1), condition), condition))
        out: Tensor = self.last(h).transpose(1, 2)
        return out.contiguous()


class _Block(nn.Module):
    """Attention and MLP, each shifted, scaled and gated by the condition (adaLN)."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.norm = nn.LayerNorm(width, elementwise_affine=False, eps=1e-6)
        self.condition = nn.Linear(width, 6 * width)
        self.qkv, self.out = nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.mlp = nn.Sequential(nn.Linear(width, 4 * width), nn.GELU(approximate="tanh"), nn.Linear(4 * width, width))

    def forward(self, x: Tensor, c: Tensor) -> Tensor:
        shift, scale, gate, shift2, scale2, gate2 = self.condition(F.silu(c))[:, None].chunk(6, dim=-1)
        b, n, width = x.shape
        h = self.norm(x) * (1 + scale) + shift
        q, k, v = self.qkv(h).reshape(b, n, 3, self.heads, width // self.heads).permute(2, 0, 3, 1, 4)
        mixed = F.scaled_dot_product_attention(q, k, v).transpose(1, 2).reshape(b, n, width)
        x = x + gate * self.out(mixed)
        result: Tensor = x + gate2 * self.mlp(self.norm(x) * (1 + scale2) + shift2)
        return result


class TinyTransformer(nn.Module):
    """Noise prediction ``(B, C, H, W)`` at times ``(B,)``: patches of 2 x 2, blocks with adaLN, one linear layer back.

    A diffusion transformer (Peebles and Xie 2022, arXiv 2212.09748), small; all weights random, none zero.
    """

    positions: Tensor

    def __init__(self, channels: int = 4, side: int = 16, width: int = 128, depth: int = 4, heads: int = 4) -> None:
        super().__init__()
        self.width = width
        self.patches = nn.Conv2d(channels, width, 2, stride=2)
        self.register_buffer("positions", 0.02 * torch.randn(1, (side // 2) ** 2, width))
        self.time = nn.Sequential(nn.Linear(width, width), nn.SiLU(), nn.Linear(width, width))
        self.blocks = nn.ModuleList(_Block(width, heads) for _ in range(depth))
        self.norm = nn.LayerNorm(width, elementwise_affine=False, eps=1e-6)
        self.last = nn.Linear(width, 4 * channels)

    def forward(self, x: Tensor, t: Tensor) -> Tensor:
        h = self.patches(x)
        rows, columns = h.shape[2:]
        h = h.flatten(2).transpose(1, 2) + self.positions
        c = self.time(_waves(t, self.width))
        for block in self.blocks:
            h = block(h, c)
        out = self.last(self.norm(h)).transpose(1, 2).reshape(len(x), -1, rows, columns)
        return F.pixel_shuffle(out, 2)


def randomly(make: type[nn.Module], device: str, **options: object) -> nn.Module:
    """A network with the weights of seed 0, for inference; torch's own generator is left as it was."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        net = make(**options)
    return net.eval().requires_grad_(False).to(device)
