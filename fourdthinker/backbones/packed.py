"""Attention of sequences that hold a prompt and several completions of it, or answers that see no frames.

A mask of S x S positions is 2 GB a layer at 32k, so on CUDA long sequences go through flex_attention, whose
mask says for each pair of blocks of 128 positions whether all, some or none of it is seen. Both masks are
made on the device from one number a position, and a second one with a bottleneck. A CPU computes a sequence
piece by piece from these numbers (`segment_attention`).
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.attention.flex_attention import BlockMask, flex_attention
from transformers import AttentionInterface, AttentionMaskInterface
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import sdpa_mask

from fourdthinker.backbones.segment_attention import segment_attention
from fourdthinker.errors import ConfigError
from fourdthinker.samples import BARRED, FRAMES

NAME = "fourdthinker_packed"
FLEX_FROM = 2_048  # positions of a sequence on CUDA; below, a dense mask is small and nothing is compiled
_BLOCK = 128

Visible = Callable[[Tensor, Tensor, Tensor, Tensor], Tensor]


def use_packed_attention(config: Any) -> None:
    """Let a language model that runs on SDPA take masks of :func:`packed_mask`.

    Another choice of the user's stays.

    Args:
        config: of the language model.
    """
    if config._attn_implementation == "sdpa":
        config._attn_implementation = NAME


def packed_mask(segments: Tensor, dtype: torch.dtype, bottleneck: Tensor | None = None) -> Tensor | BlockMask:
    """Which positions see which.

    A dense mask is what SDPA adds to the scores. Of a bool mask it would make that in every layer, and keep
    it for the backward pass.

    Args:
        segments: [B, S] integers: 0 for the prompt, 1 + r for the r-th completion, -1 for padding, ascending
            but for the padding after them. A completion sees the prompt and itself, both causally; padding
            sees itself, for a softmax over nothing is not a number.
        dtype: of queries and keys.
        bottleneck: [B, S] integers: what is ``BARRED`` does not see what is ``FRAMES``; None: nothing is.

    Returns:
        What `packed_attention` takes. On the CPU without a bottleneck: the segments, [B, 1, 1, S]. For short
        sequences, and with a bottleneck on the CPU: [B, 1, S, S] of ``dtype``, 0 or -inf. Else a mask of
        flex_attention.
    """
    if segments.device.type == "cpu" and bottleneck is None:
        return segments[:, None, None].int()
    if segments.device.type == "cuda" and segments.shape[1] >= FLEX_FROM:
        return block_mask(segments, bottleneck)
    return additive_mask(segments, dtype, bottleneck)


def additive_mask(
    segments: Tensor, dtype: torch.dtype, bottleneck: Tensor | None = None, *, first: int = 0
) -> Tensor:
    """[B, 1, S - first, S] of ``dtype``, 0 where :func:`dense_mask` is true and -inf elsewhere."""
    seen = dense_mask(segments, bottleneck, first=first)
    return torch.zeros(seen.shape, dtype=dtype, device=seen.device).masked_fill_(~seen, -torch.inf)


def _visible(segments: Tensor, bottleneck: Tensor | None) -> Visible:
    def visible(batch: Tensor, head: Tensor, query: Tensor, key: Tensor) -> Tensor:
        mine, other = segments[batch, query], segments[batch, key]
        return ((key <= query) & (mine >= 0) & ((other == 0) | (other == mine))) | (query == key)

    if bottleneck is None:
        return visible

    def visible_to_it(batch: Tensor, head: Tensor, query: Tensor, key: Tensor) -> Tensor:
        barred = (bottleneck[batch, query] == BARRED) & (bottleneck[batch, key] == FRAMES)
        return visible(batch, head, query, key) & ~barred

    return visible_to_it


def dense_mask(segments: Tensor, bottleneck: Tensor | None = None, *, first: int = 0) -> Tensor:
    """[B, 1, S - first, S] bool, of the queries from ``first`` on; see :func:`packed_mask`."""
    rows, columns = (torch.arange(size, device=segments.device) for size in segments.shape)
    batch, head = rows[:, None, None, None], rows[:1]
    return _visible(segments, bottleneck)(batch, head, columns[first:, None], columns)


def block_mask(segments: Tensor, bottleneck: Tensor | None = None) -> BlockMask:
    """The same as :func:`dense_mask` by blocks; nothing of S x S positions is made."""
    rows, length = segments.shape
    count = -(-length // _BLOCK)
    blocks = F.pad(segments, (0, count * _BLOCK - length), value=-1).view(rows, count, _BLOCK)
    first, last = blocks.amin(-1), blocks.amax(-1)  # with padding, which is -1
    inner = blocks.masked_fill(blocks < 0, torch.iinfo(blocks.dtype).max).amin(-1)  # without
    index = torch.arange(count, device=segments.device)
    before, same_block = index[None, :] < index[:, None], index[None, :] == index[:, None]

    def query(of_block: Tensor) -> Tensor:
        return of_block[:, :, None]

    def key(of_block: Tensor) -> Tensor:
        return of_block[:, None, :]

    overlap = (key(inner) <= query(last)) & (query(inner) <= key(last))
    some = same_block | (before & (query(last) >= 0) & ((key(inner) == 0) | overlap))
    prompt = (key(first) == 0) & (key(last) == 0)
    one = (query(first) == query(last)) & (key(first) == query(first)) & (key(last) == query(last))
    every = before & (query(first) >= 0) & (prompt | one)
    if bottleneck is not None:
        parts = F.pad(bottleneck, (0, count * _BLOCK - length)).view(rows, count, _BLOCK)
        barred, frames = parts == BARRED, parts == FRAMES
        every &= ~(query(barred.any(-1)) & key(frames.any(-1)))
        some &= ~(query((barred | (blocks < 0)).all(-1)) & key(frames.all(-1))) | same_block
    return BlockMask.from_kv_blocks(
        *_listed(some & ~every), *_listed(every), BLOCK_SIZE=_BLOCK, mask_mod=_visible(segments, bottleneck),
        seq_lengths=(length, length),
    )  # fmt: skip


def _listed(chosen: Tensor) -> tuple[Tensor, Tensor]:
    """Of [B, n, n] bool, how many key blocks each query block has, and which, these first."""
    numbers = chosen.sum(-1, dtype=torch.int32)
    order = chosen.int().argsort(dim=-1, descending=True, stable=True).int()
    return numbers[:, None], order[:, None].contiguous()


def packed_attention(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | BlockMask | None,
    *,
    scaling: float | None = None,
    **options: Any,
) -> tuple[Tensor, None]:
    """As the layers of transformers call it: what fits the mask, and SDPA where it is a plain one.

    Args:
        module: the calling layer.
        query: [B, heads, S, D].
        key: [B, kv_heads, S, D].
        value: as ``key``.
        attention_mask: of :func:`packed_mask`, or any mask that SDPA takes.
        scaling: factor of the scores; None: 1 / sqrt(D).
        **options: passed on to SDPA.

    Returns:
        [B, S, heads, D], and None for the attention weights.

    Raises:
        ConfigError: dropout, where the mask is of segments or of flex_attention.
    """
    of_segments = (
        attention_mask if isinstance(attention_mask, Tensor) and attention_mask.dtype == torch.int32 else None
    )
    if of_segments is None and not isinstance(attention_mask, BlockMask):
        return sdpa_attention_forward(module, query, key, value, attention_mask, scaling=scaling, **options)
    if options.get("dropout"):
        raise ConfigError(
            f"attention_dropout is {options['dropout']} in the model's config; packed sequences and shared "
            "prompts have none: set it to 0"
        )
    device = query.device.type
    if torch.is_autocast_enabled(device) and query.dtype != torch.float64:  # as it does for SDPA alone
        query, key, value = (x.to(torch.get_autocast_dtype(device)) for x in (query, key, value))
    if of_segments is not None:
        factor = query.shape[-1] ** -0.5 if scaling is None else scaling
        return segment_attention(query, key, value, of_segments[:, 0, 0], factor).transpose(1, 2), None
    # Within a layer that is compiled it is compiled with the layer, as transformers does it.
    flex: Callable[..., Tensor] = flex_attention if torch.compiler.is_compiling() else _flex(device)  # type: ignore[assignment]
    out = flex(
        query, key, value, block_mask=attention_mask, scale=scaling, enable_gqa=query.shape[1] != key.shape[1]
    )
    return out.transpose(1, 2).contiguous(), None


@cache
def _flex(device: str) -> Callable[..., Tensor]:
    """Compiled once for all lengths on CUDA; eager elsewhere, which is for tests."""
    flex: Callable[..., Tensor] = flex_attention  # type: ignore[assignment]  # no log-sum-exp is asked for
    return torch.compile(flex, dynamic=True) if device == "cuda" else flex


AttentionInterface.register(NAME, packed_attention)
AttentionMaskInterface.register(NAME, sdpa_mask)
