"""Pipelines of diffusers without `transformers`, of which they need only names where prompts come as embeddings."""

from __future__ import annotations

import importlib
import importlib.util
import inspect
import pkgutil
import sys
from importlib.machinery import ModuleSpec
from types import ModuleType
from typing import Any


class _Names(ModuleType):
    """A package in which every name is an empty class."""

    __version__ = "5.0.0"

    def __init__(self, name: str) -> None:
        super().__init__(name)
        self.__path__: list[str] = []
        self.__spec__ = ModuleSpec(name, None)

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        setattr(self, name, type(name, (), {"__module__": self.__name__}))
        return getattr(self, name)


def pipeline_classes(*paths: str) -> list[Any]:
    """Classes by ``module.Class`` below ``diffusers.pipelines``; what stands in for `transformers` is gone after it.

    diffusers offers the mixins of its pipelines under ``diffusers.loaders`` only where `transformers` is installed, so
    they are put there by hand.
    """
    absent = [name for name in ("transformers", "tokenizers") if importlib.util.find_spec(name) is None]
    sys.modules.update({name: _Names(name) for name in absent})
    try:
        if absent:
            _fill(importlib.import_module("diffusers.loaders"))
            checker = importlib.import_module("diffusers.pipelines.stable_diffusion.safety_checker")
            package = importlib.import_module("diffusers.pipelines.stable_diffusion")
            package.StableDiffusionSafetyChecker = checker.StableDiffusionSafetyChecker  # type: ignore[attr-defined]
        found = []
        for path in paths:
            module, _, name = path.rpartition(".")
            found.append(getattr(importlib.import_module("diffusers.pipelines." + module), name))
        return found
    finally:
        for name in absent:
            del sys.modules[name]


def _fill(loaders: ModuleType) -> None:
    for info in pkgutil.iter_modules(loaders.__path__):
        module = importlib.import_module(f"diffusers.loaders.{info.name}")
        for name, value in vars(module).items():
            if inspect.isclass(value) and value.__module__ == module.__name__ and not hasattr(loaders, name):
                setattr(loaders, name, value)
