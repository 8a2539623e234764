"""Decode attention of groups of rows that share their prompt: its keys and values are read once per group."""

# Triton functions take no annotations.
# ruff: noqa: ANN001, ANN202
# mypy: disable-error-code="no-untyped-def"

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from ._common import NAMESPACE, accumulation_dtype, check_finite, tile, use_triton

SPLIT = 512  # prompt positions per program
BLOCK = 64  # positions per step


def _reference(
    query: Tensor, prompt_key: Tensor, prompt_value: Tensor, key: Tensor, value: Tensor,
    prompt_lengths: Tensor, lengths: Tensor, scale: float,
) -> Tensor:  # fmt: skip
    rows, heads, width = query.shape
    groups, kv_heads, prompt, _ = prompt_key.shape
    wide = accumulation_dtype(query)
    q = query.to(wide).reshape(groups, rows // groups, kv_heads, heads // kv_heads, width)
    shared = torch.einsum("ngkhd,nkpd->ngkhp", q, prompt_key.to(wide))
    past = torch.arange(prompt, device=query.device) >= prompt_lengths[:, None]
    # What lies past a length may be anything, NaN included, and 0 * NaN is NaN.
    prompt_value = prompt_value.masked_fill(past[:, None, :, None], 0.0)
    shared = shared.masked_fill(past[:, None, None, None, :], -torch.inf).flatten(0, 1)
    own = torch.einsum("rkhd,rktd->rkht", q.flatten(0, 1), key.to(wide))
    past = torch.arange(key.shape[2], device=query.device) >= lengths[:, None]
    value = value.masked_fill(past[:, None, :, None], 0.0)
    own = own.masked_fill(past[:, None, None, :], -torch.inf)
    # A row without any position has only -inf: its softmax is NaN, its result 0.
    weights = (torch.cat((shared, own), dim=-1) * scale).softmax(dim=-1).nan_to_num(0.0)
    ours = weights[..., :prompt].unflatten(0, (groups, rows // groups))
    out = torch.einsum("ngkhp,nkpd->ngkhd", ours, prompt_value.to(wide)).flatten(0, 1)
    out = out + torch.einsum("rkht,rktd->rkhd", weights[..., prompt:], value.to(wide))
    return out.reshape(rows, heads, width).to(query.dtype)


@triton.jit
def _attend(
    q, key_ptr, key_stride, value_ptr, value_stride, begin, end, scale, top, total, acc,
    D: tl.constexpr, BLOCK: tl.constexpr, UPCAST: tl.constexpr,
):  # fmt: skip
    """Online softmax of q [Q, D] over the positions from ``begin`` to ``end``."""
    columns = tl.arange(0, D)
    for start in range(begin, end, BLOCK):
        positions = start + tl.arange(0, BLOCK)
        inside = positions < end
        at = positions.to(tl.int64)[:, None]
        k = tl.load(key_ptr + at * key_stride + columns[None, :], mask=inside[:, None], other=0.0)
        v = tl.load(value_ptr + at * value_stride + columns[None, :], mask=inside[:, None], other=0.0)
        if UPCAST:
            k = k.to(tl.float32)
            v = v.to(tl.float32)
        score = tl.dot(q, tl.trans(k), input_precision="ieee") * scale
        score = tl.where(inside[None, :], score, float("-inf"))
        highest = tl.maximum(top, tl.max(score, axis=1))
        weight = tl.exp(score - highest[:, None])
        rescale = tl.exp(top - highest)
        total = total * rescale + tl.sum(weight, axis=1)
        acc = acc * rescale[:, None] + tl.dot(weight.to(v.dtype), v, input_precision="ieee")
        top = highest
    return top, total, acc


@triton.jit(do_not_specialize=["group_size", "scale"])
def _prompt_kernel(
    query_ptr,
    query_stride,
    key_ptr,
    key_group_stride,
    key_head_stride,
    key_stride,
    value_ptr,
    value_group_stride,
    value_head_stride,
    value_stride,
    lengths_ptr,
    partial_ptr,
    log_ptr,
    group_size,
    scale,
    KV: tl.constexpr,
    REP: tl.constexpr,
    D: tl.constexpr,
    SPLIT: tl.constexpr,
    BLOCK: tl.constexpr,
    QUERIES: tl.constexpr,
    UPCAST: tl.constexpr,
):
    group = (tl.program_id(0) // KV).to(tl.int64)
    head = tl.program_id(0) % KV
    split = tl.program_id(1)
    queries = tl.program_id(2) * QUERIES + tl.arange(0, QUERIES)
    valid = queries < group_size * REP
    columns = tl.arange(0, D)
    row = group * group_size + queries // REP
    out = (row * KV + head) * REP + queries % REP
    q_ptr = query_ptr + row * query_stride + (head * REP + queries % REP) * D
    q = tl.load(q_ptr[:, None] + columns[None, :], mask=valid[:, None], other=0.0)
    if UPCAST:
        q = q.to(tl.float32)
    begin = split * SPLIT
    end = tl.minimum(begin + SPLIT, tl.load(lengths_ptr + group).to(tl.int32))
    # A finite start keeps exp(top - highest) from being exp(-inf + inf).
    top = tl.full([QUERIES], -1e30, tl.float32)
    total = tl.zeros([QUERIES], tl.float32)
    acc = tl.zeros([QUERIES, D], tl.float32)
    top, total, acc = _attend(
        q, key_ptr + group * key_group_stride + head * key_head_stride, key_stride,
        value_ptr + group * value_group_stride + head * value_head_stride, value_stride,
        begin, end, scale, top, total, acc, D, BLOCK, UPCAST,
    )  # fmt: skip
    out = out * tl.num_programs(1) + split
    safe = tl.where(total > 0, total, 1.0)
    tl.store(partial_ptr + out[:, None] * D + columns[None, :], acc / safe[:, None], mask=valid[:, None])
    tl.store(log_ptr + out, tl.where(total > 0, top + tl.log(safe), float("-inf")), mask=valid)


@triton.jit(do_not_specialize=["scale", "splits"])
def _own_kernel(
    query_ptr,
    query_stride,
    key_ptr,
    key_row_stride,
    key_head_stride,
    key_stride,
    value_ptr,
    value_row_stride,
    value_head_stride,
    value_stride,
    lengths_ptr,
    partial_ptr,
    log_ptr,
    output_ptr,
    splits,
    scale,
    KV: tl.constexpr,
    REP: tl.constexpr,
    D: tl.constexpr,
    BLOCK: tl.constexpr,
    QUERIES: tl.constexpr,
    UPCAST: tl.constexpr,
):
    row = (tl.program_id(0) // KV).to(tl.int64)
    head = tl.program_id(0) % KV
    queries = tl.arange(0, QUERIES)
    valid = queries < REP
    columns = tl.arange(0, D)
    q_ptr = query_ptr + row * query_stride + (head * REP + queries) * D
    q = tl.load(q_ptr[:, None] + columns[None, :], mask=valid[:, None], other=0.0)
    if UPCAST:
        q = q.to(tl.float32)
    top = tl.full([QUERIES], -1e30, tl.float32)
    total = tl.zeros([QUERIES], tl.float32)
    acc = tl.zeros([QUERIES, D], tl.float32)
    top, total, acc = _attend(
        q, key_ptr + row * key_row_stride + head * key_head_stride, key_stride,
        value_ptr + row * value_row_stride + head * value_head_stride, value_stride,
        0, tl.load(lengths_ptr + row).to(tl.int32), scale, top, total, acc, D, BLOCK, UPCAST,
    )  # fmt: skip
    out = (row * KV + head) * REP + queries
    for split in range(splits):
        at = out * splits + split
        log = tl.load(log_ptr + at, mask=valid, other=float("-inf"))
        part = tl.load(partial_ptr + at[:, None] * D + columns[None, :], mask=valid[:, None], other=0.0)
        highest = tl.maximum(top, log)
        rescale = tl.exp(top - highest)
        weight = tl.exp(log - highest)
        total = total * rescale + weight
        acc = acc * rescale[:, None] + part * weight[:, None]
        top = highest
    acc = acc / tl.where(total > 0, total, 1.0)[:, None]
    tl.store(
        output_ptr + out[:, None] * D + columns[None, :],
        acc.to(output_ptr.dtype.element_ty),
        mask=valid[:, None],
    )


@torch.library.custom_op(f"{NAMESPACE}::shared_prefix_decode", mutates_args=())
def _decode_op(
    query: Tensor,
    prompt_key: Tensor,
    prompt_value: Tensor,
    key: Tensor,
    value: Tensor,
    prompt_lengths: Tensor,
    lengths: Tensor,
    scale: float,
    backend: str,
) -> Tensor:
    if not use_triton(backend, query):
        return _reference(query, prompt_key, prompt_value, key, value, prompt_lengths, lengths, scale)
    rows, heads, width = query.shape
    groups, kv_heads, prompt, _ = prompt_key.shape
    repeat = heads // kv_heads
    query = query.contiguous()
    output = torch.empty_like(query)
    splits = triton.cdiv(prompt, SPLIT)
    partial = torch.empty(rows, heads, splits, width, dtype=torch.float32, device=query.device)
    logs = torch.empty(rows, heads, splits, dtype=torch.float32, device=query.device)
    # The interpreter's bf16 dot is wrong; on a GPU the tensor cores take it.
    upcast = not query.is_cuda
    if rows and splits:
        together = rows // groups * repeat
        queries = max(16, tile(together, 64))
        _prompt_kernel[(groups * kv_heads, splits, triton.cdiv(together, queries))](
            query, query.stride(0), prompt_key, *prompt_key.stride()[:3], prompt_value,
            *prompt_value.stride()[:3], prompt_lengths, partial, logs, rows // groups, scale, KV=kv_heads,
            REP=repeat, D=width, SPLIT=SPLIT, BLOCK=BLOCK, QUERIES=queries, UPCAST=upcast, num_warps=4,
        )  # fmt: skip
    if rows:
        _own_kernel[(rows * kv_heads,)](
            query, query.stride(0), key, *key.stride()[:3], value, *value.stride()[:3], lengths, partial,
            logs, output, splits, scale, KV=kv_heads, REP=repeat, D=width, BLOCK=BLOCK,
            QUERIES=max(16, triton.next_power_of_2(repeat)), UPCAST=upcast, num_warps=4,
        )  # fmt: skip
    return output


@_decode_op.register_fake
def _(query: Tensor, *rest: Tensor | float | str) -> Tensor:
    return torch.empty(query.shape, dtype=query.dtype, device=query.device)


def shared_prefix_decode(
    query: Tensor,
    prompt_key: Tensor,
    prompt_value: Tensor,
    key: Tensor,
    value: Tensor,
    *,
    prompt_lengths: Tensor,
    lengths: Tensor,
    scale: float | None = None,
    backend: str = "auto",
) -> Tensor:
    """Attention of one new token per row over its group's prompt and its own past.

    ``query`` [R, heads, D]; ``prompt_key``, ``prompt_value`` [N, kv_heads, P, D] of the N groups, whose rows
    are consecutive (R = N * G); ``key``, ``value`` [R, kv_heads, T, D] of the rows, the new token's included.
    ``prompt_lengths`` [N] and ``lengths`` [R] int32 or int64 say how many of the P and T positions hold
    something; they stay on the device, so a CUDA graph may be replayed while they change. Query head h reads
    key-value head h // (heads / kv_heads). ``scale`` defaults to D ** -0.5. The last dimension must be
    dense; the others may have any strides, as slices of a larger cache have.

    Two launches: the first reads every prompt key and value once per group, 512 positions a program, for
    all rows of the group together; the second adds the row's own and merges by log-sum-exp. Softmax and
    sums are float32. No gradient. On CUDA D must be a power of two from 16 to 256.

    Returns [R, heads, D] in the dtype of ``query``; a row without any position gives 0. Raises
    ``ValueError`` for shapes, dtypes, layouts and devices that do not fit.
    """
    if query.dim() != 3 or prompt_key.dim() != 4 or key.dim() != 4:
        raise ValueError(
            f"query {tuple(query.shape)} must be [R, heads, D], prompt_key {tuple(prompt_key.shape)} and key "
            f"{tuple(key.shape)} [.., kv_heads, positions, D]"
        )
    rows, heads, width = query.shape
    groups, kv_heads = prompt_key.shape[:2]
    scale = width**-0.5 if scale is None else scale
    check_finite(scale=scale)
    if groups == 0 or rows % groups:
        raise ValueError(f"the {rows} rows cannot be shared out evenly among {groups} prompts")
    if kv_heads == 0 or heads % kv_heads:
        raise ValueError(f"{heads} query heads do not divide among {kv_heads} key-value heads")
    shapes = {
        "prompt_key": (prompt_key, (groups, kv_heads, prompt_key.shape[2], width)),
        "prompt_value": (prompt_value, tuple(prompt_key.shape)),
        "key": (key, (rows, kv_heads, key.shape[2], width)),
        "value": (value, tuple(key.shape)),
        "prompt_lengths": (prompt_lengths, (groups,)),
        "lengths": (lengths, (rows,)),
    }
    for name, (tensor, shape) in shapes.items():
        if tuple(tensor.shape) != shape or tensor.device != query.device:
            raise ValueError(
                f"{name} is {tuple(tensor.shape)} on {tensor.device}; it must be {shape} on {query.device}"
            )
        if tensor.dim() == 4 and tensor.dtype != query.dtype:
            raise ValueError(f"{name} is {tensor.dtype} but query is {query.dtype}; cast one of them")
        if tensor.dim() == 4 and tensor.stride(3) != 1:
            raise ValueError(f"{name} has strides {tensor.stride()}; its last dimension must be dense")
        if tensor.dim() == 1 and (
            tensor.dtype not in (torch.int32, torch.int64) or not tensor.is_contiguous()
        ):
            raise ValueError(f"{name} is {tensor.dtype}; it must be contiguous int32 or int64")
    if use_triton(backend, query) and (width & (width - 1) or not 16 <= width <= 256):
        raise ValueError(f"query is {width} wide; the kernel takes a power of two from 16 to 256")
    with torch.no_grad():
        return _decode_op(
            query, prompt_key, prompt_value, key, value, prompt_lengths, lengths, scale, backend
        )
