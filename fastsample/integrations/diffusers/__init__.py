"""Drop-in schedulers for diffusers: the stock classes under their own names, one fused launch per step."""

from .ddim import DDIMInverseScheduler, DDIMScheduler, DDPMScheduler
from .dpm import DEISMultistepScheduler, DPMSolverMultistepScheduler, EDMDPMSolverMultistepScheduler
from .euler import (
    EDMEulerScheduler,
    EulerAncestralDiscreteScheduler,
    EulerDiscreteScheduler,
    FlowMatchEulerDiscreteScheduler,
)
from .sasolver import SASolverScheduler
from .unipc import UniPCMultistepScheduler

__all__ = [
    "DDIMInverseScheduler",
    "DDIMScheduler",
    "DDPMScheduler",
    "DEISMultistepScheduler",
    "DPMSolverMultistepScheduler",
    "EDMDPMSolverMultistepScheduler",
    "EDMEulerScheduler",
    "EulerAncestralDiscreteScheduler",
    "EulerDiscreteScheduler",
    "FlowMatchEulerDiscreteScheduler",
    "SASolverScheduler",
    "UniPCMultistepScheduler",
]
