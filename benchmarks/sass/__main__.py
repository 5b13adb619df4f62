"""Write the static figures of every point of ``fastsample::update`` on CUDA, and their page.  Needs nvcc, no GPU.

    python -m benchmarks.sass

Writes benchmarks/results/sass.csv and the tables of docs/kernels.md that are made of it.  .ci/aot_cuda.py compares
every later build with the committed file.
"""

from __future__ import annotations

import argparse
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

from . import page, table

FLAGS = ("-std=c++17", "-O3", "-fmad=false", "-gencode=arch=compute_90,code=sm_90")


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--page-only", action="store_true", help="keep the CSV, write the page from it")
    if not parser.parse_args().page_only:
        if shutil.which("nvcc") is None:
            print("nvcc is not on the PATH: install the CUDA toolkit 13", file=sys.stderr)
            return 2
        with tempfile.TemporaryDirectory() as name:
            compiled = Path(name) / "update.o"
            source = table.CSRC / "cuda" / "update.cu"
            subprocess.run(["nvcc", *FLAGS, "-c", str(source), "-o", str(compiled)], check=True)
            table.write(table.RESULTS, table.rows(compiled, Path(name)))
        print(f"written: {table.RESULTS}")
    page.write(table.read())
    print(f"written: {page.PAGE}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
