"""What every drop-in scheduler shares: modes, noise, positions of times, the rows of its run."""

from __future__ import annotations

from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, ClassVar, TypeVar

import torch
from torch import Tensor

from fastsample import noise as noise_module
from fastsample.profiling.ranges import follow

from .draws import Generators as Generators
from .draws import Pending, draw, pend
from .engine import PREDICTIONS, Recipe, Rows, apply, rows_for
from .spare import Spare

MODES = ("strict", "exact")
NOISES = ("torch", "counter")
_LONG = 500  # steps
Self = TypeVar("Self", bound="Fused")


@dataclass(frozen=True)
class Grid:
    """All that the rows of a run depend on: a snapshot, so that rows can be made later and shared."""

    config: Mapping[str, Any]
    mode: str
    times: tuple[float, ...]
    sigmas: tuple[float, ...]
    extra: Any = None
    memo: dict[Any, Any] = field(default_factory=dict, compare=False)  # what several rows share

    @property
    def exact(self) -> bool:
        return self.mode == "exact"

    def prediction(self, owner: str, allowed: Sequence[str] = ("epsilon", "sample", "v_prediction")) -> str:
        """Our name of ``prediction_type``; the error is that of diffusers."""
        name = self.config["prediction_type"]
        if name not in allowed:
            raise ValueError(f"prediction_type given as {name} must be one of {', '.join(allowed)} for {owner}")
        return PREDICTIONS[name]

    def limit(self) -> float | None:
        """Limit of x0_hat: 1 under thresholding, where the scale is found per sample."""
        if self.config.get("thresholding"):
            return 1.0
        return float(self.config["clip_sample_range"]) if self.config.get("clip_sample") else None

    def threshold(self) -> tuple[float, float, float] | None:
        """Ratio, floor and ceiling of dynamic thresholding."""
        if not self.config.get("thresholding"):
            return None
        return float(self.config["dynamic_thresholding_ratio"]), 1.0, float(self.config["sample_max_value"])


class Fused:
    """Mixin before a scheduler class of diffusers: its grid, its attributes, its results; one fused launch per step.

    ``mode``: ``"strict"`` gives the numbers and quirks of diffusers, ``"exact"`` mends its known defects.  ``noise``:
    ``"torch"`` draws what diffusers draws from the same generator, ``"counter"`` uses fastsample's noise, which does
    not depend on batch size, device or number of steps already taken.  Change both with ``use``.
    """

    mode: str
    noise: str
    seed: int | None
    timesteps: Any
    _defaults: ClassVar[dict[str, Any]] = {"mode": "strict", "noise": "torch", "seed": None}
    _bound: tuple[Any, Any, Rows] | None = None  # sigmas, timesteps and the rows that belong to them
    _times: tuple[float, ...] = ()
    _levels: tuple[float, ...] = ()  # the sigmas as floats
    _keys: tuple[Any, Tensor] | None = None
    _spare: Spare

    def __init_subclass__(cls, **options: Any) -> None:
        super().__init_subclass__(**options)
        writer = next((parent for parent in cls.__mro__ if "step" in parent.__dict__), None)
        if writer is cls or (writer is not None and not issubclass(writer, Fused)):  # PNDM has that of diffusers
            follow(cls, "step", "update")

    if TYPE_CHECKING:  # the attributes of the class of diffusers beside it

        def __getattr__(self, name: str) -> Any: ...

        def set_timesteps(self, *args: Any, **kwargs: Any) -> None: ...

    def __new__(cls: type[Self], *_: Any, **__: Any) -> Self:
        made = super().__new__(cls)
        made.__dict__.update(Fused._defaults, _spare=Spare())
        return made

    def use(self: Self, *, mode: str | None = None, noise: str | None = None, seed: int | None = None) -> Self:
        """Choose ``mode``, ``noise`` and the ``seed`` of counter noise (default: the first seed of the caller's
        generator, or in every run a new one from torch's global generator).  Call before ``set_timesteps``.
        Raises ``ValueError`` for another name."""
        for name, value, allowed in (("mode", mode, MODES), ("noise", noise, NOISES)):
            if value is not None and value not in allowed:
                raise ValueError(f"{name}: got {value!r}, allowed are {', '.join(allowed)}")
        if seed is not None and (not isinstance(seed, int) or isinstance(seed, bool) or seed < 0):
            raise ValueError(f"seed: got {seed!r}, allowed are whole numbers >= 0")
        self.mode = mode or self.mode
        self.noise = noise or self.noise
        self.seed = self.seed if seed is None else seed
        self._bound = self._keys = None
        self._spare.clear()
        return self

    # --- rows

    def _grid(self) -> Grid:
        config = {k: v for k, v in self.config.items() if not k.startswith("_")}
        sigmas = self.__dict__.get("sigmas")
        return Grid(
            config=config,
            mode=self.mode,
            times=tuple(self.timesteps.tolist()),
            sigmas=() if sigmas is None else tuple(sigmas.tolist()),
            extra=self._extra(),
        )

    def _extra(self) -> Hashable:
        """What the rows depend on beside config, times and sigmas."""
        return None

    def _first_keys(self, grid: Grid) -> Sequence[Hashable]:
        """Keys of the rows of a run from the first step on."""
        return range(len(grid.times))

    def _places(self) -> Sequence[int]:
        """What the steps of a run are called in keys."""
        return range(len(self._times))

    def _family(self, key: Any) -> Sequence[Hashable]:
        """Keys that a run which asks for ``key`` will ask for too: new options of ``step`` cost one copy, not many."""
        return [(place, *key[1:]) for place in self._places()] if isinstance(key, tuple) else self._places()

    @staticmethod
    def _recipe(grid: Grid, key: Any) -> Recipe:
        """The row of one step."""
        raise NotImplementedError

    def _rows(self, grid: Grid | None = None) -> Rows:
        bound = self._bound
        sigmas, times = self.__dict__.get("sigmas"), self.__dict__["timesteps"]
        if bound is not None and bound[0] is sigmas and bound[1] is times:
            return bound[2]
        grid = grid or self._grid()
        words = tuple(sorted((k, repr(v)) for k, v in grid.config.items()))
        signature = (type(self), self.mode, words, grid.times, grid.sigmas, grid.extra)
        recipe = type(self)._recipe
        rows = rows_for(signature, lambda key: recipe(grid, key))
        self._bound, self._times, self._levels = (sigmas, times, rows), grid.times, grid.sigmas
        return rows

    def _begin_run(self, device: Any = None) -> None:
        """Call at the end of ``set_timesteps``: all rows of a run are made and on the device before its first step."""
        self._bound = None
        if self.seed is None:
            self._keys = None
        if self.mode == "exact" and self.config.get("use_flow_sigmas"):  # diffusers cuts these times to whole numbers
            self.timesteps = (self.sigmas[:-1] * self.config.num_train_timesteps).to(self.timesteps.device)
        grid = self._grid()
        rows = self._rows(grid)
        if len(grid.times) >= max(_LONG, self.config.num_train_timesteps):
            return  # constructors of diffusers set this grid, mostly for nothing: its rows wait until they are needed
        device = torch.device("cpu") if device is None else torch.device(device)
        if device.type == "cuda" and device.index is None:
            device = torch.device("cuda", torch.cuda.current_device())
        rows.prepare(self._first_keys(grid), device)

    def _take(
        self,
        key: Hashable,
        sample: Tensor,
        model_output: Tensor,
        dtypes: Sequence[torch.dtype],
        memory: Sequence[Tensor] = (),
        noise: Tensor | Pending | None = None,
        counter: Tensor | None = None,
    ) -> list[Tensor]:
        """One launch: the outputs of row ``key``."""
        bound, own = self._bound, self.__dict__
        if bound is None or bound[0] is not own.get("sigmas") or bound[1] is not own["timesteps"]:
            self._rows()
            bound = self._bound
        found = bound[2].find(key, sample.device, self._family)  # type: ignore[index]
        return apply(found, [sample, model_output, *memory], dtypes, noise, counter, self._spare)

    # --- noise

    def _draw(self, like: Tensor, generator: Generators, dtype: torch.dtype) -> tuple[Tensor | None, Tensor | None]:
        """``(noise, None)`` as diffusers draws it, or ``(None, keys)`` for the kernel's own noise."""
        if self.noise == "counter":
            return None, self._counter(like, generator)
        return draw(like, generator, dtype, self._spare), None

    def _pend(self, like: Tensor, generator: Generators, dtype: torch.dtype) -> tuple[Any, Tensor | None]:
        """``_draw``, but the noise may be a ``Pending`` that ``_take``, which must follow, draws."""
        if self.noise == "counter":
            return None, self._counter(like, generator)
        return pend(like, generator, dtype, self._spare), None

    def _counter(self, like: Tensor, generator: Generators) -> Tensor:
        made_for = (like.shape[0], like.device, generator if not isinstance(generator, list) else tuple(generator))
        if self._keys is None or self._keys[0] != made_for:
            if self.seed is not None or generator is None:
                seed = int(torch.randint(2**62, (), dtype=torch.int64)) if self.seed is None else self.seed
                keys = noise_module.keys(seed, len(like), device=like.device)
            elif isinstance(generator, list):
                seeds = [g.initial_seed() for g in generator] * (len(like) if len(generator) == 1 else 1)
                keys = noise_module.keys(seeds, len(like), device=like.device)
            else:
                keys = noise_module.keys(generator.initial_seed(), len(like), device=like.device)
            self._keys = (made_for, keys)
        return self._keys[1]

    # --- times

    def _time(self, timestep: Any) -> float:
        """The value of a time, read from the device only if it is not an entry of ``timesteps``."""
        if isinstance(timestep, Tensor):
            if timestep.device.type != "cpu":
                position = self._position(timestep)
                if position is not None:
                    return self._times[position]
            return timestep.item()
        return timestep  # type: ignore[no-any-return]

    def _position(self, timestep: Tensor) -> int | None:
        """Place of a time in ``timesteps`` if it is a view of an entry: its address says it, nothing is read."""
        times = self.timesteps
        self._rows()
        if timestep.dtype != times.dtype or timestep.numel() != 1:
            return None
        if timestep.untyped_storage()._cdata != times.untyped_storage()._cdata:
            return None
        place = int(timestep.storage_offset() - times.storage_offset())
        return place if 0 <= place < len(self._times) else None

    def _init_step_index(self, timestep: Any) -> None:
        if self.begin_index is None:
            self._rows()
            if self.mode == "exact" and isinstance(timestep, Tensor):
                position = self._position(timestep)
                if position is not None:  # which of several equal times is meant is known
                    self._step_index = position
                    return
            value = self._time(timestep)
            found = [i for i, t in enumerate(self._times) if t == value]
            if not found:  # diffusers' own answer, which depends on the class
                super()._init_step_index(timestep)  # type: ignore[misc]
                if self.mode == "exact":
                    raise ValueError(f"timestep: got {value}, which is not one of the scheduler's timesteps")
                return
            self._step_index = found[1] if len(found) > 1 else found[0]
        else:
            self._step_index = self._begin_index

    # --- copies

    def __getstate__(self) -> dict[str, Any]:
        state = dict(self.__dict__)
        for name in ("_bound", "_keys", "_spare"):  # device tables are made again, memory is each scheduler's own
            state.pop(name, None)
        return state
