"""Profiling: named ranges for Nsight and torch.profiler, and what ``fastsample profile`` makes of a trace.

Ranges are off by default and then cost nothing per step.  They are switched on by ``enable()``, for a block by
``with enable():``, by ``FASTSAMPLE_NVTX=1``, or by a tool that listens to nvtx (it sets ``NVTX_INJECTION64_PATH``);
``FASTSAMPLE_NVTX=0`` keeps them off.  What each range is: docs/profiling.md.
"""

from .ranges import disable, enable, enabled

__all__ = ["disable", "enable", "enabled"]
