"""Runs recorded once and replayed: as CUDA graphs, or on the CPU as a list of calls.  See docs/graphs.md."""

from ..errors import CaptureError as CaptureError
from .captured import Captured as Captured
from .captured import capture as capture
from .store import clear as clear
from .store import info as info
from .store import limit as limit

__all__ = ["CaptureError", "Captured", "capture", "clear", "info", "limit"]
