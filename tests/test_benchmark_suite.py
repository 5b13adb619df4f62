"""The suite: its one schema, its page, its command, and the comparison of two commits.  Nothing here is timed."""

from __future__ import annotations

import argparse
import dataclasses
import importlib
import json
import os
import subprocess
import time
from pathlib import Path

import pytest

from benchmarks import __main__ as command
from benchmarks import against, gpu, member, page, schema, suite
from benchmarks.harness import Record, write_csv

ROOT = Path(__file__).resolve().parent.parent
RESULTS = ROOT / "benchmarks" / "results"
FACTS = {"timestamp": "2026-01-01 00:00:00", "cpu": "C", "threads": 1, "torch": "2", "fastsample": "0"}
FACTS |= {"load_average_at_start": [0.1, 0.1, 0.1]}
FAKE = suite.Member("fake", "A fake.", (("mine", ("peer",)),), gpu_promises=("speed: >= 2x",))
SOURCE = """
import csv, json, os, sys
import fastsample
out = sys.argv[sys.argv.index("--out") + 1]
os.makedirs(out, exist_ok=True)
columns = {columns!r}
with open(out + "/fake-cpu.csv", "w", newline="") as file:
    writer = csv.writer(file)
    writer.writerow(columns)
    for name, value in (("mine", 10.0 * fastsample.COST), ("peer", 100.0)):
        spread = (value, 0.99 * value, 1.01 * value)
        config = json.dumps(dict(shape=[1, 8]))
        writer.writerow(["fake", name, "step", "time", "us", "numel", "elements", 8, *spread, config, "C", "T", "0"])
facts = dict({facts!r}, must_reach=[], argv=sys.argv[1:])
json.dump(facts, open(out + "/fake-cpu.json", "w"))
"""


def record(name, value, shape=(1, 8), metric="time", spread=0.01, **more):
    config = json.dumps({"shape": list(shape), **more})
    values = (value, value * (1 - spread), value * (1 + spread))
    return Record("fake", name, "step", metric, "us", "numel", "elements", 8, *values, config, "C", "T", "0")


def write(folder, records, promised=(), stem="fake-cpu", **facts):
    write_csv(folder / f"{stem}.csv", records)
    (folder / f"{stem}.json").write_text(json.dumps({**FACTS, **facts, "must_reach": list(promised)}))


@pytest.fixture
def fake(tmp_path, monkeypatch):
    """A git repository with one member and a package whose cost is 2, then 1."""
    source = SOURCE.format(columns=schema.COLUMNS, facts=FACTS)
    files = {"benchmarks/__init__.py": "", "benchmarks/fake.py": source, "fastsample/__init__.py": "COST = 2\n"}
    root = tmp_path / "tree"
    for name, text in files.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(text)
    git(root, "init", "-q")
    git(root, "add", "-A")
    git(root, "-c", "user.name=a", "-c", "user.email=a@b", "commit", "-q", "-m", "first")
    (root / "fastsample/__init__.py").write_text("COST = 1\n")
    monkeypatch.setattr(suite, "MEMBERS", (FAKE,))
    monkeypatch.setattr(suite, "ROOT", root)
    monkeypatch.setenv("PYTHONDONTWRITEBYTECODE", "1")
    return root


def git(root, *arguments):
    done = subprocess.run(["git", "-C", str(root), *arguments], capture_output=True, text=True, check=True)
    return done.stdout


# schema


def test_committed_results_are_in_the_schema():
    found = schema.load(RESULTS)
    assert {r.member for r in found} <= {m.name for m in suite.MEMBERS}
    assert all(r.records for r in found) and len(found) >= 5
    assert {r.path.name for r in found} == {p.name for p in RESULTS.glob("*-*.csv") if "." not in p.stem}
    for r in found:  # no row hides another
        assert sum(len(rows) for p in schema.points(r) for rows in p.rows.values()) == len(r.records), r.path.name


def test_what_breaks_the_schema_is_named(tmp_path):
    good = dataclasses.asdict(record("mine", 1.0))
    for change, words in (
        ({"y_value_50": "fast"}, "line 2, y_value_50: got 'fast'"),
        ({"y_value_20": 5.0}, "line 2: the median"),
        ({"extra_benchmark_config_str": "[]"}, "line 2, extra_benchmark_config_str"),
    ):
        path = tmp_path / "x-cpu.csv"
        write_csv(path, [Record(**(good | change))])
        with pytest.raises(ValueError, match=words.replace("[", r"\[")):
            schema.read_csv(path)
    path.write_text("a,b\n1,2\n")
    with pytest.raises(ValueError, match="got columns"):
        schema.read_csv(path)
    write(tmp_path, [record("mine", 1.0)], [{"what": "w", "figure": "f", "wanted": "1", "verdict": "great"}], "x-cpu")
    with pytest.raises(ValueError, match="must_reach"):
        schema.load(tmp_path)
    (tmp_path / "x-cpu.csv").rename(tmp_path / "x-cpu.partial.csv")
    assert schema.load(tmp_path) == []
    write_csv(tmp_path / "y-cpu.csv", [])
    with pytest.raises(ValueError, match="y-cpu.json is not there"):
        schema.load(tmp_path)


def test_points_are_labelled_by_what_varies(tmp_path):
    records = [record("mine", 1.0, dtype="f", nodes=1), record("mine", 2.0, dtype="g", nodes=2)]
    write(tmp_path, [*records, record("peer", 3.0, dtype="g"), record("peer", 1.7, dtype="g", metric="time_over_mine")])
    first, second = schema.points(schema.load(tmp_path)[0])
    assert (first.label, second.label) == ("f, 1x8", "g, 1x8")
    assert first.ratio("peer", "mine") is None
    assert second.ratio("peer", "mine")[0] == 1.7  # as measured, not 3 / 2
    assert second.ratio("mine", "peer")[0] == pytest.approx(2 / 3)
    assert first.value("mine")[0] == pytest.approx(1e-6)


def test_whole_step():
    share, gain = schema.whole_step(1e-4, 10.0, 1e-4)
    assert (share, gain) == (0.5, pytest.approx(5.5))
    assert schema.whole_step(1e-4, 10.0, 30.0)[1] == pytest.approx(1.0, abs=1e-4)


# page


def test_the_page_is_the_one_of_the_results():
    """`python -m benchmarks --page` makes it so."""
    where = ROOT / "docs" / "benchmarks.md"
    assert page.render(RESULTS, where) == where.read_text()


def test_page_tells_losses_promises_and_shares(tmp_path, monkeypatch):
    monkeypatch.setattr(suite, "MEMBERS", (FAKE,))
    wins = [record("mine", 100.0), record("peer", 1000.0), record("mine", 0.5, metric="fraction_of_copy")]
    loses = [record("mine", 100.0, (2, 8)), record("peer", 50.0, (2, 8))]
    close = [record("mine", 100.0, (3, 8), spread=0.1), record("peer", 99.0, (3, 8), spread=0.1)]
    said = [("a", "reached"), ("b", "NOT reached"), ("c", "not measured")]
    promised = [{"what": what, "figure": "3x", "wanted": ">= 2x", "verdict": verdict} for what, verdict in said]
    write(tmp_path, [*wins, *loses, *close], promised, note="while others worked")
    (tmp_path / "fake-cpu.png").write_bytes(b"")
    text = page.render(tmp_path, tmp_path / "docs" / "page.md")
    assert "2 of 3 comparisons" in text
    assert "| fake-cpu: 2x8 | mine | peer | 0.5x | 0.49 - 0.51 | yes |" in text
    assert "| fake-cpu: 3x8 | mine | peer | 0.99x | 0.81 - 1.21 | range holds 1 |" in text
    shares = "50 9.1 0.99 0.33"
    assert f"| 1x8 | 100 | 99 - 101 | 50 % | {shares} | 10x (5.5 1.82 1.09 1.03) |" in text
    assert f"| 2x8 | 100 | 99 - 101 |  | {shares} | **0.5x** (0.75 0.955 0.995 0.998) |" in text
    assert "**0.99x**~" in text
    assert "1 met, 1 not met, 2 not measured" in text
    assert text.index("fake-cpu: b") < text.index("fake-cuda: speed") < text.index("fake-cpu: a")
    assert "while others worked" in text and "(../fake-cpu.csv)" in text and "(../fake-cpu.png)" in text


def test_a_measured_network_takes_the_place_of_supposed_ones(tmp_path, monkeypatch):
    monkeypatch.setattr(suite, "MEMBERS", (FAKE,))
    rows = [record("mine", 100.0), record("peer", 150.0), record("mine", 0.25, metric="solver_share")]
    skipped = {"this": "not here", "that": "not here"}
    write(tmp_path, [*rows, record("network", 75.0)], skipped=skipped)
    text = page.render(tmp_path, tmp_path / "page.md")
    assert "| 1x8 | 100 | 99 - 101 | 25 measured | 1.5x |" in text
    assert "\n- left out: this; that: not here\n\n| point" in text
    write(tmp_path, [*rows, record("network", 0.01)])  # a network that does nothing
    assert "1.5x (1.25 " in page.render(tmp_path, tmp_path / "page.md")


def test_page_without_pairs_is_a_grid(tmp_path, monkeypatch):
    monkeypatch.setattr(suite, "MEMBERS", (suite.Member("fake", "A fake."),))
    lines = [dataclasses.replace(record("solver", float(n), metric="fid", spread=0.0), x_value=n) for n in (5, 2048)]
    write(tmp_path, [*lines, dataclasses.replace(lines[0], y_value_50=7.0, y_value_80=9.0)])
    text = page.render(tmp_path, tmp_path / "page.md")
    assert "|  | 5 | 2^11 |" in text and "| step, solver | 5 / 7 (5 - 9) | 2048 |" in text


# members


def test_the_suite_fits_its_times():
    assert sum(m.quick for m in suite.MEMBERS) <= 300
    assert sum(m.full for m in suite.MEMBERS) <= 1500
    assert sum(m.gpu for m in suite.MEMBERS) <= 600
    assert sum(seconds for seconds, _ in gpu.MEMBERS.values()) <= 380
    assert {s.name for s in gpu.stages()} >= {m.name for m in suite.MEMBERS} & gpu.MEMBERS.keys()


@pytest.mark.parametrize("entry", suite.MEMBERS, ids=lambda m: m.name)
def test_every_member_takes_the_options(entry, capsys):
    with pytest.raises(SystemExit) as end:
        importlib.import_module(f"benchmarks.{entry.name}").main(["--help"])
    assert end.value.code == 0
    printed = capsys.readouterr().out
    assert all(option in printed for option in ("--quick", "--gpu", "--threads", "--out FOLDER", "--note"))


def test_promises_belong_to_their_device(tmp_path):
    options = argparse.Namespace(threads=1, device="cpu", out=tmp_path, note="", quick=True, command=[])
    run = member.Run("fake", options)
    for device in ("cpu", "cuda"):
        run.device = device
        run.promise("a", 2.0, (3.0, 2.0, 4.0))
        run.promise("b", 2.0, None)
        run.promise_on_gpu("c", 4, " us", (3.0, 2.0, 9.0), at_most=True)
        run.promise_on_gpu("d", 80, " %", (79.0, 70.0, 90.0))
    verdicts = [("a", "reached"), ("b", "not measured"), ("c", "reached"), ("d", "NOT reached")]
    assert [(item["what"], item["verdict"]) for item in run.promised] == verdicts
    assert run.promised[2] == {
        "what": "c",
        "figure": "3.0 us (20-80 %: 2.0-9.0)",
        "wanted": "<= 4 us",
        "verdict": "reached",
    }


# command


def test_a_run_writes_results_and_page(fake, tmp_path, capfd):
    assert command.main(["--quick", "--only", "fake", "--note", "hello"]) == 0
    out = fake / "out" / "benchmarks"
    assert json.loads((out / "fake-cpu.json").read_text())["argv"][:3] == ["--quick", "--note", "hello"]
    assert "10x" in (out / "benchmarks.md").read_text()  # a quick run leaves the page of the docs alone
    assert not (fake / "docs").exists()
    assert command.main([]) == 0
    assert (fake / "docs" / "benchmarks.md").exists()
    assert (fake / "benchmarks" / "results" / "fake-cpu.csv").exists()
    assert "ok" in capfd.readouterr().out


def test_a_member_that_fails_or_hangs_is_told(fake, tmp_path):
    (fake / "benchmarks" / "fake.py").write_text("raise SystemExit(3)")
    assert suite.run(FAKE, [], 60, fake).outcome == "failed, exit 3"
    assert command.main(["--out", str(tmp_path / "o")]) == 1
    started = tmp_path / "started"
    text = "import pathlib, subprocess, sys, time\n"
    text += "p = subprocess.Popen([sys.executable, '-c', 'import time; time.sleep(60)'])"
    text += f"\npathlib.Path({str(started)!r}).write_text(str(p.pid))\ntime.sleep(60)"
    (fake / "benchmarks" / "fake.py").write_text(text)
    assert suite.run(FAKE, [], 3, fake).outcome == "over its limit of 3 s"
    child = Path(f"/proc/{started.read_text()}/stat")
    for _ in range(100):  # what it has started is ended too
        if not child.exists() or child.read_text().split()[2] == "Z":
            break
        time.sleep(0.05)
    else:
        pytest.fail("the child of a member outlives it")


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--only", "nobody"], "got nobody, allowed are fake"),
        (["fake"], "come after --only"),
        (["--compare", "no-such-commit"], "got 'no-such-commit', need a commit"),
        (["--gpu"], "no CUDA device"),
        (["--rounds", "0"], "--rounds"),
    ],
)
def test_mistakes_are_named(fake, arguments, words, capsys):
    if arguments == ["--gpu"] and importlib.import_module("torch").cuda.is_available():
        pytest.skip("there is a CUDA device")
    assert command.main(arguments) == 2
    assert words in capsys.readouterr().err


def test_no_figures_when_tests_fail(fake, capfd):
    (fake / "tests").mkdir()
    for name in command.CHECKS:
        (fake / "tests" / name).write_text("def test_red():\n    assert False\n")
    assert command.main(["--compare", "HEAD", "--check"]) == 1
    printed = capfd.readouterr()
    assert "no figures" in printed.err and "other/this" not in printed.out
    assert all((ROOT / "tests" / name).exists() for name in command.CHECKS)


# comparison


def test_compare_with_a_commit(fake, capsys):
    assert command.main(["--compare", "HEAD", "--rounds", "2"]) == 0
    printed = capsys.readouterr().out
    line = next(line for line in printed.splitlines() if line.startswith("fake    1x8"))
    assert line.split() == ["fake", "1x8", "mine", "20", "us", "10", "us", "2.00x", "1.98", "-", "2.02", "better"]
    order = [line.split(", ")[-1].split(":")[0] for line in printed.splitlines() if ", round" in line]
    assert order == ["other", "this", "this", "other"]
    assert len(git(fake, "worktree", "list").splitlines()) == 1


def test_compare_falls_back_to_the_benchmark_of_the_commit(fake, capsys):
    """This tree's benchmark asks the package for something that the commit does not have."""
    source = (fake / "benchmarks" / "fake.py").read_text()
    (fake / "benchmarks" / "fake.py").write_text("from fastsample import COST, NEW\n" + source)
    (fake / "fastsample" / "__init__.py").write_text("COST, NEW = 4, 0\n")
    assert command.main(["--compare", "HEAD", "--rounds", "2"]) == 0
    printed = capsys.readouterr().out
    assert "its own is used" in printed and "0.50x" in printed and "WORSE" in printed
    (fake / "fastsample" / "__init__.py").write_text("COST = 4\n")
    assert command.main(["--compare", "HEAD", "--rounds", "1"]) == 1
    assert "this tree, round 1: failed" in capsys.readouterr().out


def test_the_worktree_goes_whatever_happens(fake, tmp_path):
    def interrupted():
        with against.worktree(fake, "HEAD", tmp_path / "w") as tree:
            assert (tree / "fastsample" / "__init__.py").read_text() == "COST = 2\n"
            (tree / "left").write_text("over")
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        interrupted()
    assert len(git(fake, "worktree", "list").splitlines()) == 1
    assert not os.path.exists(tmp_path / "w" / "tree")


def runs(*values, peer=(100.0, 100.0), spread=0.01):
    return [[record("mine", v, spread=spread), record("peer", p)] for v, p in zip(values, peer, strict=False)]


@pytest.mark.parametrize(
    ("other", "this", "mark"),
    [
        (runs(10, 10), runs(5, 5), "better"),
        (runs(5, 5), runs(10, 10), "WORSE"),
        (runs(10, 10), runs(10, 10), ""),
        (runs(10, 10), runs(9, 11), ""),  # rounds disagree
        (runs(10), runs(5), ""),  # one round
        (runs(10, 10, spread=0.0), runs(9.99, 9.99, spread=0.0), ""),
        (runs(10, 10, spread=0.5), runs(9, 9, spread=0.5), ""),  # inside its own spread
        (runs(10, 10), runs(8, 8, peer=(70.0, 70.0)), ""),  # the peer's code is the same, yet it moved more
    ],
)
def test_only_changes_beyond_the_noise_are_marked(other, this, mark):
    (change,) = against.changes(FAKE, other, this)
    assert (change.program, change.mark) == ("mine", mark)
    assert change.ratio[1] <= change.ratio[0] <= change.ratio[2]


def test_points_that_one_tree_lacks_are_left_out():
    lone = [record("mine", 1.0, (9, 9))]
    assert [c.point for c in against.changes(FAKE, [[*runs(1, 1)[0], *lone]], [runs(1, 1)[0]])] == ["1x8"]
