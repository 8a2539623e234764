"""Small real video files for tests, made of a few frames that carry their own number; and a data set."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import numpy as np

BITS = 8


def picture(number: int, height: int = 48, width: int = 64) -> np.ndarray:
    """uint8 [height, width, 3]: the number in black and white stripes, most significant bit on the left."""
    bits = [(number >> (BITS - 1 - k)) & 1 for k in range(BITS)]
    row = (np.array(bits, dtype=np.uint8) * 215 + 20)[np.arange(width) * BITS // width]
    return np.ascontiguousarray(np.broadcast_to(row[None, :, None], (height, width, 3)))


def number_of(pixels: Any) -> int:
    """The number that a picture carries, after any resize: pixels [H, W, 3]."""
    array = np.asarray(pixels)
    width = array.shape[1]
    number = 0
    for k in range(BITS):
        middle = array[:, round((k + 0.35) * width / BITS) : max(1, round((k + 0.65) * width / BITS))]
        number = number * 2 + int(middle.mean() > 128)
    return number


def numbers(pixels: Any) -> list[int]:
    """Numbers of a clip [T, H, W, 3]."""
    return [number_of(frame) for frame in pixels]


_ENCODED: dict[tuple[Any, ...], bytes] = {}  # clips that were made before


def make_clip(
    path: Path,
    stamps: Sequence[int],
    *,
    codec: str = "libx264",
    base: int = 1000,
    options: dict[str, str] | None = None,
    size: tuple[int, int] = (48, 64),
    rotation: int = 0,
    aspect: Fraction | None = None,
    audio: bool = False,
    pixel_format: str = "yuv420p",
    draw: Callable[[int], np.ndarray] | None = None,
) -> Path:
    """Encode picture k, shown from stamps[k] / base seconds.

    A clip that was made before, of numbers or by a function of a module, is not encoded again.
    options: of the encoder (x264: bf, g, ...). draw: what picture k is, instead of its number in stripes.
    """
    settings = (codec, base, tuple((options or {}).items()), size, rotation, aspect, audio, pixel_format)
    key = (path.suffix, tuple(stamps), settings, draw)
    if key in _ENCODED:
        path.write_bytes(_ENCODED[key])
        return path
    with av.open(str(path), "w") as container:
        rate = Fraction(base * (len(stamps) - 1) or base, (stamps[-1] - stamps[0]) or base)
        stream = container.add_stream(codec, rate=rate.limit_denominator(1000), options=options or {})
        stream.height, stream.width = size
        stream.pix_fmt = pixel_format
        stream.codec_context.time_base = Fraction(1, base)
        stream.time_base = Fraction(1, base)
        if aspect is not None:
            stream.codec_context.sample_aspect_ratio = aspect
        if rotation:
            stream.set_display_rotation(rotation)
        sound = container.add_stream("aac", rate=8000) if audio else None
        for number, stamp in enumerate(stamps):
            pixels = picture(number, *size) if draw is None else draw(number)
            frame = av.VideoFrame.from_ndarray(pixels, format="rgb24")
            frame.pts, frame.time_base = stamp, Fraction(1, base)
            container.mux(stream.encode(frame))
        container.mux(stream.encode())
        if sound is not None:
            silence = np.zeros((1, 8000), dtype=np.float32)
            samples = av.AudioFrame.from_ndarray(silence, format="fltp", layout="mono")
            samples.sample_rate = 8000
            container.mux(sound.encode(samples))
            container.mux(sound.encode())
    if draw is None or "<" not in draw.__qualname__:  # not one that depends on a test's variables
        _ENCODED[key] = path.read_bytes()
    return path


def remux(
    source: Path, target: Path, keep: Any = None, shift: float = 0.0, movflags: str | None = None
) -> Path:
    """Copy the video packets of a file for which keep(index, packet) holds, shifted by `shift` seconds."""
    options = {"movflags": movflags} if movflags else {}
    with av.open(str(source)) as old, av.open(str(target), "w", options=options) as new:
        video = old.streams.video[0]
        stream = new.add_stream_from_template(video)
        for index, packet in enumerate(old.demux(video)):
            if packet.size == 0 or (keep is not None and not keep(index, packet)):
                continue
            move = round(shift / packet.time_base)
            packet.pts, packet.dts = packet.pts + move, packet.dts + move
            packet.stream = stream
            new.mux(packet)
    return target


class Encoded:
    """A data set of samples, encoded on access. Here, so that worker processes import little."""

    def __init__(self, encoder: Any, records: Sequence[Any]) -> None:
        self.encoder, self.records = encoder, records

    def __len__(self) -> int:
        return len(self.records)

    def __getitem__(self, index: int) -> Any:
        return self.encoder.sample(self.records[index])
