"""The frames with given stamps out of a stream, decoding no more than they need."""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Iterator, Sequence

import av
import av.error
from av.container import InputContainer
from av.video.stream import VideoStream

from fourdthinker._frames.container import Deadline
from fourdthinker._frames.references import CLEAN, KEY, SPARE
from fourdthinker._frames.timeline import Timeline

JOIN = 8  # emptying and restarting a decoder costs about as much as decoding so many packets
# Decoders that, when they are emptied, show what they hold under its own stamp. That of MPEG-4 shows its last
# picture under the stamp of a "not coded" packet after it.
EMPTIES = (
    "h264",
    "hevc",
    "av1",
    "libdav1d",
    "vp8",
    "vp9",
    "mjpeg",
    "mpeg1video",
    "mpeg2video",
    "prores",
    "ffv1",
)
WORTH = 64  # packets; fewer are decoded before another decoder is opened
SEEK = 400  # reading past so many packets costs about as much as a seek in the file


class Missing(Exception):
    """The decoder did not show the frame that the container lists at `seconds`."""

    def __init__(self, seconds: float) -> None:
        super().__init__("a frame that the container lists is not there")
        self.seconds = seconds


class SeekFailed(Missing):
    """A seek led past the packet at `seconds`: the container's own index is coarse or wrong."""


class Damaged(Exception):
    """The decoder cannot make a frame of the data at `seconds`."""

    def __init__(self, cause: str, seconds: float) -> None:
        super().__init__(cause)
        self.seconds = seconds


def plan(timeline: Timeline, wanted: Sequence[int], *, careful: bool, ends: bool) -> list[tuple[int, int]]:
    """Runs [first, last] of packets, in decoding order, that frames with these stamps are decoded from.

    Each run begins at a keyframe. careful: one run from the first keyframe on. ends: the decoder can be
    emptied after each run; otherwise there is one run, to the end of the stream (or to the last frame).
    """
    places = [timeline.order[pts] for pts in wanted]
    first = 0 if careful else timeline.key_before(min(wanted)) or 0
    if careful or not ends:
        return [(first, max(places) if ends else len(timeline.coded) - 1)]
    runs: list[tuple[int, int]] = []
    for pts, place in sorted(zip(wanted, places, strict=True)):
        first = timeline.key_before(pts) or 0
        # An open group's leading pictures follow a keyframe in decoding order, so runs may overlap.
        while runs and first <= runs[-1][1]:
            before = runs.pop()
            first, place = min(first, before[0]), max(place, before[1])
        runs.append((first, place))
    joined = runs[:1]
    for first, last in runs[1:]:
        between = timeline.flags[joined[-1][1] + 1 : first]
        if not timeline.flags[first] & CLEAN and sum(not flag & SPARE for flag in between) <= JOIN:
            joined[-1] = joined[-1][0], last
        else:
            joined.append((first, last))
    return joined


def shares(timeline: Timeline, wanted: Sequence[int], codec: str, workers: int) -> list[list[int]] | None:
    """Stamps for each of several decoders that together are faster than one with as many threads, or None.

    Threads that decode one picture after the other wait for each other, row by row; decoders of different
    runs do not. So they win where the runs divide evenly and are long enough to open the file again.
    """
    if workers < 2 or not timeline.coded or codec not in EMPTIES:
        return None
    runs = plan(timeline, wanted, careful=False, ends=True)
    costs = [sum(not flag & SPARE for flag in timeline.flags[a : b + 1]) for a, b in runs]
    part = sum(costs) / workers
    loads, limits = [0], [-1]  # of each share; limits: its last place
    for (_, last), cost in zip(runs, costs, strict=True):
        if loads[-1] and loads[-1] + cost / 2 > part and len(loads) < workers:
            loads.append(0)
            limits.append(last)
        loads[-1] += cost
        limits[-1] = last
    if max(loads) > part / 0.8 or sum(costs) < WORTH:
        return None
    parts: list[list[int]] = [[] for _ in limits]
    for pts in wanted:
        parts[bisect_left(limits, timeline.order[pts])].append(pts)
    return parts


def frames_at(
    container: InputContainer,
    video: VideoStream,
    timeline: Timeline,
    wanted: Sequence[int],
    deadline: Deadline,
    *,
    held: Sequence[av.Packet] | None = None,
    seek: bool = True,
    careful: bool = False,
) -> Iterator[av.VideoFrame]:
    """The frames with these stamps, which increase.

    held: all packets of the timeline, where they are at hand; else they are read from the container, which
    must stand at its beginning. seek: leap over what need not be read. careful: no packet is left out.
    Raises Missing, SeekFailed and Damaged.
    """
    sink = _Sink(timeline, wanted)
    decode = video.codec_context.decode
    packets = packets_for(container, video, timeline, wanted, deadline, held=held, seek=seek, careful=careful)
    try:
        for packet in packets:
            deadline.check()
            if packet is None:  # decoding goes on elsewhere: take out what the decoder still holds
                yield from sink.take(decode(None))
                video.codec_context.flush_buffers()
            elif isinstance(packet, int):
                sink.landed = packet
            else:
                sink.near = packet.pts if packet.pts is not None else packet.dts
                yield from sink.take(decode(packet))
            if not sink.pending:
                return
        if timeline.coded:  # without, the last packet that was read did so
            yield from sink.take(decode(None))
    except av.error.FFmpegError as error:
        near = sink.pending[-1] if sink.near is None else sink.near
        raise Damaged(error.strerror, timeline.seconds(near)) from error
    if sink.pending:
        raise Missing(timeline.seconds(sink.pending[-1]))


def packets_for(
    container: InputContainer,
    video: VideoStream,
    timeline: Timeline,
    wanted: Sequence[int],
    deadline: Deadline,
    *,
    held: Sequence[av.Packet] | None = None,
    seek: bool = True,
    careful: bool = False,
) -> Iterator[av.Packet | int | None]:
    """What has to be decoded for these stamps, in order. None and then the stamp of a keyframe stand where
    decoding goes on at that keyframe with an empty decoder."""
    if not timeline.coded:
        return container.demux(video)
    ends = video.codec_context.name in EMPTIES
    runs = plan(timeline, wanted, careful=careful, ends=ends)
    chosen = _chosen(timeline, wanted, runs, careful)
    if held is not None:
        return _from_memory(held, chosen)
    return _from_file(container, video, timeline, chosen, deadline, SEEK if seek else len(timeline.coded) + 1)


class _Sink:
    """Sorts what a decoder gives into the frames wanted."""

    def __init__(self, timeline: Timeline, wanted: Sequence[int]) -> None:
        self.timeline = timeline
        self.pending = list(reversed(wanted))
        self.landed = timeline.pts[0]  # frames shown before may lack what they refer to
        self.near: int | None = None  # the stamp of the packet last given to the decoder

    def take(self, frames: Sequence[av.VideoFrame]) -> Iterator[av.VideoFrame]:
        pending = self.pending
        for frame in frames:
            if not pending or frame.pts is None or frame.pts < self.landed:
                continue
            if frame.is_corrupt and frame.pts <= pending[0]:
                raise Damaged("a frame is incomplete", self.timeline.seconds(frame.pts))
            if frame.pts > pending[-1]:
                raise Missing(self.timeline.seconds(pending[-1]))
            if frame.pts == pending[-1]:
                pending.pop()
                yield frame


def _chosen(
    timeline: Timeline, wanted: Sequence[int], runs: Sequence[tuple[int, int]], careful: bool
) -> Iterator[tuple[int, int | None]]:
    """(place of a packet to decode, None), and before the first run and those that need an empty decoder (the
    run's first place, the stamp it begins at)."""
    needed = {timeline.order[pts] for pts in wanted}
    flags = timeline.flags
    for number, (first, last) in enumerate(runs):
        if not number or not flags[first] & CLEAN:
            yield first, timeline.coded[first]
        for place in range(first, last + 1):
            if careful or place in needed or not flags[place] & SPARE:
                yield place, None


def _from_memory(
    held: Sequence[av.Packet], chosen: Iterator[tuple[int, int | None]]
) -> Iterator[av.Packet | int | None]:
    fresh = True
    for place, begin in chosen:
        if begin is None:
            yield held[place]
            fresh = False
        else:
            if not fresh:
                yield None
            yield begin


def _from_file(
    container: InputContainer,
    video: VideoStream,
    timeline: Timeline,
    chosen: Iterator[tuple[int, int | None]],
    deadline: Deadline,
    leap: int,
) -> Iterator[av.Packet | int | None]:
    """Packets by place; over `leap` packets and more by a seek, before which the decoder is emptied."""
    packets = container.demux(video)
    at = -1  # the place of the packet last read
    for place, begin in chosen:
        if begin is not None or (place - at > leap and timeline.flags[place] & KEY):
            if at >= 0:
                yield None
            yield timeline.coded[place]
            if place - at > leap:
                try:
                    container.seek(timeline.coded[place], stream=video)
                except av.error.FFmpegError as error:
                    raise SeekFailed(timeline.seconds(timeline.coded[place])) from error
                packets, at = container.demux(video), place - leap
        if begin is not None:
            continue
        while at != place:
            packet = next(packets, None)
            if packet is None or packet.size == 0:
                raise SeekFailed(timeline.seconds(timeline.coded[place]))
            deadline.check()
            found = timeline.order.get(packet.pts, -1) if packet.pts is not None else -1
            if found > place:
                raise SeekFailed(timeline.seconds(timeline.coded[place]))
            at = found
        yield packet
