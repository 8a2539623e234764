"""Containers that are wrong about keyframes, or hold empty packets: the right picture all the same."""

from __future__ import annotations

import random
import struct
from collections.abc import Sequence
from fractions import Fraction
from pathlib import Path

import av
import pytest
import torch

from fourdthinker.frames import read_frames
from tests.oracle import stamps
from tests.oracle.access import limits
from tests.oracle.coded import ENCODERS, add_stream, encoded
from tests.oracle.marks import mark_of

COUNT, RATE = 36, 25
HEAD = 8  # bytes of a chunk's name and size
KEY = 0x10  # AVIIF_KEYFRAME


def avi(path: Path, encoder: str) -> tuple[list[bytes], list[bool]]:
    """Write COUNT pictures; their data, and which are keyframes."""
    with av.open(str(path), "w") as output:
        stream = add_stream(output, ENCODERS[encoder], Fraction(RATE))
        packets = encoded(stream, ENCODERS[encoder], COUNT)
        stamps.write(packets, range(COUNT), range(COUNT), [1] * COUNT)
        for coded in packets:
            coded.packet.time_base = Fraction(1, RATE)
            output.mux(coded.packet)
    return [bytes(coded.packet) for coded in packets], [coded.key for coded in packets]


def rewrite(path: Path, chunks: Sequence[bytes], keys: Sequence[bool], indexed: int) -> None:
    """Give an AVI these chunks, of which the index lists the first ones."""
    head = path.read_bytes().partition(b"movi")[0][:-HEAD]
    body, entries = b"movi", b""
    for data, key in zip(chunks, keys, strict=True):
        entries += b"00dc" + struct.pack("<III", KEY * key, len(body), len(data))
        body += b"00dc" + struct.pack("<I", len(data)) + data + b"\0" * (len(data) % 2)
    index = entries[: 16 * indexed]
    whole = (
        head + b"LIST" + struct.pack("<I", len(body)) + body + b"idx1" + struct.pack("<I", len(index)) + index
    )
    path.write_bytes(b"RIFF" + struct.pack("<I", len(whole) - HEAD) + whole[HEAD:])


def check(path: Path, expected: Sequence[int]) -> None:
    """expected: the picture of each step."""
    times = [(place + 0.5) / RATE for place in range(len(expected))]
    before = torch.get_num_threads()
    try:
        for threads, room, seek in ((1, None, None), (2, 0, 5)):
            torch.set_num_threads(threads)
            with limits(room, seek):
                for places in (range(len(times)), *([place] for place in range(0, len(times), 4))):
                    pixels = read_frames(path, times=[times[place] for place in places]).pixels
                    found = [getattr(mark_of(picture), "number", None) for picture in pixels]
                    assert found == [expected[place] for place in places], (threads, places)
    finally:
        torch.set_num_threads(before)


@pytest.mark.parametrize("encoder", ["msmpeg4v3", "wmv2", "flv1", "h263p", "svq1", "mpeg4", "h264"])
@pytest.mark.parametrize("how", ["half an index", "some wrong"])
def test_pictures_that_only_the_container_calls_keyframes(tmp_path: Path, encoder: str, how: str) -> None:
    """Of pictures that the index of an AVI lacks, FFmpeg takes all for keyframes."""
    path = tmp_path / "c.avi"
    chunks, keys = avi(path, encoder)
    draw = random.Random(1)
    if how == "some wrong":
        keys = [key or draw.random() < 0.4 for key in keys]
    rewrite(path, chunks, keys, COUNT // 2 if how == "half an index" else COUNT)
    check(path, range(COUNT))


@pytest.mark.parametrize("encoder", ["mpeg4", "mjpeg"])
def test_empty_samples_show_the_picture_before_on(tmp_path: Path, encoder: str) -> None:
    """Decoders and readers take an empty packet for the end of the data."""
    path = tmp_path / "c.mp4"
    with av.open(str(path), "w") as output:
        stream = add_stream(output, ENCODERS[encoder], Fraction(RATE))
        for coded in encoded(stream, ENCODERS[encoder], COUNT):
            output.mux(coded.packet)
    data = bytearray(path.read_bytes())
    begin = data.index(b"stsz") + 16  # sizes of the samples, behind their number
    sizes = struct.unpack_from(f">{COUNT}I", data, begin)
    struct.pack_into(f">{COUNT}I", data, begin, *sizes[:7], 0, *sizes[7:-1])
    path.write_bytes(data)
    with av.open(str(path)) as container:
        assert 0 in [packet.size for packet in container.demux(video=0)][:-1]
    check(path, [*range(7), *range(6, COUNT - 1)])
