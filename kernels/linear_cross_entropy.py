"""Cross entropy of ``input @ weight.T`` without the logits ever existing as a whole."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from ._common import reciprocal
from ._head import Head, check_head, check_rows, chunk_size, full_precision


def _reference(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    target: Tensor,
    scale: Tensor,
    temperature: float,
    softcap: float | None,
    chunk: int,
    need: tuple[bool, bool, bool],
) -> tuple[Tensor, Tensor | None, Tensor | None, Tensor | None]:
    """Loss over the rows x [M, H], target [M] (negative: no loss), and the gradients that are needed."""
    head = Head(x, weight, bias, temperature, softcap)
    loss = torch.zeros((), dtype=head.dtype, device=x.device)
    dx = torch.empty_like(x) if need[0] else None
    dw = torch.zeros(weight.shape, dtype=head.dtype, device=x.device) if need[1] else None
    db = torch.zeros(weight.shape[0], dtype=head.dtype, device=x.device) if need[2] else None
    for start in range(0, x.shape[0], chunk):
        rows = slice(start, start + chunk)
        part = x[rows].to(head.dtype)
        counted = (target[rows] >= 0)[:, None]
        label = target[rows].clamp(min=0)[:, None]
        z, slope = head.scores(part)
        normaliser = z.logsumexp(dim=1, keepdim=True)
        loss += torch.where(counted, normaliser - z.gather(1, label), 0.0).sum()
        if not any(need):
            continue
        dz = z.sub_(normaliser).exp_()
        dz.scatter_add_(1, label, torch.full_like(normaliser, -1.0))
        dz.mul_(counted * scale)
        head.scores_grad_(dz, slope)
        if dx is not None:
            dx[rows] = (dz @ head.weight).to(dx.dtype)
        if dw is not None:
            dw.addmm_(dz.T, part)
        if db is not None:
            db += dz.sum(dim=0)
    return loss * scale, dx, dw, db


class _LinearCrossEntropy(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        input: Tensor,
        weight: Tensor,
        bias: Tensor | None,
        target: Tensor,
        rows: Tensor,
        scale: Tensor,
        temperature: float,
        softcap: float | None,
        chunk: int,
    ) -> Tensor:
        need = (ctx.needs_input_grad[0], ctx.needs_input_grad[1], ctx.needs_input_grad[2])
        with full_precision(input.device):
            loss, dx, dw, db = _reference(
                input[rows], weight, bias, target[rows], scale, temperature, softcap, chunk, need
            )
        ctx.save_for_backward(rows, dx, dw, db)
        ctx.shape, ctx.weight_dtype = input.shape, weight.dtype
        ctx.bias_dtype = None if bias is None else bias.dtype
        return loss

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, grad_loss: Tensor) -> tuple[Tensor | None, ...]:
        rows, dx, dw, db = ctx.saved_tensors
        full = None
        if dx is not None:
            full = torch.zeros(ctx.shape, dtype=dx.dtype, device=dx.device)
            full.index_copy_(0, rows, (dx * grad_loss).to(dx.dtype))
        dw = None if dw is None else (dw * grad_loss).to(ctx.weight_dtype)
        db = None if db is None else (db * grad_loss).to(ctx.bias_dtype)
        return full, dw, db, None, None, None, None, None, None


def linear_cross_entropy(
    input: Tensor,
    weight: Tensor,
    target: Tensor,
    *,
    bias: Tensor | None = None,
    ignore_index: int = -100,
    num_items: Tensor | float | None = None,
    rows: Tensor | None = None,
    temperature: float = 1.0,
    softcap: float | None = None,
    chunk_rows: int | None = None,
    backend: str = "auto",
) -> Tensor:
    """``sum over rows of -log softmax(z)[target] / num_items`` with z = input . weight^T / temperature.

    ``input`` [N, H] or [B, T, H], ``weight`` [V, H], ``target`` [N] or [B, T] int64, already aligned with
    ``input`` (entry i is what row i predicts); entries equal to ``ignore_index`` have no loss and cost
    nothing, since rows are gathered before the matmul. ``rows`` [M] int64, the flat indices of all entries
    that are not ignored, all different, spares finding them (which synchronises on CUDA). ``num_items`` is
    the global normaliser (a number or a scalar tensor), by default the number of rows that count.
    ``softcap`` c replaces logits a by c * tanh(a / c). ``bias`` [V].

    Logits exist for ``chunk_rows`` rows at a time (default: a fixed rule) and are turned into their gradient
    in place, so a training step is three matmuls; a frozen head or input saves one. Everything is
    accumulated in float32 (float64 for float64 inputs); dW accumulates over chunks in that precision.

    Returns the scalar float32 loss; without rows it is 0, part of the graph, with zero gradients. Twice
    differentiable it is not. Raises ``ValueError`` for shapes, dtypes, devices and coefficients that do not
    fit. Source: the chunked fusion of Liger-Kernel (arXiv 2410.10989) in our own formulation.
    """
    check_head(input, weight, target, bias, temperature, softcap)
    if backend not in ("auto", "torch"):
        raise ValueError(f"backend is {backend!r}; use 'auto' or 'torch'")
    flat = target.reshape(-1)
    if rows is None:
        rows = (flat != ignore_index).nonzero()[:, 0]
    check_rows(rows)
    # A row that is listed although it is ignored gets no loss: negative from here on means just that.
    flat = torch.where(flat == ignore_index, -1, flat)
    x = input.reshape(-1, input.shape[-1])
    dtype = torch.float64 if torch.float64 in (input.dtype, weight.dtype) else torch.float32
    scale = reciprocal((flat[rows] >= 0).sum() if num_items is None else num_items, x, dtype)
    chunk = chunk_size(rows.shape[0], weight.shape[0], chunk_rows)
    return _LinearCrossEntropy.apply(x, weight, bias, flat, rows, scale, temperature, softcap, chunk)
