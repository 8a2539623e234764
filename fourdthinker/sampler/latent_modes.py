"""The named ways of putting something else in the place of a model's own latents."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from fourdthinker.errors import ConfigError
from fourdthinker.sampler.config import SamplingConfig
from fourdthinker.sampler.feed import FIRST, NONE, TABLE, Feed

if TYPE_CHECKING:
    from fourdthinker.backbones.common import Backbone

LATENT_MODES = ("own", "oracle", "zero", "pad", "noise", "other-clip", "first-repeat", "shuffle", "none")


def check_latent_mode(mode: str) -> None:
    """Refuse a name that is no mode.

    Args:
        mode: one of LATENT_MODES.

    Raises:
        ConfigError: it is not.
    """
    if mode not in LATENT_MODES:
        raise ConfigError(f"latents is {mode!r}; choose one of {', '.join(LATENT_MODES)}")


def most_latents(backbone: Backbone, config: SamplingConfig) -> int:
    """Latents that a row can have.

    Args:
        backbone: the model.
        config: sampling settings.

    Returns:
        K for each block, as far as ids are left.
    """
    return min(config.max_blocks * backbone.latents.latent_size, config.max_new_tokens)


def make_feed(
    mode: str, backbone: Backbone, rows: int, vectors: Sequence[Tensor] | None = None
) -> Feed | None:
    """What the rows of a call are fed in a mode.

    Args:
        mode: one of LATENT_MODES. own: each its hidden states. zero: zeros. pad: the embedding of the latent
            pad. first-repeat: the first latent of a block K times. none: no latents, a block is START and
            END. oracle, noise, other-clip, shuffle: `vectors`.
        backbone: the model.
        rows: R.
        vectors: of each row, [N, H] for its first N latents; for the modes that need them.

    Returns:
        For `LatentSampler.sample`; None for own.

    Raises:
        ConfigError: an unknown mode, or vectors missing, or not one entry a row.
    """
    check_latent_mode(mode)
    width = backbone.hidden_size
    if mode == "own":
        return None
    if mode in ("first-repeat", "none"):
        return Feed.constant(FIRST if mode == "first-repeat" else NONE, rows, width)
    if mode in ("zero", "pad"):
        pad = backbone.embedding_weight.detach()[backbone.latents.pad_id].cpu()
        vector = torch.zeros_like(pad) if mode == "zero" else pad
        every = torch.full((rows,), torch.iinfo(torch.int32).max, dtype=torch.long)
        return Feed(torch.full_like(every, TABLE), vector.expand(rows, 1, width), every)
    if vectors is None or len(vectors) != rows:
        given = "none" if vectors is None else f"{len(vectors)} entries"
        raise ConfigError(f"latents {mode} need the vectors of each of {rows} rows, and {given} are given")
    return Feed.of_vectors(vectors, width)
