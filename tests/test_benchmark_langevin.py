"""benchmarks.metropolis: ours and the peer by hand do one job; a tiny run writes what it says.  Nothing is timed."""

from __future__ import annotations

import csv
import json

import pytest
import torch

from benchmarks import langevin, metropolis
from benchmarks.harness import COLUMNS
from fastsample import noise
from fastsample.ops import metropolis_, update

SHAPE = (64, 40)


@pytest.mark.parametrize("network", [torch.float32, torch.bfloat16])
def test_mala_by_hand_and_ours(network):
    t = langevin.Job("mala", *SHAPE, network).tensors()
    key, table = noise.keys(4, SHAPE[0]), langevin.mala_table(True)
    step, uniform, xi = torch.tensor(3), noise.choice_uniform(key, 3), noise.normal_like(t["z"], key, 4)
    grad = t["e"].float() / langevin.S + (langevin.R / langevin.V) * (langevin.R * t["z"] - t["x"])
    z, _, z_new, count = langevin.mala(t["z"], grad, t["z_new"], t["e_new"], t["x"], torch.zeros(SHAPE[0]), uniform, xi)
    chain, outs = torch.zeros(SHAPE[0], 5, dtype=torch.float64), [torch.empty(SHAPE), torch.empty(SHAPE, dtype=network)]
    state = t["z"].clone()
    metropolis_(state, t["e"].clone(), outs, chain, t["z_new"], t["e_new"], [t["x"]], table, step, key)
    assert torch.equal(chain[:, 4].float(), count)
    assert 5 < count.sum() < 59
    assert torch.equal(state, z)
    assert (outs[0] - z_new).abs().max() <= 2e-6
    assert torch.equal(outs[1], outs[0].to(network))


def test_uld_by_hand_and_ours():
    t = langevin.Job("uld", *SHAPE).tensors()
    key, step = noise.keys(4, SHAPE[0]), torch.tensor(2)
    xi, xi_z = (noise.normal_like(t["z"], key, draw) for draw in (4, 5))
    ours = update([t["z"], t["u"], t["e"], t["x"]], langevin.uld_table(), step, key, outputs=2)
    for x, y in zip(ours, langevin.uld(t["z"], t["u"], t["e"], t["x"], xi, xi_z), strict=True):
        assert (x - y).abs().max() <= 2e-6


def test_a_tiny_run_writes_what_it_says(tmp_path, monkeypatch, capsys):
    jobs = (langevin.Job("mala", 3, 5, torch.bfloat16), langevin.Job("uld", 3, 5, wanted=1e9))
    monkeypatch.setattr(metropolis, "JOBS", jobs)
    out = tmp_path / "metropolis-cpu"
    assert metropolis.main(["--quick", "--min-time", "0.001", "--out", str(tmp_path), "--note", "a test"]) == 0
    with out.with_suffix(".csv").open() as file:
        lines = list(csv.DictReader(file))
    assert set(lines[0]) == set(COLUMNS)
    assert {line["kernel_provider"] for line in lines} == {"copy", "fastsample", "eager"}
    facts = json.loads(out.with_suffix(".json").read_text())
    assert facts["note"] == "a test" and facts["must_reach"][0]["verdict"] == "NOT reached"
    assert out.with_suffix(".png").stat().st_size > 1000
    assert "NOT reached" in capsys.readouterr().out
