"""H.264 written by hand (I_PCM, ITU-T H.264 7.3): pictures of fields, which no encoder here makes."""

from __future__ import annotations

import numpy as np

from tests.oracle.marks import marked

WIDTH, HEIGHT = 96, 64
_FRAME_NUMBER, _ORDER = 8, 6  # bits


class _Writer:
    def __init__(self) -> None:
        self.bits: list[int] = []

    def put(self, *fields: tuple[int, int]) -> _Writer:
        """Fields of (value, bits); 0 bits: Exp-Golomb."""
        for value, size in fields:
            value, size = (value, size) if size else (value + 1, 2 * (value + 1).bit_length() - 1)
            self.bits += [value >> k & 1 for k in range(size - 1, -1, -1)]
        return self

    def data(self, *, stop: bool = False) -> bytes:
        """Filled up with zeros, behind the bit that ends a unit."""
        return np.packbits(np.array(self.bits + [1] * stop, np.uint8)).tobytes()


def _unit(reference: bool, kind: int, body: bytes) -> bytes:
    out = bytearray([reference << 6 | kind])
    zeros = 0
    for byte in body:
        if zeros >= 2 and byte <= 3:
            out.append(3)
            zeros = 0
        out.append(byte)
        zeros = 0 if byte else zeros + 1
    return b"\0\0\0\1" + bytes(out)


def parameter_sets(*, leaves_out: bool = False) -> bytes:
    """Main profile with fields, at 25 pictures a second, two of them reordered at most.

    leaves_out: numbers of frames may be left out."""
    sequence = _Writer().put(
        (77, 8), (0, 8), (31, 8), (0, 0), (_FRAME_NUMBER - 4, 0), (0, 0), (_ORDER - 4, 0)
    )
    sequence.put((4, 0), (leaves_out, 1), (WIDTH // 16 - 1, 0), (HEIGHT // 32 - 1, 0), (0, 2), (2, 2), (1, 1))
    sequence.put((0, 4), (1, 1), (1, 32), (50, 32), (1, 1), (0, 3), (3, 2), (0, 0), (0, 0), (10, 0), (10, 0))
    sequence.put((2, 0), (4, 0))
    picture = _Writer().put((0, 0), (0, 0), (0, 2), (0, 0), (0, 0), (0, 0), (0, 3))
    picture.put((0, 0), (0, 0), (0, 0), (0, 3))
    return _unit(True, 7, sequence.data(stop=True)) + _unit(True, 8, picture.data(stop=True))


def coded(
    number: int,
    order: int,
    frame_number: int,
    *,
    idr: bool,
    reference: bool,
    bottom: bool | None,
    anew: bool = False,
) -> bytes:
    """The frame (bottom None) or one field of the picture marked with a number, as one slice.

    anew: order counts begin anew behind it (memory_management_control_operation 5)."""
    head = _Writer().put((0, 0), (7, 0), (0, 0), (frame_number % (1 << _FRAME_NUMBER), _FRAME_NUMBER))
    head.put((0, 1)) if bottom is None else head.put((1, 1), (bottom, 1))
    if idr:
        head.put((0, 0))
    head.put((order % (1 << _ORDER), _ORDER))
    if reference and anew:
        head.put((1, 1), (5, 0), (0, 0))
    elif reference:
        head.put((0, 2 if idr else 1))
    head.put((0, 0))
    luma = np.clip(marked(number, HEIGHT, WIDTH)[..., 0], 3, 250).astype(np.uint8)
    luma = luma if bottom is None else luma[int(bottom) :: 2]
    parts = []
    for row in range(0, len(luma), 16):
        for column in range(0, WIDTH, 16):
            parts.append(head.put((25, 0)).data() + luma[row : row + 16, column : column + 16].tobytes())
            parts.append(b"\x80" * 128)
            head = _Writer()
    return _unit(reference, 5 if idr else 1, b"".join(parts) + b"\x80")


def field_pictures(count: int, *, mixed: bool) -> list[tuple[list[bytes], int, bool]]:
    """(packets, number, keyframe) of pictures in decoding order (I P B B P ..., 12 a group).

    Each is two fields in packets of their own; mixed: every third one is a frame.
    """
    order = []
    for first in range(0, count, 12):
        order.append((first, first, True))
        for number in range(first + 1, first + 12, 3):
            last = min(number + 2, first + 11)
            order += [(last, first, True), *((b, first, False) for b in range(number, last))]
    pictures, frame_number = [], 0
    for number, first, reference in order:
        idr = number == first
        frame_number = 0 if idr else frame_number
        halves: list[bool | None] = [None] if mixed and number % 3 == 1 else [False, True]
        packets = [
            coded(
                number,
                2 * (number - first) + bool(half),
                frame_number,
                idr=idr and not half,
                reference=reference,
                bottom=half,
            )
            for half in halves
        ]
        if idr:
            packets[0] = parameter_sets() + packets[0]
        pictures.append((packets, number, idr))
        frame_number += reference
    return pictures
