"""What a probe says of files whose first picture FFmpeg does not decode."""

from __future__ import annotations

import io
import struct
from pathlib import Path

import pytest
from PIL import ExifTags, Image

from fourdthinker.errors import VideoError
from fourdthinker.frames import probe, read_frames
from tests.clips import make_clip


def test_a_damaged_first_picture_is_a_named_error(tmp_path: Path) -> None:
    path = make_clip(tmp_path / "a.avi", range(0, 300, 100), codec="mjpeg", pixel_format="yuvj420p")
    data = bytearray(path.read_bytes())
    start = data.index(b"\xff\xd8\xff")
    data[start + 2 : start + 600] = bytes(598)
    path.write_bytes(data)
    with pytest.raises(VideoError, match=r"a\.avi"):
        probe(path)


def test_an_animated_png_of_one_bit_is_composed(tmp_path: Path) -> None:
    """FFmpeg's decoder does not know it."""
    pictures = [Image.new("1", (16, 8), k) for k in (0, 1)]
    out = io.BytesIO()
    pictures[0].save(out, "PNG", save_all=True, append_images=pictures[1:], duration=100)
    path = tmp_path / "a.png"
    path.write_bytes(out.getvalue())
    found = probe(path)
    assert (found.size, found.frames) == ((8, 16), 2)


@pytest.mark.parametrize(("suffix", "turns"), [("jpg", 1), ("png", 0), ("bmp", 0), ("webp", 0), ("tif", 0)])
def test_an_image_is_a_video_of_one_frame_here_too(tmp_path: Path, suffix: str, turns: int) -> None:
    path, exif = tmp_path / f"a.{suffix}", Image.Exif()
    exif[ExifTags.Base.Orientation] = 8  # turned by a quarter
    picture = Image.new("RGB", (40, 30), (9, 99, 199))
    picture.save(path, **({"exif": exif} if turns else {}))
    for source in (path, path.read_bytes()):
        found, frames = probe(source), read_frames(source, out="uint8", times=[0.0])
        assert (found.frames, found.begin, found.end, found.rate, found.fault) == (1, 0.0, 0.0, 0.0, None)
        assert (found.size, found.orientation.quarter_turns) == ((30, 40), turns)
        assert frames.pixels is not None
        assert frames.pixels.shape[1:3] == ((40, 30) if turns else (30, 40))
    path.write_bytes(path.read_bytes()[:60])
    with pytest.raises(VideoError, match="not a readable picture"):
        probe(path)


def test_a_duration_beyond_the_last_packet_is_no_damage(tmp_path: Path) -> None:
    path = make_clip(tmp_path / "a.webm", [0], codec="libvpx", pixel_format="yuv420p")
    data = path.read_bytes()
    element = b"\x44\x89\x88"  # Duration, of eight bytes
    assert data.count(element) == 1
    begin = data.index(element) + 3
    path.write_bytes(data[:begin] + struct.pack(">d", 1000.0) + data[begin + 8 :])
    found, frames = probe(path), read_frames(path)
    assert (found.frames, found.begin, found.fault) == (1, 0.0, None)
    assert (frames.fault, frames.shown) == (None, [0.0] * len(frames.seconds))
