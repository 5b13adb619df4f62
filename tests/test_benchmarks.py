"""The benchmark: every program does the same job, and a tiny run writes what it says.  Nothing here is timed."""

from __future__ import annotations

import contextlib
import csv
import json
import math

import numpy as np
import pytest
import torch

from benchmarks import report, steps, update
from benchmarks.harness import COLUMNS, Times, peak_bytes, ratio
from fastsample import noise

PROGRAMS = [
    "native",
    "native-checked",
    "reference",
    "eager",
    "k-diffusion",
    "diffusers",
    *(pytest.param(name, marks=pytest.mark.slow) for name in steps.COMPILED),
]
UNIT = {torch.float32: 2.0**-24, torch.bfloat16: 2.0**-8}
SHAPE = (3, 4, 9, 5)


def build(name, job, xi=None):
    try:
        return steps.build(name, job, xi=xi)[0]
    except steps.UnavailableError as error:
        pytest.skip(str(error))


@pytest.mark.parametrize(
    ("stochastic", "expected"),
    [
        (False, (0.4882682091272, 0.9640314743857, -0.3707813363022, 0.0)),
        (True, (0.1796238359155, 1.318678834454, -0.5071841670979, 0.3210460415698)),
    ],
)
def test_coefficients_by_quadrature(stochastic, expected):
    """log-SNR -0.8, 0, 1: the exact integrals to 40 digits, rounded to 13."""
    k = steps.coefficients(math.exp(0.8), 1.0, math.exp(-1.0), stochastic)
    np.testing.assert_allclose((k.a, k.b0, k.b1, k.c), expected, rtol=0, atol=1e-12)


def tensor_coefficient_error() -> float:
    """Relative error of a coefficient computed by float32 tensor operations from float32 levels; in units of 2^-24.

    Each level is rounded and alpha, sigma take at most four roundings more; a logarithm turns these into an absolute
    error and adds one of its own size.  h is a difference of two log-SNR; expm1 of it, and h/h_last, amplify that.
    """
    rho = steps.rho_path()[steps.INDEX - 1 : steps.INDEX + 2]
    alpha = 1 / np.hypot(1, rho)
    logs = np.abs([np.log(alpha), np.log(alpha * rho), np.log(rho)]).max()
    one_log = 5 + 2 * logs
    h_error = 2 * (2 * one_log + 2 * logs)
    h, h_last = np.log(rho[1] / rho[2]), np.log(rho[0] / rho[1])
    phi = -np.expm1(-h)  # the smaller of the two cases
    return float(10 + (2 * h_error + 3) / phi + h_error / h + h_error / h_last)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("stochastic", [False, True], ids=["deterministic", "noise"])
@pytest.mark.parametrize("name", PROGRAMS)
def test_same_numbers(name, stochastic, dtype):
    """x' and D against float64: sums of products, bound = (roundings * unit + coefficient error) * sum |c_j x_j|.

    At most 16 roundings lie on the way of a product in a peer: coefficient, conversion (4, with the change of
    coordinates of k-diffusion 8), combination (8).  Ours rounds K + 4 times in float32 and once on store.
    """
    job = steps.Job(SHAPE, dtype, stochastic)
    k, (x, e, d) = job.coefficients, (t.double() for t in job.inputs())
    xi = torch.randn(SHAPE, generator=torch.Generator().manual_seed(5)).to(dtype)
    with torch.inference_mode():
        program = build(name, job, xi if stochastic else None)
        with program.active():
            program.advance()
        got_x, got_d = program.state()
    expected_d = k.alpha * x - k.sigma * e
    size_d = (k.alpha * x).abs() + (k.sigma * e).abs()
    expected_x = k.a * x + k.b0 * expected_d + k.b1 * d + k.c * xi.double()
    size_x = (k.a * x).abs() + abs(k.b0) * size_d + (k.b1 * d).abs() + (k.c * xi.double()).abs()
    own = name in (*steps.OURS, steps.CHECKED)
    relative, store = (7 * 2.0**-24, UNIT[dtype]) if own else (16 * UNIT[dtype], 0.0)
    if name in ("k-diffusion", "diffusers"):
        relative += tensor_coefficient_error() * 2.0**-24
    assert got_x.dtype == got_d.dtype == dtype
    for got, expected, size in ((got_x, expected_x, size_x), (got_d, expected_d, size_d)):
        excess = (got.double() - expected).abs() - relative * size - store * expected.abs()
        assert excess.max() <= 0, f"error {(got.double() - expected).abs().max():.3g}"


@pytest.mark.parametrize("backend", ["native", "reference"])
def test_noise_in_the_kernel_is_the_noise_of_the_key(backend):
    job = steps.Job(SHAPE, stochastic=True)
    program = build(backend, job)
    x = job.inputs()[0]
    key = noise.keys(0, SHAPE[0])
    with program.active():
        program.advance()
        given = build(backend, job, noise.normal_like(x, key, 1))
        given.advance()
    assert torch.equal(program.state()[0], given.state()[0])
    assert not torch.equal(program.state()[0], x)


def test_peers_draw_noise_when_none_is_given():
    for name in ("eager", "k-diffusion", "diffusers"):
        states = []
        for _ in range(2):
            program = build(name, steps.Job(SHAPE, stochastic=True))
            program.advance()
            states.append(program.state()[0])
        assert not torch.equal(*states), name


@pytest.mark.parametrize("name", ["native", "eager", "k-diffusion", "diffusers"])
@pytest.mark.parametrize("stochastic", [False, True], ids=["deterministic", "noise"])
def test_a_loop_stays_bounded(name, stochastic):
    """Else the timed loops would run on infinities."""
    with torch.inference_mode():
        program = build(name, steps.Job((1, 64), stochastic=stochastic))
        with program.active():
            for _ in range(3000):
                program.advance()
        assert all(t.abs().max() < 1e4 for t in program.state())


def test_peak_bytes_counts_what_is_alive():
    x = torch.ones(2**16)
    keep = {}

    def rebind():
        keep["y"] = (x + 1) * 2  # the old y is freed at the end only: two new tensors are alive at once

    assert peak_bytes(lambda: x.mul_(x), contextlib.nullcontext, "cpu") < 64
    one = peak_bytes(lambda: x + 1, contextlib.nullcontext, "cpu")
    assert 2**18 <= one < 2**18 + 64  # the scalar is a tensor of a few bytes
    two = peak_bytes(rebind, contextlib.nullcontext, "cpu")
    assert 2 * 2**18 <= two < 2 * 2**18 + 64


@pytest.mark.parametrize("stochastic", [False, True], ids=["deterministic", "noise"])
def test_the_in_place_step_allocates_no_state(stochastic):
    with torch.inference_mode():
        job = steps.Job((2, 4, 64, 64), stochastic=stochastic)
        ours, eager = build("native", job), build("eager", job)
        assert peak_bytes(ours.advance, ours.active, "cpu") < 64
        assert peak_bytes(eager.advance, eager.active, "cpu") >= 2 * job.state_bytes


def test_ratio_pairs_rounds():
    slow = Times(np.array([4.0, 40.0]), np.array([0, 2]))
    fast = Times(np.array([2.0, 3.0, 10.0]), np.array([0, 1, 2]))
    assert ratio(slow, fast)[0] == 3.0  # median of 2 and 4


def test_a_tiny_run(tmp_path, capsys):
    out = tmp_path / "results" / "update-cpu"
    programs = "native,native-checked,eager,k-diffusion,diffusers"
    arguments = ["--sizes", "2^8", "--shapes", "2x3x5x7", "--programs", programs, "--min-time", "0", "--threads", "1"]
    assert update.main([*arguments, "--out", str(out.parent)]) == 0
    printed = capsys.readouterr().out
    assert "Must reach:" in printed
    assert "Where we lose" in printed
    with out.with_suffix(".csv").open() as file:
        reader = csv.DictReader(file)
        lines = list(reader)
    assert tuple(reader.fieldnames) == COLUMNS
    assert COLUMNS[:9] == (
        *("kernel_name", "kernel_provider", "kernel_operation_mode", "metric_name", "metric_unit"),
        *("x_name", "x_label", "x_value", "y_value_50"),
    )
    facts = json.loads(out.with_suffix(".json").read_text())
    ran = [name for name in programs.split(",") if name not in facts["skipped"]]
    for line in lines:
        middle, low, high = (float(line[f"y_value_{q}"]) for q in (50, 20, 80))
        assert low <= middle <= high
        assert low > 0 or line["metric_name"] == "peak_memory"
        config = json.loads(line["extra_benchmark_config_str"])
        assert math.prod(config["shape"]) == int(line["x_value"])
    timed = {
        (
            line["kernel_provider"],
            line["kernel_operation_mode"],
            json.loads(line["extra_benchmark_config_str"])["dtype"],
        )
        for line in lines
        if line["metric_name"] == "time"
    }
    cases, dtypes = ("deterministic", "noise"), ("float32", "bfloat16")
    assert timed == {(p, c, t) for p in (*ran, *steps.YARDSTICKS) for c in cases for t in dtypes}
    assert len(facts["load_average_at_start"]) == 3
    assert {item["verdict"] for item in facts["must_reach"]} <= {"reached", "NOT reached", "not measured"}
    not_run = [item for item in facts["must_reach"] if "2^24" in item["what"]]
    assert [item["verdict"] for item in not_run] == ["not measured"] * 2


def test_losses_are_named():
    def times(seconds):
        return Times(np.full(3, seconds), np.arange(3))

    ran = {"copy": times(1.0), "add": times(1.0), "native": times(2.0), "eager": times(1.0), "diffusers": times(6.0)}
    point = report.Point(steps.Job((1, 8)), "noise", "float32", False, 0, ran, {}, dict.fromkeys(ran, 0))
    assert [("eager" in line, "0.50 of native" in line) for line in report.losses([point])] == [(True, True)]
    assert point.fraction("native")[0] == 1.25  # five streams in twice the time of two


def test_wrong_arguments_are_named(capsys):
    wrong = {"--sizes": "2^x", "--programs": "nobody", "--dtypes": "int8", "--shapes": "0x4"}
    for option, value in wrong.items():
        with pytest.raises(SystemExit):
            update.parse([option, value])
        printed = capsys.readouterr().err
        assert option in printed
        assert "allowed are" in printed


def test_threshold_benchmark_writes_its_figures(tmp_path):
    pytest.importorskip("diffusers")
    from benchmarks import threshold

    assert threshold.main(["--quick", "--min-time", "0.01", "--out", str(tmp_path)]) == 0
    with (tmp_path / "threshold-cpu.csv").open() as file:
        lines = list(csv.DictReader(file))
    timed = {line["kernel_provider"] for line in lines if line["metric_name"] == "time"}
    assert timed == {"copy", "fastsample", "threshold_", "diffusers", "torch.quantile", "rescale_", "torch-rescale"}
    assert all(float(line["y_value_50"]) > 0 for line in lines)
    promised = json.loads((tmp_path / "threshold-cpu.json").read_text())["must_reach"]
    assert [item["what"].split(":")[0] for item in promised] == ["1x4x8x8"]
    assert (tmp_path / "threshold-cpu.png").stat().st_size > 1000
