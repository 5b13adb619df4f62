"""Recorded runs: EM and SSCS of the authors' program, and loops written from the formulas for what has no program.

The fused rows draw once where those runs draw for every part of a step; their draws are put where they belong.
"""

from __future__ import annotations

import numpy as np
import pytest
import torch

from fastsample import PhaseSpace, make_path, make_plan, sample
from fastsample.solvers import find
from fastsample.solvers.phase.baselines import merged_draws
from fastsample.solvers.registry import complete

from .phase_cases import mixture, recorded

NAMES = {"em": "psld-em", "euler": "psld-euler", "lddim": "lambda-ddim-psld"}
NOISE_FIRST = ("roba", "noba", "robab", "sscs")  # noise of the first step is part of the start
CASES = recorded("psld_em", "psld_sscs", "psldref_")


def setup(case):
    kind, name, *words = case.name.split("_")
    options = {"last": "full" if kind == "psld" else "none"}
    if name in ("lddim", "cse", "cvv"):
        options |= {"lam": float(words[0][3:]), "kind": words[1][4:]}
    if "s0.36" in words:
        options |= {"lambda_s": 0.36, "window": "mean" if "modetbar" in words else "step"}
    beta = case["beta"] if "beta" in case else case["beta0"]
    process = PhaseSpace(case["Gamma"], case["nu"], beta, case["kappa"], jitter=case["jitter"])
    return NAMES.get(name, name), process, make_path(process, case["t_grid"]), options


def noise_of(case, name, process, path):
    """Draws by number: of call i are 2 + 2i and 3 + 2i, of the start 0 and 1."""
    if "noise_x" not in case:
        return {}
    x, m = case["noise_x"], case["noise_m"]
    if name == "sscs":
        x, m = merged_draws(path, process, x, m)
    calls = (
        2 if name in ("noba", "robab") else 1
    )  # in a step; noise comes after its last, or before the next one's first
    draws = {}
    for k, pair in enumerate(zip(x, m, strict=True)):
        first = (0 if k == 0 else 2 * calls * k) if name in NOISE_FIRST else 2 + 2 * k
        draws.update({first: torch.tensor(pair[0]), first + 1: torch.tensor(pair[1])})
    return draws


@pytest.mark.parametrize("case", CASES, ids=repr)
def test_runs(case):
    name, process, path, options = setup(case)
    z = torch.tensor(np.concatenate([case["x_T"], case["m_T"]], axis=1))
    plan = make_plan(name, path, **process.options, **options)
    if "nfe" in case:
        assert plan.nfe == case["nfe"]
    x = sample(mixture().phase_space(process), z, plan=plan, noise=noise_of(case, name, process, path))
    np.testing.assert_allclose(x.numpy(), case["out_x"], rtol=0, atol=2e-12)


@pytest.mark.parametrize("case", [case for case in CASES if "A" in case], ids=repr)
def test_tables(case):
    """Stages of one network call joined, noise apart, as they were recorded."""
    name, process, path, options = setup(case)
    entry = find(name)
    stages = []
    for stage in entry.steps(path, **complete(entry, {**process.options, **options})).stages:
        alone = stage.at is not None or (stage.N.size and name != "rbao") or (stages and stages[-1].at is None)
        if alone or not stages:
            stages.append(stage)
        else:
            stages[-1] = stages[-1].then(stage)
    assert len(stages) == len(case["A"])
    # the exponential of that loop lost digits in its last step: see test_the_exponential
    atol = 2e-11 if case.name == "psldref_cse_lam0.5_kind1_const_quadratic_N24" else 1e-13
    for k, stage in enumerate(stages):
        np.testing.assert_allclose(stage.A, case["A"][k], rtol=1e-13, atol=atol)
        np.testing.assert_allclose(stage.E, case["E"][k], rtol=2e-13, atol=atol)
        if stage.N.size:
            np.testing.assert_allclose(stage.N, case["N"][k], rtol=1e-13, atol=1e-15)


def test_merged_draws_are_unit_normals():
    process = PhaseSpace()
    path = make_path(process, "quadratic", 4)
    g = np.random.default_rng(0)
    x, m = g.standard_normal((2, 8, 100_000))
    made = np.stack(merged_draws(path, process, x, m), axis=1)
    assert made.shape == (5, 2, 100_000)
    # 10 variances and 45 covariances, each within 5 standard errors: a false alarm in 3e4 other seeds
    np.testing.assert_allclose(np.cov(made.reshape(10, -1)), np.eye(10), atol=5 * (2 / 1e5) ** 0.5)
    with pytest.raises(ValueError, match="need 8, two of each per step"):
        merged_draws(path, process, x[1:], m[1:])
