"""When each picture of a video is shown, learnt from its packets before anything is decoded."""

from __future__ import annotations

import re
from array import array
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field
from fractions import Fraction
from itertools import pairwise
from typing import TYPE_CHECKING

from fourdthinker.errors import VideoError
from fourdthinker.frames.bitstream.display_order import NEVER_SHOWN, OF_SECOND_FIELD
from fourdthinker.frames.bitstream.pictures import (
    KEYFRAME,
    LOST,
    NON_REFERENCE,
    NOT_SHOWN,
    RANDOM_ACCESS,
    SECOND_FIELD,
)
from fourdthinker.frames.codecs import Codec, codec_of
from fourdthinker.frames.display_times import TimesFrom, increases, times_of
from fourdthinker.frames.edits import Edited, EditSegment, edited
from fourdthinker.frames.matroska import Walk
from fourdthinker.frames.sink import REORDERED
from fourdthinker.frames.timeline import Held, Timeline

if TYPE_CHECKING:
    import av
    from av.container import InputContainer
    from av.video.stream import VideoStream

DAMAGED = "the data end here or are damaged"
# Formats whose packets hold one time, that of decoding; presentation times are FFmpeg's guess.
_DECODING_TIMES = ("avi", "asf")
# Formats of bare streams, for whose rate FFmpeg takes 25 unless they say another.
_BARE = ("h264", "hevc", "vvc", "m4v", "mpegvideo", "obu", "av1", "evc", "cavsvideo")
# More pictures a second than that are the ticks of MPEG-4's clock, which FFmpeg takes for its rate.
TICKS = 1000
_TAG = re.compile(r"(\d+):(\d+):(\d+(?:\.\d+)?)")
EXCHANGED = 4  # pictures, over which stamps fall back that were exchanged among neighbours
Decodable = Callable[[int, int], Collection[int]]


@dataclass
class Packets:
    """What the packets of a stream say, in decoding order, from its first keyframe on.

    stamps: presentation times, None for one that has none. own: as the packets carry them. keys: what tells
    the order of display (`bitstream.display_order`). skipped, count: packets before, and of the whole stream.
    earliest: of all stamps. whole: what is read after the last packet is not shown before this stamp. fault:
    (stamp, cause) of damage that the container shows. changed: position of the first packet that brings a new
    header, for itself and those after it.
    """

    stamps: list[int | None] = field(default_factory=list)
    durations: list[int] = field(default_factory=list)
    flags: bytearray = field(default_factory=bytearray)
    keys: list[int | None] = field(default_factory=list)
    own: bool = True
    changed: int | None = None
    skipped: int = 0
    count: int = 0
    earliest: int | None = None
    whole: int | None = None
    fault: tuple[int | None, str] | None = None

    def add_key(self, key: int | None) -> None:
        """The place of the last packet's picture in display order."""
        self.keys.append(key)
        if key == OF_SECOND_FIELD and len(self.keys) > 1:
            self.join_fields()
        elif key == NEVER_SHOWN:
            self.flags[-1] |= NOT_SHOWN

    def join_fields(self) -> None:
        """The last packet is the second field of the picture before it: both are decoded, or none."""
        self.flags[-1] = NOT_SHOWN | SECOND_FIELD
        self.flags[-2] &= ~NON_REFERENCE
        self.durations[-2] = 0  # that of a field


def build_timeline(
    container: InputContainer,
    video: VideoStream,
    name: str,
    held: Held,
    walk: Walk,
    check: Callable[[], None],
    *,
    fps: float | None = None,
    segments: Sequence[EditSegment] = (),
    decodable: Decodable = lambda skipped, count: (),
) -> Timeline | None:
    """Read through the packets of a stream, decoding nothing.

    Frames before the first keyframe in the file cannot be decoded and do not count; nor do those that an edit
    list hides. The times of the packets are believed if they increase in the order of display, as far as the
    pictures' own headers tell that; where they do not, or some are missing, see `times_of`.

    Args:
        container: open, at its beginning.
        video: the stream.
        name: of the source, in messages.
        held: gets the packets, while they fit.
        walk: over the elements of the file, for data that are missing.
        check: called for each packet.
        fps: pictures a second, whatever the times in the file; None: those count.
        segments: of the edit list.
        decodable: (skipped, count) to the indices of those of the first `count` packets behind those skipped
            whose pictures come out when decoding begins with them.

    Returns:
        The timeline; None when packets do not tell which pictures are shown when.

    Raises:
        VideoError: no frame is left, or stamps cannot be those of one clip.
    """
    codec = codec_of(video.codec_context.name)
    base = stored_base = video.time_base or Fraction(1)
    packets = _packets(container, video, name, codec, held, walk.suspect_from, check)
    if not packets.count:
        raise VideoError(f"{name}: zero frames: stream {video.index} holds no data")
    stamps = packets.stamps
    display = _display_order(packets, video, codec) if stamps else None
    if display is None:
        return None
    keyframes = bytes(packets.flags)
    flags = _settled(packets, video, codec)
    known = [stamp for stamp in stamps if stamp is not None]
    whole = packets.own and len(known) == len(stamps) == len(set(known))
    believed = whole and increases([known[position] for position in display])
    numbers: Sequence[int] = known
    coded = sorted(display)  # those shown, in decoding order
    index = {position: k for k, position in enumerate(coded)}
    stamps_shown: Sequence[int] | None = None
    times_from: TimesFrom = "container"
    step = Fraction(0)
    if not believed or fps is not None or len(segments) > 1:
        stored = [stamps[position] if fps is None else None for position in coded]
        order = [index[position] for position in display]
        step, base = pace(video, name, base, stored, fps)
        check_joined(name, stored, order, bytes(keyframes[position] for position in coded), step, base)
        stamps_shown, times_from = times_of(stored, order, step)
        numbers = numbered(display, len(stamps))
    edit = edited(segments if fps is None else (), [numbers[position] for position in display], stamps_shown)
    kept = set(edit.shown)
    shown_positions = [position for position in display if numbers[position] in kept]
    seen = _seen(shown_positions, packets.skipped, numbers, decodable if codec.leading_told else None)
    if not seen:
        raise VideoError(f"{name}: zero frames: all of stream {video.index} is hidden or lacks its keyframe")
    pts = array("q", [numbers[position] for position in seen])
    last = [(number if edit.stamps is None else edit.stamps[number]) - edit.origin for number in pts[-2:]]
    duration = packets.durations[seen[-1]] if times_from != "rate" else round(step)
    fault = packets.fault
    timeline = Timeline(
        base, pts, end_of(base, last, duration, video), array("q", numbers), flags,
        None if fault is None else (edit.seconds(fault[0], stored_base), fault[1]), edit.stamps, times_from,
        packets.skipped, edit.origin,
    )  # fmt: skip
    if not walk.complete:
        _check_length(timeline, packets, edit, container, video)
    return timeline


def _seen(seen: list[int], skipped: int, numbers: Sequence[int], decodable: Decodable | None) -> list[int]:
    """Of the positions of pictures, in the order of display, those whose pictures are shown.

    Those before the first keyframe in that order may need what is not in the file: a decoder tells, or (None)
    they do not count."""
    leading = [position for position in seen if numbers[position] < numbers[0]]
    if not leading:
        return seen
    whole = decodable(skipped, max(leading) + 1) if decodable is not None else ()
    return [position for position in seen if numbers[position] >= numbers[0] or position in whole]


def numbered(display: Sequence[int], count: int) -> list[int]:
    """For each of `count` positions in decoding order its position in `display`; the others' follow those."""
    numbers = [-1] * count
    for number, position in enumerate(display):
        numbers[position] = number
    following = len(display)
    for position, number in enumerate(numbers):
        if number < 0:
            numbers[position], following = following, following + 1
    return numbers


def end_of(base: Fraction, stamps: Sequence[int], duration: int, video: VideoStream) -> float:
    """When the last picture ends, in seconds.

    Args:
        base: seconds to a unit of stamps.
        stamps: of the last two pictures shown, or of the only one.
        duration: of the last one in units of stamps; 0: not known.
        video: the stream, whose rate serves where nothing else tells.
    """
    if not duration and len(stamps) > 1:
        duration = stamps[-1] - stamps[-2]
    if duration:
        return float((stamps[-1] + duration) * base)
    return float(stamps[-1] * base) + (float(1 / video.average_rate) if video.average_rate else 0.0)


def suspect(packet: av.Packet, suspect_from: int | None) -> bool:
    """Whether the container tells that data are missing at or before a packet."""
    return packet.is_corrupt or (
        suspect_from is not None and packet.pos is not None and packet.pos >= suspect_from
    )


def stamp_of(packet: av.Packet, form: str) -> int | None:
    """When a packet's picture is shown, by a container of this format; None where it does not say."""
    if form in _BARE:  # what FFmpeg counts
        return None
    if form in _DECODING_TIMES and packet.dts is not None:
        return packet.dts
    return packet.pts


def pace(
    video: VideoStream, name: str, base: Fraction, stamps: Sequence[int | None], fps: float | None
) -> tuple[Fraction, Fraction]:
    """How far pictures are apart where the rate tells it.

    Args:
        video: the stream.
        name: of the source, in messages.
        base: seconds to a unit of stamps.
        stamps: of the pictures, None for one that has none.
        fps: pictures a second, whatever the stream says; None: what it says.

    Returns:
        (from one picture to the next, in units of stamps; seconds to such a unit).

    Raises:
        VideoError: stamps are missing and no rate is known.
    """
    bare = video.container.format.name in _BARE
    rate = Fraction(fps).limit_denominator(1_000_000) if fps is not None else None
    rate = rate or (video.codec_context.framerate if bare else video.average_rate)
    if fps is None and bare and rate and rate > TICKS:
        rate = None
    missing = stamps.count(None)
    if not rate:
        if missing:
            raise VideoError(
                f"{name}: {missing} of {len(stamps)} pictures have no time, and the stream names no rate; "
                "give FrameSource(..., fps=), or put it into a container such as mp4"
            )
        return Fraction(0), base
    return (Fraction(1), 1 / rate) if missing == len(stamps) else (1 / (rate * base), base)


def check_joined(
    name: str,
    stored: Sequence[int | None],
    display: Sequence[int],
    flags: bytes,
    step: Fraction,
    base: Fraction,
) -> None:
    """Refuse stamps that, in the order of display, begin anew: files put one behind the other.

    Their pictures would be sorted into each other. No order of storage falls back over more than REORDERED
    pictures; nor does it where all pictures before a keyframe are shown before it and those behind it, where
    stamps that are wrong by a few pictures may fall back over EXCHANGED.

    Args:
        name: of the source, in messages.
        stored: stamps in decoding order, None for a picture that has none.
        display: positions in that order, in the order of display.
        flags: of the same pictures, in decoding order.
        step: from one picture to the next, in units of stamps, where stamps are missing.
        base: seconds to a unit of stamps.

    Raises:
        VideoError: they begin anew.
    """
    known = [stamp for stamp in stored if stamp is not None]
    ranks = {stamp: rank for rank, stamp in enumerate(sorted(set(known)))}
    whole = len(known) == len(stored)
    before: int | None = None
    lowest, highest, seen, begins = 0, -1, 0, False
    for index, position in enumerate(display):
        begins = begins or (highest == index - 1 and bool(flags[index] & KEYFRAME))
        highest = max(highest, position)
        after = stored[position]
        if after is None:
            continue
        if before is not None:
            fallen = ranks[before] - ranks[after] if whole else (before - after) / step
            anew = begins and (fallen > EXCHANGED or (after <= lowest < before and seen > 1))
            if fallen > REORDERED or anew:
                raise VideoError(
                    f"{name}: stamps fall back from {float(before * base):.3f} s to "
                    f"{float(after * base):.3f} s, as where files are put one behind the other; join them "
                    "with a muxer (ffmpeg -i FILE -c copy out.mkv), or give FrameSource(..., fps=)"
                )
        before, lowest = after, after if before is None else min(after, lowest)
        seen, begins = seen + 1, False


def _packets(
    container: InputContainer,
    video: VideoStream,
    name: str,
    codec: Codec,
    held: Held,
    suspect_from: int | None,
    check: Callable[[], None],
) -> Packets:
    import av.error

    found, form = Packets(), container.format.name
    header = video.codec_context.extradata or b""
    flags_of, begins = codec.flags(header), codec.begins(header)
    key_of = codec.display_order(header) if codec.display_order is not None else None
    latest: tuple[int, int] | None = None  # stamp and duration, where there are no decoding times
    try:
        for packet in container.demux(video):
            check()
            if packet.size == 0:
                continue
            found.count += 1
            pts, dts, duration = stamp_of(packet, form), packet.dts, packet.duration or 0
            if found.fault is None and suspect(packet, suspect_from):
                times = [time for time in (pts, dts, found.whole) if time is not None]
                found.fault = min(times, default=None), DAMAGED
            if pts is not None:
                found.earliest = pts if found.earliest is None else min(pts, found.earliest)
            if dts is not None:
                found.whole = (dts if pts is None else min(pts, dts)) + duration
            elif pts is not None and (latest is None or pts > latest[0]):
                # A picture shown after all before it: of those, none is still to come.
                found.whole = pts if latest is None else sum(latest)
                latest = pts, duration
            data = memoryview(packet)
            key = found.count == 1 if codec.begins_once else packet.is_keyframe and begins(data)
            if not found.stamps and not key:
                found.skipped += 1
                continue
            if found.changed is None and found.stamps and packet.has_sidedata("new_extradata"):
                found.changed = len(found.stamps)
            found.own = found.own and pts == packet.pts
            found.stamps.append(pts)
            found.durations.append(duration)
            found.flags.append(flags_of(data) | (KEYFRAME if key else 0))
            if key_of is not None:
                found.add_key(key_of(data))
            held.keep(packet)
    except av.error.FFmpegError as error:
        if not found.stamps:
            raise VideoError(f"{name}: the first packets cannot be read ({error.strerror})") from error
        cause = f"the data cannot be read further ({error.strerror})"
        found.fault = found.fault or (found.whole, cause)
    for position in key_of.lost() if key_of is not None else ():
        if found.changed is None or position < found.changed:  # behind it, the header is not the one known
            found.flags[position] |= LOST
    if suspect_from is not None and found.fault is None:
        found.fault = found.whole, DAMAGED
    return found


def _settled(packets: Packets, video: VideoStream, codec: Codec) -> bytes:
    flags = packets.flags
    known = video.codec_context.codec.intra_only or codec.keyframes_known
    # As some containers say of H.263: not to be believed.
    doubtful = not known and all(flag & KEYFRAME for flag in flags)
    doubtful = doubtful and not all(flag & RANDOM_ACCESS for flag in flags)
    if doubtful or packets.changed is not None:  # a leap would miss the packet with the new header
        flags[1:] = bytes(flag & ~(KEYFRAME | RANDOM_ACCESS) for flag in flags[1:])
    return codec.settle(flags)


def _display_order(packets: Packets, video: VideoStream, codec: Codec) -> list[int] | None:
    """Positions in decoding order in the order in which pictures are shown; None where only a decoder knows.

    FFmpeg's `has_b_frames` is not believed by itself: it tells of the first pictures alone.
    """
    context = video.codec_context
    positions = [position for position, flag in enumerate(packets.flags) if not flag & NOT_SHOWN]
    # A decoder that does not hold pictures back cannot change their order.
    if not codec.reorders or context.codec.intra_only or not context.codec.delay:
        return positions
    told = {position: packets.keys[position] for position in positions} if packets.keys else {}
    keys = {position: key for position, key in told.items() if key is not None}
    if len(keys) == len(positions) == len(set(keys.values())):
        return sorted(positions, key=keys.__getitem__)
    return _order_of_stamps(packets, keys, positions)


def _order_of_stamps(packets: Packets, keys: Mapping[int, int], positions: Sequence[int]) -> list[int] | None:
    """The order of display where headers of some pictures cannot be read, as where data are damaged.

    Stamps are believed if they agree with the headers that can be read, those of most pictures. Without them
    a reading of some pictures would not find out that stamps are wrong, as in the order of storage.
    """
    stamps = {position: packets.stamps[position] for position in positions}
    known = {position: stamp for position, stamp in stamps.items() if stamp is not None}
    whole = packets.own and len(set(known.values())) == len(positions)
    if not whole or 2 * len(keys) <= len(positions):
        return None
    display = sorted(positions, key=known.__getitem__)
    told = [keys[position] for position in display if position in keys]
    return display if all(a <= b for a, b in pairwise(told)) else None


def _check_length(
    timeline: Timeline, packets: Packets, edit: Edited, container: InputContainer, video: VideoStream
) -> None:
    """Whether the header announces more than there is, of what is shown: the file is cut off."""
    base = video.time_base
    if timeline.fault is not None or packets.earliest is None or base is None:
        return
    announced = _announced(container, video, packets.count, float(packets.earliest * base))
    if announced is not None and edit.segments:
        last, stamp = edit.segments[-1].end, round(announced / base)
        moved = edit.seconds(stamp if last is None else min(stamp, last), base)
        # Of fragments, some writers announce the time of the presentation, others that of the media.
        announced = moved if video.frames else min(announced, moved)
    step = (timeline.end - timeline.begin[0]) / len(timeline.pts)
    if announced is not None and timeline.end < announced - max(0.25, 2 * step):
        cause = f"the data end here; the header announces {announced:.3f} s. The file is cut off"
        timeline.fault = min(timeline.end, edit.seconds(packets.whole, base)), cause


def _announced(container: InputContainer, video: VideoStream, count: int, start: float) -> float | None:
    """When a stream that begins at `start` ends, by the header.

    None where headers only guess, or where all packets that it announces are there.
    """
    form = container.format.name
    if form.startswith("mov") and video.duration and video.time_base is not None:
        there = video.frames and count >= video.frames
        end = float(video.duration * video.time_base)  # in fragments: from 0, not from the first picture
        return None if there else end + (start if video.frames else 0.0)
    if not form.startswith("matroska"):
        return None
    tag = _TAG.match(video.metadata.get("DURATION", ""))  # counts from 0, wherever the stream begins
    if tag:
        return int(tag[1]) * 3600 + int(tag[2]) * 60 + float(tag[3])
    alone = len([s for s in container.streams if s.type in ("video", "audio")]) == 1
    return container.duration / 1e6 if alone and container.duration else None
