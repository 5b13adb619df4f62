"""The wrapper of networks, and models by name."""

from __future__ import annotations

import pytest
import torch

from fastsample import GaussianMixture, Network, load_model, sample
from fastsample.models import as_network

from .conftest import vp_path


def test_a_callable_speaks_for_itself():
    class Model:
        prediction, time, input_scaling, schedule, shape, classes = "v", "log-snr", "vp", "cosine", (2, 3), 4

        def __call__(self, x, t):
            return x

    network = as_network(Model())
    assert (network.prediction, network.time, network.input_scaling) == ("v", "log-snr", "vp")
    assert (network.schedule, network.shape, network.classes) == ("cosine", (2, 3), 4)
    assert as_network(Model(), prediction="x0").prediction == "x0"
    assert as_network(network) is network
    changed = as_network(network, prediction="eps")
    assert (changed.prediction, changed.time, changed.shape, changed.fn) == ("eps", "log-snr", (2, 3), network.fn)


def test_a_module_without_facts_predicts_noise():
    class Net(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.prediction = torch.nn.Linear(2, 2)  # a part of the network, not a word about it

        def forward(self, x, t):
            return self.prediction(x)

    network = as_network(Net())
    assert (network.prediction, network.time, network.input_scaling) == ("eps", "t", "none")
    assert network.device == torch.device("cpu")
    assert as_network(lambda x, t: x).device is None


def test_a_mixture_is_a_model():
    m = GaussianMixture.ring()
    assert as_network(m).prediction == "v"
    assert as_network(m, prediction="x0").prediction == "x0"
    x = sample(m, 5, path=vp_path(20), seed=0)
    assert x.shape == (5, 2)


@pytest.mark.parametrize(
    ("arguments", "error", "words"),
    [
        ({"fn": 3}, TypeError, "model: got int"),
        ({"prediction": "noise"}, ValueError, "prediction: got 'noise', allowed are eps"),
        ({"time": "sigmas"}, ValueError, "time: got 'sigmas', allowed are t"),
        ({"input_scaling": "karras"}, ValueError, "input_scaling: got 'karras'"),
    ],
)
def test_bad_networks(arguments, error, words):
    with pytest.raises(error, match=words):
        Network(**{"fn": lambda x, t: x, **arguments})


def test_conditions_that_cannot_share_a_batch_take_two_calls():
    calls = []

    def model(x, t, cond=None):
        calls.append((len(x), cond))
        return x

    x, t = torch.zeros(2, 3), torch.zeros(2)
    for cond, uncond in (
        ("a cat", "a dog"),
        (torch.zeros(2, 7), torch.zeros(2, 5)),
        (torch.zeros(2), None),
        ((1,), (1, 2)),
    ):
        calls.clear()
        out = Network(model).guided(cond, uncond)(x, t)
        assert len(out) == 2
        assert [n for n, _ in calls] == [2, 2]
        assert calls[0][1] is cond
        assert calls[1][1] is uncond
    calls.clear()
    Network(model).guided((torch.zeros(2), [torch.ones(2)]), (torch.zeros(2), [torch.zeros(2)]))(x, t)
    assert calls[0][0] == 4
    assert torch.equal(calls[0][1][1][0], torch.tensor([1.0, 1, 0, 0]))


def test_both_branches_in_one_buffer():
    """The doubled batch is one piece of memory for the whole run, and holds the state of each call."""
    seen = []

    def model(x, t, cond):
        seen.append((x.data_ptr(), x.clone()))
        return x

    with torch.inference_mode():
        predict = Network(model).guided(torch.zeros(2), torch.ones(2))
        for value in (1.0, 2.0):
            predict(torch.full((2, 3), value), torch.zeros(2))
    assert seen[0][0] == seen[1][0]
    assert [float(x.unique()) for _, x in seen] == [1.0, 2.0]


def test_digits():
    network = load_model("digits")
    assert (network.prediction, network.time, network.input_scaling) == ("v", "log-snr", "vp")
    assert (network.shape, network.classes, network.null_class) == ((1, 28, 28), 10, 10)
    x = sample(network, 3, path=vp_path(2), seed=0, guidance=2.0, cond=torch.tensor([1, 2, 3]))
    assert x.shape == (3, 1, 28, 28)
    assert sample(network, 3, path=vp_path(2), seed=0).shape == (3, 1, 28, 28)
    with pytest.raises(ValueError, match="cond: got none under guidance"):
        sample(network, 3, path=vp_path(2), seed=0, guidance=2.0)


FACTORIES = """
import torch
from neighbour import SCALE

def model():
    def predict(x, t):
        return x * SCALE
    return predict

def mixture():
    from fastsample import GaussianMixture
    return GaussianMixture.ring(3)

def broken():
    return 1 / 0

number = 3
def returns_text():
    return "text"
"""


@pytest.fixture
def factories(tmp_path):
    (tmp_path / "neighbour.py").write_text("SCALE = 0.5\n")
    path = tmp_path / "mine.py"
    path.write_text(FACTORIES)
    return path


def test_factories(factories):
    x = torch.ones(1, 2)
    assert torch.equal(load_model(f"{factories}:model")(x, x[0, :1]), x * 0.5)
    assert load_model(f"{factories}:mixture").shape == (2,)
    assert load_model(f"{factories}:model", prediction="x0").prediction == "x0"
    assert load_model("mixture").shape == (2,)


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("digit", "got 'digit', allowed are digits, mixture and path.py:factory; did you mean digits"),
        ("no/such.py:model", "the file no/such.py does not exist"),
        ("MINE:modell", "has no 'modell'; did you mean model"),
        ("MINE:number", "is a int"),
        ("MINE:broken", r"failed with ZeroDivisionError: division by zero \(mine.py line 15\)"),
        ("no_such_module:model", "no module 'no_such_module'"),
        ("torch:no_such_model", "torch has no 'no_such_model'"),
    ],
)
def test_bad_names(factories, name, words):
    with pytest.raises(ValueError, match=words):
        load_model(name.replace("MINE", str(factories)))


def test_a_factory_of_no_model(factories):
    with pytest.raises(TypeError, match="model: got str"):
        load_model(f"{factories}:returns_text")


def test_a_file_that_does_not_load(tmp_path):
    path = tmp_path / "torn.py"
    path.write_text("def model(:\n")
    with pytest.raises(ValueError, match=r"torn.py could not be loaded: SyntaxError"):
        load_model(f"{path}:model")
