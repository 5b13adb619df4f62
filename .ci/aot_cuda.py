"""Compile every .cu for NVIDIA targets without a GPU, and check registers, spills and instructions per element.

    python .ci/aot_cuda.py [--archs 80,90,100,120]

Fails on any spill, on more than 64 registers (128 for float64, whose normals call the library's log, cos and sin; those
of WIDER for kernels that shared memory keeps few at once, or that run rarely), and on more than BUDGET instructions per
element on sm_90 for bf16, 3 terms, 1 output, one keyed noise.

How instructions are counted: a probe kernel runs the body of the vector path over many pieces with a row known to
need terms 0..2, D without limits, and noise 0 (so no branch on what the row needs is left; every weight still comes
from shared memory and is tested).  The count is the instructions issued in one turn of its loop: a conditional forward
branch falls through, unless it jumps over a call (the library's slow paths); predicated instructions count whether or
not they are on; the loop over noises makes one turn.
"""

from __future__ import annotations

import argparse
import concurrent.futures
import importlib.util
import os
import re
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

CSRC = Path(__file__).resolve().parent.parent / "csrc"
FLAGS = ["-std=c++17", "-O3", "-fmad=false"]
REGISTERS, REGISTERS_DOUBLE, BUDGET = 64, 128, 64
WIDER = {"metropolis_held": 102, "metropolis_sums<float, Mixed<1> >": 80}
PROBES = [("bf16", "kBF16", 8, True), ("bf16", "kBF16", 8, False), ("f32", "kF32", 4, True), ("f32", "kF32", 4, False)]
PROBE = """
#include "cuda/update.cuh"
using namespace fs;
using namespace fs::gpu;
template <class T, Noise kNoise>
__global__ void __launch_bounds__(kBlock, 8)
    probe(const __grid_constant__ UpdateArgs a, const __grid_constant__ Layout l) {
  extern __shared__ __align__(16) char shared[];
  const Staged<float>* rows = reinterpret_cast<const Staged<float>*>(shared);
  constexpr uint32_t kMask = 7u | kNeedsD | (kNoise == kKeyed ? kNeedsNoise : 0u);
  for (int64_t piece = blockIdx.x * int64_t(kBlock) + threadIdx.x; piece < l.pieces; piece += l.tiles * kBlock)
    update_vector<float, T, 4, 1, kNoise>(a, FromTerms<T>{a}, rows[0], kMask, blockIdx.y, piece);
}
void use(const UpdateArgs& a, const Layout& l) { probe<All<DType::TYPE, PIECE>, NOISE><<<1, 1>>>(a, l); }
"""
Code = list[tuple[int, str]]  # address, instruction


def nvcc(*arguments: str) -> str:
    """Standard error of nvcc; its text on failure."""
    done = subprocess.run(["nvcc", *FLAGS, *arguments], capture_output=True, text=True, check=False)
    if done.returncode:
        sys.exit(f"nvcc {' '.join(arguments)}\n{done.stderr}")
    return done.stderr


def disassembler() -> str | None:
    """cuobjdump of Triton's package, else of the toolkit."""
    spec = importlib.util.find_spec("triton")
    for folder in spec.submodule_search_locations or [] if spec else []:
        path = Path(folder) / "backends" / "nvidia" / "bin" / "cuobjdump"
        if path.exists():
            return str(path)
    return shutil.which("cuobjdump")


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


def issued(code: Code) -> int:
    """Instructions of one turn of the outermost loop; the module says how branches are decided."""
    index = {address: i for i, (address, _) in enumerate(code)}

    def target(i: int) -> int | None:
        match = re.search(r"\bBRA (?:\S+, )?0x([0-9a-f]+)", code[i][1])
        return index[int(match.group(1), 16)] if match else None

    back = [(i, t) for i in range(len(code)) if (t := target(i)) is not None and t < i]
    start, end = min(((t, i) for i, t in back), key=lambda loop: loop[0] - loop[1])
    count, i = 0, start
    while i != end:
        count += 1
        to = target(i)
        over_call = to is not None and any("CALL" in text for _, text in code[i + 1 : to])
        i = to if to is not None and to > i and (over_call or not code[i][1].startswith("@")) else i + 1
    return count + 1


def count(arch: int, folder: Path, tool: str) -> list[tuple[str, float, int]]:
    """Name, instructions per element and 16-byte accesses of every probe."""
    rows = []
    for dtype, name, piece, keyed in PROBES:
        source, cubin = folder / "probe.cu", folder / "probe.cubin"
        noise = "kKeyed" if keyed else "kNone"
        source.write_text(PROBE.replace("TYPE", name).replace("PIECE", str(piece)).replace("NOISE", noise))
        nvcc(f"-I{CSRC}", f"-gencode=arch=compute_{arch},code=sm_{arch}", "-cubin", str(source), "-o", str(cubin))
        sass = subprocess.run([tool, "-sass", str(cubin)], capture_output=True, text=True, check=True).stdout
        code = [(int(a, 16), t) for a, t in re.findall(r"/\*([0-9a-f]{4,})\*/\s+(.*?)\s*;", sass)]
        wide = sum(bool(re.search(r"(LDG|STG)\.E\S*\.128", text)) for _, text in code)
        rows.append((f"{dtype}, {'one keyed noise' if keyed else 'no noise'}", issued(code) / piece, wide))
    return rows


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
        table: dict[str, dict[int, str]] = {}
        for (source, arch), found in zip(jobs, results, strict=True):
            for kernel, used, spilled in found:
                table.setdefault(kernel, {})[arch] = f"{used}/{spilled}"
                wider = [most for name, most in WIDER.items() if name in kernel]
                limit = REGISTERS_DOUBLE if "<double" in kernel or "IdNS" in kernel else max([REGISTERS, *wider])
                if used > limit or spilled:
                    failures.append(f"{source.name} sm_{arch} {kernel}: {used} registers, {spilled} bytes spilled")
        for kernel, cells in sorted(table.items()):
            print(f"{kernel[:60]:60}" + "".join(f"  {cells.get(arch, '-'):<11}" for arch in archs))
        tool = disassembler()
        if tool is None:
            print("instructions per element: skipped, no cuobjdump (it comes with triton and with the CUDA toolkit)")
        else:
            print(f"\n{'sm_90, 3 terms, 1 output':40} instructions/element   16-byte accesses")
            for what, per_element, wide in count(90, folder, tool):
                print(f"{what:40} {per_element:20.1f} {wide:18}")
                if what == "bf16, one keyed noise" and per_element > BUDGET:
                    failures.append(f"sm_90 {what}: {per_element:.1f} instructions per element, allowed are {BUDGET}")
                if wide < 4:
                    failures.append(f"sm_90 {what}: {wide} 16-byte accesses, expected 3 loads and 1 store")
    for failure in failures:
        print(f"FAILED: {failure}")
    return 1 if failures else 0


if __name__ == "__main__":
    sys.exit(main())
