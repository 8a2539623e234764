"""Parts of the settings of training: the adapter, rates of parts of the model, schedules."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from fourdthinker.settings import Bool, Float, Int, Names, Section

# Those of transformers that need no evaluation during the training.
Schedule = Literal[
    "linear",
    "cosine",
    "cosine_with_restarts",
    "polynomial",
    "constant",
    "constant_with_warmup",
    "inverse_sqrt",
    "cosine_with_min_lr",
    "cosine_warmup_with_min_lr",
    "warmup_stable_decay",
]


class LoraSettings(Section):
    """A low-rank adapter on the language model is trained instead of its weights (peft, `train` extra)."""

    r: Int = Field(16, ge=1, description="Rank of the adapter.")
    alpha: Float = Field(32.0, gt=0, description="Scale: the adapter is multiplied by alpha / r.")
    use_rslora: Bool = Field(
        False,
        description="Multiply it by alpha / sqrt(r) instead (rsLoRA), with which a high rank learns as fast "
        "as a low one.",
    )
    dropout: Float = Field(
        0.0, ge=0, lt=1, description="Dropout before the adapter. 0 in 4DRL, which trains what it sampled."
    )
    target_modules: Names = Field(
        ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"],
        min_length=1,
        description="Linear layers of the decoder layers that get an adapter.",
    )
    train_embeddings: Bool = Field(
        False,
        description="Also train token embeddings and output head, in full: what new latent tokens need.",
    )


class LearningRates(Section):
    """Rates of parts of the model instead of `learning_rate`; 0 takes a part out of the training."""

    model: Float | None = Field(None, ge=0, description="Decoder layers, or their adapter.")
    embeddings: Float | None = Field(None, ge=0, description="Token embeddings and output head.")
    projector: Float | None = Field(None, ge=0, description="The mergers of the vision tower.")
    tower: Float | None = Field(None, ge=0, description="The other layers of the vision tower.")
