"""What a sampler must know of a network: its prediction, its time, the scale of its input, its branches."""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from types import FunctionType
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

if TYPE_CHECKING:
    from ..solvers.phase.process import PhaseSpace

PREDICTIONS = ("eps", "x0", "v", "score", "flow", "edm")
TIMES = ("t", "log-snr", "sigma", "log-sigma", "index")
INPUT_SCALINGS = ("none", "vp", "edm")

Output = Tensor | tuple[Tensor, Tensor]
Predictor = Callable[[Tensor, Tensor], Output]
Energy = Callable[[Tensor, Tensor], Tensor]


# What is handed to a network is made outside of inference mode: torch.compile tells inference tensors from others, and
# would compile once more.


class Network:
    """A callable ``fn(x, t)`` or ``fn(x, t, cond)`` with the facts that a plan is made from.

    Args:
        fn: the network. ``x`` is ``(B, ...)``; ``t`` is ``(B,)`` float32 (float64 for float64 states) on the device of
            ``x``; it returns one prediction per element, in any floating dtype.
        prediction: ``"eps"`` (noise), ``"x0"`` (data), ``"v"`` (alpha eps - sigma x0), ``"score"`` (-eps / sigma,
            of the unscaled state), ``"flow"`` (eps - x0), ``"edm"`` (the raw output of Karras et al. 2022,
            arXiv 2206.00364).
        time: what ``t`` means: ``"t"`` (the schedule's own time), ``"log-snr"`` (log(alpha / sigma)), ``"sigma"``
            (sigma / alpha), ``"log-sigma"`` (a quarter of its logarithm) or ``"index"`` (row of a discrete schedule).
        input_scaling: ``"none"`` (fed the state), ``"vp"`` (fed the state over sqrt(alpha^2 + sigma^2), and predicts
            for that) or ``"edm"`` (fed c_in times the state).
        dtype: what the network computes in. None: it takes states as they come.
        shape: of one sample, for those who ask for a number of samples only.
        classes, null_class: number of class labels, and the label that means "no class".
        schedule: name of the schedule that it was trained on, used when the caller gives none.
        one_batch: run the branches of guidance as one call on twice the batch, where their conditions allow it; else as
            two calls.
        space: the process of a phase-space network, a `PhaseSpace`: it is fed position and momentum ``(B, 2 C, ...)``
            of data ``(B, C, ...)`` and predicts for both. None: any other network.
        exact: ``exact(number, seed)`` draws samples ``(number, ...)`` of the law that the network stands for, where
            that can be done; reports then tell the distance to it.
        energy: ``energy(x, t)`` or ``energy(x, t, cond)``: -log of the density at the level of ``t``, ``(B,)``, up to a
            constant of the level, at points that the network is asked at (its scaled input, in the dtype of the state).
            Samplers with an accept step then need no estimate of it.
        width: the smallest standard deviation of the data in any direction, or less; 0 if nothing is known. Step sizes
            of samplers that run Markov chains are measured in it.
        name: for reports.

    Raises:
        TypeError: ``fn`` or ``energy`` is not callable.
        ValueError: a word that is not among those above, a width below 0.
    """

    def __init__(
        self,
        fn: Callable[..., Any],
        prediction: str = "eps",
        time: str = "t",
        input_scaling: str = "none",
        *,
        dtype: torch.dtype | None = None,
        shape: Sequence[int] | None = None,
        classes: int | None = None,
        null_class: int | None = None,
        schedule: Any = None,
        one_batch: bool = True,
        exact: Callable[[int, int], Tensor] | None = None,
        space: PhaseSpace | None = None,
        energy: Callable[..., Tensor] | None = None,
        width: float | None = None,
        name: str | None = None,
    ) -> None:
        if not callable(fn):
            raise TypeError(f"model: got {type(fn).__name__}, need a callable model(x, t)")
        if energy is not None and not callable(energy):
            raise TypeError(f"energy: got {type(energy).__name__}, need a callable energy(x, t)")
        if width is not None and not 0 <= width < float("inf"):
            raise ValueError(f"width: got {width!r}, allowed are numbers >= 0")
        for argument, value, allowed in (
            ("prediction", prediction, PREDICTIONS),
            ("time", time, TIMES),
            ("input_scaling", input_scaling, INPUT_SCALINGS),
        ):
            if value not in allowed:
                raise ValueError(f"{argument}: got {value!r}, allowed are {', '.join(allowed)}")
        self.fn = fn
        self.prediction, self.time, self.input_scaling = prediction, time, input_scaling
        self.dtype, self.shape = dtype, None if shape is None else tuple(shape)
        self.classes, self.null_class = classes, null_class
        if space is not None:
            from ..solvers.phase.process import PhaseSpace

            if not isinstance(space, PhaseSpace):
                raise TypeError(f"space: got {type(space).__name__}, allowed are None and a PhaseSpace")
        self.schedule, self.one_batch, self.exact, self.space = schedule, one_batch, exact, space
        self.energy, self.width = energy, width
        plain = uncompiled(fn)
        self.name = name or getattr(plain, "__name__", type(plain).__name__)

    @property
    def device(self) -> torch.device | None:
        """Device of the first parameter, if the network is a module with parameters."""
        fn = uncompiled(self.fn)
        if isinstance(fn, torch.nn.Module):
            return next((p.device for p in fn.parameters()), None)
        return None

    def __call__(self, x: Tensor, t: Tensor, cond: Any = None) -> Any:
        """One call: the raw output."""
        if self.dtype is not None and x.dtype != self.dtype:
            x = x.to(self.dtype)
        return self.fn(x, t) if cond is None else self.fn(x, t, cond)

    def wrapped(self, wrap: Callable[[Callable[..., Any]], Callable[..., Any]]) -> Network:
        """The same network with ``wrap(fn)`` in the place of ``fn``."""
        other = copy.copy(self)
        other.fn = wrap(self.fn)
        return other

    def given(self, cond: Any) -> Predictor:
        """The network of one branch as ``predict(x, t)``."""
        if cond is None and self.dtype is None:
            return self.fn
        return lambda x, t: self(x, t, cond)

    def condition(self, cond: Any, x: Tensor) -> Any:
        """The condition of a run without guidance: if none is given, that of no class, where there is one."""
        if cond is None and self.null_class is not None:
            with torch.inference_mode(False):
                return torch.full((x.shape[0],), self.null_class, dtype=torch.int64, device=x.device)
        return cond

    def energy_given(self, cond: Any) -> Energy | None:
        """The energy of one branch as ``energy(x, t)``; None if the network has none."""
        energy = self.energy
        return energy if energy is None or cond is None else lambda x, t: energy(x, t, cond)

    def guided(self, cond: Any, uncond: Any) -> Predictor:
        """The network of both branches as ``predict(x, t) -> (conditional, unconditional)``."""
        with torch.inference_mode(False):
            double = _join(cond, uncond) if self.one_batch else None
        if double is None:
            return lambda x, t: (self(x, t, cond), self(x, t, uncond))
        buffers: list[Tensor] = []

        def predict(x: Tensor, t: Tensor) -> tuple[Tensor, Tensor]:
            if torch.is_grad_enabled():
                both, times = torch.cat([x, x]), torch.cat([t, t])
            else:  # two buffers per run, not two per step
                if not buffers:
                    with torch.inference_mode(False):
                        buffers.extend(torch.cat([one.detach(), one.detach()]) for one in (x, t))
                both, times = buffers
                for two, one in ((both, x), (times, t)):
                    two[: len(one)].copy_(one)
                    two[len(one) :].copy_(one)
            out = self(both, times, double)
            count = x.shape[0]  # torch.export takes len(x) for a constant
            if not isinstance(out, Tensor) or out.shape[0] != 2 * count:
                return out  # type: ignore[no-any-return]  # the loop says what is wrong with it
            return out[:count], out[count:]

        return predict


def as_network(
    model: Any, *, prediction: str | None = None, time: str | None = None, input_scaling: str | None = None
) -> Network:
    """A `Network` of anything that can be sampled.

    ``model``: a `Network`, an object with a method ``network()`` (such as `GaussianMixture`), or a callable
    ``model(x, t)`` whose attributes ``prediction``, ``time``, ``input_scaling``, ``schedule``, ``shape``, ``classes``,
    ``null_class``, ``space`` are used where they exist. The keyword arguments have the last word. What
    ``torch.compile`` made of any of these says what the original says.

    Raises:
        TypeError, ValueError: as `Network`.
    """
    if isinstance(model, Network) and prediction is None and time is None and input_scaling is None:
        return model
    plain = uncompiled(model)
    if plain is not model and isinstance(plain, Network):
        compiled, model = model, copy.copy(plain)
        model.fn = compiled
    if not isinstance(model, Network) and not callable(model) and callable(getattr(model, "network", None)):
        model = model.network() if prediction is None else model.network(prediction)
    said = {"prediction": prediction, "time": time, "input_scaling": input_scaling}

    def fact(name: str, kind: type | tuple[type, ...]) -> Any:
        value = getattr(model, name, getattr(plain, name, None))
        return value if isinstance(value, kind) and not isinstance(value, bool) else None

    words = {name: value if value is not None else fact(name, str) for name, value in said.items()}
    if isinstance(model, Network) and all(value == getattr(model, name) for name, value in words.items()):
        return model
    return Network(
        model.fn if isinstance(model, Network) else model,
        **{name: value for name, value in words.items() if value is not None},
        dtype=model.dtype if isinstance(model, Network) else None,
        shape=fact("shape", (tuple, list)),
        classes=fact("classes", int),
        null_class=fact("null_class", int),
        schedule=model.schedule if isinstance(model, Network) else fact("schedule", str),
        one_batch=model.one_batch if isinstance(model, Network) else True,
        exact=model.exact if isinstance(model, Network) else None,
        space=getattr(model, "space", None),
        energy=model.energy if isinstance(model, Network) else None,
        width=model.width if isinstance(model, Network) else None,
        name=fact("name", str),
    )


def uncompiled(model: Any) -> Any:
    """What a callable was before ``torch.compile``: a module, a `Network`, a function; anything else is returned."""
    plain, inner = model, None
    while True:
        if type(plain).__name__ == "OptimizedModule":
            inner = plain._orig_mod
        elif isinstance(plain, FunctionType):
            inner = getattr(plain, "_torchdynamo_orig_callable", None)
            if isinstance(inner, FunctionType):  # an object with __call__ is inlined in a function of torch's own
                inner = getattr(inner, "__wrapped__", inner)
        if inner is None:
            break
        plain, inner = inner, None
    owner = getattr(plain, "__self__", None)
    return owner if plain is not model and isinstance(owner, torch.nn.Module) else plain


def _join(cond: Any, uncond: Any) -> Any:
    """Both conditions as one of twice the batch; None if they are not alike."""
    if isinstance(cond, Tensor) and isinstance(uncond, Tensor):
        alike = cond.ndim > 0 and all(getattr(cond, a) == getattr(uncond, a) for a in ("shape", "dtype", "device"))
        return torch.cat([cond, uncond]) if alike else None
    if isinstance(cond, dict) and isinstance(uncond, dict) and cond.keys() == uncond.keys():
        joined = {name: _join(cond[name], uncond[name]) for name in cond}
        return None if any(value is None for value in joined.values()) else joined
    if isinstance(cond, (tuple, list)) and type(cond) is type(uncond) and len(cond) == len(uncond):
        parts = [_join(a, b) for a, b in zip(cond, uncond, strict=True)]
        if any(part is None for part in parts):
            return None
        return type(cond)(*parts) if hasattr(cond, "_fields") else type(cond)(parts)
    return None
