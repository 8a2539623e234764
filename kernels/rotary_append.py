"""A decode step's rotary embedding, with the new keys and values written to their position in the cache."""

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
    debug_ranges,
    use_triton,
)
from ._gpu_architectures import launching


def _normed(x: Tensor, weight: Tensor | None, eps: float) -> Tensor:
    if weight is None:
        return x
    wide = x.to(accumulation_dtype(x))
    return weight * (wide * torch.rsqrt(wide.pow(2).mean(-1, keepdim=True) + eps)).to(x.dtype)


def _rotated(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    half = x.shape[-1] // 2
    turned = torch.cat((-x[..., half:], x[..., :half]), dim=-1)
    return x * cos[:, None] + turned * sin[:, None]


def _reference(
    query: Tensor, key: Tensor, value: Tensor, cos: Tensor, sin: Tensor, keys: Tensor, values: Tensor,
    positions: Tensor, query_weight: Tensor | None, key_weight: Tensor | None, eps: float,
) -> Tensor:  # fmt: skip
    key = _rotated(_normed(key, key_weight, eps), cos, sin)
    index = positions[:, None, None, None].expand(-1, keys.shape[1], 1, keys.shape[3])
    keys.scatter_(2, index, key[:, :, None])
    values.scatter_(2, index, value[:, :, None])
    return _rotated(_normed(query, query_weight, eps), cos, sin)


@triton.jit(do_not_specialize=["eps"])
def rotary_append_kernel(
    query_ptr, query_stride, key_ptr, key_stride, value_ptr, value_stride, cos_ptr, cos_stride, sin_ptr,
    sin_stride, keys_ptr, keys_row, keys_head, keys_step, values_ptr, values_row, values_head, values_step,
    positions_ptr, query_weight_ptr, key_weight_ptr, out_ptr, eps,
    HEADS: tl.constexpr, KV: tl.constexpr, D: tl.constexpr,
):  # fmt: skip
    """Program: one head of one row. Rotates a query; rotates and stores a key; stores a value."""
    row = (tl.program_id(0) // (HEADS + 2 * KV)).to(tl.int64)
    head = tl.program_id(0) % (HEADS + 2 * KV)
    columns = tl.arange(0, D)
    position = tl.load(positions_ptr + row).to(tl.int64)
    kind = out_ptr.dtype.element_ty
    if head >= HEADS + KV:
        head -= HEADS + KV
        value = tl.load(value_ptr + row * value_stride + head * D + columns)
        tl.store(values_ptr + row * values_row + head * values_head + position * values_step + columns, value)
    else:
        # What stands half a head away, and with which sign it is turned in.
        other = (columns + D // 2) % D
        sign = tl.where(columns < D // 2, -1.0, 1.0)
        is_key = head >= HEADS
        if is_key:
            source = key_ptr + row * key_stride + (head - HEADS) * D
        else:
            source = query_ptr + row * query_stride + head * D
        x = tl.load(source + columns).to(tl.float32)
        y = tl.load(source + other).to(tl.float32)
        if query_weight_ptr is not None:
            scale = 1.0 / tl.sqrt_rn(tl.sum(x * x, axis=0) / D + eps)
            weights = key_weight_ptr if is_key else query_weight_ptr
            x = (x * scale).to(kind).to(tl.float32) * tl.load(weights + columns).to(tl.float32)
            y = (y * scale).to(kind).to(tl.float32) * tl.load(weights + other).to(tl.float32)
            x = x.to(kind).to(tl.float32)
            y = y.to(kind).to(tl.float32)
        cos = tl.load(cos_ptr + row * cos_stride + columns).to(tl.float32)
        sin = tl.load(sin_ptr + row * sin_stride + columns).to(tl.float32)
        turned = (x * cos + sign * y * sin).to(kind)
        if is_key:
            tl.store(
                keys_ptr + row * keys_row + (head - HEADS) * keys_head + position * keys_step + columns,
                turned,
            )
        else:
            tl.store(out_ptr + (row * HEADS + head) * D + columns, turned)


@torch.library.custom_op(f"{NAMESPACE}::rotary_append_", mutates_args=("keys", "values"))
def _op(
    query: Tensor, key: Tensor, value: Tensor, cos: Tensor, sin: Tensor, keys: Tensor, values: Tensor,
    positions: Tensor, query_weight: Tensor | None, key_weight: Tensor | None, eps: float,
) -> Tensor:  # fmt: skip
    rows, heads, width = query.shape
    kv_heads = key.shape[1]
    out = torch.empty(rows, heads, width, dtype=query.dtype, device=query.device)
    if rows:
        with launching("rotary_append", query) as launch:
            rotary_append_kernel[(rows * (heads + 2 * kv_heads),)](
                query, query.stride(0), key, key.stride(0), value, value.stride(0), cos, cos.stride(0), sin,
                sin.stride(0), keys, *keys.stride()[:3], values, *values.stride()[:3], positions,
                query_weight, key_weight, out, eps, HEADS=heads, KV=kv_heads, D=width, **launch.options,
            )  # fmt: skip
    return out


@_op.register_fake
def _(query: Tensor, *rest: Tensor | float | None) -> Tensor:
    return torch.empty(query.shape, dtype=query.dtype, device=query.device)


def rotary_append_(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    cos: Tensor,
    sin: Tensor,
    keys: Tensor,
    values: Tensor,
    positions: Tensor,
    *,
    query_weight: Tensor | None = None,
    key_weight: Tensor | None = None,
    eps: float = 1e-6,
    backend: str = "auto",
) -> Tensor:
    """Rotate one new token per row and append its key and value to the row's cache.

    The arithmetic is float32; on CUDA only what is normed and what is turned are rounded. One launch on CUDA;
    D must be a power of two there. For inference: there is no gradient.

    Args:
        query: [R, heads, D], heads of a row side by side.
        key: [R, kv_heads, D], likewise.
        value: [R, kv_heads, D], likewise.
        cos: [R, D] of the rows' positions, the halves alike.
        sin: [R, D], likewise.
        keys: the cache, [R, kv_heads, T, D], changed in place.
        values: the cache, [R, kv_heads, T, D], changed in place.
        positions: [R] int64, the position in the cache that is written, below T.
        query_weight: [D], of an RMS norm of every query head before it is turned (Qwen3); None: no norm.
        key_weight: [D], the same for the keys; both or neither.
        eps: added to the mean square of that norm.
        backend: ``"auto"``, ``"triton"`` or ``"torch"``.

    Returns:
        The rotated query [R, heads, D].

    Raises:
        ValueError: shapes, dtypes or devices do not fit; a tensor requires a gradient (outside of
            ``torch.no_grad()``); with ``FOURDTHINKER_DEBUG=1`` alone, positions are
            out of range.
    """
    of_one_dtype = {
        "key": key, "value": value, "cos": cos, "sin": sin, "keys": keys, "values": values,
        "query_weight": query_weight, "key_weight": key_weight,
    }  # fmt: skip
    check_tensors("query_weight", "key_weight", query=query, **of_one_dtype, positions=positions)
    check_floating(query=query)
    check_number("eps", eps, minimum=0)
    check_inference("rotary_append_", query=query, **of_one_dtype)
    if query.dim() != 3 or keys.dim() != 4:
        raise ValueError(
            f"query {tuple(query.shape)} and keys {tuple(keys.shape)} must be [R, heads, D] and "
            "[R, kv_heads, T, D]"
        )
    rows, _, width = query.shape
    shape = (rows, keys.shape[1], width)
    if tuple(key.shape) != shape or tuple(value.shape) != shape or tuple(keys.shape[::3]) != (rows, width):
        raise ValueError(
            f"key {tuple(key.shape)}, value {tuple(value.shape)} and cache {tuple(keys.shape)} do not fit "
            f"the query {tuple(query.shape)}; they must be [R, kv_heads, D] and [R, kv_heads, T, D]"
        )
    for name, tensor in of_one_dtype.items():
        if tensor is not None and tensor.dtype != query.dtype:
            raise ValueError(f"{name} is {tensor.dtype} but query is {query.dtype}; cast one of them")
    if values.shape != keys.shape or tuple(positions.shape) != (rows,) or positions.dtype != torch.int64:
        raise ValueError(
            f"values {tuple(values.shape)} must be as keys {tuple(keys.shape)}, positions "
            f"{tuple(positions.shape)} {positions.dtype} must be ({rows},) torch.int64"
        )
    if tuple(cos.shape) != (rows, width) or sin.shape != cos.shape:
        raise ValueError(f"cos {tuple(cos.shape)} and sin {tuple(sin.shape)} must be {(rows, width)}")
    if (query_weight is None) != (key_weight is None):
        raise ValueError("query_weight and key_weight go together; give both or neither")
    for name, weight in (("query_weight", query_weight), ("key_weight", key_weight)):
        if weight is not None and tuple(weight.shape) != (width,):
            raise ValueError(f"{name} is {tuple(weight.shape)}; it must be ({width},)")
    debug_ranges(positions=(positions, keys.shape[2]))
    if not use_triton(backend, query):
        return _reference(query, key, value, cos, sin, keys, values, positions, query_weight, key_weight, eps)
    if width & (width - 1) or width < 2:
        raise ValueError(f"query is {width} wide; the kernel takes a power of two")
    dense = [x if x.stride(2) == 1 and x.stride(1) == width else x.contiguous() for x in (query, key, value)]
    return _op(*dense, cos, sin, keys, values, positions, query_weight, key_weight, eps)
