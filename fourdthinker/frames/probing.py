"""What a video file holds and how its times are learnt, without converting its pictures."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from fourdthinker.errors import VideoError
from fourdthinker.frames.animation import composing
from fourdthinker.frames.bitstream.missing import MISSING
from fourdthinker.frames.checks import policy_of
from fourdthinker.frames.codecs import codec_of
from fourdthinker.frames.container import Source, name_of, opened
from fourdthinker.frames.convert import Normal
from fourdthinker.frames.display_times import TimesFrom
from fourdthinker.frames.image_file import image_header, is_image, load_image
from fourdthinker.frames.orientation import Orientation, orientation_of
from fourdthinker.frames.pool import threads
from fourdthinker.frames.reading import Reading
from fourdthinker.frames.request import FrameSource, Request
from fourdthinker.frames.timeline import Timeline

if TYPE_CHECKING:
    from av import VideoFrame
    from av.container import InputContainer
    from av.video.stream import VideoStream


@dataclass(frozen=True)
class Probe:
    """A video file.

    streams: (index, kind, codec) of each stream in the file; codec "" for an unknown one. stream: index of
    the video stream that is read; codec: its decoder, by FFmpeg's name. size: (height, width) as stored;
    orientation: what makes its pictures upright. frames: so many are shown, from `begin` to `end`, in
    seconds; rate: frames a second, on average. times_from: how that was learnt (`display_times.times_of`).
    fault: what is missing or damaged as far as the container and the count of its pictures tell, or None.
    begins: when each frame begins to be shown, in seconds, in the order of display. container_rate: frames a
    second as the container says, 0 where it does not.
    """

    name: str
    container: str
    streams: tuple[tuple[int, str, str], ...]
    stream: int
    codec: str
    size: tuple[int, int]
    orientation: Orientation
    frames: int
    begin: float
    end: float
    rate: float
    times_from: TimesFrom
    fault: str | None
    begins: Sequence[float] = field(repr=False)
    container_rate: float


def probe(source: FrameSource | Source, *, timeout: float | None = 600.0) -> Probe:
    """Read through the packets of a video and decode its first picture.

    Args:
        source: a file, its bytes, or a FrameSource.
        timeout: seconds that it may take; None: no limit.

    Returns:
        What the file holds.

    Raises:
        VideoError: what cannot be read; names the file and the cause.
        ConfigError: wrong arguments.
    """
    if not isinstance(source, FrameSource):
        source = FrameSource(source)
    name = name_of(source.media)
    if is_image(source.media):
        return _of_image(source, name)
    request = Request(
        source,
        name,
        policy_of(None),
        False,
        None,
        None,
        None,
        "uint8",
        "cpu",
        Normal(),
        True,
        timeout,
        threads(),
    )
    reading = Reading(request)
    timeline = reading.learn()
    with opened(source.media, source.stream, 1, reading.deadline) as (container, video):
        frame = _first_picture(container, video, name)
        seconds = timeline.end - timeline.begin[0]
        return Probe(
            name,
            container.format.name,
            tuple(
                (s.index, s.type, s.codec_context.name if s.codec_context else "") for s in container.streams
            ),
            video.index,
            video.codec_context.name,
            (frame.height, frame.width),
            orientation_of(frame, name),
            len(timeline.pts),
            timeline.begin[0],
            timeline.end,
            len(timeline.pts) / seconds if seconds > 0 else 0.0,
            timeline.times_from,
            _fault(timeline),
            timeline.begin,
            float(video.average_rate or 0),
        )


def _of_image(source: FrameSource, name: str) -> Probe:
    """An image, which `read_frames` reads as one frame at 0 s, for no time."""
    if source.stream:
        raise VideoError(f"{name}: no stream {source.stream}; it is a picture")
    load_image(source.media)  # whether it can be decoded
    kind, size, orientation = image_header(source.media)
    return Probe(
        name, kind, ((0, "video", kind),), 0, kind, size, orientation, 1, 0.0, 0.0, 0.0, "container", None,
        (0.0,), 0.0,
    )  # fmt: skip


def _fault(timeline: Timeline) -> str | None:
    """The first one that the container or the count of pictures shows."""
    positions = (timeline.lacking(number) for number in timeline.pts) if timeline.lost else ()
    position = next((found for found in positions if found is not None), None)  # harms a picture
    missing = [] if position is None else [(timeline.seconds(timeline.coded[position]), MISSING)]
    first = min([*missing, *([timeline.fault] if timeline.fault is not None else [])], default=None)
    return None if first is None else f"at {first[0]:.3f} s {first[1]}"


def _first_picture(container: InputContainer, video: VideoStream, name: str) -> VideoFrame:
    """VideoError: it cannot be decoded."""
    from av.error import FFmpegError

    context = video.codec_context
    composer = codec_of(context.name).compose
    decode = context.decode if composer is None else composing(composer, context.extradata or b"")
    try:
        for packet in container.demux(video):
            for frame in decode(packet):
                if not frame.is_corrupt:
                    return frame
    except (FFmpegError, ValueError) as error:
        raise VideoError(
            f"{name}: the first picture cannot be decoded ({error}); the file is damaged"
        ) from error
    raise VideoError(f"{name}: the first picture cannot be decoded; the file is damaged")
