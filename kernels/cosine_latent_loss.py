"""Mean of 1 - cos between the hidden state before each latent position and the latent's target."""

from __future__ import annotations

import os
from typing import Any

import torch
from torch import Tensor

from ._common import accumulation_dtype, reciprocal

EPSILON = 1e-8  # a vector of smaller norm counts as zero: cosine 0, gradient 0


def _unit(x: Tensor) -> tuple[Tensor, Tensor]:
    """Rows scaled to norm 1 (zero rows stay zero) and the reciprocal of their norms (0 for zero rows)."""
    # Divided by the largest magnitude first: squares of bf16 extremes would overflow float32.
    largest = x.abs().amax(dim=1, keepdim=True).clamp(min=torch.finfo(x.dtype).tiny)
    scaled = x / largest
    length = scaled.norm(dim=1, keepdim=True)
    present = length * largest >= EPSILON
    safe = torch.where(present, length, torch.ones_like(length))
    unit = torch.where(present, scaled / safe, torch.zeros_like(scaled))
    return unit, torch.where(present, 1.0 / safe / largest, torch.zeros_like(length))


def _reference(hidden: Tensor, target: Tensor, index: Tensor) -> tuple[Tensor, Tensor]:
    """Cosines [n] and d cos / d hidden row [n, H]."""
    wide = accumulation_dtype(hidden, target)
    x, inverse = _unit(hidden[index - 1].to(wide))
    y, _ = _unit(target.to(wide))
    cosine = (x * y).sum(dim=1)
    return cosine, (y - cosine[:, None] * x) * inverse


class _CosineLatentLoss(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, hidden: Tensor, target: Tensor, index: Tensor, scale: Tensor
    ) -> tuple[Tensor, Tensor]:
        cosine, slope = _reference(hidden, target, index)
        ctx.save_for_backward(index, slope * -scale)
        ctx.like = hidden
        ctx.mark_non_differentiable(cosine)
        return (1.0 - cosine).sum() * scale, cosine

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, grad_loss: Tensor, _: Tensor) -> tuple[Tensor, None, None, None]:
        index, slope = ctx.saved_tensors
        full = torch.zeros(ctx.like.shape, dtype=slope.dtype, device=slope.device)
        full.index_copy_(0, index - 1, slope * grad_loss)
        return full.to(ctx.like.dtype), None, None, None


def cosine_latent_loss(
    hidden: Tensor, target: Tensor, index: Tensor, *, num_items: Tensor | float | None = None
) -> tuple[Tensor, Tensor]:
    """``sum(1 - cos(h[index - 1], target)) / num_items`` and the cosine of every latent.

    ``hidden`` [B, T, H] or [N, H] (after the final norm), ``target`` [n, H] (a constant: it must not require
    gradients), ``index`` [n] int64 the flattened positions b * T + p of the latent pads, all different; the
    hidden state read is the one at p - 1, which predicts position p. ``num_items`` is the number of latents
    of the global batch (a number or a scalar tensor), by default n.

    Norms and dot products are float32 (float64 for float64 inputs). A vector of norm below 1e-8 has cosine 0
    and gradient 0.

    Returns the scalar float32 loss and ``cos`` [n], detached. Without latents the loss is 0, part of the
    graph, with zero gradients. Raises ``ValueError`` for wrong shapes, dtypes or devices; positions are
    range-checked only with ``FOURDTHINKER_DEBUG=1`` because that synchronises.
    """
    if hidden.dim() not in (2, 3) or target.dim() != 2 or hidden.shape[-1] != target.shape[1]:
        raise ValueError(
            f"hidden {tuple(hidden.shape)} must be [.., H] and target {tuple(target.shape)} [n, H]"
        )
    if index.dtype != torch.int64 or tuple(index.shape) != (target.shape[0],):
        raise ValueError(
            f"index is {tuple(index.shape)} {index.dtype}; it must be ({target.shape[0]},) int64"
        )
    if not hidden.device == target.device == index.device:
        raise ValueError(
            f"hidden is on {hidden.device}, target on {target.device}, index on {index.device}; move them"
        )
    if target.requires_grad:
        raise ValueError("target requires gradients, but it is a constant of the loss; pass target.detach()")
    rows = hidden.reshape(-1, hidden.shape[-1])
    if os.environ.get("FOURDTHINKER_DEBUG") == "1" and index.numel():
        length = hidden.shape[1] if hidden.dim() == 3 else rows.shape[0]
        low, high = int((index % length).min()), int(index.max())
        if int(index.min()) < 1 or low == 0 or high > rows.shape[0]:
            raise ValueError(
                f"index has positions from {int(index.min())} to {high} in rows of {length}, "
                f"{rows.shape[0]} in all; a latent needs a position before it in its own row"
            )
    scale = reciprocal(
        index.numel() if num_items is None else num_items, rows, accumulation_dtype(rows, target)
    )
    loss, cosine = _CosineLatentLoss.apply(rows, target, index, scale)
    return loss, cosine
