"""Where the pictures of a prompt stand in its text, and how many tokens each of them takes."""

from __future__ import annotations

import re
from typing import Any

from fourdthinker.errors import ConfigError
from fourdthinker.samples import Vision
from fourdthinker.vision import VisionSpec

PICTURE = re.compile("<(video|image)>")  # in a user's turn of a conversation


def content(text: str, added: str) -> list[dict[str, Any]]:
    """A user's turn of a conversation in the parts that chat templates take.

    Args:
        text: with a placeholder for each clip and picture.
        added: stands behind the text.

    Returns:
        Pictures where their placeholders stand, and the texts between them without the space around.
    """
    parts = [
        {"type": piece} if number % 2 else {"type": "text", "text": piece.strip()}
        for number, piece in enumerate(PICTURE.split(text))
        if piece.strip()
    ]
    if parts[-1]["type"] == "text":
        parts[-1]["text"] += added
    elif added:
        parts.append({"type": "text", "text": added})
    return parts


def slot_counts(vision: Vision | None, spec: VisionSpec) -> list[tuple[int, int]]:
    """The slots of some pictures, in order.

    Args:
        vision: the pictures.
        spec: of the model. Where its times stand in the text, a clip has a slot for every temporal patch.

    Returns:
        Pad token and number of tokens of each.
    """
    counts: list[tuple[int, int]] = []
    if vision is None:
        return counts
    for kind, (t, h, w) in zip(vision.kind_of_each, vision.grid_thw.tolist(), strict=True):
        size = h * w // spec.merge_size**2
        if kind == "video" and spec.tokens_per_second is None:
            counts += [(spec.video_token_id, size)] * t
        else:
            counts.append((spec.video_token_id if kind == "video" else spec.image_token_id, t * size))
    return counts


def with_times(text: str, vision: Vision, slot: str, step: float | None, temporal: int) -> str:
    """Text with a slot for every temporal patch of every clip, after its seconds.

    As the makers' own processor wrote it: the slot of the template is replaced whole. (That of transformers
    5.17 leaves the template's start and end tokens around all of it.)

    Args:
        text: with one slot a clip.
        vision: the clips, and images, whose slots stay.
        slot: as the template writes it.
        step: seconds between temporal patches, of the prompt style; None: as they are.
        temporal: frames that a patch spans.

    Returns:
        The text.

    Raises:
        ConfigError: it has another number of slots than there are clips.
    """
    grids = zip(vision.grid_thw.tolist(), vision.kind_of_each, strict=True)
    clips = [grid[0] for grid, kind in grids if kind == "video"]
    first, *after = text.split(slot)
    if len(after) != len(clips):
        raise ConfigError(
            f"the chat template of the tokenizer made {len(after)} video slots for {len(clips)} "
            f"videos; it must write {slot} once for each part of type video"
        )
    for clip, (count, piece) in enumerate(zip(clips, after, strict=True)):
        times = _times(vision, clip, count, step, temporal)
        first += "".join(f"<{time:.1f} seconds>{slot}" for time in times) + piece
    return first


def _times(vision: Vision, clip: int, count: int, step: float | None, temporal: int) -> list[float]:
    """Seconds from the beginning of a clip to the middle of each of its `count` temporal patches."""
    if step is None and vision.times is not None:
        times = vision.times[clip]
        if len(times) != count:
            raise ConfigError(f"clip {clip} has {count} temporal patches and {len(times)} times of them")
        return times
    if step is None:
        step = 1.0 if vision.seconds_per_grid is None else vision.seconds_per_grid[clip]
    return [(patch + (temporal - 1) / (2 * temporal)) * step for patch in range(count)]
