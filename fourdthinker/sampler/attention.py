"""The attention of prefill and decoding, registered with transformers' `AttentionInterface`."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import AttentionInterface

from fourdthinker.kernels import shared_prefix_decode
from fourdthinker.sampler.store import KVStore, of_segment

NAME = "fourdthinker_sampler"

# The CPU kernel of scaled_dot_product_attention, with the log-sum-exp that merging two parts needs; it takes
# fewer key-value heads than query heads, and keys and values of any stride.
_flash = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu


def attention(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    *,
    scaling: float,
    cache: KVStore | None = None,
    **_: Any,
) -> tuple[Tensor, None]:
    """As the layers of transformers call it: a decode step with `cache`, else a piece of a prefill.

    Args:
        module: the attention layer.
        query: a step: [R, heads, 1, D] floating; a prefill: [U, heads, S, D], the last S of L positions.
        key: a step: the row's own, [R, kv_heads, T, D]; a prefill: [U, kv_heads, L, D], causal.
        value: as `key`.
        attention_mask: None: what pads a shorter prompt stands behind it, where causality hides it.
        scaling: of the scores.
        cache: where a step finds the keys and values of the prompts; None: a prefill.

    Returns:
        [B, S, heads, D] with B rows or prompts, and None.
    """
    if cache is None:
        return _prefill(query, key, value, scaling).transpose(1, 2), None
    pool = cache.prompt(module.layer_idx)  # type: ignore[arg-type]
    if query.is_cuda:
        layout = cache.layout
        assert layout.lengths is not None  # on CUDA the layout says so
        assert cache.steps is not None  # set_steps has run
        mixed = shared_prefix_decode(
            query[:, :, 0], *pool, key, value, prompt_lengths=layout.lengths, lengths=cache.steps,
            prompt_starts=layout.starts, order=layout.order, row_starts=layout.row_starts,
            longest=cache.longest, scale=scaling,
        )  # fmt: skip
        return mixed[:, None], None
    return _decode_cpu(query[:, :, 0], pool, key, value, cache, scaling)[:, None], None


def _prefill(query: Tensor, key: Tensor, value: Tensor, scaling: float) -> Tensor:
    piece, length = query.shape[2], key.shape[2]
    if piece == length:
        return F.scaled_dot_product_attention(
            query, key, value, is_causal=True, scale=scaling, enable_gqa=True
        )
    positions = torch.arange(length, device=query.device)
    visible = positions[None, :] <= positions[length - piece :, None]
    if query.is_cuda:  # with a mask, no fused kernel takes fewer key-value heads
        repeat = query.shape[1] // key.shape[1]
        key, value = key.repeat_interleave(repeat, 1), value.repeat_interleave(repeat, 1)
    return F.scaled_dot_product_attention(
        query, key, value, attn_mask=visible, scale=scaling, enable_gqa=not query.is_cuda
    )


def _decode_cpu(
    query: Tensor, pool: tuple[Tensor, Tensor], key: Tensor, value: Tensor, store: KVStore, scaling: float
) -> Tensor:
    """The rows of a prompt as so many queries over its keys, the row's own, and both merged.

    Args:
        query: [R, heads, D] floating.
        pool: keys and values of the prompts, [1, kv_heads, tokens, D] each.
        key: the rows' own, [R, kv_heads, T, D].
        value: as `key`.
        store: says which prompt a row continues, and how many own positions it has.
        scaling: of the scores.

    Returns:
        [R, heads, D].
    """
    rows, heads, width = query.shape
    kv_heads = key.shape[1]
    repeat = heads // kv_heads
    query = query.view(rows, kv_heads, repeat, width)
    outs, logs = [], []
    for part in store.layout.parts:
        count, group = part.rows.shape
        asked = query[part.rows].transpose(1, 2).reshape(count, kv_heads, group * repeat, width)
        keys, values = (of_segment(side, part.segment, part.first, count) for side in pool)
        out, log = _flash(asked, keys, values, attn_mask=part.mask, scale=scaling)
        outs.append(out.view(count, kv_heads, group, repeat, width).transpose(1, 2).flatten(0, 1))
        logs.append(log.reshape(count, kv_heads, group, repeat).transpose(1, 2).flatten(0, 1))
    shared = (outs[0] if len(outs) == 1 else torch.cat(outs))[store.layout.back]
    shared_log = (logs[0] if len(logs) == 1 else torch.cat(logs))[store.layout.back]
    span = store.span
    own, own_log = _flash(
        query, key[:, :, :span], value[:, :, :span], attn_mask=store.own_mask, scale=scaling
    )
    share = torch.sigmoid(shared_log - own_log.reshape(rows, kv_heads, repeat))[..., None]
    return torch.lerp(own, shared, share.to(own.dtype)).reshape(rows, heads, width)


AttentionInterface.register(NAME, attention)
