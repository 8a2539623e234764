"""When each frame of a video is shown, learnt from its packets before anything is decoded."""

from __future__ import annotations

import math
import re
from array import array
from bisect import bisect_left, bisect_right
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from fractions import Fraction
from functools import cached_property
from typing import TYPE_CHECKING

from fourdthinker.errors import VideoError
from fourdthinker.frames.bitstream.pictures import KEYFRAME, NON_REFERENCE, NOT_SHOWN, RANDOM_ACCESS
from fourdthinker.frames.codecs import codec_of

if TYPE_CHECKING:
    import av
    from av.container import InputContainer
    from av.video.stream import VideoStream


SHOW_NOTHING = 2  # packets in a row that may show nothing before the data count as damaged
DAMAGED = "the data end here or are damaged"
_TAG = re.compile(r"(\d+):(\d+):(\d+(?:\.\d+)?)")


@dataclass
class Timeline:
    """Presentation of one stream: stamps in units of `base` seconds.

    pts: when each frame begins, increasing. end: when the last one ends, in seconds. coded: stamps of the
    packets in decoding order, beginning at the first keyframe; empty when packets do not tell. flags: for
    each of them, bits of `bitstream.pictures`. fault: (seconds, cause) of damage that the container shows;
    from that time on frames may be missing or wrong.
    """

    base: Fraction
    pts: Sequence[int]
    end: float
    coded: Sequence[int] = ()
    flags: bytes = b""
    fault: tuple[float, str] | None = None
    begin: Sequence[float] = field(init=False)

    def __post_init__(self) -> None:
        self.begin = array("d", [self.seconds(pts) for pts in self.pts])

    def seconds(self, pts: int) -> float:
        return pts * self.base.numerator / self.base.denominator

    def shows(self, pts: int) -> bool:
        """Whether the picture of this stamp is shown."""
        at = bisect_left(self.pts, pts)
        return at < len(self.pts) and self.pts[at] == pts

    @cached_property
    def order(self) -> dict[int, int]:
        """Stamp to place in decoding order."""
        return {pts: place for place, pts in enumerate(self.coded)}

    @cached_property
    def _keys(self) -> list[tuple[int, int]]:
        return sorted((pts, place) for place, pts in enumerate(self.coded) if self.flags[place] & KEYFRAME)

    def key_before(self, pts: int) -> int | None:
        """Place of the last keyframe shown at or before a stamp: where decoding for it may begin."""
        found = bisect_right(self._keys, (pts, len(self.coded)))
        return self._keys[found - 1][1] if found else None


@dataclass
class Held:
    """Packets of a stream from its first keyframe on, kept while they fit into `room` bytes."""

    room: int
    packets: list[av.Packet] | None = field(default_factory=list)

    def keep(self, packet: av.Packet) -> None:
        if self.packets is None:
            return
        self.room -= packet.size
        if self.room < 0:
            self.packets = None
        else:
            self.packets.append(packet)


def build_timeline(
    container: InputContainer,
    video: VideoStream,
    name: str,
    held: Held,
    gap: int | None,
    check: Callable[[], None],
) -> Timeline | None:
    """Read through the packets of a stream. None when they do not tell which frames are shown when.

    Frames before the first keyframe cannot be decoded and do not count; nor do those that an edit list hides.
    gap: where in the file data are missing. check is called for each packet. VideoError when no frame is
    left.
    """
    import av.error

    base = video.time_base
    if base is None:
        raise VideoError(f"{name}: stream {video.index} has no clock; put it into a container such as mp4")
    context = video.codec_context
    codec, header = codec_of(context.name), context.extradata or b""
    flags_of, begins = codec.flags(header), codec.begins(header)
    shown: list[tuple[int, int]] = []
    coded, flags = array("q"), bytearray()
    fault: tuple[float, str] | None = None
    first: int | None = None
    earliest: int | None = None
    packets, stamped = 0, True
    whole: int | None = None  # what is read after the last packet is not shown before this stamp
    latest: tuple[int, int] | None = (
        None  # the latest stamp so far, and its duration, where there is no other clock
    )
    try:
        for packet in container.demux(video):
            check()
            if packet.size == 0:
                continue
            packets += 1
            pts = packet.pts
            if pts is None:
                stamped = False
                continue
            earliest = pts if earliest is None else min(pts, earliest)
            if fault is None and _suspect(packet, gap):
                decoded = pts if packet.dts is None else min(pts, packet.dts)
                fault = _seconds(decoded if whole is None else min(decoded, whole), base), DAMAGED
            if packet.dts is not None:
                whole = min(pts, packet.dts) + (packet.duration or 0)
            elif latest is None or pts > latest[0]:
                # A picture shown after all before it: of those, none is still to come.
                whole = pts if latest is None else sum(latest)
                latest = pts, packet.duration or 0
            key = packet.is_keyframe and begins(memoryview(packet))
            if first is None:
                if not key:
                    continue
                first = pts
            flag = flags_of(memoryview(packet)) | (KEYFRAME if key else 0)
            coded.append(pts)
            flags.append(flag)
            held.keep(packet)
            if not packet.is_discard and not flag & NOT_SHOWN and pts >= first:
                shown.append((pts, packet.duration or 0))
    except av.error.FFmpegError as error:
        if not shown:
            raise VideoError(f"{name}: the first packets cannot be read ({error.strerror})") from error
        fault = fault or (_seconds(whole, base), f"the data cannot be read further ({error.strerror})")
    if gap is not None and fault is None:
        fault = _seconds(whole, base), DAMAGED
    if not packets:
        raise VideoError(f"{name}: zero frames: stream {video.index} holds no data")
    if container.format.name == "avi" and context.has_b_frames and stamped and list(coded) == sorted(coded):
        raise VideoError(
            f"{name}: its pictures are not stored in the order in which they are shown, and AVI does not say "
            "when each is shown; encode it anew into a container such as mp4"
        )
    if not stamped or first is None or earliest is None or len(set(coded)) < len(coded):
        return None
    believed = context.codec.intra_only or codec.keyframes_known or not all(flag & KEYFRAME for flag in flags)
    if not believed and not all(flag & RANDOM_ACCESS for flag in flags):
        # As some containers say of H.263: not to be believed.
        flags[1:] = bytes(flag & ~(KEYFRAME | RANDOM_ACCESS) for flag in flags[1:])
    shown.sort()
    if not shown:
        raise VideoError(f"{name}: zero frames: all of stream {video.index} is hidden or lacks its keyframe")
    pts_shown = array("q", [stamp for stamp, _ in shown])
    end = _end(pts_shown, shown[-1][1], video)
    timeline = Timeline(base, pts_shown, end, coded, codec.settle(flags), fault)
    announced = _announced(container, video, float(earliest * base))
    step = (timeline.end - timeline.begin[0]) / len(shown)
    if timeline.fault is None and announced is not None and timeline.end < announced - max(0.25, 2 * step):
        cause = f"the data end here; the header announces {announced:.3f} s. The file is cut off"
        timeline.fault = min(timeline.end, _seconds(whole, base)), cause
    return timeline


def decoded_timeline(
    container: InputContainer,
    video: VideoStream,
    name: str,
    listed: Timeline | None,
    partial: bool,
    gap: int | None,
    check: Callable[[], None],
) -> Timeline:
    """The timeline of the frames that a decoder shows, for streams whose packets do not tell.

    listed: what the packets said. gap: where in the file data are missing. VideoError when more than a few
    packets in a row show nothing, when decoding fails, or when there are no frames; partial: only when there
    are none, else the timeline ends before the fault.
    """
    import av.error

    base = video.time_base or Fraction(1, 1)
    stamps: list[int] = []
    duration = 0
    fault: tuple[float, str] | None = None
    broken: tuple[float, str] | None = None  # as the container says
    begun = False
    try:
        for packet in container.demux(video):
            check()
            if broken is None and (_suspect(packet, gap) or (gap is not None and not packet.size)):
                near = [stamp for stamp in (packet.pts, packet.dts, *stamps[-1:]) if stamp is not None]
                broken = float(min(near, default=0) * base), DAMAGED
            # A decoder told to fail at damage fails before the first keyframe.
            begun = begun or packet.is_keyframe or codec_of(video.codec_context.name).err_detect is None
            for frame in packet.decode() if begun else ():
                if frame.is_corrupt or frame.pts is None:
                    continue
                stamps.append(frame.pts)
                duration = frame.duration or 0
    except av.error.FFmpegError as error:
        at = f"after {float(stamps[-1] * base):.3f} s" if stamps else "at its start"
        if not (partial and stamps):
            raise VideoError(
                f"{name}: the data cannot be decoded {at} ({error.strerror}); the file is damaged"
            ) from error
        fault = float(stamps[-1] * base), f"the data cannot be decoded further ({error.strerror})"
    pts = array("q", sorted(set(stamps)))
    if not pts:
        raise VideoError(
            f"{name}: zero frames: stream {video.index} holds nothing that decodes to frames with times; "
            "put raw streams into a container such as mp4"
        )
    if listed is not None:
        known = set(listed.pts)
        pts = array("q", [stamp for stamp in pts if stamp in known])
        lost = _lost(listed, pts)
        flags = bytes(flag & ~NON_REFERENCE for flag in listed.flags)
        if lost is None and fault is None:
            return Timeline(base, pts, listed.end, listed.coded, flags, listed.fault)
        if lost is not None and not (partial and pts and pts[0] < lost):
            raise VideoError(
                f"{name}: the frame at {listed.seconds(lost):.3f} s cannot be decoded; the file is damaged"
            )
        if lost is not None:
            pts = array("q", [stamp for stamp in pts if stamp < lost])
            fault = listed.seconds(lost), "a frame cannot be decoded"
        return Timeline(base, pts, _end(pts, duration, video), listed.coded, flags, fault)
    fault = min(filter(None, (fault, broken)), default=None)
    return Timeline(base, pts, _end(pts, duration, video), fault=fault)


def _seconds(stamp: int | None, base: Fraction) -> float:
    return -math.inf if stamp is None else float(stamp * base)


def _suspect(packet: av.Packet, gap: int | None) -> bool:
    return packet.is_corrupt or (gap is not None and packet.pos is not None and packet.pos >= gap)


def _lost(listed: Timeline, pts: Sequence[int]) -> int | None:
    """The first of the frames listed that are too many in a row without a picture."""
    decoded, run = set(pts), 0
    for place, stamp in enumerate(listed.pts):
        run = 0 if stamp in decoded else run + 1
        if run > SHOW_NOTHING:
            return listed.pts[place - run + 1]
    return None if pts else listed.pts[0]


def _end(pts: Sequence[int], duration: int, video: VideoStream) -> float:
    base = video.time_base or Fraction(1, 1)
    if not duration and len(pts) > 1:
        duration = pts[-1] - pts[-2]
    if duration:
        return float((pts[-1] + duration) * base)
    return float(pts[-1] * base) + (float(1 / video.average_rate) if video.average_rate else 0.0)


def _announced(container: InputContainer, video: VideoStream, start: float) -> float | None:
    """When a stream that begins at `start` ends, by the header; None where headers only guess."""
    kind = container.format.name
    if kind.startswith("mov") and video.duration and video.time_base is not None:
        return start + float(video.duration * video.time_base)
    if not kind.startswith("matroska"):
        return None
    tag = _TAG.match(video.metadata.get("DURATION", ""))  # counts from 0, wherever the stream begins
    if tag:
        return int(tag[1]) * 3600 + int(tag[2]) * 60 + float(tag[3])
    alone = len([s for s in container.streams if s.type in ("video", "audio")]) == 1
    return container.duration / 1e6 if alone and container.duration else None
