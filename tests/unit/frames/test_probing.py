"""What a probe says of files whose first picture FFmpeg does not decode."""

from __future__ import annotations

import io
from pathlib import Path

import pytest
from PIL import Image

from fourdthinker.errors import VideoError
from fourdthinker.frames import probe
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
