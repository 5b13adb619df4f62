"""Drop-in schedulers for diffusers: the stock classes under their own names, one fused launch per step."""

from .ddim import DDIMInverseScheduler, DDIMScheduler, DDPMScheduler
from .dpm import DEISMultistepScheduler, DPMSolverMultistepScheduler, EDMDPMSolverMultistepScheduler
from .euler import (
    EDMEulerScheduler,
    EulerAncestralDiscreteScheduler,
    EulerDiscreteScheduler,
    FlowMatchEulerDiscreteScheduler,
)
from .few_step import CMStochasticIterativeScheduler, LCMScheduler, TCDScheduler
from .flow_heun import FlowMatchHeunDiscreteScheduler
from .lms import LMSDiscreteScheduler
from .pndm import PNDMScheduler
from .sasolver import SASolverScheduler
from .singlestep import DPMSolverSinglestepScheduler
from .two_stage import (
    DPMSolverSDEScheduler,
    HeunDiscreteScheduler,
    KDPM2AncestralDiscreteScheduler,
    KDPM2DiscreteScheduler,
)
from .unipc import UniPCMultistepScheduler

__all__ = [
    "CMStochasticIterativeScheduler",
    "DDIMInverseScheduler",
    "DDIMScheduler",
    "DDPMScheduler",
    "DEISMultistepScheduler",
    "DPMSolverMultistepScheduler",
    "DPMSolverSDEScheduler",
    "DPMSolverSinglestepScheduler",
    "EDMDPMSolverMultistepScheduler",
    "EDMEulerScheduler",
    "EulerAncestralDiscreteScheduler",
    "EulerDiscreteScheduler",
    "FlowMatchEulerDiscreteScheduler",
    "FlowMatchHeunDiscreteScheduler",
    "HeunDiscreteScheduler",
    "KDPM2AncestralDiscreteScheduler",
    "KDPM2DiscreteScheduler",
    "LCMScheduler",
    "LMSDiscreteScheduler",
    "PNDMScheduler",
    "SASolverScheduler",
    "TCDScheduler",
    "UniPCMultistepScheduler",
]
