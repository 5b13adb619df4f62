"""Models by name: ``digits``, ``mixture``, or ``path.py:factory``."""

from __future__ import annotations

import difflib
import importlib
import importlib.util
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from .ladder import Ladder
from .mixture import GaussianMixture
from .network import Network, as_network

NAMES = ("digits", "mixture")


_VIEWS = {"ladder": "ladder", "phase-space": "phase_space"}  # kind of model -> the method that makes it


def load_model(
    name: str,
    device: torch.device | str = "cpu",
    prediction: str | None = None,
    view: str = "",
    options: Mapping[str, Any] | None = None,
) -> Network:
    """The network of a name.

    Args:
        name: ``"digits"`` (the shipped network of handwritten digits), ``"mixture"`` (the exact network of eight
            Gaussians on a circle), or ``"path.py:factory"`` / ``"package.module:factory"``: a function that takes
            nothing and returns anything that `as_network` takes.
        device: where a module is moved to.
        prediction: what the network predicts, if it does not say so itself.
        view: the kind of network that a solver needs (``Solver.model``); a model that has several is asked for it.
        options: of the solver; those of a phase-space process are that of an exact network, which exists for any.

    Raises:
        ValueError: an unknown name, a file or factory that does not exist, or that fails.
        ImportError: the digits need safetensors, which is missing.
    """
    if name == "digits":
        made: Any = digit_ladder(device) if view == "ladder" else digits(device)
    elif name == "mixture":
        made = GaussianMixture.ring()
    elif ":" in name:
        source, _, attribute = name.rpartition(":")
        made = _call_factory(source, attribute)
    else:
        close = difflib.get_close_matches(name, NAMES, n=1)
        hint = f"; did you mean {close[0]}?" if close else ""
        raise ValueError(f"model: got {name!r}, allowed are {', '.join(NAMES)} and path.py:factory{hint}")
    other = getattr(made, _VIEWS[view], None) if view else None
    if other is not None:
        from ..solvers.phase.process import process_of

        made = other(process_of(options or {})) if view == "phase-space" else other()
    network = as_network(made, prediction=prediction)
    if isinstance(network.fn, torch.nn.Module):
        network.fn.to(device)
    return network


def digits(device: torch.device | str = "cpu") -> Network:
    """The shipped class-conditional network of 28 x 28 digits. Conditions are labels ``(B,)`` int64, 0 to 9."""
    from . import digits as module

    return _digits(module.load_digits(device))


def digit_ladder(device: torch.device | str = "cpu") -> Ladder:
    """The shipped network and two smaller ones for the same prediction, for multilevel samplers."""
    from . import digits as module

    return Ladder([*map(_digits, module.load_digit_ladder(device))], module.LADDER_COSTS, name="digits")


def _digits(net: torch.nn.Module) -> Network:
    from . import digits as module

    return Network(
        net,
        module.PREDICTION,
        module.TIME,
        "vp",
        shape=module.SHAPE,
        classes=module.CLASSES,
        null_class=module.NULL_CLASS,
        schedule="cosine",
        name="digits",
    )


def _call_factory(source: str, attribute: str) -> Any:
    name = f"{source}:{attribute}"
    module = _import_file(Path(source)) if source.endswith(".py") else _import_module(source)
    factory = getattr(module, attribute, None)
    if factory is None:
        public = [n for n, value in vars(module).items() if callable(value) and not n.startswith("_")]
        close = difflib.get_close_matches(attribute, public, n=1)
        hint = f"; did you mean {close[0]}?" if close else ""
        raise ValueError(f"model: {source} has no {attribute!r}{hint}")
    if not callable(factory):
        raise ValueError(f"model: {name} is a {type(factory).__name__}, need a function that returns a model")
    try:
        return factory()
    except Exception as error:
        raise ValueError(f"model: {name} failed with {_brief(error)}") from error


def _import_file(path: Path) -> Any:
    if not path.is_file():
        raise ValueError(f"model: the file {path} does not exist")
    spec = importlib.util.spec_from_file_location(path.stem, path)
    assert spec is not None  # the name ends with .py
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.path.insert(0, str(path.parent.resolve()))  # its neighbours, as if it was run itself
    try:
        spec.loader.exec_module(module)
    except Exception as error:
        raise ValueError(f"model: {path} could not be loaded: {_brief(error)}") from error
    finally:
        sys.path.pop(0)
    return module


def _import_module(source: str) -> Any:
    try:
        return importlib.import_module(source)
    except ModuleNotFoundError as error:
        raise ValueError(f"model: no module {error.name!r}; give path.py:factory or an installed module") from error
    except Exception as error:
        raise ValueError(f"model: {source} could not be loaded: {_brief(error)}") from error


def _brief(error: Exception) -> str:
    first = (str(error).strip().splitlines() or [""])[0]
    trace, line = error.__traceback__, ""
    while trace is not None:
        line = f" ({Path(trace.tb_frame.f_code.co_filename).name} line {trace.tb_lineno})"
        trace = trace.tb_next
    return f"{type(error).__name__}: {first}{line}"
