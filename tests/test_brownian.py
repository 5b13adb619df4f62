"""``fastsample::brownian``: the law of the path, exactly from its coefficients; equal bits; the op's contract."""

from __future__ import annotations

import itertools
import math
import os
import subprocess
import sys

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from fastsample import native, noise, ops
from fastsample.brownian import DEPTH, BrownianMotion, combination, snap, table
from fastsample.building import BuildError
from fastsample.ops import use_backend

UNIT = 2.0**-DEPTH
TIMES = st.floats(0, 1)
DTYPES = [torch.float32, torch.bfloat16, torch.float16, torch.float64]
EPSILON = {torch.float32: 0, torch.bfloat16: 2.0**-8, torch.float16: 2.0**-11, torch.float64: 0}


def dot(p, q):
    q = dict(zip(*q, strict=True))
    return math.fsum(w * q.get(n, 0.0) for n, w in zip(*p, strict=True))


def overlap(a, b, c, d):
    return max(0, min(b, d) - max(a, c)) * UNIT


# The law: increments are linear combinations of independent normals, so their covariances say it all.


@settings(max_examples=300, deadline=None)
@given(st.tuples(TIMES, TIMES), st.tuples(TIMES, TIMES), st.sampled_from([1e-1, 1e-3, 1e-6, 1e-12]))
def test_covariance_is_the_overlap(one, other, tol):
    a, b = sorted(snap(t, tol) for t in one)
    c, d = sorted(snap(t, tol) for t in other)
    assert dot(combination(a, b), combination(c, d)) == pytest.approx(overlap(a, b, c, d), abs=1e-14)
    assert dot(combination(a, b), combination(a, b)) == pytest.approx((b - a) * UNIT, rel=1e-13, abs=1e-300)


@settings(max_examples=200, deadline=None)
@given(st.lists(TIMES, min_size=3, max_size=3), st.sampled_from([1e-2, 1e-6, 1e-12]))
def test_increments_add_up(times, tol):
    a, b, c = sorted(snap(t, tol) for t in times)
    total = dict(zip(*combination(a, c), strict=True))
    for query in (combination(a, b), combination(b, c)):
        for number, weight in zip(*query, strict=True):
            total[number] = total.get(number, 0.0) - weight
    assert max(map(abs, total.values()), default=0.0) < 1e-15


@settings(max_examples=300, deadline=None)
@given(TIMES, TIMES, st.floats(1e-15, 1.0))
def test_snapping(x, y, tol):
    t = snap(x, tol)
    assert 0 <= t <= 1 << DEPTH
    assert abs(t * UNIT - x) <= tol / 2 + 2.0**-53
    assert (x <= y) == (t <= snap(y, tol)) or t == snap(y, tol)
    levels = DEPTH - (((t & -t).bit_length() - 1) if t else DEPTH)
    assert levels <= math.ceil(math.log2(1 / tol))
    assert snap(0.0, tol) == 0 and snap(1.0, tol) == 1 << DEPTH


def test_a_query_has_one_node_per_level_and_end():
    motion = BrownianMotion(0.03, 14.6, torch.empty(1), 0)
    for ta, tb in [(0.031, 14.5), (2.0, 2.1), (0.03, 14.6), (0.03, 7.0)]:
        numbers, weights = motion.query(ta, tb)
        assert len(numbers) == len(set(numbers)) <= 2 * 24 + 1
        assert all(w != 0 for w in weights)
        assert numbers == sorted(numbers, reverse=True), "deepest first"
        assert numbers[-1] == 1


def test_scaled_interval_and_normalised_weights():
    motion = BrownianMotion(-3.0, 11.0, torch.empty(1), 0, tol=1e-9)
    _, weights = motion.query(0.25, 4.0)
    assert math.fsum(w * w for w in weights) == pytest.approx(3.75, abs=2e-9)
    _, unit = motion.query(0.25, 4.0, normalise=True)
    assert math.fsum(w * w for w in unit) == pytest.approx(1, rel=1e-14)
    assert motion.query(4.0, 0.25, normalise=True)[1] == [-w for w in unit]


def test_a_finer_tolerance_sees_the_same_path():
    """Of the paths at tol 1e-3 and 1e-9 the increments differ by two short ends: variance at most 2 * 0.5e-3."""
    coarse, fine = (BrownianMotion(0.0, 1.0, torch.empty(1), 0, tol=tol).query(0.1, 0.8) for tol in (1e-3, 1e-9))
    assert dot(coarse, coarse) - 2 * dot(coarse, fine) + dot(fine, fine) <= 1.0e-3


# The numbers.


@pytest.mark.parametrize(
    ("seed", "counter", "node", "expected"),
    [  # the known answer of Random123 for philox4x32-10 with all bits set
        (-1, -1, -1, "408f276d 41c83b0e a20bc7c6 6d5451fd"),
    ],
)
def test_known_answer(seed, counter, node, expected):
    want = [int(word, 16) for word in expected.split()]
    got = noise.words(*(torch.tensor([x]) for x in (seed, counter, node)))
    assert got[0].tolist() == want
    mask = 2**64 - 1
    assert _core().node_words(seed & mask, counter & mask, node & mask).tolist() == [want, want]


def _core():
    try:
        return native.core()
    except BuildError as error:
        pytest.skip(f"no compiler or pybind11: {error}")


def test_words_kept_for_all_nodes_of_a_counter():
    core, g = _core(), np.random.default_rng(0)
    for seed, counter, node in g.integers(0, 2**64, (200, 3), dtype=np.uint64).tolist():
        kept, plain = core.node_words(seed, counter, node >> 2)
        words = noise.words(*(torch.tensor([x - 2**64 if x >= 2**63 else x]) for x in (seed, counter, node >> 2)))
        assert kept.tolist() == plain.tolist() == words[0].tolist()


def test_no_node_has_the_counter_of_a_draw():
    """The third word of the counter is 0 in all draws, and has its top bit in all nodes; so the blocks differ."""
    seed = torch.tensor([5])
    counters = torch.arange(4096)
    draws = set(map(tuple, noise.words(seed, counters).tolist()))
    nodes = {w for n in range(1, 9) for w in map(tuple, noise.words(seed, counters, torch.tensor([n])).tolist())}
    assert len(draws) == 4096 and len(nodes) == 8 * 4096 and not draws & nodes


def queries(tol=1e-6):
    motion = BrownianMotion(0.0, 14.0, torch.empty(1), 0, tol=tol)
    return motion.table([(0.5, 2.3), (0.0, 14.0), (2.3, 7.7), (3.5, 10.5), (1.0, 1.0), (9.1, 9.0999)])


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("tol", [1e-2, 1e-6, 1e-11])
def test_backends_agree_with_float64(dtype, tol):
    """Per node: 2^-24 |w z| of the weight, 2 ulp of z (2^-22 |w z|), one rounding of the sum; then the output's."""
    nodes, weights = queries(tol)
    shape, key = (3, 5, 27), noise.keys(7, 3)
    wide = dtype == torch.float64
    for step in range(len(nodes)):
        exact, size = torch.zeros(shape, dtype=torch.float64), torch.zeros(shape, dtype=torch.float64)
        for node, weight in zip(nodes[step], weights[step], strict=True):
            if node != 0:
                term = weight * noise.reference_normals(key, shape, 0, wide, node.expand(3)).double()
                exact, size = exact + term, size + term.abs()
        count = int((nodes[step] != 0).sum())
        unit = 2.0**-53 if wide else 2.0**-24
        bound = size * unit * (count + 5) + exact.abs() * EPSILON[dtype] + 2.0**-25 * (dtype == torch.float16)
        for backend in ("auto", "reference"):
            out = torch.full(shape, math.nan, dtype=dtype)
            with use_backend(backend):
                ops.brownian_(out, key, nodes, weights, torch.tensor(step))
            assert ((out.double() - exact).abs() <= bound).all(), (backend, step)


DIGEST = """
import hashlib, torch
from fastsample import noise
from fastsample.brownian import BrownianMotion
from fastsample.info import cpu_isa
digest = hashlib.sha256()
for dtype in (torch.float32, torch.bfloat16, torch.float16):
    for shape in ((3, 4, 33), (1, 5000), (2, 1), (2, 7, 64)):
        for tol in (1e-6, 1e-11):
            motion = BrownianMotion(0.0, 14.0, torch.empty(shape, dtype=dtype), 3, tol=tol)
            motion.key[0, 1] = 2**32 - 5
            for times in ((0.5, 2.3), (2.3, 7.7), (0.0, 14.0)):
                digest.update(motion(*times).view(torch.uint8).numpy().tobytes())
print(cpu_isa(), digest.hexdigest())
"""


@pytest.mark.slow
def test_bits_are_equal_on_every_instruction_set():
    if not native.load_for("cpu"):
        pytest.skip(native.why_not("cpu"))
    seen = {}
    for isa in ("base", "avx2", "avx512"):
        environment = {**os.environ, "FASTSAMPLE_CPU_ISA": isa}
        done = subprocess.run([sys.executable, "-c", DIGEST], capture_output=True, text=True, env=environment)
        assert done.returncode == 0, done.stderr
        name, digest = done.stdout.split()
        seen[name] = digest
    assert "base" in seen
    assert len(set(seen.values())) == 1, seen


@pytest.mark.parametrize("offset", [2**32 - 20, 2**64 - 20, 2**63 - 1])
def test_counters_that_wrap(offset):
    """The compiled loop leaves its vectors where the low word wraps; the reference knows of no such place."""
    nodes, weights = queries(1e-11)
    key = noise.keys(1, 1)
    key[0, 1] = torch.tensor(offset, dtype=torch.uint64)
    got, expected = torch.empty(1, 700), torch.empty(1, 700)
    ops.brownian_(got, key, nodes, weights, torch.tensor(2))
    with use_backend("reference"):
        ops.brownian_(expected, key, nodes, weights, torch.tensor(2))
    torch.testing.assert_close(got, expected, rtol=0, atol=2e-5)  # of values near 2.3; another block would be off by 1


@pytest.mark.parametrize("backend", ["auto", "reference"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64])
def test_nothing_else_enters(backend, dtype):
    """Batch, position in the batch, strides, threads and what was asked before do not change a sample's numbers."""
    nodes, weights = queries()
    key, step = noise.keys(9, 6), torch.tensor(2)
    with use_backend(backend):
        whole = torch.empty(6, 4, 24, 24, dtype=dtype)
        ops.brownian_(whole, key, nodes, weights, step)
        for sample in (0, 5):
            one = torch.empty(1, 4, 24, 24, dtype=dtype)
            ops.brownian_(one, key[sample : sample + 1], nodes, weights, step)
            assert torch.equal(one[0], whole[sample])
        for out in (
            torch.empty(6, 4, 24, 24, dtype=dtype).contiguous(memory_format=torch.channels_last),
            torch.empty(24, 24, 4, 6, dtype=dtype).permute(3, 2, 1, 0),
            torch.empty(6, 4, 24, 48, dtype=dtype)[..., ::2],
            torch.empty(6, 4, 24, 25, dtype=dtype)[..., 1:],
        ):
            ops.brownian_(out, key, nodes, weights, step)
            assert torch.equal(out, whole)
        threads = torch.get_num_threads()
        try:
            torch.set_num_threads(1)
            again = torch.empty_like(whole)
            ops.brownian_(again, key, nodes, weights, step)
        finally:
            torch.set_num_threads(threads)
        assert torch.equal(again, whole)
        steps = torch.tensor([2, 0, 1, 2, 3, 4])
        mixed = torch.empty_like(whole)
        ops.brownian_(mixed, key, nodes, weights, steps)
        assert torch.equal(mixed[0], whole[0]) and torch.equal(mixed[3], whole[3])
        assert not mixed[5].any(), "equal times: zeros"
        ops.brownian_(whole, key, nodes, weights, torch.tensor(1))
        assert torch.equal(mixed[2], whole[2])


@pytest.mark.parametrize("dtype", DTYPES)
def test_element_types_round_once(dtype):
    nodes, weights = queries()
    key = noise.keys(9, 2)
    base = torch.empty(2, 3000, dtype=torch.float64 if dtype == torch.float64 else torch.float32)
    ops.brownian_(base, key, nodes, weights, torch.tensor(0))
    out = ops.brownian(torch.empty(2, 3000, dtype=torch.float32), key, nodes, weights, torch.tensor(0), dtype)
    assert out.dtype == dtype
    assert torch.equal(out, base.to(dtype))


def test_paths_sum_up_whatever_the_steps():
    """Ten steps and twenty of one path: the fine increments sum up to the coarse ones, to rounding."""
    motion = BrownianMotion(0.0, 14.0, torch.empty(2, 4, 300), 3)
    times = np.linspace(14.0, 0.03, 21)
    fine = [motion(a, b) for a, b in itertools.pairwise(times)]
    coarse = [motion(a, b) for a, b in itertools.pairwise(times[::2])]
    for i, increment in enumerate(coarse):
        parts = [motion.query(*times[j : j + 2]) for j in (2 * i, 2 * i + 1)] + [motion.query(*times[2 * i :: 2][:2])]
        # of each: no normal is above 6.8; a weight and the sum so far are rounded at every node, and the two are added
        bound = sum(6.8 * sum(map(abs, weights)) * (len(weights) + 2) * 2.0**-24 for _, weights in parts)
        assert (fine[2 * i] + fine[2 * i + 1] - increment).abs().max() <= bound < 3e-4
    assert torch.equal(motion(times[3], times[4]), fine[3]), "the order of queries does not matter"


# One look at the samples: that normals of nodes are independent normals is the noise contract's (test_noise.py).


def test_samples():
    """n = 2^18 elements, 21 statistics, each within 5 standard errors: false alarm below 21 * 6e-7 = 1.2e-5."""
    n = 2**18
    motion = BrownianMotion(0.0, 1.0, torch.empty(1, n), 12345)
    cuts = [0.0, 0.1, 0.25, 0.7, 0.9, 1.0]
    steps = [motion.evaluate(*motion.table([pair], normalise=True))[0].double() for pair in itertools.pairwise(cuts)]
    for z in steps:
        assert abs(z.mean()) < 5 / n**0.5
        assert abs(z.square().mean() - 1) < 5 * (2 / n) ** 0.5
    for i, z in enumerate(steps):
        for other in steps[:i]:
            assert abs((z * other).mean()) < 5 / n**0.5
    whole = motion.evaluate(*motion.table([(0.0, 1.0)], normalise=True))[0].double()
    rho = 0.45**0.5  # of the overlap
    assert abs((whole * steps[2]).mean() - rho) < 5 * ((1 + rho**2) / n) ** 0.5


# The contract of the op.


def test_opcheck():
    nodes, weights = queries()
    key = noise.keys(0, 2)
    for step in (torch.tensor(1), torch.tensor([0, 3])):
        torch.library.opcheck(torch.ops.fastsample.brownian_, (torch.empty(2, 6), key, nodes, weights, step))
        for dtype in (None, torch.float16):
            arguments = (torch.empty(2, 6), key, nodes, weights, step, dtype)
            torch.library.opcheck(torch.ops.fastsample.brownian, arguments)


def test_compiles_into_one_graph():
    nodes, weights = queries()
    key = noise.keys(0, 2)

    def f(x, step):
        return x + ops.brownian(x, key, nodes, weights, step)

    x, run = torch.randn(2, 6), torch.compile(f, fullgraph=True, backend="eager")
    for step in (0, 2):
        assert torch.equal(run(x, torch.tensor(step)), f(x, torch.tensor(step)))


def test_no_gradient_flows_in_silence():
    nodes, weights = queries()
    key, step = noise.keys(0, 2), torch.tensor(1)
    with pytest.raises(RuntimeError, match="passes no gradient on"):
        ops.brownian_(torch.empty(2, 6), key, nodes, weights.clone().requires_grad_(), step)
    out = torch.zeros(2, 6)
    version = out._version
    ops.brownian_(out, key, nodes, weights, step)
    assert out._version > version


@pytest.mark.parametrize("backend", ["auto", "reference"])
@pytest.mark.parametrize("shape", [(0, 4), (3, 0), (0,)])
def test_empty(backend, shape):
    nodes, weights = queries()
    out = torch.empty(shape)
    with use_backend(backend):
        ops.brownian_(out, noise.keys(0, shape[0]), nodes, weights, torch.tensor(0))


@pytest.mark.parametrize("backend", ["auto", "reference"])
@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"out": torch.empty(())}, ValueError, "out: got a tensor without dimensions"),
        ({"out": torch.empty(2, 3, dtype=torch.int64)}, TypeError, "out: got torch.int64"),
        ({"out": torch.empty(2, 1).expand(2, 3)}, ValueError, "out: got a tensor whose elements share memory"),
        ({"key": torch.zeros(2, 2, dtype=torch.int64)}, ValueError, r"key: got shape \(2, 2\) torch.int64"),
        ({"key": noise.keys(0, 3)}, ValueError, r"key: got shape \(3, 2\)"),
        ({"nodes": torch.zeros(2, 3)}, ValueError, "nodes: got shape"),
        ({"weights": torch.zeros(2, 3)}, ValueError, r"weights: got shape \(2, 3\) torch.float32"),
        ({"step": torch.tensor([0, 1, 2])}, ValueError, r"step: got shape \(3,\)"),
        ({"step": torch.tensor(0.0)}, ValueError, "step: got shape"),
        ({"step": torch.tensor(6)}, ValueError, "step: got .*6.*, allowed are 0..5"),
        ({"step": torch.tensor([0, -1])}, ValueError, "step: got .*-1.*, allowed are 0..5"),
    ],
)
def test_bad_arguments(backend, change, error, message):
    nodes, weights = queries()
    good = {"key": noise.keys(0, 2), "nodes": nodes, "weights": weights, "step": torch.tensor(0)}
    out = torch.full((2, 3), 7.0)
    with use_backend(backend), pytest.raises(error, match=message):
        ops.brownian_(**{"out": out, **good, **change})
    assert (out == 7).all()


def test_bad_functional_arguments():
    nodes, weights = queries()
    good = (noise.keys(0, 2), nodes, weights, torch.tensor(0))
    with pytest.raises(TypeError, match="dtype: got torch.int32"):
        ops.brownian(torch.empty(2, 3), *good, torch.int32)
    with pytest.raises(TypeError, match="like: got torch.int64"):
        ops.brownian(torch.empty(2, 3, dtype=torch.int64), *good)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"t1": 0.0}, "t0, t1: got 0.0, 0.0"),
        ({"t1": math.inf}, "t0, t1"),
        ({"tol": 0.0}, "tol: got 0.0"),
        ({"like": torch.empty(())}, "like: got a tensor without"),
        ({"seed": [1, 2, 3]}, "seed: got 3 seeds for 2 samples"),
        ({"seed": -1}, "seed: got -1"),
        ({"sample_ids": [1]}, "sample_ids: got 1 for 2 samples"),
    ],
)
def test_bad_motions(arguments, message):
    good = {"t0": 0.0, "t1": 1.0, "like": torch.empty(2, 3), "seed": 0}
    with pytest.raises(ValueError, match=message):
        BrownianMotion(**{**good, **arguments})


def test_bad_times():
    motion = BrownianMotion(0.0, 1.0, torch.empty(2, 3), 0)
    with pytest.raises(ValueError, match="ta: got nan"):
        motion(math.nan, 0.5)
    with pytest.raises(ValueError, match="closer than tol"):
        motion.query(0.5, 0.5 + 1e-9, normalise=True)
    with pytest.warns(RuntimeWarning, match=r"tb: got 1.5, outside \[0.0, 1.0\]; clipped to 1.0"):
        assert torch.equal(motion(0.5, 1.5), motion(0.5, 1.0))


def test_sample_ids_are_global():
    whole = BrownianMotion(0.0, 1.0, torch.empty(4, 30), 3)(0.1, 0.7)
    part = BrownianMotion(0.0, 1.0, torch.empty(2, 30), 3, sample_ids=[2, 3])(0.1, 0.7)
    assert torch.equal(whole[2:], part)


def test_table_of_nothing():
    nodes, weights = table([])
    assert nodes.shape == weights.shape == (0, 1)
