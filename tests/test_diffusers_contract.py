"""What code written for a stock scheduler of diffusers relies on, for every class of ours."""

from __future__ import annotations

import copy
import functools
import inspect
import pickle
import re
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

pytest.importorskip("diffusers")
import diffusers

import fastsample
from fastsample.integrations.diffusers.swap import classes, fused

from .lockstep import ULP, assert_close, generator, network, pairs, scaled, start, takes

OURS = classes()
STEPS = 5
every_class = pytest.mark.parametrize("name", OURS)
half = torch.float16


@functools.cache
def built(name: str, **config: Any) -> tuple[Any, Any]:
    """A stock scheduler and ours; some constructors of diffusers take a quarter of a second."""
    return getattr(diffusers, name)(**config), OURS[name](**config)


def both(name: str, steps: int | None = STEPS, **config: Any) -> tuple[Any, Any]:
    """A stock scheduler and ours, set up."""
    if name == "DPMSolverSDEScheduler":
        config = {"noise_sampler_seed": 0, **config}
    made = copy.deepcopy(built(name, **config))
    if steps is not None:
        for scheduler in made:
            scheduler.set_timesteps(steps)
    return made


def equal(a: torch.Tensor, b: torch.Tensor) -> bool:
    return a.shape == b.shape and torch.allclose(a, b, rtol=0, atol=0, equal_nan=True)


def same(a: Any, b: Any) -> bool:
    if isinstance(a, torch.Tensor):
        return isinstance(b, torch.Tensor) and a.dtype is b.dtype and a.device == b.device and equal(a, b)
    if isinstance(a, (list, tuple)):
        return type(a) is type(b) and len(a) == len(b) and all(same(x, y) for x, y in zip(a, b, strict=True))
    return True if callable(a) else bool(np.array_equal(a, b))


def error_of(call: Any) -> tuple[type[BaseException], str] | None:
    try:
        call()
    except Exception as error:
        return type(error), re.sub(r"<class '[\w.]*\.(\w+)'>", r"\1", str(error))
    return None


@every_class
def test_class(name: str) -> None:
    stock, ours = getattr(diffusers, name), OURS[name]
    assert issubclass(ours, stock) and ours.__name__ == stock.__name__ == name
    for attribute in ("_compatibles", "order", "config_name", "_deprecated_kwargs", "ignore_for_config"):
        assert getattr(ours, attribute, None) == getattr(stock, attribute, None)
    assert hasattr(sys.modules[ours.__module__], "SchedulerMixin")  # loaders look for it
    for method in ("__init__", "set_timesteps", "step", "scale_model_input", "add_noise", "set_begin_index"):
        if hasattr(stock, method):
            mine = inspect.signature(getattr(ours, method)).parameters.values()
            theirs = inspect.signature(getattr(stock, method)).parameters.values()
            assert [(p.name, p.default, p.kind) for p in mine] == [(p.name, p.default, p.kind) for p in theirs]
    public = {n for n in dir(stock) if not n.startswith("_")}
    assert public <= set(dir(ours))
    assert len(ours()) == len(stock())


@every_class
def test_attributes(name: str) -> None:
    stock, ours = both(name, None)
    for _ in range(2):  # after construction and after set_timesteps
        for key, value in vars(stock).items():
            if key != "_internal_dict":
                assert same(value, vars(ours)[key]), key
        stock.set_timesteps(STEPS), ours.set_timesteps(STEPS)
    assert set(ours.config) == set(stock.config)
    with pytest.raises(AttributeError, match=f"'{name}' object has no attribute 'colour'"):
        _ = ours.colour


@every_class
def test_files_and_configs(name: str, tmp_path: Path) -> None:
    stock, ours = both(name, None)
    ours.save_pretrained(tmp_path)
    again = getattr(diffusers, name).from_pretrained(tmp_path)  # without our package
    assert type(again) is getattr(diffusers, name)
    ignored = ("_use_default_values", "_class_name", "_diffusers_version")
    for made in (again, OURS[name].from_pretrained(tmp_path), OURS[name].from_config(stock.config)):
        assert {k: v for k, v in made.config.items() if k not in ignored} == {
            k: v for k, v in ours.config.items() if k not in ignored
        }
    with fastsample.patch_diffusers():
        for other in ours.compatibles[:: 4 if name.startswith("KDPM2") else 1]:  # slow to construct
            there = other.from_config(ours.config)
            back = OURS[name].from_config(there.config)
            assert {k: v for k, v in back.config.items() if k not in ignored} == {
                k: v for k, v in ours.config.items() if k not in ignored
            }


@every_class
def test_errors(name: str) -> None:
    x = start(2, 3, 4, 4)
    calls = {
        "no set_timesteps": lambda s: s.step(x, s.timesteps[0], x),
        "whole number": lambda s: (s.set_timesteps(STEPS), s.step(x, 1, x)),
        "whole tensor": lambda s: (s.set_timesteps(STEPS), s.step(x, torch.tensor(1), x)),
        "past the end": lambda s: (
            s.set_timesteps(STEPS),
            [s.step(x, s.timesteps[min(i, len(s.timesteps) - 1)], x) for i in range(len(s.timesteps) + 1)],
        ),
        "two grids": lambda s: s.set_timesteps(STEPS, timesteps=[9, 5, 1]),
        "no grid": lambda s: s.set_timesteps(),
        "rising": lambda s: s.set_timesteps(timesteps=[1, 5, 9]),
        "none": lambda s: type(s).from_config(None),
    }
    for what, call in calls.items():
        stock, ours = both(name, None)
        want, got = error_of(lambda: call(stock)), error_of(lambda: call(ours))  # noqa: B023
        if want is not None and want[0] not in (ValueError, NotImplementedError):  # what happened to go wrong
            assert got is not None, what
            continue
        if want is None and what == "past the end":
            continue
        assert want == got, what


@every_class
@pytest.mark.parametrize("kind", ["nonsense"])
def test_unknown_prediction(name: str, kind: str) -> None:
    if "prediction_type" not in built(name)[1].config:
        pytest.skip("the class has one prediction")
    x = start(2, 3, 4, 4)
    want, got = (error_of(lambda s=s: s.step(x, s.timesteps[0], x)) for s in both(name, STEPS, prediction_type=kind))
    assert (want is None) == (got is None) and (want is None or want[0] is got[0])


@every_class
@pytest.mark.parametrize("steps", [1, 2, 3, 10])
def test_run(name: str, steps: int) -> None:
    if error_of(lambda: both(name, steps)) is not None:
        pytest.skip("stock does not run so few steps")
    stock, ours = both(name, steps)
    for begin in (False, True):
        for s in (stock, ours):
            s.set_timesteps(steps)
            if begin and hasattr(s, "set_begin_index"):
                s.set_begin_index(0)
        assert_close(pairs(stock, ours, start(2, 3, 4, 4)))


@every_class
def test_start_in_the_middle_and_edited_states(name: str) -> None:
    first = 2 * OURS[name].order
    for begin in (False, True):
        stock, ours = both(name, 6)
        for s in (stock, ours):
            if begin and hasattr(s, "set_begin_index"):
                s.set_begin_index(first)
        known = start(2, 3, 4, 4, seed=9)

        def edit(i: int, x: torch.Tensor) -> torch.Tensor:
            return torch.where(torch.arange(4) < 2, known + 0.1 * i, x)  # noqa: B023

        assert_close(pairs(stock, ours, start(2, 3, 4, 4), first=first, edit=edit))


@every_class
def test_dtypes(name: str) -> None:
    for sample_dtype, output_dtype in [
        (torch.float32, torch.float32),
        (half, half),
        (torch.bfloat16, torch.bfloat16),
        (torch.float32, torch.bfloat16),
        (torch.bfloat16, torch.float32),
        (torch.float64, torch.float64),
    ]:
        stock, ours = both(name)
        x, e = start(2, 3, 4, 4, dtype=sample_dtype), start(2, 3, 4, 4, dtype=output_dtype, seed=1)
        for t in stock.timesteps:
            scaled(stock, x, t)
            refused = error_of(lambda: stock.step(e, t, x, return_dict=False))  # noqa: B023
            if refused is not None:
                break
        if refused is not None:
            continue
        stock, ours = both(name)
        for t in stock.timesteps:
            assert scaled(stock, x, t).dtype is scaled(ours, x, t).dtype
            want_types = [y.dtype for y in stock.step(e, t, x, return_dict=False)]
            got_types = [y.dtype for y in ours.step(e, t, x, return_dict=False)]
            assert got_types == want_types, (sample_dtype, output_dtype)


@every_class
def test_generators(name: str) -> None:
    if not takes(OURS[name], "generator"):
        pytest.skip("the class draws nothing")
    x = start(2, 3, 4, 4)
    for make in (
        lambda: torch.Generator().manual_seed(5),
        lambda: [torch.Generator().manual_seed(5)],
        lambda: [torch.Generator().manual_seed(5), torch.Generator().manual_seed(6)],
        lambda: torch.manual_seed(5) and None,
    ):
        results = []
        for s in both(name):
            g, y = make(), x * getattr(s, "init_noise_sigma", 1.0)
            for i, t in enumerate(s.timesteps):
                y = s.step(network(scaled(s, y, t), i), t, y, generator=g, return_dict=False)[0]
            results.append(y)
        want, got = results
        assert (want - got).abs().max() <= 512 * ULP * max(1.0, float(want.abs().max()))


@every_class
def test_copies_in_the_middle(name: str) -> None:
    _, ours = both(name, 6)
    x = start(2, 3, 4, 4) * getattr(ours, "init_noise_sigma", 1.0)
    made, half_way = [], 3 * OURS[name].order
    for i, t in enumerate(ours.timesteps):
        if i == half_way:
            made = [] if name == "DPMSolverSDEScheduler" else [copy.deepcopy(ours)]  # torchsde's tree cannot be copied
            if name not in ("SASolverScheduler", "DPMSolverSDEScheduler"):  # these hold a lambda of diffusers
                made.append(pickle.loads(pickle.dumps(ours)))
            y = [x] * len(made)
        e = network(scaled(ours, x, t), i)
        x = ours.step(e, t, x, return_dict=False, **generator(ours, i))[0]
        for k, other in enumerate(made):
            e = network(scaled(other, y[k], t), i)
            y[k] = other.step(e, t, y[k], return_dict=False, **generator(other, i))[0]
            # a step may have written the next scaled state from its unrounded result, which a copy does not have
            assert (y[k] - x).abs().max() <= 64 * ULP * max(1.0, float(x.abs().max()))


@every_class
def test_taking_over_in_the_middle(name: str) -> None:
    stock = getattr(diffusers, name)()
    stock.set_timesteps(6)
    x = start(2, 3, 4, 4) * getattr(stock, "init_noise_sigma", 1.0)
    half_way, ours = 3 * OURS[name].order, None
    for i, t in enumerate(stock.timesteps):
        if i == half_way:
            ours = fused(stock, OURS[name])
            assert same(ours.timesteps, stock.timesteps)
        e = network(scaled(stock, x, t), i)
        if ours is not None:
            scaled(ours, x, t)
            mine = ours.step(e, t, x, return_dict=False, **generator(ours, i))[0]
        x = stock.step(e, t, x, return_dict=False, **generator(stock, i))[0]
        if ours is not None:
            assert (mine - x).abs().max() <= 64 * ULP * max(1.0, float(x.abs().max()), float(e.abs().max()))


@every_class
def test_gradients(name: str) -> None:
    stock, ours = both(name)
    x = start(2, 3, 4, 4) * getattr(stock, "init_noise_sigma", 1.0)
    for i, t in enumerate(stock.timesteps):
        grads = []
        for s in (stock, ours):
            a, e = x.clone().requires_grad_(), network(x, i).requires_grad_()
            scaled(s, a, t)
            made = s.step(e, t, a, return_dict=False, **generator(s, i))
            made[0].square().sum().backward()
            grads.append([torch.zeros_like(v) if v.grad is None else v.grad for v in (a, e)])
        for want, got in zip(*grads, strict=True):
            assert (want - got).abs().max() <= 512 * ULP * max(1.0, float(want.abs().max()), float(x.abs().max()))
        for s in (stock, ours):  # histories of other runs must not hold on to the graph
            for key, value in vars(s).items():
                if isinstance(value, list):
                    setattr(s, key, [v.detach() if isinstance(v, torch.Tensor) else v for v in value])
                elif isinstance(value, torch.Tensor) and value.requires_grad:
                    setattr(s, key, value.detach())
        x = made[0].detach()


@every_class
def test_results_are_new_and_inputs_stay(name: str) -> None:
    _, ours = both(name)
    x = start(2, 3, 4, 4).to(memory_format=torch.channels_last) * getattr(ours, "init_noise_sigma", 1.0)
    for i, t in enumerate(ours.timesteps):
        e = network(scaled(ours, x, t), i).to(memory_format=torch.channels_last)
        before = x.clone(), e.clone()
        made = ours.step(e, t, x, **generator(ours, i))
        assert torch.equal(x, before[0]) and torch.equal(e, before[1])
        fields = [made.prev_sample, *([made.pred_original_sample] if "pred_original_sample" in made else [])]
        assert made[0] is made.prev_sample is made["prev_sample"]
        for y in fields:
            if y is None:
                continue
            assert y.is_contiguous(memory_format=torch.channels_last)
            assert y.untyped_storage().data_ptr() not in (
                x.untyped_storage().data_ptr(),
                e.untyped_storage().data_ptr(),
            )
        x = made.prev_sample


@every_class
def test_input_scaling_and_noising(name: str) -> None:
    stock, ours = both(name, 6)
    x, noise = start(2, 3, 4, 4), start(2, 3, 4, 4, seed=1)
    if hasattr(stock, "scale_model_input"):
        want, got = stock.scale_model_input(x, stock.timesteps[0]), ours.scale_model_input(x, ours.timesteps[0])
        assert (got is x) == (want is x) and (want - got).abs().max() <= 2 * ULP * float(x.abs().max())
    for method in ("add_noise", "scale_noise"):
        if hasattr(stock, method):
            for t in (stock.timesteps[2 * OURS[name].order][None], stock.timesteps[:2]):
                arguments = (x, noise, t) if method == "add_noise" else (x, t, noise)
                if error_of(lambda: getattr(stock, method)(*arguments)) is None:  # noqa: B023
                    assert same(getattr(stock, method)(*arguments), getattr(ours, method)(*arguments))
