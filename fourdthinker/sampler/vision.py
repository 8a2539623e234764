"""Pictures through the vision tower: several clips in one call, of bounded size, each distinct clip once."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from fourdthinker.errors import ConfigError

if TYPE_CHECKING:
    from fourdthinker.backbones.common import Backbone
    from fourdthinker.samples import Prompt, Vision

PATCHES_PER_CALL = (4_096, 65_536)  # on CPU and GPU: bounds the tower's activations; one clip at least
_PROBES = 64


def encode_visions(backbone: Backbone, visions: Sequence[Vision], *, apart: bool = False) -> Iterator[Tensor]:
    """The vision features of clips and images, in few calls of the tower.

    Whether gradients flow is the backbone's business: they do when its tower is open.

    Args:
        backbone: whose tower computes.
        visions: clips or images, with patches.
        apart: a call for each of them, so that its features are the same bits whatever the others are.

    Returns:
        For each of `visions` its features [M, (1 + D) * H], as `Backbone.encode_vision` gives them.
    """
    merged = backbone.vision.merge_size**2
    most = 0 if apart else PATCHES_PER_CALL[backbone.device.type == "cuda"]
    for part in _parts(visions, most):
        sizes = [_size(vision) // merged for vision in part]
        yield from backbone.encode_vision(*_joined(part)).split(sizes)


def encode_imagery(backbone: Backbone, visions: Sequence[Vision]) -> Iterator[Tensor]:
    """The latents of images: what training takes as targets.

    Args:
        backbone: whose tower computes.
        visions: images, with patches.

    Returns:
        For each of `visions`, of n images, the latents [n * K, H], detached.
    """
    for part in _parts(visions, PATCHES_PER_CALL[backbone.device.type == "cuda"]):
        sizes = [vision.grid_thw.shape[0] * backbone.latents.latent_size for vision in part]
        yield from backbone.imagery_targets(*_joined(part)).split(sizes)


def encode_prompts(
    backbone: Backbone, prompts: Sequence[Prompt], *, apart: bool = False
) -> list[Tensor | None]:
    """The vision features of prompts, each distinct clip encoded once.

    Features that a prompt brings along are used as they are. Whether gradients flow is the backbone's
    business, as in `encode_visions`.

    Args:
        backbone: whose tower computes.
        prompts: of the same family.
        apart: as for `encode_visions`.

    Returns:
        For each prompt its features [M, (1 + D) * H] on the device of the backbone, or None without pictures.

    Raises:
        ConfigError: a prompt of another family, or one whose pictures have neither patches nor features.
    """
    features: list[Tensor | None] = [None] * len(prompts)
    distinct: list[Vision] = []
    users: list[list[int]] = []  # of every distinct clip the prompts that show it
    seen: dict[tuple[Any, ...], list[int]] = {}
    for index, prompt in enumerate(prompts):
        vision = prompt.vision
        backbone.require_family(prompt.family, describe(prompt, index))
        if vision is None:
            continue
        if vision.features is not None:
            features[index] = vision.features.to(backbone.device)
            continue
        if vision.patches is None:
            raise ConfigError(
                f"{describe(prompt, index)}: its pictures have neither patches nor features; give one"
            )
        similar = seen.setdefault(_probe(vision), [])
        known = next((number for number in similar if _equal(distinct[number], vision)), None)
        if known is None:
            similar.append(len(distinct))
            distinct.append(vision)
            users.append([index])
        else:
            users[known].append(index)
    for indices, encoded in zip(users, encode_visions(backbone, distinct, apart=apart), strict=True):
        for index in indices:
            features[index] = encoded
    return features


def describe(prompt: Prompt, index: int) -> str:
    """A prompt's name in messages."""
    record = prompt.record
    return f"prompt {index}" if record is None else f"question {record.id!r} ({record.where})"


def vision_index(prompt: Prompt, vision_ids: Sequence[int]) -> Tensor:
    """Positions [M] of a prompt whose embedding is a vision feature."""
    ids = torch.tensor(vision_ids, device=prompt.input_ids.device)
    return torch.isin(prompt.input_ids, ids).nonzero()[:, 0]


def _joined(visions: Sequence[Vision]) -> tuple[Tensor, Tensor]:
    patches = [vision.patches for vision in visions if vision.patches is not None]
    return torch.cat(patches), torch.cat([vision.grid_thw for vision in visions])


def _size(vision: Vision) -> int:
    return int(vision.grid_thw.prod(-1).sum())


def _parts(visions: Sequence[Vision], patches: int) -> Iterator[list[Vision]]:
    part: list[Vision] = []
    size = 0
    for vision in visions:
        if part and size + _size(vision) > patches:
            yield part
            part, size = [], 0
        part.append(vision)
        size += _size(vision)
    if part:
        yield part


def _probe(vision: Vision) -> tuple[Any, ...]:
    """Cheap to compute and equal for equal clips: the grids and a few values."""
    flat = vision.patches.flatten()  # type: ignore[union-attr]
    values = flat[:: max(1, flat.numel() // _PROBES)].tolist()
    return (vision.kind, tuple(vision.grid_thw.flatten().tolist()), flat.numel(), *values)


def _equal(a: Vision, b: Vision) -> bool:
    return a.patches is b.patches or torch.equal(a.patches, b.patches)  # type: ignore[arg-type]
