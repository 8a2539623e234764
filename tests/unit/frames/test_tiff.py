"""TIFF whose strips are not all there: a named error, never a picture of zeros."""

from __future__ import annotations

import struct
import zlib
from collections.abc import Callable

import numpy as np
import pytest

from fourdthinker.errors import VideoError
from fourdthinker.frames import read_frames
from fourdthinker.frames.image_file import load_image

PIXELS = np.random.default_rng(0).integers(1, 256, (8, 6, 3), dtype=np.uint8)
Change = Callable[[list[int], list[int]], None]  # of the offsets and the lengths of strips


def tiff(planar: int, rows: int, change: Change | None = None, compression: int = 1) -> bytes:
    """PIXELS in strips of so many rows; planar 2: of each colour apart."""
    planes = [PIXELS[..., k] for k in range(3)] if planar == 2 else [PIXELS]
    strips = [plane[top : top + rows].tobytes() for plane in planes for top in range(0, 8, rows)]
    strips = [zlib.compress(strip) for strip in strips] if compression == 8 else strips
    data, offsets = b"II*\0\0\0\0\0", []
    for strip in strips:
        offsets.append(len(data))
        data += strip
    counts = [len(strip) for strip in strips]
    if change is not None:
        change(offsets, counts)
    tags = [(256, [6]), (257, [8]), (258, [8, 8, 8]), (259, [compression]), (262, [2]), (273, offsets)]
    tags += [(277, [3]), (278, [rows]), (279, counts), (284, [planar])]
    begin = len(data)
    behind, directory = begin + 2 + 12 * len(tags) + 4, struct.pack("<H", len(tags))
    more = b""
    for tag, values in tags:
        content = struct.pack(f"<{len(values)}I", *values)
        if len(content) > 4:
            content, more = struct.pack("<I", behind + len(more)), more + content
        directory += struct.pack("<HHI", tag, 4, len(values)) + content.ljust(4, b"\0")
    return data[:4] + struct.pack("<I", begin) + data[8:] + directory + b"\0\0\0\0" + more


def lost(offsets: list[int], counts: list[int]) -> None:
    del offsets[-1], counts[-1]


def nowhere(offsets: list[int], counts: list[int]) -> None:
    offsets[-1] = counts[-1] = 0


def shorter(offsets: list[int], counts: list[int]) -> None:
    counts[-1] -= 1


@pytest.mark.parametrize("compression", [1, 8])
@pytest.mark.parametrize("rows", [3, 8])
@pytest.mark.parametrize("planar", [1, 2])
def test_whole_files_are_read(planar: int, rows: int, compression: int) -> None:
    assert np.array_equal(load_image(tiff(planar, rows, compression=compression)), PIXELS)


@pytest.mark.parametrize(
    ("planar", "rows", "change", "cause"),
    [
        (2, 8, lost, "it has 2 of the 3 strips that its size takes"),
        (2, 3, lost, "it has 8 of the 9 strips"),
        (1, 3, lost, "it has 2 of the 3 strips"),
        (2, 8, nowhere, "some of its strips are missing"),
        (1, 3, nowhere, "some of its strips are missing"),
        (2, 8, shorter, "one of its strips is shorter than its rows: 47 bytes"),
        (1, 3, shorter, "one of its strips is shorter than its rows: 35 bytes"),
    ],
)
def test_missing_strips(planar: int, rows: int, change: Change, cause: str) -> None:
    for read in (load_image, read_frames):
        with pytest.raises(VideoError, match=cause):
            read(tiff(planar, rows, change))
