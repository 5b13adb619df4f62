"""fastsample: training-free diffusion and flow samplers as tables of numbers, applied by one fused update.

``import fastsample`` loads nothing heavy and never compiles: names are found on first use.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"

# public name -> module that defines it
_HOME = {
    "sample": "loop",
    "StepInfo": "loop",
    "StopSampling": "loop",
    "Loop": "traced",
    "StepLoop": "step_loop",
    "make_plan": "plan",
    "Plan": "plan",
    "make_path": "grids",
    "Path": "path",
    "Ladder": "models.ladder",
    "PhaseSpace": "solvers.phase.process",
    "Network": "models.network",
    "GaussianMixture": "models.mixture",
    "load_model": "models.loading",
    "update": "ops",
    "update_": "ops",
    "use_backend": "ops",
    "BackendError": "ops",
    "CaptureError": "errors",
    "capture": "graph",
    "keys": "noise",
    "accelerate": "integrations.diffusers.swap",
    "patch_diffusers": "integrations.diffusers.swap",
}
_MODULES = (
    "few_step",
    "graph",
    "grids",
    "langevin",
    "metrics",
    "models",
    "noise",
    "ops",
    "plan",
    "profiling",
    "schedules",
    "solvers",
)

# names that need another library do not come with a star
__all__ = ["__version__", *(name for name, home in _HOME.items() if not home.startswith("integrations"))]

if TYPE_CHECKING:
    from .errors import CaptureError as CaptureError
    from .graph import capture as capture
    from .grids import make_path as make_path
    from .integrations.diffusers.swap import accelerate as accelerate
    from .integrations.diffusers.swap import patch_diffusers as patch_diffusers
    from .loop import StepInfo as StepInfo
    from .loop import StopSampling as StopSampling
    from .loop import sample as sample
    from .models.ladder import Ladder as Ladder
    from .models.loading import load_model as load_model
    from .models.mixture import GaussianMixture as GaussianMixture
    from .models.network import Network as Network
    from .noise import keys as keys
    from .ops import BackendError as BackendError
    from .ops import update_ as update_
    from .ops import use_backend as use_backend
    from .path import Path as Path
    from .plan import Plan as Plan
    from .plan import make_plan as make_plan
    from .solvers.phase.process import PhaseSpace as PhaseSpace
    from .step_loop import StepLoop as StepLoop
    from .traced import Loop as Loop


def __getattr__(name: str) -> Any:
    if name in _HOME:
        value = getattr(importlib.import_module(f".{_HOME[name]}", __name__), name)
    elif name in _MODULES:
        value = importlib.import_module(f".{name}", __name__)
    else:
        raise AttributeError(f"module 'fastsample' has no attribute {name!r}")
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *_HOME, *_MODULES})
