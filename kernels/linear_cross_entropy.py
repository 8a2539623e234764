"""Cross entropy of ``input @ weight.T`` without the logits ever existing as a whole."""

from __future__ import annotations

from typing import Any, Literal, overload

import torch
from torch import Tensor

from ._common import (
    NAMESPACE,
    accumulation_dtype,
    check_flags,
    check_integer,
    check_range,
    once_differentiable,
    reciprocal,
)
from ._head import full_precision, gradients, make_head, power_of_two, scaled_gradients
from ._head_arguments import check_head, check_rows, chunk_size, gather, matmul_rows, whole_head
from ._logits import TokenStatistics


@torch.library.custom_op(f"{NAMESPACE}::linear_cross_entropy", mutates_args=())
def _loss_op(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    target: Tensor,
    rows: Tensor,
    scale: Tensor,
    temperature: float,
    softcap: float | None,
    chunk: int,
    with_statistics: bool,
    need_dx: bool,
    need_dw: bool,
    need_db: bool,
    backend: str,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """Loss over the listed rows (target negative: no loss), sums of their statistics, dx, dw, db.

    What is not needed is empty.
    """
    dx, dw, db = gradients(x, weight, bias, rows.numel(), need_dx, need_dw, need_db)
    with full_precision(x.device):
        head = make_head(x, weight, bias, temperature, softcap, backend)
        loss = torch.zeros((), dtype=accumulation_dtype(x, weight), device=x.device)
        sums = loss.new_zeros(len(TokenStatistics._fields) if with_statistics else 0)
        for start in range(0, rows.numel(), chunk):
            chosen = rows[start : start + chunk]
            counted = target[chosen] >= 0
            part, label = gather(x, target, chosen, counted)
            z = head.logits(part)
            logprob, normaliser, entropy, more = head.stats(
                z, label, with_entropy=with_statistics, with_more=with_statistics
            )
            loss -= torch.where(counted, logprob, 0.0).sum()
            if entropy is not None and more is not None:
                sums += torch.where(counted, torch.cat((entropy[None], more)), 0.0).sum(dim=1)
            if need_dx or need_dw or need_db:
                z = head.grad_(z, label, normaliser, None, torch.where(counted, -scale, 0.0), None)
                rows_dx = torch.empty_like(part) if need_dx else None
                head.backward_matmuls(z, part, rows_dx, dw if need_dw else None, db if need_db else None)
                if rows_dx is not None:
                    dx.index_copy_(0, chosen, rows_dx)
    return loss * scale, sums, dx, dw, db


@_loss_op.register_fake
def _(
    x: Tensor, weight: Tensor, bias: Tensor | None, target: Tensor, rows: Tensor, scale: Tensor,
    temperature: float, softcap: float | None, chunk: int, with_statistics: bool, need_dx: bool,
    need_dw: bool, need_db: bool, backend: str,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:  # fmt: skip
    sums = scale.new_empty(len(TokenStatistics._fields) if with_statistics else 0)
    return scale.new_empty(()), sums, *gradients(x, weight, bias, rows.numel(), need_dx, need_dw, need_db)


class _LinearCrossEntropy(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        weight: Tensor,
        bias: Tensor | None,
        target: Tensor,
        rows: Tensor,
        scale: Tensor,
        temperature: float,
        softcap: float | None,
        chunk: int,
        with_statistics: bool,
        backend: str,
    ) -> tuple[Tensor, Tensor]:
        need = (ctx.needs_input_grad[0], ctx.needs_input_grad[1], ctx.needs_input_grad[2])
        ctx.unit = power_of_two(scale)
        scale = scale / ctx.unit
        options = (temperature, softcap, chunk, with_statistics, *need, backend)
        loss, sums, dx, dw, db = _loss_op(x, weight, bias, target, rows, scale, *options)
        ctx.save_for_backward(x, weight, bias, target, rows, scale)
        ctx.grads, ctx.options = (dx, dw, db), options
        ctx.dtypes = (x.dtype, weight.dtype, None if bias is None else bias.dtype)
        ctx.mark_non_differentiable(sums)
        return loss * ctx.unit, sums

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, upstream: Tensor, _: Tensor) -> tuple[Tensor | None, ...]:
        grads = scaled_gradients(
            ctx, upstream * ctx.unit, ctx.dtypes, lambda: _loss_op(*ctx.saved_tensors, *ctx.options)[2:]
        )
        return (*grads, None, None, None, None, None, None, None, None)


@overload
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
    return_statistics: Literal[False] = False,
    chunk_rows: int | None = None,
    backend: str = "auto",
) -> Tensor: ...
@overload
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
    return_statistics: Literal[True],
    chunk_rows: int | None = None,
    backend: str = "auto",
) -> tuple[Tensor, TokenStatistics]: ...
@overload
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
    return_statistics: bool,
    chunk_rows: int | None = None,
    backend: str = "auto",
) -> Tensor | tuple[Tensor, TokenStatistics]: ...
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
    return_statistics: bool = False,
    chunk_rows: int | None = None,
    backend: str = "auto",
) -> Tensor | tuple[Tensor, TokenStatistics]:
    """``sum over rows of -log softmax(z)[target] / num_items`` with z = input . weight^T / temperature.

    Logits exist for ``chunk_rows`` rows at a time and are turned into their gradient in place, so a training
    step is three matmuls; a frozen head or input saves one. Logits, sums and dW are float32 (float64 for
    float64 inputs); on CUDA the matmuls take their inputs in the dtype of ``input``, under autocast in
    autocast's. It cannot be differentiated twice. Source: the chunked fusion of Liger-Kernel (arXiv
    2410.10989), formulated anew.

    Args:
        input: hidden states, [N, H] or [B, T, H].
        weight: [V, H], the output matrix. A ``DTensor``, as FSDP2 leaves it, is gathered, and its gradient is
            the mean over ranks, in slices.
        target: [N] or [B, T] int64, already aligned with ``input``: entry i is what row i predicts.
        bias: [V], added to the logits; likewise.
        ignore_index: rows with this target have no loss and cost nothing: rows are gathered before the
            matmul.
        num_items: the global normaliser, a number or a scalar tensor, 0 or more; None: the number of rows
            that count.
        rows: [M] int64, the flat indices of all entries that are not ignored, all different; None: they are
            found, which synchronises on CUDA.
        temperature: divides the logits; above 0.
        softcap: logits a become ``softcap * tanh(a / softcap)``; None: they stay.
        return_statistics: whether the means of all ``TokenStatistics`` over the rows that count are returned
            too, from the same read.
        chunk_rows: rows of logits that exist at a time; None: ``chunk_size`` decides.
        backend: ``"auto"``, ``"triton"`` or ``"torch"``.

    Returns:
        The scalar float32 loss (float64 for float64 inputs); without rows it is 0, part of the graph, with
        zero gradients. With ``return_statistics`` a pair with ``TokenStatistics`` of detached scalars, 0
        without rows.

    Raises:
        ValueError: shapes, dtypes, devices or coefficients do not fit. Targets outside [0, V) are found on
            the CPU, and on CUDA with ``FOURDTHINKER_DEBUG=1`` because that synchronises; without it their
            loss means nothing.
    """
    weight, bias = whole_head(weight, bias)
    check_head(input, weight, target, bias, temperature, softcap)
    check_integer("ignore_index", ignore_index)
    check_flags(return_statistics=return_statistics)
    flat = target.reshape(-1)
    kept = flat != ignore_index
    if rows is None:
        rows = kept.nonzero()[:, 0]
    check_rows(rows, flat)
    check_range("target", flat, 0, weight.shape[0], rows=rows, where=kept[rows])
    # A row that is listed although it is ignored gets no loss: negative from here on means just that.
    flat = torch.where(kept, flat, -1)
    x = matmul_rows(input, backend)
    count = kept[rows].sum()
    scale = reciprocal(count if num_items is None else num_items, x, accumulation_dtype(x, weight))
    chunk = chunk_size(rows.shape[0], weight.shape[0], chunk_rows, on_cpu=x.device.type == "cpu")
    loss, sums = _LinearCrossEntropy.apply(
        x, weight, bias, flat, rows, scale, temperature, softcap, chunk, return_statistics, backend
    )
    return (loss, TokenStatistics(*(sums / count.clamp(min=1)))) if return_statistics else loss
