"""The parts of a model that may learn at rates of their own."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from fourdthinker.backbones.common import Backbone

PARTS = ("model", "embeddings", "projector", "tower")


def part_names(backbone: Backbone) -> dict[int, str]:
    """Which part each parameter belongs to.

    Args:
        backbone: with or without an adapter.

    Returns:
        By the `id` of the parameter, one of `PARTS`: "embeddings" (tokens and head), "projector" (the tower's
        mergers), "tower" (its other layers), "model" (decoder layers and adapters).
    """
    found = {id(parameter): "model" for parameter in backbone.parameters()}
    for name, parameter in backbone.visual.named_parameters():
        found[id(parameter)] = "projector" if "merger" in name.partition(".")[0] else "tower"
    found |= {id(weight): "embeddings" for weight in (backbone.embedding_weight, backbone.head_weight)}
    return found
