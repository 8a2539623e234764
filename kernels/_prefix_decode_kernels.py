"""The kernels of shared-prefix decoding: a group's queries over a part of its prompt, a row's over its own.

Every program leaves the attention over its positions and the log of its sum of exponentials; the last one
merges them.
"""

# Triton functions take no annotations.
# ruff: noqa: ANN001, ANN202
# mypy: disable-error-code="no-untyped-def"

from __future__ import annotations

import triton
import triton.language as tl


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
        offsets = positions.to(tl.int64)[:, None]
        k = tl.load(key_ptr + offsets * key_stride + columns[None, :], mask=inside[:, None], other=0.0)
        v = tl.load(value_ptr + offsets * value_stride + columns[None, :], mask=inside[:, None], other=0.0)
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


@triton.jit(do_not_specialize=["group_size", "splits", "span", "scale"])
def prefix_decode_prompt_kernel(
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
    starts_ptr,
    order_ptr,
    row_starts_ptr,
    partial_ptr,
    log_ptr,
    group_size,
    splits,
    span,
    scale,
    KV: tl.constexpr,
    REP: tl.constexpr,
    D: tl.constexpr,
    BLOCK: tl.constexpr,
    QUERIES: tl.constexpr,
    UPCAST: tl.constexpr,
):
    """Program: one split of a prompt's keys, one KV head, QUERIES of the queries that share them."""
    group = (tl.program_id(0) // KV).to(tl.int64)
    head = tl.program_id(0) % KV
    split = tl.program_id(1)
    queries = tl.program_id(2) * QUERIES + tl.arange(0, QUERIES)
    columns = tl.arange(0, D)
    first = group * group_size
    if row_starts_ptr is not None:
        first = tl.load(row_starts_ptr + group).to(tl.int64)
        group_size = tl.load(row_starts_ptr + group + 1).to(tl.int32) - first.to(tl.int32)
    if tl.program_id(2) * QUERIES >= group_size * REP:
        return
    valid = queries < group_size * REP
    row = first + queries // REP
    if order_ptr is not None:
        row = tl.load(order_ptr + row, mask=valid, other=0).to(tl.int64)
    out = (row * KV + head) * REP + queries % REP
    q_ptr = query_ptr + row * query_stride + (head * REP + queries % REP) * D
    q = tl.load(q_ptr[:, None] + columns[None, :], mask=valid[:, None], other=0.0)
    if UPCAST:
        q = q.to(tl.float32)
    begin = split * span
    end = tl.minimum(begin + span, tl.load(lengths_ptr + group).to(tl.int32))
    if starts_ptr is not None:
        start = tl.load(starts_ptr + group).to(tl.int64)
        key_ptr += start * key_stride
        value_ptr += start * value_stride
    # A finite start keeps exp(top - highest) from being exp(-inf + inf).
    top = tl.full([QUERIES], -1e30, tl.float32)
    total = tl.zeros([QUERIES], tl.float32)
    acc = tl.zeros([QUERIES, D], tl.float32)
    top, total, acc = _attend(
        q, key_ptr + group * key_group_stride + head * key_head_stride, key_stride,
        value_ptr + group * value_group_stride + head * value_head_stride, value_stride,
        begin, end, scale, top, total, acc, D, BLOCK, UPCAST,
    )  # fmt: skip
    _store_partial(partial_ptr, log_ptr, out * splits + split, columns, valid, top, total, acc, D)


@triton.jit
def _store_partial(partial_ptr, log_ptr, index, columns, valid, top, total, acc, D: tl.constexpr):
    safe = tl.where(total > 0, total, 1.0)
    tl.store(partial_ptr + index[:, None] * D + columns[None, :], acc / safe[:, None], mask=valid[:, None])
    tl.store(log_ptr + index, tl.where(total > 0, top + tl.log(safe), float("-inf")), mask=valid)


@triton.jit
def _merge(partial_ptr, log_ptr, out, splits, columns, valid, top, total, acc, D: tl.constexpr):
    """Fold ``splits`` partial results into an online softmax."""
    for split in range(splits):
        index = out * splits + split
        log = tl.load(log_ptr + index, mask=valid, other=float("-inf"))
        part = tl.load(partial_ptr + index[:, None] * D + columns[None, :], mask=valid[:, None], other=0.0)
        highest = tl.maximum(top, log)
        rescale = tl.exp(top - highest)
        weight = tl.exp(log - highest)
        total = total * rescale + weight
        acc = acc * rescale[:, None] + part * weight[:, None]
        top = highest
    return total, acc


@triton.jit(do_not_specialize=["scale", "splits", "before"])
def prefix_decode_own_kernel(
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
    before,
    scale,
    KV: tl.constexpr,
    REP: tl.constexpr,
    D: tl.constexpr,
    SPLIT: tl.constexpr,
    BLOCK: tl.constexpr,
    QUERIES: tl.constexpr,
    UPCAST: tl.constexpr,
    MERGE: tl.constexpr,
):
    """Program: one KV head of a row, one split of its own keys; with MERGE all, and the prompt's parts."""
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
    length = tl.load(lengths_ptr + row).to(tl.int32)
    begin = 0
    end = length
    if not MERGE:
        begin = tl.program_id(1) * SPLIT
        end = tl.minimum(begin + SPLIT, length)
    top, total, acc = _attend(
        q, key_ptr + row * key_row_stride + head * key_head_stride, key_stride,
        value_ptr + row * value_row_stride + head * value_head_stride, value_stride,
        begin, end, scale, top, total, acc, D, BLOCK, UPCAST,
    )  # fmt: skip
    out = (row * KV + head) * REP + queries
    if MERGE:
        total, acc = _merge(partial_ptr, log_ptr, out, splits, columns, valid, top, total, acc, D)
        acc = acc / tl.where(total > 0, total, 1.0)[:, None]
        kind = output_ptr.dtype.element_ty
        tl.store(output_ptr + out[:, None] * D + columns[None, :], acc.to(kind), mask=valid[:, None])
    else:
        index = out * splits + before + tl.program_id(1)
        _store_partial(partial_ptr, log_ptr, index, columns, valid, top, total, acc, D)


@triton.jit(do_not_specialize=["splits"])
def prefix_decode_merge_kernel(
    partial_ptr, log_ptr, output_ptr, splits,
    REP: tl.constexpr, D: tl.constexpr, QUERIES: tl.constexpr,
):  # fmt: skip
    """Program: one KV head of one row. Joins the partial results of all splits."""
    queries = tl.arange(0, QUERIES)
    valid = queries < REP
    columns = tl.arange(0, D)
    out = tl.program_id(0).to(tl.int64) * REP + queries
    top = tl.full([QUERIES], -1e30, tl.float32)
    total = tl.zeros([QUERIES], tl.float32)
    acc = tl.zeros([QUERIES, D], tl.float32)
    total, acc = _merge(partial_ptr, log_ptr, out, splits, columns, valid, top, total, acc, D)
    acc = acc / tl.where(total > 0, total, 1.0)[:, None]
    kind = output_ptr.dtype.element_ty
    tl.store(output_ptr + out[:, None] * D + columns[None, :], acc.to(kind), mask=valid[:, None])
