"""Train the digit classifier behind digit-FID; write its weights and the features of the 5,000 real digits.

python train_features.py
"""

from __future__ import annotations

import argparse
import math
import time
from pathlib import Path

import torch
import torch.nn.functional as F
from digits_data import augment, load_digits_data, split, to_unit, write
from tqdm import tqdm

from fastsample.metrics import WEIGHTS, FeatureNet, frechet_distance, moments


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--epochs", type=int, default=60)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--to", type=Path, default=WEIGHTS)
    args = parser.parse_args()

    begin = time.monotonic()
    torch.manual_seed(args.seed)
    gen = torch.Generator().manual_seed(args.seed + 1)
    images, labels = load_digits_data()
    (x, y), (held_x, held_y) = split(images, labels)
    x, held_x = to_unit(x), to_unit(held_x)
    net = FeatureNet()
    opt = torch.optim.AdamW(net.parameters(), lr=3e-3, weight_decay=0.02)
    batch = 100
    total = args.epochs * (len(x) // batch)
    bar = tqdm(total=total, unit="step", mininterval=2)
    for step in range(total):
        if step % (len(x) // batch) == 0:
            order = torch.randperm(len(x), generator=gen)
        pick = order[(step * batch) % len(x) :][:batch]
        loss = F.cross_entropy(net(augment(x[pick], gen, share=0.9)), y[pick], label_smoothing=0.05)
        loss.backward()  # type: ignore[no-untyped-call]
        for group in opt.param_groups:
            group["lr"] = 3e-3 * min(1.0, (step + 1) / 100) * (0.01 + 0.99 * math.cos(math.pi / 2 * step / total) ** 2)
        opt.step()
        opt.zero_grad()
        bar.update()
        bar.set_postfix(loss=f"{loss.item():.4f}", refresh=False)
    bar.close()

    net.eval().requires_grad_(False)
    right = (net(held_x).argmax(1) == held_y).float().mean().item()
    right_train = torch.cat([net(part).argmax(1) for part in x.split(500)]).eq(y).float().mean().item()
    real = torch.cat([net.features(part) for part in to_unit(images).split(500)]).half()
    floors = []
    for n in (100, 200, 500, 1000, 2500):
        alike, drawn = [], []
        for seed in range(8):
            order = torch.randperm(len(real), generator=torch.Generator().manual_seed(seed))
            drawn.append(frechet_distance(*moments(real[order[:n]]), *moments(real[order[n:]])))
            source = torch.Generator().manual_seed(seed)
            rows = torch.stack([torch.randperm(500, generator=source) + 500 * digit for digit in range(10)])
            one, other = rows[:, : n // 10].flatten(), rows[:, n // 10 :].flatten()
            alike.append(frechet_distance(*moments(real[one]), *moments(real[other])))
        floors.append(f"{n:6d} {sum(alike) / 8:16.3f} {sum(drawn) / 8:16.3f}")
    content = {f"net.{name}": value.contiguous() for name, value in net.state_dict().items()}
    write({**content, "real": real}, args.to, held_accuracy=f"{right:.4f}", seed=args.seed)
    print(f"accuracy: {right:.2%} on {len(held_y)} held-out digits, {right_train:.2%} on the {len(y)} of training")
    print(
        "digit-FID of n real digits against the others", "     n  equal per class  drawn at random", *floors, sep="\n"
    )
    print(f"total variance {real.double().var(0).sum():.2f}")
    print(f"{time.monotonic() - begin:.0f} s")


if __name__ == "__main__":
    main()
