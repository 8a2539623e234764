"""How much of the attention of some positions goes to some groups of positions."""

from __future__ import annotations

from contextvars import ContextVar
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import AttentionInterface

if TYPE_CHECKING:
    from fourdthinker.backbones.common import Backbone
    from fourdthinker.samples import Batch

NAME = "fourdthinker_watched"


@dataclass
class _Watch:
    rows: Tensor  # [Q] sequence of each query
    columns: Tensor  # [Q] its position there
    groups: Tensor  # [G, B, S] float32
    total: Tensor  # [Q, G], summed over the layers so far
    layers: int = 0


_watch: ContextVar[_Watch] = ContextVar("fourdthinker_watch")


@torch.no_grad()
def attention_shares(backbone: Backbone, batch: Batch, queries: Tensor, groups: Tensor) -> Tensor:
    """Run a batch and add up where some of its positions attend to.

    Args:
        backbone: the model.
        batch: of `replay_batch` without `share`: sequences padded on the right.
        queries: int64 [Q], flat positions b * S + p.
        groups: bool [G, B, S], which positions belong to a group.

    Returns:
        float32 [Q, G]: share of the attention of each query that goes to its own sequence's positions of each
        group, mean over heads and layers.
    """
    length = batch["input_ids"].shape[1]
    watch = _Watch(
        queries // length,
        queries % length,
        groups.float(),
        groups.new_zeros(len(queries), len(groups)).float(),
    )
    token = _watch.set(watch)
    try:
        with backbone.set_attention(NAME):
            backbone(batch, lambda model, hidden, _: None)
    finally:
        _watch.reset(token)
    return watch.total / max(1, watch.layers)


def _attention(
    module: nn.Module, query: Tensor, key: Tensor, value: Tensor, attention_mask: Tensor | None, *,
    scaling: float, **_: Any,
) -> tuple[Tensor, None]:  # fmt: skip
    """Causal attention [B, S, heads, D], as the layers of transformers call it; it notes what is watched."""
    watch = _watch.get()
    heads, kv_heads, length = query.shape[1], key.shape[1], key.shape[2]
    for row in watch.rows.unique().tolist():  # one at a time: all keys of all queries would be large
        mine = (watch.rows == row).nonzero()[:, 0]
        columns = watch.columns[mine]
        asked = query[row, :, columns].float().view(kv_heads, heads // kv_heads, len(mine), -1)
        scores = asked @ key[row].float().transpose(-1, -2)[:, None] * scaling
        later = torch.arange(length, device=key.device) > columns[:, None]
        weights = scores.masked_fill(later, -torch.inf).softmax(-1).mean((0, 1))  # [q, S]
        watch.total[mine] += weights @ watch.groups[:, row].T
    watch.layers += 1
    out = F.scaled_dot_product_attention(query, key, value, is_causal=True, scale=scaling, enable_gqa=True)
    return out.transpose(1, 2).contiguous(), None


AttentionInterface.register(NAME, _attention)
