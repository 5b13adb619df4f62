"""Few-step samplers: recorded runs of the authors' programs."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest

from fastsample.few_step import karras_index_path, lcm_path, tcd_path, tcd_stops, tdm_path, trig_path
from fastsample.path import Path
from fastsample.plan import COND, make_plan
from fastsample.schedules import DiscreteVP

from .exact import Mixture
from .golden_cases import GOLDEN, Replay, apply_row, cases

MIXTURE = Mixture()


def record(name: str) -> dict[str, Any]:
    with np.load(GOLDEN / f"{name}.npz") as file:
        return {key: file[key] for key in file.files}


def shifted(noise):
    """Draw i + 1 of a plan is that of row i."""
    return lambda n: noise[n - 1]


def jumps(plan, states, outputs, noise):
    """What the slot "jump" of a plan with ``record=True`` gets, call by call."""
    slot = [s.name for s in plan.slots].index("jump")
    found = []
    for call, values, x, e in zip(plan.calls, plan.table, states, outputs, strict=True):
        made = apply_row(values, call, {0: x, COND: e}.__getitem__, shifted(noise))
        found.append(made[call.outputs.index(slot)])
    return found


PREDICTIONS = {"epsilon": "eps", "sample": "x0", "v_prediction": "v"}
LCM = [("epsilon", 1), ("epsilon", 4), ("sample", 4), ("v_prediction", 4)]
TCD = [("epsilon", 1, 0.3), *(("epsilon", 4, e) for e in (0.0, 0.3, 1.0)), ("sample", 4, 0.3), ("v_prediction", 4, 0.3)]


@pytest.mark.parametrize(("kind", "steps"), LCM, ids=str)
def test_lcm_of_diffusers(kind, steps):
    case = record(f"cons_lcm_linear_{kind}_N{steps}")
    path = lcm_path(DiscreteVP(case["alphas_cumprod"]), steps)
    np.testing.assert_array_equal(path.t[:-1], case["timesteps"])
    plan = make_plan("lcm", path, prediction=PREDICTIONS[kind])
    run = Replay(plan, case["x_T"], case["model_out"], shifted(case["noise"]))
    np.testing.assert_allclose(run.states, case["states"][1:], rtol=0, atol=1e-10)
    plan = make_plan("lcm", path, prediction=PREDICTIONS[kind], record=True)
    denoised = jumps(plan, case["states"][:-1], case["model_out"], case["noise"])
    np.testing.assert_allclose(denoised, case["second_output"], rtol=0, atol=1e-10)


@pytest.mark.parametrize(("kind", "steps", "eta"), TCD, ids=str)
def test_tcd_of_diffusers(kind, steps, eta):
    case = record(f"cons_tcd_linear_{kind}_N{steps}_eta{eta}")
    table = DiscreteVP(case["alphas_cumprod"])
    path = tcd_path(table, steps)
    np.testing.assert_array_equal(path.t[:-1], case["timesteps"])
    options = {"prediction": PREDICTIONS[kind], "stops": tcd_stops(table, eta)}
    run = Replay(make_plan("tcd", path, **options), case["x_T"], case["model_out"], shifted(case["noise"]))
    np.testing.assert_allclose(run.states, case["states"][1:], rtol=0, atol=1e-10)
    plan = make_plan("tcd", path, **options, record=True)
    landed = jumps(plan, case["states"][:-1], case["model_out"], case["noise"])
    np.testing.assert_allclose(landed, case["second_output"], rtol=0, atol=1e-10)


@pytest.mark.parametrize("case", cases("lcm_tcd_diffusers"), ids=str)
def test_lcm_and_tcd_of_diffusers(case):
    table = DiscreteVP(case["alphas_cumprod"])
    lcm = case.cfg["scheduler"] == "LCMScheduler"
    path = (lcm_path if lcm else tcd_path)(table, case.cfg["steps"])
    np.testing.assert_array_equal(path.t[:-1], case["t"])
    options = {} if lcm else {"stops": tcd_stops(table, case.cfg["eta"])}
    plan = make_plan("lcm" if lcm else "tcd", path, prediction=case.cfg["prediction"], **options)
    run = Replay(plan, case["x_T"], case["eval_out"], shifted(case["noise"]))
    np.testing.assert_allclose(run.asked, case["eval_x"], rtol=0, atol=1e-10)
    np.testing.assert_allclose(run.x, case["x_0"], rtol=0, atol=1e-10)


def raw_output(x0, x, sigma):
    """F of the scalings of consistency models at sigma_min = 0.002, of its d."""
    skip, out = 0.25 / ((sigma - 0.002) ** 2 + 0.25), (sigma - 0.002) * 0.5 / math.hypot(sigma, 0.5)
    return (x0 - skip * x) / out


def close_to_authors(states, case):
    """Their last sigma is a few roundings u above sigma_min: sqrt(2 u) sigma_min = 2e-10 of noise where ours is 0."""
    np.testing.assert_allclose(states[:-1], case["states"][1:-1], rtol=0, atol=1e-10)
    u = 16 * np.finfo(float).eps
    bound = 0.002 * math.sqrt(2 * u) * np.abs(case["noise"][-1]) + 1e-12
    assert (np.abs(states[-1] - case["states"][-1]) <= bound).all()


@pytest.mark.parametrize("indices", [(0, 22, 39), (0, 10, 20, 30, 39)], ids=str)
def test_cm_of_the_authors(indices):
    case = record(f"cons_cm_openai_ts{'-'.join(map(str, indices))}_of40")
    path = karras_index_path(indices, 40)
    sigma = path.sigma
    ideal = Replay(
        make_plan("cm", path, prediction="x0", boundary=False),
        case["x_T"],
        lambda i, x: MIXTURE.x0(x, 1.0, sigma[i]),
        shifted(case["noise"]),
    )
    close_to_authors(ideal.states, case)
    # the same through the raw output, with the scaled input and the limits of the authors' program
    for clip in (None, 1.0):
        plan = make_plan("cm", path, prediction="edm", input_scaling="edm", clip=clip, denoised=True)

        def network(i, x):
            x = x * math.hypot(sigma[i], 0.5)
            return raw_output(MIXTURE.x0(x, 1.0, sigma[i]), x, sigma[i])

        raw = Replay(plan, case["x_T"], network, shifted(case["noise"]))
        if clip is None:
            close_to_authors(raw.states, case)
        else:
            assert np.abs(raw.previews).max() == 1.0
            np.testing.assert_array_equal(raw.x, raw.previews[-1])


@pytest.mark.parametrize(("name", "indices"), [("22-0", [0, 22, 39]), ("default4", [0, 10, 20, 30, 39])])
def test_cm_of_diffusers(name, indices):
    """It computes in float64 from float32 sigmas, and its last noise is sqrt(sigma^2 - sigma_min^2) of one: not 0."""
    case = record(f"cons_cm_diffusers_n40_{name}")
    sigma = case["sigmas"].astype(np.float64)
    np.testing.assert_allclose(karras_index_path(indices).sigma, sigma, rtol=1e-6)
    plan = make_plan("cm", Path(np.ones(len(sigma)), sigma), prediction="edm")
    run = Replay(plan, case["x_T"], case["model_out"], shifted(case["noise"]))
    np.testing.assert_allclose(run.states, case["states"][1:], rtol=0, atol=1e-6)


CTM = {
    "gamma0.2_n2": {"gamma": 0.2},
    "gamma0.5_n2": {"gamma": 0.5},
    "gamma0.9_n2": {"gamma": 0.9},
    "exact_n2": {"gamma": 0.0},
    "cm_multistep_n2": {"gamma": 1.0},
    "twostep_20_10": {},
    "twostep_30_30": {},
}


@pytest.mark.parametrize("name", CTM)
def test_ctm_of_the_authors(name):
    case, options = record(f"cons_ctm_{name}"), CTM[name]
    sigma = [*case["t"], 0.002]
    if not options:
        options = {"stops": case["s"].tolist()}  # index pairs: the first jump lands above the second level's time
    plan = make_plan("ctm", Path(np.ones(3), sigma), prediction="x0", **options)
    np.testing.assert_allclose(plan.targets, case["s"], rtol=1e-14)
    run = Replay(plan, case["x_T"], lambda i, x: MIXTURE.x0(x, 1.0, sigma[i]), shifted(case["noise"]))
    np.testing.assert_allclose(run.states, case["states"][1:], rtol=0, atol=1e-10)


@pytest.mark.parametrize("steps", [1, 2, 4])
def test_tdm_of_the_authors(steps):
    case = record(f"cons_tdm_total1000_N{steps}")
    table = DiscreteVP(case["alphas_cumprod"])
    path = tdm_path(table, steps)
    levels = path.levels()

    def eps(i, x):
        return (x - levels[i].alpha * MIXTURE.x0(x, levels[i].alpha, levels[i].sigma)) / levels[i].sigma

    run = Replay(make_plan("tdm", path, denoised=True), case["x_T"], eps)
    for state, expected in zip(run.states[:-1], case["states"][1:-1], strict=True):
        np.testing.assert_allclose(state, expected, rtol=0, atol=1e-10)
    np.testing.assert_allclose(run.previews, case["x0_preds"], rtol=0, atol=1e-10)
    np.testing.assert_allclose(run.x, case["x0_preds"][-1], rtol=0, atol=1e-10)


@pytest.mark.parametrize("steps", [1, 2])
def test_scm_of_diffusers(steps):
    """Its start 1.5708 lies 3.6e-6 beyond pi/2, where alpha is negative; ours is pi/2."""
    case = record(f"cons_scm_N{steps}")
    times = case["timesteps"]
    assert 0 < times[0] - math.pi / 2 < 4e-6
    if steps == 2:
        rest = make_plan("scm", trig_path(times=times[1:]), prediction="flow")
        end = Replay(rest, case["states"][1], case["model_out"][1:], shifted(case["noise"][1:])).x
        np.testing.assert_allclose(end, case["states"][2], rtol=0, atol=1e-14)
    run = Replay(
        make_plan("scm", trig_path(times=times), prediction="flow"),
        case["x_T"],
        case["model_out"],
        shifted(case["noise"]),
    )
    bound = (times[0] - math.pi / 2) * (np.abs(case["x_T"]) + np.abs(case["model_out"][0]))
    assert (np.abs(run.states[0] - case["states"][1]) <= bound).all()
