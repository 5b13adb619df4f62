"""The comparison of solvers, and the generated table of solvers."""

from __future__ import annotations

import csv
import math

import pytest
import torch

from fastsample import cli
from fastsample.choosing import plan_for
from fastsample.compare import energy_distance
from fastsample.models.mixture import GaussianMixture
from fastsample.solver_table import PAGE, page, traffic
from fastsample.solvers import registry


def test_compare_writes_a_plot_and_a_table(tmp_path, capsys):
    out = tmp_path / "new"
    arguments = ["compare", "--model", "mixture", "--solvers", "ddim,dpmpp-2m,ddpm,ddim:eta=0.5+use_clipped=true"]
    assert cli.main([*arguments, "--nfe", "5,20", "-n", "300", "--batch", "120", "--out", str(out)]) == 0
    assert (out / "compare.png").read_bytes().startswith(b"\x89PNG")
    rows = list(csv.DictReader((out / "compare.csv").open()))
    assert [(r["solver"], int(r["nfe"])) for r in rows] == [
        (name, n) for name in ("ddim", "dpmpp-2m", "ddpm", "ddim") for n in (5, 20)
    ]
    error = {(r["solver"], r["options"], r["nfe"]): float(r["error"]) for r in rows}
    # more calls are nearer to the fine solution, and the second order method is nearer than the first at 20
    assert error["ddim", "", "20"] < error["ddim", "", "5"]
    assert error["dpmpp-2m", "", "20"] < error["ddim", "", "20"]
    assert math.isnan(error["ddpm", "", "20"])  # its own noise: no path to compare with
    quality = {(r["solver"], r["nfe"]): float(r["quality"]) for r in rows if not r["options"]}
    assert quality["dpmpp-2m", "20"] < quality["ddim", "5"]
    assert "energy distance" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--solvers", "dim"], "solver: got 'dim'"),
        (["--solvers", "ddim:eta"], "name:option=value"),
        (["--solvers", "ddim:etta=1"], "no option 'etta'"),
        (["--solvers", "ddim", "--nfe", "0"], "--nfe: got"),
        (["--solvers", "ddim", "-n", "1"], "-n, --batch: got 1"),
    ],
)
def test_compare_refuses_before_sampling(arguments, message, tmp_path, capsys):
    out = tmp_path / "none"
    assert cli.main(["compare", "--model", "mixture", *arguments, "--out", str(out)]) == 2
    assert message in capsys.readouterr().err
    assert not out.exists()


def test_energy_distance_is_zero_for_equal_laws():
    """Unbiased: over 40 pairs of 200 exact samples the mean is within 4 standard errors of 0 (false alarm 6e-5)."""
    mixture = GaussianMixture.ring()
    x = mixture.sample(16000, seed=5).double().split(200)
    values = torch.tensor([energy_distance(a, b) for a, b in zip(x[::2], x[1::2], strict=True)])
    assert abs(values.mean()) < 4 * values.std() / len(values) ** 0.5
    assert energy_distance(x[0], x[1] + 0.5) > 10 * values.abs().max()


def test_the_page_of_solvers_is_up_to_date():
    text = PAGE.read_text()
    assert page(text) == text, "run: python -m fastsample.solver_table"
    for name in registry.names():
        assert f"`{name}`" in text


def test_traffic_is_counted_in_the_rows():
    network = GaussianMixture.ring().network("eps")
    assert traffic(plan_for(network, solver="ddim", steps=20)) == (2, 1)
    assert traffic(plan_for(network, solver="dpmpp-2m", steps=20)) == (3, 2)
    assert traffic(plan_for(network, solver="dpmpp-3m", steps=20)) == (4, 2)
