"""pytest plugin: the ops run on an ASan + UBSan build of the CPU library.  Used by .ci/sanitize."""

from __future__ import annotations

import os
from pathlib import Path

from fastsample import native

_LIBRARY = Path(os.environ["FASTSAMPLE_SANITIZED"])
_original = native._prebuilt
native._prebuilt = lambda name: _LIBRARY if name == "libfastsample_cpu.so" else _original(name)
assert native.load_for("cpu"), native.why_not("cpu")
assert native.loaded_from("cpu") == str(_LIBRARY)
