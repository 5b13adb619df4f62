"""Normals of torch's CPU generators by the compiled library: the bits of torch.randn, and the state it leaves."""

from __future__ import annotations

import io
import os
import platform
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from fastsample import native, torch_stream
from fastsample.ops import use_backend
from fastsample.torch_stream import LEAST, randn, randn_like

from .together import together

pytestmark = [
    pytest.mark.skipif(not native.load_for("cpu"), reason="no compiled CPU library"),
    pytest.mark.skipif(
        torch.backends.cpu.get_cpu_capability() not in ("AVX2", "AVX512"), reason="torch draws in another way here"
    ),
]
HALVES = [torch.float16, torch.bfloat16]
BITS = {4: torch.int32, 2: torch.int16, 8: torch.int64}


@pytest.fixture
def threads() -> Iterator[Callable[[int], None]]:
    before = torch.get_num_threads()
    yield torch.set_num_threads
    torch.set_num_threads(before)


@pytest.fixture
def by_us(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """How many elements each draw of the library had."""
    drawn: list[int] = []
    fill = torch_stream._fill

    def counted(out: Tensor, before: Tensor, after: Tensor) -> int:
        drawn.append(out.numel())
        return fill(out, before, after)

    monkeypatch.setattr(torch_stream, "_fill", counted)
    return drawn


@pytest.fixture
def alone(monkeypatch: pytest.MonkeyPatch) -> None:
    """Threads that other tests have left do not count."""
    threads = threading.enumerate
    before = [thread for thread in threads() if thread is not threading.current_thread()]
    monkeypatch.setattr(threading, "enumerate", lambda: [thread for thread in threads() if thread not in before])
    monkeypatch.setattr(threading, "active_count", lambda: len(threading.enumerate()))


def same(made: Tensor, wanted: Tensor) -> bool:
    bits = BITS[made.dtype.itemsize]
    return made.dtype == wanted.dtype and torch.equal(made.view(bits), wanted.view(bits))


def pair(seed: int) -> tuple[torch.Generator, torch.Generator]:
    return torch.Generator().manual_seed(seed), torch.Generator().manual_seed(seed)


def test_this_torch_is_one_that_is_known() -> None:
    assert randn((LEAST,), generator=torch.Generator(), dtype=torch.float32).shape == (LEAST,)
    assert torch_stream._alike[torch.float32]


@pytest.mark.parametrize("dtype", [torch.float32, *HALVES, torch.float64])
@pytest.mark.parametrize("count", [1, 2, 3, 5])
def test_bits_and_states(dtype: torch.dtype, count: int, threads: Callable[[int], None]) -> None:
    threads(count)
    mine, theirs = pair(count)
    for n in (LEAST, 7, 5000, LEAST + 1, 624 * 16, 624 * 16 + 15, 16384, 3, 100003, 15, 2**18):
        made, wanted = randn((n,), generator=mine, dtype=dtype), torch.randn(n, generator=theirs, dtype=dtype)
        assert same(made, wanted), n
        assert torch.equal(mine.get_state(), theirs.get_state()), n


def test_four_million(by_us: list[int]) -> None:
    """Every exponent of the logarithm, and angles near every multiple of pi / 4."""
    mine, theirs = pair(0)
    assert same(randn((2**22,), generator=mine, dtype=torch.float32), torch.randn(2**22, generator=theirs))
    assert by_us[-1] == 2**22


@settings(deadline=None, max_examples=40)
@given(st.integers(0, 2**63 - 1), st.integers(0, 2000), st.lists(st.integers(1, 9000), min_size=1, max_size=4))
def test_any_seed_and_place(seed: int, place: int, counts: list[int]) -> None:
    mine, theirs = pair(seed)
    for generator in (mine, theirs):
        torch.rand(place, generator=generator)
    for n in counts:
        wanted = torch.randn(n, generator=theirs, dtype=torch.float32)
        assert same(randn((n,), generator=mine, dtype=torch.float32), wanted)
    assert torch.equal(mine.get_state(), theirs.get_state())


def test_default_generator_and_memory_of_the_caller(by_us: list[int], alone: None) -> None:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(4)
        room = torch.empty(3, 50, 41)
        made = randn(room.shape, generator=None, dtype=torch.float32, out=room), randn_like(room)
        torch.manual_seed(4)
        assert made[0] is room
        assert same(room, torch.randn(3, 50, 41))
        assert same(made[1], torch.randn_like(room))
    assert by_us[-2:] == [6150, 6150]


@pytest.mark.parametrize("like", ["strided", "float64", "small", "integer stride"])
def test_what_torch_draws_otherwise_is_left_to_it(like: str, by_us: list[int]) -> None:
    torch_stream._compare(torch.float32)
    by_us.clear()
    x = {
        "strided": torch.empty(8, 16, 64, 3).permute(0, 3, 1, 2),
        "float64": torch.empty(LEAST, dtype=torch.float64),
        "small": torch.empty(LEAST - 1),
        "integer stride": torch.empty(2 * LEAST)[::2],
    }[like]
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(1)
        made = randn_like(x)
        torch.manual_seed(1)
        wanted = torch.randn_like(x)
    assert made.stride() == wanted.stride()
    assert same(made.contiguous(), wanted.contiguous())
    assert not by_us


def test_who_watches_sees_torch(by_us: list[int]) -> None:
    from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode

    torch_stream._compare(torch.float32)
    by_us.clear()
    with FakeTensorMode():
        assert isinstance(randn((LEAST,), generator=None, dtype=torch.float32), FakeTensor)
    with use_backend("reference"):
        randn((LEAST,), generator=None, dtype=torch.float32)
    with torch.profiler.profile() as seen:
        randn((LEAST,), generator=None, dtype=torch.float32)
    assert any(event.key == "aten::randn" for event in seen.key_averages())
    compiled = torch.compile(
        lambda x: x + randn(x.shape, generator=None, dtype=torch.float32), backend="eager", fullgraph=True
    )
    assert compiled(torch.zeros(LEAST)).std() > 0.9
    assert not by_us


@pytest.mark.parametrize("name", ["randn", "randn_like"])
def test_who_replaces_a_function_of_torch_is_asked(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    x = torch.zeros(LEAST)
    monkeypatch.setattr(torch, name, lambda *_, **__: x)
    assert randn_like(x) is x
    assert (randn(x.shape, generator=None, dtype=x.dtype) is x) == (name == "randn")


def test_another_thread_that_drew_meanwhile(monkeypatch: pytest.MonkeyPatch) -> None:
    """Its numbers are not given out twice."""
    mine, theirs = pair(2)
    fill = torch_stream._fill
    stolen: list[Tensor] = []

    def interrupted(out: Tensor, before: Tensor, after: Tensor) -> int:
        done = fill(out, before, after)
        stolen.append(torch.randn(100, generator=mine))
        return done

    randn((LEAST,), generator=torch.Generator(), dtype=torch.float32)
    monkeypatch.setattr(torch_stream, "_fill", interrupted)
    made = randn((LEAST,), generator=mine, dtype=torch.float32)
    assert same(stolen[0], torch.randn(100, generator=theirs))
    assert same(made, torch.randn(LEAST, generator=theirs))
    assert torch.equal(mine.get_state(), theirs.get_state())


def test_threads_that_share_a_generator_take_turns() -> None:
    """Each block of the stream is given out once, whoever gets it."""
    mine, theirs = pair(3)
    got: list[Tensor] = []

    def work(_: int) -> None:
        for _ in range(200):
            got.append(randn((LEAST,), generator=mine, dtype=torch.float32))

    together(work, range(4))
    first = sorted(float(x[0]) for x in got)
    assert first == sorted(float(torch.randn(LEAST, generator=theirs)[0]) for _ in range(800))
    assert torch.equal(mine.get_state(), theirs.get_state())


def test_the_default_generator_belongs_to_torch_while_there_are_threads(by_us: list[int], alone: None) -> None:
    randn((LEAST,), generator=torch.Generator(), dtype=torch.float32)
    by_us.clear()
    release = threading.Event()
    other = threading.Thread(target=release.wait)
    other.start()
    try:
        randn((LEAST,), generator=None, dtype=torch.float32)
        assert not by_us
        randn((LEAST,), generator=torch.Generator(), dtype=torch.float32)
        assert by_us == [LEAST]
    finally:
        release.set()
        other.join()
    randn((LEAST,), generator=None, dtype=torch.float32)
    assert by_us == [LEAST] * 2


def test_the_monitor_of_progress_bars_is_no_such_thread(by_us: list[int], alone: None) -> None:
    from tqdm import tqdm

    with tqdm(range(2), disable=False, file=io.StringIO()) as bar:
        assert bar.monitor is not None
    randn((LEAST,), generator=None, dtype=torch.float32)
    assert by_us[-1] == LEAST


@pytest.mark.parametrize("capability", ["default", "avx2"])
def test_another_arithmetic_of_torch_is_noticed(capability: str) -> None:
    """Scalar code makes numbers that differ in one of a hundred, in 16 bits in one of ten thousand."""
    program = """
import torch
from fastsample.torch_stream import _alike, randn
for dtype in (torch.bfloat16, torch.float16, torch.float32):
    mine, theirs = torch.Generator().manual_seed(1), torch.Generator().manual_seed(1)
    made = randn((2**20,), generator=mine, dtype=dtype)
    assert torch.equal(made, torch.randn(2**20, generator=theirs, dtype=dtype))
    assert torch.equal(mine.get_state(), theirs.get_state())
print(all(_alike.values()), any(_alike.values()))
"""
    environment = {**os.environ, "ATEN_CPU_CAPABILITY": capability}
    done = subprocess.run([sys.executable, "-c", program], env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    if capability == "default" and platform.machine() in ("x86_64", "AMD64"):
        assert done.stdout.split()[-1] == "False"


@pytest.mark.parametrize("dynamic", [False, True])
def test_compiled(dynamic: bool) -> None:
    compiled = torch.compile(lambda x: x + randn_like(x), backend="eager", fullgraph=True, dynamic=dynamic)
    for n in (LEAST, 2 * LEAST, 100):
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(1)
            made = compiled(torch.zeros(n, 2))
            torch.manual_seed(1)
            assert same(made, torch.randn(n, 2))


def test_strides_that_have_two_names() -> None:
    x = torch.empty(8, 1024, 1, 1).to(memory_format=torch.channels_last)
    assert randn_like(x).stride() == torch.randn_like(x).stride()


@pytest.mark.parametrize("wrong", ["number", "state", "refused"])
def test_one_wrong_bit_and_torch_draws(wrong: str, monkeypatch: pytest.MonkeyPatch) -> None:
    randn((LEAST,), generator=torch.Generator(), dtype=torch.float32)
    fill = torch_stream._fill

    def other(out: Tensor, before: Tensor, after: Tensor) -> int:
        done = fill(out, before, after)
        if wrong == "number":
            out.view(torch.int32)[777] ^= 1
        elif wrong == "state":
            after[1000] ^= 1
        return done and wrong != "refused"

    monkeypatch.setattr(torch_stream, "_alike", {})
    monkeypatch.setattr(torch_stream, "_fill", other)
    mine, theirs = pair(5)
    assert same(randn((LEAST,), generator=mine, dtype=torch.float32), torch.randn(LEAST, generator=theirs))
    assert torch_stream._alike == {torch.float32: False}


@pytest.mark.parametrize("at", [8, 12, 16])
def test_a_state_that_is_not_torchs_is_refused(at: int) -> None:
    randn((LEAST,), generator=torch.Generator(), dtype=torch.float32)
    state = torch.Generator().manual_seed(1).get_state()
    state[at : at + 4] = 77
    out, after = torch.zeros(LEAST), torch.zeros_like(state)
    assert not torch_stream._fill(out, state, after)
    good, draw = torch.Generator().manual_seed(1).get_state(), torch_stream._library.fastsample_randn
    for size, code, count in ((100, 1, LEAST), (5056, 0, LEAST), (5056, 4, LEAST), (5056, 1, 15)):
        assert not draw(good.data_ptr(), after.data_ptr(), size, code, out.data_ptr(), count)
    assert not out.any()
    assert not after.any()
