"""Frames decoded by NVDEC, for a reading whose device is a GPU."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Sequence
from functools import cache
from typing import TYPE_CHECKING, Protocol

import torch
from torch import Tensor

from fourdthinker.frames.codecs import codec_of
from fourdthinker.frames.colour import REPEAT, Layout, planes_of
from fourdthinker.frames.container import Deadline, Source, aspect_of, opened
from fourdthinker.frames.convert import Frames, conversion
from fourdthinker.frames.decode import packets_for
from fourdthinker.frames.gpu import nvdec
from fourdthinker.frames.gpu.nvdec import NvdecError
from fourdthinker.frames.orientation import Orientation
from fourdthinker.frames.request import Request, times_wanted
from fourdthinker.frames.sampling import hold
from fourdthinker.frames.sink import Damaged
from fourdthinker.frames.timeline import Timeline

if TYPE_CHECKING:
    import av


logger = logging.getLogger(__name__)


class Reader(Protocol):
    """What `emit` uses of the reading that calls it."""

    request: Request
    deadline: Deadline
    device: torch.device
    held: list[av.Packet] | None
    seek: bool
    wanted: list[float]
    done: int
    aspect: float

    def fit(self, frame: av.VideoFrame) -> tuple[Orientation, tuple[int, int], tuple[int, int]]: ...

    def pack(self, places: Sequence[int], pieces: Sequence[Tensor], straight: bool) -> Frames: ...


@cache
def say(reason: str) -> None:
    """Once for each reason."""
    logger.warning("decoding in software: %s", reason)


def emit(reading: Reader, timeline: Timeline, batch: int | None) -> Iterator[Frames]:
    """The batches of a reading that are left to do.

    Raises NvdecError for streams that NVDEC does not decode, and for damage, which a decoding in software
    names better.
    """
    import av.error

    request, deadline = reading.request, reading.deadline
    media, stream = request.source.media, request.source.stream
    frame, layout, reading.aspect = _first_frame(media, stream, deadline)
    if layout is None or not timeline.coded:
        raise NvdecError("packets without time stamps" if layout else f"NVDEC gives no {frame.format.name}")
    if not reading.done:
        reading.wanted = times_wanted(request, timeline)
    chosen = [hold(timeline.begin, t) for t in reading.wanted]
    orientation, _, size = reading.fit(frame)
    patches = request.out == "patches"
    options = conversion(
        size,
        resample=request.policy.resample,
        orientation=orientation,
        normal=request.normal if patches else None,
    )
    options |= {"matrix": layout.matrix, "full_range": layout.full_range}
    options["siting"] = REPEAT if request.keep_size else layout.siting
    step = len(chosen) if batch is None else batch
    for begin in range(reading.done, len(chosen), step):
        here = chosen[begin : begin + step]
        stamps = [timeline.pts[index] for index in here]
        with opened(media, stream, 1, deadline) as (container, video):
            codec = video.codec_context.name
            refusal = nvdec.available(
                codec, layout.chroma, layout.depth, frame.width, frame.height, reading.device
            )
            if refusal is not None:
                raise NvdecError(refusal)
            packets = packets_for(
                container,
                video,
                timeline,
                sorted(set(stamps)),
                deadline,
                held=reading.held,
                seek=reading.seek,
            )
            try:
                whole = nvdec.decode(packets, video, stamps, device=reading.device, **options)
            except Damaged as damage:  # a packet with a hole: software gives what is before it, if wanted
                raise NvdecError(str(damage)) from damage
            except av.error.FFmpegError as error:
                raise NvdecError(f"the file cannot be read further ({error.strerror})") from error
        frames = reading.pack(range(len(here)), [whole], patches)
        frames.seconds = reading.wanted[begin : begin + step]
        frames.shown = [timeline.begin[index] for index in here]
        frames.decoder = "nvdec"
        if request.partial and timeline.fault is not None:
            frames.fault = f"at {timeline.fault[0]:.3f} s {timeline.fault[1]}"
        reading.done += len(here)
        yield frames


def _first_frame(
    media: Source, stream: int | None, deadline: Deadline
) -> tuple[av.VideoFrame, Layout | None, float]:
    """The first picture of a file, for its size and turn; its layout, None for one that NVDEC does not give;
    the aspect of its pixels."""
    import av.error

    try:
        with opened(media, stream, 1, deadline) as (container, video):
            begun = False
            for packet in container.demux(video):
                deadline.check()
                begun = begun or packet.is_keyframe
                for frame in packet.decode() if begun else ():
                    context = video.codec_context
                    siting = codec_of(context.name).siting(context.extradata or b"")
                    _, layout, remade = planes_of(frame, siting)
                    return frame, None if remade else layout, aspect_of(video)
    except av.error.FFmpegError as error:
        raise NvdecError(f"the first picture cannot be decoded ({error.strerror})") from error
    raise NvdecError("the file holds no frames")
