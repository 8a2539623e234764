"""H.263 and H.263+: which pictures are coded without reference to others.

FFmpeg's parser calls every picture of some files a keyframe. Source: ITU-T H.263 (2005), 5.1.
"""

from __future__ import annotations

from fourdthinker.frames.bitstream.pictures import Data, Test

_HEAD = 8  # bytes: up to the picture's type, wherever it stands
_START, _START_BITS = 0x20, 22
_FORMAT, _EXTENDED = (
    35,
    7,
)  # where the source format begins, and the one that says that a longer header follows
_TYPE = 38  # of a short header: one bit; in a long one, whether its first part is there
_LONG_TYPE, _FIRST_PART = 41, 18  # three bits, behind a first part of so many


def begins(extradata: bytes) -> Test:
    """Whether decoding can begin at a picture: an I-picture. The container's header does not matter."""
    return _is_intra


def _is_intra(data: Data) -> bool:
    head = bytes(data[:_HEAD])
    bits = int.from_bytes(head, "big")

    def field(start: int, count: int) -> int:
        return bits >> (8 * _HEAD - start - count) & ((1 << count) - 1)

    if len(head) < _HEAD or field(0, _START_BITS) != _START:
        return False
    if field(_FORMAT, 3) != _EXTENDED:
        return field(_TYPE, 1) == 0
    part = field(_TYPE, 3)
    return part in (0, 1) and field(_LONG_TYPE + _FIRST_PART * part, 3) == 0
