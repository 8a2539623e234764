"""One decode step of the decoder layers, one new token per row: what a CUDA graph captures.

It is made of fused kernels and allocates no caches.

The modules and their order are those of the two families' layers in transformers; adapters inside the linear
layers take part. Norms with their residual sums, rotary embedding with the write into the cache, and SiLU
with its product are one launch each, so that a layer is 13 kernels on CUDA (14 with completions above 512
tokens) and LoRA's own.
"""

from __future__ import annotations

from typing import Any, Protocol

from torch import Tensor
from transformers import AttentionInterface

from fourdthinker.backbones.common import Backbone
from fourdthinker.errors import ConfigError
from fourdthinker.kernels import add_rms_norm, rotary_append_, silu_mul


class DecodeCache(Protocol):
    """Where the rows' own keys and values are, and what their attention needs besides."""

    def own(self, layer: int) -> tuple[Tensor, Tensor]:
        """Keys and values [R, kv_heads, T, D] of a layer."""


def decode_layers(
    backbone: Backbone,
    embeds: Tensor,
    positions: Tensor,
    cache_positions: Tensor,
    cache: DecodeCache,
    attention: str,
) -> Tensor:
    """Hidden states after the final norm, [R, H], for one token a row.

    Args:
        backbone: the model.
        embeds: [R, H], input of each row.
        positions: int64 [R], the same on all three axes: text and latents.
        cache_positions: int64 [R], the position in the row's own keys and values that the token takes.
        cache: the rows' own keys and values.
        attention: name of an implementation registered with transformers' `AttentionInterface`. It is called
            as the layers of transformers call it, with query [R, heads, 1, D], keys and values of
            `cache.own(layer)`, and `cache=cache` besides.
    """
    model = backbone.hf.model.language_model
    attend = AttentionInterface()[attention]
    rows, width = embeds.shape[0], backbone.head_dim
    cos, sin = model.rotary_emb(embeds, positions.expand(3, -1)[..., None])
    cos, sin = cos[:, 0], sin[:, 0]
    x: Tensor = embeds
    residual: Tensor | None = None
    for number, layer in enumerate(model.layers):
        attn, mlp = layer.self_attn, layer.mlp
        normed, residual = _norm(layer.input_layernorm, x, residual)
        # Under autocast linear layers return another dtype; without it these casts do nothing.
        query, key, value = (
            projected(normed).to(embeds.dtype).view(rows, -1, width)
            for projected in (attn.q_proj, attn.k_proj, attn.v_proj)
        )
        keys, values = cache.own(number)
        query = rotary_append_(
            query, key, value, cos, sin, keys, values, cache_positions, **_head_norms(attn)
        )
        mixed, _ = attend(attn, query[:, :, None], keys, values, None, scaling=attn.scaling, cache=cache)
        x = attn.o_proj(mixed.reshape(rows, -1)).to(embeds.dtype)
        normed, residual = _norm(layer.post_attention_layernorm, x, residual)
        x = mlp.down_proj(silu_mul(mlp.gate_proj(normed), mlp.up_proj(normed))).to(embeds.dtype)
    return _norm(model.norm, x, residual)[0]


def require_full_attention(backbone: Backbone) -> None:
    """ConfigError for a model with sliding windows, which `decode_layers` does not have."""
    config = backbone.hf.model.language_model.config
    kinds = set(getattr(config, "layer_types", None) or ())
    if kinds - {"full_attention"}:
        raise ConfigError(
            f"the model has layers of type {', '.join(sorted(kinds))}; the sampler knows full_attention "
            "only, so set use_sliding_window to false in config.json"
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
