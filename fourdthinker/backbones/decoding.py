"""One decode step of the decoder layers, one new token per row: what a CUDA graph captures.

It is made of fused kernels and allocates no caches.

The modules and their order are those of the two families' layers in transformers; adapters inside the linear
layers take part. Norms with their residual sums, rotary embedding with the write into the cache, and SiLU
with its product are one launch each, and so are projections of the same input where they are joined: a layer
is 10 kernels on CUDA (11 with completions above 512 tokens), and LoRA's own.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Protocol

import torch
from torch import Tensor
from transformers import AttentionInterface

from fourdthinker.backbones.common import Backbone
from fourdthinker.backbones.fused import FusedLayer, project
from fourdthinker.backbones.gathering import whole_layer
from fourdthinker.errors import ConfigError
from fourdthinker.kernels import add_rms_norm, rotary_append_, silu_mul


class DecodeCache(Protocol):
    """Where the rows' own keys and values are, and what their attention needs besides."""

    def own(self, layer: int) -> tuple[Tensor, Tensor]:
        """Keys and values [R, kv_heads, T, D] of a layer."""


class Decoder:
    """Steps of one token a row through the decoder layers.

    Args:
        backbone: the model.
        positions: no position in the text is as large.
        fused: of `fused_projections`; None: every projection is called by itself.
    """

    def __init__(self, backbone: Backbone, positions: int, fused: Sequence[FusedLayer] | None = None) -> None:
        self.model, self.width = backbone.hf.model.language_model, backbone.head_dim
        self.fused = fused if fused is not None else [FusedLayer()] * backbone.num_layers
        # A step reads a row of a table, where the module computes it in a dozen launches.
        every = torch.arange(positions, device=backbone.device).expand(3, 1, -1)
        cos, sin = self.model.rotary_emb(backbone.embedding_weight, every)
        self.rotary = torch.cat((cos[0], sin[0]), dim=-1)  # [positions, 2 D]

    def step(
        self, embeds: Tensor, positions: Tensor, cache_positions: Tensor, cache: DecodeCache, attention: str
    ) -> Tensor:
        """Hidden states after the final norm, [R, H], for one token a row.

        Args:
            embeds: [R, H], input of each row.
            positions: int64 [R], the same on all three axes: text and latents.
            cache_positions: int64 [R], the position in the row's own keys and values that the token takes.
            cache: the rows' own keys and values.
            attention: name of an implementation registered with transformers' `AttentionInterface`. It is
                called as the layers of transformers call it, with query [R, heads, 1, D], keys and values of
                `cache.own(layer)`, and `cache=cache` besides.
        """
        attend, rows, dtype = AttentionInterface()[attention], embeds.shape[0], embeds.dtype
        cos, sin = self.rotary.index_select(0, positions).chunk(2, dim=-1)
        x, residual = embeds, None
        for number, (layer, fused) in enumerate(zip(self.model.layers, self.fused, strict=True)):
            attn, mlp = layer.self_attn, layer.mlp
            with whole_layer(layer):
                normed, residual = _norm(layer.input_layernorm, x, residual)
                # Under autocast linear layers return another dtype than the inputs'.
                query, key, value = (
                    heads.to(dtype).view(rows, -1, self.width)
                    for heads in project(normed, fused.qkv, (attn.q_proj, attn.k_proj, attn.v_proj))
                )
                keys, values = cache.own(number)
                query = rotary_append_(
                    query, key, value, cos, sin, keys, values, cache_positions, **_head_norms(attn)
                )
                mixed, _ = attend(
                    attn, query[:, :, None], keys, values, None, scaling=attn.scaling, cache=cache
                )
                x = attn.o_proj(mixed.reshape(rows, -1)).to(dtype)
                normed, residual = _norm(layer.post_attention_layernorm, x, residual)
                gate, up = project(normed, fused.gate_up, (mlp.gate_proj, mlp.up_proj))
                x = mlp.down_proj(silu_mul(gate, up)).to(dtype)
        return _norm(self.model.norm, x, residual)[0]


def require_full_attention(backbone: Backbone) -> None:
    """ConfigError for a model with something that `Decoder` does not have, as sliding windows."""
    config = backbone.hf.model.language_model.config
    kinds = set(getattr(config, "layer_types", None) or ())
    if kinds - {"full_attention"}:
        raise ConfigError(
            f"the model has layers of type {', '.join(sorted(kinds))}; the sampler knows full_attention "
            "only, so set use_sliding_window to false in config.json"
        )
    rope = config.rope_parameters["rope_type"]
    if rope in ("dynamic", "longrope"):
        raise ConfigError(
            f"rope_type is {rope!r} in config.json: its angles depend on the length so far, and a decode "
            "step reads them from a table; the sampler knows default, linear, llama3 and yarn"
        )
    if config.hidden_act != "silu":
        raise ConfigError(
            f"hidden_act is {config.hidden_act!r} in config.json; the sampler knows 'silu' only"
        )


def _norm(module: Any, x: Tensor, residual: Tensor | None) -> tuple[Tensor, Tensor]:
    return add_rms_norm(x, residual, module.weight, module.variance_epsilon)


def _head_norms(attn: Any) -> dict[str, Any]:
    """Qwen3-VL normalises every head of queries and keys; Qwen2.5-VL has no such norms."""
    norm = getattr(attn, "q_norm", None)
    if norm is None:
        return {}
    return {
        "query_weight": norm.weight,
        "key_weight": attn.k_norm.weight,
        "eps": norm.variance_epsilon,
    }
