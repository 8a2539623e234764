"""Log-probabilities (and entropies) of chosen ids under ``input @ weight.T``, a chunk of logits at a time."""

from __future__ import annotations

from typing import Any, Literal, overload

import torch
from torch import Tensor

from ._common import (
    NAMESPACE,
    accumulation_dtype,
    check_flags,
    check_range,
    check_tensors,
    once_differentiable,
)
from ._head import full_precision, gradients, make_head
from ._head_arguments import check_head, check_rows, chunk_size, matmul_rows, whole_head
from ._logits import MORE, TokenStatistics


@torch.library.custom_op(f"{NAMESPACE}::linear_logprobs", mutates_args=())
def _forward_op(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    target: Tensor,
    rows: Tensor,
    temperature: float,
    softcap: float | None,
    chunk: int,
    with_entropy: bool,
    with_more: bool,
    backend: str,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Log-probability, entropy, ``MORE`` of every row (0 where not listed) and the listed log normalisers."""
    dtype = accumulation_dtype(x, weight)
    logprobs = torch.zeros(target.shape, dtype=dtype, device=x.device)
    entropies = torch.zeros_like(logprobs) if with_entropy else logprobs.new_empty(0)
    spread = logprobs.new_zeros(len(MORE), *target.shape) if with_more else logprobs.new_empty(0)
    normalisers = torch.empty(rows.shape, dtype=dtype, device=x.device)
    with full_precision(x.device):
        head = make_head(x, weight, bias, temperature, softcap, backend)
        for start in range(0, rows.numel(), chunk):
            chosen = rows[start : start + chunk]
            z = head.logits(x[chosen])
            logprob, normaliser, entropy, more = head.stats(
                z, target[chosen], with_entropy=with_entropy, with_more=with_more
            )  # fmt: skip
            logprobs.index_copy_(0, chosen, logprob)
            normalisers[start : start + chunk] = normaliser
            if entropy is not None:
                entropies.index_copy_(0, chosen, entropy)
            if more is not None:
                spread.index_copy_(1, chosen, more)
    return logprobs, entropies, spread, normalisers


@_forward_op.register_fake
def _(
    x: Tensor, weight: Tensor, bias: Tensor | None, target: Tensor, rows: Tensor, temperature: float,
    softcap: float | None, chunk: int, with_entropy: bool, with_more: bool, backend: str,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:  # fmt: skip
    logprobs = torch.empty(target.shape, dtype=accumulation_dtype(x, weight), device=x.device)
    entropies = torch.empty_like(logprobs) if with_entropy else logprobs.new_empty(0)
    spread = logprobs.new_empty(len(MORE), *target.shape) if with_more else logprobs.new_empty(0)
    return logprobs, entropies, spread, logprobs.new_empty(rows.shape)


@torch.library.custom_op(f"{NAMESPACE}::linear_logprobs_backward", mutates_args=())
def _backward_op(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    target: Tensor,
    rows: Tensor,
    normalisers: Tensor,
    entropies: Tensor,
    grad_logprobs: Tensor,
    grad_entropies: Tensor | None,
    temperature: float,
    softcap: float | None,
    chunk: int,
    need_dx: bool,
    need_dw: bool,
    need_db: bool,
    backend: str,
) -> tuple[Tensor, Tensor, Tensor]:
    """Recompute each chunk's logits and turn them into their gradient."""
    dx, dw, db = gradients(x, weight, bias, rows.numel(), need_dx, need_dw, need_db)
    with full_precision(x.device):
        head = make_head(x, weight, bias, temperature, softcap, backend)
        for start in range(0, rows.numel(), chunk):
            chosen = rows[start : start + chunk]
            part = x[chosen]
            dz = head.grad_(
                head.logits(part), target[chosen], normalisers[start : start + chunk],
                None if grad_entropies is None else entropies[chosen], grad_logprobs[chosen],
                None if grad_entropies is None else grad_entropies[chosen],
            )  # fmt: skip
            rows_dx = torch.empty_like(part) if need_dx else None
            head.backward_matmuls(dz, part, rows_dx, dw if need_dw else None, db if need_db else None)
            if rows_dx is not None:
                dx.index_copy_(0, chosen, rows_dx)
    return dx, dw, db


@_backward_op.register_fake
def _(
    x: Tensor, weight: Tensor, bias: Tensor | None, target: Tensor, rows: Tensor, normalisers: Tensor,
    entropies: Tensor, grad_logprobs: Tensor, grad_entropies: Tensor | None, temperature: float,
    softcap: float | None, chunk: int, need_dx: bool, need_dw: bool, need_db: bool, backend: str,
) -> tuple[Tensor, Tensor, Tensor]:  # fmt: skip
    return gradients(x, weight, bias, rows.numel(), need_dx, need_dw, need_db)


class _LinearLogprobs(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        weight: Tensor,
        bias: Tensor | None,
        target: Tensor,
        rows: Tensor,
        temperature: float,
        softcap: float | None,
        chunk: int,
        with_entropy: bool,
        with_more: bool,
        backend: str,
    ) -> tuple[Tensor, Tensor, Tensor]:
        logprobs, entropies, spread, normalisers = _forward_op(
            x, weight, bias, target, rows, temperature, softcap, chunk, with_entropy, with_more, backend
        )
        ctx.save_for_backward(x, weight, bias, target, rows, normalisers, entropies)
        ctx.temperature, ctx.softcap, ctx.chunk, ctx.backend = temperature, softcap, chunk, backend
        ctx.with_entropy = with_entropy
        ctx.mark_non_differentiable(*([spread] if with_entropy else [spread, entropies]))
        return logprobs, entropies, spread

    @staticmethod
    @once_differentiable
    def backward(
        ctx: Any, grad_logprobs: Tensor, grad_entropies: Tensor, _: Tensor
    ) -> tuple[Tensor | None, ...]:
        x, weight, bias, target, rows, normalisers, entropies = ctx.saved_tensors
        need = (ctx.needs_input_grad[0], ctx.needs_input_grad[1], ctx.needs_input_grad[2])
        grads = _backward_op(
            x, weight, bias, target, rows, normalisers, entropies, grad_logprobs,
            grad_entropies if ctx.with_entropy else None, ctx.temperature, ctx.softcap, ctx.chunk, *need,
            ctx.backend,
        )  # fmt: skip
        like = (x, weight, bias)
        out = [g.to(t.dtype) if n and t is not None else None for g, t, n in zip(grads, like, need)]
        return (*out, None, None, None, None, None, None, None, None)


@overload
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
    return_entropy: Literal[False] = False,
    chunk_rows: int | None = None,
    backend: str = "auto",
) -> Tensor: ...
@overload
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
    return_entropy: Literal[True],
    chunk_rows: int | None = None,
    backend: str = "auto",
) -> tuple[Tensor, Tensor]: ...
@overload
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
    return_entropy: Literal[False] = False,
    return_statistics: Literal[True],
    chunk_rows: int | None = None,
    backend: str = "auto",
) -> tuple[Tensor, TokenStatistics]: ...
@overload
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
    return_statistics: bool = False,
    chunk_rows: int | None = None,
    backend: str = "auto",
) -> Tensor | tuple[Tensor, Tensor] | tuple[Tensor, TokenStatistics]: ...
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
    return_statistics: bool = False,
    chunk_rows: int | None = None,
    backend: str = "auto",
) -> Tensor | tuple[Tensor, Tensor] | tuple[Tensor, TokenStatistics]:
    """``log softmax(input . weight^T / temperature)[target]``, and the entropy of that softmax if asked for.

    The forward keeps one number a row (two with entropy); the backward recomputes the logits chunk by chunk
    and takes per-token upstream gradients for both outputs. Precision is that of ``linear_cross_entropy``.

    Args:
        input: hidden states, [N, H] or [B, T, H].
        weight: [V, H], the output matrix. A ``DTensor``, as FSDP2 leaves it, is gathered, and its gradient is
            the mean over ranks, in slices.
        target: [N] or [B, T] int64; entry i is what row i predicts.
        bias: [V], added to the logits; likewise.
        mask: bool, shaped as ``target``; only rows where it is true are computed. None: all.
        rows: [M] int64, flat and all different: the rows to compute, instead of ``mask`` and without its
            synchronisation.
        temperature: divides the logits; above 0.
        softcap: logits a become ``softcap * tanh(a / softcap)``; None: they stay.
        return_entropy: whether the entropy is returned too.
        return_statistics: whether ``TokenStatistics`` are returned too, entropy included, from the same read.
        chunk_rows: rows of logits that exist at a time; None: ``chunk_size`` decides.
        backend: ``"auto"``, ``"triton"`` or ``"torch"``.

    Returns:
        Log-probabilities, float32 (float64 for float64 inputs), shaped as ``target``; with ``return_entropy``
        a pair with the entropies in nats, with ``return_statistics`` a pair with ``TokenStatistics``. Entries
        that are not computed are 0 and may hold any target.

    Raises:
        ValueError: shapes, dtypes, devices or coefficients do not fit.
    """
    weight, bias = whole_head(weight, bias)
    check_head(input, weight, target, bias, temperature, softcap)
    check_tensors("mask", target=target, mask=mask)
    check_flags(return_entropy=return_entropy, return_statistics=return_statistics)
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
    check_rows(rows, flat)
    check_range("target", flat, 0, weight.shape[0], rows=rows)
    x = matmul_rows(input, backend)
    chunk = chunk_size(rows.shape[0], weight.shape[0], chunk_rows, on_cpu=x.device.type == "cpu")
    logprobs, entropies, spread = _LinearLogprobs.apply(
        x, weight, bias, flat, rows, temperature, softcap, chunk, return_entropy or return_statistics,
        return_statistics, backend,
    )  # fmt: skip
    if return_statistics:
        shaped = (values.reshape(target.shape) for values in (entropies, *spread))
        return logprobs.reshape(target.shape), TokenStatistics(*shaped)
    if return_entropy:
        return logprobs.reshape(target.shape), entropies.reshape(target.shape)
    return logprobs.reshape(target.shape)
