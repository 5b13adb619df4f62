"""Drop-in schedulers for diffusers: the stock classes under their own names, one fused launch per step."""

from diffusers.utils.import_utils import is_scipy_available, is_torchsde_available

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
from .pndm import PNDMScheduler
from .sasolver import SASolverScheduler
from .singlestep import DPMSolverSinglestepScheduler
from .two_stage import HeunDiscreteScheduler, KDPM2AncestralDiscreteScheduler, KDPM2DiscreteScheduler
from .unipc import UniPCMultistepScheduler

if is_torchsde_available():  # type: ignore[no-untyped-call]
    from .dpm_sde import DPMSolverSDEScheduler
else:  # raises the ImportError of diffusers when it is used
    from diffusers import DPMSolverSDEScheduler  # type: ignore[assignment]
if is_scipy_available():  # type: ignore[no-untyped-call]
    from .lms import LMSDiscreteScheduler
else:
    from diffusers import LMSDiscreteScheduler  # type: ignore[assignment]

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
