"""MPEG-1, MPEG-2 and MPEG-4 part 2: where decoding can begin, and pictures that are not coded.

Sources: ISO/IEC 13818-2 6.3.9 (picture_coding_type); ISO/IEC 14496-2 6.2.3 (video object layer), 6.2.5
(vop_coded) and 6.3.5 (vop_coding_type).
"""

from __future__ import annotations

import re
from typing import NamedTuple

from fourdthinker.frames.bitstream.bits import Bits
from fourdthinker.frames.bitstream.pictures import DUPLICATE, NON_REFERENCE, Data, Flags, Test

PICTURE = b"\0\0\1\0"  # start code of a picture of MPEG-1 and MPEG-2
VOP = b"\0\0\1\xb6"  # start code of a picture of MPEG-4
UNCODED = 20  # bytes that one which is "not coded" hardly has, but for 0xff, which count seconds in its head


def mpeg2_begins(extradata: bytes) -> Test:
    """Whether decoding can begin at a picture: an I-picture, or data that do not tell."""
    return lambda data: field(bytes(data), PICTURE, 1, 3, 7) in (1, None)


def mpeg2_flags(extradata: bytes) -> Flags:
    """The flags of MPEG-1 and MPEG-2: NON_REFERENCE for B-pictures. The header does not matter."""
    return _mpeg2_flags


def _mpeg2_flags(data: Data) -> int:
    """NON_REFERENCE for a packet of B-pictures (two where they are fields), which nothing refers to."""
    whole, found, pictures = bytes(data), 0, 0
    while (found := whole.find(PICTURE, found) + len(PICTURE)) >= len(PICTURE):
        if found + 1 >= len(whole) or whole[found + 1] >> 3 & 7 != 3:
            return 0
        pictures += 1
    return NON_REFERENCE if pictures else 0


def mpeg4_begins(extradata: bytes) -> Test:
    """Whether decoding can begin at a picture: an I-picture; in interlaced streams only the first one."""
    return _Mpeg4Start(extradata).begins


def mpeg4_flags(extradata: bytes) -> Flags:
    """The flags of MPEG-4: DUPLICATE where a picture may be shown twice. The header does not matter."""
    return _mpeg4_flags


def field(data: bytes, start: bytes, offset: int, shift: int, mask: int) -> int | None:
    """A field of a byte behind the first start code of a picture.

    Args:
        data: of a packet.
        start: the start code.
        offset: of the byte, from the end of the start code.
        shift: bits below the field.
        mask: of the field, once shifted.

    Returns:
        Its value; None where there is no such byte.
    """
    found = data.find(start)
    index = found + len(start) + offset
    return data[index] >> shift & mask if found >= 0 and index < len(data) else None


def _mpeg4_flags(data: Data) -> int:
    """DUPLICATE where the decoder may show another packet's picture under this packet's stamp; else nothing.

    Of a "not coded" picture the decoder shows none, or at the end of the data the last one again; such a
    picture stands alone or follows a packet with several. B-pictures are not told, for the decoder takes the
    scale of interlaced ones from the first that it sees.
    """
    whole = bytes(data)
    found = whole.find(VOP)
    start = whole[found : found + 1024].replace(b"\xff", b"")
    return DUPLICATE if found < 0 or whole.find(VOP, found + 1) >= 0 or len(start) < UNCODED else 0


class _Mpeg4Start:
    """Where decoding of MPEG-4 can begin; in interlaced streams only at the first picture.

    FFmpeg takes the unit of distances between fields from the first B-picture that it meets after the header.
    """

    def __init__(self, extradata: bytes) -> None:
        self.interlaced, self.begun = _interlaced(extradata), False

    def begins(self, data: Data) -> bool:
        whole = bytes(data)
        kind = field(whole, VOP, 0, 6, 3)
        self.interlaced = self.interlaced or _interlaced(whole.partition(VOP)[0])
        if kind not in (0, None) or (self.interlaced and self.begun):
            return False
        self.begun = self.begun or kind == 0
        return True


class Layer(NamedTuple):
    """Of the header of a layer of MPEG-4.

    resolution: ticks a second; 0: the layer is no rectangle, and what follows is not read.
    """

    resolution: int
    interlaced: bool


def layer_of(head: bytes) -> Layer | None:
    """The last header of a layer in data of MPEG-4; None: there is none. ValueError if it ends early."""
    found = list(re.finditer(rb"\x00\x00\x01[\x20-\x2f]", head))
    if not found:
        return None
    bits = Bits(head[found[-1].end() : found[-1].end() + 64])
    bits.take(9)
    if bits.take(1):
        bits.take(7)
    if bits.take(4) == 15:  # an aspect ratio of its own
        bits.take(16)
    if bits.take(1):  # control parameters
        bits.take(3)
        if bits.take(1):
            bits.take(79)
    if bits.take(2):  # no rectangle
        return Layer(0, True)
    resolution = bits.take(17) & 0xFFFF
    bits.take(1)
    if bits.take(1):  # a fixed rate
        bits.take(ticks_size(resolution))
    bits.take(29)
    return Layer(resolution, bool(bits.take(1)))


def ticks_size(resolution: int) -> int:
    """Bits of a number of ticks within a second."""
    return max(1, (resolution - 1).bit_length())


def _interlaced(head: bytes) -> bool:
    """Whether the header of a layer of MPEG-4 says so, or cannot be read."""
    try:
        layer = layer_of(head)
    except ValueError:
        return True
    return layer is not None and layer.interlaced
