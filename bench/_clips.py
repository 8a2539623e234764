"""Video files that benchmarks read: textured, moving, grainy pictures that carry their number, encoded here.

A generated clip is kept in a cache folder and made again when anything that shapes it changes.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterator
from dataclasses import astuple, dataclass, field
from functools import cache
from pathlib import Path

import av
import numpy as np

RECIPE = 4  # raised when pictures or encoder settings change, so that cached clips are made again
BITS = 12  # of the frame number in the strip at the top
STRIP = 12  # the strip takes one in so many rows
TILE = 2048  # side of the textures, which wrap around
DISCS = 7

_QUALITY = {"flags": "+qscale", "global_quality": str(8 * 118)}  # of FFmpeg's own encoders: 118 a step


@dataclass(frozen=True)
class Form:
    """How a codec is encoded, and what holds it.

    Attributes:
        encoder: FFmpeg's name.
        suffix: of the file.
        muxer: FFmpeg's name.
        pixels: what the encoder takes.
        options: of the encoder, beside the length of a group.
    """

    encoder: str
    suffix: str = "avi"
    muxer: str = "avi"
    pixels: str = "yuv420p"
    options: dict[str, str] = field(default_factory=lambda: dict(_QUALITY))


FORMS = {
    "h264": Form("libx264", "mp4", "mp4", options={"preset": "veryfast", "crf": "23", "bf": "3"}),
    "hevc": Form("libx265", "mp4", "mp4", options={"preset": "superfast", "crf": "26"}),
    "vp9": Form("libvpx-vp9", "webm", "webm", options={
        "deadline": "good", "cpu-used": "5", "row-mt": "1", "tile-columns": "2", "lag-in-frames": "16",
        "crf": "34", "b": "0",
    }),
    "av1": Form("libsvtav1", "mp4", "mp4", options={"preset": "10", "crf": "36", "svtav1-params": "scd=0"}),
    "vp8": Form("libvpx", "webm", "webm", options={
        "deadline": "realtime", "cpu-used": "5", "crf": "20", "b": "2M",
    }),
    "mpeg4": Form("mpeg4", "mp4", "mp4", options=_QUALITY | {"bf": "2"}),
    "mpeg1": Form("mpeg1video", "mpg", "mpeg", options=_QUALITY | {"bf": "2"}),
    "mpeg2": Form("mpeg2video", "ts", "mpegts", options=_QUALITY | {"bf": "2"}),
    "wmv1": Form("wmv1", "wmv", "asf"),
    "wmv2": Form("wmv2", "wmv", "asf"),
    "msmpeg4": Form("msmpeg4"),
    "flv1": Form("flv", "flv", "flv"),
    "h263+": Form("h263p"),
    "mjpeg": Form("mjpeg", pixels="yuvj420p"),
    "prores": Form("prores_ks", "mov", "mov", "yuv422p10le", {"profile": "0"}),
    "ffv1": Form("ffv1", "mkv", "matroska", options={"level": "3", "slicecrc": "1"}),
    "gif": Form("gif", "gif", "gif", "rgb8", {}),
    "apng": Form("apng", "png", "apng", "rgb24", {}),
}  # fmt: skip
WIDTHS = {240: 426, 480: 854, 720: 1280, 1080: 1920, 2160: 3840}


@dataclass(frozen=True)
class Clip:
    """One generated file: codec, height in pixels, frames from one keyframe to the next, length, rate."""

    codec: str
    height: int
    gop: int
    seconds: float
    rate: int = 30

    @property
    def name(self) -> str:
        size = "4K" if self.height == 2160 else f"{self.height}p"
        return f"{self.codec} {size} {self.seconds:g} s GOP {self.gop}"

    @property
    def frames(self) -> int:
        return round(self.seconds * self.rate)


def cache_folder() -> Path:
    """Where generated clips are kept: $FOURDTHINKER_BENCH_CACHE, or a folder in the user's cache."""
    named = os.environ.get("FOURDTHINKER_BENCH_CACHE")
    home = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    return Path(named) if named else home / "fourdthinker" / "bench"


def clip_file(clip: Clip, folder: Path) -> Path:
    """The clip's file in the folder, made when it is not there yet."""
    key = hashlib.sha256(repr((RECIPE, astuple(clip))).encode()).hexdigest()[:8]
    path = folder / f"{clip.codec}-{clip.height}-gop{clip.gop}-{key}.{FORMS[clip.codec].suffix}"
    if path.is_file():
        return path
    folder.mkdir(parents=True, exist_ok=True)
    part = path.with_name(f"{os.getpid()}.{path.name}")
    try:
        _encode(clip, part)
        part.replace(path)
    finally:
        part.unlink(missing_ok=True)
    return path


def number_of(picture: np.ndarray) -> int:
    """The frame number in the strip of a picture uint8 [H, W, 3] of any size."""
    height, width = picture.shape[:2]
    rows = picture[height // STRIP // 4 : max(height // STRIP // 4 + 1, height // STRIP * 3 // 4)]
    number = 0
    for bit in range(BITS):
        middle = rows[:, round((bit + 0.3) * width / BITS) : round((bit + 0.7) * width / BITS)]
        number = number * 2 + int(middle.mean() > 128)
    return number


def _settings(clip: Clip) -> dict[str, str]:
    gop, options = str(clip.gop), FORMS[clip.codec].options
    if clip.codec == "hevc":
        parameters = f"keyint={gop}:min-keyint={gop}:scenecut=0:bframes=3:open-gop=0:log-level=none"
        return options | {"x265-params": parameters}
    if clip.codec == "av1":
        return options | {"g": gop}
    return options | {"g": gop, "keyint_min": gop, "sc_threshold": "0"}


def _encode(clip: Clip, path: Path) -> None:
    os.environ.setdefault("SVT_LOG", "1")  # SVT-AV1 greets on the terminal otherwise
    form = FORMS[clip.codec]
    with av.open(str(path), "w", format=form.muxer) as container:
        stream = container.add_stream(form.encoder, rate=clip.rate, options=_settings(clip))
        stream.width, stream.height, stream.pix_fmt = WIDTHS[clip.height], clip.height, form.pixels
        stream.codec_context.thread_count = os.cpu_count() or 1
        stream.codec_context.thread_type = "FRAME"  # x264: one slice a picture, as files mostly have
        for number, planes in enumerate(_pictures(clip)):
            frame = av.VideoFrame.from_ndarray(planes, format="yuv420p")
            if form.pixels != "yuv420p":
                frame = frame.reformat(format=form.pixels)
            frame.pts = number
            container.mux(stream.encode(frame))
        container.mux(stream.encode())


@cache
def _textures() -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """(luma [4, TILE, TILE] at whole and half pixels, chroma [2, TILE, TILE], grain [TILE, TILE]), wrapping.

    Spectrum falling like that of natural pictures behind a lens; grain is white.
    """
    rng = np.random.default_rng(0)
    down, across = np.fft.fftfreq(TILE)[:, None], np.fft.rfftfreq(TILE)[None, :]
    fall = np.maximum(np.hypot(down, across), 4 / TILE) ** -1.5

    def texture(spectrum: np.ndarray, amplitude: float, middle: float) -> np.ndarray:
        plane = np.fft.irfft2(spectrum, (TILE, TILE))
        return np.clip(plane / plane.std() * amplitude + middle, 32, 220).astype(np.uint8)

    def spectrum() -> np.ndarray:
        return np.fft.rfft2(rng.standard_normal((TILE, TILE))) * fall

    base = spectrum()
    shifts = [np.exp(2j * np.pi * (dy * down + dx * across) / 2) for dy in (0, 1) for dx in (0, 1)]
    luma = np.stack([texture(base * shift, 38, 118) for shift in shifts])
    chroma = np.stack([texture(spectrum(), 16, 128) for _ in range(2)])
    grain = np.clip(np.round(rng.standard_normal((TILE, TILE)) * 0.6), -2, 2).astype(np.int8).view(np.uint8)
    return luma, chroma, grain


def _cut(texture: np.ndarray, top: int, left: int, height: int, width: int) -> np.ndarray:
    """A window of a texture that wraps around."""
    rows = np.arange(top, top + height) % TILE
    columns = np.arange(left, left + width) % TILE
    if rows[0] <= rows[-1] and columns[0] <= columns[-1] and height <= TILE and width <= TILE:
        return texture[rows[0] : rows[0] + height, columns[0] : columns[0] + width]
    return texture[rows].take(columns, axis=1)


def _pictures(clip: Clip) -> Iterator[np.ndarray]:
    """Planar 4:2:0 pictures [H * 3 / 2, W]: a panned ground, textured discs that wander over it, grain."""
    luma, chroma, grain = _textures()
    height, width = clip.height, WIDTHS[clip.height]
    rng = np.random.default_rng(clip.height)
    phases, speeds = rng.uniform(0, 2 * np.pi, (DISCS, 2)), rng.uniform(0.2, 0.7, (DISCS, 2))
    radius = height // 9
    inside = np.hypot(*np.mgrid[-radius:radius, -radius:radius]) < radius
    bits = np.arange(width) * BITS // width
    step = height / 360  # half pixels a frame at the pan's fastest
    for number in range(clip.frames):
        second = number / clip.rate
        y = round((40 + 30 * np.sin(second * 0.8)) * step)
        x = round((number * 1.5 + 40 * np.sin(second * 1.3)) * step)
        frame = np.empty((height * 3 // 2, width), np.uint8)
        picture = frame[:height]
        np.copyto(picture, _cut(luma[y % 2 * 2 + x % 2], y // 2, x // 2, height, width))
        for phase, speed in zip(phases, speeds):
            wave = np.sin(phase + speed * second * 2 * np.pi / 2)
            top, left = (wave * 0.4 + 0.5) * (height - 2 * radius, width - 2 * radius)
            box = picture[int(top) : int(top) + 2 * radius, int(left) : int(left) + 2 * radius]
            other = _cut(luma[0], int(phase[0] * 300), int(phase[1] * 300), 2 * radius, 2 * radius)
            np.copyto(box, 250 - other, where=inside[: box.shape[0], : box.shape[1]])
        picture += _cut(grain, number * 733 % TILE, number * 389 % TILE, height, width)
        levels = (number >> (BITS - 1 - bits)) & 1
        picture[: height // STRIP] = levels * 190 + 30
        colours = frame[height:].reshape(2, height // 2, width // 2)
        for plane, source in zip(colours, chroma):
            np.copyto(plane, _cut(source, y // 4, x // 4, height // 2, width // 2))
            plane[: height // STRIP // 2] = 128
        yield frame
