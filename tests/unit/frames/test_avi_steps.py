"""AVI: a chunk without data is a step of the clip, in which the picture before is shown on."""

from __future__ import annotations

import struct
from pathlib import Path

import pytest

from fourdthinker.frames import read_frames
from tests.oracle.files import Recipe, make
from tests.oracle.marks import mark_of

COUNT, ENTRY = 9, struct.Struct("<4sIII")


def with_empty_chunk(data: bytes, place: int) -> bytes:
    """The file with an empty chunk before chunk `place`, in its index too."""
    movi, index = data.index(b"movi"), data.index(b"idx1")
    (length,) = struct.unpack_from("<I", data, index + 4)
    entries = [ENTRY.unpack_from(data, index + 8 + k) for k in range(0, length, ENTRY.size)]
    at = movi + entries[place][2]
    chunks = data[movi:at] + b"00dc\0\0\0\0" + data[at:index]
    moved = [(a, b, offset + 8 * (k >= place), size) for k, (a, b, offset, size) in enumerate(entries)]
    moved.insert(place, (b"00dc", 0, entries[place][2], 0))
    table = b"".join(ENTRY.pack(*entry) for entry in moved)
    body = data[: movi - 4] + struct.pack("<I", len(chunks)) + chunks
    body += b"idx1" + struct.pack("<I", len(table)) + table
    return body[:4] + struct.pack("<I", len(body) - 8) + body[8:]


@pytest.mark.parametrize("place", [1, 5])
def test_an_empty_chunk_shows_the_picture_before_once_more(tmp_path: Path, place: int) -> None:
    data = make(Recipe("mpeg4-b", "avi", count=COUNT), tmp_path).path.read_bytes()
    frames = read_frames(with_empty_chunk(data, place), times=[(k + 0.5) / 25 for k in range(COUNT + 1)])
    numbers = [getattr(mark_of(picture), "number", None) for picture in frames.pixels]
    assert numbers == [*range(place), *range(place - 1, COUNT)]
