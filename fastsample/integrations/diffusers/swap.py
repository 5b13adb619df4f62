"""Our schedulers in the place of the stock ones: in a pipeline that exists, or for everything that is loaded later."""

from __future__ import annotations

import copy
import importlib
import sys
from collections.abc import Callable
from typing import Any

import diffusers
import diffusers.schedulers

from .base import Fused
from .guidance import rescale_noise_cfg

# pipelines that build their scheduler anew, from a name they imported
_BUILDERS = ("diffusers.pipelines.ddim.pipeline_ddim", "diffusers.pipelines.deprecated.pndm.pipeline_pndm")


class Undo:
    """What was changed.  Call it, or leave its ``with`` block, to restore what was there; a second time does nothing.

    ``names``: what was replaced, in the order in which it was done.
    """

    def __init__(self) -> None:
        self.names: list[str] = []
        self._ways_back: list[Callable[[], None]] = []

    def add(self, name: str, way_back: Callable[[], None]) -> None:
        """Remember one change and how to take it back."""
        self.names.append(name)
        self._ways_back.append(way_back)

    def __call__(self) -> None:
        while self._ways_back:
            self._ways_back.pop()()

    def __enter__(self) -> Undo:
        return self

    def __exit__(self, *_: object) -> None:
        self()

    def __repr__(self) -> str:
        return f"<undo of {', '.join(self.names) or 'nothing'}>"


def classes() -> dict[str, type[Any]]:
    """Our classes by the name that they share with the stock class."""
    import fastsample.integrations.diffusers as ours

    found = {name: getattr(ours, name) for name in ours.__all__}
    return {name: cls for name, cls in found.items() if isinstance(cls, type) and issubclass(cls, Fused)}


def stock_class(cls: type[Any]) -> type[Any]:
    """The class of diffusers that one of ours replaces."""
    return next(base for base in cls.__mro__[1:] if base.__name__ == cls.__name__)


def accelerate(pipe: Any, *, mode: str = "strict", noise: str = "torch", seed: int | None = None) -> Undo:
    """Replace the schedulers of a diffusers pipeline by ours, in place; the result takes it back.

    ``pipe``: a ``DiffusionPipeline``, or any object with schedulers as attributes (a policy, for example).  Every
    attribute whose class is a stock class that we have is replaced, second schedulers and those of pipelines inside the
    pipeline included.  The new scheduler has the configuration of the old one and stands where it stood, also in the
    middle of a run.  Pipelines saved meanwhile load without this package.  Where the module of the pipeline's class has
    a ``rescale_noise_cfg``, the fused one takes its place, for all pipelines of that module.
    ``mode``, ``noise``, ``seed``: see ``Fused.use``.  A scheduler that is ours already only gets these.

    Returns an ``Undo``: call it, or use it in a ``with`` statement.  Raises ``ValueError`` if there is nothing to
    replace, and for an unknown mode or kind of noise.
    """
    undo = Undo()
    try:
        _accelerate(pipe, undo, {"mode": mode, "noise": noise, "seed": seed}, set())
    except BaseException:
        undo()
        raise
    if not undo.names:
        kinds = sorted({type(value).__name__ for value in _parts(pipe).values() if hasattr(value, "set_timesteps")})
        raise ValueError(
            f"pipe: got {type(pipe).__name__} with {', '.join(kinds) or 'no scheduler'}; "
            f"schedulers that can be replaced are {', '.join(classes())}"
        )
    return undo


def _parts(pipe: Any) -> dict[str, Any]:
    return dict(getattr(pipe, "__dict__", {}))


def _accelerate(pipe: Any, undo: Undo, choice: dict[str, Any], seen: set[int]) -> None:
    seen.add(id(pipe))
    known = {stock_class(cls): cls for cls in classes().values()}
    for name, value in _parts(pipe).items():
        if isinstance(value, Fused):
            undo.add(name, _recall(value))
            value.use(**choice)
        elif type(value) in known:
            _swap(pipe, name, fused(value, known[type(value)]).use(**choice), undo)
        elif isinstance(value, diffusers.DiffusionPipeline) and id(value) not in seen:
            _accelerate(value, undo, choice, seen)
    if isinstance(pipe, diffusers.DiffusionPipeline):
        for path in dict.fromkeys(cls.__module__ for cls in type(pipe).__mro__):
            _fuse_rescale(path, undo)


_RESCALE = "rescale_noise_cfg"
_users: dict[str, tuple[Any, int]] = {}  # module -> its own function, and how many pipelines hold the fused one there


def _fuse_rescale(path: str, undo: Undo) -> None:
    module = sys.modules.get(path)
    if not hasattr(module, _RESCALE):
        return
    stock, users = _users.get(path, (getattr(module, _RESCALE), 0))
    _users[path] = stock, users + 1
    setattr(module, _RESCALE, rescale_noise_cfg)

    def back() -> None:
        stock, users = _users.pop(path)
        if users > 1:
            _users[path] = stock, users - 1
        else:
            setattr(module, _RESCALE, stock)

    undo.add(f"{path}.{_RESCALE}", back)


def _recall(scheduler: Fused) -> Callable[[], None]:
    before = (scheduler.mode, scheduler.noise, scheduler.seed)

    def back() -> None:
        scheduler.use(mode=before[0], noise=before[1])
        scheduler.seed = before[2]

    return back


def fused(scheduler: Any, cls: type[Any]) -> Any:
    """Our scheduler with the configuration and the state of a stock one."""
    made = cls.from_config(scheduler.config)
    for name, value in vars(scheduler).items():
        if name != "_internal_dict":  # histories are lists that both would append to
            made.__dict__[name] = copy.copy(value) if isinstance(value, (list, dict)) else value
    if getattr(made, "num_inference_steps", None) is not None:
        made._rows()
    return made


def _swap(pipe: Any, name: str, scheduler: Any, undo: Undo) -> None:
    before = getattr(pipe, name)
    entry = _entry(pipe, name)
    setattr(pipe, name, scheduler)
    if entry is not None:
        pipe.register_to_config(**{name: ("diffusers", type(scheduler).__name__)})

    def back() -> None:
        if getattr(pipe, name, None) is scheduler:  # else the caller has put another one there
            setattr(pipe, name, before)
            if entry is not None:
                pipe.register_to_config(**{name: entry})

    undo.add(name, back)


def _entry(pipe: Any, name: str) -> Any:
    config = pipe.config if isinstance(pipe, diffusers.DiffusionPipeline) else {}  # type: ignore[attr-defined]
    return config.get(name)


def patch_diffusers(*, mode: str = "strict", noise: str = "torch", seed: int | None = None) -> Undo:
    """Replace the scheduler classes of diffusers by ours for everything that is built from now on.

    ``diffusers.X`` and ``diffusers.schedulers.X`` become our ``X``, so that ``from_pretrained`` of a pipeline, and
    ``from diffusers import X`` after this call, find ours.  Call it first: schedulers built and names imported before
    stay what they were.  Pipelines saved meanwhile load without this package.
    ``mode``, ``noise``, ``seed``: what new schedulers start with; see ``Fused.use``.

    Returns an ``Undo``: call it, or use it in a ``with`` statement.  Raises ``ValueError`` for an unknown mode or kind
    of noise.
    """
    undo = Undo()
    undo.add("names imported meanwhile", _put_stock_back)  # the last thing to be taken back
    choice = Fused().use(mode=mode, noise=noise, seed=seed)
    _replace(Fused, "_defaults", {"mode": choice.mode, "noise": choice.noise, "seed": choice.seed}, undo)
    for name, cls in classes().items():
        stock = stock_class(cls)
        _replace(diffusers, name, cls, undo)
        _replace(diffusers.schedulers, name, cls, undo)
        for module in (sys.modules.get(path) for path in _BUILDERS):
            if module is not None and getattr(module, name, None) is stock:
                _replace(module, name, cls, undo)
    pipeline_utils: Any = importlib.import_module("diffusers.pipelines.pipeline_utils")
    named = pipeline_utils._fetch_class_library_tuple

    def library_and_class(module: Any) -> tuple[str, str]:
        library, name = named(module)
        return ("diffusers" if isinstance(module, Fused) else library), name

    _replace(pipeline_utils, "_fetch_class_library_tuple", library_and_class, undo)
    return undo


def _put_stock_back() -> None:
    """Modules of diffusers that were imported under the patch took our names from it."""
    for path, module in list(sys.modules.items()):
        if path.startswith("diffusers."):
            for name, cls in classes().items():
                if vars(module).get(name) is cls:
                    setattr(module, name, stock_class(cls))


def _replace(owner: Any, name: str, value: Any, undo: Undo) -> None:
    before = getattr(owner, name)
    setattr(owner, name, value)
    undo.add(f"{owner.__name__}.{name}", lambda: setattr(owner, name, before))
