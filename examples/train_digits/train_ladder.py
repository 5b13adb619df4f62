"""Teach small networks to predict what the shipped digits network predicts: the lower levels of a ladder.

python train_ladder.py run --out runs/ladder       train all levels at once, or go on from runs/ladder/last.pt
python train_ladder.py export --out runs/ladder    write the averaged weights into the package

The target is the large network's own output, which has no noise of its own, so that small networks learn it in
minutes; they see the same states as it did (noised digits, labels dropped now and then).
"""

from __future__ import annotations

import argparse
import math
import time
from pathlib import Path

import torch
from digits_data import augment, load_digits_data, split, to_unit, write
from tqdm import tqdm
from train import EMA, LABEL_DROPOUT, alpha_sigma, draw_lambda, save

from fastsample.models.digits import LADDER, LADDER_WIDTHS, NULL_CLASS, DigitsNet, load_digits


def run(args: argparse.Namespace) -> None:
    args.out.mkdir(parents=True, exist_ok=True)
    torch.manual_seed(args.seed)
    gen = torch.Generator().manual_seed(args.seed + 1)
    (images, labels), _ = split(*load_digits_data())
    data = to_unit(images)
    teacher = load_digits()
    nets = [DigitsNet(widths) for widths in LADDER_WIDTHS]
    means = [DigitsNet(widths).requires_grad_(False) for widths in LADDER_WIDTHS]
    for net, mean in zip(nets, means, strict=True):
        mean.load_state_dict(net.state_dict())
    weights = [p for net in nets for p in net.parameters()]
    opt = torch.optim.AdamW(weights, lr=args.lr, betas=(0.9, 0.99), weight_decay=0.01, fused=True)
    step, path = 0, args.out / "last.pt"
    if path.exists():
        last = torch.load(path, weights_only=True)
        for group, parts in ((nets, last["nets"]), (means, last["means"])):
            for net, part in zip(group, parts, strict=True):
                net.load_state_dict(part)
        opt.load_state_dict(last["opt"])
        gen.set_state(last["gen"])
        step = last["step"]

    def checkpoint() -> None:
        parts = {"nets": [n.state_dict() for n in nets], "means": [n.state_dict() for n in means]}
        save(path, {**parts, "opt": opt.state_dict(), "gen": gen.get_state(), "step": step})

    saved, running = time.monotonic(), [1.0] * len(nets)
    bar = tqdm(total=args.steps, initial=step, unit="step", mininterval=20, smoothing=0.05)
    while step < args.steps:
        pick = torch.randint(len(data), (args.batch,), generator=gen)
        x0 = augment(data[pick], gen)
        label = torch.where(torch.rand(len(pick), generator=gen) < LABEL_DROPOUT, NULL_CLASS, labels[pick])
        lam = draw_lambda(len(pick), gen)
        alpha, sigma = alpha_sigma(lam)
        x = alpha * x0 + sigma * torch.randn(x0.shape, generator=gen)
        with torch.autocast("cpu", torch.bfloat16, enabled=args.bf16):
            with torch.inference_mode():
                target = teacher(x, lam, label)
            target = target.float().clone()
            losses = [(net(x, lam, label).float() - target).square().mean() for net in nets]
        sum(losses[1:], losses[0]).backward()  # type: ignore[no-untyped-call]
        for net in nets:
            torch.nn.utils.clip_grad_norm_(net.parameters(), 1.0)
        for group in opt.param_groups:
            cosine = 0.01 + 0.99 * math.cos(math.pi / 2 * step / args.steps) ** 2
            group["lr"] = args.lr * min(1.0, (step + 1) / 100) * cosine
        opt.step()
        opt.zero_grad()
        step += 1
        decay = min(EMA, (1 + step) / (10 + step))
        for net, mean in zip(nets, means, strict=True):
            torch._foreach_lerp_(list(mean.parameters()), [p.detach() for p in net.parameters()], 1 - decay)
        running = [r + 0.01 * (loss.item() - r) for r, loss in zip(running, losses, strict=True)]
        bar.update()
        bar.set_postfix(loss=" ".join(f"{r:.4f}" for r in running), refresh=False)
        if time.monotonic() - saved > 60:
            checkpoint()
            saved = time.monotonic()
    checkpoint()
    bar.close()


def export(args: argparse.Namespace) -> None:
    last = torch.load(args.out / "last.pt", weights_only=True)
    half = {
        f"{level}.{name}": value.to(torch.float16).contiguous()
        for level, part in enumerate(last["means"])
        for name, value in part.items()
    }
    write(half, LADDER, step=last["step"], prediction="v", time="log-snr")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    verbs = parser.add_subparsers(dest="verb", required=True)
    for verb in (run, export):
        sub = verbs.add_parser(verb.__name__)
        sub.set_defaults(call=verb)
        sub.add_argument("--out", type=Path, default=Path("runs/ladder"), help="folder of the checkpoint")
        if verb is run:
            sub.add_argument("--seed", type=int, default=0)
            sub.add_argument("--steps", type=int, default=6000, help="length of the learning-rate schedule")
            sub.add_argument("--batch", type=int, default=64)
            sub.add_argument("--lr", type=float, default=3e-3)
            sub.add_argument("--bf16", action=argparse.BooleanOptionalAction, default=True, help="bfloat16 autocast")
    args = parser.parse_args()
    args.call(args)


if __name__ == "__main__":
    main()
