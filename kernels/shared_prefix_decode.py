"""Decode attention of groups of rows that share their prompt: its keys and values are read once per group."""

from __future__ import annotations

import torch
import triton
from torch import Tensor

from ._common import (
    NAMESPACE,
    check_floating,
    check_inference,
    check_number,
    check_tensors,
    debug_ranges,
    use_triton,
)
from ._decode_reference import of_each_row, reference
from ._gpu_architectures import DEFAULT, Launch, launching, multiprocessors, settings
from ._prefix_decode_kernels import (
    prefix_decode_merge_kernel,
    prefix_decode_own_kernel,
    prefix_decode_prompt_kernel,
)


def _suffix(query: Tensor) -> str:
    """Which rows of the table of launches fit the head size and the dtype."""
    if query.dtype == torch.float32:
        return "_float32"
    return "_wide" if query.shape[-1] > 128 else ""


def prompt_span(tiles: int, longest: int, launch: Launch, device: torch.device) -> int:
    """Positions of a prompt per program: no more programs than a GPU holds, since each leaves parts to merge.

    ``tiles`` counts the programs that one split of all prompts takes.
    """
    splits = max(1, launch.resident * multiprocessors(device) // max(tiles, 1))
    return max(launch.span, triton.cdiv(triton.cdiv(longest, splits), launch.block) * launch.block)


def _fused(
    query: Tensor, prompt_key: Tensor, prompt_value: Tensor, key: Tensor, value: Tensor,
    prompt_lengths: Tensor, lengths: Tensor, prompt_starts: Tensor | None, order: Tensor | None,
    row_starts: Tensor | None, longest: int, scale: float,
) -> Tensor:  # fmt: skip
    rows, heads, width = query.shape
    kv_heads, groups = prompt_key.shape[1], prompt_lengths.shape[0]
    repeat = heads // kv_heads
    query = query.contiguous()
    output = torch.empty_like(query)
    suffix = _suffix(query)
    size = rows // groups
    together = (size if order is None else rows) * repeat  # in order, one group may hold all rows
    kind = f"prefix_decode_prompt{suffix}"
    few = kind.replace("prompt", "prompt_few")
    if few in DEFAULT and together <= settings(few, query.device).rows:
        kind = few
    taken = settings(kind, query.device)
    tiles = groups * kv_heads * triton.cdiv(size * repeat, taken.rows)
    span = prompt_span(tiles, longest, taken, query.device)
    before = triton.cdiv(longest, span)
    own = triton.cdiv(key.shape[2], settings(f"prefix_decode_own{suffix}", query.device).span)
    merge = own <= 1
    splits = before if merge else before + own
    partial = torch.empty(rows, heads, splits, width, dtype=torch.float32, device=query.device)
    logs = torch.empty(rows, heads, splits, dtype=torch.float32, device=query.device)
    # The interpreter's bf16 dot is wrong; on a GPU the tensor cores take it.
    upcast = not query.is_cuda
    if rows and before:
        own_base = prompt_starts is None  # in a pool, groups begin where prompt_starts says
        with launching(kind, query) as launch:
            prefix_decode_prompt_kernel[(groups * kv_heads, before, triton.cdiv(together, launch.rows))](
                query, query.stride(0), prompt_key, prompt_key.stride(0) * own_base,
                *prompt_key.stride()[1:3], prompt_value, prompt_value.stride(0) * own_base,
                *prompt_value.stride()[1:3], prompt_lengths, prompt_starts, order, row_starts, partial, logs,
                size, splits, span, scale, KV=kv_heads, REP=repeat, D=width, BLOCK=launch.block,
                QUERIES=launch.rows, UPCAST=upcast, **launch.options,
            )  # fmt: skip
    if rows:
        queries = max(16, triton.next_power_of_2(repeat))
        with launching(f"prefix_decode_own{suffix}", query) as launch:
            prefix_decode_own_kernel[(rows * kv_heads, 1 if merge else own)](
                query, query.stride(0), key, *key.stride()[:3], value, *value.stride()[:3], lengths, partial,
                logs, output, splits, before, scale, KV=kv_heads, REP=repeat, D=width, SPLIT=launch.span,
                BLOCK=launch.block, QUERIES=queries, UPCAST=upcast, MERGE=merge, **launch.options,
            )  # fmt: skip
        if not merge:
            with launching("prefix_decode_merge", query) as launch:
                prefix_decode_merge_kernel[(rows * kv_heads,)](
                    partial, logs, output, splits, REP=repeat, D=width, QUERIES=queries, **launch.options
                )
    return output


@torch.library.custom_op(f"{NAMESPACE}::shared_prefix_decode", mutates_args=())
def _decode_op(
    query: Tensor,
    prompt_key: Tensor,
    prompt_value: Tensor,
    key: Tensor,
    value: Tensor,
    prompt_lengths: Tensor,
    lengths: Tensor,
    prompt_starts: Tensor | None,
    order: Tensor | None,
    row_starts: Tensor | None,
    longest: int,
    scale: float,
    backend: str,
) -> Tensor:
    if not use_triton(backend, query):
        if prompt_starts is not None and order is not None and row_starts is not None:
            prompt_key, prompt_value, prompt_lengths = of_each_row(
                prompt_key, prompt_value, prompt_starts, prompt_lengths, order, row_starts, longest
            )
        with torch.autocast(query.device.type, enabled=False):
            return reference(query, prompt_key, prompt_value, key, value, prompt_lengths, lengths, scale)
    return _fused(
        query, prompt_key, prompt_value, key, value, prompt_lengths, lengths, prompt_starts, order,
        row_starts, longest, scale,
    )  # fmt: skip


@_decode_op.register_fake
def _(query: Tensor, *rest: Tensor | float | str | None) -> Tensor:
    return torch.empty(query.shape, dtype=query.dtype, device=query.device)


def _check_tensors(shapes: dict[str, tuple[Tensor, tuple[int, ...]]], query: Tensor) -> None:
    check_floating(query=query)
    for name, (tensor, shape) in shapes.items():
        if tuple(tensor.shape) != shape:
            raise ValueError(f"{name} is {tuple(tensor.shape)}; it must be {shape}")
        if tensor.dim() == 4 and tensor.dtype != query.dtype:
            raise ValueError(f"{name} is {tensor.dtype} but query is {query.dtype}; cast one of them")
        if tensor.dim() == 4 and tensor.stride(3) != 1:
            raise ValueError(f"{name} has strides {tensor.stride()}; its last dimension must be dense")
        if tensor.dim() == 1 and (
            tensor.dtype not in (torch.int32, torch.int64) or not tensor.is_contiguous()
        ):
            raise ValueError(f"{name} is {tensor.dtype}; it must be contiguous int32 or int64")


def _check_sharing(rows: int, groups: int, heads: int, kv_heads: int, pooled: bool) -> None:
    if groups == 0 or (rows % groups and not pooled):
        raise ValueError(f"the {rows} rows cannot be shared out evenly among {groups} prompts")
    if kv_heads == 0 or heads % kv_heads:
        raise ValueError(f"{heads} query heads do not divide among {kv_heads} key-value heads")


def shared_prefix_decode(
    query: Tensor,
    prompt_key: Tensor,
    prompt_value: Tensor,
    key: Tensor,
    value: Tensor,
    *,
    prompt_lengths: Tensor,
    lengths: Tensor,
    prompt_starts: Tensor | None = None,
    order: Tensor | None = None,
    row_starts: Tensor | None = None,
    longest: int | None = None,
    scale: float | None = None,
    backend: str = "auto",
) -> Tensor:
    """Attention of one new token per row over its group's prompt and its own past.

    Groups of one size have consecutive rows (R = N * G). For groups of any size and rows in any order,
    ``prompt_key`` and ``prompt_value`` are one pool; then give ``prompt_starts``, ``order`` and
    ``row_starts``. Lengths and starts are int32 or int64, on the device: a CUDA graph may see them change.

    One launch reads every prompt key and value once per group, a second adds the row's own and merges by
    log-sum-exp; where T is above 512 the row's own are split, and a third merges. Softmax and sums are
    float32. For inference: there is no gradient. On CUDA D must be a power of two from 16 to 256.

    Args:
        query: [R, heads, D]. Head h reads key-value head h // (heads / kv_heads).
        prompt_key: [N, kv_heads, P, D], or the pool [1, kv_heads, positions, D]. Here and below D is dense.
        prompt_value: as ``prompt_key``.
        key: [R, kv_heads, T, D] of the rows, the new token's included.
        value: as ``key``.
        prompt_lengths: [N], how many of the P positions hold something.
        lengths: [R], how many of the T positions hold something.
        prompt_starts: [N], where each prompt begins in the pool.
        order: [R], every row once; those of prompt n are ``order[row_starts[n] : row_starts[n + 1]]``.
        row_starts: [N + 1].
        longest: bounds ``prompt_lengths``; None: all positions there are.
        scale: of the scores; None: D ** -0.5.
        backend: ``"auto"``, ``"triton"`` or ``"torch"``.

    Returns:
        [R, heads, D] in the dtype of ``query``; 0 for a row without any position.

    Raises:
        ValueError: shapes, dtypes, layouts or devices do not fit, or a tensor requires a gradient (outside of
            ``torch.no_grad()``). Lengths and indices are looked at with
            ``FOURDTHINKER_DEBUG=1`` alone.
    """
    pool = {"prompt_starts": prompt_starts, "order": order, "row_starts": row_starts}
    states = {
        "query": query, "prompt_key": prompt_key, "prompt_value": prompt_value, "key": key, "value": value,
    }  # fmt: skip
    check_tensors(*pool, **states, prompt_lengths=prompt_lengths, lengths=lengths, **pool)
    check_inference("shared_prefix_decode", **states)
    if query.dim() != 3 or prompt_key.dim() != 4 or key.dim() != 4:
        raise ValueError(
            f"query {tuple(query.shape)} must be [R, heads, D], prompt_key {tuple(prompt_key.shape)} and key "
            f"{tuple(key.shape)} [.., kv_heads, positions, D]"
        )
    rows, heads, width = query.shape
    pooled = prompt_starts is not None
    if pooled != (order is not None) or pooled != (row_starts is not None):
        raise ValueError("prompt_starts, order and row_starts go together; give all three or none")
    kv_heads, groups = prompt_key.shape[1], prompt_lengths.numel() if pooled else prompt_key.shape[0]
    longest = prompt_key.shape[2] if longest is None else longest
    scale = max(width, 1) ** -0.5 if scale is None else scale
    check_number("scale", scale)
    check_number("longest", longest, minimum=0, integer=True)
    _check_sharing(rows, groups, heads, kv_heads, pooled)
    shapes = {
        "prompt_key": (prompt_key, (1 if pooled else groups, kv_heads, prompt_key.shape[2], width)),
        "prompt_value": (prompt_value, tuple(prompt_key.shape)),
        "key": (key, (rows, kv_heads, key.shape[2], width)),
        "value": (value, tuple(key.shape)),
        "prompt_lengths": (prompt_lengths, (groups,)),
        "lengths": (lengths, (rows,)),
    }
    sizes = (groups, rows, groups + 1)
    shapes |= {name: (t, (size,)) for (name, t), size in zip(pool.items(), sizes) if t is not None}
    _check_tensors(shapes, query)
    debug_ranges(
        prompt_lengths=(prompt_lengths, longest + 1), lengths=(lengths, key.shape[2] + 1),
        prompt_starts=(prompt_starts, prompt_key.shape[2] + 1), order=(order, rows),
        row_starts=(row_starts, rows + 1),
    )  # fmt: skip
    if use_triton(backend, query) and (width & (width - 1) or not 16 <= width <= 256):
        raise ValueError(f"query is {width} wide; the kernel takes a power of two from 16 to 256")
    with torch.no_grad():
        return _decode_op(
            query, prompt_key, prompt_value, key, value, prompt_lengths, lengths, prompt_starts, order,
            row_starts, longest, scale, backend,
        )  # fmt: skip
