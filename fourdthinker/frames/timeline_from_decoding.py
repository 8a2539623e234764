"""When each picture of a video is shown, learnt by decoding, where its packets do not tell."""

from __future__ import annotations

from array import array
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from fractions import Fraction
from typing import TYPE_CHECKING

from fourdthinker.errors import VideoError
from fourdthinker.frames.bitstream.pictures import DUPLICATE, KEYFRAME, LOST
from fourdthinker.frames.codecs import codec_of
from fourdthinker.frames.display_times import times_of
from fourdthinker.frames.edits import EditSegment, edited
from fourdthinker.frames.sink import Disordered, repeats
from fourdthinker.frames.timeline import Timeline
from fourdthinker.frames.timeline_from_packets import (
    DAMAGED,
    check_joined,
    end_of,
    numbered,
    pace,
    stamp_of,
    suspect,
)

if TYPE_CHECKING:
    import av
    from av.container import InputContainer
    from av.video.stream import VideoStream

# Packets in a row that may show nothing, in codecs that have such, before they count as damage.
SHOW_NOTHING = 2


@dataclass
class _Run:
    """What came out of a stream decoded from its beginning.

    Packets are counted from that of the file's first; `shown` holds those whose pictures came out, in that
    order, None for a picture of unknown packet.
    """

    skipped: int = 0  # packets before the first one decoded
    stamps: list[int | None] = field(default_factory=list)  # of all packets
    durations: list[int] = field(default_factory=list)
    flags: bytearray = field(default_factory=bytearray)
    shown: list[int | None] = field(default_factory=list)
    broken: tuple[int | None, str] | None = None  # from this stamp on, as the container says
    fault: str | None = None  # as the decoder says


def decoded_timeline(
    container: InputContainer,
    video: VideoStream,
    name: str,
    listed: Timeline | None,
    partial: bool,
    suspect_from: int | None,
    check: Callable[[], None],
    fps: float | None = None,
    segments: Sequence[EditSegment] = (),
) -> Timeline:
    """The timeline of the pictures that a decoder shows, for streams whose packets do not tell.

    Packets are counted instead of stamped, so that each picture names its packet whatever the stamps say.

    Args:
        container: open, at its beginning.
        video: the stream.
        name: of the source, in messages.
        listed: what the packets said, or None.
        partial: a fault ends the timeline before it, and is an error only where nothing is left.
        suspect_from: byte of the file from which on data may be missing; None: none are.
        check: called for each packet.
        fps: pictures a second, whatever the times in the file.
        segments: of the edit list.

    Returns:
        The timeline.

    Raises:
        VideoError: more than a few packets in a row show nothing, decoding fails, or there are no frames.
    """
    run = _decode(container, video, suspect_from, check)
    if not run.shown:
        if run.fault is not None:
            raise VideoError(
                f"{name}: the data cannot be decoded at its start ({run.fault}); the file is damaged"
            )
        raise VideoError(f"{name}: zero frames: stream {video.index} holds nothing that decodes to pictures")
    fault = None if run.fault is None else f"the data cannot be decoded further ({run.fault})"
    shown, lost = run.shown, None
    if listed is not None and None not in shown:
        positions = [listed.skipped + listed.order[number] for number in listed.pts]
        known = set(positions)
        shown = [packet for packet in shown if packet in known]
        always = codec_of(video.codec_context.name).always_shown
        lost = _lost(positions, shown, 0 if always else SHOW_NOTHING)
    timeline = _timeline(run, shown, video, name, segments, fps)
    if listed is not None and lost is not None:
        seconds = listed.seconds(listed.coded[lost - listed.skipped])
        if not (partial and len(timeline.pts) and timeline.begin[0] < seconds):
            raise VideoError(f"{name}: the frame at {seconds:.3f} s cannot be decoded; the file is damaged")
        return _until(timeline, seconds, "a frame cannot be decoded")
    if fault is not None:
        last = timeline.begin[-1]
        if not partial:
            raise VideoError(
                f"{name}: the data cannot be decoded after {last:.3f} s ({run.fault}); the file is damaged"
            )
        timeline.fault = min(filter(None, ((last, fault), timeline.fault)))
    elif listed is not None:
        timeline.fault = listed.fault
    return timeline


def check_order(told: Timeline, decoded: Timeline) -> None:
    """Whether pictures leave the decoder in the order that their own headers give.

    Where a stream breaks the rules (H.265: the end of a sequence before a picture that goes on with it), a
    decoder may show its pictures in another order, and nothing tells which is right.

    Args:
        told: by the packets, the order by their headers.
        decoded: by the decoder; nothing is checked where it only counts pictures.

    Raises:
        Disordered: they do not.
    """
    numbers = dict(zip(range(told.skipped, told.skipped + len(told.coded)), told.coded))
    packets = {number: decoded.skipped + k for k, number in enumerate(decoded.coded)}
    latest: int | None = None
    for shown in decoded.pts if decoded.coded else ():
        number = numbers.get(packets[shown])
        if number is None or not told.shows(number):
            continue
        if latest is not None and number < latest:
            raise Disordered(told.seconds(number))
        latest = number


def decodable(container: InputContainer, video: VideoStream, skipped: int, count: int) -> set[int]:
    """Which of the first packets give pictures if decoding begins with them.

    Args:
        container: open, at its beginning.
        video: the stream.
        skipped: packets before those that are decoded.
        count: packets that are decoded.

    Returns:
        Indices of packets, from 0 for the first one decoded.
    """
    found: set[int] = set()
    position = -skipped
    for packet in container.demux(video):
        if packet.size and position >= 0:
            packet.pts = position
            found.update(_whole(packet.decode()))
        position += bool(packet.size)
        if position >= count:
            break
    found.update(_whole(video.codec_context.decode(None)))
    return found


def _whole(frames: Sequence[av.VideoFrame]) -> Iterator[int]:
    return (frame.pts for frame in frames if not frame.is_corrupt and frame.pts is not None)


def _decode(
    container: InputContainer, video: VideoStream, suspect_from: int | None, check: Callable[[], None]
) -> _Run:
    import av.error

    run, form, codec = _Run(), container.format.name, codec_of(video.codec_context.name)
    header = video.codec_context.extradata or b""
    flags_of, begins = codec.flags(header), codec.begins(header)
    key_of = codec.display_order(header) if codec.display_order is not None else None
    # A decoder told to fail at damage fails before the first keyframe.
    begun = codec.err_detect is None
    last: int | None = None
    before: av.VideoFrame | None = None
    try:
        for packet in container.demux(video):
            check()
            stamp = stamp_of(packet, form)
            if not packet.size and (stamp is not None or packet.dts is not None):
                continue  # the picture before is shown on; a decoder would take it for the end
            if run.broken is None and (
                suspect(packet, suspect_from) or (suspect_from is not None and not packet.size)
            ):
                near = [time for time in (stamp, packet.dts, last) if time is not None]
                run.broken = min(near, default=None), DAMAGED
            last = stamp if stamp is not None else last
            if packet.size:
                begun = begun or packet.is_keyframe
                if not begun:
                    run.skipped += 1
                data = memoryview(packet)
                key = packet.is_keyframe and begins(data)
                run.flags.append(flags_of(data) | (KEYFRAME if key else 0))
                if run.stamps and packet.has_sidedata("new_extradata"):
                    key_of = None  # it needs the header
                if begun and key_of is not None:
                    key_of(data)
                packet.pts = len(run.stamps)
                run.stamps.append(stamp)
                run.durations.append(packet.duration or 0)
            for frame in packet.decode() if begun else ():
                if not frame.is_corrupt and not repeats(frame, before):
                    run.shown.append(frame.pts)
                before = frame
    except av.error.FFmpegError as error:
        run.fault = error.strerror
    for position in key_of.lost() if key_of is not None else ():
        run.flags[run.skipped + position] |= LOST
    return run


def _timeline(
    run: _Run,
    shown: Sequence[int | None],
    video: VideoStream,
    name: str,
    segments: Sequence[EditSegment],
    fps: float | None,
) -> Timeline:
    base = stored_base = video.time_base or Fraction(1)
    packets = [packet for packet in shown if packet is not None]
    named = len(packets) == len(shown) == len(set(packets))
    if named:
        positions = sorted(packets)
        stored = [run.stamps[packet] for packet in positions]
        index = {packet: position for position, packet in enumerate(positions)}
        display = [index[packet] for packet in packets]
        flags = bytes(run.flags[packet] for packet in positions)
    else:
        # Some packets hold several pictures, others none: as many of the ones as of the others, or it is only
        # known when the first is shown.
        stored = run.stamps[run.skipped : run.skipped + len(shown)]
        if len(run.stamps) - run.skipped != len(shown):
            stored = [stored[0], *[None] * (len(shown) - 1)]
        display, flags = list(range(len(shown))), bytes(len(shown))
    if fps is not None:
        stored = [None] * len(shown)
    step, base = pace(video, name, base, stored, fps)
    check_joined(name, stored, display, flags, step, base)
    stamps, times_from = times_of(stored, display, step)
    edit = edited(segments if fps is None else (), range(len(shown)), stamps)
    if not edit.shown:
        raise VideoError(f"{name}: zero frames: all of stream {video.index} is hidden")
    stamps = array("q", edit.stamps or stamps)
    pts = array("q", edit.shown)
    duration = round(step) if times_from == "rate" else run.durations[packets[pts[-1]]] if named else 0
    end = end_of(base, [stamps[number] for number in pts[-2:]], duration, video)
    fault = None if run.broken is None else (edit.seconds(run.broken[0], stored_base), run.broken[1])
    if not named:
        return Timeline(base, pts, end, (), b"", fault, stamps, times_from, run.skipped)
    count = len(run.stamps) - run.skipped
    coded = numbered([packet - run.skipped for packet in packets], count)
    codec = codec_of(video.codec_context.name)
    flags = codec.settle(run.flags[run.skipped :])
    if not codec.flushes or count != len(shown) or max(flags) >= DUPLICATE:
        # Decoded through from the first one, as here: what is shown may depend on it.
        flags = bytes([KEYFRAME, *(flag & LOST for flag in flags[1:])])
    return Timeline(base, pts, end, array("q", coded), flags, fault, stamps, times_from, run.skipped)


def _until(timeline: Timeline, seconds: float, cause: str) -> Timeline:
    """The pictures shown before a fault."""
    kept = sum(begin < seconds for begin in timeline.begin)
    return Timeline(
        timeline.base,
        timeline.pts[:kept],
        seconds,
        timeline.coded,
        timeline.flags,
        (seconds, cause),
        timeline.stamps,
        timeline.times_from,
        timeline.skipped,
    )


def _lost(positions: Sequence[int], shown: Sequence[int | None], most: int) -> int | None:
    """The first of more than `most` packets listed in a row without a picture."""
    decoded, run = set(shown), 0
    for index, position in enumerate(positions):
        run = 0 if position in decoded else run + 1
        if run > most:
            return positions[index - run + 1]
    return None if decoded else positions[0]
