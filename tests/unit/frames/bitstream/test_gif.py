"""GIF files that are cut: the picture that is not whole is an error, and those before it are read."""

from __future__ import annotations

import io
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from fourdthinker.errors import VideoError
from fourdthinker.frames import FramePolicy, read_frames
from fourdthinker.frames.bitstream import gif
from tests.clips import make_clip

COUNT = 4
POLICY = FramePolicy(fps=10)
SCREEN = b"GIF89a\1\0\1\0\0\0\0"


@pytest.fixture(scope="module")
def pillow() -> bytes:
    """COUNT pictures of noise, a tenth of a second each."""
    rng = np.random.default_rng(0)
    pictures = [Image.fromarray(rng.integers(0, 256, (56, 56), dtype=np.uint8)) for _ in range(COUNT)]
    file = io.BytesIO()
    pictures[0].save(file, "GIF", save_all=True, append_images=pictures[1:], duration=100, comment=b"words")
    return file.getvalue()


def last_picture(data: bytes) -> int:
    """Where the descriptor of the last picture begins, in files without a colour table of its own."""
    return data.rindex(b"\x2c\0\0\0\0\x38\0\x38\0")


def test_a_whole_gif_is_read(pillow: bytes) -> None:
    assert len(read_frames(pillow, POLICY).seconds) == COUNT
    assert len(read_frames(pillow[:-1], POLICY).seconds) == COUNT  # without the trailer


@pytest.mark.parametrize("kept", ["descriptor", "colours", "half", "terminator"])
def test_a_cut_gif(pillow: bytes, kept: str) -> None:
    begin = last_picture(pillow)
    end = {"descriptor": begin + 6, "colours": begin + 11, "half": (begin + len(pillow)) // 2}
    data = pillow[: end.get(kept, len(pillow) - 2)]
    whole = read_frames(pillow, POLICY).pixels
    with pytest.raises(VideoError, match="its blocks end before the picture does"):
        read_frames(data, POLICY)
    found = read_frames(data, POLICY, partial=True)
    assert found.fault is not None
    assert np.array_equal(found.pixels, whole[: COUNT - 1])
    assert np.array_equal(read_frames(data, times=[0.0, 0.2]).pixels, whole[[0, 2]])


def test_a_gif_of_ffmpeg_is_whole(tmp_path: Path) -> None:
    path = make_clip(tmp_path / "a.gif", range(COUNT), codec="gif", base=10, pixel_format="rgb8")
    assert len(read_frames(path, POLICY).seconds) == COUNT


@pytest.mark.parametrize(
    ("data", "cause"),
    [
        (b"GIF89a\1\0", gif.CUT),
        (SCREEN + b",", gif.CUT),
        (SCREEN + b"!\xf9\4\0\0", gif.CUT),
        (b"noise", "a block of type 110"),
    ],
)
def test_what_is_no_picture(data: bytes, cause: str) -> None:
    with pytest.raises(ValueError, match=cause):
        gif.picture(data)


@pytest.mark.parametrize("data", [b"", b";", SCREEN, SCREEN + b"!\xfe\2hi\0;"])
def test_packets_without_a_picture(data: bytes) -> None:
    assert gif.picture(data) is None
