"""Samplers that keep tensors, mix predictions or have two times: the loop with the real op against the numpy replay."""

from __future__ import annotations

import numpy as np
import pytest
import torch

import fastsample
from fastsample.few_step import karras_index_path, lcm_path, tcd_stops
from fastsample.grids import make_path
from fastsample.models.network import Network
from fastsample.plan import make_plan
from fastsample.schedules import DiscreteVP
from fastsample.solvers import usf

from .golden_cases import Replay

TABLE = DiscreteVP.linear()
SMOOTH = make_path("vp-linear", "log-snr", 7)
MIXED = usf.known("unipc-3-bh2", 7)
for i, entry in enumerate(MIXED["steps"]):
    entry["form"] = ("x0", "eps")[i % 2]

PLANS = {
    "forward-value": lambda: make_plan("forward-value", SMOOTH, order=1, time="log-snr"),
    "forward-value-3": lambda: make_plan("forward-value", SMOOTH, order=3, clip=1.5, time="log-snr"),
    "forward-value-mean": lambda: make_plan("forward-value", SMOOTH, order=3, average=True, time="log-snr"),
    "dualfast": lambda: make_plan("dualfast", SMOOTH, base="dpmpp-2m", c=0.3, time="log-snr"),
    "dualfast-all": lambda: make_plan("dualfast", SMOOTH, base="unipc", c=0.3, mix="all", clip=2.0, time="log-snr"),
    "usf": lambda: make_plan("usf", SMOOTH, schedule=MIXED, time="log-snr"),
    "usf-guessed": lambda: make_plan("usf", SMOOTH, schedule=MIXED, afs="zero-x0", clip=2.0, time="log-snr"),
    "lcm": lambda: make_plan("lcm", lcm_path(TABLE, 4), prediction="v", clip=1.0, record=True),
    "tcd": lambda: make_plan("tcd", lcm_path(TABLE, 4), stops=tcd_stops(TABLE), record=True),
    "cm": lambda: make_plan(
        "cm", karras_index_path([0, 10, 22, 39]), prediction="edm", input_scaling="edm", clip=1.0, time="log-sigma"
    ),
    "ctm": lambda: make_plan("ctm", karras_index_path([0, 10, 22, 39]), prediction="edm", time="log-sigma"),
}


@pytest.mark.parametrize("name", PLANS)
def test_the_loop_does_what_the_rows_say(name):
    plan = PLANS[name]()
    noise = [torch.randn(3, 5, generator=torch.Generator().manual_seed(i), dtype=torch.float64) for i in range(20)]
    times = []

    def model(x, t):
        times.append(t[0].tolist())
        return torch.tanh(0.7 * x) + 0.01 * t.reshape(len(x), -1).sum(1, keepdim=True)

    says = {key: plan.options[key] for key in ("time", "input_scaling") if key in plan.options}
    network = Network(model, plan.prediction, **says)
    end = fastsample.sample(network, noise[0], plan=plan, noise=noise)
    told = plan.t if plan.targets is None else np.stack([plan.t, plan.targets], axis=1)
    np.testing.assert_array_equal(times, told)

    def again(i, x):
        return np.tanh(0.7 * x) + 0.01 * np.sum(told[i])

    run = Replay(plan, noise[0].numpy(), again, lambda n: noise[n].numpy())
    np.testing.assert_allclose(end.numpy(), run.x, rtol=1e-11, atol=1e-12)
