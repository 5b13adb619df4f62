"""Compile every .cu for NVIDIA targets without a GPU, and check registers, spills and the static figures of update.

    python .ci/aot_cuda.py [--archs 80,90,100,120]

Fails on any spill, on more than 64 registers (128 for float64, whose normals call the library's log, cos and sin; those
of WIDER for kernels that shared memory keeps few at once, or that run rarely), and on every point of the update kernel
(dtype, terms, outputs, noise) that on sm_90 is worse than in benchmarks/results/sass.csv: more than 5 % more
instructions per element, narrower accesses, fewer blocks on a processor.  `python -m benchmarks.sass` renews that file.
"""

from __future__ import annotations

import argparse
import concurrent.futures
import os
import re
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
from benchmarks.sass import table

CSRC = table.CSRC
FLAGS = ["-std=c++17", "-O3", "-fmad=false"]
REGISTERS, REGISTERS_DOUBLE = 64, 128
WIDER = {"metropolis_held": 102, "metropolis_sums<float, Mixed<1> >": 80, ", 8> >, 4, 2, (Noise)": 80}


def nvcc(*arguments: str) -> str:
    """Standard error of nvcc; its text on failure."""
    done = subprocess.run(["nvcc", *FLAGS, *arguments], capture_output=True, text=True, check=False)
    if done.returncode:
        sys.exit(f"nvcc {' '.join(arguments)}\n{done.stderr}")
    return done.stderr


def demangle(name: str) -> str:
    if not shutil.which("c++filt"):
        return name
    text = subprocess.run(["c++filt", name], capture_output=True, text=True, check=True).stdout
    match = re.search(r"(\w+<.*>)\(", text)
    return re.sub(r"fs::gpu::|fs::|\(anonymous namespace\)::", "", match.group(1) if match else text.strip())


def registers(source: Path, arch: int, folder: Path) -> list[tuple[str, int, int]]:
    """Kernel, registers, spilled bytes of every kernel of a source."""
    target = f"-gencode=arch=compute_{arch},code=sm_{arch}"
    log = nvcc("-Xptxas", "-v", target, "-c", str(source), "-o", str(folder / f"{source.stem}_{arch}.o"))
    found = []
    for part in log.split("Compiling entry function '")[1:]:
        used = re.search(r"Used (\d+) registers", part)
        spills = [int(n) for n in re.findall(r"(\d+) bytes spill", part)]
        if used is None or not spills:
            sys.exit(f"cannot read the output of ptxas:\n{part}")
        found.append((demangle(part.split("'")[0]), int(used.group(1)), sum(spills)))
    if not found:
        sys.exit(f"{source}: no kernel in the output of ptxas")
    return found


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--archs", default="80,90,100,120", help="compute capabilities, comma separated")
    archs = [int(a) for a in parser.parse_args().archs.split(",")]
    if not shutil.which("nvcc"):
        sys.exit("nvcc not found: install the CUDA toolkit 13 (Debian and pip: nvidia-cuda-nvcc) or put it on the PATH")
    failures = []
    with tempfile.TemporaryDirectory() as name, concurrent.futures.ThreadPoolExecutor(os.cpu_count() or 1) as pool:
        folder = Path(name)
        jobs = [(source, arch) for source in sorted(CSRC.rglob("*.cu")) for arch in archs]
        results = list(pool.map(lambda job: registers(*job, folder), jobs))
        print(f"{'kernel':60}" + "".join(f"  sm_{arch:<8}" for arch in archs) + "  registers/spilled bytes")
        cells_of: dict[str, dict[int, str]] = {}
        for (source, arch), found in zip(jobs, results, strict=True):
            for kernel, used, spilled in found:
                cells_of.setdefault(kernel, {})[arch] = f"{used}/{spilled}"
                wider = [most for name, most in WIDER.items() if name in kernel]
                limit = REGISTERS_DOUBLE if "<double" in kernel or "IdNS" in kernel else max([REGISTERS, *wider])
                if used > limit or spilled:
                    failures.append(f"{source.name} sm_{arch} {kernel}: {used} registers, {spilled} bytes spilled")
        for kernel, cells in sorted(cells_of.items()):
            print(f"{kernel[:60]:60}" + "".join(f"  {cells.get(arch, '-'):<11}" for arch in archs))
        if 90 not in archs or table.cuobjdump() is None:
            print("static figures of update: skipped, they need sm_90 and cuobjdump (of triton or the CUDA toolkit)")
        else:
            points = table.rows(folder / "update_90.o", folder)
            failures += table.faults(points, table.read())
            bounds = {bound: sum(p.bound == bound for p in points) for bound in ("memory", "issue", "latency")}
            print(f"static figures of update on sm_90: {len(points)} points, bounds by the model {bounds}")
    for failure in failures:
        print(f"FAILED: {failure}")
    return 1 if failures else 0


if __name__ == "__main__":
    sys.exit(main())
