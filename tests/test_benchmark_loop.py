"""The end-to-end benchmark: its programs do the same job, a wrong one is refused, a tiny run is in the schema."""

from __future__ import annotations

import dataclasses
import json

import numpy as np
import pytest
import torch

import fastsample
from benchmarks import loop, loop_cases, loop_programs, networks, schema
from benchmarks.harness import Times
from benchmarks.loop_programs import DisagreementError

CASES = {(case.name, case.shape): case for case in loop_cases.CASES}
NULL, POLICY, IMPLICIT = ("null", (1, 4, 8, 8)), ("policy UNet, DDPM", (1, 16, 2)), ("policy UNet, DDIM", (1, 16, 2))
QUICK = [name for name in loop_programs.PROGRAMS if name not in loop_programs.COMPILING]


@pytest.fixture(autouse=True)
def _inference():
    with torch.inference_mode():
        yield


@pytest.fixture(scope="module")
def jobs():
    return {key: loop_cases.job(CASES[key], "cpu", 6) for key in (NULL, POLICY, IMPLICIT)}


def rows_of(job):
    return [list(s) for s in job.rows]


@pytest.mark.parametrize("key", [NULL, POLICY, IMPLICIT], ids=str)
@pytest.mark.parametrize("name", QUICK)
def test_programs_agree(name, key, jobs):
    try:
        program = loop_programs.build(name, jobs[key])
    except loop_programs.UnavailableError as error:
        pytest.skip(str(error))
    assert loop_programs.check(program, jobs[key]) <= loop_programs.allowed(jobs[key])


@pytest.mark.slow
@pytest.mark.parametrize("key", [NULL, POLICY, IMPLICIT], ids=str)
@pytest.mark.parametrize("name", ["compiled-step", "compiled-step-in-place", "fastsample-compiled-step"])
def test_compiled_programs_agree(name, key, jobs):
    loop_programs.check(loop_programs.build(name, jobs[key]), jobs[key])


def test_the_compiled_loop_agrees_and_is_for_the_tiny_loop_alone(jobs):
    program = loop_programs.build("fastsample-compiled-loop", jobs[NULL])
    assert loop_programs.check(program, jobs[NULL]) <= loop_programs.allowed(jobs[NULL])
    with pytest.raises(loop_programs.UnavailableError, match="6 calls of a network"):
        loop_programs.build("fastsample-compiled-loop", jobs[POLICY])


def test_a_quick_run_compiles_no_loop():
    quick = loop._options(["--quick"]).programs
    assert not {"fastsample-compiled-loop", "fastsample-compiled-step"} & set(quick)
    assert {"fastsample-compiled-loop", "fastsample-compiled-step"} <= set(loop._options([]).programs)


@pytest.mark.parametrize("name", list(CASES), ids=str)
def test_the_textbook_is_what_the_plan_computes(name):
    """In float64, with a network that returns stored numbers: sums of at most five terms a step, far below 1e-12."""
    case = dataclasses.replace(CASES[name], make=loop_cases.CASES[0].make)
    job = loop_cases.job(case, "cpu")
    network = fastsample.Network(lambda x, t: job.net(x, t).double(), case.prediction, "t")
    options = {} if case.clip is None else {"clip": case.clip}
    g = torch.Generator().manual_seed(5)
    noises = [torch.randn(case.shape, generator=g) for s in job.rows if s.c]
    got = fastsample.sample(
        network,
        job.x.double(),
        plan=fastsample.make_plan(case.solver, job.path, prediction=case.prediction, **options),
        noise=lambda draw: noises[draw - 1].double(),
    )
    wanted = loop_programs.reference(job, noises)
    assert (got - wanted).abs().max() <= 1e-12 * wanted.abs().max()


@pytest.mark.parametrize("column", range(7))
@pytest.mark.parametrize("key", [NULL, POLICY, IMPLICIT], ids=str)
def test_a_wrong_coefficient_is_refused(key, column, jobs):
    """One part in a thousand of one coefficient; allowed is about 2e-5 of the samples."""
    job = jobs[key]
    if job.case.clip:  # which would hide it in the first steps
        job = dataclasses.replace(job, case=dataclasses.replace(job.case, config=loop_cases.LINEAR))
    rows = rows_of(job)
    if not any(row[column] for row in rows):
        pytest.skip("the solver has no such term")
    for row in rows:
        row[column] *= 1.001
    wrong = dataclasses.replace(job, rows=tuple(loop_cases.Step(*r) for r in rows))
    with pytest.raises(DisagreementError, match="nothing is timed"):
        loop_programs.check(loop_programs.by_hand(wrong), job)


def test_other_noise_and_nan_are_refused(jobs):
    job = jobs[POLICY]
    program = loop_programs.by_hand(job)
    other = dataclasses.replace(program, reset=lambda: None)  # the generator is not where it should be
    program.run()
    with pytest.raises(DisagreementError):
        loop_programs.check(other, job)
    with pytest.raises(DisagreementError):
        loop_programs.check(dataclasses.replace(program, run=lambda: torch.full_like(job.x, float("nan"))), job)


def arguments(folder, *more):
    return ["--quick", "--threads", "1", "--min-time", "0", "--steps", "4", "--out", str(folder), *more]


def test_a_tiny_run(tmp_path, capsys):
    names = f"null;{POLICY[0]};digits;transformer"
    assert loop.main(arguments(tmp_path, "--cases", names, "--programs", ",".join(QUICK))) == 0
    (found,) = schema.load(tmp_path)
    points = schema.points(found)
    assert len(points) == 5 and (tmp_path / "loop-cpu.png").stat().st_size > 1000
    for point in points:
        assert set(point.rows) == {*QUICK, "network"}, point.label
        for name in QUICK:
            assert {"time", "beyond_network", "solver_share", "error"} <= point.rows[name].keys()
            assert point.rows[name]["error"].y_value_50 <= 64 * 4
        assert ("further_step" in point.rows["fastsample"]) == ("1x4x8x8" in point.label)
    assert [item["wanted"] for item in found.facts["must_reach"]] == [">= 12x", ">= 3x"] * 2
    assert found.facts["must_reach"][1]["verdict"] == "not measured"
    assert "us per step" in capsys.readouterr().out


def test_a_run_with_a_wrong_program_reports_nothing_of_that_case(tmp_path, monkeypatch, capsys):
    true = loop_programs.by_hand

    def wrong(job):
        rows = rows_of(job)
        if job.case.name != "null":
            rows[-1][3] *= 1.01
        return true(dataclasses.replace(job, rows=tuple(loop_cases.Step(*r) for r in rows)))

    monkeypatch.setattr(loop_programs, "by_hand", wrong)
    names = f"null;{IMPLICIT[0]}"
    assert loop.main(arguments(tmp_path, "--cases", names, "--programs", "fastsample,by-hand")) == 1
    (found,) = schema.load(tmp_path)
    assert {r.kernel_name for r in found.records} == {"loop null"}
    assert "by-hand gives other samples" in json.dumps(found.facts["skipped"])
    assert "refused" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("wrong", "words"),
    [
        (["--cases", "nul"], "got nul, allowed are null"),
        (["--programs", "ours"], "got ours, allowed are fastsample"),
        (["--steps", "1"], "got 1, allowed are 3"),
    ],
)
def test_mistakes_are_named(wrong, words, capsys):
    with pytest.raises(SystemExit):
        loop.main(wrong)
    assert words in capsys.readouterr().err


def test_a_further_step():
    """Run and set-up of 10 + 2 n seconds; a program of which a round is missing has the others."""
    short, long = Times(np.array([50.0, 51.0, 50.0]), np.arange(3)), Times(np.array([211.0, 210.0]), np.array([1, 2]))
    times = {"a": short, "a" + loop.LONG: long, "network": short}
    assert loop.added(times, 80)["a"].samples.tolist() == [2.0, 2.0]
    assert times.keys() == {"a", "network"}


def test_networks():
    state = torch.random.get_rng_state()
    for make, options, shape in (
        (networks.PolicyUNet, {"widths": (16, 32, 64)}, (2, 16, 2)),
        (networks.TinyTransformer, {}, (2, 4, 16, 16)),
    ):
        net, again = (networks.randomly(make, "cpu", **options) for _ in range(2))
        x = torch.randn(shape, generator=torch.Generator().manual_seed(1))
        early, late = torch.full((2,), 3.0), torch.full((2,), 30.0)
        out = net(x, early)
        assert out.shape == x.shape and out.isfinite().all() and out.std() > 0.01
        assert torch.equal(out, again(x, early))
        assert not torch.allclose(out, net(x, late))
        torch.testing.assert_close(out[:1], net(x[:1], early[:1]), rtol=1e-4, atol=1e-5)
    assert torch.equal(state, torch.random.get_rng_state())
