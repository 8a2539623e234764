"""What a checkpoint computes for a trial input, and what travels with its weights, to compare two of them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from fourdthinker.backbones import Checkpoint
from fourdthinker.latents import LATENT_TOKENS, rescaled
from fourdthinker.prompt_style import CHAT_TEMPLATE

_TEXT = "Which way does the camera move? A. left B. right"
_SPELT = "Où va l'objet 3, à 12,5 m/s?\n<|im_start|>user  ünï 相机 🎥<|im_end|>"  # for the tokenizer alone


@torch.no_grad()
def trial_outputs(checkpoint: Checkpoint, columns: int | None = None) -> dict[str, Tensor]:
    """What a model computes.

    Args:
        checkpoint: in any dtype, on the CPU.
        columns: ids whose logits are wanted, from 0 on; None: all.

    Returns:
        By name: the logits [T, columns] of a short text; of a model with latent tokens also those of START,
        the K latents that it thinks then, and END, [K + 2, columns]; the features of a made-up picture.
    """
    backbone = checkpoint.backbone
    ids = checkpoint.tokenizer(_TEXT, add_special_tokens=False)["input_ids"]
    found = {"logits": _hidden(checkpoint, backbone.embed_tokens(torch.tensor(ids)))}
    if not backbone.latents.absent:
        _, start, end = backbone.latents.ids
        embeds = backbone.embed_tokens(torch.tensor([*ids, start]))
        for _ in range(backbone.latents.latent_size):
            thought = rescaled(_hidden(checkpoint, embeds)[-1:], backbone.latents.latent_norm)
            embeds = torch.cat([embeds, thought])
        embeds = torch.cat([embeds, backbone.embed_tokens(torch.tensor([end]))])
        found["logits of a latent block"] = _hidden(checkpoint, embeds)[len(ids) :]
    found = {
        name: F.linear(hidden, backbone.head_weight)[:, :columns].float() for name, hidden in found.items()
    }
    side, wide = 2 * backbone.vision.merge_size, backbone.vision.patch_dim
    patches = torch.sin(torch.arange(side * side * wide, dtype=torch.float32)).view(side * side, wide)
    features = backbone.encode_vision(patches, torch.tensor([[1, side, side]]))
    return found | {"vision features": features.float()}


def _hidden(checkpoint: Checkpoint, embeds: Tensor) -> Tensor:
    """Hidden states [T, H] of embeddings [T, H]."""
    positions = torch.arange(len(embeds)).expand(3, 1, -1)
    return checkpoint.backbone.decode(embeds[None], positions)[0]


def worst_difference(new: Mapping[str, Tensor], old: Mapping[str, Tensor]) -> tuple[str, float]:
    """Where two outputs differ most.

    Args:
        new: of `trial_outputs`.
        old: of the source, what is compared; `new` may have more.

    Returns:
        The name of an output and its largest difference over the largest value of the old one; a difference
        that is not finite before all others.
    """
    apart = {name: float((new[name] - part).abs().max() / part.abs().max()) for name, part in old.items()}
    name = max(apart, key=lambda name: apart[name] if apart[name] < float("inf") else float("inf"))
    return name, apart[name]


def belongings(checkpoint: Checkpoint, added: bool = False) -> dict[str, Any]:
    """What of a checkpoint decides about its answers, besides the weights.

    Args:
        checkpoint: to look at.
        added: only what does not change where latent tokens are added to a base model.

    Returns:
        Values that can be compared, by name.
    """
    tokenizer, generation = checkpoint.tokenizer, checkpoint.backbone.hf.generation_config.to_dict()
    vocabulary = tokenizer.get_vocab()
    special = tokenizer.special_tokens_map
    kept = {
        "vocabulary": {t: i for t, i in vocabulary.items() if not (added and t in LATENT_TOKENS)},
        "ids of a text": tokenizer(f"{_TEXT} {_SPELT}", add_special_tokens=False)["input_ids"],
        "special tokens": {k: v for k, v in special.items() if k.endswith("_token")},
        "chat template": tokenizer.chat_template or CHAT_TEMPLATE,  # which a folder without one is given
        "generation config": {k: v for k, v in generation.items() if k != "transformers_version"},
    }
    if added:
        return kept
    own = {"latents": checkpoint.backbone.latents, "frame policy": checkpoint.policy}
    return kept | own | {"prompt style": checkpoint.style}
