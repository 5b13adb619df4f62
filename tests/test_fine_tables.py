"""Fine tables: the formulas in many digits, the samplers that are known by other names, recorded tables."""

from __future__ import annotations

from decimal import Decimal, getcontext

import numpy as np
import pytest

from fastsample.grids import make_path
from fastsample.path import Path
from fastsample.plan import make_plan
from fastsample.solvers.fine_tables import TABLES, FineTable, fine_table

from .exact import Mixture
from .golden_cases import GOLDEN, Replay

RECORDED = {
    "pmm_ldm_ddpm_small_K10": "ddpm-small",
    "pmm_ve_ddpm_small_K10": "ddpm-small",
    "pmm_ve_sde_ei_K10": "exponential",
    "pmm_vplinear_ddpm_large_K10": "ddpm-large",
    "pmm_vplinear_ddpm_small_K10": "ddpm-small",
}


@pytest.mark.parametrize("stem", RECORDED)
def test_recorded_tables(stem):
    with np.load(GOLDEN / f"{stem}.npz") as file:
        made = fine_table(Path(file["alphas"], file["sigmas"]), RECORDED[stem])
        for name in "abs":
            ours, theirs = getattr(made, name), file[name].copy()
            if name == "s" and made.path[-1].sigma == 0.0:
                theirs[-1] = 0.0  # the recorded forward variance adds noise to clean data, Ho et al. do not
            # formed there as a difference of squares, which loses digits
            np.testing.assert_allclose(ours, theirs, rtol=1e-11, atol=1e-15)


@pytest.mark.parametrize("schedule", ["ddpm-linear", "flow", "edm"])
@pytest.mark.parametrize("step", [1e-2, 1e-5, 1e-8])
def test_digits_survive_close_levels(schedule, step):
    """Against 60 decimal digits of the formulas as they stand: 2 ulp per operation whatever the step."""
    getcontext().prec = 60
    ends = {"ddpm-linear": (0.6, 0.8), "flow": (0.4, 0.6), "edm": (1.0, 0.6)}[schedule]
    alpha, sigma = [ends[0]], [ends[1]]
    alpha.append(ends[0] * (1.0 if schedule == "edm" else 1.0 + step)), sigma.append(ends[1] * (1.0 - step))
    alpha_t, alpha_s, sigma_t, sigma_s = map(Decimal, (*alpha, *sigma))
    r = alpha_t / alpha_s
    v, e, eta = sigma_t**2 - r**2 * sigma_s**2, sigma_t / sigma_s / r, Decimal("0.5")
    small = v.sqrt() * sigma_s / sigma_t
    exact = {
        "ddpm-small": (1 / r, -v / (r * sigma_t), small),
        "ddpm-large": (1 / r, -v / (r * sigma_t), v.sqrt()),
        "frozen-score": (1 / r, -v / (r * r * sigma_t), v.sqrt() / r),
        "exponential": (1 / r, -2 * sigma_s * (e - 1), sigma_s * (e * e - 1).sqrt()),
        "euler-maruyama": (1 - r.ln(), -v / sigma_t, v.sqrt()),
        "ddim": (1 / r, (sigma_s**2 - (eta * small) ** 2).sqrt() - sigma_t / r, eta * small),
    }
    for name, values in exact.items():
        made = fine_table(Path(alpha, sigma), name, 0.5 if name == "ddim" else 0.0)
        ours = [float(x[0]) for x in (made.a, made.b, made.s)]
        # h itself is one quotient: its error is 2^-53 / h of h
        assert ours == pytest.approx([float(value) for value in values], rel=4e-15 + 4e-16 / step), name


@pytest.mark.parametrize(
    ("table", "eta", "solver", "options"),
    [
        ("ddpm-small", 0.0, "ddpm", {}),
        ("ddpm-large", 0.0, "ddpm", {"variance": "large"}),
        ("ddim", 0.0, "ddim", {}),
        ("ddim", 0.3, "ddim", {"eta": 0.3}),
        ("ddim", 1.0, "ddpm", {}),
        ("euler-maruyama", 0.0, "euler-maruyama", {}),
        ("exponential", 0.0, "sde-dpm-1", {}),
    ],
)
@pytest.mark.parametrize("schedule", ["ddpm-linear", "flow", "edm"])
def test_a_fine_table_is_a_known_sampler(table, eta, solver, options, schedule):
    """x0 data form there, eps form here: the same run to rounding."""
    final = "end" if solver == "sde-dpm-1" else None
    limits = {"t_max": 0.95, "t_min": 0.01} if schedule == "flow" else {}
    path = make_path(schedule, "exponential", 12, final=final, **limits)
    made, mixture = fine_table(path, table, eta), Mixture()
    rng = np.random.default_rng(5)
    x, noise = path.sigma[0] * rng.standard_normal((6, 4)), rng.standard_normal((13, 6, 4))

    def eps(i, state):
        level = path[i]
        return (state - level.alpha * mixture.x0(state, level.alpha, level.sigma)) / level.sigma

    known = Replay(make_plan(solver, path, **options), x, eps, noise).x
    for j in range(len(made)):
        x = made.a[j] * x + made.b[j] * eps(j, x) + made.s[j] * noise[1 + j]
    np.testing.assert_allclose(x, known, rtol=1e-11, atol=1e-12)


def test_equal_levels_and_clean_data():
    path = Path([0.5, 0.5, 1.0], [0.8, 0.8, 0.0])
    for name in TABLES:
        if name == "exponential":
            continue
        made = fine_table(path, name)
        assert [made.a[0], made.b[0], made.s[0]] == [1.0, 0.0, 0.0]
        assert made.s[1] == 0.0 and made.a[1] == 2.0
        assert made.b[1] == (-3.2 if name == "frozen-score" else -1.6)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"table": "ddpm"}, "table: got 'ddpm', allowed are ddpm-small"),
        ({"table": "ddim", "eta": 1.5}, r"eta: got 1.5, allowed are numbers in \[0, 1\]"),
        ({"eta": 0.5}, "eta: got 0.5 for the table 'ddpm-small'"),
        ({"table": "exponential"}, "path: the table 'exponential' needs sigma > 0"),
    ],
)
def test_refusals(arguments, message):
    path = make_path("ddpm-linear", "rows", 5)
    with pytest.raises(ValueError, match=message):
        fine_table(path, **arguments)


def test_refused_paths():
    path = make_path("ddpm-linear", "rows", 5)
    with pytest.raises(ValueError, match="path: 'a fine table' runs from noise to data"):
        fine_table(path.reversed())
    with pytest.raises(ValueError, match="path: a fine table works on eps_hat"):
        fine_table(make_path("flow", "uniform", 5))
    with pytest.raises(ValueError, match=r"b: got shape \(1,\), allowed are 5 finite numbers"):
        FineTable(path, np.ones(5), np.ones(1), np.ones(5))
