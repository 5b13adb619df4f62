"""Runs of any kind one after the other on the same recordings: each has the bits of the eager loop."""

from __future__ import annotations

import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from fastsample import GaussianMixture, Ladder, graph, load_model, sample

WEIGHT = torch.randn(5, 5, generator=torch.Generator().manual_seed(0)) * 0.4
LABELS = torch.randn(4, 5, generator=torch.Generator().manual_seed(1)) * 0.2


def net(x, t, cond=None):
    y = x.float() @ WEIGHT + 0.1 * t.float()[:, None]
    return torch.tanh(y if cond is None else y + LABELS[cond]).to(x.dtype)


def arguments(draw):
    guided = draw(st.booleans())
    chosen = {
        "solver": draw(st.sampled_from(["ddim", "ddpm", "dpmpp-2m", "sde-dpmpp-3m", "unipc", "heun", "sa", "lms"])),
        "steps": draw(st.integers(1, 40)),
        "seed": draw(st.integers(0, 9)),
        "dtype": draw(st.sampled_from([torch.float32, torch.float32, torch.bfloat16])),
        "clip": draw(st.sampled_from([None, 1.0])),
        "denoised": draw(st.booleans()),
        "x": draw(st.sampled_from([(3, 5), (2, 5), torch.linspace(-2, 2, 15).reshape(3, 5)])),
    }
    count = len(chosen["x"]) if isinstance(chosen["x"], torch.Tensor) else chosen["x"][0]
    if isinstance(chosen["x"], torch.Tensor) and chosen["steps"] > 2 and draw(st.booleans()):
        chosen["start"] = draw(st.integers(0, chosen["steps"] - 2))
    if guided or draw(st.booleans()):
        chosen["cond"] = torch.arange(count) % 4
    if guided:
        chosen |= {"uncond": torch.zeros(count, dtype=torch.int64), "guidance": draw(st.sampled_from([1.5, 3.0]))}
    return chosen, draw(st.sampled_from(["on", "on", "on", "whole"]))


@settings(max_examples=12, deadline=None)
@given(st.composite(arguments)(), st.data())
def test_any_run_after_any_other(first, data):
    for chosen, mode in [first, *(data.draw(st.composite(arguments)()) for _ in range(5))]:
        eager = sample(net, **chosen)
        assert torch.equal(eager, sample(net, **chosen, graph=mode)), (chosen, mode)


def test_networks_of_this_package():
    graph.clear()
    digits, labels = load_model("digits"), torch.arange(3)
    chosen = {"solver": "dpmpp-2m", "steps": 4, "seed": 0, "guidance": 2.0, "cond": labels}
    eager = sample(digits, 3, **chosen)
    assert torch.equal(eager, sample(digits, 3, **chosen, graph="on"))
    mixture = GaussianMixture(torch.randn(3, 2, 3, generator=torch.Generator().manual_seed(0)), 0.3)
    ladder = Ladder([mixture.network(), mixture.network()], costs=[1, 5])
    for model in (mixture, ladder):
        captures = []
        for seed in (0, 1):
            stats = {}
            eager = sample(model, (4, 2, 3), steps=6, seed=seed)
            assert torch.equal(eager, sample(model, (4, 2, 3), steps=6, seed=seed, graph="on", stats=stats))
            captures.append(stats["graph"]["captures"])
        assert captures[0] > 0 and captures[1] == 0  # a mixture's network is made anew in every call
    graph.clear()
