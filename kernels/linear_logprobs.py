"""Log-probabilities (and entropies) of chosen ids under ``input @ weight.T``, a chunk of logits at a time."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from ._head import Head, check_head, check_rows, chunk_size, full_precision


def _forward(
    x: Tensor, weight: Tensor, bias: Tensor | None, target: Tensor,
    temperature: float, softcap: float | None, chunk: int, with_entropy: bool,
) -> tuple[Tensor, Tensor, Tensor]:  # fmt: skip
    """Log-probabilities, entropies (empty unless asked for) and log normalisers of the rows x [M, H]."""
    head = Head(x, weight, bias, temperature, softcap)
    logprobs = torch.empty(x.shape[0], dtype=head.dtype, device=x.device)
    normalisers = torch.empty_like(logprobs)
    entropies = torch.empty_like(logprobs) if with_entropy else logprobs.new_empty(0)
    for start in range(0, x.shape[0], chunk):
        rows = slice(start, start + chunk)
        z, _ = head.scores(x[rows].to(head.dtype))
        normaliser = z.logsumexp(dim=1, keepdim=True)
        logprobs[rows] = (z.gather(1, target[rows, None]) - normaliser)[:, 0]
        normalisers[rows] = normaliser[:, 0]
        if with_entropy:
            log_p = z.sub_(normaliser)
            p = log_p.exp()
            # A logit of -inf has probability 0 and adds nothing; 0 * -inf would be NaN.
            entropies[rows] = -(p * log_p.masked_fill_(p == 0, 0.0)).sum(dim=1)
    return logprobs, entropies, normalisers


def _backward(
    x: Tensor, weight: Tensor, bias: Tensor | None, target: Tensor,
    normalisers: Tensor, entropies: Tensor, grad_logprobs: Tensor, grad_entropies: Tensor | None,
    temperature: float, softcap: float | None, chunk: int, need: tuple[bool, bool, bool],
) -> tuple[Tensor | None, Tensor | None, Tensor | None]:  # fmt: skip
    """Recompute each chunk's logits and turn them into their gradient.

    d logprob / d z = onehot - p; d entropy / d z = -p * (log p + entropy).
    """
    head = Head(x, weight, bias, temperature, softcap)
    dx = torch.empty_like(x) if need[0] else None
    dw = torch.zeros(weight.shape, dtype=head.dtype, device=x.device) if need[1] else None
    db = torch.zeros(weight.shape[0], dtype=head.dtype, device=x.device) if need[2] else None
    for start in range(0, x.shape[0], chunk):
        rows = slice(start, start + chunk)
        part = x[rows].to(head.dtype)
        z, slope = head.scores(part)
        log_p = z.sub_(normalisers[rows, None])
        p = log_p.exp()
        upstream = grad_logprobs[rows, None].to(head.dtype)
        if grad_entropies is None:
            dz = p.mul_(-upstream)
        else:
            log_p.masked_fill_(p == 0, 0.0).add_(entropies[rows, None])
            dz = p.mul_(log_p.mul_(grad_entropies[rows, None].to(head.dtype)).add_(upstream).neg_())
        dz.scatter_add_(1, target[rows, None], upstream)
        head.scores_grad_(dz, slope)
        if dx is not None:
            dx[rows] = (dz @ head.weight).to(dx.dtype)
        if dw is not None:
            dw.addmm_(dz.T, part)
        if db is not None:
            db += dz.sum(dim=0)
    return dx, dw, db


class _LinearLogprobs(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        input: Tensor,
        weight: Tensor,
        bias: Tensor | None,
        target: Tensor,
        rows: Tensor,
        temperature: float,
        softcap: float | None,
        chunk: int,
        with_entropy: bool,
    ) -> tuple[Tensor, Tensor]:
        chosen = target[rows]
        with full_precision(input.device):
            logprobs, entropies, normalisers = _forward(
                input[rows], weight, bias, chosen, temperature, softcap, chunk, with_entropy
            )
        ctx.save_for_backward(input, weight, bias, chosen, rows, normalisers, entropies)
        ctx.temperature, ctx.softcap, ctx.chunk = temperature, softcap, chunk
        ctx.with_entropy = with_entropy
        if not with_entropy:
            ctx.mark_non_differentiable(entropies)
        return logprobs, entropies

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, grad_logprobs: Tensor, grad_entropies: Tensor) -> tuple[Tensor | None, ...]:
        input, weight, bias, chosen, rows, normalisers, entropies = ctx.saved_tensors
        need = (ctx.needs_input_grad[0], ctx.needs_input_grad[1], ctx.needs_input_grad[2])
        with full_precision(input.device):
            dx, dw, db = _backward(
                input[rows], weight, bias, chosen, normalisers, entropies, grad_logprobs,
                grad_entropies if ctx.with_entropy else None, ctx.temperature, ctx.softcap, ctx.chunk, need,
            )  # fmt: skip
        full = None
        if dx is not None:
            full = torch.zeros_like(input)
            full.index_copy_(0, rows, dx)
        dw = None if dw is None else dw.to(weight.dtype)
        db = None if db is None or bias is None else db.to(bias.dtype)
        return full, dw, db, None, None, None, None, None, None


def linear_logprobs(
    input: Tensor,
    weight: Tensor,
    target: Tensor,
    *,
    bias: Tensor | None = None,
    mask: Tensor | None = None,
    rows: Tensor | None = None,
    temperature: float = 1.0,
    softcap: float | None = None,
    return_entropy: bool = False,
    chunk_rows: int | None = None,
    backend: str = "auto",
) -> Tensor | tuple[Tensor, Tensor]:
    """``log softmax(input . weight^T / temperature)[target]``, and the entropy of that softmax if asked for.

    ``input`` [N, H] or [B, T, H], ``weight`` [V, H], ``target`` [N] or [B, T] int64 (entry i is what row i
    predicts). Only rows where ``mask`` (bool, shaped as ``target``) is true are computed, or only those that
    ``rows`` [M] int64 lists (flat, all different; no synchronisation); give one of the two, or neither for
    all. Masked entries are 0 and may hold any target. ``softcap``, ``bias`` and ``chunk_rows`` are those of
    ``linear_cross_entropy``.

    The forward keeps one number a row (two with entropy); the backward recomputes the logits chunk by chunk
    and takes per-token upstream gradients for both outputs.

    Returns float32 (float64 for float64 inputs) shaped as ``target``; with ``return_entropy`` a pair.
    Raises ``ValueError`` for shapes, dtypes, devices and coefficients that do not fit.
    """
    check_head(input, weight, target, bias, temperature, softcap)
    if backend not in ("auto", "torch"):
        raise ValueError(f"backend is {backend!r}; use 'auto' or 'torch'")
    if mask is not None and rows is not None:
        raise ValueError("mask and rows say the same thing; pass one of them")
    if mask is not None and (mask.shape != target.shape or mask.dtype != torch.bool):
        raise ValueError(f"mask is {tuple(mask.shape)} {mask.dtype}; it must be {tuple(target.shape)} bool")
    flat = target.reshape(-1)
    if rows is None:
        if mask is None:
            rows = torch.arange(flat.shape[0], device=flat.device)
        else:
            rows = mask.reshape(-1).nonzero()[:, 0]
    check_rows(rows)
    x = input.reshape(-1, input.shape[-1])
    chunk = chunk_size(rows.shape[0], weight.shape[0], chunk_rows)
    logprobs, entropies = _LinearLogprobs.apply(
        x, weight, bias, flat, rows, temperature, softcap, chunk, return_entropy
    )

    def spread(values: Tensor) -> Tensor:
        return values.new_zeros(flat.shape[0]).index_put((rows,), values).reshape(target.shape)

    return (spread(logprobs), spread(entropies)) if return_entropy else spread(logprobs)
