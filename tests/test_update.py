"""fastsample::update: every backend against float64, equal bits, edge cases of the contract in docs/row.md."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from fastsample import native, noise, row
from fastsample.building import BuildError
from fastsample.ops import update, update_, use_backend
from tests.rows import ULP, bound, model64, random_call

BACKENDS = ["native", "reference"]
ZERO = torch.zeros((), dtype=torch.int64)


@pytest.fixture(params=BACKENDS)
def backend(request):
    if request.param == "native" and not native.load_for("cpu"):
        pytest.skip(f"no native CPU library: {native.why_not('cpu')}")
    with use_backend(request.param):
        yield request.param


def check_call(call):
    """Run a call and compare with float64 under the derived bound."""
    outs = [torch.full(call.shape, math.nan, dtype=t) for t in call.out_dtypes]
    update_(outs, call.terms, call.table, call.step, call.key, call.noise)
    expected, magnitude = model64(call)
    for k, out in enumerate(outs):
        error = (out.double() - expected[k]).abs()
        limit = bound(call, magnitude[k], expected[k], out.dtype)
        worst = (error - limit).max() if error.numel() else torch.tensor(-1.0)
        assert worst <= 0, f"output {k} {out.dtype}: error {error.max():.3g}"


@pytest.mark.parametrize("seed", range(120))
def test_against_float64(backend, seed):
    check_call(random_call(seed))


@pytest.mark.parametrize("terms", range(1, 9))
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16, torch.float64])
def test_each_term_reaches_each_output(backend, terms, dtype):
    xs = [torch.full((1, 67), float(j + 1), dtype=dtype) for j in range(terms)]
    for j in range(terms):
        table = torch.from_numpy(row.make_row(D={j: 2.0}, outputs=[{j: 1.0}, {"D": 1.0}, {j: 1.0, "D": 1.0}])[None])
        a, b, c = update(xs, table, ZERO, outputs=3)
        assert a.unique().tolist() == [j + 1]
        assert b.unique().tolist() == [2 * (j + 1)]
        assert c.unique().tolist() == [3 * (j + 1)]


@pytest.mark.parametrize("seed", range(40))
def test_native_bits_equal_the_core(seed):
    if not native.load_for("cpu"):
        pytest.skip("no native CPU library")
    try:
        core = native.core()
    except BuildError as error:
        pytest.skip(str(error))
    call = random_call(seed, dtypes=[torch.float32], explicit=True, contiguous=True)
    outs = [torch.empty(call.shape) for _ in call.out_dtypes]
    update_(outs, call.terms, call.table, ZERO + 1, None, call.noise)
    numel = math.prod(call.shape)
    terms = np.stack([x.flatten().numpy() for x in call.terms]) if call.terms else np.zeros((0, numel), np.float32)
    noises = np.stack([x.flatten().numpy() for x in call.noise]) if call.noise else np.zeros((0, numel), np.float32)
    expected = core.apply_row(call.table[1].numpy(), terms, noises)
    for k, out in enumerate(outs):
        assert np.array_equal(out.flatten().numpy(), expected[k], equal_nan=True)


def test_noise_tensors_of_any_dtype(backend):
    table = torch.from_numpy(row.make_row(outputs=[{0: 1.0, "xi0": 1.0}], draws=[0])[None])
    for state in (torch.float32, torch.bfloat16, torch.float64):
        for dtype in (torch.float64, torch.float32, torch.float16, torch.bfloat16):
            (out,) = update([torch.zeros(1, 70, dtype=state)], table, ZERO, noise=[torch.ones(1, 70, dtype=dtype)])
            assert torch.equal(out, torch.ones(1, 70, dtype=state))


def test_gradient_of_a_one_dimensional_state_and_of_a_float64_output():
    table = torch.from_numpy(row.make_row(outputs=[{0: 2.0, "xi0": 1.0}], draws=[0])[None]).requires_grad_()
    x, key = torch.ones(5, requires_grad=True), noise.keys(0, 5)
    (out,) = update([x], table, ZERO, key, dtypes=[torch.float64])
    out.sum().backward()
    assert x.grad.tolist() == [2.0] * 5
    xi = out.detach().double() - 2
    assert math.isclose(float(table.grad[0, row.g(0, 0)]), float(xi.sum()), rel_tol=1e-6)


def test_a_backward_that_saved_an_output_notices():
    x, weight = torch.ones(2, 3), torch.ones(2, 3, requires_grad=True)
    y = (x * weight).sum()
    update_([x], [x], torch.from_numpy(row.make_row(outputs=[{0: 5.0}])[None]), ZERO)
    assert x._version == 1
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        y.backward()


def test_steps_and_keys_of_any_stride_and_refusals_in_plain_words(backend):
    table = torch.from_numpy(row.make_row(outputs=[{0: 1.0, "xi0": 1.0}], draws=[0])[None])
    x, keys = torch.zeros(3, 4), noise.keys(0, 6)
    expected = update([x], table, ZERO, keys[::2].contiguous())[0]
    assert torch.equal(update([x], table, ZERO.expand(3), keys[::2])[0], expected)
    out = torch.empty(3, 4)
    update_([out], [x], table, ZERO.expand(3), keys[::2])
    assert torch.equal(out, expected)
    with pytest.raises(ValueError, match=r"^step: got .*9.*, allowed are 0..0$"):
        update_([out], [x], table, ZERO + 9)
    with pytest.raises(ValueError, match="^outs: got none"):
        update_([], [x], table, ZERO)


def test_a_zero_weight_reads_nothing(backend):
    nan, x = torch.full((2, 9), math.nan), torch.ones(2, 9)
    table = torch.from_numpy(row.make_row(D={0: 2.0}, outputs=[{0: 1.0, "D": 1.0}, {1: 1.0}])[None])
    out, other = update([x, nan, nan], table, ZERO, outputs=2)
    assert torch.equal(out, torch.full((2, 9), 3.0))
    assert other.isnan().all()


def test_a_nan_passes_the_clamp_and_infinities_are_clamped(backend):
    x = torch.tensor([[math.nan, math.inf, -math.inf, 0.5]])
    table = torch.from_numpy(row.make_row(D={0: 1.0}, outputs=[{"D": 1.0}], limits=(-1, 1))[None])
    (out,) = update([x], table, ZERO)
    assert out[0, 0].isnan()
    assert out[0, 1:].tolist() == [1.0, -1.0, 0.5]


def test_outputs_may_be_terms(backend):
    call = random_call(7, dtypes=[torch.float32])
    terms = [torch.randn(3, 5, 129) for _ in range(3)]
    table = torch.from_numpy(
        row.make_row(D={0: 0.3, 1: -1.2}, outputs=[{0: 0.5, 2: 1.1, "D": 0.7}, {"D": 1.0}, {1: 2.0}])[None]
    )
    expected = update(terms, table, ZERO, outputs=3)
    inplace = [x.clone() for x in terms]
    update_([inplace[0], inplace[2], inplace[1]], inplace, table, ZERO)
    for got, want in zip([inplace[0], inplace[2], inplace[1]], expected, strict=True):
        assert torch.equal(got, want)
    del call


def test_step_per_sample_equals_row_by_row(backend):
    table = torch.from_numpy(
        np.stack(
            [
                row.make_row(D={0: 1.0 + i}, outputs=[{1: 0.5 * i, "D": 1.0, "xi0": 0.1 * i}], draws=[i])
                for i in range(4)
            ]
        )
    )
    terms, key = [torch.randn(5, 33), torch.randn(5, 33)], noise.keys(3, 5)
    steps = torch.tensor([2, 0, 3, 3, 1])
    (whole,) = update(terms, table, steps, key)
    for b in range(5):
        (one,) = update([x[b : b + 1] for x in terms], table, steps[b], key[b : b + 1])
        assert torch.equal(whole[b : b + 1], one)


def test_guidance_and_mixed_dtypes_round_once(backend):
    x, cond, uncond = torch.randn(4, 257), torch.randn(4, 257).bfloat16(), torch.randn(4, 257).bfloat16()
    w, p, q = 7.5, 1.3, -0.8
    table = torch.from_numpy(
        row.make_row(D={0: p, 1: q * w, 2: q * (1 - w)}, outputs=[{0: 0.9, "D": 0.1}, {"D": 1.0}])[None]
    )
    out, d = update([x, cond, uncond], table, ZERO, outputs=2, dtypes=[torch.float32, torch.bfloat16])
    e = uncond.double() + w * (cond.double() - uncond.double())
    d64 = p * x.double() + q * e
    assert (d.double() - d64).abs().max() <= ULP[torch.bfloat16] * d64.abs().max() / 2 + 1e-5
    assert (out.double() - (0.9 * x.double() + 0.1 * d64)).abs().max() <= 1e-5


@pytest.mark.parametrize("shape", [(1, 0), (0, 3), (2, 0, 4)])
def test_empty_states(backend, shape):
    table = torch.from_numpy(row.make_row(outputs=[{0: 1.0, "xi0": 1.0}], draws=[0])[None])
    (out,) = update([torch.zeros(shape)], table, ZERO, noise.keys(0, shape[0]))
    assert out.shape == shape


def test_memory_around_the_outputs_is_not_touched(backend):
    for n in (1, 3, 4, 5, 16, 31, 127, 2049):
        memory = torch.full((3, n + 64), math.nan)
        view = memory[:, 32 : 32 + n]
        table = torch.from_numpy(row.make_row(outputs=[{0: 1.0, "xi0": 1.0}], draws=[0])[None])
        update_([view], [torch.zeros(3, n)], table, ZERO, noise.keys(0, 3))
        assert view.isfinite().all()
        assert memory[:, :32].isnan().all()
        assert memory[:, 32 + n :].isnan().all()


@settings(max_examples=30, deadline=None)
@given(seed=st.integers(0, 10**6), data=st.data())
def test_bits_batch_split_layout_and_permuted_terms(seed, data):
    """A batch is its samples; channels-last is contiguous; two terms may change places when only one is weighted."""
    shape = data.draw(st.sampled_from([(4, 3, 5, 7), (3, 4, 8, 8), (2, 1, 31, 33)]))
    g = torch.Generator().manual_seed(seed)
    x, e = torch.randn(shape, generator=g), torch.randn(shape, generator=g)
    weights = torch.randn(6, generator=g).tolist()
    table = torch.from_numpy(
        row.make_row(
            D={0: weights[0], 1: weights[1]},
            outputs=[{0: weights[2], "D": weights[3], "xi0": weights[4]}],
            draws=[seed % 7],
        )[None]
    )
    key = noise.keys(seed, shape[0])
    (whole,) = update([x, e], table, ZERO, key)
    for b in range(shape[0]):
        assert torch.equal(update([x[b : b + 1], e[b : b + 1]], table, ZERO, key[b : b + 1])[0], whole[b : b + 1])
    last = [t.to(memory_format=torch.channels_last) for t in (x, e)]
    assert torch.equal(update(last, table, ZERO, key)[0], whole)
    assert torch.equal(update([x, last[1]], table, ZERO, key)[0], whole)


def test_bits_one_and_two_threads():
    x, key = torch.randn(3, 200_003), noise.keys(0, 3)
    table = torch.from_numpy(row.make_row(D={0: 0.5}, outputs=[{0: 0.3, "D": 0.2, "xi0": 0.7}], draws=[5])[None])
    threads = torch.get_num_threads()
    results = []
    try:
        for n in (1, 2):
            torch.set_num_threads(n)
            results.append(update([x], table, ZERO, key)[0])
    finally:
        torch.set_num_threads(threads)
    assert torch.equal(*results)


def test_gradients(backend):
    g = torch.Generator().manual_seed(0)
    table = row.make_row(
        D={0: 0.7, 1: -0.4}, outputs=[{0: 0.3, "D": 0.8, "xi0": 0.5}, {1: 0.2, "D": 1.0}], limits=(-0.6, 0.6), draws=[3]
    )
    table = torch.from_numpy(np.stack([table, 1.1 * table]))
    table[:, row.DRAW] = 3
    x, e = (torch.randn(3, 4, generator=g, dtype=torch.float64, requires_grad=True) for _ in range(2))
    weights = table[:, : row.DRAW].clone().requires_grad_()
    key, steps = noise.keys(0, 3), torch.tensor([1, 0, 1])

    def run(a, b, t):
        return tuple(update([a, b], torch.cat([t, table[:, row.DRAW :]], dim=1), steps, key, outputs=2))

    assert torch.autograd.gradcheck(run, (x, e, weights))
    x32 = x.detach().float().requires_grad_()
    update([x32, e.detach().bfloat16()], table, steps, key, outputs=2, dtypes=[torch.float32, torch.bfloat16])[
        0
    ].sum().backward()
    assert x32.grad is not None
    with pytest.raises(RuntimeError, match="use fastsample"):
        update_([torch.empty(3, 4, dtype=torch.float64)], [x], table, ZERO)


def test_opcheck():
    terms = [torch.randn(2, 6, requires_grad=True), torch.randn(2, 6)]
    table = torch.from_numpy(row.make_row(D={0: 1.0, 1: 2.0}, outputs=[{"D": 1.0, "xi0": 1.0}], draws=[0])[None])
    torch.library.opcheck(torch.ops.fastsample.update, (terms, table, ZERO, noise.keys(0, 2), [], 1, []))
    terms = [x.detach() for x in terms]
    torch.library.opcheck(torch.ops.fastsample.update_, ([torch.empty(2, 6)], terms, table, ZERO, noise.keys(0, 2), []))
    torch.library.opcheck(torch.ops.fastsample.update_, ([terms[0]], terms, table, ZERO, noise.keys(0, 2), []))


def test_one_graph_serves_all_steps_tables_and_seeds():
    from torch._dynamo.utils import counters

    torch._dynamo.reset()
    counters.clear()

    def loop(x, e, table, steps, key):
        for i in range(3):
            torch.ops.fastsample.update_([x], [x, e], table, steps[i], key, [])
        return x * 1

    compiled = torch.compile(loop, fullgraph=True, backend="aot_eager")
    for seed in range(3):
        table = torch.from_numpy(
            np.stack([row.make_row(outputs=[{0: 0.5, 1: seed + i, "xi0": 0.1}], draws=[i]) for i in range(3)])
        )
        x, e, steps, key = torch.randn(2, 8), torch.randn(2, 8), torch.arange(3), noise.keys(seed, 2)
        expected = loop(x.clone(), e, table, steps, key)
        assert torch.equal(compiled(x.clone(), e, table, steps, key), expected)
    assert counters["stats"]["unique_graphs"] == 1


def _call(**changes):
    x = torch.zeros(2, 3)
    arguments = {
        "outs": [torch.zeros(2, 3)],
        "terms": [x],
        "table": torch.from_numpy(row.blank(2)),
        "step": ZERO,
        "key": None,
        "noise": [],
    }
    arguments.update(changes)
    return update_(**arguments)


@pytest.mark.parametrize(
    ("changes", "error", "message"),
    [
        ({"terms": [torch.zeros(2, 4)]}, ValueError, r"terms\[0\]: got shape \(2, 4\)"),
        ({"terms": [torch.zeros(2, 3, dtype=torch.int64)]}, TypeError, r"terms\[0\]: got torch.int64"),
        ({"terms": [torch.zeros(2, 3)] * 9}, ValueError, "at most 3, 8, 2"),
        ({"outs": [torch.zeros(2, 3) for _ in range(4)]}, ValueError, "at most 3, 8, 2"),
        ({"table": torch.zeros(2, 48)}, ValueError, "table: got shape"),
        ({"table": torch.zeros(2, 47, dtype=torch.float64)}, ValueError, "table: got shape"),
        ({"step": torch.zeros(3, dtype=torch.int64)}, ValueError, "step: got shape"),
        ({"step": torch.zeros(())}, ValueError, "step: got shape"),
        ({"key": torch.zeros(3, 2, dtype=torch.uint64)}, ValueError, "key: got shape"),
        ({"key": torch.zeros(2, 2, dtype=torch.int64)}, ValueError, "key: got shape"),
        ({"key": noise.keys(0, 2), "noise": [torch.zeros(2, 3)]}, ValueError, "key, noise: got both"),
        ({"outs": [torch.zeros(1, 3).expand(2, 3)]}, ValueError, r"outs\[0\]: got a tensor whose elements share"),
        ({"outs": [torch.zeros(())], "terms": []}, ValueError, "without dimensions"),
    ],
)
def test_bad_arguments_are_named(changes, error, message):
    with pytest.raises(error, match=message):
        _call(**changes)


def test_overlap_is_refused_and_step_out_of_range_writes_nothing(backend):
    memory = torch.zeros(2, 4)
    with pytest.raises(ValueError, match=r"outs\[0\]: overlaps the memory of terms\[0\]"):
        _call(outs=[memory[:, :3]], terms=[memory[:, 1:]])
    same = torch.zeros(2, 3)
    with pytest.raises(ValueError, match=r"outs\[1\]: overlaps the memory of outs\[0\]"):
        _call(outs=[same, same])
    out = torch.full((2, 3), 7.0)
    for bad in (2, -1):
        with pytest.raises((ValueError, RuntimeError), match=f"step: got {bad}"):
            torch.ops.fastsample.update_(
                [out], [torch.zeros(2, 3)], torch.from_numpy(row.blank(2)), ZERO + bad, None, []
            )
    assert (out == 7).all()
