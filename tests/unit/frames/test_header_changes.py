"""Streams whose parameter sets change on the way, inside the stream or in a header of the container."""

from __future__ import annotations

import io
from fractions import Fraction

import av
import numpy as np
import pytest
import torch

from fourdthinker.frames import FramePolicy, read_frames
from fourdthinker.frames.bitstream import nal
from fourdthinker.frames.gpu.nvdec import ParserInput

COUNT = 12  # pictures of each of the two parts
NAMES = {"libx264": "h264", "libx265": "hevc"}
# Parts that differ in what no picture says itself: entropy coding and blocks.
OPTIONS = {
    "libx264": (
        {"x264-params": "keyint=4:bframes=2:scenecut=0"},
        {"x264-params": "keyint=4:cabac=0:ref=1:bframes=0"},
    ),
    "libx265": (
        {"x265-params": "log-level=none:keyint=4:bframes=2"},
        {"x265-params": "log-level=none:keyint=4:ctu=16:min-cu-size=16:bframes=0"},
    ),
}  # fmt: skip


def encoded(codec: str, container: str, width: int, options: dict[str, str], shift: int) -> bytes:
    texture = np.random.default_rng(shift).integers(0, 255, (6, 8, 3), dtype=np.uint8)
    file = io.BytesIO()
    with av.open(file, "w", format=container) as out:
        stream = out.add_stream(codec, rate=25, width=width, height=48, pix_fmt="yuv420p", options=options)
        for number in range(COUNT):
            pixels = np.roll(texture.repeat(8, 0).repeat(width // 8, 1), 3 * number, 1)
            picture = av.VideoFrame.from_ndarray(np.ascontiguousarray(pixels), format="rgb24")
            picture.pts, picture.time_base = number, Fraction(1, 25)
            out.mux(stream.encode(picture))
        out.mux(stream.encode(None))
    return file.getvalue()


def tags(flv: bytes) -> list[bytearray]:
    """Video tags of an FLV file, but for the one that ends the sequence."""
    found, begin = [], 13
    while begin + 11 <= len(flv):
        size = 11 + int.from_bytes(flv[begin + 1 : begin + 4], "big") + 4
        tag = bytearray(flv[begin : begin + size])
        enhanced, kind = tag[11] & 128, (tag[11] & 15 if tag[11] & 128 else tag[12])
        if tag[0] == 9 and kind != 2 and not (enhanced and kind == 4):
            found.append(tag)
        begin += size
    return found


def in_headers(codec: str, width: int) -> bytes:
    """FLV, whose second part has a header of its own."""
    first, second = (
        encoded(codec, "flv", size, options, shift)
        for shift, (size, options) in enumerate(zip((64, width), OPTIONS[codec], strict=True))
    )
    later = tags(second)
    for tag in later:
        milliseconds = int.from_bytes(tag[4:7], "big") + 40 * COUNT + 80  # B-pictures come 80 later
        tag[4:7] = milliseconds.to_bytes(3, "big")
    return first[:13] + b"".join(tags(first) + later)


def in_stream(codec: str, width: int) -> bytes:
    """MP4 (avc3, hev1), whose header holds the sets of the first part, the stream those of the second."""
    files = [
        encoded(codec, "mp4", size, options, shift)
        for shift, (size, options) in enumerate(zip((64, width), OPTIONS[codec], strict=True))
    ]
    out = io.BytesIO()
    syntax = nal.H264 if codec == "libx264" else nal.H265
    with (
        av.open(io.BytesIO(files[0])) as one,
        av.open(io.BytesIO(files[1])) as two,
        av.open(out, "w", format="mp4") as both,
    ):
        stream = both.add_stream_from_template(one.streams.video[0])
        stream.codec_context.codec_tag = "avc3" if codec == "libx264" else "hev1"
        for part, container in enumerate((one, two)):
            source = container.streams.video[0]
            step = int(1 / (25 * source.time_base))
            sets = b"".join(
                len(unit).to_bytes(4, "big") + bytes(unit)
                for unit in nal.header_units(syntax, source.codec_context.extradata)
            )
            for packet in container.demux(source):
                if packet.size:
                    data = bytes(packet)
                    copy = av.Packet(sets + data if part and packet.is_keyframe else data)
                    copy.pts, copy.dts = (t + part * (COUNT + 2) * step for t in (packet.pts, packet.dts))
                    copy.time_base, copy.is_keyframe = source.time_base, packet.is_keyframe
                    copy.stream = stream
                    both.mux(copy)
    return out.getvalue()


CASES = [
    pytest.param(make, codec, width, id=f"{make.__name__}-{NAMES[codec]}-{width}")
    for make in (in_headers, in_stream)
    for codec in NAMES
    for width in (64, 80)
]


@pytest.mark.parametrize(("make", "codec", "width"), CASES)
def test_nvdec_is_given_the_sets_that_hold(make, codec, width):
    """A decoder of raw streams, which knows no header, gives what the container's decoder gives."""
    data = make(codec, width)
    with av.open(io.BytesIO(data)) as container:
        expected = [frame.to_ndarray(format="rgb24") for frame in container.decode(video=0)]
    assert len(expected) == 2 * COUNT
    raw = av.CodecContext.create(NAMES[codec], "r")
    got: list[av.VideoFrame] = []
    with av.open(io.BytesIO(data)) as container:
        video = container.streams.video[0]
        feed = ParserInput(video.codec_context.name, video.codec_context.extradata)
        packets = [packet for packet in container.demux(video) if packet.size]
        for number, packet in enumerate(packets):
            got += raw.decode(av.Packet(feed.packet(packet, first=not number)))
        got += raw.decode(None)
    assert len(got) == len(expected)
    for ours, theirs in zip(got, expected, strict=True):
        assert np.array_equal(ours.to_ndarray(format="rgb24"), theirs)
    if make is in_headers:
        assert sum(packet.has_sidedata("new_extradata") for packet in packets) == 1


@pytest.mark.parametrize(("make", "codec", "width"), CASES)
@pytest.mark.parametrize("threads", [1, 2])
def test_any_picture_is_read_alone(monkeypatch, make, codec, width, threads):
    """Where a seek or a leap would miss the header that holds, there is none."""
    monkeypatch.setattr("fourdthinker.frames.read.threads", lambda: threads)
    data, policy = make(codec, width), FramePolicy(max_pixels=28 * 28 * 4)
    with av.open(io.BytesIO(data)) as container:
        frames = list(container.decode(video=0))
    times = [float(frame.pts * frame.time_base) for frame in frames]
    every = [read_frames(data, policy, times=[times[0], time]).pixels[1] for time in times]
    for time, through, frame in zip(times, every, frames, strict=True):
        alone = read_frames(data, policy, times=[time]).pixels[0]
        assert abs(alone.float().mean() - frame.to_ndarray(format="rgb24").mean()) < 8
        if alone.shape == through.shape:  # else it has the size of the first picture
            assert torch.equal(alone, through)
