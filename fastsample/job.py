"""The main job: sample a model, write a picture, the samples and a report."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from . import info, procedures, report
from .choosing import plan_for
from .loop import sample
from .models.loading import _brief, load_model
from .models.network import Network
from .solvers import registry

_FID_ENOUGH = 1000


def run_job(
    *,
    model_name: str,
    solver: str,
    steps: int | None,
    schedule: str | None,
    grid: str | None,
    prediction: str | None,
    guidance: float | None,
    options: dict[str, Any],
    number: int,
    seed: int,
    batch: int | None,
    classes: Sequence[int] | None,
    shape: Sequence[int] | None,
    out: Path,
    fid: bool,
    device: str | None,
    dtype: str,
    backend: str | None,
    progress: bool,
    say: Callable[[str], Any],
) -> dict[str, Any]:
    """Do the job of ``fastsample sample`` and return the report.  Raises as `fastsample.sample` and `load_model` do."""
    if number < 1:
        raise ValueError(f"-n: got {number}, need 1 or more samples")
    batch = number if batch is None else batch
    if batch < 1:
        raise ValueError(f"--batch: got {batch}, need 1 or more")
    where = _device(device)
    if backend is not None:
        from .ops import library

        library.force(backend)
    procedure = procedures.get(solver)
    entry = procedure or registry.find(solver)
    network = load_model(model_name, where, prediction, entry.model, options)
    sample_shape = _shape(network, shape)
    labels = _labels(network, number, classes, guidance, where)
    if fid and sample_shape != (1, 28, 28):
        raise ValueError(f"--fid: measures digits of shape (1, 28, 28), the samples have shape {sample_shape}")
    choice: dict[str, Any] = {"solver": solver, "steps": steps, "schedule": schedule, "grid": grid}
    choice |= {"guidance": guidance, **options}
    plan = None
    if procedure is None:
        plan = plan_for(network, **choice)
        choice = {"plan": plan}

    with report.output_folder(out) as folder:
        facts = info.facts()  # also builds or loads the library, which is no part of the time of the solver
        watch = report.Stopwatch(where)
        timed = _timed(network, watch)
        runs: list[dict[str, Any]] = []
        begin, parts = time.perf_counter(), []
        for first in range(0, number, batch):
            ids = torch.arange(first, min(first + batch, number))
            runs.append({})
            parts.append(
                sample(
                    timed,
                    (len(ids), *sample_shape),
                    **choice,
                    stats=runs[-1],
                    seed=seed,
                    sample_ids=ids,
                    cond=None if labels is None else labels[first : first + batch],
                    dtype=getattr(torch, dtype),
                    device=where,
                    progress=progress,
                )
            )
        network_seconds = watch.seconds
        total = time.perf_counter() - begin
        x = torch.cat(parts).cpu()

        files = _write_results(folder, x, labels)
        result: dict[str, Any] = {
            "model": model_name,
            "solver": entry.name,
            "nfe": max(run["nfe"] for run in runs),
            "plan_hash": None if plan is None else plan.hash,
            "options": options,
            "number": number,
            "shape": list(sample_shape),
            "seed": seed,
            "guidance": guidance,
            "batch": batch,
            "dtype": dtype,
            "device": str(where),
            "seconds": {
                "total": total,
                "network": network_seconds,
                "solver": max(0.0, total - network_seconds),
                "network_calls": watch.calls,
            },
            "runs": runs,
            "acceptance": _mean(runs, "acceptance"),
            "digit_fid": _fid(x) if fid else None,
            "distance": _distance(network, x, seed),
            "files": files,
            "backend": facts["ops"]["update"][where.type],  # type: ignore[index]
            "facts": facts,
            "plan": None if plan is None else json.loads(plan.to_json()),
        }
        report.write_json(folder / "report.json", result)
    _tell(result, out, say)
    return result


def _write_results(folder: Path, x: Tensor, labels: Tensor | None) -> list[str]:
    report.write_samples(folder / "samples.npz", x, **({} if labels is None else {"labels": labels.cpu().numpy()}))
    files = ["samples.npz", "report.json"]
    pixels = report.picture(x)
    if pixels is not None:
        report.write_png(folder / "samples.png", pixels)
        files.insert(0, "samples.png")
    return files


def _tell(result: dict[str, Any], out: Path, say: Callable[[str], Any]) -> None:
    seconds, words = result["seconds"], {"png": "picture", "npz": "samples", "json": "report"}
    say(
        f"{result['number']} samples, {result['nfe']} network calls each, in {seconds['total']:.2f} s: "
        f"network {seconds['network']:.2f} s, solver {seconds['solver']:.3f} s"
    )
    if result["digit_fid"] is not None:
        few = "" if result["number"] >= _FID_ENOUGH else f" (of fewer than {_FID_ENOUGH} samples: far too high)"
        say(f"digit-FID {result['digit_fid']:.2f}{few}")
    if result["acceptance"] is not None:
        say(f"acceptance {result['acceptance']:.3f}")
    if result["distance"] is not None:
        say(
            f"distance to the exact law {result['distance']['sliced_w2']:.4f} "
            f"(between two exact sets of this size {result['distance']['floor']:.4f})"
        )
    for name in result["files"]:
        say(f"{words[name.rsplit('.', 1)[1]]:8} {out / name}")


def _device(device: str | None) -> torch.device:
    if device is None:
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        found = torch.device(device)
        torch.empty(0, device=found)
    except (RuntimeError, AssertionError, NotImplementedError) as error:
        raise ValueError(f"--device: cannot use {device!r} here: {str(error).splitlines()[0]}") from error
    if found.type == "meta":
        raise ValueError("--device: 'meta' holds no numbers; allowed are cpu, cuda, ...")
    return found


def _shape(network: Network, shape: Sequence[int] | None) -> tuple[int, ...]:
    if network.shape is not None and shape is not None and tuple(shape) != network.shape:
        raise ValueError(f"--shape: got {tuple(shape)}, but the model has samples of shape {network.shape}")
    found = network.shape if shape is None else tuple(shape)
    if found is None:
        raise ValueError("--shape: the model does not say the shape of its samples; give it, such as --shape 3,32,32")
    if not found or min(found) < 1:
        raise ValueError(f"--shape: got {found}, need whole numbers of 1 or more")
    return found


def _labels(
    network: Network, number: int, classes: Sequence[int] | None, guidance: float | None, device: torch.device
) -> Tensor | None:
    """Label of every sample; a function of its index, so that batches do not matter."""
    if network.classes is None:
        for option, value in (("--classes", classes), ("--guidance", guidance)):
            if value is not None:
                raise ValueError(f"{option}: the model {network.name!r} has no classes; leave it out")
        return None
    chosen = list(range(network.classes) if classes is None else classes)
    wrong = [label for label in chosen if not 0 <= label < network.classes]
    if wrong or not chosen:
        raise ValueError(f"--classes: got {wrong or 'none'}, the model has the classes 0 to {network.classes - 1}")
    return torch.from_numpy(np.resize(np.array(chosen, dtype=np.int64), number)).to(device)


def _timed(network: Network, watch: report.Stopwatch) -> Network:
    """The same network on a stopwatch, whose own errors say that they are its own."""

    def wrap(fn: Callable[..., Any]) -> Callable[..., Any]:
        timed = watch.wrap(fn)

        def call(*args: Any) -> Any:
            try:
                return timed(*args)
            except Exception as error:
                raise ValueError(f"model: its call failed with {_brief(error)}; --traceback shows all") from error

        return call

    return network.wrapped(wrap)


def _fid(x: Tensor) -> float:
    from .metrics import digit_fid

    return digit_fid(x.float())


def _distance(network: Network, x: Tensor, seed: int) -> dict[str, float] | None:
    """How far the samples lie from those of the exact law, where the model has one."""
    if network.exact is None or len(x) < 2:
        return None
    from .metrics import sliced_distance

    one, other = (network.exact(len(x), seed + k).to(torch.float64) for k in (1, 2))
    x = x.to(torch.float64)
    return {"sliced_w2": sliced_distance(x, one), "floor": sliced_distance(other, one)}


def _mean(runs: Sequence[dict[str, Any]], name: str) -> float | None:
    values = [run[name] for run in runs if isinstance(run.get(name), float)]
    return float(np.mean(values)) if values else None
