"""NAL units of H.264 and H.265."""

from __future__ import annotations

from pathlib import Path

import av
import pytest

from fourdthinker.frames.bitstream import nal
from fourdthinker.frames.bitstream.pictures import KEYFRAME, NON_REFERENCE, RANDOM_ACCESS, ZEROS
from fourdthinker.frames.codecs import codec_of
from tests.clips import make_clip
from tests.unit.frames.test_decode import STAMPS, textured


def test_pictures_of_lower_layers_stay() -> None:
    layers = [KEYFRAME | RANDOM_ACCESS | 1 << 4, NON_REFERENCE | 1 << 4, NON_REFERENCE | 2 << 4, 2 << 4]
    assert list(nal.settle_layers(bytearray(layers))) == [KEYFRAME | RANDOM_ACCESS, 0, NON_REFERENCE, 0]
    assert list(nal.settle_layers(bytearray(flag & 31 for flag in layers[:2]))) == [
        KEYFRAME | RANDOM_ACCESS,
        NON_REFERENCE,
    ]


def test_cut_off_pictures_are_not_non_reference(tmp_path: Path) -> None:
    path = make_clip(tmp_path / "c.mp4", STAMPS, size=(96, 128), options={"bf": "3"}, base=25, draw=textured)
    with av.open(str(path)) as container:
        video = container.streams.video[0]
        classify = nal.h264_flags(video.codec_context.extradata)
        dropped = [bytes(p) for p in container.demux(video) if p.size and classify(bytes(p)) & NON_REFERENCE]
    assert dropped
    for packet in dropped[:5]:
        assert not classify(packet[:-1]) & NON_REFERENCE
        assert not classify(packet + b"\0\0\0") & NON_REFERENCE


UNIT = b"\x65" + bytes(range(1, 40))
AVCC, HVCC = b"\x01" + bytes(3) + b"\xff\xe1\0", b"\x01" + bytes(20) + b"\xff\0"


@pytest.mark.parametrize(
    ("codec", "header", "data", "found"),
    [
        ("h264", AVCC, b"\0\0\0\x28" + UNIT, False),
        ("h264", AVCC, b"\0\0\0\x28" + UNIT[:20] + bytes(8) + UNIT[28:], True),
        ("h264", AVCC, b"\0\0\0\x28" + UNIT[:20] + bytes(7) + UNIT[27:], False),
        ("h264", AVCC, b"\0\0\0\x30" + UNIT + bytes(8), False),  # zeros after a unit
        ("h264", AVCC, b"\0\0\0\x28" + b"\x06" + UNIT[1:20] + bytes(8) + UNIT[28:], False),  # no slice
        ("h264", AVCC, b"\0\0\0\x28" + UNIT + b"\0\0\0\x28" + UNIT[:9] + bytes(9) + UNIT[18:], True),
        ("h264", None, b"\0\0\0\1" + UNIT + bytes(12) + b"\1" + UNIT, False),  # zeros before a start code
        ("h264", None, b"\0\0\0\1" + UNIT + bytes(12) + b"\2" + UNIT, True),
        ("h264", None, b"\0\0\1" + UNIT + bytes(9) + b"\1" + UNIT + bytes(9) + b"\7", True),
        ("h264", None, b"\0\0\1" + UNIT + bytes(50), False),
        ("h264", None, b"\0\0\1\x06" + UNIT[:9] + bytes(9) + b"\7\0\0\1" + UNIT, False),  # no slice
        ("h264", None, b"\0\0\1\x06" + UNIT + b"\0\0\1" + UNIT + bytes(9) + b"\7", True),
        ("h264", None, b"\0\0\1" + bytes(9) + UNIT, True),  # what was the head of a unit
        ("h264", AVCC, b"\0\0\0\x28" + bytes(9) + UNIT[9:], True),
        ("hevc", None, b"\0\0\1\x4e" + UNIT[:9] + bytes(9) + b"\7", False),
        ("hevc", HVCC, b"\0\0\0\x28" + b"\x26" + UNIT[1:20] + bytes(8) + UNIT[28:], True),
        ("hevc", HVCC, b"\0\0\0\x28" + b"\x4e" + UNIT[1:20] + bytes(8) + UNIT[28:], False),
        ("h264", AVCC, b"", False),
        ("h264", AVCC, b"\xff\xff\xff\xff" + bytes(9) + b"\1", True),
    ],
)
def test_holes(codec: str, header: bytes | None, data: bytes, found: bool) -> None:
    syntax = nal.H264 if codec == "h264" else nal.H265
    assert syntax.damage(header or b"")(data) == (ZEROS if found else None)


def siting_of(container: av.container.InputContainer) -> str:
    context = container.streams.video[0].codec_context
    return codec_of(context.name).siting(context.extradata or b"")


@pytest.mark.parametrize("codec", ["libx264", "libx265"])
@pytest.mark.parametrize("suffix", ["mp4", "mkv", "ts"])
def test_declared_siting(tmp_path: Path, codec: str, suffix: str) -> None:
    for place, name in enumerate(("left", "center", "topleft")):
        key, quiet = ("x264-params", "") if codec == "libx264" else ("x265-params", ":log-level=none")
        options = {key: f"chromaloc={place}:bframes=3{quiet}"}
        path = make_clip(tmp_path / f"{name}.{suffix}", range(0, 400, 40), codec=codec, options=options)
        with av.open(str(path)) as container:
            assert siting_of(container) == name
    path = make_clip(tmp_path / f"none.{suffix}", range(0, 400, 40), codec=codec, options={key: quiet[1:]})
    with av.open(str(path)) as container:
        assert siting_of(container) == "left"
