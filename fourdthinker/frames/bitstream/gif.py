"""GIF: whether the data of a picture are all there.

Source: GIF89a specification, 15 (data sub-blocks, which end with one of length 0), 17 to 26 (the blocks).
FFmpeg's decoder makes a picture of what it has, and says nothing where the rest is missing.
"""

from __future__ import annotations

from fourdthinker.frames.bitstream.pictures import Damage

SIGNATURES = (b"GIF87a", b"GIF89a")
SCREEN, IMAGE = 13, 10  # bytes of signature and screen descriptor, and of an image descriptor
EXTENSION_BLOCK, IMAGE_BLOCK = 0x21, 0x2C
CUT = "its blocks end before the picture does"


def damage(extradata: bytes) -> Damage:
    """The cause, where the data of a packet end within the blocks of its picture."""
    return lambda data: CUT if _cut(bytes(data)) else None


def _cut(data: bytes) -> bool:
    position = 0
    if data[:6] in SIGNATURES:
        if len(data) < SCREEN:
            return True
        position = SCREEN + _colour_table(data[10])
    while position < len(data):
        if data[position] == EXTENSION_BLOCK:
            position += 2
        elif data[position] == IMAGE_BLOCK:
            if position + IMAGE > len(data):
                return True
            position += IMAGE + _colour_table(data[position + 9]) + 1  # 1: the size of the first codes
            return _end_of_blocks(data, position) is None
        else:
            return False  # no picture, or not GIF: the decoder judges
        end = _end_of_blocks(data, position)
        if end is None:
            return True
        position = end
    return position > len(data)


def _colour_table(packed: int) -> int:
    """Bytes of the colour table that a descriptor announces."""
    return 3 << (packed & 7) + 1 if packed & 0x80 else 0


def _end_of_blocks(data: bytes, position: int) -> int | None:
    """Where a chain of sub-blocks ends; None: the data end before."""
    while position < len(data):
        length = data[position]
        position += 1 + length
        if not length:
            return position
    return None
