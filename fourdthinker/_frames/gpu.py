"""Frames decoded by NVDEC, for a reading whose device is a GPU."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import asdict
from functools import cache

import av
import torch
from torch import Tensor

from fourdthinker._frames import nvdec
from fourdthinker._frames.colour import Layout, planes_of
from fourdthinker._frames.container import Deadline, Source, aspect_of, opened
from fourdthinker._frames.decode import packets_for
from fourdthinker._frames.pixels import Normal, conversion
from fourdthinker._frames.siting import siting_of
from fourdthinker._frames.timeline import Timeline

logger = logging.getLogger(__name__)


@cache
def say(reason: str) -> None:
    """Once for each reason."""
    logger.warning("decoding in software: %s", reason)


def first_frame(
    media: Source, stream: int | None, deadline: Deadline
) -> tuple[av.VideoFrame, Layout | None, float]:
    """The first picture of a file, for its size and turn; its layout, None for one that NVDEC does not give;
    the aspect of its pixels."""
    with opened(media, stream, 1, deadline) as (container, video):
        for packet in container.demux(video):
            deadline.check()
            for frame in packet.decode():
                _, layout, remade = planes_of(frame, siting_of(video))
                return frame, None if remade else layout, aspect_of(video)
    raise nvdec.NvdecError("the file holds no frames")


def decode(
    media: Source,
    stream: int | None,
    timeline: Timeline,
    stamps: Sequence[int],
    deadline: Deadline,
    *,
    frame: av.VideoFrame,
    layout: Layout | None,
    size: tuple[int, int],
    turns: int,
    resample: str,
    normal: Normal | None,
    device: torch.device,
    held: Sequence[av.Packet] | None,
) -> Tensor:
    """The frames with these stamps on device.

    Raises nvdec.NvdecError for streams that NVDEC does not decode, and for damage, which a decoding in
    software names better.
    """
    with opened(media, stream, 1, deadline) as (container, video):
        name = video.codec_context.name
        if layout is None:
            raise nvdec.NvdecError(f"NVDEC gives no {frame.format.name}")
        if not timeline.coded:
            raise nvdec.NvdecError("the packets have no time stamps")
        refusal = nvdec.available(name, layout.chroma, layout.depth, frame.width, frame.height, device)
        if refusal is not None:
            raise nvdec.NvdecError(refusal)
        packets = packets_for(container, video, timeline, sorted(set(stamps)), deadline, held=held)
        colour = {key: asdict(layout)[key] for key in ("matrix", "full_range", "siting")}
        options = conversion(size, resample=resample, turns=turns, normal=normal)
        return nvdec.decode(packets, video, stamps, device=device, **colour, **options)
