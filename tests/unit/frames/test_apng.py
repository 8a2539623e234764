"""Animated PNG whose pictures build on what was before the one before."""

from __future__ import annotations

import struct
import zlib
from pathlib import Path

import numpy as np

from fourdthinker.frames import read_frames
from fourdthinker.frames.probing import probe

HEIGHT, WIDTH = 32, 48
SOURCE, OVER = 0, 1  # what a picture does to the canvas
KEEP, CLEAR, RESTORE = 0, 1, 2  # what becomes of the canvas after it
RED, GREEN, BLUE, WHITE = (255, 0, 0), (0, 255, 0), (0, 0, 255), (255, 255, 255)
# Colour of each picture, the left half alone or all of it, what is done, and the colours of both halves then.
PICTURES = [
    (RED, False, OVER, KEEP, (RED, RED)),
    (GREEN, False, SOURCE, RESTORE, (GREEN, GREEN)),
    (BLUE, True, OVER, KEEP, (BLUE, RED)),
    (GREEN, False, SOURCE, CLEAR, (GREEN, GREEN)),
    (RED, True, OVER, KEEP, (RED, WHITE)),
]


def chunk(kind: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def animated() -> bytes:
    parts = [
        b"\x89PNG\r\n\x1a\n",
        chunk(b"IHDR", struct.pack(">IIBBBBB", WIDTH, HEIGHT, 8, 6, 0, 0, 0)),
        chunk(b"acTL", struct.pack(">II", len(PICTURES), 0)),
    ]
    sequence = 0
    for place, (colour, half, blend, dispose, _) in enumerate(PICTURES):
        width = WIDTH // 2 if half else WIDTH
        data = zlib.compress((b"\0" + bytes([*colour, 255]) * width) * HEIGHT)
        control = struct.pack(">IIIIIHHBB", sequence, width, HEIGHT, 0, 0, 1, 10, dispose, blend)
        parts.append(chunk(b"fcTL", control))
        sequence += 1
        if place:
            parts.append(chunk(b"fdAT", struct.pack(">I", sequence) + data))
            sequence += 1
        else:
            parts.append(chunk(b"IDAT", data))
    return b"".join([*parts, chunk(b"IEND", b"")])


def test_each_picture_alone_and_all_together(tmp_path: Path) -> None:
    """FFmpeg calls those keyframes that cover the canvas, and not always the first."""
    path = tmp_path / "c.png"
    path.write_bytes(animated())
    known = probe(path)
    assert (known.frames, known.begin) == (len(PICTURES), 0)
    times = [k / 10 + 0.05 for k in range(len(PICTURES))]
    for chosen in (range(len(times)), *([k] for k in range(len(times)))):
        pixels = read_frames(path, times=[times[k] for k in chosen]).pixels.numpy()
        for k, picture in zip(chosen, pixels, strict=True):
            left, right = PICTURES[k][4]
            expected = np.full((HEIGHT, WIDTH, 3), left, np.uint8)
            expected[:, WIDTH // 2 :] = right
            assert (picture == expected).all(), (k, list(chosen))
