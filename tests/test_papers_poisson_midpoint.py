"""The reproduction of the Poisson midpoint paper: its measure, and a tiny run.  Nothing here is timed."""

from __future__ import annotations

import math

import pytest
import torch

from benchmarks.papers import poisson_midpoint as paper


def test_quantile_distance_of_a_shift():
    """A shift by d moves every quantile of a direction by d . direction: in all, |d| / sqrt(dimensions) on average."""
    exact = torch.randn(2000, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    measure = paper.quantile_distance(exact, 2000, directions=400)
    assert measure(exact) == 0.0
    assert measure(exact + 0.6) == pytest.approx(0.6, rel=0.1)  # |d|^2 / 3 = 0.36
    assert paper.quantile_distance(exact, 400)(exact[:400]) < 0.3


@pytest.mark.filterwarnings("ignore:window")
def test_a_tiny_run_goes_on_where_it_stopped(tmp_path, monkeypatch):
    everything = list(paper.cases("mixture"))
    few = [case for case in everything if case[0] in ("PMM one", "DDIM", "PMM one, even windows, shared")]
    assert {case[0] for case in everything} >= {
        "DDPM, 1000 steps",
        "SA-Solver",
        "DPM-Solver++ 2M",
        "PMM bernoulli, even windows",
    }
    monkeypatch.setattr(paper, "cases", lambda part: iter(few[:4]))
    monkeypatch.setattr(paper, "CHUNKS", 2)
    paper.run("mixture", 80, 0, tmp_path)
    rows = paper.read(tmp_path / "poisson_midpoint-mixture.csv")
    assert [row["label"] for row in rows] == ["exact samples"] * 3 + [case[0] for case in few[:4]]
    assert all(0.0 < float(row["distance"]) < 2.0 for row in rows)
    assert [math.ceil(float(row["nfe"])) for row in rows[3:6]] == [34, 48, 84]
    monkeypatch.setattr(paper, "cases", lambda part: iter(few[3:]))
    paper.run("mixture", 80, 0, tmp_path)
    again = paper.read(tmp_path / "poisson_midpoint-mixture.csv")
    assert again[: len(rows)] == rows
    assert len(again) == 3 + len(few)
