"""A model without its weights: shapes on the meta device, enough to count what training it would hold."""

from __future__ import annotations

import math
from types import MethodType
from typing import Any

import torch
from torch import Tensor, nn
from transformers import AttentionInterface, AttentionMaskInterface

from fourdthinker.backbones import _family, _load_policy, _located
from fourdthinker.backbones.common import Backbone
from fourdthinker.backbones.recompute import norms_and_mlps
from fourdthinker.files import PathLike
from fourdthinker.frames import FramePolicy
from fourdthinker.latents import DEFAULT_LATENT_SIZE, LatentSpec

NAME = "fourdthinker_outline"
TOWER = "fourdthinker_outline_flash"  # by its name transformers gives it whole sequences, not piece by piece


def outline(
    path: PathLike, subfolder: str | None = None, *, dtype: torch.dtype | None = None
) -> tuple[Backbone, FramePolicy]:
    """The model of a checkpoint on the meta device, and its frame policy. No weights are read.

    Attention keeps for its backward pass what flash attention does, and computes nothing.

    Args:
        path: as for `load_checkpoint`; a base model will do.
        subfolder: as for `load_checkpoint`.
        dtype: of the weights; None: the one that they were saved in.

    Raises:
        CheckpointError: as `load_checkpoint`, as far as the config shows it.
    """
    path, where = _located(path, subfolder)
    config, family = _family(path, subfolder, where)
    with torch.device("meta"):
        model = family.architecture(config)
    model.to(dtype or getattr(config, "dtype", None) or torch.float32)
    if getattr(config, "latent_token_id", None) is None:
        last = config.text_config.vocab_size - 1
        spec = LatentSpec(DEFAULT_LATENT_SIZE, last - 2, last - 1, last)
    else:
        spec = LatentSpec.from_config(config)
    backbone = family(model, spec)
    backbone.hf.model.language_model.config._attn_implementation = NAME
    backbone.hf.model.visual.config._attn_implementation = TOWER
    if backbone.deepstack_levels:
        backbone.hf.model.language_model._deepstack_process = outline_deepstack
    return backbone, _load_policy(path, where, family)[0]


def compute_in(backbone: Backbone, dtype: torch.dtype) -> int:
    """Let matrix products, convolutions and attention compute in `dtype`, as autocast would let them.

    Embeddings, norms and what runs between layers keep their type, and so does the head, which is not called.

    Args:
        backbone: of `outline`, changed in place.
        dtype: the narrower one.

    Returns:
        Bytes of the copies of weights that live until their layer's backward pass.
    """
    backbone._attention_dtype = lambda embeds: dtype  # type: ignore[method-assign]  # of dense masks
    copies = 0
    for part in (backbone.hf.model.language_model, backbone.visual):
        kept = any(p.requires_grad for p in part.parameters())
        for layer in part.modules():
            if isinstance(layer, nn.Linear | nn.Conv3d):
                layer.to(dtype)
                layer.register_forward_pre_hook(lambda _, inputs: (inputs[0].to(dtype), *inputs[1:]))
                copies += sum(p.nbytes for p in layer.parameters()) if kept else 0
    return copies


class _Kept(torch.autograd.Function):
    """Keeps what flash attention keeps: its inputs, a mask too, its output, and one number for each query."""

    @staticmethod
    def forward(ctx: Any, query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None) -> Tensor:
        out = torch.empty_like(query)
        numbers = query.new_empty(query.shape[:-1], dtype=torch.float32)
        ctx.save_for_backward(query, key, value, mask, out, numbers)
        return out

    @staticmethod
    def backward(ctx: Any, *_: Tensor) -> tuple[Tensor, Tensor, Tensor, None]:
        query, key, value, *_rest = ctx.saved_tensors
        return torch.empty_like(query), torch.empty_like(key), torch.empty_like(value), None


class _Norm(torch.autograd.Function):
    """The memory of Liger's RMSNorm: it keeps its input and a number a row, and what it gives is new."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor) -> Tensor:
        ctx.save_for_backward(x, weight, x.new_empty(x.shape[:-1], dtype=torch.float32))
        return torch.empty_like(x)

    @staticmethod
    def backward(ctx: Any, *_: Tensor) -> tuple[Tensor, Tensor]:
        x, weight, _rest = ctx.saved_tensors
        return torch.empty_like(x), torch.empty_like(weight)


class _Product(torch.autograd.Function):
    """The memory of Liger's SwiGLU: it keeps both inputs, and writes their gradients over them."""

    @staticmethod
    def forward(ctx: Any, gate: Tensor, up: Tensor) -> Tensor:
        ctx.save_for_backward(gate, up)
        return torch.empty_like(gate)

    @staticmethod
    def backward(ctx: Any, *_: Tensor) -> Any:
        return ctx.saved_tensors


def outline_liger(backbone: Backbone) -> None:
    """Let norms and SwiGLU of the language model take the memory that they take by Liger.

    Args:
        backbone: of `outline`, changed in place.
    """
    norms, mlps = norms_and_mlps(backbone)
    for norm in norms:
        norm.forward = MethodType(lambda module, x: _Norm.apply(x, module.weight), norm)
    for mlp in mlps:
        mlp.forward = MethodType(
            lambda module, x: module.down_proj(_Product.apply(module.gate_proj(x), module.up_proj(x))), mlp
        )


def outline_attention(
    module: nn.Module, query: Tensor, key: Tensor, value: Tensor, attention_mask: Tensor | None, **_: Any
) -> tuple[Tensor, None]:
    """The memory of an attention layer, as the layers of transformers call one.

    Args:
        module: the calling layer.
        query: [B, heads, S, D].
        key: [B, kv_heads, S, D].
        value: as ``key``.
        attention_mask: a dense one, with which SDPA needs keys and values for every head; or None.

    Returns:
        [B, S, heads, D], and None for the attention weights.
    """
    query, key = query.to(value.dtype), key.to(value.dtype)  # rotated in float32 under autocast
    if attention_mask is not None:
        groups = query.shape[1] // key.shape[1]
        if groups > 1:
            key, value = (x.repeat_interleave(groups, dim=1) for x in (key, value))
    mixed: Tensor = _Kept.apply(query, key, value, attention_mask)  # type: ignore[no-untyped-call]
    return mixed.transpose(1, 2).contiguous(), None


def outline_deepstack(hidden: Tensor, mask: Tensor, features: Tensor) -> Tensor:
    """The memory of adding features of the tower to hidden states, as Qwen3-VL of transformers does it.

    Where a mask is true is not known on the meta device; how often is, by the number of features.

    Args:
        hidden: [B, S, H].
        mask: [B, S] bool, of the positions of pictures.
        features: [N, H], one for each of these positions.

    Returns:
        [B, S, H].
    """
    hidden = hidden.clone()
    rows, columns = torch.empty(2, len(features), dtype=torch.long, device=mask.device)
    hidden[rows, columns] = hidden[rows, columns] + features.to(hidden.dtype)
    return hidden


def vision_patches(backbone: Backbone, policy: FramePolicy) -> Tensor:
    """[1, 3] the largest grid of patches (time, height, width) that a clip has by a frame policy."""
    spec = backbone.vision
    side = spec.merge_size * max(1, math.isqrt(policy.max_pixels // spec.factor**2))
    return torch.tensor([[-(-policy.max_frames // spec.temporal_patch_size), side, side]])


for _name in (NAME, TOWER):
    AttentionInterface.register(_name, outline_attention)
AttentionMaskInterface.register(NAME, lambda *_, **__: None)  # type: ignore[arg-type]
