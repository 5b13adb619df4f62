"""Conditions in memory that stays: tensors, or dicts, tuples and lists of them; all else is part of a name."""

from __future__ import annotations

from collections.abc import Hashable
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ..errors import CaptureError


def signature(tree: Any) -> Hashable:
    """What trees that can share memory have in common: structure, shapes, dtypes, strides, all else by value."""
    if isinstance(tree, Tensor):
        return Tensor, tree.shape, tree.dtype, tree.device, tree.stride()
    if isinstance(tree, dict):
        return dict, *((name, signature(value)) for name, value in tree.items())
    if isinstance(tree, (tuple, list)):
        return type(tree), *(signature(value) for value in tree)
    if type(tree) is np.ndarray and tree.dtype != object:
        return np.ndarray, tree.dtype.str, tree.shape, tree.tobytes()
    try:
        hash(tree)
    except TypeError:
        raise CaptureError(f"cond: its value of a {type(tree).__name__} cannot be compared with a later one") from None
    return type(tree), tree


def fixed(tree: Any) -> Any:
    """A copy of a tree with tensors of its own."""
    if isinstance(tree, Tensor):
        with torch.inference_mode(False):
            return torch.empty_like(tree, requires_grad=False).copy_(tree.detach())
    if isinstance(tree, dict):
        return {name: fixed(value) for name, value in tree.items()}
    if isinstance(tree, (tuple, list)):
        parts = [fixed(value) for value in tree]
        return type(tree)(*parts) if hasattr(tree, "_fields") else type(tree)(parts)
    return tree


def refill(kept: Any, tree: Any) -> None:
    """Copy the tensors of ``tree`` to those of ``kept``, a tree of the same signature."""
    if isinstance(kept, Tensor):
        kept.copy_(tree)
    elif isinstance(kept, dict):
        for name, value in kept.items():
            refill(value, tree[name])
    elif isinstance(kept, (tuple, list)):
        for one, other in zip(kept, tree, strict=True):
            refill(one, other)
