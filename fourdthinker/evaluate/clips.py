"""Questions grouped by the clip they ask about, and the two ways of showing something else than the clip."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import torch

from fourdthinker.errors import ConfigError
from fourdthinker.frames import FramePolicy, Frames, patchify, read_frames, read_images

if TYPE_CHECKING:
    from fourdthinker.prompts import Prompt
    from fourdthinker.records import Record

Override = Literal["black", "other"]


def cluster_of(record: Record) -> str:
    """The source a record asks about: its video, whatever the segment, or its list of frames."""
    return record.video if record.video is not None else "\n".join(record.frames or ())


@dataclass(frozen=True)
class Clip:
    """One stretch of one source and the rows of the questions about it."""

    source: str
    record: Record
    rows: tuple[int, ...]

    def frames(self, policy: FramePolicy) -> Frames:
        """The frames the policy asks for, as patches. VideoError when they cannot be read."""
        record = self.record
        if record.video is not None:
            return read_frames(record.video, policy, start=record.start, end=record.end, out="patches")
        return read_images(record.frames or [], policy, out="patches")


def group_clips(records: Sequence[Record]) -> list[Clip]:
    """Clips in the order in which they are first asked about."""
    rows: dict[tuple[Any, ...], list[int]] = defaultdict(list)
    for i, record in enumerate(records):
        rows[(cluster_of(record), record.start, record.end)].append(i)
    return [Clip(key[0], records[members[0]], tuple(members)) for key, members in rows.items()]


def derangement(number: int, seed: int = 0) -> list[int]:
    """A permutation of range(number) without fixed points: one random cycle through all of them.

    Raises:
        ConfigError: there is only one element, which cannot be exchanged with another.
    """
    if number == 1:
        raise ConfigError(
            "frames_override='other' needs at least two different clips, and there is one; add records"
        )
    cycle = np.random.default_rng(seed).permutation(number)
    out = [0] * number
    for here, there in zip(cycle, np.roll(cycle, 1), strict=True):
        out[int(here)] = int(there)
    return out


def black_patches(rows: int) -> torch.Tensor:
    """Patches [rows, 1176] of black pictures, normalised as all pictures are; every patch of black is the
    same.
    """
    patches, _ = patchify(torch.zeros(2, 28, 28, 3, dtype=torch.uint8))
    return patches[:1].expand(rows, -1).contiguous()


def donors(clips: Sequence[Clip], override: Override | None, seed: int) -> list[Clip]:
    """The clip whose frames are shown for each clip: itself, or with "other" a clip of another source."""
    if override != "other":
        return list(clips)
    first = {clip.source: clip for clip in reversed(clips)}  # reversed: the first clip of a source stays
    sources = list(dict.fromkeys(clip.source for clip in clips))
    shuffled = derangement(len(sources), seed)
    other = {source: first[sources[shuffled[i]]] for i, source in enumerate(sources)}
    return [other[clip.source] for clip in clips]


def black_frames(frames: Frames) -> Frames:
    """The same clock and size with nothing to see."""
    assert frames.patches is not None
    return replace(frames, patches=black_patches(frames.patches.shape[0]), pixels=None)


def override_prompts(
    prompts: Sequence[Prompt], clips: Sequence[Clip], override: Override, seed: int
) -> list[Prompt]:
    """Ready-made prompts with their pictures exchanged; tokens and positions stay.

    "other" exchanges among the clips of equal grids only, since the number of vision tokens is part of the
    prompt.

    Raises:
        ConfigError: a prompt has no pictures, or (with "other") no other source has the same grid.
    """
    out = list(prompts)
    if override == "black":
        blacks: dict[tuple[int, ...], Any] = {}  # one object for each shape, so that it is encoded once
        for i, prompt in enumerate(prompts):
            vision = _vision_of(prompt)
            shape = tuple(vision.grid_thw.flatten().tolist())
            if shape not in blacks:
                count = int(vision.grid_thw.prod(dim=1).sum())
                blacks[shape] = replace(vision, patches=black_patches(count), features=None)
            out[i] = replace(prompt, vision=blacks[shape])
        return out
    by_grid: dict[tuple[int, ...], list[Clip]] = defaultdict(list)
    for clip in clips:
        by_grid[tuple(_vision_of(prompts[clip.rows[0]]).grid_thw.flatten().tolist())].append(clip)
    for same in by_grid.values():
        for clip, donor in zip(same, donors(same, "other", seed), strict=True):
            for i in clip.rows:
                out[i] = replace(prompts[i], vision=_vision_of(prompts[donor.rows[0]]))
    return out


def _vision_of(prompt: Prompt) -> Any:
    if prompt.vision is None:
        raise ConfigError("frames_override needs prompts with pictures; this one is text only")
    return prompt.vision
