"""Frames decoded by decord, for those who have it and want its frames at our times."""

from __future__ import annotations

import io
from collections.abc import Iterator, Sequence

import numpy as np

from fourdthinker.errors import ConfigError, VideoError
from fourdthinker.frames.container import Deadline, Source, opened
from fourdthinker.frames.orientation import Orientation, orientation_of

NEAR = 1e-3  # seconds; decord's times are in single precision


def pictures(
    media: Source,
    stream: int | None,
    name: str,
    begin: Sequence[float],
    batch: int,
    threads: int,
    remaining: Orientation,
) -> Iterator[np.ndarray]:
    """The upright frames whose presentation begins at given times.

    Args:
        media: a file, or its bytes.
        stream: must be None; decord reads the best video stream.
        name: of the file, in messages.
        begin: when the presentation of each frame begins, in seconds.
        batch: frames that are yielded together.
        threads: of the decoder.
        remaining: what is still to do after decord's own turning (`orientation_left`).

    Yields:
        uint8 [up to batch, H, W, 3].

    Raises:
        ConfigError: decord is not installed or cannot do what is asked.
        VideoError: decord fails or has no frame at such a time.
    """
    try:
        import decord  # type: ignore[import-not-found,import-untyped,unused-ignore]
    except ImportError as error:
        raise ConfigError(
            "reader='decord' needs the package decord; pip install decord, or use reader='auto'"
        ) from error
    if stream is not None:
        raise ConfigError(f"reader='decord' cannot read stream {stream} of a file; use reader='auto'")
    try:
        given = io.BytesIO(media) if isinstance(media, bytes) else name
        reader = decord.VideoReader(given, num_threads=threads)
        shown = reader.get_frame_timestamp(list(range(len(reader))))[:, 0]
        indices = np.searchsorted(shown, np.asarray(begin) - NEAR).clip(max=len(shown) - 1)
        for index, time in zip(indices, begin, strict=True):
            if abs(shown[index] - time) > NEAR:
                raise VideoError(f"{name}: decord has no frame at {time:.3f} s; use reader='auto'")
        for first in range(0, len(indices), batch):
            yield remaining.apply(reader.get_batch(indices[first : first + batch].tolist()).asnumpy())
    except decord.DECORDError as error:
        cause = str(error).strip().splitlines()[0]
        raise VideoError(f"{name}: decord cannot read it ({cause}); use reader='auto'") from error


def orientation_left(media: Source, deadline: Deadline) -> tuple[Orientation, Orientation]:
    """(orientation of the first frame that can be decoded, what decord leaves to do of it: it turns by the
    angle of the container's matrix and does not mirror)."""
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
