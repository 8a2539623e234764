"""Mean of 1 - cos between the hidden state before each latent position and the latent's target."""

# Triton functions take no annotations.
# ruff: noqa: ANN001, ANN201, ANN202
# mypy: disable-error-code="no-untyped-def"

from __future__ import annotations

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from ._common import (
    NAMESPACE,
    accumulation_dtype,
    check_floating,
    check_tensors,
    debugging,
    once_differentiable,
    readable,
    reciprocal,
    use_triton,
)
from ._gpu_architectures import WIDEST, launching

EPSILON = 1e-8  # a vector of smaller norm counts as zero: cosine 0, gradient 0


def _unit(x: Tensor) -> tuple[Tensor, Tensor]:
    """Rows scaled to norm 1 (zero rows stay zero) and the reciprocal of their norms (0 for zero rows)."""
    # Divided by the largest magnitude first: squares of bf16 extremes would overflow float32.
    largest = x.abs().amax(dim=1, keepdim=True).clamp(min=torch.finfo(x.dtype).tiny)
    scaled = x / largest
    length = scaled.norm(dim=1, keepdim=True)
    present = ~(length * largest < EPSILON)  # NaN, of NaN or infinite features, is no zero
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


@triton.jit
def _load_unit(pointer, columns, inside, EPSILON: tl.constexpr):
    """A row scaled to norm 1 (zero for a zero row) and the reciprocal of its norm (0 for a zero row)."""
    x = tl.load(pointer + columns, mask=inside, other=0.0).to(tl.float32)
    largest = tl.maximum(tl.max(tl.abs(x), axis=0), 1.1754943508222875e-38)
    x = x / largest
    length = tl.sqrt(tl.sum(x * x, axis=0))
    present = (length * largest < EPSILON) == 0
    length = tl.where(present, length, 1.0)
    return tl.where(present, x / length, 0.0), tl.where(present, 1.0 / length / largest, 0.0)


@triton.jit
def cosine_latent_kernel(
    hidden_ptr,
    hidden_stride,
    target_ptr,
    target_stride,
    index_ptr,
    scale_ptr,
    cosine_ptr,
    grad_ptr,
    NEED_GRAD: tl.constexpr,
    H: tl.constexpr,
    EPSILON: tl.constexpr,
    BLOCK_H: tl.constexpr,
):
    """Program: one latent. Its cosine, and the gradient in the hidden state that predicts it."""
    item = tl.program_id(0).to(tl.int64)
    row = tl.load(index_ptr + item) - 1
    columns = tl.arange(0, BLOCK_H)
    inside = columns < H
    x, inverse = _load_unit(hidden_ptr + row * hidden_stride, columns, inside, EPSILON)
    y, _ = _load_unit(target_ptr + item * target_stride, columns, inside, EPSILON)
    cosine = tl.sum(x * y, axis=0)
    tl.store(cosine_ptr + item, cosine)
    if NEED_GRAD:
        slope = (y - cosine * x) * (inverse * -tl.load(scale_ptr))
        tl.store(grad_ptr + row * H + columns, slope.to(grad_ptr.dtype.element_ty), mask=inside)


@triton.jit
def cosine_latent_scale_kernel(grad_ptr, index_ptr, upstream_ptr, H: tl.constexpr, BLOCK_H: tl.constexpr):
    """Program: one latent. Multiplies the gradient that the forward pass left by the upstream gradient."""
    upstream = tl.load(upstream_ptr)
    # Mostly the upstream gradient is 1 and there is nothing to do, which only the device can know.
    if upstream != 1.0:
        row = tl.load(index_ptr + tl.program_id(0)) - 1
        columns = tl.arange(0, BLOCK_H)
        pointers = grad_ptr + row * H + columns
        scaled = tl.load(pointers, mask=columns < H, other=0.0).to(tl.float32) * upstream
        tl.store(pointers, scaled.to(grad_ptr.dtype.element_ty), mask=columns < H)


@torch.library.custom_op(f"{NAMESPACE}::cosine_latent_forward", mutates_args=())
def _forward_op(
    hidden: Tensor, target: Tensor, index: Tensor, scale: Tensor, need_grad: bool, backend: str
) -> tuple[Tensor, Tensor, Tensor]:
    """Loss, cosines [n] and the gradient of all of ``hidden`` (empty unless needed)."""
    grad = (
        torch.zeros(hidden.shape, dtype=hidden.dtype, device=hidden.device)
        if need_grad
        else hidden.new_empty(0)
    )
    if not use_triton(backend, hidden):
        cosine, slope = _reference(hidden, target, index)
        if need_grad:
            grad.index_copy_(0, index - 1, (slope * -scale).to(grad.dtype))
    else:
        cosine = torch.empty(index.shape, dtype=torch.float32, device=hidden.device)
        if index.numel():
            width = hidden.shape[1]
            with launching("cosine_latent", hidden) as launch:
                cosine_latent_kernel[(index.numel(),)](
                    hidden, hidden.stride(0), target, target.stride(0), index, scale, cosine, grad,
                    NEED_GRAD=need_grad, H=width, EPSILON=EPSILON, BLOCK_H=triton.next_power_of_2(width),
                    **launch.options,
                )  # fmt: skip
    return (1.0 - cosine).sum() * scale, cosine, grad


@_forward_op.register_fake
def _(
    hidden: Tensor, target: Tensor, index: Tensor, scale: Tensor, need_grad: bool, backend: str
) -> tuple[Tensor, Tensor, Tensor]:
    grad = hidden.new_empty(hidden.shape) if need_grad else hidden.new_empty(0)
    return scale.new_empty(()), scale.new_empty(index.shape), grad


@torch.library.custom_op(f"{NAMESPACE}::cosine_latent_scale_", mutates_args=("grad",))
def _scale_op(grad: Tensor, index: Tensor, upstream: Tensor, backend: str) -> None:
    if not use_triton(backend, grad):
        wide = accumulation_dtype(grad)
        grad.index_copy_(0, index - 1, (grad[index - 1].to(wide) * upstream.to(wide)).to(grad.dtype))
    elif index.numel():
        width = grad.shape[1]
        with launching("cosine_latent_scale", grad) as launch:
            cosine_latent_scale_kernel[(index.numel(),)](
                grad, index, upstream, H=width, BLOCK_H=triton.next_power_of_2(width), **launch.options
            )


@_scale_op.register_fake
def _(grad: Tensor, index: Tensor, upstream: Tensor, backend: str) -> None:
    return None


class _CosineLatentLoss(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, hidden: Tensor, target: Tensor, index: Tensor, scale: Tensor, backend: str
    ) -> tuple[Tensor, Tensor]:
        # Gradients in float16 would vanish before the upstream gradient, large for their sake, came.
        ahead = ctx.needs_input_grad[0] and hidden.dtype != torch.float16
        loss, cosine, grad = _forward_op(hidden, target, index, scale, ahead, backend)
        ctx.save_for_backward(hidden, target, index, scale)
        ctx.grad, ctx.backend = grad if ahead else None, backend
        ctx.mark_non_differentiable(cosine)
        return loss, cosine

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, upstream: Tensor, _: Tensor) -> tuple[Tensor | None, ...]:
        hidden, target, index, scale = ctx.saved_tensors
        if ctx.grad is not None:
            grad, ctx.grad = ctx.grad, None
            _scale_op(grad, index, upstream.contiguous(), ctx.backend)
        else:  # float16, or a second backward: the first gradient has been given away
            grad = _forward_op(hidden, target, index, scale * upstream, True, ctx.backend)[2]
        return grad, None, None, None, None


def cosine_latent_loss(
    hidden: Tensor,
    target: Tensor,
    index: Tensor,
    *,
    num_items: Tensor | float | None = None,
    backend: str = "auto",
) -> tuple[Tensor, Tensor]:
    """``sum(1 - cos(h[index - 1], target)) / num_items`` and the cosine of every latent.

    Norms and dot products are float32 (float64 for float64 inputs). A vector of norm below 1e-8 has cosine 0
    and gradient 0; one with NaN or infinity makes the loss and its row's gradient NaN.

    The forward reads the rows once and writes their gradient straight into the gradient of ``hidden``; the
    backward touches it again only when the upstream gradient is not 1. Gradients in float16 are
    computed in the backward, from a second read. H may be up to 16384.

    Args:
        hidden: [B, T, H] or [N, H], after the final norm.
        target: [n, H], a constant: it must not require gradients.
        index: [n] int64, the flat positions b * T + p of the latent pads, all different. The hidden state
            read is the one at p - 1, which predicts position p.
        num_items: latents of the whole update, a number or a scalar tensor, 0 or more; None: n.
        backend: ``"auto"``, ``"triton"`` or ``"torch"``.

    Returns:
        The scalar float32 loss and the cosines [n], detached. Without latents the loss is 0, part of the
        graph, with zero gradients.

    Raises:
        ValueError: shapes, dtypes or devices do not fit. Positions are range-checked on the CPU, and on CUDA
            with ``FOURDTHINKER_DEBUG=1`` because that synchronises.
    """
    check_tensors(hidden=hidden, target=target, index=index)
    check_floating(hidden=hidden, target=target)
    if hidden.dim() not in (2, 3) or target.dim() != 2 or hidden.shape[-1] != target.shape[1]:
        raise ValueError(
            f"hidden {tuple(hidden.shape)} must be [.., H] and target {tuple(target.shape)} [n, H]"
        )
    if index.dtype != torch.int64 or tuple(index.shape) != (target.shape[0],):
        raise ValueError(
            f"index is {tuple(index.shape)} {index.dtype}; it must be ({target.shape[0]},) int64"
        )
    if hidden.shape[-1] > WIDEST:
        raise ValueError(f"hidden is {hidden.shape[-1]} wide; at most {WIDEST} is supported")
    if target.requires_grad:
        raise ValueError("target requires gradients, but it is a constant of the loss; pass target.detach()")
    rows = hidden.reshape(-1, hidden.shape[-1])
    rows = rows if rows.shape[1] <= 1 or rows.stride(1) == 1 else rows.contiguous()
    target = target.contiguous()
    if (debugging() or readable(index)) and index.numel():
        # Position N of [N, H] is the one after the last row, which predicts it.
        length = hidden.shape[1] if hidden.dim() == 3 else rows.shape[0] + 1
        low, high = int((index % length).min()), int(index.max())
        if int(index.min()) < 1 or low == 0 or high > rows.shape[0]:
            raise ValueError(
                f"index has positions from {int(index.min())} to {high} in rows of {length}, "
                f"{rows.shape[0]} in all; a latent needs a position before it in its own row"
            )
    scale = reciprocal(
        index.numel() if num_items is None else num_items, rows, accumulation_dtype(rows, target)
    )
    loss, cosine = _CosineLatentLoss.apply(rows, target, index, scale, backend)
    return loss, cosine
