"""Frames decoded by a GPU's video engine (NVDEC) and converted where they lie, without a copy to the host.

How a reader uses it, for a CUDA device:

    reason = available(codec, chroma, depth, width, height, device)
    if reason is None:
        try:
            result = decode(packets, video, wanted, device=device, **conversion)
        except NvdecError as error: ...  # decode in software, which names the fault and its time
    else: ...  # say `reason` once; decode in software and convert with fourdthinker.frames.gpu.convert

What the engine gives is decoded bit for bit as the standard says, so both ways give the same frames.
"""

from __future__ import annotations

import logging
from collections.abc import Iterable, Iterator, Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from fourdthinker.frames.codecs import codec_of
from fourdthinker.frames.gpu import convert
from fourdthinker.frames.native import native

if TYPE_CHECKING:
    import av
    from av.video.stream import VideoStream


BATCH = 64  # packets handed over at a time

logger = logging.getLogger(__name__)


class NvdecError(Exception):
    """The engine did not give the frames; pts: the stamp of the first frame concerned, where known."""

    def __init__(self, cause: str, pts: int | None = None) -> None:
        super().__init__(cause)
        self.pts = pts


def missing() -> str | None:
    """Why there is no NVDEC here, whatever the stream and the chip; None when there is.

    A build without it, or a driver without its video library (as in containers that are not given it).
    """
    reason = convert.missing()
    if reason is not None:
        return reason
    module = native()
    assert module is not None
    if not module.build_info()["nvdec_headers"]:
        return (
            "fourdthinker._video is built without NVDEC: install ffnvcodec's headers (Debian: "
            "libffmpeg-nvenc-dev) and reinstall fourdthinker"
        )
    library: str | None = module.nvdec_missing()
    return library


def available(
    codec: str, chroma: str, depth: int, width: int, height: int, device: torch.device
) -> str | None:
    """Why NVDEC does not decode such a stream; None when it does.

    Args:
        codec: FFmpeg's name of the decoder (video.codec_context.name).
        chroma: "420", "422", "444" or "gray".
        depth: bits of a sample.
        width: of the coded frames, in pixels.
        height: likewise.
        device: a CUDA device.
    """
    reason = missing()
    if reason is not None:
        return reason
    module = native()
    assert module is not None
    name = codec_of(codec).nvdec
    if name is None:
        return f"NVDEC is not used for the codec {codec}"
    index, _ = convert.index_and_stream(device)
    return module.nvdec_refusal(name, chroma, depth, width, height, index)


def decode(
    packets: Iterable[av.Packet | int | None],
    video: VideoStream,
    wanted: Sequence[int],
    *,
    device: torch.device,
    **conversion: Any,
) -> Tensor:
    """The frames with the stamps `wanted`, converted, on `device`.

    What describes the surfaces (chroma, depth, crop, ...) comes from the decoder, also when the size changes
    within the stream. The host does not wait for the conversion of the last frames.

    Args:
        packets: of one stream, in decoding order from a keyframe on; those that no wanted frame needs may be
            left out. An int: the next packet begins at a keyframe of that stamp after a seek, frames shown
            before it may lack what they refer to; None, which may stand before it, says nothing more. They
            are read in batches and no further than needed.
        video: the stream.
        wanted: stamps in the stream's time base, in any order, also more than once.
        device: a CUDA device.
        **conversion: keywords of `_video.convert` about colour and output: height, width, matrix, full_range,
            siting, resample, rotation, mirrored, out, patch, merge, temporal, mean, std, dtype.

    Returns:
        uint8 [len(wanted), height, width, 3], or patches in `dtype`; ready in the order of torch's current
        stream.

    Raises:
        NvdecError: data that cannot be decoded, also where a wanted frame only might refer to them, or a
            frame that the stream does not show.
        ValueError: a wrong conversion.
    """
    module = native()
    if module is None:
        raise NvdecError("fourdthinker._video is not built")
    context = video.codec_context
    index, stream = convert.index_and_stream(device)
    out = convert.empty(len(wanted), device, **conversion)
    parser_input = ParserInput(context.name, context.extradata)
    try:
        engine = module.Nvdec(
            parser_input.codec.nvdec,
            parser_input.header,
            list(wanted),
            out.data_ptr(),
            index,
            stream,
            **conversion,
        )
        begins = True
        for landed, batch in batches(packets):
            begins = begins or landed is not None
            data = [parser_input.packet(p, first=begins and n == 0) for n, p in enumerate(batch)]
            begins = False
            offsets = [0]
            for part in data:
                offsets.append(offsets[-1] + len(part))
            stamps = [_stamp(packet) for packet in batch]
            if not engine.feed(b"".join(data), offsets, stamps, landed):
                break
        missing = engine.finish()
    except module.NvdecDamaged as damage:
        cause, pts = damage.args
        raise NvdecError(cause, pts) from damage
    except RuntimeError as error:
        raise NvdecError(str(error)) from error
    if missing:
        raise NvdecError("the stream does not show a frame that the container lists", missing[0])
    return out


def batches(packets: Iterable[av.Packet | int | None]) -> Iterator[tuple[int | None, list[av.Packet]]]:
    """(stamp that decoding landed at, or None where it goes on; at most BATCH packets)."""
    import av

    landed: int | None = None
    batch: list[av.Packet] = []
    for item in packets:
        if isinstance(item, av.Packet):
            if item.size:
                batch.append(item)
            if len(batch) == BATCH:
                yield landed, batch
                landed, batch = None, []
        elif item is not None:
            if batch:
                yield landed, batch
            landed, batch = item, []
    if batch:
        yield landed, batch


def _stamp(packet: av.Packet) -> int:
    stamp = packet.pts if packet.pts is not None else packet.dts
    if stamp is None:
        raise NvdecError("a packet has no time stamp")
    return stamp


class ParserInput:
    """Packets of one stream as NVDEC's parser reads them.

    H.264 and H.265 have start codes and, where decoding begins, the parameter sets of the header that holds
    then before them. header: for the parser itself (AV1).
    """

    def __init__(self, decoder: str, extradata: bytes | None) -> None:
        self.codec = codec_of(decoder)
        self.header = self.codec.nvdec_header(extradata or b"")
        self._read(extradata or b"")

    def packet(self, packet: av.Packet, first: bool) -> bytes:
        """The bytes for the parser; `first` says that decoding begins here, so that parameter sets go before.

        Raises:
            NvdecError: the packet is not what its header says.
        """
        if packet.has_sidedata("new_extradata"):
            self._read(bytes(packet.get_sidedata("new_extradata")))
            first = True
        try:
            data = self.convert(bytes(packet))
        except ValueError as error:
            raise NvdecError(str(error)) from error
        return self.sets + data if first else data

    def _read(self, extradata: bytes) -> None:
        self.sets, self.convert = self.codec.nvdec_sets(extradata), self.codec.nvdec_packet(extradata)
