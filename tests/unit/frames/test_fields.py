"""H.264 whose fields have packets of their own: two of them are one picture."""

from __future__ import annotations

import io
from fractions import Fraction
from pathlib import Path

import av
import pytest
import torch

from fourdthinker.errors import VideoError
from fourdthinker.frames import read_frames
from fourdthinker.frames.probing import probe
from tests.h264 import field_pictures
from tests.oracle.marks import mark_of

COUNT, RATE = 36, 25
FIELD = 1800  # in units of 1/90000 s


def written(path: Path, mixed: bool) -> None:
    pictures = field_pictures(COUNT, mixed=mixed)
    raw = b"".join(packet for packets, _, _ in pictures for packet in packets)
    if path.suffix == ".h264":
        path.write_bytes(raw)
        return
    with av.open(io.BytesIO(raw), format="h264") as source, av.open(str(path), "w") as container:
        stream = container.add_stream_from_template(source.streams.video[0])
        stream.time_base = Fraction(1, 90000)
        for place, (packets, number, key) in enumerate(pictures):
            for half, data in enumerate(packets):
                packet = av.Packet(data)
                packet.stream, packet.time_base = stream, Fraction(1, 90000)
                packet.is_keyframe = key and not half
                packet.pts = (2 * number + 4 + half) * FIELD
                packet.dts, packet.duration = (2 * place + half) * FIELD, 2 * FIELD // len(packets)
                container.mux(packet)


@pytest.mark.parametrize("mixed", [False, True])
@pytest.mark.parametrize("suffix", ["h264", "ts", "mkv", "mp4"])
@pytest.mark.parametrize("threads", [1, 3])
def test_fields_in_packets_of_their_own(tmp_path: Path, suffix: str, mixed: bool, threads: int) -> None:
    path = tmp_path / f"c.{suffix}"
    written(path, mixed)
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        known = probe(path)
        assert (known.frames, known.times_from) == (COUNT, "rate" if suffix == "h264" else "container")
        assert known.end - known.begin == pytest.approx(COUNT / RATE, abs=0.002)
        times = [known.begin + (number + 0.75) / RATE for number in range(COUNT)]
        for numbers in (range(COUNT), [3, 14, 27], *([number] for number in range(0, COUNT, 5))):
            pixels = read_frames(path, times=[times[number] for number in numbers]).pixels
            assert [getattr(mark_of(shown), "number", None) for shown in pixels] == list(numbers)
    finally:
        torch.set_num_threads(before)


def test_a_field_that_stands_alone_is_an_error(tmp_path: Path) -> None:
    """FFmpeg shows none of it: another picture would be taken for it."""
    path = tmp_path / "c.mp4"
    pictures = field_pictures(COUNT, mixed=False)
    raw = b"".join(packet for packets, _, _ in pictures for packet in packets)
    with av.open(io.BytesIO(raw), format="h264") as source, av.open(str(path), "w") as container:
        stream = container.add_stream_from_template(source.streams.video[0])
        for place, (packets, number, key) in enumerate(pictures):
            packet = av.Packet(packets[0] if number == 5 else b"".join(packets))
            packet.stream, packet.time_base, packet.is_keyframe = stream, Fraction(1, RATE), key
            packet.pts, packet.dts, packet.duration = number + 2, place, 1
            container.mux(packet)
    begin = probe(path).begin
    with pytest.raises(VideoError, match="cannot be decoded"):
        read_frames(path, times=[begin + 5.5 / RATE])
    for number in range(4):
        found = mark_of(read_frames(path, times=[begin + (number + 0.5) / RATE]).pixels[0])
        assert getattr(found, "number", None) == number
