"""Animated PNG: the chunks of a picture.

Source: PNG specification, third edition, 5.3 (chunks), 11.2.1 (IHDR), 11.3.6 (acTL, fcTL, fdAT).
"""

from __future__ import annotations

import mmap
import struct
import zlib
from collections.abc import Iterator
from dataclasses import dataclass

SIGNATURE = b"\x89PNG\r\n\x1a\n"
_HEADER = 13  # bytes of IHDR
LEAST, DEFAULT = 11, (1, 10)  # milliseconds, and the delay that takes the place of less, as in all browsers
_DELAY = slice(20, 24)  # of a control chunk
_SHARED = (b"PLTE", b"tRNS")  # chunks of the file that each of its pictures needs


Readable = bytes | mmap.mmap


@dataclass(frozen=True)
class Picture:
    """One picture of an animation.

    number: of its control chunk; following: of the next picture's, if none is missing. box: (left, top,
    width, height). disposal: what becomes of the box afterwards. over: laid over what is
    there, by its alpha, instead of in its place. data: coded pixels.
    """

    number: int
    following: int
    box: tuple[int, int, int, int]
    disposal: int
    over: bool
    data: bytes


def chunks(data: bytes) -> Iterator[tuple[bytes, bytes]]:
    """(type, data) of each chunk. ValueError: one is cut off, or its checksum is wrong."""
    position = 0
    while position < len(data):
        if position + 12 > len(data):
            raise ValueError("its chunks end before the picture does")
        length, kind = struct.unpack_from(">I4s", data, position)
        end = position + 12 + length
        if end > len(data):
            raise ValueError("its chunks end before the picture does")
        content = data[position + 8 : end - 4]
        if not _sound(kind, content, data[end - 4 : end]):
            raise ValueError(f"the checksum of its {kind.decode('latin-1')} chunk is wrong")
        yield kind, content
        position = end


def picture(data: bytes) -> Picture | None:
    """The picture of a packet; None where it holds none.

    Raises:
        ValueError: chunks are cut off, damaged or missing.
    """
    control, parts, expected = None, list[bytes](), 0
    for kind, content in chunks(data):
        if kind == b"fcTL":
            if control is not None or len(content) != 26:
                raise ValueError("two pictures in one, or a control chunk of another length")
            control = struct.unpack(">IIIIIHHBB", content)
            expected = control[0] + 1
        elif kind == b"IDAT":
            parts.append(content)
        elif kind == b"fdAT":
            if int.from_bytes(content[:4], "big") != expected:
                raise ValueError("chunks of a picture are missing")
            parts.append(content[4:])
            expected += 1
    if control is None or not parts:
        return None
    number, width, height, left, top, _, _, disposal, blend = control
    if disposal > 2 or blend > 1:
        raise ValueError(f"operations {disposal} and {blend}, which PNG does not have")
    return Picture(number, expected, (left, top, width, height), disposal, blend == 1, b"".join(parts))


def moves(data: Readable) -> bool:
    """Whether a file is an animated PNG: a chunk before the pixels says so."""
    kinds = [kind for kind, _, _ in _heads(data)]
    return b"acTL" in kinds[: kinds.index(b"IDAT")] if b"IDAT" in kinds else b"acTL" in kinds


def broken(data: Readable) -> bool:
    """Whether an animated PNG has another number of pictures than it announces, or no end."""
    heads = list(_heads(data))
    kinds = [kind for kind, _, _ in heads]
    announced = next(
        (int.from_bytes(data[begin : begin + 4], "big") for kind, begin, _ in heads if kind == b"acTL"), 0
    )
    return announced != kinds.count(b"fcTL") or kinds[-1:] != [b"IEND"]


def with_delays(data: bytes) -> bytes:
    """An animated PNG with the times of all browsers: a delay below LEAST becomes DEFAULT."""
    found = bytearray(data)
    for kind, begin, end in _heads(data):
        if kind == b"fcTL" and end - begin == 26 and _sound(kind, data[begin:end], data[end : end + 4]):
            content = bytearray(data[begin:end])
            numerator, denominator = struct.unpack(">HH", content[_DELAY])
            if 1000 * numerator < LEAST * (denominator or 100):
                content[_DELAY] = struct.pack(">HH", *DEFAULT)
                found[begin - 8 : end + 4] = _chunk(kind, bytes(content))
    return bytes(found)


def _heads(data: Readable) -> Iterator[tuple[bytes, int, int]]:
    """(type, where the content begins, where it ends) of each whole chunk of a file."""
    position = len(SIGNATURE)
    while position + 12 <= len(data):
        length, kind = struct.unpack(">I4s", data[position : position + 8])
        position += 12 + length
        if position > len(data):
            return
        yield kind, position - 4 - length, position - 4
        if kind == b"IEND":
            return


def _sound(kind: bytes, content: bytes, checksum: bytes) -> bool:
    return zlib.crc32(kind + content) == int.from_bytes(checksum, "big")


def size_of(extradata: bytes) -> tuple[int, int]:
    """(height, width) of the canvas."""
    header = next((content for kind, content in chunks(extradata) if kind == b"IHDR"), b"")
    if len(header) != _HEADER:
        raise ValueError("it has no header")
    width, height = struct.unpack_from(">II", header)
    return height, width


def alone(extradata: bytes, picture: Picture) -> bytes:
    """A PNG file of one picture. extradata: the chunks of the animation before its pictures."""
    parts = [SIGNATURE]
    for kind, content in chunks(extradata):
        if kind == b"IHDR":
            parts.append(_chunk(kind, struct.pack(">II", *picture.box[2:]) + content[8:]))
        elif kind in _SHARED:
            parts.append(_chunk(kind, content))
    return b"".join([*parts, _chunk(b"IDAT", picture.data), _chunk(b"IEND", b"")])


def _chunk(kind: bytes, content: bytes) -> bytes:
    return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))
