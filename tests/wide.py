"""Stock schedulers of diffusers in float64: tables widened, so that formulas can be compared to the last digits."""

from __future__ import annotations

from typing import Any

import diffusers
import torch
from diffusers.utils.import_utils import is_scipy_available

from fastsample.integrations.diffusers.swap import classes

from .lockstep import ULP, Edit, network, pairs, scaled, start, takes

OURS = classes()
SHAPE = (2, 3, 4, 4)
DIGITS = 2.0**-40 / ULP  # roundings of float32 that 2^-40 are
TABLES = ("sigmas", "sigmas_interpol", "alphas_cumprod", "final_alpha_cumprod")


def made(name: str, steps: int, config: dict[str, Any], cls: Any = None) -> Any:
    """A scheduler, set up; the stock class unless ``cls`` says another."""
    scheduler = (cls or getattr(diffusers, name))(**config)
    scheduler.set_timesteps(steps)
    return scheduler


def widen(scheduler: Any) -> Any:
    """Its tables as float64, with the values they have."""
    for table in TABLES:
        if table in vars(scheduler):
            setattr(scheduler, table, getattr(scheduler, table).double())
    if "sigmas_up" in vars(scheduler):  # stock found these in float32
        before = torch.cat([scheduler.sigmas[:1], scheduler.sigmas[1:-1:2]])
        after = torch.cat([before[1:], before[:1] * 0])
        up = torch.nan_to_num((after**2 * (before**2 - after**2) / before**2).sqrt())
        down = (after**2 - up**2).sqrt()
        scheduler.sigmas_up = torch.cat([up[:1], up[1:].repeat_interleave(2), up[-1:]])
        scheduler.sigmas_down = torch.cat([down[:1], down[1:].repeat_interleave(2), down[-1:]])
    return scheduler


def runs(name: str, steps: int, config: dict[str, Any]) -> bool:
    """Whether stock can be set up this way."""
    try:
        made(name, steps, config)
    except Exception:
        return False
    return True


def compare(
    name: str,
    steps: int,
    config: dict[str, Any],
    *,
    first: int = 0,
    begin: bool = False,
    edit: Edit | None = None,
    dtype: torch.dtype = torch.float64,
    **options: Any,
) -> float:
    """Largest error of any result of a run against stock, in roundings of float32 (see ``lockstep.pairs``)."""
    schedulers = [made(name, steps, config), made(name, steps, config, OURS[name])]
    for scheduler in schedulers:
        if dtype is torch.float64:
            widen(scheduler)
        if begin:
            scheduler.set_begin_index(first)
    worst = 0.0
    channels = 2 if str(config.get("variance_type")).startswith("learned") else 1
    x = start(*SHAPE, dtype=dtype)
    for want, got, rounding in pairs(*schedulers, x, first=first, edit=edit, channels=channels, **options):
        for a, b in zip(want, got, strict=True):
            assert b.dtype is a.dtype and b.shape == a.shape
            assert torch.isfinite(a).all()
            worst = max(worst, float((a.double() - b.double()).abs().max()) / rounding)
    return worst


def inpaint(i: int, x: torch.Tensor) -> torch.Tensor:
    """Half of the state replaced before step ``i``, as a mask does."""
    known = start(*SHAPE, seed=9).to(x.dtype)
    return torch.where(torch.arange(4) < 2, known * (1 + 0.3 * i), x)


def _worst(results: tuple[torch.Tensor, ...], true: tuple[torch.Tensor, ...]) -> float:
    return max(float((a.double() - b).abs().max()) for a, b in zip(results, true, strict=True))


def errors(
    name: str, steps: int, dtype: torch.dtype, config: dict[str, Any], edit: Edit | None = None
) -> list[tuple[float, float]]:
    """Errors (ours, stock's) of the results of every step against stock in float64 that sees the same rounded inputs,
    in units of half an ulp of the largest number so far.  For classes that draw nothing."""
    stock, ours = made(name, steps, config), made(name, steps, config, OURS[name])
    exact = widen(made(name, steps, config))
    found, largest = [], 0.0
    x = (start(*SHAPE) * float(getattr(stock, "init_noise_sigma", 1.0))).to(dtype)
    for i, t in enumerate(stock.timesteps):
        x = x if edit is None else edit(i, x)
        seen = scaled(stock, x, t)
        scaled(ours, x, t), scaled(exact, x.double(), t)
        e = network(seen, i)
        want = stock.step(e, t, x, return_dict=False)
        got = ours.step(e, t, x, return_dict=False)
        true = exact.step(e.double(), t, x.double(), return_dict=False)
        largest = max(largest, *(float(y.abs().max()) for y in (x, e, *true)))
        unit = torch.finfo(dtype).eps / 2 * largest
        found.append((_worst(got, true) / unit, _worst(want, true) / unit))
        x = want[0]
    return found


def product(*parts: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """All combinations of options."""
    found: list[dict[str, Any]] = [{}]
    for part in parts:
        found = [{**a, **b} for a in found for b in part]
    return found


REMAPS: list[dict[str, Any]] = [{}, {"use_karras_sigmas": True}, {"use_exponential_sigmas": True}]
if is_scipy_available():
    REMAPS.append({"use_beta_sigmas": True})
SPACINGS: list[dict[str, Any]] = [
    {"timestep_spacing": "linspace"},
    {"timestep_spacing": "leading", "steps_offset": 1},
    {"timestep_spacing": "trailing"},
]
PREDICTIONS: list[dict[str, Any]] = [{"prediction_type": kind} for kind in ("epsilon", "v_prediction", "sample")]


def reference_run(scheduler: Any, steps: int, scale: bool) -> tuple[float, float]:
    """Sum and mean of |x| after the loop of the test-suite of diffusers on its fixed sample and network; ``scale``:
    the scaled state replaces the state, as that suite does for VE classes."""
    numbers = torch.arange(768, dtype=torch.float32).reshape(3, 8, 8, 4) / 768
    x = numbers.permute(3, 0, 1, 2)
    scheduler.set_timesteps(steps)
    x, draws = x * scheduler.init_noise_sigma, torch.manual_seed(0)
    extra = {"generator": draws} if takes(scheduler, "generator") else {}
    for t in scheduler.timesteps:
        x = scheduler.scale_model_input(x, t) if scale else x
        e = x * (t / (t + 1)).to(x.dtype)
        x = scheduler.step(e, t, x, **extra).prev_sample
    return float(x.abs().sum()), float(x.abs().mean())
