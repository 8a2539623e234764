"""One record for each codec: all that reading knows of it. To add a codec is to add its record.

What a record does not say, and a codec without one, is taken for the worst: its pictures may be reordered,
none is left out, keyframes are doubted where all pictures are called so, and the decoder is not emptied
before the data end.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from fourdthinker.frames import animation
from fourdthinker.frames.bitstream import av1, display_order, h263, mpeg, nal, parameter_sets, vpx
from fourdthinker.frames.bitstream.display_order import Order
from fourdthinker.frames.bitstream.pictures import RANDOM_ACCESS, Damage, Data, Flags, Test


@dataclass(frozen=True)
class Codec:
    """Facts about a codec and about FFmpeg's decoders of it.

    Functions take a stream's header (extradata, b"" for none) and return what is then asked about the data of
    each packet.

    Attributes:
        decoders: FFmpeg's names of them, by which the codec is found.
        reorders: pictures may be stored in another order than they are shown in, if FFmpeg's decoder holds
            any back.
        display_order: where it does, when a picture is shown, as `bitstream.display_order` has it; None: only
            the decoder knows.
        flags: what the data of a picture tell (`bitstream.pictures`).
        settle: the flags of a whole stream, once all are known.
        begins: whether decoding can begin at a picture that the container calls a keyframe, for decoders that
            do not notice when it cannot.
        begins_once: decoding begins at the first packet alone, whatever the container calls keyframes: a
            picture may show again what was before the one before it.
        keyframes_known: by their data, here or to FFmpeg's parsers and decoders, so that they are believed
            even where all pictures are keyframes.
        leading_told: of pictures decoded after the first keyframe and shown before it, the decoder shows
            those that do not need what precedes it, and no others.
        always_shown: each packet shows a picture, but those flagged NOT_SHOWN.
        flushes: a decoder that is emptied shows what it holds under its own stamps, and decodes on from a
            keyframe after it.
        empties: before which packets the decoder has to be emptied, for it drops there what it still holds;
            None: it drops nothing.
        restart: to do so costs about as much as to decode so many packets.
        frame_threads: on several threads damage is still told in time.
        shared_threads: threads share one picture, so that a single one is decoded faster by several.
        settable_delay: how many pictures the decoder holds back can be set, which makes it wait for its
            threads.
        err_detect: for decoders that do not mark damaged pictures, what makes them fail instead.
        without_picture: a packet that shows nothing, which moves threads on.
        compose: makes pictures of packets instead of FFmpeg's decoder (`animation`).
        damage: for decoders that say nothing of it, what shows in the data of a picture that some are missing
            or overwritten; None: nothing does.
        siting: where the chroma samples lie: "left", "center" or "topleft".
        nvdec: the codec's name for `_video.Nvdec`; None: not decoded there.
        nvdec_header: what its parser takes at first.
        nvdec_sets: what it takes before the packets that decoding begins at.
        nvdec_packet: packets as it takes them; raises ValueError for one that is not whole.
    """

    decoders: tuple[str, ...]
    reorders: bool = False
    display_order: Callable[[bytes], Order] | None = None
    flags: Callable[[bytes], Flags] = lambda _: lambda data: 0
    settle: Callable[[bytearray], bytes] = bytes
    begins: Callable[[bytes], Test] = lambda _: lambda data: True
    begins_once: bool = False
    keyframes_known: bool = False
    leading_told: bool = False
    always_shown: bool = False
    flushes: bool = False
    empties: Callable[[bytes], Test] | None = None
    restart: int = 8
    frame_threads: bool = True
    shared_threads: bool = False
    settable_delay: bool = False
    err_detect: str | None = None
    without_picture: Callable[[bytes], bytes] | None = None
    compose: Callable[[bytes], animation.Compose] | None = None
    damage: Callable[[bytes], Damage] | None = None
    siting: Callable[[bytes], str] = lambda _: "left"  # of MPEG-2 and what came after
    nvdec: str | None = None
    nvdec_header: Callable[[bytes], bytes] = lambda _: b""
    nvdec_sets: Callable[[bytes], bytes] = lambda _: b""
    nvdec_packet: Callable[[bytes], Callable[[Data], bytes]] = lambda _: bytes


def _each_alone(extradata: bytes) -> Flags:
    """Every picture is coded without reference to another."""
    return lambda data: RANDOM_ACCESS


CODECS = {
    "h264": Codec(
        ("h264",),
        reorders=True,
        display_order=display_order.h264,
        flags=nal.h264_flags,
        begins=nal.h264_begins,
        keyframes_known=True,
        always_shown=True,
        flushes=True,
        settable_delay=True,
        without_picture=nal.H264.packet_without_picture,
        damage=nal.H264.damage,
        siting=parameter_sets.h264_siting,
        nvdec="h264",
        nvdec_sets=nal.H264.parameter_sets,
        nvdec_packet=nal.H264.with_start_codes,
    ),
    "hevc": Codec(
        ("hevc",),
        reorders=True,
        display_order=display_order.h265,
        flags=nal.h265_flags,
        settle=nal.settle_layers,
        begins=nal.h265_begins,
        keyframes_known=True,
        leading_told=True,
        always_shown=True,
        flushes=True,
        empties=nal.h265_empties,
        err_detect="crccheck+explode",
        without_picture=nal.H265.packet_without_picture,
        damage=nal.H265.damage,
        siting=parameter_sets.h265_siting,
        nvdec="hevc",
        nvdec_sets=nal.H265.parameter_sets,
        nvdec_packet=nal.H265.with_start_codes,
    ),
    "av1": Codec(
        ("libdav1d", "av1"),
        flags=av1.flags,
        keyframes_known=True,
        always_shown=True,
        flushes=True,
        shared_threads=True,
        siting=av1.siting,
        nvdec="av1",
        nvdec_header=av1.sequence_header,
    ),
    "vp9": Codec(
        ("vp9", "libvpx-vp9"),
        flags=vpx.vp9_flags,
        keyframes_known=True,
        always_shown=True,
        flushes=True,
        damage=vpx.damage,
        nvdec="vp9",
    ),
    "vp8": Codec(
        ("vp8", "libvpx"),
        flags=vpx.vp8_flags,
        keyframes_known=True,
        always_shown=True,
        flushes=True,
        damage=vpx.damage,
        nvdec="vp8",
    ),
    "mpeg4": Codec(
        ("mpeg4",),
        reorders=True,
        display_order=display_order.mpeg4,
        flags=mpeg.mpeg4_flags,
        begins=mpeg.mpeg4_begins,
        keyframes_known=True,
        flushes=True,
        frame_threads=False,
    ),
    "mpeg2": Codec(
        ("mpeg1video", "mpeg2video"),
        reorders=True,
        display_order=display_order.mpeg2,
        flags=mpeg.mpeg2_flags,
        begins=mpeg.mpeg2_begins,
        keyframes_known=True,
        leading_told=True,
        flushes=True,
        restart=2,
    ),
    "vvc": Codec(("vvc",), reorders=True, leading_told=True, flushes=True),
    "one picture back": Codec(
        (
            "wmv1",
            "wmv2",
            "msmpeg4",
            "msmpeg4v1",
            "msmpeg4v2",
            "flv",
            "h261",
            "theora",
        ),
        flushes=True,
    ),
    "h263": Codec(("h263", "h263p"), begins=h263.begins, keyframes_known=True, flushes=True),
    "apng": Codec(
        ("apng",), begins_once=True, flushes=True, frame_threads=False, compose=animation.png_composer
    ),
    "gif": Codec(
        ("gif",),
        begins_once=True,
        flushes=True,
        frame_threads=False,
        compose=animation.gif_composer,
    ),
    "realvideo": Codec(("rv30", "rv40"), reorders=True, frame_threads=False),
    "mjpeg": Codec(
        ("mjpeg",), flags=_each_alone, flushes=True, err_detect="explode", siting=lambda _: "center"
    ),
    "prores": Codec(("prores",), flags=_each_alone, flushes=True),
    "ffv1": Codec(("ffv1",), flags=_each_alone, flushes=True, err_detect="crccheck+explode"),
    "lossless and raw": Codec(
        ("dnxhd", "rawvideo", "huffyuv", "utvideo", "png", "v210", "cfhd"), flags=_each_alone
    ),
}
_BY_DECODER = {decoder: codec for codec in CODECS.values() for decoder in codec.decoders}


def codec_of(decoder: str) -> Codec:
    """The record of a codec, by FFmpeg's name of its decoder (`video.codec_context.name`)."""
    return _BY_DECODER.get(decoder) or Codec((decoder,), reorders=True)
