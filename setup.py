"""Build of the compiled libraries at install time; pyproject.toml holds the rest.

Never fails for want of a compiler or of torch: what cannot be built here is built at first use, or the reference runs.
"""

from __future__ import annotations

import importlib.util
import os
import sys
from pathlib import Path

from setuptools import Distribution, find_packages, setup
from setuptools.command.build_py import build_py

ROOT = Path(__file__).resolve().parent


def load_building():
    spec = importlib.util.spec_from_file_location("fastsample_building", ROOT / "fastsample" / "building.py")
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


class BuildWithLibraries(build_py):
    """Copies the Python files, then builds the libraries into ``fastsample/lib`` of the build folder."""

    def run(self) -> None:
        super().run()
        if getattr(self, "editable_mode", False):
            return  # a checkout builds at first use, keyed on its sources
        building = load_building()
        makers = [building.core_library, building.cpu_library]
        if os.environ.get("FASTSAMPLE_CUDA_ARCHS"):
            makers.append(building.cuda_library)
        for maker in makers:
            try:
                building.build(maker(), Path(self.build_lib) / "fastsample" / "lib", print)
            except building.BuildError as error:
                print(f"fastsample: not built at install time: {error}", file=sys.stderr)


class BinaryDistribution(Distribution):
    """What is built fits one platform, so the wheel says so."""

    def has_ext_modules(self) -> bool:
        return True


packages = find_packages(include=["fastsample", "fastsample.*"])
csrc = ["fastsample._csrc", "fastsample._csrc.core", "fastsample._csrc.cpu", "fastsample._csrc.cuda"]
setup(
    packages=packages + csrc,
    package_dir={name: name.replace(".", "/").replace("fastsample/_csrc", "csrc") for name in csrc},
    package_data={
        "fastsample": ["py.typed"],
        "fastsample.models": ["data/*"],
        **{name: ["*.h", "*.cpp", "*.cu", "*.cuh"] for name in csrc},
    },
    cmdclass={"build_py": BuildWithLibraries},
    distclass=BinaryDistribution,
)
