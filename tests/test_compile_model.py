"""``torch.compile(model)`` as the model of `sample`: one graph over steps, seeds, solvers and guidance, no breaks."""

from __future__ import annotations

import pytest
import torch

from fastsample import Network, make_plan, sample
from fastsample.models.network import as_network

from .conftest import vp_path
from .graphs import counted

SOLVERS = ["euler", "dpmpp-3m", "sde-dpmpp-2m", "unipc", "heun", "sa", "plms"]
WAYS = [{}, {"fullgraph": True}, {"fullgraph": True, "dynamic": False}]


class Net(torch.nn.Module):
    """Convolution, time and class; says what it is."""

    prediction, time, shape, schedule, null_class = "v", "t", (3, 4, 4), "cosine", 10

    def __init__(self):
        super().__init__()
        self.conv = torch.nn.Conv2d(3, 3, 3, padding=1)
        self.hour, self.kind = torch.nn.Linear(1, 3), torch.nn.Embedding(11, 3)

    def forward(self, x, t, label):
        return self.conv(x) + (self.hour(t[:, None].to(x.dtype)) + self.kind(label))[..., None, None]


def compiled(model, **how):
    return torch.compile(model, backend="aot_eager", **how)


@pytest.mark.parametrize("how", WAYS)
def test_one_graph_over_steps_seeds_and_solvers(how):
    with counted() as count:
        net = compiled(Net(), **how)
        for n, solver in enumerate(SOLVERS):
            sample(net, 5, solver=solver, steps=3 + n, seed=n)
        sample(net, torch.randn(5, 3, 4, 4), solver="dpmpp-2m", steps=4, seed=1, start=1, return_trajectory=True)
        assert count.graphs == 1 and not count.breaks


@pytest.mark.parametrize("solver", ["dpm-adaptive", "dpm-solver-adaptive", "rtk-mala", "poisson-midpoint"])
def test_one_graph_of_procedures(solver):
    with counted() as count:
        net = compiled(lambda x, t: x * 0.1 + t.reshape(-1, 1) * 0.01, fullgraph=True)
        for seed in range(2):
            sample(net, torch.randn(4, 6), solver=solver, seed=seed, steps=4)
        assert count.graphs == 1 and not count.breaks


@pytest.mark.parametrize("how", WAYS)
def test_one_graph_under_guidance(how):
    labels = torch.arange(4)
    with counted() as count:
        net = compiled(Net(), **how)
        for n, solver in enumerate(SOLVERS):
            sample(net, 4, solver=solver, steps=3 + n, seed=n, cond=labels, guidance=1.0 + n)
        assert count.graphs == 1 and not count.breaks
        sample(net, 8, steps=3, cond=torch.arange(8), seed=0)  # not guided, on the batch that both branches made
        assert count.graphs == 1


def test_two_calls_of_guidance_are_one_graph():
    labels = torch.arange(4)
    with counted() as count:
        net = Network(compiled(Net(), fullgraph=True), prediction="v", one_batch=False)
        sample(net, (4, 3, 4, 4), steps=3, seed=0, cond=labels, uncond=torch.full_like(labels, 10), guidance=2.0)
        sample(net, (4, 3, 4, 4), steps=5, seed=1, cond=labels)
        assert count.graphs == 1 and not count.breaks


@pytest.mark.parametrize("guidance", [None, 2.0])
def test_inference_mode_of_the_caller_is_no_other_graph(guidance):
    labels = torch.arange(4)
    with counted() as count:
        net = compiled(Net(), fullgraph=True)
        first = sample(net, 4, steps=3, seed=0, cond=labels, guidance=guidance)
        with torch.inference_mode():
            second = sample(net, 4, steps=3, seed=0, cond=labels, guidance=guidance)
        assert torch.equal(first, second)
        assert count.graphs == 1 and not count.breaks


def test_second_batch_size_is_the_last_graph():
    with counted() as count:
        net = compiled(Net())
        for batch in (2, 3, 5, 7, 11):
            sample(net, batch, steps=2, seed=0)
        assert count.graphs == 2  # torch compiles the second size for all sizes


def test_gradients_take_two_graphs():
    """The state that a run starts from needs no gradient, those after the first call do: torch tells them apart."""
    with counted() as count:
        net = compiled(Net(), fullgraph=True)
        for solver in SOLVERS:
            sample(net, 2, solver=solver, steps=3, seed=0, grad=True).sum().backward()
        assert count.graphs == 2 and not count.breaks


def test_compiled_and_eager_give_the_same():
    net = Net()
    labels = torch.arange(4)
    with counted():
        both = [sample(m, 4, steps=5, solver="ddpm", seed=3, cond=labels, guidance=2.0) for m in (net, compiled(net))]
    assert torch.equal(*both)


FACTS = (
    "prediction",
    "time",
    "input_scaling",
    "schedule",
    "shape",
    "null_class",
    "name",
    "device",
    "dtype",
    "one_batch",
)


def facts(network):
    return {name: getattr(network, name) for name in FACTS}


def function(x, t):
    return x


function.prediction, function.shape = "x0", (7,)


@pytest.mark.parametrize(
    "model", [Net(), function, Network(function, "flow", "sigma", dtype=torch.bfloat16, width=0.5)]
)
def test_a_compiled_model_says_what_the_original_says(model):
    assert facts(as_network(compiled(model))) == facts(as_network(model))
    assert facts(as_network(compiled(compiled(model)))) == facts(as_network(model))
    assert as_network(compiled(model)).fn is not as_network(model).fn


def test_a_compiled_method_says_what_its_module_says():
    net = as_network(compiled(Net().forward))
    assert (net.prediction, net.shape, net.schedule) == ("v", (3, 4, 4), "cosine")


def test_compiled_network_keeps_its_dtype():
    network = Network(lambda x, t: x * 0.5, dtype=torch.bfloat16, shape=(4,))
    plan = make_plan("ddpm", vp_path(4))
    with counted() as count:
        assert torch.equal(sample(compiled(network), 3, plan=plan, seed=1), sample(network, 3, plan=plan, seed=1))
        assert count.graphs == 1
    assert as_network(compiled(network)).dtype == torch.bfloat16


def test_keys_do_not_count_as_another_graph():
    with counted() as count:
        net = compiled(Net(), fullgraph=True)
        for seed in (0, [1, 2], torch.Generator().manual_seed(3), None):
            sample(net, 2, steps=2, solver="ddpm", seed=seed)
        xis = [torch.randn(2, 3, 4, 4) for _ in range(3)]
        sample(net, 2, steps=2, solver="ddpm", noise=xis)
        assert count.graphs == 1


@pytest.mark.parametrize("batch", [1, 3, 4])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_times_are_aligned(batch, dtype):
    """A network that Inductor compiled copies an input that is not aligned to 16 bytes, at every call."""
    places, times = [], []

    def net(x, t):
        places.append(t.data_ptr() % 16)
        times.append(t.clone())
        assert t.shape == (batch,) and t.is_contiguous()
        return x * 0.5

    plan = make_plan("dpmpp-2m", vp_path(5))
    sample(net, torch.randn(batch, 3, dtype=dtype), plan=plan)
    assert places == [0] * 5
    assert torch.equal(torch.stack(times), torch.from_numpy(plan.t.copy()).to(dtype)[:, None].expand(5, batch))
