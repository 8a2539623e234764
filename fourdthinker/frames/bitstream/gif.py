"""GIF: the blocks of a file and of a picture.

Source: GIF89a specification, 15 (data sub-blocks, which end with one of length 0), 17 to 26 (the blocks).
"""

from __future__ import annotations

from dataclasses import dataclass

SIGNATURES = (b"GIF87a", b"GIF89a")
SCREEN, IMAGE = 13, 10  # bytes of signature and screen descriptor, and of an image descriptor
EXTENSION_BLOCK, IMAGE_BLOCK, TRAILER = 0x21, 0x2C, 0x3B
CUT = "its blocks end before the picture does"
_CONTROL, _PLAIN_TEXT = 0xF9, 0x01  # labels of extensions
LEAST, DEFAULT = 2, 10  # hundredths of a second
_TRANSPARENT = 1  # bit of a control extension


@dataclass(frozen=True)
class Picture:
    """What a packet of GIF holds: the blocks up to a picture, and the picture.

    screen: (height, width) of the canvas, and colours: its table, where the packet begins a file. box: (left,
    top, width, height). table: the picture's own colours, or b"". transparent: the index that is not drawn.
    disposal: what becomes of the box afterwards. interlaced, data: the coded indices, as they stand.
    """

    screen: tuple[int, int] | None
    colours: bytes
    box: tuple[int, int, int, int]
    table: bytes
    transparent: int | None
    disposal: int
    interlaced: bool
    data: bytes


def picture(data: bytes) -> Picture | None:
    """The first picture in the data of a packet, or of a file; None where they hold none.

    Raises:
        ValueError: they end before it does, or hold what is no block of GIF.
    """
    position, screen, colours = 0, None, b""
    if data[:6] in SIGNATURES:
        _within(data, SCREEN)
        screen = _number(data, 8), _number(data, 6)
        position = SCREEN + _colour_table(data[10])
        colours = data[SCREEN:position]
    transparent, disposal = None, 0
    while position < len(data) and data[position] != TRAILER:
        end = _end_of_block(data, position)
        if data[position] == EXTENSION_BLOCK:
            if data[position + 1] == _CONTROL and data[position + 2] >= 4:
                packed = data[position + 3]
                disposal = packed >> 2 & 7
                transparent = data[position + 6] if packed & _TRANSPARENT else None
            position = end
        else:
            packed, begin = data[position + 9], position + IMAGE + _colour_table(data[position + 9])
            left, top, width, height = (_number(data, position + k) for k in (1, 3, 5, 7))
            return Picture(
                screen, colours, (left, top, width, height), data[position + IMAGE : begin], transparent,
                disposal, bool(packed & 0x40), data[begin:end],
            )  # fmt: skip
    return None


def in_packets(data: bytes) -> bytes:
    """A GIF file as FFmpeg's demuxer (8.0) makes one packet of each picture, with the right times.

    Of extensions between pictures it makes packets of their own, and times of pictures without a control
    extension are those of the one before. So each picture gets one, and all other extensions are left out.
    Delays below LEAST, which no viewer keeps, become DEFAULT. A picture that is cut off stays as it is; what
    follows what is no block is left out (`broken` tells of it); what follows the trailer is another file.

    Raises:
        Text: it has text that a viewer must draw.
    """
    position = _first_block(data)
    parts, control = [data[:position]], b"\0\0\0\0"
    try:
        while data[position] != TRAILER:
            end = _end_of_block(data, position)
            if data[position] == IMAGE_BLOCK:
                delay = int.from_bytes(control[1:3], "little")
                delay = DEFAULT if delay < LEAST else delay
                packed = control[:1] + delay.to_bytes(2, "little") + control[3:]
                parts += [b"!\xf9\4", packed, b"\0", data[position:end]]
                control = b"\0\0\0\0"
            elif data[position + 1] == _CONTROL and data[position + 2] >= 4:
                control = data[position + 3 : position + 7]
            elif data[position + 1] == _PLAIN_TEXT:
                raise Text
            position = end
    except (IndexError, ValueError):
        if data[position : position + 1] == bytes([IMAGE_BLOCK]):
            return b"".join([*parts, data[position:]])
    return b"".join([*parts, bytes([TRAILER])])


def broken(data: bytes) -> bool:
    """Whether something else than a block of GIF, or part of an extension, stands where a picture might.

    Not so of a picture that is cut off, which is an error by itself, and of a file that ends behind a whole
    block, without its trailer: all viewers take that for the end.
    """
    position = _first_block(data)
    try:
        while data[position] != TRAILER:
            position = _end_of_block(data, position)
    except (IndexError, ValueError):
        return data[position : position + 1] not in (b"", bytes([IMAGE_BLOCK]))
    return False


class Text(Exception):
    """A viewer must draw text (a plain text extension)."""


def _first_block(data: bytes) -> int:
    return SCREEN + (_colour_table(data[10]) if len(data) > 10 else 0)


def _end_of_block(data: bytes, position: int) -> int:
    """Where an extension or a picture ends. ValueError: the data end before, or it is neither."""
    if data[position] == EXTENSION_BLOCK:
        return _end_of_blocks(data, position + 2)
    if data[position] != IMAGE_BLOCK:
        raise ValueError(f"a block of type {data[position]}, which GIF does not have")
    _within(data, position + IMAGE)
    return _end_of_blocks(data, position + IMAGE + _colour_table(data[position + 9]) + 1)


def _number(data: bytes, position: int) -> int:
    return int.from_bytes(data[position : position + 2], "little")


def _within(data: bytes, end: int) -> None:
    if end > len(data):
        raise ValueError(CUT)


def _colour_table(packed: int) -> int:
    """Bytes of the colour table that a descriptor announces."""
    return 3 << (packed & 7) + 1 if packed & 0x80 else 0


def _end_of_blocks(data: bytes, position: int) -> int:
    """Where a chain of sub-blocks ends."""
    while position < len(data):
        length = data[position]
        position += 1 + length
        if not length:
            return position
    raise ValueError(CUT)
