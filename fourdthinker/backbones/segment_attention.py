"""Attention of packed sequences on a CPU, piece by piece: no score is computed that a mask would hide.

A sequence holds a prompt and its completions (see `packed_mask`). What a prompt sees is causal; what a
completion sees is the whole prompt and, causally, itself. Each piece is a call of the CPU's flash kernel, and
the log-sum-exps of two pieces merge them. The backward pass gives each call the merged output and its
log-sum-exp, from which the kernel finds the same probabilities again (as in ring attention, arXiv
2310.01889). Neither a mask of S x S positions nor a copy of keys and values for each head is made.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

_flash = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu
_flash_backward = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu_backward


@dataclass(frozen=True)
class _Piece:
    """Queries of a sequence and the keys that they see, as slices of its positions."""

    row: slice
    queries: slice
    keys: slice
    causal: bool


def segment_attention(query: Tensor, key: Tensor, value: Tensor, segments: Tensor, scale: float) -> Tensor:
    """What each position sees of its prompt and of its own segment, both causally.

    Args:
        query: [B, heads, S, D] floating, on the CPU.
        key: [B, kv_heads, S, D] of the same dtype.
        value: as ``key``.
        segments: [B, S] integers, as `packed_mask` takes them.
        scale: factor of the scores.

    Returns:
        [B, heads, S, D], stored as [B, S, heads, D]; 0 at padding.
    """
    # The kernel reads the last dimension without a stride.
    query, key, value = (x if x.stride(-1) == 1 else x.contiguous() for x in (query, key, value))
    out: Tensor = _SegmentAttention.apply(query, key, value, segments, scale)  # type: ignore[no-untyped-call]
    return out


def _pieces(segments: Tensor) -> Iterator[_Piece]:
    """Of every sequence: its prompt, what all completions see of it, and each completion alone."""
    for number, of_row in enumerate(segments):
        row = slice(number, number + 1)
        values, counts = torch.unique_consecutive(of_row, return_counts=True)
        ends = counts.cumsum(0)
        spans = [
            (value, slice(end - count, end))
            for value, count, end in zip(values.tolist(), counts.tolist(), ends.tolist(), strict=True)
        ]
        prompts = [span for value, span in spans if value == 0]
        completions = [span for value, span in spans if value > 0]
        for span in prompts:
            yield _Piece(row, span, span, causal=True)
            if completions:
                together = slice(completions[0].start, completions[-1].stop)
                yield _Piece(row, together, span, causal=False)
        for span in completions:
            yield _Piece(row, span, span, causal=True)


class _SegmentAttention(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, query: Tensor, key: Tensor, value: Tensor, segments: Tensor, scale: float
    ) -> Tensor:
        # As the layer's last matrix product reads it, which then keeps the same memory.
        rows, heads, length, width = query.shape
        out = query.new_zeros(rows, length, heads, width).transpose(1, 2)
        normaliser: Tensor | None = None
        for piece in _pieces(segments):
            mixed, logsumexp = _flash(
                query[piece.row, :, piece.queries], key[piece.row, :, piece.keys],
                value[piece.row, :, piece.keys], 0.0, piece.causal, scale=scale,
            )  # fmt: skip
            if normaliser is None:
                normaliser = logsumexp.new_full((rows, heads, length), -torch.inf)
            before, here = out[piece.row, :, piece.queries], normaliser[piece.row, :, piece.queries]
            before.lerp_(mixed, torch.sigmoid(logsumexp - here)[..., None].to(out.dtype))
            here.copy_(torch.logaddexp(here, logsumexp))
        ctx.save_for_backward(query, key, value, segments, out, normaliser)
        ctx.scale = scale
        return out

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        query, key, value, segments, out, normaliser = ctx.saved_tensors
        # Summed over pieces: in float32 at least.
        wide = torch.promote_types(key.dtype, torch.float32)
        grads = [torch.zeros_like(x, dtype=wide) for x in (query, key, value)]
        for piece in _pieces(segments):
            row, queries, keys = piece.row, piece.queries, piece.keys
            parts = _flash_backward(
                grad[row, :, queries], query[row, :, queries], key[row, :, keys], value[row, :, keys],
                out[row, :, queries], normaliser[row, :, queries], 0.0, piece.causal, scale=ctx.scale,
            )  # fmt: skip
            for whole, part, positions in zip(grads, parts, (queries, keys, keys), strict=True):
                whole[row, :, positions] += part
        return *(whole.to(query.dtype) for whole in grads), None, None
