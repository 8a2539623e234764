"""What a question is about, and whether two ask the same: one rule for evaluations, audits and controls."""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import Any

from fourdthinker.records.line import Record


def source_of(record: Record) -> str:
    """The original video of a record: questions about one are not independent, whichever frames they show.

    Args:
        record: the question.

    Returns:
        As `source_name`; the record's id where it shows nothing.
    """
    videos, frames, images = (
        [path for kind, path in record.shown if kind == wanted] for wanted in ("video", "frame", "image")
    )
    return source_name(record.extra.get("source"), videos, frames, images) or f"text:{record.id}"


def source_name(
    source: object, videos: Sequence[str] = (), frames: Sequence[str] = (), images: Sequence[str] = ()
) -> str | None:
    """The original video by what a line of data says of it.

    Args:
        source: value of its key `source`, which goes before all else; None or "" where it has none.
        videos: paths of its videos.
        frames: paths of its frames, of one clip.
        images: paths of its separate images.

    Returns:
        The source, or the folder of the frames with what their names have before their number
        ("clips/7/0001.png": "clips/7", "all/clip7_0001.png": "all/clip7"), or the one file there is. Of
        several, all of them, a line each: only a question about the same files shares them, wherever they
        stand in its text. None for a line without any.
    """
    if source:
        return str(source)
    if len(frames) < 2:
        return "\n".join([*videos, *frames, *images]) or None
    folder, name = os.path.split(frames[0])
    stem = os.path.splitext(name)[0].rstrip("0123456789").rstrip("-_. ")
    return os.path.join(folder, stem).rstrip("/\\") or frames[0]


def media_key(record: Record) -> tuple[Any, ...]:
    """What a question shows: equal for two records exactly where the same is read for both.

    Args:
        record: the question.

    Returns:
        Kinds and paths, the part of a video and the times of frames; can be hashed and written as JSON.
    """
    return (tuple(record.shown), record.start, record.end, record.fps, tuple(record.seconds or ()))


def question_key(record: Record) -> list[Any]:
    """What a prompt is made of: answers to one question are no answers to another of the same id.

    Args:
        record: the question.

    Returns:
        Its id, texts, options and `media_key`; can be written as JSON.
    """
    texts = [record.id, record.question, record.options, record.system, record.turns]
    return [*texts, media_key(record)]
