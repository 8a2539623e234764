"""What the answers to records are thought with: the latents of each row, or something in their place."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import TYPE_CHECKING

import torch
from torch import Tensor
from torch.nn.functional import normalize

from fourdthinker.errors import ConfigError, RecordError
from fourdthinker.evaluate.clips import derangement
from fourdthinker.records import source_of
from fourdthinker.sampler import (
    Feed,
    SamplingConfig,
    check_latent_mode,
    encode_imagery,
    make_feed,
    most_latents,
    seed_of,
)

if TYPE_CHECKING:
    from fourdthinker.backbones.common import Backbone
    from fourdthinker.prompts import Encoder
    from fourdthinker.records import Record

Key = tuple[str, int]  # id of a record, and the number of a sample; -1: at temperature 0
_DRAWS, _HALVINGS, _FARTHEST = 512, 30, 1e6  # to find the centre of the noise
OF_OTHERS = ("noise", "other-clip")  # made of the latents that the model thinks about other questions
OF_OWN = (*OF_OTHERS, "shuffle")  # made of the latents that the model thinks itself


@dataclass
class LatentFeeds:
    """Makes the feeds of the rows that answer records, in one mode.

    No entry depends on how records are batched, nor on the order of sampling.

    Attributes:
        mode: one of LATENT_MODES.
        backbone: the model.
        config: sampling settings.
        sources: id of each record -> its original video.
        own: of the rows of a run with own latents, those latents [N, H]; for the modes OF_OWN.
        targets: id -> [N, H], what its overlays are to be thought as; for oracle.
    """

    mode: str
    backbone: Backbone
    config: SamplingConfig
    sources: Mapping[str, str]
    own: dict[Key, Tensor] = field(default_factory=dict)
    targets: Mapping[str, Tensor] = field(default_factory=dict)

    def feed(self, keys: Sequence[Key]) -> Feed | None:
        """The feed of some rows, for `LatentSampler.sample`; None for own."""
        made = {
            "oracle": lambda: [self.targets[id] for id, _ in keys],
            "noise": lambda: self._noise(keys),
            "other-clip": lambda: self._other_clip(keys),
            "shuffle": lambda: [self._shuffled(key) for key in keys],
        }.get(self.mode, lambda: None)()
        return make_feed(self.mode, self.backbone, len(keys), made)

    def _noise(self, keys: Sequence[Key]) -> list[Tensor]:
        """Normal draws of one norm; they have mean and mean norm of all own latents."""
        if self._statistics is None:
            return [torch.zeros(0, self.backbone.hidden_size) for _ in keys]
        centre, spread, norm = self._statistics
        length = most_latents(self.backbone, self.config)
        out = []
        for key in keys:
            generator = torch.Generator().manual_seed(_seed(self.config.seed, "noise", key))
            drawn = torch.randn(length, len(centre), generator=generator, dtype=torch.float64)
            out.append((norm * normalize(centre + spread * drawn, dim=-1)).float())
        return out

    @cached_property
    def _statistics(self) -> tuple[Tensor, Tensor, Tensor] | None:
        """Of the noise: centre and spread [H], and norm; None: there are no own latents."""
        every = torch.cat([*self.own.values(), torch.zeros(0, self.backbone.hidden_size)]).double()
        if not len(every):
            return None
        mean, spread, norm = every.mean(0), every.std(0, correction=0), every.norm(dim=-1).mean()
        return _centre(mean, spread, norm), spread, norm

    def _other_clip(self, keys: Sequence[Key]) -> list[Tensor]:
        """Those of a row about another video, over and over; the videos are exchanged in one cycle."""
        rows: dict[str, list[Key]] = {}
        for key in sorted(self.own):
            if len(self.own[key]):
                rows.setdefault(self.sources[key[0]], []).append(key)
        if not rows:  # no block was opened: nothing to replace
            return [torch.zeros(0, self.backbone.hidden_size) for _ in keys]
        if len(rows) == 1:
            raise ConfigError(
                "latents other-clip: the rows of one video alone have latents; ask about two or more videos"
            )
        donors = list(rows)
        exchanged = dict(
            zip(donors, (donors[i] for i in derangement(len(donors), self.config.seed)), strict=True)
        )
        length, out = most_latents(self.backbone, self.config), []
        for key in keys:
            source = self.sources[key[0]]
            given = rows[exchanged.get(source, donors[0])]
            vectors = self.own[given[_seed(self.config.seed, "donor", key) % len(given)]]
            out.append(vectors[torch.arange(length) % len(vectors)])
        return out

    def moved(self) -> int:
        """Rows that "shuffle" changes: those of two own latents or more."""
        return sum(len(vectors) > 1 for vectors in self.own.values())

    def _shuffled(self, key: Key) -> Tensor:
        """The row's own latents, those of all blocks, each in another's stead."""
        vectors = self.own.get(key, torch.zeros(0, self.backbone.hidden_size))
        if len(vectors) < 2:
            return vectors
        return vectors[torch.tensor(derangement(len(vectors), _seed(self.config.seed, "shuffle", key)))]


def latent_feeds(
    mode: str,
    backbone: Backbone,
    encoder: Encoder,
    records: Sequence[Record],
    config: SamplingConfig,
) -> LatentFeeds:
    """What `mode` needs beside own latents, checked and read.

    Args:
        mode: one of LATENT_MODES.
        backbone: the model.
        encoder: of the same checkpoint.
        records: what will be asked.
        config: sampling settings.

    Returns:
        The feeds; for the modes OF_OWN their `own` is still to be filled.

    Raises:
        ConfigError: an unknown mode, or too few videos for it.
        RecordError: oracle, and a record without overlays.
        VideoError: oracle, and an overlay that cannot be read.
    """
    check_mode(mode, records)
    sources = {record.id: source_of(record) for record in records}
    targets = imagery_targets(backbone, encoder, records) if mode == "oracle" else {}
    return LatentFeeds(mode, backbone, config, sources, targets=targets)


def check_mode(mode: str, records: Sequence[Record]) -> None:
    """Check that records allow a mode.

    Args:
        mode: one of LATENT_MODES.
        records: what will be asked.

    Raises:
        ConfigError: an unknown mode, or too few videos for it.
        RecordError: oracle, and a record without overlays.
    """
    check_latent_mode(mode)
    if mode in OF_OTHERS and len({source_of(record) for record in records}) < 2:
        raise ConfigError(
            f"latents {mode} are made of those of several videos, and all questions are about one; add "
            "questions about another, or choose another mode"
        )
    bare = [record for record in records if not record.images]
    if mode == "oracle" and bare:
        raise RecordError(
            f"{bare[0].where}: latents oracle need overlays and this record has none ({len(bare)} of "
            f"{len(records)} have none); use records with 'image_output', or another mode"
        )


def imagery_targets(backbone: Backbone, encoder: Encoder, records: Sequence[Record]) -> dict[str, Tensor]:
    """What the overlays of records are to be thought as.

    Args:
        backbone: the model.
        encoder: of the same checkpoint.
        records: with or without overlays.

    Returns:
        id -> [N, H] on the CPU, K for each overlay, of those that have some.

    Raises:
        VideoError: an overlay that cannot be read.
    """
    out = {}
    for record in records:
        if record.images:
            (vectors,) = encode_imagery(backbone, [encoder.overlays(record)])
            out[record.id] = vectors.float().cpu()
    return out


def _centre(mean: Tensor, spread: Tensor, norm: Tensor) -> Tensor:
    """The multiple of `mean` around which draws, scaled to `norm`, have that mean.

    Scaling shortens what is far out, so that around `mean` itself theirs is another one where norms differ.
    """
    length = mean.norm()
    if not length:
        return mean
    drawn = torch.randn(_DRAWS, len(mean), generator=torch.Generator().manual_seed(0), dtype=mean.dtype)
    drawn = spread * torch.cat([drawn, -drawn])

    def short(factor: float) -> bool:
        scaled = norm * normalize(factor * mean + drawn, dim=-1)
        return bool((scaled.mean(0) @ mean) < length.square())

    low, high = 0.0, 1.0
    while short(high) and high < _FARTHEST:  # where all have one direction no factor is enough
        low, high = high, 2 * high
    for _ in range(_HALVINGS):
        middle = (low + high) / 2
        low, high = (middle, high) if short(middle) else (low, middle)
    return high * mean


def _seed(seed: int, what: str, key: Key) -> int:
    return seed_of(f"{seed}\n{what}\n{key[1]}\n{key[0]}")
