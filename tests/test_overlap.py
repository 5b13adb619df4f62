"""What may be written together: the check of overlaps against a list of all bytes, and outputs in one tensor."""

from __future__ import annotations

import itertools
import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from fastsample import native, noise, row
from fastsample.ops import update_, use_backend
from fastsample.ops.overlap import overlaps_itself, share_memory

ZERO = torch.zeros((), dtype=torch.int64)
DTYPES = [torch.float16, torch.float32, torch.float64]


@pytest.fixture(params=["native", "reference"])
def backend(request):
    if request.param == "native" and not native.load_for("cpu"):
        pytest.skip(f"no native CPU library: {native.why_not('cpu')}")
    with use_backend(request.param):
        yield request.param


def addresses(x):
    """Of the first byte of every element."""
    steps = (range(0, n * s, s) if s else [0] * n for n, s in zip(x.shape, x.stride(), strict=True))
    return [x.data_ptr() + x.element_size() * sum(index) for index in itertools.product(*steps)]


def occupied(x):
    return [a + i for a in addresses(x) for i in range(x.element_size())]


@st.composite
def views(draw):
    """Two tensors of one shape in one piece of memory, strided anyhow."""
    shape = draw(st.lists(st.integers(1, 4), min_size=1, max_size=4))
    memory = torch.zeros(1 << 17, dtype=torch.uint8)
    pair = []
    for _ in range(2):
        dtype = draw(st.sampled_from(DTYPES))
        strides = [draw(st.integers(0, 24)) for _ in shape]
        if draw(st.booleans()):  # of a contiguous tensor, or every second element of one, dimensions in any order
            step = draw(st.integers(1, 2))
            strides = [0] * len(shape)
            for d in draw(st.permutations(range(len(shape)))):
                strides[d], step = step, step * shape[d] * draw(st.integers(1, 2))
        if pair and draw(st.booleans()):
            dtype, strides = pair[0].dtype, pair[0].stride()
        pair.append(memory.view(dtype).as_strided(shape, strides, draw(st.integers(0, 80))))
    return pair


@settings(max_examples=1000, deadline=None)
@given(views())
def test_against_all_bytes(pair):
    x, y = pair
    assert overlaps_itself(x) == (len(set(occupied(x))) < len(occupied(x)))
    assert share_memory(x, y, y.data_ptr() - x.data_ptr()) == bool(set(occupied(x)) & set(occupied(y)))


@settings(max_examples=500, deadline=None)
@given(views(), st.booleans())
def test_native_refuses_what_shares_bytes(pair, as_term):
    if not native.load_for("cpu"):
        pytest.skip(f"no native CPU library: {native.why_not('cpu')}")
    x, y = pair
    mine, other = occupied(x), occupied(y)
    same = as_term and x.dtype == y.dtype and addresses(x) == addresses(y)
    bad = len(set(mine)) < len(mine) or (not same and set(mine) & set(other))
    bad = bad or (not as_term and len(set(other)) < len(other))
    outs, terms = ([x], [y]) if as_term else ([x, y], [])
    table = torch.from_numpy(row.blank(1))
    if bad:
        with pytest.raises(ValueError, match=r"outs\[[01]\]: (overlaps|got a tensor whose elements share memory)"):
            update_(outs, terms, table, ZERO)
    else:
        update_(outs, terms, table, ZERO)


def test_a_search_that_takes_too_long_is_refused():
    memory = torch.zeros(200_000)
    x = memory.as_strided((60, 60, 2), (1000, 1001, 60_000), 0)
    y = memory.as_strided((60, 60, 2), (1000, 999, 60_000), 500)
    assert not set(addresses(x)) & set(addresses(y))
    assert share_memory(x, y, y.data_ptr() - x.data_ptr())


HALVES = {
    **{f"contiguous {d}": (d, torch.contiguous_format) for d in range(4)},
    **{f"channels last {d}": (d, torch.channels_last) for d in range(4)},
}


def halves(name, seed=0, dtype=torch.float32):
    """Two tensors of one shape that share a tensor's memory, evenly or by turns."""
    generator = torch.Generator().manual_seed(seed)
    dim, memory_format = HALVES[name.removesuffix(" by turns")]
    z = torch.randn(4, 6, 8, 10, generator=generator, dtype=dtype).contiguous(memory_format=memory_format)
    if name.endswith("by turns"):
        first, second = ((slice(None),) * dim + (slice(start, None, 2),) for start in (0, 1))
        return z[first], z[second]
    return z.chunk(2, dim)


@pytest.mark.parametrize("name", [*HALVES, *(f"{name} by turns" for name in HALVES)])
@pytest.mark.parametrize("noise_from", ["none", "key", "tensors"])
def test_halves_of_one_tensor(backend, name, noise_from):
    u, v = halves(name)
    assert not share_memory(u, v, v.data_ptr() - u.data_ptr())
    assert share_memory(u, u, 0)
    table = torch.from_numpy(
        row.make_row(
            outputs=[{0: 0.9, 1: -0.4, "xi0": 0.3}, {0: 0.2, 1: 1.1, "xi0": 0.1, "xi1": -0.7}],
            draws=[0, 1],
        )[None]
    )
    key = noise.keys(0, u.shape[0]) if noise_from == "key" else None
    given_noise = [torch.randn(u.shape) for _ in range(2)] if noise_from == "tensors" else []
    apart = [u.contiguous().clone(), v.contiguous().clone()]
    update_(apart, apart, table, ZERO, key, given_noise)
    update_([u, v], [u, v], table, ZERO, key, given_noise)
    assert torch.equal(u, apart[0])
    assert torch.equal(v, apart[1])


@pytest.mark.parametrize("shape", [(3, 8, 16, 20), (5, 2, 700), (7, 2, 33), (40, 2, 32)])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32, torch.float64])
def test_long_runs_of_memory_without_a_key(backend, shape, dtype):
    """Each half of a sample is one long run: bits of separate tensors, and of a sum in float64."""
    z = torch.randn(shape, generator=torch.Generator().manual_seed(1)).to(dtype)
    u, v = z.chunk(2, 1)
    expected = 0.5 * u.double() - 0.25 * v.double()
    apart = [u.contiguous(), v.contiguous()]
    table = torch.from_numpy(row.make_row(outputs=[{0: 0.5, 1: -0.25}])[None])
    update_(apart[:1], apart, table, ZERO)
    before = v.clone()
    update_([u], [u, v], table, ZERO)
    assert torch.equal(u, apart[0])
    assert torch.equal(v, before)
    error = (u.double() - expected).abs().max()
    assert error <= 4 * torch.finfo(dtype).eps
    assert math.isfinite(error)
