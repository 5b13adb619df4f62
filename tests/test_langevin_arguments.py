"""langevin.sample refuses what it cannot do, by name."""

from __future__ import annotations

import re

import pytest
import torch

from fastsample import Network, langevin

from .langevin_cases import gaussian

X = torch.zeros(3, 2)
GOOD = {"target": gaussian(), "x": X, "steps": 2, "step_size": 0.1, "seed": 0}
BAD = [
    ({"kernel": "hmc"}, ValueError, "kernel: got 'hmc', allowed are lmc, mala"),
    ({"kernel": "malla"}, ValueError, "did you mean mala"),
    ({"kernel": 3}, TypeError, "kernel: got int"),
    ({"target": lambda x: x}, TypeError, "target: got function, allowed are langevin.Score"),
    ({"x": torch.zeros(3)}, ValueError, "x: got shape (3,)"),
    ({"x": torch.zeros(0, 3)}, ValueError, "x: got shape (0, 3)"),
    ({"x": torch.zeros(3, 2, dtype=torch.int64)}, TypeError, "x: got torch.int64"),
    ({"x": [1.0]}, TypeError, "x: got list"),
    ({"steps": 0}, ValueError, "steps: got 0"),
    ({"steps": 1.5}, ValueError, "steps: got 1.5"),
    ({"warmup": -1}, ValueError, "warmup: got -1"),
    ({"thin": 0}, ValueError, "thin: got 0"),
    ({"step_size": 0.0}, ValueError, "step_size: got 0.0"),
    ({"step_size": "big"}, TypeError, "step_size: got str"),
    ({"step_size": lambda n: -1.0}, ValueError, "step_size: got -1.0"),
    ({"target_acceptance": 0.5}, ValueError, "warmup: got 0"),
    ({"target_acceptance": 1.5, "warmup": 5}, ValueError, "target_acceptance: got 1.5"),
    ({"target_acceptance": 0.5, "warmup": 5, "kernel": "lmc"}, ValueError, "target_acceptance: only 'mala'"),
    ({"adapt_each": True}, ValueError, "adapt_each: got True"),
    ({"friction": 1.0}, ValueError, "option: the kernel 'mala' has no option 'friction'"),
    ({"kernel": "uld"}, ValueError, "friction: got None"),
    ({"kernel": "uld", "friction": 1.0, "velocity": torch.zeros(2)}, ValueError, "velocity: need"),
    ({"estimator": "best"}, ValueError, "estimator: got 'best'"),
    ({"estimator": "energy", "target": langevin.Score(lambda x: -x)}, ValueError, "estimator: got 'energy', but"),
    ({"radii": (0.0, 1.0)}, ValueError, "radii: got (0.0, 1.0)"),
    ({"noise": {1: X}}, ValueError, "uniforms: got none"),
    ({"noise": {1: X}, "uniforms": torch.zeros(1, 3)}, ValueError, "uniforms: got shape (1, 3), need (2, 3)"),
    ({"kernel": "lmc", "noise": {1: X}}, ValueError, "noise: got none for draw 2"),
    ({"kernel": "lmc", "noise": {1: X[:1]}}, ValueError, "noise: draw 1 has shape (1, 2)"),
    ({"kernel": "rlmc", "theta": [0.5]}, ValueError, "theta: got 1, the run has more"),
    ({"kernel": "rlmc", "theta": [1.5, 0.0]}, ValueError, "theta: got [1.5, 0.0]"),
    ({"kernel": "plmc", "window": 0}, ValueError, "window: got 0"),
    ({"kernel": "plmc", "midpoints": "two"}, ValueError, "midpoints: got 'two'"),
    ({"kernel": "plmc", "midpoints": 33}, ValueError, "midpoints: got 33, allowed are at most"),
    ({"kernel": "plmc", "midpoints": [[32]]}, ValueError, "midpoints: got offsets outside 0..31"),
    ({"sample_ids": [1]}, ValueError, "sample_ids: got 1, need 3"),
    ({"target": langevin.Score(lambda x: x[:1])}, ValueError, "target: returned shape (1, 2)"),
    ({"target": langevin.Score(lambda x: 3.0)}, TypeError, "target: returned float"),
    ({"target": langevin.Score(lambda x: x.long())}, TypeError, "target: returned torch.int64"),
    ({"target": langevin.Energy(lambda x: x.sum())}, ValueError, "energy: returned shape ()"),
    ({"target": langevin.Score(lambda x: -x, lambda x: x)}, ValueError, "energy: returned shape (3, 2)"),
    ({"target": langevin.Score(lambda x: x * torch.nan), "kernel": "lmc"}, FloatingPointError, "'lmc' ended at NaN"),
]


@pytest.mark.parametrize(("change", "error", "message"), BAD, ids=[m for _, _, m in BAD])
def test_bad_arguments(change, error, message):
    arguments = {**GOOD, **change}
    with pytest.raises(error, match=re.escape(message)):
        langevin.sample(arguments.pop("target"), arguments.pop("x"), **arguments)


def test_bad_targets():
    net = Network(lambda x, t: x, "eps")
    with pytest.raises(ValueError, match="t: got None, but a network that is told 't'"):
        langevin.AtLevel(net, 0.6, 0.8)
    with pytest.raises(ValueError, match="sigma: got 0"):
        langevin.AtLevel(net, 1.0, 0.0, 0.0)
    with pytest.raises(ValueError, match="alpha: got -1.0"):
        langevin.AtLevel(net, -1.0, 0.5, 0.0)
    with pytest.raises(TypeError, match="fn: got int"):
        langevin.Energy(3)
    with pytest.raises(TypeError, match="gradient: got str"):
        langevin.Energy(lambda x: x, "x")
    assert langevin.AtLevel(Network(lambda x, t: x, "score"), 1.0, 0.0, 0.0).Q == -1.0
