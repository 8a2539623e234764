"""A residual sum and its RMS norm in one launch."""

# Triton functions take no annotations.
# ruff: noqa: ANN001, ANN201
# mypy: disable-error-code="no-untyped-def"

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from ._common import (
    NAMESPACE,
    accumulation_dtype,
    check_floating,
    check_inference,
    check_number,
    check_tensors,
    use_triton,
)
from ._gpu_architectures import WIDEST, launching, settings


def _reference(x: Tensor, residual: Tensor | None, weight: Tensor, eps: float) -> tuple[Tensor, Tensor]:
    total = x if residual is None else residual + x
    wide = total.to(accumulation_dtype(total))
    scaled = wide * torch.rsqrt(wide.pow(2).mean(-1, keepdim=True) + eps)
    return weight * scaled.to(total.dtype), total


@triton.jit(do_not_specialize=["eps"])
def add_rms_norm_kernel(
    x_ptr, x_stride, residual_ptr, residual_stride, weight_ptr, normed_ptr, total_ptr, eps,
    H: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """Program: one row. BLOCK covers its H columns, so that the row is read once."""
    row = tl.program_id(0).to(tl.int64)
    columns = tl.arange(0, BLOCK)
    inside = columns < H
    total = tl.load(x_ptr + row * x_stride + columns, mask=inside, other=0.0).to(tl.float32)
    if residual_ptr is not None:
        residual = tl.load(residual_ptr + row * residual_stride + columns, mask=inside, other=0.0)
        total += residual.to(tl.float32)
        # The norm is that of the sum as it is kept, rounded to its dtype.
        rounded = total.to(total_ptr.dtype.element_ty)
        tl.store(total_ptr + row * H + columns, rounded, mask=inside)
        total = rounded.to(tl.float32)
    scale = 1.0 / tl.sqrt_rn(tl.sum(total * total, axis=0) / H + eps)
    weight = tl.load(weight_ptr + columns, mask=inside, other=0.0).to(tl.float32)
    kept = (total * scale).to(normed_ptr.dtype.element_ty).to(tl.float32)
    tl.store(normed_ptr + row * H + columns, (kept * weight).to(normed_ptr.dtype.element_ty), mask=inside)


@torch.library.custom_op(f"{NAMESPACE}::add_rms_norm", mutates_args=())
def _op(x: Tensor, residual: Tensor | None, weight: Tensor, eps: float) -> tuple[Tensor, Tensor]:
    rows, width = x.shape
    normed = torch.empty(rows, width, dtype=x.dtype, device=x.device)
    total = torch.empty_like(normed)
    if rows:
        narrow = width < settings("add_rms_norm_narrow", x.device).block
        with launching("add_rms_norm_narrow" if narrow else "add_rms_norm", x) as launch:
            add_rms_norm_kernel[(rows,)](
                x, x.stride(0), residual, 0 if residual is None else residual.stride(0), weight, normed,
                total, eps, H=width, BLOCK=triton.next_power_of_2(width), **launch.options,
            )  # fmt: skip
    return normed, total


@_op.register_fake
def _(x: Tensor, residual: Tensor | None, weight: Tensor, eps: float) -> tuple[Tensor, Tensor]:
    return torch.empty_like(x), torch.empty_like(x)


def add_rms_norm(
    x: Tensor, residual: Tensor | None, weight: Tensor, eps: float, *, backend: str = "auto"
) -> tuple[Tensor, Tensor]:
    """The RMS norm of ``residual + x``, and that sum.

    The sum is rounded to the dtype of ``x``; its norm is computed in float32, rounded, and then multiplied by
    ``weight``, as the Qwen families of transformers do. One launch on CUDA, 4 * R * H elements read and
    written. For inference: there is no gradient.

    Args:
        x: [R, H], rows dense.
        residual: [R, H] of the dtype of ``x``, rows dense; None: the sum is ``x`` itself.
        weight: [H].
        eps: added to the mean square.
        backend: ``"auto"``, ``"triton"`` or ``"torch"``.

    Returns:
        ``normed`` and ``total``, both [R, H] in the dtype of ``x``.

    Raises:
        ValueError: shapes, dtypes or devices do not fit, ``eps`` is negative, on CUDA H is above 16384, or a
            tensor requires a gradient (outside of ``torch.no_grad()``).
    """
    check_tensors("residual", x=x, residual=residual, weight=weight)
    check_floating(x=x, weight=weight)
    check_number("eps", eps, minimum=0)
    check_inference("add_rms_norm", x=x, residual=residual, weight=weight)
    if x.dim() != 2 or tuple(weight.shape) != (x.shape[1],):
        raise ValueError(f"x {tuple(x.shape)} and weight {tuple(weight.shape)} must be [R, H] and [H]")
    if residual is not None and (residual.shape != x.shape or residual.dtype != x.dtype):
        raise ValueError(
            f"residual is {tuple(residual.shape)} {residual.dtype}; it must be {tuple(x.shape)} {x.dtype}"
        )
    if not use_triton(backend, x):
        return _reference(x, residual, weight, eps)
    if x.shape[1] > WIDEST:
        raise ValueError(f"x is {x.shape[1]} wide; the kernel takes at most {WIDEST} columns")
    if x.stride(1) != 1 or (residual is not None and residual.stride(1) != 1):
        raise ValueError(f"x has strides {x.stride()}; its rows and those of residual must be dense")
    normed, total = _op(x, residual, weight, eps)
    return normed, x if residual is None else total
