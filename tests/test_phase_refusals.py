"""What phase-space solvers refuse, before memory is touched."""

from __future__ import annotations

import pytest
import torch

import fastsample
from fastsample import GaussianMixture, Network, PhaseSpace, make_path, make_plan, sample

PSLD = PhaseSpace()
RING = GaussianMixture.ring()


def plan_of(name, **options):
    return make_plan(name, make_path(PSLD, "quadratic", 4), **PSLD.options, **options)


def phase(x=4, plan=None, space=None, **options):
    return sample(RING.phase_space(space), x, plan=plan, **({"solver": "roba"} if plan is None else {}), **options)


VP = make_path("vp-linear", "uniform", 4)
RATES = PhaseSpace(beta=(1.0, 9.0))


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: sample(RING, 4, solver="roba"), "model: 'roba' moves position and momentum, and 'mixture' does not"),
        (lambda: sample(RING.phase_space(), 4, solver="ddim"), "solver: 'ddim' moves data alone"),
        (lambda: phase(Gamma=0.02), "Gamma: got 0.02, but the model says 0.01"),
        (lambda: sample(RING, 4, plan=plan_of("roba")), "does not say that it is a network of phase space"),
        (lambda: phase(plan=make_plan("ddim", VP)), "moves data alone"),
        (lambda: phase(plan=plan_of("roba"), space=PhaseSpace(0.02, 4.02)), "Gamma: got 0.01, but the model says 0.02"),
        (lambda: phase(torch.zeros(3, 5)), r"x: got shape \(3, 5\), need \(B, 2 C, ...\)"),
        (lambda: phase(schedule="vp-linear"), "schedule: got"),
        (lambda: make_plan("roba", VP), "path: its levels are not those of PhaseSpace"),
        (lambda: make_plan("dualfast", VP, base="roba"), "base: 'roba' needs a network"),
        (lambda: plan_of("roba", prediction="v"), "prediction: got 'v', allowed of a phase-space network"),
        (lambda: plan_of("roba", clip=1.0), "clip: got .* with a phase-space solver"),
        (lambda: plan_of("roba", denoise=True), "denoise: got True .* the option last"),
        (lambda: plan_of("roba", word="OB"), "word: got 'OB'"),
        (lambda: plan_of("roba", first="y"), "first: got 'y'"),
        (lambda: plan_of("roba", times="mid"), "times: got 'mid'"),
        (lambda: plan_of("roba", window="t"), "window: got 't'"),
        (lambda: plan_of("roba", share=1), "share: got 1"),
        (lambda: plan_of("cvv", kind="II"), "kind: got 'II'"),
        (lambda: plan_of("psld-em", last="some"), "last: got 'some'"),
        (lambda: plan_of("psld-whitened", order=3), "order: got 3"),
        (lambda: plan_of("psld-whitened", guidance=2.0), "guidance: a row of 'psld-whitened' would have 10 terms"),
        (lambda: make_plan("rse", make_path(RATES, "uniform", 4), beta=[1.0, 9.0]), "beta: .* needs a constant one"),
        (lambda: fastsample.make_plan("roba", make_path(PSLD, "uniform", 4), nu=3.0), "path: its levels are not those"),
    ],
)  # fmt: skip
def test_refusals(call, message):
    with pytest.raises(ValueError, match=message):
        call()
    with pytest.raises(TypeError, match="space: got int"):
        Network(torch.tanh, space=1)
