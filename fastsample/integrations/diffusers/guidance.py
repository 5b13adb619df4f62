"""Guidance rescale of the pipelines of diffusers in two launches: the factors per sample, then one row."""

from __future__ import annotations

import torch
from torch import Tensor

import fastsample.ops  # noqa: F401  (defines torch.ops.fastsample)
from fastsample import row

from .engine import samples

KEPT = 1024  # tables; none is let go of, for a graph may hold its address
_tables: dict[tuple[torch.device, float], tuple[Tensor, Tensor]] = {}


def rescale_noise_cfg(noise_cfg: Tensor, noise_pred_text: Tensor, guidance_rescale: float = 0.0) -> Tensor:
    """``noise_cfg`` times ``f = r std(text) / std(cfg) + 1 - r``, r = ``guidance_rescale``, of each sample.

    Both predictions are ``(B, ...)``, of one shape; the result is new, of the dtype that both make together.
    Lin et al. 2023, arXiv 2305.08891, section 3.4.  Where a gradient is wanted, PyTorch computes it.
    """
    dtype = torch.promote_types(noise_cfg.dtype, noise_pred_text.dtype)
    if torch.is_grad_enabled() and (noise_cfg.requires_grad or noise_pred_text.requires_grad):
        dims = list(range(1, noise_cfg.dim()))
        spread = [x.std(dim=dims, keepdim=True) for x in (noise_pred_text, noise_cfg)]
        return guidance_rescale * (noise_cfg * (spread[0] / spread[1])) + (1.0 - guidance_rescale) * noise_cfg
    table, step = _copying(noise_cfg.device, float(guidance_rescale))
    rows = torch.empty(len(noise_cfg), row.COLUMNS, dtype=torch.float64, device=noise_cfg.device)
    terms, made = [noise_cfg, noise_pred_text], torch.empty_like(noise_cfg, dtype=dtype)
    torch.ops.fastsample.rescale_(rows, terms, table, step, 1, 0)
    torch.ops.fastsample.update_([made], terms, rows, samples(len(noise_cfg), noise_cfg.device), None, [])
    return made


def _copying(device: torch.device, phi: float) -> tuple[Tensor, Tensor]:
    """Table and step of the row that copies its first term, rescaled by ``phi``."""
    found = _tables.get((device, phi))
    if found is None:
        values = row.make_row(outputs=[{0: 1.0}], rescale=(0.0, phi))  # guidance was done: the second weight is 0
        with torch.inference_mode(False):
            table = torch.tensor(values[None], dtype=torch.float64, device=device)
            found = table, torch.zeros((), dtype=torch.int64, device=device)
        if len(_tables) < KEPT:
            _tables[device, phi] = found
    return found
