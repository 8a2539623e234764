"""The latents that a model would think itself, for a batch whose text is given."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor

from fourdthinker.backbones.packed import additive_mask
from fourdthinker.backbones.pictures import with_features
from fourdthinker.latents import rescaled

if TYPE_CHECKING:
    from fourdthinker.backbones.common import Backbone
    from fourdthinker.samples import Batch


def with_own_latents(backbone: Backbone, batch: Batch) -> Batch:
    """Let a batch feed the model its own latents, while the targets stay what they are.

    What stands before the first latent is run once. K short passes over the rest follow: pass k makes the
    k-th latent of every block from the hidden state before it. In the first block of a sequence they are the
    ones that generation would feed back. A later block sees the own latents of those before it only as far as
    they were known in its pass, and the targets instead of the others.

    Args:
        backbone: in any mode; the passes run in eval mode.
        batch: of `collate`, padded, not packed.

    Returns:
        The batch with `latents` [N, H], the targets, `fed_latents` [N, H], and of a frozen tower
        `vision_features` instead of patches.
    """
    batch = with_features(backbone, batch)  # once for these passes and for training
    training = backbone.training
    backbone.eval()  # or gradient checkpointing would do without the cache
    try:
        with torch.no_grad():
            return _with_own_latents(backbone, batch)
    finally:
        backbone.train(training)
        torch.clear_autocast_cache()  # casts of weights made without gradient are not for training


def _with_own_latents(backbone: Backbone, batch: Batch) -> Batch:
    inputs, index, size = backbone.embed_inputs(batch), batch["latent_index"], backbone.latents.latent_size
    rows, length = batch["input_ids"].shape
    # From the position that makes the first latent on. (Ranks without latents run as many passes.)
    start = int((index % length).min()) - 1 if index.numel() else length - 1
    embeds, positions, mask = inputs.embeds.clone(), batch["position_ids"], batch["attention_mask"]
    seen = mask
    if (bottleneck := batch.get("bottleneck")) is not None:  # nothing before the first latent is barred
        dtype = backbone._attention_dtype(embeds)
        seen = additive_mask(batch["segments"], dtype, bottleneck, first=start)
    parts = [(0, start), (start, length)]
    deepstack = [None if inputs.deepstack is None else inputs.deepstack.part(length, *part) for part in parts]
    cache = backbone.new_cache()
    if start:
        backbone.decode(
            embeds[:, :start], positions[:, :, :start], mask[:, :start], cache, deepstack=deepstack[0]
        )
    for k in range(size):
        hidden = backbone.decode(
            embeds[:, start:], positions[:, :, start:], seen, cache, deepstack=deepstack[1]
        )
        cache.crop(start)
        made = index[k::size]  # blocks are whole and follow each other
        before = made // length * (length - start) + made % length - 1 - start
        own = rescaled(hidden.flatten(0, 1)[before], backbone.latents.latent_norm)
        embeds.view(rows * length, -1)[made] = own.to(embeds.dtype)
    if not index.numel():
        return batch
    return batch | {"latents": inputs.latents, "fed_latents": _rows(embeds, index)}


def _rows(embeds: Tensor, index: Tensor) -> Tensor:
    return embeds.flatten(0, 1)[index]
