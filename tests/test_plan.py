from __future__ import annotations

import copy
import dataclasses
import json
import math
import pickle
import time

import numpy as np
import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from fastsample import row
from fastsample.grids import make_path
from fastsample.path import Path
from fastsample.plan import STARTS, Call, Plan, Slot, make_plan
from fastsample.solvers import add, describe, find, names, solvers

from .golden_cases import Replay

VP = make_path("vp-linear", "log-snr", 6)
VE = Path(np.ones(5), [10.0, 3.0, 1.0, 0.2, 0.0])


def columns(plan):
    """Columns of the table that are in use."""
    return set(np.flatnonzero((plan.table != row.blank()).any(axis=0)).tolist()) - {row.TIME, row.DRAW}


def test_rows_without_clamp_and_history_collapse():
    """DDIM on an eps network: x' = (alpha'/alpha) x + (sigma' - sigma alpha'/alpha) e, nothing else."""
    plan = make_plan("ddim", VP)
    assert columns(plan) == {row.w(0, 0), row.w(0, 1)}
    assert plan.slots == (Slot("x", "state"),)
    assert all(call == Call(0, (0, -1), (0,)) for call in plan.calls)
    ratio = VP.alpha[1:] / VP.alpha[:-1]
    np.testing.assert_allclose(plan.table[:, row.w(0, 0)], ratio, rtol=1e-13)
    np.testing.assert_allclose(plan.table[:, row.w(0, 1)], VP.sigma[1:] - ratio * VP.sigma[:-1], rtol=1e-11)
    assert plan.draws == 1


@pytest.mark.parametrize(("name", "depth"), [("dpmpp-2m", 1), ("dpmpp-3m", 2), ("sde-dpmpp-3m", 2), ("dpm-2m", 1)])
def test_history_is_a_ring_in_place(name, depth):
    plan = make_plan(name, make_path("vp-linear", "log-snr", 9), lower_order_final=False)
    assert [slot.name for slot in plan.slots] == ["x", *(f"D{j + 1}" for j in range(depth))]
    for i, call in enumerate(plan.calls[:-1]):
        assert call.outputs == (0, 1 + i % depth)
        assert call.terms == (0, *range(1, 1 + depth), -1)
    assert plan.calls[-1].outputs == (0,)  # nobody reads the last D
    for i, values in enumerate(plan.table):  # weights of slots that were never written are zero
        for j in range(depth):
            if j >= i:
                assert not values[4 * (1 + j) : 4 * (2 + j)].any()


def test_guidance_is_two_terms():
    w = [1.0, 2.0, 3.0, 4.0, 5.0, 6.0]
    rng = np.random.default_rng(0)
    x, cond, uncond = rng.standard_normal((3, 6, 5))
    for solver in ("ddim", "dpmpp-2m", "dpm-2m"):
        for clip in (None, 0.5):
            for scaling in ("none", "vp"):
                shared = {"clip": clip, "input_scaling": scaling}
                plan = make_plan(solver, VP, guidance=w, **shared)
                assert plan.calls[0].terms[-2:] == (-1, -2)
                two = Replay(plan, x[0], list(zip(cond, uncond, strict=True)))
                mixed = [g * c + (1 - g) * u for g, c, u in zip(w, cond, uncond, strict=True)]
                one = Replay(make_plan(solver, VP, **shared), x[0], mixed)
                np.testing.assert_allclose(two.x, one.x, rtol=1e-12, atol=1e-12)
                np.testing.assert_allclose(two.asked, one.asked, rtol=1e-12, atol=1e-12)


def test_scaled_input_is_a_slot_of_its_own():
    plan = make_plan("dpmpp-2m", VE, prediction="edm", input_scaling="edm", sigma_data=0.5, time="log-sigma")
    assert plan.slots[-1] == Slot("input", "input")
    assert {call.ask for call in plan.calls} == {2}
    assert plan.prologue == Call(0, (0,), (0, 2))
    np.testing.assert_allclose(plan.t, np.log(VE.sigma[:-1]) / 4)
    rng = np.random.default_rng(0)
    x, e = rng.standard_normal(3), rng.standard_normal((4, 3))
    run = Replay(plan, x, e)
    states = [x, *run.states[:-1]]
    scales = 1 / np.sqrt(VE.sigma[:-1] ** 2 + 0.25)
    np.testing.assert_allclose(run.asked, [k * s for k, s in zip(scales, states, strict=True)], rtol=1e-13)


def test_clipped_ddim_keeps_the_raw_direction():
    x, e = np.array([3.0, 0.2]), np.array([0.5, -0.3])
    path = VP[2:4]
    (a, s, _), (a1, s1, _) = path.levels()
    x0 = np.clip((x - s * e) / a, -1, 1)
    raw = Replay(make_plan("ddim", path, clip=1.0), x, [e]).x
    np.testing.assert_allclose(raw, a1 * x0 + s1 * e, rtol=1e-13)
    recomputed = Replay(make_plan("ddim", path, clip=(-1, 1), use_clipped=True), x, [e]).x
    np.testing.assert_allclose(recomputed, a1 * x0 + s1 * (x - a * x0) / s, rtol=1e-13)


def test_preview_is_one_more_output():
    for name in ("ddim", "dpmpp-3m"):
        plan = make_plan(name, VP)
        shown = plan.with_denoised()
        assert shown.slots[-1] == Slot("x0", "x0")
        assert all(call.outputs[-1] == len(shown.slots) - 1 for call in shown.calls)
        assert shown.with_denoised() is shown
        np.testing.assert_array_equal(shown.t, plan.t)
        assert shown.shown == (len(shown.slots) - 1,) * shown.nfe
        assert plan.shown == ()


def test_starts():
    plan = make_plan("ddim", VP, input_scaling="vp")
    clean, noise = np.array([2.0]), np.array([0.5])
    ends = {}
    for kind in STARTS:
        run = Replay(plan, clean, np.zeros((6, 1)), [noise], start=kind)
        ends[kind] = run.asked[0] * math.hypot(VP.alpha[0], VP.sigma[0])
    np.testing.assert_allclose(ends["noise"], VP.sigma[0] * noise)
    np.testing.assert_allclose(ends["state"], clean)
    np.testing.assert_allclose(ends["data"], VP.alpha[0] * clean + VP.sigma[0] * noise)
    np.testing.assert_allclose(make_plan("ddim", VP, init_sigma=2.0).start("noise")[row.g(0, 0)], 2.0)
    with pytest.raises(ValueError, match="start: got 'zero', allowed are noise, state, data"):
        plan.start("zero")


def test_draws_are_addressed_by_call():
    plan = make_plan("ddpm", VP)
    np.testing.assert_array_equal(plan.table[:, row.DRAW], np.arange(1, 7))
    assert plan.draws == 7


def test_network_times():
    table = make_path("scaled-linear", "uniform", 4)
    told = {name: make_plan("ddim", table, time=name).t for name in ("t", "index", "log-snr", "sigma", "log-sigma")}
    np.testing.assert_array_equal(told["t"], table.t[:-1])
    np.testing.assert_array_equal(told["index"], np.rint(table.t[:-1]))
    np.testing.assert_allclose(told["log-snr"], table.lam[:-1])
    np.testing.assert_allclose(told["sigma"], table.rho[:-1])
    np.testing.assert_allclose(told["log-sigma"], np.log(table.rho[:-1]) / 4)
    np.testing.assert_array_equal(make_plan("ddim", table, time=[4, 3, 2, 1]).t, [4, 3, 2, 1])
    np.testing.assert_allclose(make_plan("ddim", table, time=lambda level: 2 * level.t).t, 2 * table.t[:-1])
    plan = make_plan("ddim", table)
    np.testing.assert_array_equal(plan.table[:, row.TIME], [*plan.t[1:], 0.0])
    assert plan.start("noise")[row.TIME] == plan.t[0]


def test_denoise_adds_a_call():
    plan = make_plan("dpmpp-2m", VP, prediction="x0", denoise=True)
    assert (plan.nfe, plan.step_of[-1], plan.t[-1]) == (7, 6, VP.t[-1])
    assert Replay(plan, np.ones(2), np.arange(14.0).reshape(7, 2)).x.tolist() == [12.0, 13.0]
    assert make_plan("ddim", VE, denoise=True).nfe == 4  # already ends with clean data


# these need other paths than the test's: from data, to sigma > 0, or with times that are sigma/alpha
OTHER_PATHS = ("ddim-inverse", "forward-value", "ctm")
NO_SCALING = ("sde-dpmpp-3s",)  # its rows write three tensors without the scaled input
every_solver = st.sampled_from(
    [n for n in names("") if n not in OTHER_PATHS and not n.startswith(("dpm-", "sde-dpm-"))]
)


@settings(max_examples=60, deadline=None)
@given(
    every_solver,
    st.lists(st.floats(0.01, 2.0), min_size=1, max_size=9),
    st.sampled_from(["eps", "x0", "v", "score", "edm"]),
    st.sampled_from([None, 1.0, 7.5]),
    st.sampled_from(["none", "vp", "edm"]),
    st.sampled_from([None, 1.0, (-0.5, 2.0)]),
    st.booleans(),
)
def test_json_round_trip_is_exact(solver, gaps, prediction, guidance, scaling, clip, zero):
    lam = np.cumsum([-3.0, *gaps])
    alpha, sigma = 1 / np.sqrt(1 + np.exp(-2 * lam)), 1 / np.sqrt(1 + np.exp(2 * lam))
    if zero:
        alpha[-1], sigma[-1] = 1.0, 0.0
    path = Path(alpha, sigma, np.linspace(1, 0, len(lam)))
    assume(solver not in NO_SCALING or scaling == "none")
    plan = make_plan(solver, path, prediction=prediction, guidance=guidance, input_scaling=scaling, clip=clip)
    text = plan.to_json()
    again = Plan.from_json(text)
    assert again == plan
    assert again.hash == plan.hash
    assert again.to_json() == text
    assert again.table.tobytes() == plan.table.tobytes()
    assert again.starts.tobytes() == plan.starts.tobytes()
    assert again.path == plan.path
    assert make_plan(again.solver, again.path, prediction=again.prediction, **again.options) == plan
    json.loads(text, parse_constant=lambda name: pytest.fail(f"{name} is not JSON"))


def test_is_immutable():
    plan = make_plan("dpmpp-2m", VP, guidance=2.0)
    for array in (plan.table, plan.starts, plan.t, plan.start("noise")):
        with pytest.raises(ValueError, match="read-only"):
            array[0] = 1.0
    with pytest.raises(TypeError):
        plan.options["guidance"] = 3.0
    with pytest.raises(dataclasses.FrozenInstanceError):
        plan.draws = 3


def test_equality_hash_pickle_copy():
    plan = make_plan("dpmpp-2m", VP)
    assert plan == make_plan("dpm++ 2M", VP)
    assert len({plan, make_plan("dpmpp_2m", VP), make_plan("dpmpp-2m", VP, solver_type="heun")}) == 2
    assert plan != "plan"
    for other in (pickle.loads(pickle.dumps(plan)), copy.deepcopy(plan)):
        assert other == plan
    assert len(plan.hash) == 16


def test_on_a_device_once():
    plan = make_plan("dpmpp-2m", VP)
    on = plan.to("cpu")
    assert plan.to(torch.device("cpu")) is on
    assert on.table.dtype == torch.float64
    np.testing.assert_array_equal(on.table.numpy(), plan.table)
    np.testing.assert_array_equal(on.starts.numpy(), plan.starts)
    assert [int(s) for s in on.steps[:6]] == list(range(6))
    assert all(s.shape == () and s.dtype == torch.int64 for s in on.steps)
    assert len(on.steps) >= max(plan.nfe, len(STARTS))


def test_prints_its_rows():
    text = str(make_plan("dpmpp-2m", VP[:4], prediction="x0", guidance=2.0, clip=1.0))
    assert "dpmpp-2m: 3 steps, 3 network calls" in text
    assert "D = clamp(2 e - e_u, -1, 1)" in text
    assert "D1 = D" in text
    assert len(text.splitlines()) == 6
    assert "xi[1]" in str(make_plan("ddpm", VP))
    assert "nfe=6" in repr(make_plan("ddim", VP))


def test_twenty_steps_take_less_than_three_milliseconds():
    path = make_path("vp-linear", "log-snr", 20)
    best = math.inf
    for _ in range(30):
        begin = time.perf_counter()
        make_plan("dpmpp-3m", path)
        best = min(best, time.perf_counter() - begin)
    assert best < 3e-3


BAD = [
    (("dpmpp2m", VP), {}, ValueError, "did you mean dpmpp-2m"),
    (("zebra", VP), {}, ValueError, "allowed are cm,"),
    ((2, VP), {}, TypeError, "solver: got int"),
    (("ddim", "path"), {}, TypeError, "path: got str"),
    (("ddim", VP), {"etta": 1}, ValueError, "no option 'etta', allowed are eta, use_clipped; did you mean eta"),
    (("ddim", VP), {"eta": -1}, ValueError, "eta: got -1"),
    (("ddim", VP), {"eta": 1.5}, ValueError, "eta: got 1.5"),
    (("ddim", VP), {"prediction": "noise"}, ValueError, "prediction: got 'noise', allowed are eps"),
    (("ddim", VP), {"guidance": [1, 2]}, ValueError, "guidance: .* 6 numbers"),
    (("ddim", VP), {"guidance": math.nan}, ValueError, "guidance: .*finite"),
    (("ddim", VP), {"guidance": "2"}, ValueError, "guidance: got '2'"),
    (("ddim", VP), {"time": "step"}, ValueError, "time: got 'step', allowed are t"),
    (("ddim", VP), {"time": [1, 2]}, ValueError, "time: got 2 numbers for 6"),
    (("ddim", VP), {"input_scaling": "ve"}, ValueError, "input_scaling: got 've'"),
    (("ddim", VP), {"clip": -1}, ValueError, "clip: got -1"),
    (("ddim", VP), {"clip": (1, 2, 3)}, ValueError, "clip: got"),
    (("ddim", VP), {"clip": "1..2"}, ValueError, "clip: got"),
    (("ddim", VP), {"sigma_data": 0}, ValueError, "sigma_data: got 0"),
    (("ddim", VP), {"init_sigma": -1.0}, ValueError, "init_sigma: got -1.0"),
    (("ddim", VP.reversed()), {}, ValueError, "runs from noise to data"),
    (("ddim-inverse", VP), {}, ValueError, "runs from data to noise"),
    (("ddpm", VP), {"variance": "huge"}, ValueError, "variance: got 'huge'"),
    (("dpmpp-2m", VP), {"solver_type": "taylor"}, ValueError, "solver_type: got 'taylor'"),
    (("dpmpp-3m", VP), {"third": "diffusers"}, ValueError, "third: 'diffusers'"),
    (("dpmpp-2m", VP), {"lower_order_final": -2}, ValueError, "lower_order_final: got -2"),
    (("sde-dpmpp-2m", VP), {"eta": "1"}, ValueError, "eta: got '1'"),
    (("sde-dpmpp-2m", VP.reversed()), {}, ValueError, "eta: must be 0"),
    (("dpm-2m", VE), {}, ValueError, "cannot step to sigma = 0"),
    (("euler", VP), {"s_churn": 5}, ValueError, "time: 't' is nan at call 0"),
    (("euler", VE), {"s_tmax": -1}, ValueError, "s_tmax: got -1"),
    (("euler-maruyama", make_path("flow", "uniform", 3)), {"prediction": "flow"}, ValueError, "needs alpha > 0"),
    (("ddim", make_path("flow", "uniform", 3)), {"prediction": "v", "time": "sigma"}, ValueError, "'sigma' is inf"),
]


@pytest.mark.parametrize(("arguments", "options", "error", "message"), BAD, ids=lambda v: None)
def test_bad_input(arguments, options, error, message):
    with pytest.raises(error, match=message):
        make_plan(*arguments, **options)


def damaged(**changes):
    content = json.loads(make_plan("dpmpp-2m", VP).to_json())
    content.update(changes)
    return json.dumps(content)


def broken_rows():
    """A plan text whose row 0 writes an output that its call does not have."""
    content = json.loads(make_plan("ddim", VP).to_json())
    content["table"][0][str(row.w(2, 0))] = 1.0
    return json.dumps(content)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{", "not JSON"),
        ("[]", "not a plan"),
        (damaged(version=99), "got plan version 99"),
        (damaged(slots=[["y", "state"]]), "slot 0 must be 'x'"),
        (damaged(slots=[["x", "state"], ["D1", "memory"]]), "role 'memory'"),
        (damaged(slots=[["x", "state"]]), "call 0: terms"),
        (damaged(t=[1.0]), "t: got 1 rows for 6 calls"),
        (damaged(step_of=[0, 1, 2, 5, 4, 3]), "step_of: must rise"),
        (damaged(calls=[]), "calls: got none"),
        (damaged(starts=[]), "starts: got 0 rows"),
        (damaged(draws=0), "uses draw 0, the plan has 0"),
        (damaged(path={"alpha": [1]}), "damaged plan"),
        (broken_rows(), "weights for terms or outputs that the call does not have"),
    ],
)
def test_reading_checks(text, message):
    with pytest.raises(ValueError, match=message):
        Plan.from_json(text)


@pytest.mark.parametrize("guidance", [3.0, [1.0, 2.0, 3.0, 4.0, 5.0, 6.0]])
def test_rows_hold_what_rescaled_guidance_is_told(guidance):
    plan = make_plan("dpmpp-2m", VP, guidance=guidance, rescale=0.7)
    told = plan.table[:, [row.GUIDANCE, row.PHI]]
    assert (told == np.stack(np.broadcast_arrays(guidance, 0.7, np.zeros(6))[:2], axis=1)).all()
    plain = make_plan("dpmpp-2m", VP, guidance=guidance)
    others = np.delete(plan.table, [row.GUIDANCE, row.PHI], axis=1)
    assert (others == np.delete(plain.table, [row.GUIDANCE, row.PHI], axis=1)).all()
    assert not plain.table[:, [row.GUIDANCE, row.PHI]].any()

    content = json.loads(plan.to_json())  # as it was written before rows held them
    for values in content["table"]:
        del values[str(row.GUIDANCE)], values[str(row.PHI)]
    assert Plan.from_json(json.dumps(content)) == plan

    content = json.loads(plan.to_json())
    content["table"][2][str(row.PHI)] = 0.6
    with pytest.raises(ValueError, match="table: columns 46 and 47 are not the guidance and rescale of the options"):
        Plan.from_json(json.dumps(content))
    for bad in ({"rescale": "much"}, {"rescale": 0.7, "guidance": [1.0, 2.0]}, {"rescale": {}}):
        content["options"] = bad
        with pytest.raises(ValueError, match="options: got guidance"):
            Plan.from_json(json.dumps(content))


def test_registry():
    for name in names():
        assert find(name.upper().replace("-", "_")).name == name
        assert name in describe(name)
        assert solvers()[name].paper
    expected = {"euler", "ddim", "ddim-inverse", "ddpm", "euler-maruyama", "dpmpp-1", "dpmpp-2m", "dpmpp-3m"}
    assert expected | {"sde-dpmpp-1", "sde-dpmpp-2m"} <= set(names())
    with pytest.raises(ValueError, match="is taken"):
        add(find("ddim"))


@pytest.mark.parametrize(
    "options", [{"clip": (0, math.inf)}, {"guidance": np.full(5, 2.0)}, {"guidance": np.float32(2)}, {"clip": 1.5}]
)
def test_allowed_options_can_be_hashed_saved_and_made_again(options):
    made = make_plan("ddim", make_path("vp-linear", "log-snr", 5), **options)
    assert Plan.from_json(made.to_json()) == made
    assert len(made.hash) == 16
    assert made.with_denoised().slots[-1].role == "x0"


def test_the_preview_of_edited_rows_is_refused():
    made = make_plan("ddim", make_path("vp-linear", "log-snr", 5))
    table = made.table.copy()
    table[0, row.w(0, 0)] *= 2
    with pytest.raises(ValueError, match="plan: its rows are not those of its solver"):
        dataclasses.replace(made, table=table).with_denoised()
