"""Which video a question is about: the one rule for evaluations, audits and controls."""

from __future__ import annotations

import os
from collections.abc import Sequence

from fourdthinker.records.line import Record


def source_of(record: Record) -> str:
    """The original video of a record: questions about one are not independent, whichever frames they show.

    Args:
        record: the question.

    Returns:
        As `source_name`; the record's id where it shows nothing.
    """
    frames = record.frames or ()
    if record.separate or record.media:  # no clip: only a question about the same pictures shares them
        frames = ["\n".join(record.media_paths)]
    return source_name(record.extra.get("source"), record.video, frames) or f"text:{record.id}"


def source_name(source: object, video: str | None, frames: Sequence[str]) -> str | None:
    """The original video by what a line of data says of it.

    Args:
        source: value of its key `source`, which goes before all else; None or "" where it has none.
        video: path of its video.
        frames: paths of its frames, of one clip.

    Returns:
        The source, or the video, or the folder of the frames with what their names have before their number
        ("clips/7/0001.png": "clips/7", "all/clip7_0001.png": "all/clip7"), or the picture where there is one
        alone; None for a line without any.
    """
    if source:
        return str(source)
    if video:
        return video
    if len(frames) < 2:
        return frames[0] if frames else None
    folder, name = os.path.split(frames[0])
    stem = os.path.splitext(name)[0].rstrip("0123456789").rstrip("-_. ")
    return os.path.join(folder, stem).rstrip("/\\") or frames[0]
