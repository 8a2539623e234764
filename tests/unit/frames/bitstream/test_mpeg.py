"""Pictures of MPEG-1, MPEG-2 and MPEG-4: B-pictures, interlaced ones, and those that are not coded."""

from __future__ import annotations

from pathlib import Path

import av
import pytest
import torch

from fourdthinker.frames import read_frames
from fourdthinker.frames.bitstream import mpeg
from fourdthinker.frames.bitstream.pictures import DUPLICATE, NON_REFERENCE
from tests.clips import make_clip
from tests.unit.frames.test_decode import COUNT, STAMPS, textured

INTRA, P, B = (b"\0\0\1\0\0" + bytes([kind << 3]) + b"\xff\xf8data" for kind in (1, 2, 3))


@pytest.mark.parametrize(
    ("data", "left_out"),
    [
        (B, True),
        (B + B, True),  # two fields
        (b"\0\0\1\xb3head" + B, True),
        (INTRA, False),
        (P, False),
        (B + P, False),
        (P + B, False),
        (B[:5], False),  # cut off
        (B + B[:4], False),
        (b"", False),
        (b"data", False),
    ],
)
def test_b_pictures_of_mpeg2_are_non_reference(data: bytes, left_out: bool) -> None:
    assert mpeg.mpeg2_flags(b"")(data) == (NON_REFERENCE if left_out else 0)


@pytest.mark.parametrize("suffix", ["mp4", "ts"])
@pytest.mark.parametrize("fields", [True, False])
def test_interlaced_mpeg4_begins_at_its_first_picture(tmp_path: Path, suffix: str, fields: bool) -> None:
    options = {"bf": "2", "qscale": "3", "g": "13", "sc_threshold": "1000000000"}
    path = make_clip(
        tmp_path / f"c.{suffix}", STAMPS, codec="mpeg4", size=(96, 128), draw=textured, base=25,
        options=options | ({"flags": "+ilme+ildct"} if fields else {}),
    )  # fmt: skip
    with av.open(str(path)) as container:
        video = container.streams.video[0]
        begins = mpeg.mpeg4_begins(video.codec_context.extradata or b"")
        packets = [packet for packet in container.demux(video) if packet.size]
    keys = [bytes(packet) for packet in packets if packet.is_keyframe]
    assert len(keys) > 3
    assert [begins(key) for key in keys] == [True] + [not fields] * (len(keys) - 1)
    shown = sorted(float(packet.pts * packet.time_base) for packet in packets)
    every = read_frames(path, times=shown).pixels
    for k in range(COUNT):
        assert torch.equal(read_frames(path, times=[shown[k]]).pixels[0], every[k]), k


def test_headers_of_mpeg4_in_a_packet_of_their_own() -> None:
    layer = b"\0\0\1\x20\0"  # ends early: taken for interlaced
    begins = mpeg.mpeg4_begins(b"")
    assert [begins(data) for data in (layer, b"\0\0\1\xb6\x10", b"\0\0\1\xb6\x10")] == [True, True, False]


NOT_CODED = b"\0\0\1\xb6\x51\x4f"  # P, no second begins, increment 2 in 5 bits, not coded; then stuffing


def test_pictures_of_mpeg4_that_are_not_coded(tmp_path: Path) -> None:
    """They repeat the picture before. The decoder shows none for them, but for one at the end of the data."""
    names = tmp_path / "plain.mp4", tmp_path / "odd.mkv"
    make_clip(names[0], STAMPS, codec="mpeg4", options={"g": "12"}, size=(96, 128), draw=textured, base=25)
    classify = mpeg.mpeg4_flags(b"")
    with av.open(str(names[0])) as old, av.open(str(names[1]), "w") as new:
        stream = new.add_stream_from_template(old.streams.video[0])
        for number, packet in enumerate(p for p in old.demux(old.streams.video[0]) if p.size):
            data = NOT_CODED if number % 12 == 11 else bytes(packet)
            assert classify(data) == (DUPLICATE if data == NOT_CODED else 0)
            assert classify(bytes(packet) + bytes(packet)) == DUPLICATE
            changed = av.Packet(data)
            changed.stream, changed.pts, changed.dts = stream, packet.pts, packet.dts
            changed.time_base, changed.is_keyframe = packet.time_base, packet.is_keyframe
            new.mux(changed)
    every = read_frames(names[0], times=[k / 25 for k in range(COUNT)]).pixels
    for k in range(COUNT - 1):
        shown = k - (k % 12 == 11)
        assert torch.equal(read_frames(names[1], times=[k / 25]).pixels[0], every[shown]), k
