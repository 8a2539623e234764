"""Frames of VP8 and VP9."""

from __future__ import annotations

import pytest

from fourdthinker.frames.bitstream import vpx
from fourdthinker.frames.bitstream.pictures import NOT_SHOWN, RANDOM_ACCESS, ZEROS

DATA = bytes(range(40))


def test_frames_of_vp8_that_are_not_shown() -> None:
    classify = vpx.vp8_flags(b"")
    assert classify(b"\x10\0\0") == RANDOM_ACCESS
    assert classify(b"\x11\0\0") == 0
    assert classify(b"\x01\0\0") == NOT_SHOWN


@pytest.mark.parametrize(
    ("data", "found"),
    [
        (DATA + bytes(127) + DATA[1:], False),
        (DATA + bytes(128) + DATA, True),
        (DATA + bytes(128), False),  # fills up the end
        (b"", False),
    ],
)
def test_holes(data: bytes, found: bool) -> None:
    assert vpx.damage(b"")(data) == (ZEROS if found else None)
