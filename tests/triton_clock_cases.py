"""``update_`` on Triton with ``time`` and ``clock``: run as tests/triton_cases.py is."""

from __future__ import annotations

import math
import os

import numpy as np
import pytest
import torch

from fastsample import noise, ops, row
from fastsample.triton import update as backend

DEVICE = "cpu" if os.environ.get("TRITON_INTERPRET") == "1" else "cuda"
TIMES = torch.tensor([0.1, -2.5, 1e-9, 999.0], dtype=torch.float64)


@pytest.fixture(params=["one program", "small tiles", "small grids"])
def tiles(request, monkeypatch):
    """As many programs as there can be, and calls that take several launches."""
    if request.param != "one program":
        monkeypatch.setattr(backend, "_TILES", ((math.inf, (1, 1)),))
    if request.param == "small grids":
        monkeypatch.setattr(backend, "_MAX_BATCH", 2)
    monkeypatch.setattr(backend, "_launches", {})


def table():
    rows = [row.make_row(outputs=[{0: 0.5 + i, "xi0": 0.25}], draws=[i], time=float(t)) for i, t in enumerate(TIMES)]
    return torch.from_numpy(np.stack(rows)).to(DEVICE)


def clock_at(start):
    return torch.tensor([start, 0], device=DEVICE)


@pytest.mark.parametrize(
    ("shape", "dtype", "keyed"),
    [((3, 5), torch.float32, True), ((2, 300), torch.float64, False), ((1, 600), torch.float32, False)],
)
def test_calls_in_a_row_walk_through_the_table(tiles, dtype, keyed, shape):
    """Programs run one after the other: one that moved the clock early would give the next one another row."""
    clock, times = clock_at(0), torch.full(shape[:1], -1.0, dtype=dtype, device=DEVICE)
    x = torch.randn(shape, generator=torch.Generator().manual_seed(0)).to(DEVICE)
    expected, step, rows = x.clone(), clock[0], table()
    key = noise.keys(4, shape[0]).to(DEVICE) if keyed else None
    for i, t in enumerate(TIMES):
        backend.update_([expected], [expected], rows, torch.tensor(i, device=DEVICE), key)
        backend.update_([x], [x], rows, step, key, [], times, clock)
        assert torch.equal(x, expected)
        assert (times == t.to(dtype).item()).all()
        assert clock.tolist() == [i + 1, 0]
    backend.update_([x], [x], rows, step, key, [], times, clock)
    assert x.isnan().all()
    assert times.isnan().all()
    assert clock.tolist() == [5, 0]


def test_a_time_per_sample(tiles):
    x, clock, times = torch.ones(35, 2, device=DEVICE), clock_at(7), torch.zeros(35, device=DEVICE)
    step = torch.arange(35) % 4
    step[5] = 4
    backend.update_([x], [x], table(), step.to(DEVICE), None, [], times, clock)
    expected = TIMES[step % 4].float()
    expected[5] = math.nan
    assert torch.equal(times.cpu().nan_to_num(-1), expected.nan_to_num(-1))
    assert clock.tolist() == [8, 0]


def test_either_alone_and_launches_of_their_own(monkeypatch):
    monkeypatch.setattr(backend, "_launches", {})
    x, times, clock, rows = torch.ones(2, 8, device=DEVICE), torch.zeros(2, device=DEVICE), clock_at(1), table()
    for _ in range(2):
        for given in ((times, None), (None, clock), (times, clock), (None, None)):
            backend.update_([x], [x], rows, torch.tensor(3, device=DEVICE), None, [], *given)
    assert len(backend._launches) == 4
    assert times.tolist() == [999.0, 999.0]
    assert clock.tolist() == [5, 0]
    with pytest.raises(ValueError, match=r"time: got shape \(3,\)"):
        backend.update_([x], [x], rows, clock[0], None, [], torch.zeros(3, device=DEVICE), clock)
    with pytest.raises(ValueError, match="clock: overlaps the memory of step"):
        backend.update_([x], [x], rows, clock[1], None, [], times, clock)


@pytest.mark.parametrize("shape", [(1, 0), (0, 3), (2, 0, 4)])
def test_empty_states_and_tables(shape):
    clock, times = clock_at(2), torch.full(shape[:1], -1.0, device=DEVICE)
    backend.update_([torch.zeros(shape, device=DEVICE)], [], table(), clock[0], None, [], times, clock)
    assert times.tolist() == [float(TIMES[2].float())] * shape[0]
    backend.update_([torch.zeros(shape, device=DEVICE)], [], table(), clock[0] + 9, None, [], times, clock)
    assert times.isnan().all()
    x, times = torch.zeros(2, 3, device=DEVICE), torch.zeros(2, device=DEVICE)
    backend.update_([x], [x], table()[:0], clock[0], None, [], times, clock)
    assert x.isnan().all()
    assert times.isnan().all()
    assert clock.tolist() == [5, 0]


def test_the_dispatcher_hands_them_on():
    x, clock, times = torch.ones(2, 8, device=DEVICE), clock_at(1), torch.zeros(2, device=DEVICE)
    with ops.use_backend("triton"):
        ops.update_([x], [x], table(), clock[0], time=times, clock=clock)
    assert times.tolist() == [-2.5, -2.5]
    assert clock.tolist() == [2, 0]
