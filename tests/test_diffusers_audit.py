"""The audit sees what is known of stock schedulers; ours neither read nor copy in a step, and launch once."""

from __future__ import annotations

from typing import Any

import pytest
import torch

pytest.importorskip("diffusers")
import diffusers

from fastsample.cli import main
from fastsample.integrations.diffusers.audit import DEVICE, Trap, _Numbers, audit
from fastsample.integrations.diffusers.swap import classes

OURS = classes()
SHAPE = (2, 4, 16, 16)
HALF = torch.float16


def test_every_way_to_read_is_counted() -> None:
    ways: dict[str, Any] = {
        "item": lambda x, i: x[1].item(),
        "bool": lambda x, i: bool(x[0] < 1),
        "int": lambda x, i: int(i[0]),
        "tolist": lambda x, i: x.tolist(),
        "cpu": lambda x, i: x.cpu(),
        "to": lambda x, i: x.to("cpu", torch.float64),
        "numpy": lambda x, i: x.cpu().numpy(),
        "copy": lambda x, i: torch.empty(3).copy_(x),
        "mask": lambda x, i: x[x > 1],
        "nonzero": lambda x, i: (x > 1).nonzero(),
        "equal": lambda x, i: torch.equal(x, x),
        "index of a host table": lambda x, i: torch.arange(9.0)[i[2]],
        "solve": lambda x, i: torch.linalg.solve(torch.eye(3).to(DEVICE), x),
    }
    for name, way in ways.items():
        trap = Trap(3)
        with _Numbers(), trap:
            x, i = torch.tensor([1.0, 2.0, 3.0], device=DEVICE), torch.tensor([1, 2, 3], device=DEVICE)
            assert trap.counts.copies == 2 and trap.counts.reads == 0
            way(x, i)
        assert trap.counts.reads == 1, name


def test_what_is_not_a_read() -> None:
    trap = Trap(4)
    with _Numbers(), trap:
        x = torch.arange(4.0, device=DEVICE)
        y = x[2]
        assert y.untyped_storage()._cdata == x.untyped_storage()._cdata and y.storage_offset() == 2
        z = (x * 2.0).reshape(2, 2).t().clone().to(torch.float16)
        assert z.device == DEVICE and z.shape == (2, 2)
        assert torch.where(x > 1, x, 0.0).max().shape == ()
    assert trap.counts.reads == trap.counts.copies == 0
    assert trap.counts.full == 7  # arange, product, clone, cast, comparison, where, maximum: not the views


# diffusers 0.42: reads, copies, launches over the state, smaller launches per step in the middle of a run
KNOWN = [
    ("DDIMScheduler", {"clip_sample": False}, (6, 0, 6)),
    ("EulerDiscreteScheduler", {}, (0, 0, 9)),
    ("EulerAncestralDiscreteScheduler", {}, (0, 0, 12)),
    ("DPMSolverMultistepScheduler", {}, (0, 0, 12)),
    ("DPMSolverMultistepScheduler", {"solver_order": 3}, (0, 0, 21)),
    ("UniPCMultistepScheduler", {}, (1, 6, 24)),
    ("FlowMatchEulerDiscreteScheduler", {}, (0, 0, 4)),
    ("FlowMatchHeunDiscreteScheduler", {}, (2, 0, 10)),
]


@pytest.mark.skipif(not diffusers.__version__.startswith("0.42"), reason="counts of diffusers 0.42")
@pytest.mark.parametrize(("name", "config", "wanted"), KNOWN)
def test_stock(name: str, config: dict[str, Any], wanted: tuple[int, int, int]) -> None:
    found = audit(getattr(diffusers, name)(**config), 20, SHAPE, HALF)
    assert tuple(found.worst(kind) for kind in ("reads", "copies", "full")) == wanted


@pytest.mark.parametrize("dtype", [torch.float32, HALF])
@pytest.mark.parametrize("name", OURS)
def test_ours(name: str, dtype: torch.dtype) -> None:
    cls = OURS[name]
    config = {"algorithm_type": "sde-dpmsolver++"} if "DPMSolverM" in name or "DPMSolverSingle" in name else {}
    found = audit(cls(**config).use(noise="counter", seed=1), 6, SHAPE, dtype)
    assert found.worst("reads") == 0
    # the keys of counter noise are made by the first step that draws: before the batch size is not known
    assert sum(bool(c.copies or c.host) for c in found.steps) <= 1
    for counts in found.steps:
        asked = 1 if name.startswith("FlowMatch") or cls().init_noise_sigma == 1.0 else 2  # scale_model_input
        asked += name == "DPMSolverSDEScheduler"  # the Brownian tree
        assert 1 <= counts.full <= asked, counts.names


@pytest.mark.parametrize("name", OURS)
def test_ours_with_thresholding(name: str) -> None:
    cls = OURS[name]
    if "thresholding" not in cls().config:
        pytest.skip("the class has no thresholding")
    found = audit(cls(thresholding=True).use(noise="counter", seed=1), 6, SHAPE)
    assert found.worst("reads") == found.middle("copies") == 0
    assert max(c.full for c in found.steps) <= (2 if cls().init_noise_sigma == 1.0 else 3)


@pytest.mark.parametrize("noise", ["torch", "counter"])
@pytest.mark.parametrize("kind", ["learned", "learned_range"])
def test_learned_variance(kind: str, noise: str) -> None:
    """Noise, the deviation of each element, their product, the row; stock: 11 or 18 launches and 9 reads."""
    ours = OURS["DDPMScheduler"](variance_type=kind).use(noise=noise, seed=1)
    found = audit(ours, 6, SHAPE, output=(2, 8, 16, 16))
    assert found.worst("reads") == found.middle("copies") == found.middle("tiny") == 0
    assert [counts.full for counts in found.steps] == [4] * 5 + [1]


def test_command(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["doctor", "--audit", "DDIM", "-o", "eta=1.0", "--steps", "4", "--shape", "1,2,8,8"]) == 0
    assert capsys.readouterr().out.splitlines()[-1].split()[:2] == ["DDIM", "0"]
    assert main(["doctor", "--audit", "Nothing"]) == 2
    assert "allowed are all" in capsys.readouterr().err
    assert main(["doctor", "--audit", "DDIM", "-o", "colour=1"]) == 2
    assert "colour" in capsys.readouterr().err
