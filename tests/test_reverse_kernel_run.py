"""Reverse transition kernels in the loop: bits, passes between calls, adapted steps, reports, what is refused."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from fastsample import GaussianMixture, Network, cli, sample, use_backend
from fastsample.langevin import estimators
from fastsample.loop import drive
from fastsample.path import Path

from .kernels import SOLVERS, TIMES, begin, one_run, ou


@pytest.mark.parametrize("solver", SOLVERS)
@pytest.mark.parametrize("options", [{}, {"init": "prior", "estimator": "line(2)"}, {"dtype": torch.float64}], ids=str)
def test_any_split_of_the_batch(solver, options):
    """Equal bits: noise and uniforms belong to the sample, and so does every decision."""
    if solver != "rtk-mala":
        options = {name: value for name, value in options.items() if name != "estimator"}
    network = Network(lambda x, t: x - torch.tanh(3.0 * x), "eps")  # elementwise: its own bits do not depend on a batch
    options = {"solver": solver, "segments": 3, "inner": 3, "width": 0.3, "seed": 11, **options}
    whole = sample(network, (10, 5), **options)
    parts = [sample(network, (len(ids), 5), sample_ids=ids, **options) for ids in ([0, 1, 2], list(range(3, 10)))]
    assert torch.equal(whole, torch.cat(parts))
    assert whole.std() > 0.1
    assert not torch.equal(whole, sample(network, (10, 5), **{**options, "seed": 12}))


class Between(TorchDispatchMode):
    """Names of the ops that run, in lists between the calls of the network."""

    def __init__(self):
        super().__init__()
        self.passes = [[]]

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        self.passes[-1].append(func.name())
        return func(*args, **(kwargs or {}))


VIEWS = ("aten::unbind", "aten::select", "aten::slice", "aten::alias", "aten::detach")


def passes_of(solver, dtype=None, **options):
    """What runs after each network call of a run of 2 segments with 3 moves each, views left out."""
    seen = Between()

    def fn(x, t):
        with torch.utils._python_dispatch._disable_current_modes():
            out = torch.tanh(x)
        seen.passes.append([])
        return out

    path = ou(TIMES)
    x = torch.zeros(4, 3)
    run = begin(solver, path, x, prediction="eps", width=0.3, inner=3, init="prior", **options)
    with seen:
        drive(run, fn)
    return [
        [name.split("::")[1].split(".")[0] for name in names if not name.startswith(VIEWS)] for names in seen.passes[1:]
    ]


def test_one_pass_between_two_calls():
    """No other op: no copy, no read of the device.  A chain begins with a copy of its first output and a row."""
    chain = [["copy_", "update_"], ["metropolis_"], ["metropolis_"], ["metropolis_"]]
    begun, last = [["empty_like", *chain[0]], *chain[1:]], [*chain[:-1], ["metropolis_", "add_"]]
    assert passes_of("rtk-mala", estimator="trapezoid") == begun + last
    ends = [passes for passes in passes_of("rtk-mala", estimator="simpson") if passes]
    assert ends == begun + last  # nothing after a call in the middle
    for solver in ("rtk-uld", "rtk-ula"):
        row = ["update_"]
        assert passes_of(solver) == [row, row, [*row, *row], row, row, row]  # the third also begins the next chain


@pytest.mark.parametrize("solver", SOLVERS)
def test_backends_agree(solver):
    """The native library and the definition in PyTorch, with all that a row can hold."""
    network = Network(lambda x, t: x - torch.tanh(3.0 * x), "eps", input_scaling="vp")
    path = ou((2.0, 1.0, 0.4)).ve()
    options = {"solver": solver, "path": path, "inner": 3, "width": 0.3, "seed": 8, "dtype": torch.float64}
    options |= {"estimator": "line(2)"} if solver == "rtk-mala" else {}
    ours = sample(network, (9, 7), **options)
    with use_backend("reference"):
        theirs = sample(network, (9, 7), **options)
    torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-11)


@pytest.mark.parametrize("prediction", ["eps", "v"])
def test_starts_alone_are_ddpm(prediction):
    """The posterior start without moves is the sampler ddpm, draw by draw; to rounding of other coefficients."""
    model = GaussianMixture.ring()
    options = {"steps": 7, "grid": "uniform", "seed": 2, "dtype": torch.float64, "prediction": prediction}
    starts = sample(model, (6, 2), solver="rtk-ula", inner=0, **options)
    torch.testing.assert_close(starts, sample(model, (6, 2), solver="ddpm", **options), rtol=0, atol=1e-10)


def test_uniforms_do_not_shift_the_normals():
    """MALA that accepts all is ULA with the same seed."""
    network = Network(lambda x, t: x - torch.tanh(3.0 * x), "eps")
    options = {"segments": 3, "inner": 1, "init": "prior", "width": 0.3, "seed": 4, "theta": 1e-9}
    out = {}
    chain = sample(network, (10, 5), solver="rtk-mala", stats=out, **options)
    assert out["acceptance"] == 1.0
    torch.testing.assert_close(chain, sample(network, (10, 5), solver="rtk-ula", **options), rtol=0, atol=1e-5)


def test_adapted_steps():
    """The first step is far too long; after some segments the acceptance is near the wish."""
    model = GaussianMixture.ring(6, 4.0, 0.3)
    network, out, fixed = model.network("eps"), {}, {}
    options = {"solver": "rtk-mala", "segments": 12, "inner": 4, "init": "prior", "theta": 6.0, "seed": 0}
    sample(network, (500, 2), adapt=0.6, stats=out, **options)
    sample(network, (500, 2), stats=fixed, **options)
    assert np.abs(np.array(out["acceptance_per_segment"][-4:]) - 0.6).max() < 0.12
    assert max(fixed["acceptance_per_segment"][-4:]) < 0.3
    assert out["theta"][0] == 6.0
    assert out["theta"][-1] < 4.0
    assert json.loads(json.dumps(out)) == out


def test_radii():
    plain, _ = one_run("rtk-mala")
    none, _ = one_run("rtk-mala", radii=(None, None))
    assert torch.equal(plain.state, none.state)
    close, _ = one_run("rtk-mala", radii=(1e-6, None))
    inside, _ = one_run("rtk-mala", radii=(None, 0.5))
    assert close.stats()["acceptance"] == inside.stats()["acceptance"] == 0.0
    assert plain.stats()["acceptance"] > 0.3


@pytest.mark.parametrize("solver", SOLVERS)
def test_through_the_loop(solver):
    model = GaussianMixture.ring()
    infos, out = [], {}
    options = {"solver": solver, "segments": 4, "inner": 2, "seed": 1}
    whole = sample(model, (8, 2), callback=infos.append, stats=out, return_trajectory=True, denoised=True, **options)
    assert torch.equal(whole.x, sample(model, (8, 2), **options))
    assert whole.states.shape == (5, 8, 2)
    assert torch.equal(whole.states[-1], whole.x)
    assert out["nfe"] == len(infos) == infos[0].calls
    assert [info.step for info in infos] == sorted(info.step for info in infos)
    assert out["segments"] == 4
    data = torch.zeros(8, 2)
    assert sample(model, data, start=2, **options).isfinite().all()
    assert sample(Network(lambda x, t: x), (0, 2), **options).shape == (0, 2)
    assert sample(model, (3, 2), solver=solver, stats=out).shape == (3, 2)
    assert out["segments"] == 5
    with pytest.raises(ValueError, match="segments: got steps too"):
        sample(model, (3, 2), steps=4, **options)


def test_command_line(tmp_path, capsys):
    arguments = "sample --model mixture --solver rtk-mala --segments 5 --inner 4 -n 300 --no-progress --out"
    assert cli.main([*arguments.split(), str(tmp_path)]) == 0
    report = json.loads((tmp_path / "report.json").read_text())
    assert report["nfe"] == 26
    assert report["runs"][0]["estimator"] == "energy"
    assert 0.5 < report["acceptance"] < 1.0
    assert report["distance"]["sliced_w2"] < 0.25
    said = capsys.readouterr().out
    assert "acceptance" in said
    assert "distance to the exact law" in said


BAD = [
    ("rtk-mala", {"inner": 0}, "inner: got 0"),
    ("rtk-uld", {"inner": 0, "init": "prior"}, "inner: got 0, and init='prior' makes no call"),
    ("rtk-uld", {"inner": 1.5}, "inner: got 1.5"),
    ("rtk-mala", {"theta": 0.0}, "theta: got 0.0"),
    ("rtk-ula", {"theta": float("nan")}, "theta: got nan"),
    ("rtk-uld", {"friction": -1.0}, "friction: got -1.0"),
    ("rtk-ula", {"friction": 2.0}, "option: 'rtk-ula' has no option 'friction'"),
    ("rtk-mala", {"init": "gauss"}, "init: got 'gauss'"),
    ("rtk-mala", {"estimator": "line(4)"}, r"estimator: got 'line\(4\)'"),
    ("rtk-mala", {"estimator": "energy"}, "estimator: got 'energy', but the model offers none"),
    ("rtk-mala", {"adapt": 1.5}, "adapt: got 1.5"),
    ("rtk-mala", {"radii": (0.0, 1.0)}, r"radii: got \(0.0, 1.0\)"),
    ("rtk-mala", {"radii": 3.0}, "radii: got 3.0"),
    ("rtk-mala", {"uniforms": torch.zeros(2, 2)}, r"uniforms: got shape \(2, 2\)"),
    ("rtk-mala", {"noise": lambda draw: torch.zeros(2, 2)}, "uniforms: got none though the noise is given"),
    ("rtk-mala", {"width": -1.0}, "width: got -1.0"),
    ("rtk-mala", {"grad": True}, "grad: no gradient"),
    ("rtk-uld", {"clip": 1.0}, "clip: got 1.0"),
    ("rtk-uld", {"threshold": 0.995}, "threshold: got 0.995"),
    ("rtk-uld", {"path": Path([0.1, 1.0], [0.9, 0.0])}, "path: ends at sigma = 0, where a network of eps"),
    ("rtk-uld", {"path": Path([1.0, 0.1], [0.1, 0.9], reverse=True)}, "path: .* runs from noise to data"),
    ("rtk-uld", {"path": Path([0.5, 0.5], [0.5, 0.5])}, "path: all its levels are the same"),
]


@pytest.mark.parametrize(("solver", "options", "message"), BAD, ids=lambda v: v if isinstance(v, str) else "")
def test_bad_input(solver, options, message):
    with pytest.raises(ValueError, match=message):
        sample(Network(lambda x, t: x, "eps"), (2, 2), solver=solver, **options)


def test_what_else_is_refused():
    with pytest.raises(TypeError, match="dtype: got torch.bfloat16"):
        sample(GaussianMixture.ring(), (2, 2), solver="rtk-mala", dtype=torch.bfloat16)
    path = Path([0.1, 1.0], [0.9, 0.0])
    with pytest.raises(ValueError, match="width: got 0 for a path to sigma = 0"):
        sample(Network(lambda x, t: -x, "score"), (2, 2), solver="rtk-mala", path=path)
    options, same = {"solver": "rtk-mala", "path": path, "width": 1.0}, torch.zeros(2, 2)
    with pytest.raises(ValueError, match="model: returned the same memory from two calls"):
        sample(Network(lambda x, t: same, "score"), (2, 2), estimator="simpson", **options)
    bad = Network(lambda x, t: -x, "score", energy=lambda x, t: x)
    with pytest.raises(ValueError, match=r"energy: returned shape \(2, 2\)"):
        sample(bad, (2, 2), **options)
    with pytest.raises(ValueError, match="estimator: got 'energy', but guidance mixes"):
        one_run("rtk-mala", network={"guidance": 2.0}, estimator="energy")
    with pytest.raises(TypeError, match="energy: got int"):
        Network(lambda x, t: x, energy=3)
    with pytest.raises(ValueError, match="width: got -1"):
        Network(lambda x, t: x, width=-1)


@pytest.mark.parametrize("solver", SOLVERS)
@pytest.mark.parametrize("init", ["prior", "posterior"])
def test_a_broken_network_is_noticed(solver, init):
    """Rejected proposals would hide it."""
    with pytest.raises(FloatingPointError, match="not finite"):
        sample(Network(lambda x, t: x * float("nan"), "eps"), (2, 2), solver=solver, init=init, seed=0)


def test_moves_are_refused_by_name():
    with pytest.raises(ValueError, match="estimator: got 'line'"):
        estimators.estimator("line")
