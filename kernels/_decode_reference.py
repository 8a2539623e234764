"""``shared_prefix_decode`` in plain PyTorch: the CPU path, and what the kernels are compared with."""

from __future__ import annotations

import torch
from torch import Tensor

from ._common import accumulation_dtype


def reference(
    query: Tensor, prompt_key: Tensor, prompt_value: Tensor, key: Tensor, value: Tensor,
    prompt_lengths: Tensor, lengths: Tensor, scale: float,
) -> Tensor:  # fmt: skip
    """The attention in plain PyTorch; arguments and result are those of ``shared_prefix_decode``."""
    rows, heads, width = query.shape
    groups, kv_heads, prompt, _ = prompt_key.shape
    wide = accumulation_dtype(query)
    q = (query.to(wide) * scale).reshape(groups, rows // groups, kv_heads, heads // kv_heads, width)
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
    scores = torch.cat((shared, own), dim=-1)
    weights = scores.softmax(dim=-1).masked_fill((scores == -torch.inf).all(dim=-1, keepdim=True), 0.0)
    ours = weights[..., :prompt].unflatten(0, (groups, rows // groups))
    out = torch.einsum("ngkhp,nkpd->ngkhd", ours, prompt_value.to(wide)).flatten(0, 1)
    out = out + torch.einsum("rkht,rktd->rkhd", weights[..., prompt:], value.to(wide))
    return out.reshape(rows, heads, width).to(query.dtype)


def of_each_row(
    key: Tensor, value: Tensor, starts: Tensor, lengths: Tensor, order: Tensor, row_starts: Tensor,
    longest: int,
) -> tuple[Tensor, Tensor, Tensor]:  # fmt: skip
    """Prompt keys, values and lengths with one group for every row, for the reference.

    Args:
        key: the pool, [1, kv_heads, positions, D].
        value: as ``key``.
        starts: [N], where each prompt begins in the pool.
        lengths: [N] of the prompts.
        order: [R], the rows of the prompts one after another.
        row_starts: [N + 1], where those of each prompt begin in ``order``.
        longest: P, the positions that are taken of each.

    Returns:
        Keys and values [R, kv_heads, P, D], and lengths [R].
    """
    rank = torch.empty_like(order).scatter_(0, order.long(), torch.arange(len(order)).to(order))
    group = torch.searchsorted(row_starts, rank.to(row_starts.dtype), right=True) - 1
    index = starts[group][:, None] + torch.arange(longest, device=key.device)
    index = index.clamp(max=max(key.shape[2] - 1, 0)).long()
    return key[0][:, index].transpose(0, 1), value[0][:, index].transpose(0, 1), lengths[group]
