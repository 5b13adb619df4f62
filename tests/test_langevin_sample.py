"""langevin.sample: invariances, memory and waiting, targets."""

from __future__ import annotations

import doctest

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.utils._python_dispatch import TorchDispatchMode

from fastsample import Network, langevin, use_backend

from .langevin_cases import gaussian, mixture

UNDER = {"friction": 2.0}
ALL = [
    ("lmc", {}),
    ("mala", {}),
    ("mala", {"estimator": "simpson"}),
    ("mala", {"target_acceptance": 0.6, "adapt_each": True}),
    ("uld", UNDER),
    ("rlmc", {}),
    ("rlmc", {"shared": True}),
    ("rlmc-underdamped", UNDER),
    ("plmc", {"midpoints": "bernoulli"}),
    ("plmc", {"midpoints": 2, "shared": True}),
    ("plmc", {"midpoints": "one"}),
    ("plmc-underdamped", {"midpoints": "bernoulli", **UNDER}),
    ("plmc-underdamped", {"midpoints": "bernoulli", "shared": True, **UNDER}),
]
IDS = [f"{kernel}-{'-'.join(map(str, options.values()))}" for kernel, options in ALL]


def elementwise() -> langevin.Score:
    """A score whose bits do not depend on the batch."""
    return langevin.Score(lambda x: -(x + 0.5 * x * x * x.sign()), lambda x: (x.double() ** 2 / 2).flatten(1).sum(1))


@pytest.mark.parametrize(("kernel", "options"), ALL, ids=IDS)
def test_a_chain_does_not_depend_on_its_batch(kernel, options):
    x = torch.randn(7, 5, 3, generator=torch.Generator().manual_seed(0))
    shared = {"kernel": kernel, "steps": 25, "warmup": 12, "step_size": 0.1, "seed": 8, **options}
    whole = langevin.sample(elementwise(), x, trace=True, **shared)
    again = langevin.sample(elementwise(), x, trace=True, **shared)
    assert torch.equal(whole.trace, again.trace) and torch.equal(whole.trace[-1], whole.x)
    for part in (slice(0, 1), slice(1, 4), slice(4, 7)):
        ids = torch.arange(7)[part]
        some = langevin.sample(elementwise(), x[part], sample_ids=ids, trace=True, **shared)
        assert torch.equal(some.trace, whole.trace[:, part])
    other = langevin.sample(elementwise(), x, **{**shared, "seed": 9})
    assert not torch.equal(other.x, whole.x)


@pytest.mark.parametrize(("kernel", "options"), ALL, ids=IDS)
def test_warm_up_and_pieces_do_not_shift_noise(kernel, options):
    """A run is the same whether its first iterations are called warm-up or not; rows come in pieces of 512 moves."""
    if "target_acceptance" in options:
        pytest.skip("adapts")
    x = torch.randn(3, 2, generator=torch.Generator().manual_seed(0))
    shared = {"kernel": kernel, "step_size": 0.1, "seed": 8, "monitor": None, **options}
    a = langevin.sample(elementwise(), x, steps=600, **shared)
    b = langevin.sample(elementwise(), x, steps=63, warmup=537, **shared)
    assert torch.equal(a.x, b.x)


@pytest.mark.parametrize(("kernel", "options"), ALL[1:2] + ALL[5:6] + ALL[-2:-1])
def test_the_reference_backend_agrees(kernel, options):
    x = torch.randn(3, 2, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    shared = {"kernel": kernel, "steps": 20, "step_size": 0.1, "seed": 8, **options}
    made = langevin.sample(elementwise(), x, **shared)
    with use_backend("reference"):
        torch.testing.assert_close(langevin.sample(elementwise(), x, **shared).x, made.x, rtol=1e-12, atol=1e-12)


class Record(TorchDispatchMode):
    """Ops whose outputs are as large as the state, and reads of the device, per name."""

    def __init__(self, size: int) -> None:
        super().__init__()
        self.size, self.seen = size, {}

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        name = str(func)
        large = [t for t in (out if isinstance(out, (tuple, list)) else [out]) if isinstance(t, torch.Tensor)]
        views = ("view", "select", "slice", "unbind", "expand", "alias", "detach", "reshape")
        if any(t.numel() >= self.size for t in large) and not any(v in name for v in views):
            self.seen[name] = self.seen.get(name, 0) + 1
        if "_local_scalar_dense" in name or "is_nonzero" in name:
            self.seen[name] = self.seen.get(name, 0) + 1
        return out


@pytest.mark.parametrize(("kernel", "options"), [a for a in ALL if "target_acceptance" not in a[1]])
def test_no_iteration_allocates_a_state_or_waits(kernel, options):
    """Twice the iterations make no more tensors of the size of the state, and no more reads, but for the target's."""
    x = torch.zeros(3, 30000)
    calls = []

    def score(y):
        with torch.utils._python_dispatch._disable_current_modes():
            calls.append(1)
            return -y

    seen = []
    for steps in (8, 16):
        target = langevin.Score(score, lambda y: torch.zeros(3, dtype=torch.float64))
        with Record(x.numel()) as record:
            langevin.sample(target, x, kernel=kernel, steps=steps, step_size=0.1, seed=0, monitor=None, **options)
        seen.append(record.seen)
    assert seen[0] == seen[1] and calls
    for spy in (lambda n, y: y.clone(), lambda n, y: float(y[0, 0])):  # what must be noticed is noticed
        with Record(x.numel()) as record:
            langevin.sample(
                target, x, kernel=kernel, steps=8, step_size=0.1, seed=0, monitor=None, callback=spy, **options
            )
        assert record.seen != seen[0]


@pytest.mark.parametrize(("kernel", "options"), ALL, ids=IDS)
def test_networks_that_scale_their_input_or_are_narrow(kernel, options):
    """A level of the mixture: fed plain, scaled, or through a network in float32; float64 chains are close."""
    m = mixture()
    x = m.sample(4, seed=0, alpha=0.6, sigma=0.8, dtype=torch.float64)
    plain = langevin.Score(lambda y: m.score(y, 0.6, 0.8), lambda y: -m.log_prob(y, 0.6, 0.8))
    shared = {"kernel": kernel, "steps": 15, "warmup": 5, "step_size": 0.1, "seed": 2, "monitor": None, **options}
    if kernel.startswith("plmc"):
        shared["window"] = 5
    run = langevin.sample(plain, x, **shared)
    for prediction in ("eps", "v", "x0"):
        a = langevin.sample(langevin.AtLevel(m.network(prediction), 0.6, 0.8), x, **shared)
        torch.testing.assert_close(a.x, run.x, rtol=1e-9, atol=1e-9)
    narrow = Network(
        lambda y, t: m.eps(y, 0.6, 0.8), "eps", dtype=torch.float32, energy=lambda y, t: -m.log_prob(y, 0.6, 0.8)
    )
    b = langevin.sample(langevin.AtLevel(narrow, 0.6, 0.8, 0.5), x, **shared)
    if kernel != "mala":  # a choice may fall the other way
        torch.testing.assert_close(b.x, run.x, rtol=1e-4, atol=1e-4)
    assert b.x.dtype == torch.float64


def test_scaled_levels_of_another_size():
    """alpha^2 + sigma^2 is not 1: the network is fed a scaled copy."""
    m = mixture()
    x = m.sample(4, seed=0, alpha=1.0, sigma=0.5, dtype=torch.float64)
    for kernel, options in ALL[:1] + ALL[2:3] + ALL[4:]:
        shared = {"kernel": kernel, "steps": 12, "step_size": 0.05, "seed": 2, "monitor": None, **options}
        a = langevin.sample(langevin.Score(lambda y: m.score(y, 1.0, 0.5)), x, **shared)
        b = langevin.sample(langevin.AtLevel(m.network("v"), 1.0, 0.5), x, **shared)
        torch.testing.assert_close(a.x, b.x, rtol=1e-9, atol=1e-9)


def test_conditions_and_half_precision_states():
    net = Network(lambda y, t, c: (y - c[:, None]) * 0.8, "eps")
    x = torch.zeros(200, 2, dtype=torch.bfloat16)
    cond = torch.full((200,), 3.0, dtype=torch.bfloat16)
    target = langevin.AtLevel(net, 0.6, 0.8, 0.5, cond=cond)
    run = langevin.sample(target, x, kernel="uld", friction=2.0, steps=60, step_size=0.3, seed=0)
    assert run.x.dtype == torch.bfloat16 and abs(float(run.x.float().mean()) - 3.0) < 0.3
    with pytest.raises(TypeError, match="x: got torch.bfloat16, the accept step"):
        langevin.sample(target, x, steps=1, step_size=0.1)


def test_seeds():
    x = torch.zeros(3, 2)
    run = lambda **more: langevin.sample(gaussian(), x, steps=3, step_size=0.1, **more).x  # noqa: E731
    assert torch.equal(run(seed=[4, 5, 6])[1:2], langevin.sample(gaussian(), x[:1], steps=3, step_size=0.1, seed=[5]).x)
    a, b = (run(seed=torch.Generator().manual_seed(3)) for _ in range(2))
    assert torch.equal(a, b) and not torch.equal(run(), run())
    with pytest.raises(ValueError, match="shared: got a seed per chain"):
        run(seed=[1, 2, 3], kernel="rlmc", shared=True)


def test_velocity_and_callback():
    x = torch.zeros(3, 2)
    seen = []
    run = langevin.sample(
        gaussian(),
        x,
        kernel="uld",
        friction=1.0,
        velocity=torch.ones(3, 2),
        steps=3,
        warmup=2,
        step_size=1e-4,
        seed=0,
        callback=lambda n, y: seen.append((n, y.clone())),
    )
    assert [n for n, _ in seen] == [0, 1, 2] and torch.equal(seen[-1][1], run.x) and (x == 0).all()
    assert (run.velocity - 1).abs().max() < 0.2 and torch.allclose(run.x, torch.full((3, 2), 5e-4), atol=2e-5)


def test_start_is_kept_and_inference_mode_is_no_matter():
    with torch.inference_mode():
        x = torch.ones(2, 3)
        run = langevin.sample(langevin.Energy(lambda y: (y**2).sum(1)), x, steps=3, step_size=0.1, seed=0)
    assert (x == 1).all() and not run.x.is_inference() and not run.x.requires_grad


def test_a_network_that_returns_one_memory_is_refused_where_two_outputs_are_needed():
    buffer = torch.zeros(3, 2)
    target = langevin.Score(lambda x: buffer.copy_(-x))
    with pytest.raises(ValueError, match="target: returned the same memory"):
        langevin.sample(target, torch.zeros(3, 2), steps=2, step_size=0.1, estimator="simpson")
    for kernel in ("plmc", "rlmc"):  # these keep what they need
        a = langevin.sample(target, torch.zeros(3, 2), kernel=kernel, steps=9, step_size=0.1, seed=1)
        b = langevin.sample(
            langevin.Score(lambda x: -x), torch.zeros(3, 2), kernel=kernel, steps=9, step_size=0.1, seed=1
        )
        assert torch.equal(a.x, b.x)


def test_the_example_of_the_module():
    assert doctest.testmod(langevin).failed == 0 and doctest.testmod(langevin).attempted > 4


@settings(max_examples=40, deadline=None)
@given(
    kernel=st.sampled_from(range(len(ALL))),
    shape=st.lists(st.integers(1, 4), min_size=1, max_size=3),
    batch=st.integers(1, 4),
    steps=st.integers(1, 5),
    thin=st.integers(1, 3),
    window=st.integers(1, 5),
    double=st.booleans(),
)
def test_any_shape(kernel, shape, batch, steps, thin, window, double):
    name, options = ALL[kernel]
    options = {**options, **({"window": window} if name.startswith("plmc") else {})}
    if isinstance(options.get("midpoints"), int):
        options["midpoints"] = min(options["midpoints"], window)
    x = torch.zeros(batch, *shape, dtype=torch.float64 if double else torch.float32)
    run = langevin.sample(
        elementwise(), x, kernel=name, steps=steps, warmup=2, thin=thin, step_size=0.1, seed=0, trace=True, **options
    )
    assert run.x.shape == x.shape and run.x.dtype == x.dtype and run.x.isfinite().all()
    assert run.trace.shape == (steps // thin, *x.shape)
    assert not torch.equal(run.x, x) or name == "mala"
