"""H.263 and H.263+: which pictures are coded without reference to others.

FFmpeg's parser calls every picture of some files a keyframe. Source: ITU-T H.263 (2005), 5.1.
"""

from __future__ import annotations

import re

from fourdthinker.frames.bitstream.pictures import Data, Test

_START = re.compile(rb"\0\0[\x80-\x83]")  # of a picture, 22 bits; FFmpeg passes over what stands before it
_SEARCHED = 64  # bytes
_HEAD = 8  # bytes: up to the picture's type, wherever it stands
# Bits from the start: of the source format, three of which say that a longer header follows; of the type in a
# short header, one bit. In a longer one three bits there say whether its first part of 18 bits stands before
# its type of three.
_FORMAT, _LONGER = 35, 7
_TYPE = 38
_LONG_TYPE, _FIRST_PART = 41, 18


def begins(extradata: bytes) -> Test:
    """Whether decoding can begin at a picture: an I-picture. The container's header does not matter."""
    return _is_intra


def _is_intra(data: Data) -> bool:
    searched = bytes(data[:_SEARCHED])
    start = _START.search(searched)
    head = searched[start.start() :][:_HEAD] if start else b""
    if len(head) < _HEAD:
        return False
    bits = int.from_bytes(head, "big")

    def field(first: int, count: int) -> int:
        return bits >> (8 * _HEAD - first - count) & ((1 << count) - 1)

    if field(_FORMAT, 3) != _LONGER:
        return field(_TYPE, 1) == 0
    part = field(_TYPE, 3)
    return part in (0, 1) and field(_LONG_TYPE + _FIRST_PART * part, 3) == 0
