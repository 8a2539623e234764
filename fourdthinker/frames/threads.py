"""Decoding on several threads, and damage told all the same.

FFmpeg repairs damage and marks the picture, or fails. Where threads decode one picture each, it looks for the
mark when a picture is chosen for output, which may be before its thread is through, and at the end of the
data it drops the errors of pictures still being decoded. (Threads that share the slices of an H.264 picture
drop them always, and are not used.) So here a picture is chosen late enough, and the threads are seen to
their end before the data end.
"""

from __future__ import annotations

from collections.abc import Iterator

import av
from av.video.codeccontext import VideoCodecContext
from av.video.stream import VideoStream

from fourdthinker.frames.nal import START, length_size

# Decoders that mark nothing: what makes them fail instead.
STRICT = {"hevc": "crccheck+explode", "mjpeg": "explode", "ffv1": "crccheck+explode"}
# Decoders whose marks come late on several threads, and cannot be made to come in time.
LATE = ("mpeg4", "rv30", "rv40")
MOST = 16  # pictures that H.264 can hold back (MAX_DELAYED_PIC_COUNT of FFmpeg)
# Access unit delimiters, NAL units that show nothing: ITU-T H.264 7.3.2.4, H.265 7.3.2.5.
DELIMITERS = {"h264": b"\x09\xf0", "hevc": b"\x46\x01\x50"}


def set_threads(video: VideoStream, threads: int) -> None:
    """Decode on that many threads, before the decoder is used.

    Pictures wait for each other; with two more of them at hand, fewer threads wait.
    """
    context = video.codec_context
    count = 1 if threads == 1 or context.name in LATE else min(threads + 2, MOST)
    context.thread_count = count
    if count > 1:
        video.thread_type = "AUTO"
    options = {"err_detect": STRICT[context.name]} if context.name in STRICT else {}
    if context.name == "h264" and count > 1:
        options["has_b_frames"] = str(count)  # a picture is chosen when its thread is free again
    context.options = options


def drained(context: VideoCodecContext) -> Iterator[list[av.VideoFrame]]:
    """What the decoder still holds. Raises what its threads have to say about it."""
    unit = DELIMITERS.get(context.name)
    if unit is not None and context.thread_count > 1:
        context.skip_frame = "NONREF"  # for which H.264 takes data without a picture
        unit = _framed(unit, length_size(context.name, context.extradata))
        for _ in range(context.thread_count):
            packet = av.Packet(len(unit))
            packet.update(unit)
            yield context.decode(packet)
        context.skip_frame = "DEFAULT"
    yield context.decode(None)


def _framed(unit: bytes, length: int) -> bytes:
    """A NAL unit as it stands in the stream's packets: behind its size, or behind a start code."""
    return (len(unit).to_bytes(length, "big") if length else b"\0" + START) + unit
