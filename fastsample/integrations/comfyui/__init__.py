"""ComfyUI custom nodes: copy or link this folder into ``ComfyUI/custom_nodes`` (fastsample itself must be installed).

It adds the samplers ``fastsample_NAME`` to every list of samplers, and the node "FastSample sampler", whose output goes
into SamplerCustom and takes any solver of fastsample with options.  ``FASTSAMPLE_COMFYUI=replace`` in the environment
puts the fused functions in the place of ComfyUI's own of the same names as well (``replace()`` does it by hand).
"""

from __future__ import annotations

import os

from fastsample.integrations.comfyui.nodes import (
    NODE_CLASS_MAPPINGS,
    NODE_DISPLAY_NAME_MAPPINGS,
    register,
    replace,
)

__all__ = ["NODE_CLASS_MAPPINGS", "NODE_DISPLAY_NAME_MAPPINGS", "register", "replace"]

register()
if os.environ.get("FASTSAMPLE_COMFYUI") == "replace":
    replace()
