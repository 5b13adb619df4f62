"""Registration in ComfyUI: named samplers, a SAMPLER node, and the fused functions in the place of its own."""

from __future__ import annotations

import functools
import json
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from fastsample.integrations import k_diffusion
from fastsample.solvers import registry

PREFIX = "fastsample_"
# name after the prefix -> function; those of k-diffusion, and further solvers that people use
MORE: dict[str, dict[str, Any]] = {
    "ddim": {"solver": "ddim"},
    "unipc": {"solver": "unipc"},
    "sa_solver": {"solver": "sa"},
    "deis": {"solver": "deis"},
    "ipndm": {"solver": "ipndm"},
    "lcm": {"solver": "euler", "renoise": True},
}
SDE = ("dpmpp_sde", "dpmpp_2m_sde", "dpmpp_3m_sde")  # ComfyUI gives them a first level below 1 in a flow
STOCHASTIC = (*SDE, "euler_ancestral", "dpm_2_ancestral", "dpmpp_2s_ancestral")


def is_flow(model: Any) -> bool:
    """Whether sigma is the time of a rectified flow for the model that ComfyUI hands to a sampler."""
    sampling = _sampling(model)
    return any(cls.__name__ == "CONST" for cls in type(sampling).__mro__)


def _sampling(model: Any) -> Any:
    for path in (("inner_model", "model_patcher"), ("inner_model", "inner_model")):
        found = model
        for name in path:
            found = getattr(found, name, None)
        if hasattr(found, "get_model_object"):
            return found.get_model_object("model_sampling")
        if hasattr(found, "model_sampling"):
            return found.model_sampling
    return None


def adapt(solver: str, **fixed: Any) -> Callable[..., Tensor]:
    """A sampler function of any solver that knows flow models from others."""
    plain = k_diffusion.sampler(solver, **fixed)
    flow = k_diffusion.sampler(solver, flow=True, **fixed)

    def sample(model: Any, x: Tensor, sigmas: Tensor, *arguments: Any, **options: Any) -> Tensor:
        return (flow if is_flow(model) else plain)(model, x, sigmas, *arguments, **options)

    return sample


def _named() -> dict[str, Callable[..., Tensor]]:
    functions = {name.removeprefix("sample_"): value for name, value in k_diffusion.SAMPLERS.items()}
    for name, fixed in MORE.items():
        functions[name] = adapt(**fixed)
    return functions


def register() -> list[str]:
    """Add ``fastsample_NAME`` to ComfyUI's samplers; returns the names.  Calling it again changes nothing."""
    import comfy.k_diffusion.sampling as sampling  # type: ignore[import-not-found,unused-ignore]
    import comfy.samplers as samplers  # type: ignore[import-not-found,unused-ignore]

    names: list[str] = samplers.KSampler.SAMPLERS
    place = names.index("uni_pc_bh2") + 1 if "uni_pc_bh2" in names else len(names)
    added: list[str] = []
    for name, function in _named().items():
        setattr(sampling, f"sample_{PREFIX}{name}", function)
        if PREFIX + name not in names:
            names.insert(place + len(added), PREFIX + name)
        added.append(PREFIX + name)
        if name.startswith("dpm_2") and hasattr(samplers.KSampler, "DISCARD_PENULTIMATE_SIGMA_SAMPLERS"):
            samplers.KSampler.DISCARD_PENULTIMATE_SIGMA_SAMPLERS.add(PREFIX + name)
    return added


def replace() -> Callable[[], None]:
    """Put the fused functions in the place of ComfyUI's of the same names; returns an undo.

    ComfyUI's own function still runs for stochastic samplers on flow models, where its formulas are others.
    """
    import comfy.k_diffusion.sampling as sampling

    undo = k_diffusion.patch(sampling)
    for name in STOCHASTIC:
        ours = getattr(sampling, f"sample_{name}", None)
        theirs = getattr(ours, "__wrapped__", None)
        if ours is not None and theirs is not None:
            setattr(sampling, f"sample_{name}", _by_model(ours, theirs))
    return undo


def _by_model(ours: Callable[..., Tensor], theirs: Callable[..., Tensor]) -> Callable[..., Tensor]:
    @functools.wraps(theirs)
    def sample(model: Any, *arguments: Any, **options: Any) -> Tensor:
        return (theirs if is_flow(model) else ours)(model, *arguments, **options)

    return sample


class FastSampleSampler:
    """A SAMPLER of any solver; options as JSON, such as {"eta": 0.5}."""

    CATEGORY = "sampling/custom_sampling/samplers"
    RETURN_TYPES = ("SAMPLER",)
    FUNCTION = "get_sampler"

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:
        """What the node shows."""
        return {
            "required": {
                "solver": (list(registry.names("")), {"default": "dpmpp-2m"}),
                "options": ("STRING", {"default": "{}", "multiline": False}),
                "noise": (["torch", "brownian"], {"default": "brownian"}),
            }
        }

    def get_sampler(self, solver: str, options: str, noise: str) -> tuple[Any]:
        """The SAMPLER.  Raises ``ValueError`` for options that are no JSON object or that the solver does not have."""
        import comfy.samplers as samplers

        try:
            chosen = json.loads(options or "{}")
        except json.JSONDecodeError as error:
            raise ValueError(f'options: got {options!r}, need JSON such as {{"eta": 0.5}} ({error})') from None
        if not isinstance(chosen, dict):
            raise ValueError(f'options: got {options!r}, need a JSON object such as {{"eta": 0.5}}')
        function = adapt(solver, **chosen)

        @torch.no_grad()
        def sample(model: Any, x: Tensor, sigmas: Tensor, extra_args: Any = None, **rest: Any) -> Tensor:
            if noise == "brownian" and registry.find(solver).stochastic and len(sigmas) > 1:
                rest.setdefault("noise_sampler", k_diffusion.tree(x, sigmas, extra_args))
            return function(model, x, sigmas, extra_args, **rest)

        return (samplers.KSAMPLER(sample),)


NODE_CLASS_MAPPINGS = {"FastSampleSampler": FastSampleSampler}
NODE_DISPLAY_NAME_MAPPINGS = {"FastSampleSampler": "FastSample sampler"}
