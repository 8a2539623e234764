"""Frames decoded by decord, for those who have it and want its frames at our times."""

from __future__ import annotations

import io
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np

from fourdthinker.errors import ConfigError, VideoError
from fourdthinker.frames.container import Deadline, Source, opened
from fourdthinker.frames.orientation import Orientation, orientation_of
from fourdthinker.frames.timeline import Timeline

NEAR = 1e-3  # seconds between decord's clock, which is in single precision, and ours


def pictures(
    media: Source,
    stream: int | None,
    name: str,
    timeline: Timeline,
    chosen: Sequence[int],
    batch: int,
    threads: int,
    rest: Orientation,
) -> Iterator[np.ndarray]:
    """The pictures of these numbers of the timeline, decoded by decord, upright.

    decord's seeks lead to other pictures, so that all are read from the first one on; and what it says that
    the file holds must be what the timeline says.

    Args:
        media: a path, or the bytes of a file.
        stream: must be None: decord chooses the stream.
        name: of the source, in messages, and its path.
        timeline: of the stream.
        chosen: indices of pictures in the order of display, increasing.
        batch: pictures handed out at a time.
        threads: of the decoder.
        rest: what decord leaves to do to make pictures upright.

    Yields:
        uint8 [up to `batch`, H, W, 3].

    Raises:
        ConfigError: decord is not installed or cannot do what is asked.
        VideoError: decord fails or has other pictures.
    """
    try:
        import decord  # type: ignore[import-not-found,import-untyped,unused-ignore]
    except ImportError as error:
        raise ConfigError(
            "reader='decord' needs the package decord; pip install decord, or use reader='auto'"
        ) from error
    if stream is not None:
        raise ConfigError(f"reader='decord' cannot read stream {stream} of a file; use reader='auto'")
    wanted, found = set(chosen), []
    try:
        given = io.BytesIO(media) if isinstance(media, bytes) else name
        reader = decord.VideoReader(given, num_threads=threads)
        _check_same(reader, timeline, name)
        for number in range(chosen[-1] + 1):
            picture = reader.next()
            if number in wanted:
                found.append(picture.asnumpy())
            if len(found) == batch or (found and number == chosen[-1]):
                yield rest.apply(np.stack(found))
                found = []
    except StopIteration as error:
        raise VideoError(f"{name}: decord has fewer pictures than the file; use reader='auto'") from error
    except (decord.DECORDError, RuntimeError) as error:
        cause = str(error).strip().partition("\n")[0]
        raise VideoError(f"{name}: decord cannot read it ({cause}); use reader='auto'") from error


def _check_same(reader: Any, timeline: Timeline, name: str) -> None:
    """Whether decord counts the pictures that are shown, with their times."""
    count = len(reader)
    if count != len(timeline.pts):
        raise VideoError(
            f"{name}: decord has {count} pictures where {len(timeline.pts)} are shown; use reader='auto'"
        )
    begin = np.asarray(timeline.begin)
    theirs = reader.get_frame_timestamp(list(range(count)))[:, 0]
    differing = np.flatnonzero(np.abs(theirs - begin) > NEAR)
    if len(differing):
        time = begin[differing[0]]
        raise VideoError(f"{name}: decord has no frame at {time:.3f} s; use reader='auto'")


def orientation_left(media: Source, deadline: Deadline) -> tuple[Orientation, Orientation]:
    """(orientation of the first frame that can be decoded, what decord leaves to do of it).

    decord turns by the angle of the container's matrix and does not mirror.
    """
    import av.error

    with opened(media, None, 1, deadline) as (container, video):
        for packet in container.demux(video):
            deadline.check()
            try:
                frames = packet.decode()
            except av.error.FFmpegError:  # decord says so, where it matters
                continue
            if frames:
                found = orientation_of(frames[0], deadline.name)
                return found, found.after_turns(round(frames[0].rotation / 90))
    return Orientation(), Orientation()
