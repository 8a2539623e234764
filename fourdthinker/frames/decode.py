"""The frames with given stamps out of a stream, decoding no more than they need."""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Iterator, Sequence
from itertools import islice
from typing import TYPE_CHECKING

from fourdthinker.frames.animation import composing
from fourdthinker.frames.bitstream.missing import MISSING
from fourdthinker.frames.bitstream.pictures import (
    DUPLICATE,
    KEYFRAME,
    LOST,
    NON_REFERENCE,
    RANDOM_ACCESS,
    SECOND_FIELD,
    Damage,
    Test,
)
from fourdthinker.frames.codecs import codec_of
from fourdthinker.frames.container import Deadline
from fourdthinker.frames.sink import Damaged, Missing, Sink
from fourdthinker.frames.threads import drained
from fourdthinker.frames.timeline import Timeline

if TYPE_CHECKING:
    import av
    from av.container import InputContainer
    from av.video.stream import VideoStream


WORTH = 64  # packets; fewer are decoded before another decoder is opened
TOGETHER = 0.8  # of a thread's time is spent decoding where threads decode one picture after the other
LEFT = 8  # runs at most, but one, that are left to such threads
SEEK = 400  # reading past so many packets costs about as much as a seek in the file


class SeekFailed(Missing):
    """A seek led past the packet at `seconds`: the container's own index is coarse or wrong."""


def plan(
    timeline: Timeline, wanted: Sequence[int], decoder: str, *, careful: bool = False
) -> list[tuple[int, int]]:
    """Runs of packets that frames are decoded from.

    Args:
        timeline: of the stream.
        wanted: numbers of the frames, in any order.
        decoder: FFmpeg's name of it.
        careful: one run from the first keyframe on.

    Returns:
        (first, last) position of each run in decoding order. Each begins at a keyframe. Where the decoder
        cannot be emptied after each run there is one, to the end of the stream.
    """
    ends = _ends(timeline, decoder)
    positions = [_last_packet(timeline, timeline.order[pts]) for pts in wanted]
    first = 0 if careful else timeline.key_before(min(wanted)) or 0
    if careful or not ends:
        return [(first, max(positions) if ends else len(timeline.coded) - 1)]
    runs: list[tuple[int, int]] = []
    for pts, position in sorted(zip(wanted, positions, strict=True)):
        first = timeline.key_before(pts) or 0
        # An open group's leading pictures follow a keyframe in decoding order, so runs may overlap.
        while runs and first <= runs[-1][1]:
            before = runs.pop()
            first, position = min(first, before[0]), max(position, before[1])
        runs.append((first, position))
    joined = runs[:1]
    for first, last in runs[1:]:
        between = timeline.flags[joined[-1][1] + 1 : first]
        decoded = sum(not flag & NON_REFERENCE for flag in between)
        if not timeline.flags[first] & (RANDOM_ACCESS | LOST) and decoded <= codec_of(decoder).restart:
            joined[-1] = joined[-1][0], last
        else:
            joined.append((first, last))
    return joined


def _last_packet(timeline: Timeline, position: int) -> int:
    """The position of the last packet of a picture: its own, or that of its second field."""
    following = timeline.flags[position + 1 : position + 2]
    return position + 1 if following and following[0] & SECOND_FIELD else position


def single_packet(timeline: Timeline, wanted: Sequence[int], codec: str) -> bool:
    """Whether all that is wanted is one keyframe, and the decoder's threads cannot share the work on it.

    Starting them costs a fifth of the time for a small picture.
    """
    if codec_of(codec).shared_threads or not timeline.coded or len(wanted) != 1:
        return False
    return bool(timeline.flags[timeline.order[wanted[0]]] & KEYFRAME)


def _ends(timeline: Timeline, codec: str) -> bool:
    """Whether the decoder can be emptied anywhere in the stream."""
    return codec_of(codec).flushes and max(timeline.flags, default=0) < DUPLICATE


def shares(
    timeline: Timeline, wanted: Sequence[int], codec: str, workers: int
) -> tuple[list[list[int]], Sequence[int]]:
    """Frames for each of several decoders that work at once, and those left to one decoder after them.

    Threads that decode one picture after the other wait for each other, row by row; decoders of different
    runs do not. So they win where runs divide evenly and are long enough to open the file again; the last
    runs, which would keep only some of them busy, are left.

    Args:
        timeline: of the stream.
        wanted: numbers of the frames, increasing.
        codec: FFmpeg's name of the decoder.
        workers: decoders at once, at most.

    Returns:
        (numbers for each decoder, numbers left to one decoder with its threads); no parts: all are left.
    """
    if workers < 2 or not timeline.coded or not _ends(timeline, codec):
        return [], wanted
    runs = plan(timeline, wanted, codec)
    costs = [sum(not flag & NON_REFERENCE for flag in timeline.flags[a : b + 1]) for a, b in runs]
    if sum(costs) < WORTH:
        return [], wanted
    together = workers * TOGETHER if codec_of(codec).frame_threads else 1
    shortest, best = sum(costs) / together, [-1]
    for count in range(len(runs), max(0, len(runs) - LEFT), -1):
        loads, limits = _divided(runs[:count], costs[:count], workers)
        time = max(loads) + sum(costs[count:]) / together
        if len(loads) > 1 and time < shortest:
            shortest, best = time, limits
    parts: list[list[int]] = [[] for _ in best]
    rest: list[int] = []
    for pts in wanted:
        part = bisect_left(best, timeline.order[pts])
        (parts[part] if part < len(parts) else rest).append(pts)
    return parts if best[0] >= 0 else [], rest


def _divided(
    runs: Sequence[tuple[int, int]], costs: Sequence[int], workers: int
) -> tuple[list[int], list[int]]:
    """(costs, last position) of at most so many shares of consecutive runs."""
    part = sum(costs) / workers
    loads, limits = [0], [-1]
    for (_, last), cost in zip(runs, costs, strict=True):
        if loads[-1] and loads[-1] + cost / 2 > part and len(loads) < workers:
            loads.append(0)
            limits.append(last)
        loads[-1] += cost
        limits[-1] = last
    return loads, limits


def decoded_frames(
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
    """The frames with these numbers, decoded in software.

    Args:
        container: open, and at its beginning unless `held` is given.
        video: the stream.
        timeline: of the stream.
        wanted: numbers of the frames, increasing.
        deadline: checked for each packet.
        held: all packets of the timeline, where they are at hand; None: they are read from the container.
        seek: leap in the file over what need not be read.
        careful: no packet is left out.

    Yields:
        Frames in the order of `wanted`.

    Raises:
        Missing: the decoder does not show a frame. SeekFailed, if because a seek led past it.
        Disordered: pictures leave the decoder in another order than that of the timeline.
        Damaged: data that a frame needs cannot be decoded.
    """
    import av.error

    context, codec = video.codec_context, codec_of(video.codec_context.name)
    compose = None if codec.compose is None else composing(codec.compose, context.extradata or b"")
    doubted = not (context.codec.intra_only or codec.keyframes_known)
    sink = Sink(timeline, wanted, several=context.thread_count > 1, doubted=doubted)
    packets = packets_for(container, video, timeline, wanted, deadline, held=held, seek=seek, careful=careful)
    near = wanted[-1]  # the stamp of the packet last given to the decoder
    try:
        for packet in packets:
            deadline.check()
            if packet is None:  # decoding goes on elsewhere: take out what the decoder still holds
                for frames in drained(context):
                    yield from sink.take(frames)
                yield from sink.settle()
                context.flush_buffers()
            elif isinstance(packet, int):
                sink.land(packet)
            else:
                stamp = packet.pts if packet.pts is not None else packet.dts
                near = near if stamp is None else stamp
                try:
                    frames = context.decode(packet) if compose is None else compose(packet)
                except av.error.FFmpegError:  # before ValueError, which some of them are
                    if context.thread_count > 1 or sink.needs(near):
                        raise
                except ValueError as error:  # of what is composed
                    raise Damaged(str(error), timeline, near) from error
                else:
                    yield from sink.take(frames)
            if not sink.pending and not sink.held:
                return
        for frames in drained(context):
            yield from sink.take(frames)
        yield from sink.settle()
    except (av.error.FFmpegError, Damaged) as error:
        fault = error
        if not isinstance(fault, Damaged):
            fault = Damaged(fault.strerror, timeline, near, doubted=doubted)
        if context.thread_count == 1:  # else packets after the fault were decoded too
            yield from sink.rescue(context, fault.stamp)
        if fault is error:
            raise
        raise fault from error
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
    """What has to be decoded for these frames, in decoding order; arguments as for `decoded_frames`.

    Args:
        container: open, and at its beginning unless `held` is given.
        video: the stream.
        timeline: of the stream.
        wanted: numbers of the frames, increasing.
        deadline: checked for each packet that is read.
        held: all packets of the timeline, or None.
        seek: leap in the file over what need not be read.
        careful: no packet is left out.

    Returns:
        Packets. The stamp of a keyframe stands where decoding goes on at that keyframe, None where the
        decoder is emptied, as it is before that.

    Raises:
        SeekFailed: a seek led past a packet.
        Damaged: the data of a packet show that some are missing or overwritten, or that a picture is missing.
    """
    if not timeline.coded:
        sized = (packet for packet in container.demux(video) if packet.size)
        return islice(sized, timeline.skipped, None)
    context = video.codec_context
    runs = plan(timeline, wanted, context.name, careful=careful)
    chosen = _chosen(timeline, wanted, runs, careful)
    if held is not None:
        packets = _from_memory(held, timeline, chosen)
    else:
        # Packets that have numbers for stamps are found by counting.
        leap = SEEK if seek and timeline.stamps is None else len(timeline.coded) + timeline.skipped + 1
        packets = _from_file(container, video, timeline, chosen, deadline, leap)
    codec, header = codec_of(context.name), context.extradata or b""
    if codec.damage is not None:
        packets = _sound(packets, timeline, codec.damage(header))
    return packets if codec.empties is None else _emptied(packets, codec.empties(header))


def _sound(
    packets: Iterator[av.Packet | int | None], timeline: Timeline, damage: Damage
) -> Iterator[av.Packet | int | None]:
    import av

    for packet in packets:
        if isinstance(packet, av.Packet) and packet.pts is not None:
            cause = damage(bytes(packet))
            if cause is not None:
                raise Damaged(cause, timeline, packet.pts)
        yield packet


def _emptied(packets: Iterator[av.Packet | int | None], empties: Test) -> Iterator[av.Packet | int | None]:
    import av

    fed = False  # since the decoder was emptied
    for packet in packets:
        if isinstance(packet, av.Packet):
            if empties(memoryview(packet)) and fed:
                yield None
            fed = True
        elif packet is None:
            fed = False
        yield packet


def _chosen(
    timeline: Timeline, wanted: Sequence[int], runs: Sequence[tuple[int, int]], careful: bool
) -> Iterator[tuple[int, int | None]]:
    """(position of a packet to decode, None), in order.

    Before the first stretch and those that need an empty decoder: (the stretch's first position, the stamp it
    begins at).
    """
    needed = {timeline.order[pts] for pts in wanted}
    lacking = {timeline.lacking(pts) for pts in wanted}
    flags = timeline.flags
    for number, (first, last) in enumerate(runs):
        if not number or not flags[first] & RANDOM_ACCESS:
            # What is shown before the first keyframe is in the timeline if it can be decoded from there.
            yield first, timeline.coded[first] if first else timeline.pts[0]
        for position in range(first, last + 1):
            if position in lacking:
                raise Damaged(MISSING, timeline, timeline.coded[position])
            if careful or position in needed or not flags[position] & NON_REFERENCE:
                yield position, None


def _from_memory(
    held: Sequence[av.Packet], timeline: Timeline, chosen: Iterator[tuple[int, int | None]]
) -> Iterator[av.Packet | int | None]:
    fresh = True
    for position, begin in chosen:
        if begin is None:
            packet = held[position]
            if timeline.stamps is not None:
                packet.pts = timeline.coded[position]
            yield packet
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
    """Packets by position; over `leap` packets and more by a seek, before which the decoder is emptied."""
    import av.error

    packets, counts = container.demux(video), timeline.stamps is not None
    last_read = -1 - timeline.skipped if counts else -1  # the position of the packet last read
    begun = False
    for position, begin in chosen:
        if begin is not None or (position - last_read > leap and timeline.flags[position] & KEYFRAME):
            if begun:
                yield None
            yield timeline.coded[position] if begin is None else begin
            if position - last_read > leap:
                try:
                    container.seek(timeline.coded[position], stream=video)
                except av.error.FFmpegError as error:
                    raise SeekFailed(timeline.seconds(timeline.coded[position])) from error
                packets, last_read = container.demux(video), position - leap
        if begin is not None:
            continue
        while last_read != position:
            following = next(packets, None)
            if following is None:
                raise SeekFailed(timeline.seconds(timeline.coded[position]))
            deadline.check()
            if following.size == 0:  # the picture before is shown on, or the file ends
                continue
            packet = following
            if counts:
                found, packet.pts = last_read + 1, timeline.coded[position]
            else:
                found = timeline.order.get(packet.pts, -1) if packet.pts is not None else -1
            if found > position:
                raise SeekFailed(timeline.seconds(timeline.coded[position]))
            last_read = found
        begun = True
        yield packet
