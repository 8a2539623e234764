"""How many operations the passes of a model take, from its shapes and from what goes through it."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from torch import nn

from fourdthinker.backbones.common import Backbone
from fourdthinker.backbones.gathering import full_shape
from fourdthinker.samples import Sample, Vision
from fourdthinker.trainers.settings import TrainConfig


@dataclass(frozen=True)
class Counts:
    """What goes through a model.

    Attributes:
        tokens: positions, without padding.
        pairs: of a position and one that it sees.
        logits: positions of which logits are made.
        patches: of pictures that go through the tower.
    """

    tokens: float = 0.0
    pairs: float = 0.0
    logits: float = 0.0
    patches: float = 0.0

    def __add__(self, other: Counts) -> Counts:
        return Counts(
            self.tokens + other.tokens,
            self.pairs + other.pairs,
            self.logits + other.logits,
            self.patches + other.patches,
        )


@dataclass(frozen=True)
class Costs:
    """Operations of a forward pass, a multiplication and an addition each being one.

    Attributes:
        token: of a position in the decoder's layers, without attention.
        pair: of attention, for a position and one that it sees.
        logits: of the output head, for a position.
        patch: of the vision tower, for a patch, without its attention.
    """

    token: float
    pair: float
    logits: float
    patch: float

    @classmethod
    def of(cls, backbone: Backbone) -> Costs:
        """Those of a model, also of one whose weights are divided over ranks."""
        width = backbone.num_heads * backbone.head_dim
        return cls(
            token=2.0 * _size(backbone.hf.model.language_model.layers),
            pair=4.0 * backbone.num_layers * width,
            logits=2.0 * math.prod(full_shape(backbone.head_weight)),
            patch=2.0 * _size(backbone.visual),
        )

    def forward(self, counts: Counts) -> float:
        """Operations of a forward pass, without logits and tower."""
        return self.token * counts.tokens + self.pair * counts.pairs

    def inference(self, counts: Counts) -> float:
        """Operations of a pass without gradient, logits and tower included."""
        return self.forward(counts) + self.logits * counts.logits + self.patch * counts.patches

    def training(self, counts: Counts, config: TrainConfig, *, recomputed: bool = False) -> float:
        """Operations of forward and backward.

        Args:
            counts: what goes through; of a frozen tower nothing is counted.
            config: says what is trained. Below an adapter no gradient of a weight is made.
            recomputed: whether the layers' forward runs once more in the backward pass.
        """
        lora = config.lora
        layers = (3 if lora is None else 2) + recomputed
        head = 3 if lora is None or lora.train_embeddings else 2
        tower = 0 if config.freeze_vision else 3
        made = layers * self.forward(counts) + head * self.logits * counts.logits
        return made + tower * self.patch * counts.patches


def patches_of(vision: Vision | None) -> int:
    """Patches that go through the tower: none of pictures whose features are there."""
    if vision is None or vision.features is not None:
        return 0
    return int(vision.grid_thw.prod(-1).sum())


def self_fed(samples: Sequence[Sample], latent_size: int) -> Counts:
    """What goes through the passes of `backbones.self_feed`, once: no logits, and no patches.

    Args:
        samples: of a forward, padded; together they begin the short passes before the first latent of any.
        latent_size: K, the short passes.

    Returns:
        The pass over what stands before, and the K short ones over the rest.
    """
    first = [int(sample.latent_index[0]) for sample in samples if sample.latent_index.numel()]
    length = max(sample.input_ids.numel() for sample in samples)
    start = (min(first) if first else length) - 1
    counts = Counts()
    for sample in samples:
        whole = sample.input_ids.numel()
        before = min(start, whole)
        tokens = before + latent_size * (whole - before)
        counts += Counts(tokens, (before**2 + latent_size * (whole**2 - before**2)) / 2)
    return counts


def _size(module: nn.Module) -> int:
    return sum(math.prod(full_shape(parameter)) for parameter in module.parameters())
