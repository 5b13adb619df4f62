"""The benchmarks of memory, scaling and quality: tiny runs in the schema, lines through times, runs that go on."""

from __future__ import annotations

import dataclasses
import json
import math

import pytest

from benchmarks import memory, quality, quality_jobs, scaling, schema, steps
from benchmarks.scaling_fit import line, pays_from


def common(folder, *more):
    return ["--quick", "--threads", "1", "--out", str(folder), *more]


# memory


def test_memory(tmp_path):
    """Ours: the state, one output of the network, and the history, which DPM++ 2M has and DDIM has not."""
    assert memory.main(common(tmp_path, "--size", "2^16", "--solvers", "ddim,dpmpp-2m")) == 0
    (found,) = schema.load(tmp_path)
    states = {(r.kernel_name.split()[1], r.kernel_provider): r.y_value_50 for r in found.records}
    assert states["ddim", "fastsample"] == pytest.approx(2, abs=0.1)
    assert states["dpmpp-2m", "fastsample"] == pytest.approx(3, abs=0.1)
    # by hand: D, the parts of the sum and of D besides the state and the output
    assert 4 <= states["dpmpp-2m", "by-hand"] <= 8
    if ("dpmpp-2m", "diffusers") in states:
        assert states["dpmpp-2m", "diffusers"] > states["dpmpp-2m", "fastsample-drop-in"] > 3
    assert (tmp_path / "memory-cpu.png").stat().st_size > 1000


# scaling


def test_line():
    sizes = [2**k for k in range(8, 18)]
    fixed, slope = line(sizes, [3e-6 + 2e-10 * n for n in sizes])
    assert fixed == pytest.approx(3e-6, rel=1e-9) and slope == pytest.approx(2e-10, rel=1e-9)
    wobble = [(3e-6 + 2e-10 * n) * (1.02 if i % 2 else 0.98) for i, n in enumerate(sizes)]
    assert line(sizes, wobble) == pytest.approx((3e-6, 2e-10), rel=0.05)
    assert line([1, 2, 4], [3.0, 2.0, 1.0])[1] == 0.0  # a slope below 0 is none
    assert line([1, 2, 4], [1.0, 3.0, 9.0])[0] == 0.0
    with pytest.raises(ValueError, match="need at least 2"):
        line([1], [1.0])


def test_pays_from():
    one = {1: 1.0, 2: 2.0, 4: 4.0, 8: 8.0}
    assert pays_from(one, {1: 3.0, 2: 1.5, 4: 2.5, 8: 4.0}) == 2
    assert pays_from(one, {1: 0.5, 2: 3.0, 4: 2.5, 8: 4.0}) == 4  # one lucky small size does not count
    assert pays_from(one, {1: 3.0, 2: 3.0, 4: 3.0, 8: 7.9}) is None


def test_scaling(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(scaling, "half_of_free", lambda device: 20.0 * 2**10)  # float32 takes 20 bytes an element
    more = ("--threads", "2", "--largest", "12", "--min-time", "0")
    assert scaling.main(common(tmp_path, *more)) == 0
    (found,) = schema.load(tmp_path)
    metrics = {(r.kernel_name, r.metric_name) for r in found.records}
    assert metrics >= {
        ("scaling size", "time"),
        ("scaling size", "fixed_cost"),
        ("scaling size", "per_element_in_cache"),
        ("scaling batch", "time_of_batch"),
        ("scaling steps", "time_of_run"),
        ("scaling steps", "per_step"),
        ("scaling steps", "setup_of_run"),
    }
    sizes = {(r.kernel_provider, r.x_value) for r in found.records if r.metric_name == "time"}
    assert {n for _, n in sizes} == {2**8, 2**10}
    assert "2^12 elements, float32" in found.facts["skipped"]
    assert "left out: 2^12 elements, float32: needs" in capsys.readouterr().out
    batches = [r for r in found.records if r.metric_name == "time_of_batch"]
    assert {math.prod(json.loads(r.extra_benchmark_config_str)["shape"]) for r in batches} == {2**12}
    assert (tmp_path / "scaling-cpu.png").stat().st_size > 1000


def test_scaling_on_threads(tmp_path):
    assert (
        scaling.main(common(tmp_path, "--threads", "2", "--largest", "10", "--min-time", "0", "--parts", "threads"))
        == 0
    )
    (found,) = schema.load(tmp_path)
    assert {r.kernel_provider for r in found.records} >= {"1 threads", "2 threads"}


def test_memory_of_a_job():
    made = steps.Job((1, 2**20))
    assert scaling.too_large(made, 2.0**25) == ""
    assert "needs 0.02 GiB" in scaling.too_large(made, 2.0**20)
    assert scaling.half_of_free("cpu") > 2**20


# quality


@pytest.fixture
def tiny(monkeypatch):
    monkeypatch.setattr(quality, "QUICK", quality.Size(4, (5,), 2, 2, 10, longer=False, batch=2))


def test_every_sampler_is_run_or_told(tmp_path):
    skipped: dict[str, str] = {}
    made = list(quality_jobs.jobs("cpu", quality_jobs.samplers(), (10,), False, skipped))
    names = {job.name for job in made} | {text.split(",")[0] for text in skipped}
    assert names == set(quality_jobs.samplers()) and len(made) > 60
    assert not skipped
    assert all(job.plan.nfe <= 10 for job in made if job.plan is not None and "poisson" not in job.name)


@pytest.mark.parametrize(
    ("name", "few"),
    [("heun", 5), ("rtk-ula", 50), ("ml-em", 50), ("dpm-adaptive", 100), ("poisson-midpoint-shared", 200)],
)
def test_calls_are_counted(name, few):
    """The network's own count of the calls of two samples."""
    job = next(quality_jobs.jobs("cpu", [name], (5,), False, {}))
    if name in ("ml-em", "poisson-midpoint-shared"):
        assert 0 < quality_jobs.draw(job, 2, 0, 2, "cpu").nfe < few
        return
    network, calls = quality_jobs.network("cpu"), []
    hook = network.fn.register_forward_hook(lambda *_: calls.append(1))
    try:
        nfe = quality_jobs.draw(job, 2, 0, 2, "cpu").nfe
    finally:
        hook.remove()
    assert nfe == len(calls) <= few


def test_batches_do_not_matter():
    job = next(quality_jobs.jobs("cpu", ["ddpm"], (5,), False, {}))
    one, two = (quality_jobs.draw(job, 4, 0, batch, "cpu").x for batch in (4, 2))
    assert (one - two).abs().max() < 1e-3  # the network's own rounding depends on the batch


def test_an_interrupted_run_goes_on(tmp_path, tiny, monkeypatch):
    wanted = tmp_path / "whole"
    assert quality.main(common(wanted, "--names", "ddim,sa,unipc")) == 0
    drawn, true = [], quality_jobs.draw

    def draw(job, number, seed, *more):
        drawn.append((job.name, seed))
        if len(drawn) == 5:  # two for the fine solution, ddim, sa
            raise KeyboardInterrupt
        return true(job, number, seed, *more)

    monkeypatch.setattr(quality_jobs, "draw", draw)
    folder = tmp_path / "resumed"
    with pytest.raises(KeyboardInterrupt):
        quality.main(common(folder, "--names", "ddim,sa,unipc"))
    partial = folder / "quality-cpu.partial"
    with partial.open("a") as file:
        file.write("quality,unipc,determ")  # cut off in the middle of a line
    drawn[:] = []
    monkeypatch.setattr(quality_jobs, "draw", lambda *a: drawn.append((a[0].name, a[2])) or true(*a))
    assert quality.main(common(folder, "--names", "ddim,sa,unipc")) == 0
    assert drawn[2:] == [("unipc", 0), ("dpmpp-2m", 0), ("dpmpp-2m", 1)]
    assert not partial.exists()
    (one,), (two,) = schema.load(wanted), schema.load(folder)
    assert [figures(r) for r in one.records] == [figures(r) for r in two.records]
    assert {r.kernel_provider for r in one.records if r.metric_name == "error"} == {"ddim", "unipc"}
    assert (folder / "quality-cpu.png").stat().st_size > 1000
    spread = one.facts["digit_fid_over_seeds"]
    assert len(spread["values"]) == 2 and spread["deviation"] > 0


def figures(r):
    return dataclasses.replace(r, timestamp="")


def test_columns():
    assert [quality.column(nfe) for nfe in (1, 5, 5.2, 36, 89, 2000.5)] == [5, 5, 10, 50, 100, 2001]


@pytest.mark.parametrize(
    ("main", "wrong", "words"),
    [
        (quality.main, ["--names", "dimm"], "got dimm, allowed are euler, ddim"),
        (quality.main, ["--nfe", "0"], "need 1 or more"),
        (quality.main, ["--number", "1"], "need 2 or more"),
        (scaling.main, ["--parts", "sizes"], "got sizes, allowed are size, batch, steps, threads"),
        (scaling.main, ["--threads", "2", "--cpu-time"], "counts the time of one thread"),
        (scaling.main, ["--largest", "40"], "allowed are 10 to 34"),
        (memory.main, ["--solvers", "dimm"], "got dimm, allowed are euler"),
    ],
)
def test_mistakes_are_named(main, wrong, words, capsys):
    with pytest.raises(SystemExit):
        main(wrong)
    assert words in capsys.readouterr().err
