"""Questions grouped by the clip they ask about, and the two ways of showing something else than the clip."""

from __future__ import annotations

import os
from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import torch

from fourdthinker.errors import ConfigError, VideoError
from fourdthinker.frames import Frames, in_order
from fourdthinker.prompts import Encoder
from fourdthinker.records import Record, media_key, source_of
from fourdthinker.samples import Prompt, Vision

if TYPE_CHECKING:
    from fourdthinker.vision import VisionSpec

Override = Literal["black", "other", "none"]
_READ_AHEAD = 2  # clips decoded while the model works


@dataclass(frozen=True)
class AskedClip:
    """One stretch of one source (`source_of`) and the rows of the questions about it."""

    source: str
    record: Record
    rows: tuple[int, ...]


def group_clips(records: Sequence[Record]) -> list[AskedClip]:
    """Find the questions that are about the same clip.

    Args:
        records: the questions.

    Returns:
        The clips in the order in which they are first asked about, each with the rows of its questions.
    """
    rows: dict[tuple[Any, ...], list[int]] = defaultdict(list)
    for i, record in enumerate(records):
        # Questions without pictures share none.
        rows[(media_key(record), None if record.shown else record.id)].append(i)
    return [
        AskedClip(source_of(records[members[0]]), records[members[0]], tuple(members))
        for members in rows.values()
    ]


def read_clips(clips: Sequence[AskedClip], encoder: Encoder) -> Iterator[Vision | VideoError | None]:
    """Read clips one after the other; a few are decoded ahead.

    Args:
        clips: as `group_clips` returns.
        encoder: says how pictures are read.

    Returns:
        For each clip its pictures, as `Encoder.read` gives them, or the error that it raised; None for a
        question without pictures.
    """

    def read(clip: AskedClip) -> Vision | VideoError | None:
        try:
            return encoder.read(clip.record)
        except VideoError as error:
            return error

    yield from in_order(read, clips, _READ_AHEAD, ahead=_READ_AHEAD)


def derangement(number: int, seed: int = 0) -> list[int]:
    """A permutation of range(number) that is one random cycle: of 2 or more none is left where it was."""
    cycle = np.random.default_rng(seed % 2**63).permutation(number)
    out = [0] * number
    for here, there in zip(cycle, np.roll(cycle, 1), strict=True):
        out[int(here)] = int(there)
    return out


def donors(clips: Sequence[AskedClip], override: Override | None, seed: int) -> list[AskedClip | None]:
    """The clip shown for each clip: itself, with "other" one of another source, with "none" none.

    Args:
        clips: as `group_clips` returns.
        override: what is shown instead of them; None: nothing.
        seed: of the exchange.

    Returns:
        Clips in the same order. With "other" as `exchanged`, by one whose files are all there.
    """
    if override == "none":
        return [replace(clip, record=without_pictures(clip.record)) for clip in clips]
    if override != "other":
        return list(clips)
    return exchanged(clips, [is_there(clip) for clip in clips], seed)


def is_there(clip: AskedClip) -> bool:
    """Whether all files of a clip exist.

    Args:
        clip: as `group_clips` returns.

    Returns:
        True also where it shows nothing.
    """
    return all(os.path.exists(path) for _, path in clip.record.shown)


def exchanged(clips: Sequence[AskedClip], there: Sequence[bool], seed: int) -> list[AskedClip | None]:
    """For each clip one of another source, which has as many videos and images in the same order.

    Args:
        clips: as `group_clips` returns.
        there: of each clip whether it can be shown.
        seed: of the cycle through all sources, in which the next one with a clip to show is taken.

    Returns:
        Clips in the same order; None where no other source has such a one.
    """
    first: dict[tuple[str, ...], dict[str, AskedClip | None]] = defaultdict(dict)
    for clip, shown in zip(clips, there, strict=True):
        sources = first[_kinds(clip.record)]
        sources[clip.source] = sources.get(clip.source) or (clip if shown else None)
    other: dict[tuple[tuple[str, ...], str], AskedClip | None] = {}
    for kinds, sources in first.items():
        names, given = list(sources), list(sources.values())
        order = derangement(len(names), seed)
        for here, name in enumerate(names):
            donor = order[here]
            while donor != here and given[donor] is None:
                donor = order[donor]
            other[kinds, name] = given[donor] if donor != here else None
    return [other[_kinds(clip.record), clip.source] for clip in clips]


def _kinds(record: Record) -> tuple[str, ...]:
    """Kind of each video and image that a record shows; frames of a clip are one video."""
    kinds = [kind for kind, _ in record.shown]
    return ("video",) if "frame" in kinds else tuple(kinds)


def without_pictures(record: Record) -> Record:
    """The record without its pictures, and without the placeholders for them."""
    return replace(
        record, video=None, frames=None, media=[], turns=[], start=None, end=None, fps=None, seconds=None
    )


def blacken(vision: Vision, spec: VisionSpec) -> Vision:
    """The same times and size with nothing to see, for a model of that spec."""
    pixels = torch.zeros(1, spec.factor, spec.factor, 3, dtype=torch.uint8)
    black = Vision.from_frames(Frames(pixels=pixels, kind="image", source="black"), spec).patches
    assert black is not None
    count = int(vision.grid_thw.prod(dim=-1).sum())  # every patch of black is the same
    return replace(vision, patches=black[:1].expand(count, -1).contiguous(), features=None)


def override_prompts(
    prompts: Sequence[Prompt], clips: Sequence[AskedClip], override: Override, seed: int, spec: VisionSpec
) -> list[Prompt]:
    """Ready-made prompts, for a model of that spec, with their pictures exchanged; tokens and positions stay.

    "other" exchanges among the clips of equal grids only, since the number of vision tokens is part of the
    prompt.

    Raises:
        ConfigError: "none", which is another prompt; a prompt has no pictures, or (with "other") no other
            source has the same grid.
    """
    if override == "none":
        raise ConfigError(
            "frames_override='none' changes the prompts; leave out prompts, or the pictures in them"
        )
    out = list(prompts)
    shapes = [_shape(prompt) for prompt in prompts]
    if override == "black":
        blacks: dict[tuple[int, ...], Vision] = {}  # one object for each shape, so that it is encoded once
        for i, shape in enumerate(shapes):
            if shape not in blacks:
                blacks[shape] = blacken(_vision(prompts[i]), spec)
            out[i] = replace(prompts[i], vision=blacks[shape])
        return out
    by_shape: dict[tuple[int, ...], list[AskedClip]] = defaultdict(list)
    for clip in clips:
        by_shape[shapes[clip.rows[0]]].append(clip)
    for same in by_shape.values():
        for clip, donor in zip(same, exchanged(same, [True] * len(same), seed), strict=True):
            if donor is None:
                raise ConfigError(
                    f"{clip.record.where}: frames_override='other' needs two clips of a size, of different "
                    "sources, and this is the only one of its size; add records, or leave it out"
                )
            for i in clip.rows:
                out[i] = replace(prompts[i], vision=_vision(prompts[donor.rows[0]]))
    return out


def _shape(prompt: Prompt) -> tuple[int, ...]:
    return tuple(_vision(prompt).grid_thw.flatten().tolist())


def _vision(prompt: Prompt) -> Vision:
    if prompt.vision is None:
        raise ConfigError("frames_override needs prompts with pictures, and one is text only; leave it out")
    return prompt.vision
