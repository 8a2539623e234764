"""Frames decoded by NVDEC, for a reading whose device is a GPU."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from functools import cache
from typing import TYPE_CHECKING, NamedTuple

import torch
from torch import Tensor

from fourdthinker.frames.bitstream.pictures import SECOND_FIELD
from fourdthinker.frames.codecs import codec_of
from fourdthinker.frames.colour import REPEAT, Layout, planes_of
from fourdthinker.frames.container import Deadline, aspect_of, opened
from fourdthinker.frames.convert import conversion
from fourdthinker.frames.decode import packets_for
from fourdthinker.frames.gpu import nvdec
from fourdthinker.frames.gpu.nvdec import NvdecError
from fourdthinker.frames.orientation import Orientation
from fourdthinker.frames.request import FrameSource, Request
from fourdthinker.frames.sink import Damaged
from fourdthinker.frames.timeline import Timeline

if TYPE_CHECKING:
    import av


logger = logging.getLogger(__name__)


class First(NamedTuple):
    """The first picture of a file, how its planes are read, and the aspect of its pixels."""

    frame: av.VideoFrame
    layout: Layout
    aspect: float


@cache
def say(reason: str) -> None:
    """Once for each reason."""
    logger.warning("decoding in software: %s", reason)


def decode(
    request: Request,
    deadline: Deadline,
    timeline: Timeline,
    stamps: Sequence[int],
    first: First,
    *,
    size: tuple[int, int],
    orientation: Orientation,
    held: list[av.Packet] | None,
    seek: bool,
) -> Tensor:
    """The pictures of these stamps by NVDEC, in any order.

    Args:
        request: what is asked for.
        deadline: names the source, and bounds how long reading may take.
        timeline: of the stream.
        stamps: of the pictures, also more than once.
        first: the first picture of the file.
        size: (height, width) of the result in pixels.
        orientation: what makes pictures upright.
        held: all packets of the timeline, where they are at hand; None: they are read from the file.
        seek: leap in the file over what need not be read.

    Returns:
        uint8 [n, *size, 3] or patches, on the device of the request.

    Raises:
        NvdecError: a stream that NVDEC does not decode, or damage, which a decoding in software names better.
    """
    import av.error

    if not timeline.coded:
        raise NvdecError("packets without time stamps")
    if any(flag & SECOND_FIELD for flag in timeline.flags):
        raise NvdecError("fields of a picture in packets of their own")
    device, (frame, layout, _) = torch.device(request.device), first
    normal = request.normal if request.out == "patches" else None
    options = conversion(size, resample=request.policy.resample, orientation=orientation, normal=normal)
    options |= {"matrix": layout.matrix, "full_range": layout.full_range}
    options["siting"] = REPEAT if request.keep_size else layout.siting
    with opened(request.source.media, request.source.stream, 1, deadline) as (container, video):
        codec = video.codec_context.name
        refusal = nvdec.available(codec, layout.chroma, layout.depth, frame.width, frame.height, device)
        if refusal is not None:
            raise NvdecError(refusal)
        packets = packets_for(container, video, timeline, sorted(set(stamps)), deadline, held=held, seek=seek)
        try:
            return nvdec.decode(packets, video, stamps, device=device, **options)
        except Damaged as damage:  # a packet with a hole: software gives what is before it, if wanted
            raise NvdecError(str(damage)) from damage
        except av.error.FFmpegError as error:
            raise NvdecError(f"the file cannot be read further ({error.strerror})") from error


def first_picture(source: FrameSource, deadline: Deadline) -> First:
    """Raises NvdecError where it cannot be decoded, or has a format that NVDEC does not give."""
    import av.error

    try:
        with opened(source.media, source.stream, 1, deadline) as (container, video):
            begun = False
            for packet in container.demux(video):
                deadline.check()
                begun = begun or packet.is_keyframe
                for frame in packet.decode() if begun else ():
                    context = video.codec_context
                    siting = codec_of(context.name).siting(context.extradata or b"")
                    _, layout, remade = planes_of(frame, siting)
                    if remade:
                        raise NvdecError(f"NVDEC gives no {frame.format.name}")
                    return First(frame, layout, aspect_of(video))
    except av.error.FFmpegError as error:
        raise NvdecError(f"the first picture cannot be decoded ({error.strerror})") from error
    raise NvdecError("the file holds no frames")
