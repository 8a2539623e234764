"""Random GIF and animated PNG files, written by hand, and what they show, pixel by pixel."""

from __future__ import annotations

import random
import struct
import zlib
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

KEEP, CLEAR, RESTORE = range(3)
_CHANNELS = {0: 1, 2: 3, 3: 1, 4: 2, 6: 4}  # of the colour types of PNG
_LACED = ((0, 8), (4, 8), (2, 4), (1, 2))  # first row and step of each pass of GIF


@dataclass
class Animation:
    """data: the file. shown: each picture over white, [H, W, 3] of 0 to 255. begins: of each, in seconds, and
    end: of the last. kind: in words."""

    data: bytes
    kind: str
    shown: list[NDArray[np.float64]] = field(default_factory=list)
    begins: list[float] = field(default_factory=list)
    end: float = 0.0


class _Viewer:
    """A canvas [H, W, 4] of 0 to 1, composed pixel by pixel as the standards say it."""

    def __init__(self, height: int, width: int) -> None:
        self.canvas = np.zeros((height, width, 4))

    def show(
        self, part: NDArray[np.float64], left: int, top: int, over: bool, after: int
    ) -> NDArray[np.float64]:
        """The canvas over white with a part [h, w, 4] drawn on it."""
        before = self.canvas.copy()
        for y, row in enumerate(part):
            for x, (*colour, alpha) in enumerate(row):
                below = self.canvas[top + y, left + x].copy()
                if not over or below[3] == 0:
                    self.canvas[top + y, left + x] = row[x]
                elif alpha:
                    whole = alpha + below[3] * (1 - alpha)
                    mixed = np.array(colour) * alpha + below[:3] * below[3] * (1 - alpha)
                    self.canvas[top + y, left + x] = [*mixed / whole, whole]
        shown = self.canvas[..., :3] * self.canvas[..., 3:] + (1 - self.canvas[..., 3:])
        if after == RESTORE:
            self.canvas = before
        elif after == CLEAR:
            self.canvas[top : top + len(part), left : left + part.shape[1]] = 0
        return 255 * shown


def _box(draw: random.Random, height: int, width: int, whole: bool) -> tuple[int, int, int, int]:
    """(left, top, width, height) within the canvas."""
    w, h = (width, height) if whole else (draw.randint(1, width), draw.randint(1, height))
    return draw.randint(0, width - w), draw.randint(0, height - h), w, h


# --- PNG ----------------------------------------------------------


def chunk(kind: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def random_png(seed: int) -> Animation:
    """Of any colour type, with any operations; some with a default image that is no part of it."""
    draw, noise = random.Random(seed), np.random.default_rng(seed)
    height, width, count = draw.randint(2, 8), draw.randint(2, 8), draw.randint(2, 6)
    colour = draw.choice(list(_CHANNELS))
    depth = 8 if colour == 3 else draw.choice((8, 8, 16))
    top, channels = (1 << depth) - 1, _CHANNELS[colour]
    palette = noise.integers(0, 256, (256, 4))
    palette[:, 3] = palette[:, 3] if draw.random() < 0.6 else 255
    key = [0] * channels if colour in (0, 2) and draw.random() < 0.6 else None
    parts = [
        b"\x89PNG\r\n\x1a\n",
        chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, depth, colour, 0, 0, 0)),
    ]
    parts.append(chunk(b"acTL", struct.pack(">II", count, 0)))
    if colour == 3:
        parts.append(chunk(b"PLTE", palette[:, :3].astype(np.uint8).tobytes()))
        parts.append(chunk(b"tRNS", palette[:, 3].astype(np.uint8).tobytes()))
    elif key is not None:
        parts.append(chunk(b"tRNS", struct.pack(f">{channels}H", *key)))
    apart = draw.random() < 0.2
    if apart:
        parts.append(chunk(b"IDAT", _rows(np.zeros((height, width, channels), int), depth)))
    found = Animation(b"", f"colour type {colour}, {depth} bits, {'a key' if key else 'no key'}, seed {seed}")
    viewer, sequence = _Viewer(height, width), 0
    for number in range(count):
        box = _box(draw, height, width, number == 0)
        after, over = draw.choice((KEEP, CLEAR, RESTORE)), draw.random() < 0.5
        # Few levels where one of them is transparent; alpha often 0 or full, as of drawings.
        levels = noise.integers(0, 2, (box[3], box[2], channels)) * top
        if key is None:
            levels = noise.integers(0, top + 1, levels.shape)
        if colour in (4, 6) and draw.random() < 0.5:
            levels[..., -1] = np.where(levels[..., -1] > top // 3, top, 0)
        delay = draw.choice((1, 10, 25))
        parts.append(
            chunk(
                b"fcTL", struct.pack(">5I2H2B", sequence, box[2], box[3], *box[:2], delay, 100, after, over)
            )
        )
        sequence += 1
        data = _rows(levels, depth)
        if number or apart:
            for piece in (data[: len(data) // 2], data[len(data) // 2 :]):
                parts.append(chunk(b"fdAT", struct.pack(">I", sequence) + piece))
                sequence += 1
        else:
            parts.append(chunk(b"IDAT", data))
        pixels = palette[levels[..., 0]] / 255 if colour == 3 else _colour(levels / top, levels, key)
        found.shown.append(viewer.show(pixels, *box[:2], over, after))
        found.begins.append(found.end)
        found.end += (delay if delay > 1 else 10) / 100
    found.data = b"".join([*parts, chunk(b"IEND", b"")])
    return found


def _rows(levels: NDArray[np.int64], depth: int) -> bytes:
    rows = levels.astype(">u2" if depth == 16 else np.uint8)
    return zlib.compress(b"".join(b"\0" + row.tobytes() for row in rows))


def _colour(
    pixels: NDArray[np.float64], levels: NDArray[np.int64], key: Sequence[int] | None
) -> NDArray[np.float64]:
    """[h, w, 4] of gray or colour, with or without alpha."""
    alpha = pixels[..., -1:] if pixels.shape[2] in (2, 4) else np.ones((*pixels.shape[:2], 1))
    if key is not None:
        alpha = np.where((levels == key).all(-1, keepdims=True), 0.0, alpha)
    colours = pixels[..., :3] if pixels.shape[2] > 2 else pixels[..., [0, 0, 0]]
    return np.concatenate([colours, alpha], -1)


# --- GIF ----------------------------------------------------------


def random_gif(seed: int) -> Animation:
    """With any disposal, tables of colours of its own, interlaced, delays that viewers do not keep, comments,
    indices without a colour."""
    draw, noise = random.Random(seed), np.random.default_rng(seed)
    height, width, count = draw.randint(2, 8), draw.randint(2, 8), draw.randint(1, 6)
    bits = draw.choice((1, 2, 4, 8))
    shared = noise.integers(0, 256, (1 << bits, 3)) if draw.random() < 0.8 else None
    packed = 0 if shared is None else 0x80 | bits - 1
    parts = [b"GIF89a" + struct.pack("<HHBBB", width, height, packed, draw.randrange(1 << bits), 0)]
    parts.append(b"" if shared is None else shared.astype(np.uint8).tobytes())
    found, viewer = Animation(b"", f"{1 << bits} colours, seed {seed}"), _Viewer(height, width)
    for _ in range(count):
        box = _box(draw, height, width, draw.random() < 0.4)
        after, clear, delay = draw.randint(0, 3), draw.randrange(1 << bits), draw.choice((0, 1, 2, 5, 30))
        clear = clear if draw.random() < 0.5 else -1
        comment = draw.choice((b"", b"", b"!\xfe\x02hi\0"))
        if draw.random() < 0.9:
            head = struct.pack("<BHBB", after << 2 | (clear >= 0), delay, max(clear, 0), 0)
            parts += [comment, b"!\xf9\x04" + head, comment]
        else:  # without a control extension
            after, clear, delay = 0, -1, 0
        own = noise.integers(0, 256, (1 << bits, 3)) if shared is None or draw.random() < 0.3 else None
        laced, beyond = draw.random() < 0.3, 3 if draw.random() < 0.1 and bits < 8 else 0
        indices = noise.integers(0, (1 << bits) + beyond, (box[3], box[2]))
        packed = (0 if own is None else 0x80 | bits - 1) | 0x40 * laced
        parts.append(b"," + struct.pack("<4HB", *box, packed))
        parts.append(b"" if own is None else own.astype(np.uint8).tobytes())
        parts.append(coded(_laced(indices) if laced else indices))
        table = np.zeros((1 << bits) + 3, dtype=(float, 4))
        colours = own if own is not None else shared
        if colours is not None:
            table[: 1 << bits] = np.concatenate([colours / 255, np.ones((1 << bits, 1))], -1)
        if clear >= 0:
            table[clear] = 0
        after = {2: CLEAR, 3: RESTORE}.get(after, KEEP)
        found.shown.append(viewer.show(table[indices], *box[:2], True, after))
        found.begins.append(found.end)
        found.end += (delay if delay >= 2 else 10) / 100
    found.data = b"".join([*parts, draw.choice((b"", b"!\xfe\x02hi\0")), b";"])
    return found


def _laced(rows: NDArray[np.int64]) -> NDArray[np.int64]:
    return np.concatenate([rows[first::step] for first, step in _LACED])


def coded(indices: NDArray[np.int64]) -> bytes:
    """Of a picture's data: codes of 9 bits, begun anew before they would become longer."""
    values = indices.reshape(-1)
    codes = []
    for k, value in enumerate(values.tolist()):
        codes += [256, value] if k % 200 == 0 else [value]
    bits = sum(code << 9 * k for k, code in enumerate([*codes, 257]))
    data = bits.to_bytes((9 * (len(codes) + 1) + 7) // 8, "little")
    blocks = [data[k : k + 255] for k in range(0, len(data), 255)]
    return b"\x08" + b"".join(bytes([len(block)]) + block for block in blocks) + b"\0"
