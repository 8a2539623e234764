"""Marked pictures, encoded: packets in the order of storage, each with the number of its picture."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from fractions import Fraction
from itertools import pairwise
from typing import Any

import av
import numpy as np

from tests.oracle import surgery
from tests.oracle.marks import marked, stored_as

os.environ.setdefault("SVT_LOG", "1")  # this encoder tells about itself otherwise


@dataclass(frozen=True)
class Encoder:
    """An encoder and how it is set. reorders: pictures are not stored in the order in which they are shown.
    ticks: of its time base within the duration of a picture; some encoders need a finer one. hides: of so
    many pictures, one is hidden (VP8)."""

    codec: str
    options: tuple[tuple[str, str], ...] = ()
    pixel_format: str = "yuv420p"
    size: tuple[int, int] = (64, 96)
    reorders: bool = False
    ticks: int = 1
    field_coded: bool = False
    open_groups: bool = False
    hides: int = 0


@dataclass
class Coded:
    """A packet. number: of the picture in it. hidden: that picture is decoded and never shown."""

    packet: av.Packet
    number: int
    key: bool
    hidden: bool = False


def _x264(params: str, **more: bool) -> Encoder:
    return Encoder("libx264", (("preset", "ultrafast"), ("x264-params", params)), **more)


def _x265(params: str, **more: bool) -> Encoder:
    settings = f"{params}:log-level=none:pools=1:frame-threads=1"
    return Encoder("libx265", (("preset", "ultrafast"), ("x265-params", settings)), **more)


def _plain(codec: str, group: str = "12", bf: str = "0", **more: Any) -> Encoder:
    b_frames = () if bf == "0" else (("bf", bf),)
    options = (("g", group), ("b", "4M"), ("qmax", "6"), *b_frames, *more.pop("options", ()))
    return Encoder(codec, options, reorders=bf != "0", **more)


_B = "scenecut=0:b-adapt=0"
_FAST_VPX = (("deadline", "realtime"), ("cpu-used", "8"))
_QUIET_SVT = ("svtav1-params", "lp=1:enable-tf=0")
INTERLACED = (("flags", "+ildct+ilme"),)

ENCODERS: dict[str, Encoder] = {
    "h264": _x264(f"keyint=12:bframes=0:{_B}"),
    "h264-b": _x264(f"keyint=12:bframes=2:{_B}", reorders=True),
    "h264-b-flat": _x264(f"keyint=250:bframes=3:b-pyramid=none:{_B}", reorders=True),
    "h264-pyramid": _x264(f"keyint=20:bframes=7:b-pyramid=normal:{_B}", reorders=True),
    "h264-open": _x264(f"keyint=10:min-keyint=10:bframes=3:open-gop=1:{_B}", reorders=True, open_groups=True),
    "h264-refresh": _x264(f"keyint=12:intra-refresh=1:bframes=0:{_B}"),
    "h264-mbaff": _x264(f"keyint=12:bframes=2:interlaced=1:tff=1:{_B}", reorders=True, field_coded=True),
    "hevc": _x265("keyint=12:bframes=0:scenecut=0"),
    "hevc-b": _x265("keyint=12:bframes=3:scenecut=0:open-gop=0:b-adapt=0", reorders=True),
    "hevc-open": _x265(
        "keyint=10:min-keyint=10:bframes=3:scenecut=0:open-gop=1:b-adapt=0", reorders=True, open_groups=True
    ),
    "vp8": Encoder("libvpx", (("g", "12"), *_FAST_VPX), ticks=40),
    "vp8-hidden": Encoder("libvpx", (("g", "30"), *_FAST_VPX), ticks=40, hides=7),
    "vp9": Encoder("libvpx-vp9", (("g", "12"), *_FAST_VPX), ticks=40),
    "av1": Encoder("libsvtav1", (("preset", "8"), ("crf", "20"), ("g", "16"), _QUIET_SVT)),
    "mpeg4": _plain("mpeg4"),
    "mpeg4-b": _plain("mpeg4", bf="2", options=(("b_strategy", "0"),)),
    "mpeg4-b-fields": _plain("mpeg4", bf="2", options=(("flags", "+ildct"),), field_coded=True),
    "mpeg4-fields": _plain("mpeg4", options=INTERLACED, field_coded=True),
    "mpeg2": _plain("mpeg2video"),
    "mpeg2-b": _plain("mpeg2video", bf="2", open_groups=True),
    "mpeg2-b-fields": _plain("mpeg2video", bf="2", options=INTERLACED, field_coded=True),
    "mpeg1-b": _plain("mpeg1video", bf="2", open_groups=True),
    "mjpeg": Encoder("mjpeg", pixel_format="yuvj420p"),
    "wmv1": _plain("wmv1", size=(96, 144)),
    "wmv2": _plain("wmv2", size=(96, 144)),
    "msmpeg4v3": _plain("msmpeg4", size=(96, 144)),
    "msmpeg4v2": _plain("msmpeg4v2", size=(96, 144)),
    "flv1": _plain("flv"),
    "h263": _plain("h263", size=(96, 128)),
    "h263p": _plain("h263p"),
    "h261": _plain("h261", size=(144, 176)),
    "rv10": _plain("rv10"),
    "rv20": _plain("rv20"),
    "svq1": _plain("svq1", pixel_format="yuv410p"),
    "snow": _plain("snow"),
    "ffv1": Encoder("ffv1"),
    "prores": Encoder("prores_ks", pixel_format="yuv422p10le"),
    "dnxhr": Encoder("dnxhd", (("profile", "dnxhr_lb"),), pixel_format="yuv422p", size=(128, 256)),
    "huffyuv": Encoder("huffyuv", pixel_format="yuv422p"),
    "png": Encoder("png", pixel_format="rgb24"),
    "gif": Encoder("gif", pixel_format="rgb8"),
    "rawvideo": Encoder("rawvideo"),
}  # fmt: skip


def add_stream(container: Any, encoder: Encoder, rate: Fraction) -> Any:
    """A stream of the container that pictures can be encoded for."""
    stream = container.add_stream(encoder.codec, rate=rate, options=dict(encoder.options))
    stream.height, stream.width = encoder.size
    stream.pix_fmt = encoder.pixel_format
    stream.codec_context.time_base = 1 / (rate * encoder.ticks)
    stream.codec_context.thread_count = 1
    return stream


def encoded(
    stream: Any,
    encoder: Encoder,
    count: int,
    orientation: int = 1,
    draw: Callable[[int, int, int], np.ndarray] = marked,
) -> list[Coded]:
    """Pictures 0 to count - 1, stored as a viewer who obeys the orientation needs them."""
    packets: list[av.Packet] = []
    height, width = encoder.size
    for number in range(count):
        picture = draw(number, *((width, height) if orientation > 4 else (height, width)))
        frame = av.VideoFrame.from_ndarray(stored_as(picture, orientation), format="rgb24")
        frame.pts, frame.time_base = number * encoder.ticks, stream.codec_context.time_base
        packets += stream.encode(frame)
    packets += stream.encode()
    return _numbered(packets, encoder, count)


def _numbered(packets: Sequence[av.Packet], encoder: Encoder, count: int) -> list[Coded]:
    order = sorted(range(len(packets)), key=lambda place: packets[place].pts)
    if len(packets) != count:
        raise AssertionError(f"{encoder.codec} made {len(packets)} packets of {count} pictures")
    if encoder.reorders != any(b < a for a, b in pairwise(order)):
        raise AssertionError(f"{encoder.codec} {encoder.options}: reordering is not as declared")
    number = {place: number for number, place in enumerate(order)}
    result = [Coded(packet, number[place], packet.is_keyframe) for place, packet in enumerate(packets)]
    return surgery.hidden_references(result, encoder.hides) if encoder.hides else result
