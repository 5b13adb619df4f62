"""Plans of earlier calls: made once for arguments that are equal by value, made again for all others."""

from __future__ import annotations

import contextlib

import numpy as np
import pytest
import torch

import fastsample
from fastsample import choosing, remember
from fastsample.grids import make_path
from fastsample.models.network import Network
from fastsample.schedules import CustomSchedule, VPLinear, make_schedule


def network(**facts):
    return Network(lambda x, t: torch.ones_like(x), **facts)


@pytest.fixture
def made(monkeypatch):
    """The arguments of every plan that is made."""
    remember.forget()
    calls = []
    make = choosing.make_plan
    monkeypatch.setattr(
        choosing, "make_plan", lambda *args, **kwargs: calls.append((args, kwargs)) or make(*args, **kwargs)
    )
    yield calls
    remember.forget()


def draw(net=None, **options):
    return fastsample.sample(net or network(), (2, 3), **{"seed": 1, "steps": 4, **options})


def test_a_second_call_makes_no_plan(made):
    first = draw(solver="sde-dpmpp-2m", eta=0.5)
    again = draw(solver="sde-dpmpp-2m", eta=0.5)
    assert len(made) == 1
    assert torch.equal(first, again)


@pytest.mark.parametrize(
    "other",
    [
        {"steps": 5},
        {"solver": "ddim"},
        {"schedule": "vp-cosine"},
        {"grid": "uniform"},
        {"clip": 1.0},
        {"clip": True},
        {"clip": 1},
        {"guidance": 2.0, "net": Network(lambda x, t: (x, x))},
        {"net": network(prediction="x0")},
        {"net": network(input_scaling="edm")},
        {"net": network(time="log-snr")},
        {"net": network(schedule="vp-cosine")},
        {"start": 0.5, "x": torch.zeros(2, 3)},
    ],
    ids=lambda other: ", ".join(
        f"{k}={type(v).__name__}" if k in ("net", "x") else f"{k}={v!r}" for k, v in other.items()
    ),
)
def test_other_arguments_are_another_plan(made, other):
    draw()
    options = dict(other)
    x = options.pop("x", (2, 3))
    net = options.pop("net", network())
    with contextlib.suppress(TypeError, ValueError):  # clip=True is refused, but not answered from memory
        fastsample.sample(net, x, **{"seed": 1, "steps": 4, **options})
    assert len(made) == 2


def test_paths_and_schedules_count_by_value(made):
    schedules = [VPLinear(), VPLinear(), VPLinear(beta_max=10.0)]
    for schedule in schedules:
        draw(schedule=schedule)
    assert len(made) == 2
    paths = [make_path(make_schedule("vp-linear"), "uniform", n) for n in (4, 4, 5)]
    for path in paths:
        path.normalised  # noqa: B018  (what a path has computed of itself is not part of its value)
        draw(path=path, steps=None)
    assert len(made) == 4


def test_a_schedule_that_was_changed_is_another(made):
    schedule = VPLinear()
    draw(schedule=schedule)
    schedule.beta_max = 10.0
    draw(schedule=schedule)
    assert len(made) == 2


def test_functions_are_not_remembered(made):
    factor = [1.0]
    schedule = CustomSchedule(lambda t: np.cos(t), lambda t: np.sin(factor[0] * t) + 1e-3, t_min=1e-3, t_max=1.0)
    first = draw(schedule=schedule)
    factor[0] = 1.2
    second = draw(schedule=schedule)
    assert len(made) == 2
    assert not torch.equal(first, second)


def test_the_oldest_plan_goes_first(made, monkeypatch):
    monkeypatch.setattr(remember, "KEPT", 2)
    for steps in (3, 4, 3, 5, 3, 4):
        draw(steps=steps)
    assert [args[1].steps for args, _ in made] == [3, 4, 5, 4]


def test_a_plan_that_warns_does_so_every_time(made):
    for _ in range(2):
        with pytest.warns(UserWarning, match="in 1 of 40"):
            draw(solver="poisson-midpoint-shared", steps=None, schedule="ddpm-linear", window=25, windows=None)


def test_fingerprints():
    same = [(1, "a", None), [1.0, {"a": (2, 3)}], np.arange(3.0), np.float32(2)]
    for value in same:
        assert remember.fingerprint(value) == remember.fingerprint(value)
    different = [1, True, 1.0, -0.0, 0.0, "1", (1,), [1], {"a": 1}, {"a": 1.0}, np.arange(3), np.arange(3.0), None]
    assert len({remember.fingerprint(value) for value in different}) == len(different)
    assert remember.fingerprint(float("nan")) == remember.fingerprint(float("nan"))
    for value in (len, lambda: 0, object(), torch.zeros(2), {1: object()}, network()):
        with pytest.raises(remember.NotAValue):
            remember.fingerprint(value)


def test_a_network_that_writes_its_time_harms_no_later_run(made):
    def spoil(x, t):
        out = x * t[:, None]
        t.fill_(7.0)
        return out

    assert torch.equal(draw(Network(spoil)), draw(Network(spoil)))
    assert len(made) == 1


def test_masked_arrays_are_not_values():
    with pytest.raises(remember.NotAValue):
        remember.fingerprint(np.ma.masked_array([1.0, 2.0], [False, True]))


def test_times_of_one_batch_size_are_kept(made):
    for batch in (2, 3, 4):
        fastsample.sample(network(), (batch, 3), steps=4, seed=1)
    plan = choosing.plan_for(network(), steps=4)
    assert len(plan.to("cpu")._times) == 1
