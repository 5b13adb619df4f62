"""CUDA graphs: the bits of the eager loop, memory, streams, failures.  What is recorded is tested without a GPU."""

from __future__ import annotations

import pytest
import torch

from fastsample import CaptureError, GaussianMixture, capture, graph, make_plan, sample
from fastsample.graph.cuda import CudaRecorder
from tests.conftest import vp_path
from tests.together import together

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device"),
]
SHAPE = (4, 3, 16, 16)


class Net(torch.nn.Module):
    """Convolutions, a normalisation and a condition; counts how often its Python runs."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.first, self.last = torch.nn.Conv2d(3, 16, 3, padding=1), torch.nn.Conv2d(16, 3, 3, padding=1)
        self.norm, self.labels = torch.nn.GroupNorm(4, 16), torch.nn.Embedding(4, 16)
        self.ran = 0

    def forward(self, x, t, cond=None):
        self.ran += 1
        y = self.first(x) + 0.1 * t.to(x.dtype)[:, None, None, None]
        if cond is not None:
            y = y + self.labels(cond)[:, :, None, None]
        return self.last(torch.nn.functional.silu(self.norm(y)))


@pytest.fixture
def net():
    graph.clear()
    deterministic = torch.backends.cudnn.deterministic
    torch.backends.cudnn.deterministic = True  # else two calls of one network may differ in their last bits
    yield Net().cuda().eval()
    torch.backends.cudnn.deterministic = deterministic
    graph.clear()


def both(net, x=SHAPE, mode="on", **arguments):
    arguments = {"device": "cuda", "seed": 0, **arguments}
    stats = {}
    eager = sample(net, x, **arguments)
    return eager, sample(net, x, **arguments, graph=mode, stats=stats), stats["graph"]


@pytest.mark.parametrize("mode", ["on", "whole"])
@pytest.mark.parametrize("solver", ["ddim", "ddpm", "dpmpp-2m", "sde-dpmpp-2m", "unipc", "sa", "heun", "plms", "lms"])
def test_bits_of_the_eager_loop(net, solver, mode):
    for seed in (0, 1, 0):
        eager, replayed, stats = both(net, mode=mode, solver=solver, steps=8, seed=seed)
        assert torch.equal(eager, replayed)
        assert stats["used"] == "cuda graph"
    assert stats["captures"] == 0
    other = sample(net, SHAPE, device="cuda", solver=solver, steps=8, seed=2, graph=mode)
    assert not torch.equal(other, replayed)


@pytest.mark.parametrize(
    "options",
    [
        {"threshold": 0.9},
        {"guidance": 3.0},
        {"guidance": 3.0, "rescale": 0.7, "threshold": (0.95, 1.0, 3.0)},
        {"dtype": torch.float64},
    ],
)
def test_reductions_guidance_and_dtypes(net, options):
    if options.get("dtype") == torch.float64:
        net = net.double()
    if "guidance" in options:
        labels = torch.arange(4, device="cuda")
        options = {**options, "cond": labels, "uncond": labels * 0 + 3}
    for seed in (0, 1):
        eager, replayed, stats = both(net, solver="dpmpp-2m", steps=6, seed=seed, **options)
        assert torch.equal(eager, replayed)
    assert stats["captures"] == 0


@pytest.mark.parametrize("solver", ["psld-em", "sscs", "noba", "nobab", "cse"])
def test_phase_space(solver):
    graph.clear()
    means = torch.randn(3, 2, 3, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    space = GaussianMixture(means, 0.3).phase_space()
    for steps in (5, 6):
        eager, replayed, _ = both(space, (16, 2, 3), solver=solver, steps=steps)
        assert torch.equal(eager, replayed)


@pytest.mark.parametrize(
    ("solver", "options"),
    [
        ("rtk-mala", {}),
        ("rtk-mala", {"estimator": "simpson", "denoise": True}),
        ("rtk-uld", {}),
        ("rtk-ula", {}),
        ("poisson-midpoint", {"midpoints": "one", "steps": 40, "windows": "safe"}),
    ],
)
def test_procedures(solver, options):
    graph.clear()
    means = torch.randn(3, 2, 3, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    network = GaussianMixture(means, 0.3).network()
    for seed in (0, 1, 0):
        eager, replayed, stats = both(network, (64, 2, 3), solver=solver, seed=seed, **options)
        assert torch.equal(eager, replayed)
        assert stats["used"] == "cuda graph"
    assert stats["captures"] == 0


def test_no_python_and_no_capture_for_other_numbers(net):
    labels = torch.arange(4, device="cuda")
    shared = {"cond": labels, "uncond": labels * 0 + 3, "guidance": 2.0, "solver": "dpmpp-2m", "steps": 8}
    both(net, **shared)
    for change in ({"steps": 20}, {"seed": 9}, {"grid": "karras"}, {"guidance": 4.0}, {"cond": labels.flip(0)}):
        arguments = {"device": "cuda", "seed": 0, **shared, **change}
        eager, ran, stats = sample(net, SHAPE, **arguments), net.ran, {}
        assert torch.equal(eager, sample(net, SHAPE, **arguments, graph="on", stats=stats)), change
        assert net.ran == ran
        assert stats["graph"]["captures"] == 0


def test_weights_changed_in_place_are_seen(net):
    both(net, steps=6)
    with torch.no_grad():
        net.last.weight.mul_(0.5)
    eager, replayed, stats = both(net, steps=6)
    assert torch.equal(eager, replayed)
    assert stats["captures"] == 0


def test_results_and_hooks(net):
    states = {"off": [], "on": []}
    for mode, seen in states.items():

        def look(info, seen=seen):
            seen.append(info.x.clone())
            info.x.mul_(0.9)  # the next call sees it

        x = sample(net, SHAPE, device="cuda", steps=6, seed=0, callback=look, graph=mode)
        seen.append(x)
    assert all(torch.equal(a, b) for a, b in zip(*states.values(), strict=True))
    kept = x.clone()
    sample(net, SHAPE, device="cuda", steps=6, seed=5, graph="on")
    assert torch.equal(x, kept)


def failing(x, t):
    return x * torch.randn(3, device="cpu").to(x.device).mean()


def reading(x, t):
    return x * float(x.mean())


@pytest.mark.parametrize(
    ("fn", "why"), [(reading, "reads a number on the host"), (failing, "copies from the host to the device")]
)
def test_reasons(fn, why):
    graph.clear()
    with pytest.raises(CaptureError, match=why):
        sample(fn, SHAPE, device="cuda", steps=4, seed=0, graph="on")
    stats = {}
    for _ in range(3):
        made = sample(fn, SHAPE, device="cuda", steps=4, seed=0, graph="auto", stats=stats)
    assert made.isfinite().all()
    assert why in stats["graph"]["why"]


def test_a_capture_that_fails_leaves_the_process_usable(net):
    recorder, x = CudaRecorder(torch.device("cuda", 0)), torch.zeros(8, device="cuda")
    runs = []

    def body():
        runs.append(1)
        x.add_(1)
        if len(runs) == 4:  # the capture, after three warm-ups
            torch.cuda.synchronize()  # not allowed in a capture

    before = torch.cuda.current_stream()
    with pytest.raises(CaptureError, match="the capture failed"):
        recorder.record(body, lambda: None)
    assert torch.cuda.current_stream() == before
    assert x.tolist() == [3.0] * 8
    runs[:] = [0] * 10
    recording = recorder.record(body, x.zero_)
    x.zero_()
    recording.replay()
    assert x.tolist() == [1.0] * 8
    eager, replayed, _ = both(net, steps=5)
    assert torch.equal(eager, replayed)


def test_auto_times_both_ways_and_decides(net):
    used = []
    for seed in range(4):
        eager, made, stats = both(net, mode="auto", steps=10, seed=seed)
        assert torch.equal(eager, made)
        used.append(stats["used"])
    assert used[0] is None
    assert used[2] == used[3]  # it has decided
    if used[3] is None:
        assert "eager is faster" in stats["why"]


def test_memory_is_bounded_and_given_back(net):
    before = graph.limit()
    try:
        for count in (2, 3, 4, 5):
            both(net, (count, *SHAPE[1:]), steps=5)
        facts = graph.info()
        assert len(facts["recordings"]) == 4
        assert all(found["mb"] > 0 for found in facts["recordings"])
        graph.limit(facts["used_mb"] / 2)
        assert graph.info()["used_mb"] <= facts["used_mb"] / 2
        eager, replayed, _ = both(net, (5, *SHAPE[1:]), steps=5)
        assert torch.equal(eager, replayed)
    finally:
        graph.limit(before)


def test_streams_and_threads(net):
    expected = {seed: sample(net, SHAPE, device="cuda", steps=12, seed=seed) for seed in range(6)}
    wrong = []

    def work(seeds):
        try:
            with torch.cuda.stream(torch.cuda.Stream()):
                for seed in seeds:
                    made = sample(net, SHAPE, device="cuda", steps=12, seed=seed, graph="on", check=False)
                    torch.cuda.current_stream().synchronize()
                    if not torch.equal(made, expected[seed]):
                        wrong.append(seed)
        except Exception as error:
            wrong.append(error)

    torch.cuda.synchronize()
    together(work, [[n, n + 3] * 4 for n in range(3)])
    assert wrong == []


def test_capture_as_a_callable(net):
    plan = make_plan("sde-dpmpp-2m", vp_path(8))
    for whole in (False, True):
        run = capture(net, plan, SHAPE, whole=whole, device="cuda")
        for seed in (0, 1):
            assert torch.equal(run(seed=seed), sample(net, SHAPE, plan=plan, seed=seed, device="cuda"))


def test_a_compiled_network(net):
    compiled = torch.compile(net)
    for seed in (0, 1):
        eager, replayed, stats = both(compiled, steps=6, seed=seed)
        assert torch.equal(eager, replayed)
    assert stats["captures"] == 0
