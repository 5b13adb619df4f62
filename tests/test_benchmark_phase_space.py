"""The reproduction of the phase-space papers: points of its table measured again."""

from __future__ import annotations

from pathlib import Path

import pytest

from benchmarks.papers import phase_space as bench

FILE = Path(bench.__file__).parent / "results" / "phase_space.csv"


def points(part, label):
    return {int(r["nfe"]): float(r["value"]) for r in bench.read(FILE) if (r["part"], r["label"]) == (part, label)}


@pytest.mark.parametrize(("label", "solver"), [("EM", "psld-em"), ("ROBA", "roba"), ("RVV", "rvv")])
def test_exact_laws_are_those_of_the_table(label, solver):
    last = 0 if solver == "rvv" else 1
    nfe, value = bench.gauss_distance(solver, (50 - last) // (2 if solver == "rvv" else 1), {})
    assert nfe == 50
    assert value == pytest.approx(points("gauss", label)[50], abs=2e-5)


def test_cases_cover_the_table():
    for part in bench.TITLES:
        labels = {label for label, *_ in bench.cases(part)}
        assert labels == {r["label"] for r in bench.read(FILE) if r["part"] == part} - {"exact samples"}
        assert all(steps > 0 for *_, steps in bench.cases(part))


def test_distance_of_samples():
    x, y = (bench.DATA.sample(500, seed=seed) for seed in (0, 1))
    assert bench.sliced(x, x) == 0.0
    assert bench.sliced(x, y) < 0.2 < bench.sliced(x, y + 1.0)


def test_plot(tmp_path):
    pytest.importorskip("matplotlib")
    (tmp_path / "phase_space.csv").write_text(FILE.read_text())
    bench.plot(tmp_path / "phase_space.csv")
    assert (tmp_path / "phase_space.png").stat().st_size > 10_000
