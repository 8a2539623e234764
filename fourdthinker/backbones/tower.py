"""Attention of the vision towers over packed pictures, and what a tower has to know of its grids.

A tower attends within windows and within frames: pieces of one packed sequence. The implementations of
transformers attend to each piece in a call of its own, 12,700 calls for 50 frames of 336 x 588 through
Qwen2.5-VL, and read the pieces' lengths from the device. Here a layer is one call of variable-length flash
attention on CUDA, and elsewhere one call for each length of piece. What depends on the grids alone is
computed on the host, so that a tower in half precision never waits for the device; in float32 on CUDA, which
is for checking, each layer reads the lengths back.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.attention.varlen import varlen_attn
from transformers import AttentionInterface
from transformers.vision_utils import (
    get_vision_cu_seqlens,
    get_vision_interpolation_indices_and_weights,
    get_vision_position_ids,
    get_vision_window_index,
)

# transformers hands an implementation whose name contains "flash" the bounds of the pieces.
NAME = "fourdthinker_packed_flash"


def use_packed_attention(visual: Any) -> None:
    """Let a tower that runs on SDPA use this attention from now on; another choice of the user's stays."""
    if visual.config._attn_implementation == "sdpa":
        visual.config._attn_implementation = NAME


def packed_attention(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    *,
    scaling: float,
    cu_seq_lens_q: Tensor,
    max_length_q: int,
    **_: Any,
) -> tuple[Tensor, None]:
    """Attention within the pieces of a packed sequence, as the towers of transformers call it.

    Args:
        module: the calling layer.
        query: [1, heads, N, D], as are `key` and `value`.
        key: see `query`.
        value: see `query`.
        attention_mask: None; the pieces are all that restricts attention.
        scaling: factor of the scores.
        cu_seq_lens_q: [P + 1] int32, where the pieces begin and the last ends, ascending from 0 to N.
        max_length_q: the longest piece.

    Returns:
        [1, N, heads, D], and None for the attention weights.
    """
    query, key, value = (tensor[0].transpose(0, 1) for tensor in (query, key, value))
    if _has_flash(query):
        bounds = cu_seq_lens_q.to(query.device, torch.int32)
        mixed = varlen_attn(query, key, value, bounds, bounds, max_length_q, max_length_q, scale=scaling)
        return mixed[None], None  # type: ignore[call-overload]
    return _by_length(query, key, value, cu_seq_lens_q, scaling)[None], None


def _has_flash(tensor: Tensor) -> bool:
    half = tensor.dtype in (torch.bfloat16, torch.float16)
    return half and tensor.is_cuda and torch.cuda.get_device_capability(tensor.device) >= (8, 0)


def _by_length(query: Tensor, key: Tensor, value: Tensor, bounds: Tensor, scaling: float) -> Tensor:
    """[N, heads, D] each; pieces of one length are a batch of SDPA."""
    lengths = bounds.diff()
    distinct = lengths.unique().tolist()  # on CUDA this waits; float32 is for checking there
    if len(distinct) == 1:
        shape = (-1, distinct[0])
        batched = _attend(
            query.unflatten(0, shape), key.unflatten(0, shape), value.unflatten(0, shape), scaling
        )
        return batched.flatten(0, 1)
    mixed = torch.empty_like(query)
    for length in distinct:
        rows = bounds[:-1][lengths == length, None] + torch.arange(length, device=bounds.device)
        rows = rows.to(query.device)
        mixed[rows] = _attend(query[rows], key[rows], value[rows], scaling)
    return mixed


def _attend(query: Tensor, key: Tensor, value: Tensor, scaling: float) -> Tensor:
    """[P, L, heads, D] each."""
    query, key, value = (tensor.transpose(1, 2) for tensor in (query, key, value))
    return F.scaled_dot_product_attention(query, key, value, scale=scaling).transpose(1, 2)


def frame_arguments(visual: Any, grid_thw: Tensor, device: torch.device) -> dict[str, Any]:
    """Arguments of a tower that attends within frames: positions, and the frames' bounds.

    Args:
        visual: the tower.
        grid_thw: [n, 3] long on the host, patches in time, height and width.
        device: where the tower is.
    """
    bounds = get_vision_cu_seqlens(grid_thw)
    positions = get_vision_position_ids(grid_thw, visual.config.spatial_merge_size)
    return {
        "position_ids": positions.to(device, non_blocking=True),
        "cu_seqlens": bounds.to(device, non_blocking=True),
        "max_seqlen": int(bounds.diff().max()),
    }


def window_arguments(visual: Any, grid_thw: Tensor, device: torch.device) -> dict[str, Any]:
    """For a tower with layers that attend within windows: the order of patches, and the windows' bounds.

    The arguments are those of :func:`frame_arguments`.
    """
    config = visual.config
    index, bounds = get_vision_window_index(
        grid_thw, config.spatial_merge_size, config.window_size, config.patch_size
    )
    return {
        "window_index": index.to(device, non_blocking=True),
        "cu_window_seqlens": bounds.to(device, non_blocking=True),
        "max_window_seqlen": int(bounds.diff().max()),
    }


def interpolation_arguments(visual: Any, grid_thw: Tensor, device: torch.device) -> dict[str, Any]:
    """For a tower with a table of position embeddings: where each patch reads it.

    The arguments are those of :func:`frame_arguments`.
    """
    indices, weights = get_vision_interpolation_indices_and_weights(
        grid_thw,
        num_grid_per_side=visual.num_grid_per_side,
        mode=visual.interpolation_mode,
        align_corners=visual.interpolation_align_corners,
        spatial_merge_size=visual.config.spatial_merge_size,
    )
    return {
        "interp_indices": indices.to(device, non_blocking=True),
        "interp_weights": weights.to(device, non_blocking=True),
    }


AttentionInterface.register(NAME, packed_attention)
