"""Decoding on several threads, and damage told all the same.

FFmpeg repairs damage and marks the picture, or fails. Where threads decode one picture each, it looks for the
mark when a picture is chosen for output, which may be before its thread is through, and at the end of the
data it drops the errors of pictures still being decoded. (Threads that share the slices of an H.264 picture
drop them always, and are not used.) So here a picture is chosen late enough, and the threads are seen to
their end before the data end.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

from fourdthinker.frames.codecs import codec_of

if TYPE_CHECKING:
    import av
    from av.video.codeccontext import VideoCodecContext
    from av.video.stream import VideoStream


MOST = 16  # pictures that H.264 can hold back (MAX_DELAYED_PIC_COUNT of FFmpeg)


def set_threads(video: VideoStream, threads: int, *, longest_delay: bool = False) -> None:
    """Decode on that many threads, before the decoder is used.

    Pictures wait for each other; with two more of them at hand, fewer threads wait. longest_delay: hold back
    as many pictures as the decoder can, so that they leave it in order though the stream does not say how
    many that takes.
    """
    context = video.codec_context
    codec = codec_of(context.name)
    count = min(threads + 2, MOST) if threads > 1 and codec.frame_threads else 1
    context.thread_count = count
    if count > 1:
        video.thread_type = "AUTO"
    options = {"err_detect": codec.err_detect} if codec.err_detect else {}
    if codec.settable_delay and (count > 1 or longest_delay):
        # With threads, a picture is chosen when its thread is free again.
        options["has_b_frames"] = str(MOST if longest_delay else count)
    context.options = options


def drained(context: VideoCodecContext) -> Iterator[list[av.VideoFrame]]:
    """What the decoder still holds. Raises what its threads have to say about it."""
    import av

    without_picture = codec_of(context.name).without_picture
    if without_picture is not None and context.thread_count > 1:
        context.skip_frame = "NONREF"  # for which H.264 takes data without a picture
        unit = without_picture(context.extradata or b"")
        for _ in range(context.thread_count):
            packet = av.Packet(len(unit))
            packet.update(unit)
            yield context.decode(packet)
        context.skip_frame = "DEFAULT"
    yield context.decode(None)
