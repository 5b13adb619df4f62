"""Train the class-conditional digits network on the CPU and write its weights.

python train.py run --out runs/digits              train, or go on from runs/digits/last.pt
python train.py export --out runs/digits           write the averaged weights into the package
python train.py preview --out runs/digits          a picture: one row per class
"""

from __future__ import annotations

import argparse
import math
import os
import time
from itertools import pairwise
from pathlib import Path

import torch
from digits_data import augment, load_digits_data, split, to_unit, write
from torch import Tensor
from tqdm import tqdm

from fastsample.metrics import classify_digits, digit_fid
from fastsample.models.digits import LAMBDA_RANGE, NULL_CLASS, WEIGHTS, DigitsNet, load_digits

EMA = 0.9995
LABEL_DROPOUT = 0.12


def draw_lambda(n: int, gen: torch.Generator) -> Tensor:
    """Half log-SNR, stratified over the batch: 85 % cosine schedule (lambda = -log tan(pi t / 2)), 15 % uniform."""
    low, high = LAMBDA_RANGE
    u = (torch.arange(n) + torch.rand(n, generator=gen)) / n
    first, last = (math.atan(math.exp(-lam)) for lam in (high, low))
    cosine = -(first + (last - first) * u).tan().log()
    flat = low + (high - low) * torch.rand(n, generator=gen)
    return torch.where(torch.rand(n, generator=gen) < 0.15, flat, cosine)


def alpha_sigma(lam: Tensor) -> tuple[Tensor, Tensor]:
    return torch.sigmoid(2 * lam).sqrt()[:, None, None, None], torch.sigmoid(-2 * lam).sqrt()[:, None, None, None]


def save(path: Path, content: dict[str, object]) -> None:
    """Write beside the target, then rename: a killed run leaves the last whole checkpoint."""
    part = path.with_suffix(".part")
    torch.save(content, part)
    os.replace(part, path)


def run(args: argparse.Namespace) -> None:
    out: Path = args.out
    out.mkdir(parents=True, exist_ok=True)
    torch.manual_seed(args.seed)
    gen = torch.Generator().manual_seed(args.seed + 1)
    (images, labels), _ = split(*load_digits_data())
    data = to_unit(images)
    net, mean = DigitsNet(), DigitsNet().requires_grad_(False)
    mean.load_state_dict(net.state_dict())
    opt = torch.optim.AdamW(net.parameters(), lr=args.lr, betas=(0.9, 0.99), weight_decay=0.01, fused=True)
    step, seconds = 0, 0.0
    if (out / "last.pt").exists():
        last = torch.load(out / "last.pt", weights_only=True)
        if last["args"] != [args.seed, args.batch, args.steps, args.lr]:
            raise SystemExit(
                f"{out}/last.pt has [seed, batch, steps, lr] = {last['args']}: give the same, or a new --out"
            )
        net.load_state_dict(last["net"])
        mean.load_state_dict(last["ema"])
        opt.load_state_dict(last["opt"])
        gen.set_state(last["gen"])
        step, seconds = last["step"], last["seconds"]

    def checkpoint() -> None:
        content = {"net": net.state_dict(), "ema": mean.state_dict(), "opt": opt.state_dict(), "gen": gen.get_state()}
        own = [args.seed, args.batch, args.steps, args.lr]
        save(out / "last.pt", {**content, "args": own, "step": step, "seconds": seconds})

    begin, saved, running = time.monotonic() - seconds, time.monotonic(), 1.0
    bar = tqdm(total=args.steps, initial=step, unit="step", mininterval=10, smoothing=0.05)
    while step < args.steps:
        # Each epoch has its own order, a function of the seed and the epoch: a resumed run sees the same batches.
        epoch, place = divmod(step, len(data) // args.batch)
        order = torch.randperm(len(data), generator=torch.Generator().manual_seed(args.seed + 1000 + epoch))
        pick = order[place * args.batch : (place + 1) * args.batch]
        x0 = augment(data[pick], gen)
        label = torch.where(torch.rand(len(pick), generator=gen) < LABEL_DROPOUT, NULL_CLASS, labels[pick])
        lam = draw_lambda(len(pick), gen)
        eps = torch.randn(x0.shape, generator=gen)
        alpha, sigma = alpha_sigma(lam)
        with torch.autocast("cpu", torch.bfloat16, enabled=args.bf16):
            v = net(alpha * x0 + sigma * eps, lam, label)
        loss = (v.float() - (alpha * eps - sigma * x0)).square().mean()
        loss.backward()  # type: ignore[no-untyped-call]
        torch.nn.utils.clip_grad_norm_(net.parameters(), 1.0)
        for group in opt.param_groups:
            group["lr"] = (
                args.lr * min(1.0, (step + 1) / 300) * (0.01 + 0.99 * math.cos(math.pi / 2 * step / args.steps) ** 2)
            )
        opt.step()
        opt.zero_grad()
        step += 1
        decay = min(EMA, (1 + step) / (10 + step))
        torch._foreach_lerp_(list(mean.parameters()), [p.detach() for p in net.parameters()], 1 - decay)
        running += 0.01 * (loss.item() - running)
        seconds = time.monotonic() - begin
        bar.update()
        bar.set_postfix(loss=f"{running:.4f}", epoch=epoch, refresh=False)
        if time.monotonic() - saved > 60:
            checkpoint()
            saved = time.monotonic()
        if args.minutes and seconds > 60 * args.minutes:
            break
    checkpoint()
    bar.close()
    print(f"step {step}, {step * args.batch / len(data):.0f} epochs, {seconds / 60:.1f} minutes, loss {running:.4f}")


def averaged(out: Path) -> tuple[DigitsNet, int]:
    last = torch.load(out / "last.pt", weights_only=True)
    net = DigitsNet()
    net.load_state_dict(last["ema"])
    return net.eval().requires_grad_(False), last["step"]


def export(args: argparse.Namespace) -> None:
    net, step = averaged(args.out)
    half = {name: value.to(torch.float16).contiguous() for name, value in net.state_dict().items()}
    write(half, args.to, step=step, prediction="v", time="log-snr")


@torch.inference_mode()
def ddim(net: DigitsNet, label: Tensor, steps: int, guidance: float, seed: int) -> Tensor:
    """Samples of the classes in `label`: DDIM on a grid uniform in half log-SNR, classifier-free guidance."""
    start = torch.randn(len(label), 1, 28, 28, generator=torch.Generator().manual_seed(seed))
    grid = torch.linspace(-5, 6, steps + 1)
    done = []
    for y, x in zip(label.split(250), start.split(250), strict=True):
        for here, there in pairwise(grid):
            lam = here.expand(len(y))
            v = net(x, lam, y)
            if guidance != 1:
                free = net(x, lam, torch.full_like(y, NULL_CLASS))
                v = free + guidance * (v - free)
            alpha, sigma = alpha_sigma(here[None])
            x0, eps = alpha * x - sigma * v, sigma * x + alpha * v
            alpha, sigma = alpha_sigma(there[None])
            x = alpha * x0 + sigma * eps
        done.append(x0)
    return torch.cat(done)


def preview(args: argparse.Namespace) -> None:
    from PIL import Image

    net, step = averaged(args.out)
    x = ddim(net, torch.arange(10).repeat_interleave(10), 30, args.guidance, args.seed)
    tiles = ((x.clamp(-1, 1) + 1) * 127.5).round().to(torch.uint8).reshape(10, 10, 28, 28)
    page = tiles.permute(0, 2, 1, 3).reshape(280, 280).numpy()
    path = args.out / f"preview-{step}.png"
    Image.fromarray(page).resize((840, 840), Image.Resampling.NEAREST).save(path)
    print(path)


@torch.inference_mode()
def measure(args: argparse.Namespace) -> None:
    """Of the shipped weights: MSE of v on the held-out digits, then digit-FID and accuracy of DDIM samples."""
    net = load_digits()
    _, (images, labels) = split(*load_digits_data())
    data, gen = to_unit(images), torch.Generator().manual_seed(args.seed)
    print("lambda    MSE of v, class given    without class")
    for value in (-6, -4, -2, -1, 0, 1, 2, 4, 6, 8):
        lam = torch.full((len(data),), float(value))
        alpha, sigma = alpha_sigma(lam)
        eps = torch.randn(data.shape, generator=gen)
        want = alpha * eps - sigma * data
        outs = [net(alpha * data + sigma * eps, lam, y) for y in (labels, torch.full_like(labels, NULL_CLASS))]
        print(f"{value:6d}    " + "    ".join(f"{(v - want).square().mean().item():20.4f}" for v in outs))
    label = torch.arange(args.samples) % 10
    for guidance in (1.0, 1.5, 2.0, 3.0):
        x = ddim(net, label, 20, guidance, args.seed)
        right = (classify_digits(x) == label).float().mean().item()
        print(
            f"guidance {guidance}: digit-FID {digit_fid(x):.2f}, recognised {right:.1%} of {args.samples}", flush=True
        )
    noise = torch.randn(args.samples, 1, 28, 28, generator=gen)
    print(f"Gaussian noise: digit-FID {digit_fid(noise):.0f}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    verbs = parser.add_subparsers(dest="verb", required=True)
    for verb in (run, export, preview, measure):
        sub = verbs.add_parser(verb.__name__)
        sub.set_defaults(call=verb)
        if verb is not measure:
            sub.add_argument("--out", type=Path, default=Path("runs/digits"), help="folder of the checkpoint")
        if verb is not export:
            sub.add_argument("--seed", type=int, default=0)
        if verb is run:
            sub.add_argument("--steps", type=int, default=9500, help="length of the learning-rate schedule")
            sub.add_argument("--batch", type=int, default=128)
            sub.add_argument("--lr", type=float, default=1.5e-3)
            sub.add_argument("--minutes", type=float, default=0, help="stop after this much training time; 0: never")
            sub.add_argument("--bf16", action=argparse.BooleanOptionalAction, default=True, help="bfloat16 autocast")
        if verb is export:
            sub.add_argument("--to", type=Path, default=WEIGHTS)
        if verb is preview:
            sub.add_argument("--guidance", type=float, default=2.0)
        if verb is measure:
            sub.add_argument("--samples", type=int, default=1000)
    args = parser.parse_args()
    args.call(args)


if __name__ == "__main__":
    main()
