"""The two kernels over rows of logits: one read for log-probabilities, one read and write for the gradient.

With a the logits (a bias added), c = cap * tanh(a / cap) or a, and z = c / temperature, the log-probability
of id t in a row is z_t - n with n = log sum exp z, and the row's entropy n - sum p z with p = exp(z - n).
d logprob / d z = onehot - p and d entropy / d z = -p * (log p + entropy).
"""

# Triton functions take no annotations.
# ruff: noqa: ANN001, ANN202
# mypy: disable-error-code="no-untyped-def"

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from ._common import tile
from ._launch import launching


@triton.jit
def _finite(value):
    return tl.where(value == float("-inf"), 0.0, value)


@triton.jit
def _scores(logits_ptr, bias_ptr, columns, inside, rate, softcap, SOFTCAP: tl.constexpr):
    score = tl.load(logits_ptr + columns, mask=inside, other=float("-inf")).to(tl.float32)
    if bias_ptr is not None:
        score += tl.load(bias_ptr + columns, mask=inside, other=0.0).to(tl.float32)
    if SOFTCAP:
        capped = softcap * (2.0 * tl.sigmoid(2.0 * score / softcap) - 1.0)
        score = tl.where(inside, capped, float("-inf"))
    return score * rate


@triton.jit(do_not_specialize=["length", "batch_rows", "rate", "softcap"])
def logits_stats_kernel(
    logits_ptr,
    batch_rows,
    row_stride: tl.constexpr,
    length,
    bias_ptr,
    target_ptr,
    mask_ptr,
    logprob_ptr,
    normaliser_ptr,
    entropy_ptr,
    rate,
    softcap,
    V: tl.constexpr,
    SOFTCAP: tl.constexpr,
    BLOCK: tl.constexpr,
):
    row = tl.program_id(0).to(tl.int64)
    counted = True
    if mask_ptr is not None:
        counted = tl.load(mask_ptr + row) != 0
    if counted:
        logits_ptr += (row // length * batch_rows + row % length) * row_stride
        lanes = tl.arange(0, BLOCK)
        top = tl.full([], float("-inf"), tl.float32)
        total = tl.full([], 0.0, tl.float32)
        moment = tl.full([], 0.0, tl.float32)
        for start in range(0, V, BLOCK):
            columns = start + lanes
            inside = columns < V
            score = _scores(logits_ptr, bias_ptr, columns, inside, rate, softcap, SOFTCAP)
            highest = tl.maximum(top, tl.max(score, axis=0))
            shift = _finite(highest)
            grown = tl.minimum(_finite(top) - shift, 0.0)
            weight = tl.exp(score - shift)
            if entropy_ptr is not None:
                added = tl.sum(tl.where(weight > 0, weight * (score - shift), 0.0), axis=0)
                moment = (moment + total * grown) * tl.exp(grown) + added
            total = total * tl.exp(grown) + tl.sum(weight, axis=0)
            top = highest
        normaliser = top + tl.log(total)
        target = tl.load(target_ptr + row)
        chosen = _scores(
            logits_ptr, bias_ptr, target, (target >= 0) & (target < V), rate, softcap, SOFTCAP
        )  # fmt: skip
        tl.store(logprob_ptr + row, (chosen - top) - tl.log(total))
        tl.store(normaliser_ptr + row, normaliser)
        if entropy_ptr is not None:
            tl.store(entropy_ptr + row, tl.log(total) - moment / total)
    else:
        tl.store(logprob_ptr + row, 0.0)
        tl.store(normaliser_ptr + row, 0.0)
        if entropy_ptr is not None:
            tl.store(entropy_ptr + row, 0.0)


@triton.jit(do_not_specialize=["length", "batch_rows", "grad_batch_rows", "rate", "softcap"])
def logits_grad_kernel(
    logits_ptr,
    batch_rows,
    row_stride: tl.constexpr,
    grad_ptr,
    grad_batch_rows,
    grad_row_stride: tl.constexpr,
    length,
    bias_ptr,
    target_ptr,
    mask_ptr,
    normaliser_ptr,
    entropy_ptr,
    grad_logprob_ptr,
    grad_entropy_ptr,
    rate,
    softcap,
    V: tl.constexpr,
    WIDTH: tl.constexpr,
    SOFTCAP: tl.constexpr,
    BLOCK: tl.constexpr,
):
    row = tl.program_id(0).to(tl.int64)
    grad_ptr += (row // length * grad_batch_rows + row % length) * grad_row_stride
    lanes = tl.arange(0, BLOCK)
    counted = True
    if mask_ptr is not None:
        counted = tl.load(mask_ptr + row) != 0
    if counted:
        logits_ptr += (row // length * batch_rows + row % length) * row_stride
        target = tl.load(target_ptr + row)
        normaliser = tl.load(normaliser_ptr + row)
        upstream = tl.load(grad_logprob_ptr + row)
        for start in range(0, V, BLOCK):
            columns = start + lanes
            inside = columns < V
            score = _scores(logits_ptr, bias_ptr, columns, inside, rate, softcap, SOFTCAP)
            log_p = score - normaliser
            p = tl.exp(log_p)
            grad = -upstream * p
            if grad_entropy_ptr is not None:
                surprise = tl.where(p > 0, log_p, 0.0) + tl.load(entropy_ptr + row)
                grad -= tl.load(grad_entropy_ptr + row) * p * surprise
            grad = (grad + tl.where(columns == target, upstream, 0.0)) * rate
            if SOFTCAP:
                ratio = tl.where(inside, score, 0.0) / (rate * softcap)
                grad *= 1.0 - ratio * ratio
            if grad_ptr.dtype.element_ty != logits_ptr.dtype.element_ty:
                # A narrower gradient in the memory of the logits: tile k then covers bytes that belonged to
                # tile k or before, which every warp must have read.
                tl.debug_barrier()
            tl.store(grad_ptr + columns, grad.to(grad_ptr.dtype.element_ty), mask=columns < WIDTH)
    else:
        for start in range(0, V, BLOCK):
            columns = start + lanes
            zero = tl.zeros([BLOCK], grad_ptr.dtype.element_ty)
            tl.store(grad_ptr + columns, zero, mask=columns < WIDTH)


def padded(width: int) -> int:
    """Rows that we allocate begin on multiples of 16 elements, so that accesses stay 16 bytes wide."""
    return -(-width // 16) * 16


def rows_of(logits: Tensor) -> tuple[int, int] | None:
    """Where the rows of [N, V] or [B, T, V] begin: entry b and row t at (b * first + t) * second elements.

    A flat tensor has a row to the entry. None where that is not enough to say it. The second number is
    compiled into the kernels, so it shall not depend on lengths: ``logits[:, -1]`` has (T, V), not (1, T V).
    """
    if logits.shape[-1] > 1 and logits.stride(-1) != 1:
        return None
    between = logits.stride(0)
    row = logits.stride(1) if logits.dim() == 3 else 0
    if logits.dim() == 2 or logits.shape[1] <= 1:
        widths = (logits.shape[-1], padded(logits.shape[-1]), max(between, 1))
        row = next(width for width in widths if between % width == 0)
    elif logits.shape[0] <= 1:
        return 0, row
    return (between // row, row) if row and between % row == 0 else None


def empty_rows(shape: torch.Size, dtype: torch.dtype, device: torch.device) -> Tensor:
    """An empty tensor with ``padded`` rows."""
    return torch.empty(*shape[:-1], padded(shape[-1]), dtype=dtype, device=device)[..., : shape[-1]]


def stats(
    logits: Tensor, target: Tensor, mask: Tensor | None, rate: float, with_entropy: bool, *,
    bias: Tensor | None = None, softcap: float | None = None,
) -> tuple[Tensor, Tensor, Tensor | None]:  # fmt: skip
    """Log-probability of ``target``, log normaliser and (if asked for) entropy; 0 where ``mask`` is false.

    ``logits`` [N, V] or [B, T, V] in a layout that ``rows_of`` knows; the others, float32, have its leading
    shape. One launch, one read of the rows in ``mask``.
    """
    vocabulary, rows = logits.shape[-1], target.numel()
    length = target.shape[1] if target.dim() == 2 else 1
    logprob = torch.empty(target.shape, dtype=torch.float32, device=logits.device)
    normaliser = torch.empty_like(logprob)
    entropy = torch.empty_like(logprob) if with_entropy else None
    layout = rows_of(logits)
    assert layout is not None
    if rows:
        with launching("logits_stats", logits) as launch:
            logits_stats_kernel[(rows,)](
                logits, *layout, length, bias, target.contiguous(),
                None if mask is None else mask.contiguous().view(torch.uint8), logprob, normaliser, entropy,
                rate, softcap or 1.0, V=vocabulary, SOFTCAP=softcap is not None,
                BLOCK=tile(vocabulary, launch.block), **launch.options,
            )  # fmt: skip
    return logprob, normaliser, entropy


def grad_(
    grad: Tensor, logits: Tensor, target: Tensor, mask: Tensor | None, normaliser: Tensor,
    entropy: Tensor | None, grad_logprob: Tensor, grad_entropy: Tensor | None, rate: float, *,
    bias: Tensor | None = None, softcap: float | None = None, has_padding: bool = False,
) -> None:  # fmt: skip
    """Write the gradient of the logits into ``grad``, which may lie in their memory; 0 outside ``mask``.

    ``has_padding``: the rows of ``grad`` are ``padded``, and what lies between them may be written.
    One launch, one read of the rows in ``mask``, one write of all.
    """
    vocabulary, rows = logits.shape[-1], target.numel()
    length = target.shape[1] if target.dim() == 2 else 1
    layout, grad_layout = rows_of(logits), rows_of(grad)
    assert layout is not None
    assert grad_layout is not None
    if rows:
        with launching("logits_grad", logits) as launch:
            logits_grad_kernel[(rows,)](
                logits, *layout, grad, *grad_layout, length, bias, target.contiguous(),
                None if mask is None else mask.contiguous().view(torch.uint8), normaliser,
                None if grad_entropy is None else entropy, grad_logprob.float().contiguous(),
                None if grad_entropy is None else grad_entropy.float().contiguous(), rate, softcap or 1.0,
                V=vocabulary, WIDTH=padded(vocabulary) if has_padding else vocabulary,
                SOFTCAP=softcap is not None, BLOCK=tile(vocabulary, launch.block), **launch.options,
            )  # fmt: skip
