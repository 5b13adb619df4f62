"""Nsight Compute over the update kernel: the command, its CSV, what happens without it.  No GPU needed."""

from __future__ import annotations

import stat
import sys

import pytest

from benchmarks import counters, gpu


def raw_page(dram=91.5):
    """A raw page as ncu prints it: messages, names, units, then one row per launch."""
    names = ["ID", "Process ID", "Kernel Name", *counters.METRICS]
    lines = ["==PROF== Connected to process 7", ",".join(f'"{name}"' for name in names), ",".join('""' for _ in names)]
    for launch in range(counters.LAUNCHES * len(counters.CASES)):
        case = counters.CASES[launch // counters.LAUNCHES]
        value = dict.fromkeys(counters.METRICS, "1")
        value |= {counters.TIME: "200,000", counters.DRAM: str(dram if launch % 2 else 3.0)}
        value |= {counters.READ: str(0.6 * case.bytes), counters.WRITTEN: str(0.41 * case.bytes)}
        value |= {counters.INSTRUCTIONS: str(counters.ELEMENTS * 9 / 32), counters.STALLS[2]: "5.25"}
        cells = [str(launch), "7", "update_kernel", *(value[name] for name in counters.METRICS)]
        lines.append(",".join(f'"{cell}"' for cell in cells))
    return "\n".join(lines)


def test_the_table_takes_the_last_launch_of_each_case():
    lines = counters.table(counters.read(raw_page()))
    assert len(lines) == 1 + len(counters.CASES)
    for case, line in zip(counters.CASES, lines[1:], strict=True):
        assert line.startswith(str(case))
        cells = line[26:].split()
        assert cells[:5] == ["200.0", "1.010", "91.5", "1.0", "9.0"]
        assert cells[-2:] == ["lg_throttle", "5.2"]


def test_a_line_per_metric_and_a_metric_that_is_missing():
    rows = counters.read(raw_page())
    names = '"ID","Kernel Name","Metric Name","Metric Unit","Metric Value"'
    long = [f'"{row["ID"]}","k","{name}","","{row[name]}"' for row in rows for name in counters.METRICS]
    assert counters.table(counters.read("\n".join([names, *long]))) == counters.table(rows)
    del rows[1][counters.OCCUPANCY]
    rows[1][counters.STALLS[2]] = "n/a"
    assert "nan" in counters.table(rows)[1]
    assert "lg_throttle" not in counters.table(rows)[1]


def test_refusals(tmp_path, capsys):
    with pytest.raises(ValueError, match="has no table of ncu"):
        counters.read("==PROF== nothing")
    with pytest.raises(ValueError, match="has 15 launches, need 16"):
        counters.table(counters.read(raw_page())[1:])
    with pytest.raises(SystemExit):
        counters.main(["--read", str(tmp_path / "no.csv")])
    assert "--read: " in capsys.readouterr().err


@pytest.fixture
def fake_ncu(tmp_path, monkeypatch):
    """An ncu that notes its arguments and writes a text to the log file."""

    def make(text, code=0):
        (tmp_path / "text").write_text(text)
        file = tmp_path / "bin" / "ncu"
        file.parent.mkdir()
        file.write_text(
            f"#!{sys.executable}\nimport pathlib, sys\n"
            f"here = pathlib.Path({str(tmp_path)!r})\n(here / 'called').write_text('\\n'.join(sys.argv[1:]))\n"
            "log = sys.argv[1 + sys.argv.index('--log-file')]\n"
            f"pathlib.Path(log).write_text((here / 'text').read_text())\nsys.exit({code})\n"
        )
        file.chmod(file.stat().st_mode | stat.S_IXUSR)
        monkeypatch.setenv("PATH", str(file.parent))
        return lambda: (tmp_path / "called").read_text().splitlines()

    return make


def test_ncu_is_called_with_kernels_and_metrics(tmp_path, fake_ncu, capsys):
    called = fake_ncu(raw_page())
    assert counters.main(["--out", str(tmp_path / "out")]) == 0
    words = called()
    assert words == counters.command("ncu", tmp_path / "out" / "counters.csv")[1:]
    assert words[words.index("--kernel-name") + 1] == "regex:update_kernel"
    assert words[words.index("--launch-count") + 1] == "16"
    assert words[-4:] == [sys.executable, "-m", "benchmarks.counters", "--work"]
    assert counters.DRAM in words[words.index("--metrics") + 1].split(",")
    shown = capsys.readouterr().out
    assert (tmp_path / "out" / "counters.txt").read_text() == shown
    assert counters.main(["--read", str(tmp_path / "out" / "counters.csv")]) == 0
    assert capsys.readouterr().out == shown


def test_no_rights_is_skipped_and_an_error_is_not(tmp_path, fake_ncu, capsys):
    fake_ncu("==ERROR== ERR_NVGPUCTRPERM - The user does not have permission to access GPU counters", 1)
    assert counters.main(["--out", str(tmp_path / "out")]) == counters.SKIPPED
    assert "no right to read the GPU's counters" in capsys.readouterr().out.splitlines()[-1]
    (tmp_path / "text").write_text("==ERROR== something else")
    assert counters.main(["--out", str(tmp_path / "out")]) == 1


def test_no_ncu(tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setattr("benchmarks.counters.Path.exists", lambda path: False)
    assert counters.main(["--out", str(tmp_path / "out")]) == counters.SKIPPED
    assert capsys.readouterr().out == "ncu is not on this machine\n"


def test_stages_of_make_gpu(tmp_path):
    found = {stage.name: stage for stage in gpu.stages(tmp_path)}
    assert found["counters"].command[1:] == ["-m", "benchmarks.counters", "--out", str(tmp_path)]
    assert found["profile"].command[2:4] == ["fastsample", "profile"]
    order = list(found)  # what the page needs comes first, should the time run out
    assert order.index("update") < order.index("page") < order.index("profile") < order.index("counters")
    for code, text, outcome in ((77, "ncu is not here", "skipped"), (1, "broken", "failed"), (0, "fine", "ok")):
        command = [sys.executable, "-c", f"print({text!r}); raise SystemExit({code})"]
        got = gpu.run(gpu.Stage("counters", command, 60), tmp_path, 60)
        assert got[0] == outcome and text in got[1]
