"""Small things that several ops share: accumulation dtype and the global normaliser."""

from __future__ import annotations

import math

import torch
from torch import Tensor


def accumulation_dtype(*tensors: Tensor) -> torch.dtype:
    """float64 when any tensor is float64 (so that gradcheck works), float32 otherwise."""
    return torch.float64 if any(t.dtype == torch.float64 for t in tensors) else torch.float32


def reciprocal(num_items: Tensor | float, like: Tensor, dtype: torch.dtype) -> Tensor:
    """``1 / num_items`` as a scalar tensor on ``like``'s device, and 0 where ``num_items`` is 0.

    A tensor is not looked at from the host, so this never synchronises.
    """
    if not isinstance(num_items, Tensor):
        if not math.isfinite(num_items) or num_items < 0:
            raise ValueError(f"num_items is {num_items}; pass a finite number of items, zero or more")
        return torch.full((), 1.0 / num_items if num_items else 0.0, dtype=dtype, device=like.device)
    if num_items.numel() != 1:
        raise ValueError(f"num_items has shape {tuple(num_items.shape)}; pass a number or a scalar")
    items = num_items.detach().reshape(()).to(device=like.device, dtype=dtype)
    return torch.where(items > 0, 1.0 / items.clamp(min=torch.finfo(dtype).tiny), torch.zeros_like(items))


def check_finite(**values: float | None) -> None:
    """Raise ``ValueError`` naming the first coefficient that is NaN or infinite."""
    for name, value in values.items():
        if value is not None and not math.isfinite(value):
            raise ValueError(f"{name} is {value}; pass a finite number")
