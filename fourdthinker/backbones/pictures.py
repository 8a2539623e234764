"""What the tower makes of the pictures of a batch, before the batch goes through the model."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

if TYPE_CHECKING:
    from fourdthinker.backbones.common import Backbone
    from fourdthinker.samples import Batch


def with_features(backbone: Backbone, batch: Batch) -> Batch:
    """Let a batch have features instead of pixels, as far as no gradient flows through the tower.

    Args:
        backbone: its tower runs, once for clips and pictures and once for imagery.
        batch: of `collate`.

    Returns:
        The batch with `latents` [N, H], the targets of its imagery, instead of `imagery_patches`; and with
        `vision_features` [Mv, (1 + D) * H] instead of `patches`, unless the tower is trained and gradients
        are recorded.
    """
    trained = backbone.tower_is_trained
    made: Batch = {}
    with torch.no_grad():
        if "patches" in batch and not trained:
            made["vision_features"] = backbone.encode_vision(batch["patches"], batch["grid_thw"])
        if "imagery_patches" in batch:
            latents = backbone.imagery_targets(batch["imagery_patches"], batch["imagery_grid_thw"])
            made["latents"] = latents[: batch["latent_index"].numel()]  # of a batch that places none, none
    gone = {"imagery_patches", "imagery_grid_thw"} | (set() if trained else {"patches", "grid_thw"})
    return {name: value for name, value in batch.items() if name not in gone} | made
