"""silu(gate) * up in one launch."""

# Triton functions take no annotations.
# ruff: noqa: ANN001, ANN201
# mypy: disable-error-code="no-untyped-def"

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from ._common import NAMESPACE, check_floating, check_inference, check_tensors, use_triton
from ._gpu_architectures import launching


def _reference(gate: Tensor, up: Tensor) -> Tensor:
    return torch.nn.functional.silu(gate).mul_(up)


@triton.jit
def silu_mul_kernel(
    gate_ptr, gate_stride, up_ptr, up_stride, out_ptr, H: tl.constexpr, BLOCK: tl.constexpr
):  # fmt: skip
    """Program: BLOCK columns of one row."""
    columns = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    inside = columns < H
    row = tl.program_id(0).to(tl.int64)
    gate = tl.load(gate_ptr + row * gate_stride + columns, mask=inside, other=0.0).to(tl.float32)
    up = tl.load(up_ptr + row * up_stride + columns, mask=inside, other=0.0).to(tl.float32)
    active = (gate * tl.sigmoid(gate)).to(out_ptr.dtype.element_ty).to(tl.float32)
    tl.store(out_ptr + row * H + columns, (active * up).to(out_ptr.dtype.element_ty), mask=inside)


@torch.library.custom_op(f"{NAMESPACE}::silu_mul", mutates_args=())
def _op(gate: Tensor, up: Tensor) -> Tensor:
    rows, width = gate.shape
    out = torch.empty(rows, width, dtype=gate.dtype, device=gate.device)
    if gate.numel():
        with launching("silu_mul", gate) as launch:
            silu_mul_kernel[(rows, triton.cdiv(width, launch.block))](
                gate, gate.stride(0), up, up.stride(0), out, H=width, BLOCK=launch.block, **launch.options
            )  # fmt: skip
    return out


@_op.register_fake
def _(gate: Tensor, up: Tensor) -> Tensor:
    return torch.empty(gate.shape, dtype=gate.dtype, device=gate.device)


def silu_mul(gate: Tensor, up: Tensor, *, backend: str = "auto") -> Tensor:
    """``silu(gate) * up``.

    silu is computed in float32 and rounded before the product, as the modules it stands for do. One launch on
    CUDA; 3 * R * H elements read and written. For inference: there is no gradient.

    Args:
        gate: [R, H] floating; the two may be halves of one [R, 2 H].
        up: [R, H] of the same dtype.
        backend: ``"auto"``, ``"triton"`` or ``"torch"``.

    Returns:
        [R, H] of that dtype.

    Raises:
        ValueError: the two do not fit, or one requires a gradient (outside of ``torch.no_grad()``).
    """
    check_tensors(gate=gate, up=up)
    check_floating(gate=gate)
    check_inference("silu_mul", gate=gate, up=up)
    if gate.dim() != 2 or gate.shape != up.shape or gate.dtype != up.dtype:
        raise ValueError(
            f"gate {tuple(gate.shape)} {gate.dtype} and up {tuple(up.shape)} {up.dtype} must be [R, H] of "
            "one dtype"
        )
    if not use_triton(backend, gate):
        return _reference(gate, up)
    gate, up = (x if x.stride(1) == 1 else x.contiguous() for x in (gate, up))
    return _op(gate, up)
