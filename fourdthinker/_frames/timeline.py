"""When each frame of a video is shown, learnt from its packets before anything is decoded."""

from __future__ import annotations

import re
from bisect import bisect_right
from collections.abc import Sequence
from dataclasses import dataclass, field
from fractions import Fraction

import av.error
from av.container import InputContainer
from av.video.stream import VideoStream

from fourdthinker.errors import VideoError

HIDDEN = 2  # packets in a row that may show nothing before the data count as damaged
# Containers whose header says truly how long a stream is.
_EXACT = ("mov", "matroska")
_TAG = re.compile(r"(\d+):(\d+):(\d+(?:\.\d+)?)")


@dataclass
class Timeline:
    """Presentation of one stream: stamps in units of `base` seconds, increasing.

    pts: when each frame begins. end: when the last one ends, in seconds. keys: stamps of the keyframes,
    increasing. order: stamp to place in decoding order. fault: (seconds, cause) of damage that the
    container shows.
    """

    base: Fraction
    pts: list[int]
    end: float
    keys: list[int] = field(default_factory=list)
    order: dict[int, int] = field(default_factory=dict)
    fault: tuple[float, str] | None = None
    begin: list[float] = field(init=False)

    def __post_init__(self) -> None:
        self.begin = [self.seconds(pts) for pts in self.pts]

    def seconds(self, pts: int) -> float:
        return float(pts * self.base)

    def key_before(self, pts: int) -> int | None:
        """The last keyframe shown at or before a stamp: where decoding for it may begin."""
        place = bisect_right(self.keys, pts)
        return self.keys[place - 1] if place else None


def build_timeline(container: InputContainer, video: VideoStream, name: str) -> Timeline | None:
    """Read through the packets of a stream. None when they do not tell which frames are shown when.

    Frames before the first keyframe cannot be decoded and do not count; nor do those that an edit list hides.
    VideoError when none is left.
    """
    base = video.time_base
    if base is None:
        raise VideoError(f"{name}: stream {video.index} has no clock; put it into a container such as mp4")
    shown: list[tuple[int, int]] = []
    keys: list[int] = []
    order: dict[int, int] = {}
    fault: tuple[float, str] | None = None
    packets, stamped = 0, True
    try:
        for packet in container.demux(video):
            if packet.size == 0:
                continue
            packets += 1
            if packet.pts is None:
                stamped = False
                continue
            if packet.is_corrupt and fault is None:
                fault = float(packet.pts * base), "the data end here or are damaged"
            if packet.is_keyframe:
                keys.append(packet.pts)
            if keys:
                order[packet.pts] = packets
                if not packet.is_discard:
                    shown.append((packet.pts, packet.duration or 0))
    except av.error.FFmpegError as error:
        if not shown:
            raise VideoError(f"{name}: the first packets cannot be read ({error.strerror})") from error
        fault = fault or (float(max(shown)[0] * base), f"the data cannot be read further ({error.strerror})")
    if not packets:
        raise VideoError(f"{name}: zero frames: stream {video.index} holds no data")
    if not stamped or not keys or len({stamp for stamp, _ in shown}) < len(shown):
        return None
    shown = sorted(pair for pair in shown if pair[0] >= keys[0])
    if not shown:
        raise VideoError(f"{name}: zero frames: all of stream {video.index} is hidden or lacks its keyframe")
    pts = [stamp for stamp, _ in shown]
    timeline = Timeline(base, pts, _end(pts, shown[-1][1], video), sorted(keys), order, fault)
    announced = _announced(container, video)
    gap = (timeline.end - timeline.begin[0]) / len(pts)
    if timeline.fault is None and announced is not None and timeline.end < announced - max(0.25, 2 * gap):
        cause = f"the data end here; the header announces {announced:.3f} s. The file is cut off"
        timeline.fault = timeline.end, cause
    return timeline


def decoded_timeline(
    container: InputContainer, video: VideoStream, name: str, listed: Timeline | None
) -> Timeline:
    """The timeline of the frames that a decoder shows, for streams whose packets do not tell.

    listed: what the packets said. VideoError when more than a few packets in a row show nothing, when
    decoding fails, or when there are no frames.
    """
    base = video.time_base or Fraction(1, 1)
    pts: list[int] = []
    duration = 0
    try:
        for packet in container.demux(video):
            for frame in packet.decode():
                if frame.is_corrupt or frame.pts is None:
                    continue
                pts.append(frame.pts)
                duration = frame.duration or 0
    except av.error.FFmpegError as error:
        at = f"after {float(pts[-1] * base):.3f} s" if pts else "at its start"
        raise VideoError(
            f"{name}: the data cannot be decoded {at} ({error.strerror}); the file is damaged"
        ) from error
    pts = sorted(set(pts))
    if not pts:
        raise VideoError(
            f"{name}: zero frames: stream {video.index} holds nothing that decodes to frames with times; "
            "put raw streams into a container such as mp4"
        )
    if listed is not None:
        pts = [stamp for stamp in pts if stamp in set(listed.pts)]
        _check_hidden(listed, pts, name)
        return Timeline(base, pts, listed.end, listed.keys, listed.order, listed.fault)
    return Timeline(base, pts, _end(pts, duration, video))


def _check_hidden(listed: Timeline, pts: Sequence[int], name: str) -> None:
    decoded, run = set(pts), 0
    for stamp in listed.pts:
        run = 0 if stamp in decoded else run + 1
        if run > HIDDEN or not pts:
            raise VideoError(
                f"{name}: the frame at {listed.seconds(stamp):.3f} s cannot be decoded; the file is damaged"
            )


def _end(pts: Sequence[int], duration: int, video: VideoStream) -> float:
    base = video.time_base or Fraction(1, 1)
    if not duration and len(pts) > 1:
        duration = pts[-1] - pts[-2]
    if duration:
        return float((pts[-1] + duration) * base)
    return float(pts[-1] * base) + (float(1 / video.average_rate) if video.average_rate else 0.0)


def _announced(container: InputContainer, video: VideoStream) -> float | None:
    """When the stream ends, by the header; None where headers only guess."""
    if not container.format.name.startswith(_EXACT) or video.time_base is None:
        return None
    start = float((video.start_time or 0) * video.time_base)
    if video.duration:
        return start + float(video.duration * video.time_base)
    tag = _TAG.match(video.metadata.get("DURATION", ""))
    if tag:
        return int(tag[1]) * 3600 + int(tag[2]) * 60 + float(tag[3])
    alone = len([s for s in container.streams if s.type in ("video", "audio")]) == 1
    return start + container.duration / 1e6 if alone and container.duration else None
