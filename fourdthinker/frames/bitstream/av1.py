"""AV1: which temporal units nothing refers to, where decoding can begin, and where chroma lies.

Sources: AV1 bitstream specification 5.5 and 5.9 (sequence and frame headers, refresh_frame_flags); AV1 codec
ISO media file format binding 2.3.3 (av1C).
"""

from __future__ import annotations

from collections.abc import Iterator

from fourdthinker.frames.bitstream.bits import Bits
from fourdthinker.frames.bitstream.pictures import NON_REFERENCE, RANDOM_ACCESS, Data, Flags


def flags(extradata: bytes) -> Flags:
    """The flags of each temporal unit, in decoding order; `extradata` is av1C or empty."""
    return _Stream(extradata).flags


def siting(extradata: bytes) -> str:
    """Where the chroma samples lie: "left", or "topleft" where av1C says so."""
    if len(extradata) > 3 and extradata[0] == 0x81:
        return "topleft" if extradata[2] & 3 == 2 else "left"
    return "left"


def sequence_header(extradata: bytes) -> bytes:
    """The units of av1C: four bytes, then the sequence header."""
    return extradata[4:] if len(extradata) > 4 and extradata[0] & 0x80 else b""


class _Stream:
    """A temporal unit is non-reference when no frame in it refreshes a reference."""

    def __init__(self, extradata: bytes) -> None:
        # Bits of frame ids, screen content tools, integer motion, bits of order hints.
        self.header: tuple[int, int, int, int] | None = None
        if len(extradata) > 4 and extradata[0] == 0x81:
            self.flags(extradata[4:])

    def flags(self, data: Data) -> int:
        frames, non_reference, random_access = 0, True, False
        try:
            for kind, payload in _obus(data):
                if kind == 1:
                    self.header = _sequence_header(Bits(payload))
                elif kind in (3, 6):
                    frames += 1
                    refreshes, key = _frame_header(Bits(payload), self.header)
                    non_reference, random_access = non_reference and not refreshes, random_access or key
        except ValueError:
            return 0
        return (NON_REFERENCE if frames and non_reference else 0) | (RANDOM_ACCESS if random_access else 0)


def _obus(data: Data) -> Iterator[tuple[int, bytes]]:
    offset = 0
    while offset < len(data):
        head = data[offset]
        offset += 1 + (head >> 2 & 1)
        size = len(data) - offset
        if head & 2:
            size = shift = 0
            while True:
                if offset >= len(data) or shift > 28:
                    raise ValueError("the size of an OBU ends early")
                size |= (data[offset] & 127) << shift
                shift, offset = shift + 7, offset + 1
                if not data[offset - 1] & 128:
                    break
        if size > len(data) - offset:
            raise ValueError("an OBU is longer than its packet")
        yield head >> 3 & 15, bytes(data[offset : offset + min(size, 64)])
        offset += size


def _sequence_header(bits: Bits) -> tuple[int, int, int, int] | None:
    bits.take(3)
    if bits.take(2) & 1:
        return None  # reduced header of a still picture
    if bits.take(1):
        bits.take(64)
        if bits.take(1):  # equal intervals: a number in Exp-Golomb-like code
            zeros = 0
            while not bits.take(1):
                zeros += 1
            bits.take(zeros)
        if bits.take(1):
            return None  # decoder model: frame headers hold more than is read here
    delays = bits.take(1)
    for _ in range(bits.take(5) + 1):
        bits.take(12)
        if bits.take(5) > 7:
            bits.take(1)
        if delays and bits.take(1):
            bits.take(4)
    width, height = bits.take(4) + 1, bits.take(4) + 1
    bits.take(width + height)
    identified = 0
    if bits.take(1):
        identified = bits.take(4) + 2
        identified += bits.take(3) + 1
    bits.take(7)
    ordered = bits.take(1)
    if ordered:
        bits.take(2)
    screen = 2 if bits.take(1) else bits.take(1)
    integer = 2
    if screen:
        integer = 2 if bits.take(1) else bits.take(1)
    return identified, screen, integer, bits.take(3) + 1 if ordered else 0


def _frame_header(bits: Bits, header: tuple[int, int, int, int] | None) -> tuple[bool, bool]:
    """(some reference is refreshed, or that is not known; a shown key frame, at which all begins anew)."""
    if header is None:
        return True, False
    identified, screen, integer, order = header
    if bits.take(1):
        return True, False  # shows an earlier frame, which may be a key frame and refresh all
    kind, shown = bits.take(2), bits.take(1)
    if kind == 3 or (kind == 0 and shown):
        return True, kind == 0
    if not shown:
        bits.take(1)
    resilient = bits.take(1)
    bits.take(1)
    if (bits.take(1) if screen == 2 else screen) and integer == 2:
        bits.take(1)
    bits.take(identified + 1 + order)
    if kind == 1 and not resilient:
        bits.take(3)
    return bits.take(8) != 0, False
