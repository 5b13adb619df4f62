"""Procedures of fixed course as one recording: the bits, the report, and what is refused."""

from __future__ import annotations

import warnings

import pytest
import torch

import fastsample
from fastsample import CaptureError, GaussianMixture, Ladder, graph, sample

SHAPE = (2, 3)
MEANS = torch.randn(3, *SHAPE, generator=torch.Generator().manual_seed(1), dtype=torch.float64)


@pytest.fixture(autouse=True)
def _fresh():
    graph.clear()
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "window:")
        warnings.filterwarnings("ignore", "guidance:")
        yield
    graph.clear()


class Counted:
    """A mixture's network that counts how often its Python runs."""

    def __init__(self):
        self.ran = 0
        self.network = GaussianMixture(MEANS, 0.3).network().wrapped(self.wrap)

    def wrap(self, fn):
        def counted(*args):
            self.ran += 1
            return fn(*args)

        return counted


@pytest.mark.parametrize(
    ("solver", "options"),
    [
        ("rtk-mala", {}),
        ("rtk-mala", {"estimator": "simpson", "init": "gaussian_rtk", "denoise": True}),
        ("rtk-mala", {"estimator": "trapezoid", "inner": 2, "dtype": torch.float64}),
        ("rtk-uld", {"inner": 3}),
        ("rtk-ula", {"denoise": True}),
        ("rtk-ula", {"dtype": torch.bfloat16}),
        ("poisson-midpoint", {"midpoints": "one"}),
        ("poisson-midpoint", {"midpoints": 2, "window": 5}),
        ("poisson-midpoint", {"shared": True}),
    ],
)
def test_bits_and_reports(solver, options):
    net, made = Counted(), 0
    options = {"steps": 40, **options} if solver.startswith("poisson") else options
    for seed in (1, 2, 1):
        reports = {}, {}
        eager = sample(net.network, (48, *SHAPE), solver=solver, seed=seed, stats=reports[0], **options)
        ran = net.ran
        replayed = sample(net.network, (48, *SHAPE), solver=solver, seed=seed, stats=reports[1], graph="on", **options)
        assert torch.equal(eager, replayed)
        said = reports[1].pop("graph")
        assert reports[0] == reports[1]
        assert said["used"] == "call list"
        made += said["captures"]
        assert (net.ran == ran) == (said["captures"] == 0)
    assert said["captures"] == 0  # the third run has the course of the first
    # two windows of few steps: a seed may have no sample that asks at a window's start, or another number of rows
    assert made <= (3 if options.get("shared") else 2 if options.get("midpoints") == 2 else 1)


def test_other_numbers_of_the_same_course():
    net = Counted().network
    x = torch.randn(8, *SHAPE, generator=torch.Generator().manual_seed(0))
    sample(net, x, solver="rtk-mala", seed=0, graph="on")
    kept = x.clone()
    for change in (
        {"theta": 0.3},
        {"grid": "log-snr"},
        {"schedule": "cosine"},
        {"x": x.flip(0)},
        {"radii": (1.0, 3.0)},
    ):
        arguments = {"x": x, "solver": "rtk-mala", "seed": 3, **change}
        reports = {}, {}
        eager = sample(net, stats=reports[0], **arguments)
        assert torch.equal(eager, sample(net, stats=reports[1], graph="on", **arguments))
        assert reports[1].pop("graph")["captures"] == 0
        assert reports[0] == reports[1]
    assert torch.equal(x, kept)


def test_guidance_and_conditions():
    shift = torch.linspace(-0.5, 0.5, 4)

    def fn(x, t, cond):
        return torch.tanh(x * (1 + t[:, None, None]) + shift[cond][:, None, None])

    for seed, first in ((0, 0), (1, 2)):
        cond = torch.tensor([first, 1, 1, 3])
        arguments = {"solver": "rtk-ula", "cond": cond, "uncond": cond * 0, "guidance": 2.0, "seed": seed}
        stats = {}
        eager = sample(fn, (4, *SHAPE), **arguments)
        assert torch.equal(eager, sample(fn, (4, *SHAPE), **arguments, graph="on", stats=stats))
    assert stats["graph"]["captures"] == 0


@pytest.mark.parametrize(
    ("solver", "options", "why"),
    [
        ("dpm-adaptive", {}, "decides on the host"),
        ("rtk-mala", {"adapt": 0.6}, "adapt: .* read on the host"),
        ("rtk-mala", {"uniforms": torch.full((5, 4, 4), 0.5, dtype=torch.float64)}, "uniforms: given"),
        ("poisson-midpoint", {"midpoints": "bernoulli", "steps": 40}, "another number of network calls"),
        ("rtk-ula", {"callback": print}, "look at every step"),
        ("rtk-ula", {"return_trajectory": True}, "look at every step"),
    ],
)
def test_refusals(solver, options, why):
    net = Counted().network
    with pytest.raises(CaptureError, match=why):
        sample(net, (4, *SHAPE), solver=solver, seed=0, graph="on", **options)
    assert graph.info()["recordings"] == []


def test_levels_drawn_at_random_are_refused():
    net = GaussianMixture(MEANS, 0.3).network()
    with pytest.raises(CaptureError, match="decides on the host"):
        sample(Ladder([net, net], costs=[1, 8]), (4, *SHAPE), solver="ml-em", seed=0, steps=5, graph="on")
    space = fastsample.GaussianMixture(MEANS, 0.3).phase_space()
    with pytest.raises(CaptureError, match="decides on the host"):
        sample(space, (4, *SHAPE), solver="psld-ode", seed=0, graph="on")


def test_a_host_read_of_the_network_is_found_in_a_procedure_too():
    def fn(x, t):
        return x * float(x.abs().max())

    with pytest.raises(CaptureError, match=r"reads a number on the host .*test_graph_procedures.py"):
        sample(fn, (4, *SHAPE), solver="rtk-ula", seed=0, graph="on")
    assert graph.info()["recordings"] == []
