"""What a run leaves behind: a picture, the samples, a JSON report, all or nothing."""

from __future__ import annotations

import json
import math
import os
import shutil
import struct
import tempfile
import time
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

Pixels = npt.NDArray[np.uint8]

SHOWN = 400  # samples in a picture at most
_WIDTH = 640  # small pictures are enlarged by a whole factor up to this


def write_png(path: Path | str, pixels: Pixels) -> None:
    """Write ``(H, W)`` grey or ``(H, W, 3)`` RGB uint8 as PNG.  Raises ``ValueError`` for anything else."""
    shaped = pixels.ndim == 2 or (pixels.ndim == 3 and pixels.shape[2] == 3)
    if pixels.dtype != np.uint8 or not shaped or not pixels.size:
        raise ValueError(f"pixels: got shape {pixels.shape} {pixels.dtype}, allowed is (H, W) or (H, W, 3) uint8")
    height, width = pixels.shape[:2]

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    lines = np.zeros((height, 1 + pixels[0].size), dtype=np.uint8)  # each line starts with its filter, 0: none
    lines[:, 1:] = pixels.reshape(height, -1)
    header = struct.pack(">IIBBBBB", width, height, 8, 0 if pixels.ndim == 2 else 2, 0, 0, 0)
    body = chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(lines.tobytes(), 9)) + chunk(b"IEND", b"")
    Path(path).write_bytes(b"\x89PNG\r\n\x1a\n" + body)


def picture(samples: Tensor) -> Pixels | None:
    """Samples as pixels: a grid of images ``(B, 1 or 3, H, W)`` in [-1, 1], a density of points ``(B, 2)``, or None."""
    x = samples.detach().float().cpu()
    if len(x) == 0:
        return None
    if x.ndim == 4 and x.shape[1] in (1, 3):
        return _enlarge(_grid(x[:SHOWN]))
    if x.ndim == 2 and x.shape[1] == 2:
        return _enlarge(_density(x.numpy()))
    return None


def _grid(x: Tensor) -> Pixels:
    """Square-ish grid with a line of one grey pixel between the images."""
    count, channels, height, width = x.shape
    columns = math.ceil(math.sqrt(count))
    lines = -(-count // columns)
    sheet = np.full((lines * (height + 1) + 1, columns * (width + 1) + 1, channels), 64, dtype=np.uint8)
    bytes_ = ((x.clamp(-1, 1) + 1) * 127.5).round().to(torch.uint8).permute(0, 2, 3, 1).numpy()
    for i, image in enumerate(bytes_):
        top, left = 1 + i // columns * (height + 1), 1 + i % columns * (width + 1)
        sheet[top : top + height, left : left + width] = image
    return sheet[:, :, 0] if channels == 1 else sheet


def _density(points: npt.NDArray[np.float32], size: int = 160) -> Pixels:
    reach = 1.1 * float(np.abs(points).max()) or 1.0
    counts, _, _ = np.histogram2d(points[:, 1], points[:, 0], bins=size, range=[[-reach, reach]] * 2)
    light = np.sqrt(counts / counts.max())[::-1]  # y upwards
    gray: Pixels = (255 * light).astype(np.uint8)
    return gray


def _enlarge(pixels: Pixels) -> Pixels:
    factor = max(1, _WIDTH // max(pixels.shape[:2]))
    larger: Pixels = pixels.repeat(factor, axis=0).repeat(factor, axis=1)
    return larger


class Stopwatch:
    """Time spent inside a wrapped function; on CUDA by events, so that nothing waits in between."""

    def __init__(self, device: torch.device) -> None:
        self.calls = 0
        self._seconds = 0.0
        self._events: list[tuple[torch.cuda.Event, torch.cuda.Event]] = []
        self._cuda = device.type == "cuda"

    def wrap(self, fn: Callable[..., Any]) -> Callable[..., Any]:
        def timed(*args: Any) -> Any:
            self.calls += 1
            if self._cuda:
                pair = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
                pair[0].record()
                out = fn(*args)
                pair[1].record()
                self._events.append(pair)
                return out
            begin = time.perf_counter()
            out = fn(*args)
            self._seconds += time.perf_counter() - begin
            return out

        return timed

    @property
    def seconds(self) -> float:
        """Total so far; waits for the device."""
        if self._events:
            torch.cuda.synchronize()
            self._seconds += sum(a.elapsed_time(b) for a, b in self._events) / 1000
            self._events.clear()
        return self._seconds


@contextmanager
def output_folder(out: Path) -> Iterator[Path]:
    """A temporary folder beside ``out``; what was written there is moved to ``out`` if the block ends well.

    A new ``out`` appears in one rename.  In one that exists, files of the same names are replaced one by one,
    ``report.json`` last, and others are left alone.  If the block fails, nothing is left behind.

    Raises:
        ValueError: ``out`` is a file, or its place cannot be written to; before the block runs.
    """
    out = Path(os.path.abspath(out))
    if out.exists() and not out.is_dir():
        raise ValueError(f"out: {out} is a file; give a folder")
    missing = [folder for folder in out.parents if not folder.exists()]
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        if out.exists() and not os.access(out, os.W_OK):
            raise PermissionError(13, "Permission denied")
        # beside a new folder, inside one that exists: the final moves then stay on one file system
        work = Path(tempfile.mkdtemp(prefix=f".{out.name}.", dir=out if out.exists() else out.parent))
    except OSError as error:
        raise ValueError(f"out: cannot write to {out} ({error.strerror}); give another folder") from error
    try:
        yield work
        work.chmod(0o777 & ~_umask())
        if not out.exists():
            work.rename(out)
        else:
            for file in sorted(work.iterdir(), key=lambda f: f.name == "report.json"):
                os.replace(file, out / file.name)
            work.rmdir()
    except BaseException:
        shutil.rmtree(work, ignore_errors=True)
        for folder in missing:
            if folder.exists() and not any(folder.iterdir()):
                folder.rmdir()
        raise


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask


def write_samples(path: Path, samples: Tensor, **arrays: Any) -> None:
    """Compressed npz with ``samples`` (float32, or float64 if they are) and further arrays."""
    x = samples.detach().cpu()
    np.savez_compressed(path, samples=(x if x.dtype == torch.float64 else x.float()).numpy(), **arrays)


def write_json(path: Path, content: Any) -> None:
    """Indented JSON; numbers that are not finite are refused."""
    path.write_text(json.dumps(content, indent=1, allow_nan=False) + "\n")
