"""Conversion and resize of decoded frames on the CPU, against Pillow, torch and swscale.

    python -m bench resize [--repeats 15] [--save]

Frames of noise, Lanczos, one thread each. "rgb" starts from RGB frames, "yuv" from decoded yuv420p, where the
peers convert with swscale first. Every row names its ratio to the fastest peer of the same start.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from functools import partial
from typing import Any

import av
import numpy as np
import torch
from av.video.reformatter import Interpolation, VideoReformatter
from PIL import Image
from torch.nn.functional import interpolate

from bench import _measure
from fourdthinker import _video

FRAMES = 8
TARGET = (336, 588)
SOURCES = {"720p": (720, 1280), "1080p": (1080, 1920)}
INSTRUCTIONS = ("best", "avx2", "generic")
# Accurate rounding and full chroma in and out, as a reader that cares would set; and swscale's usual ones.
SWSCALE = {"accurate swscale": 0x40000 | 0x2000 | 0x4000, "swscale": 0}

Run = Callable[[], object]


def pillow(pixels: np.ndarray) -> np.ndarray:
    images = (Image.fromarray(x).resize(TARGET[::-1], Image.Resampling.LANCZOS) for x in pixels)
    return np.stack([np.asarray(image) for image in images])


def with_torch(pixels: np.ndarray) -> torch.Tensor:
    planes = torch.from_numpy(pixels).permute(0, 3, 1, 2)  # channels last in memory, as the frames come
    return interpolate(planes, TARGET, mode="lanczos", antialias=True)


def ours(instructions: str, call: Run) -> Run:
    def run() -> object:
        _video.use_instructions(instructions)
        return call()

    return run


def available(instructions: str) -> bool:
    try:
        _video.use_instructions(instructions)
    except ValueError:
        return False
    return True


def from_rgb(size: tuple[int, int]) -> dict[str, Run]:
    pixels = np.random.default_rng(0).integers(0, 256, (FRAMES, *size, 3), dtype=np.uint8)
    runs: dict[str, Run] = {"Pillow": lambda: pillow(pixels), "torch": lambda: with_torch(pixels)}
    for name in filter(available, INSTRUCTIONS):
        runs[f"ours, {name}"] = ours(name, lambda: _video.resize(pixels, *TARGET, "lanczos", 1))
    return runs


def from_yuv(size: tuple[int, int]) -> dict[str, Run]:
    rng = np.random.default_rng(0)
    frames = []
    for _ in range(FRAMES):
        frame = av.VideoFrame(size[1], size[0], "yuv420p")
        for plane in frame.planes:
            plane.update(rng.integers(0, 256, plane.buffer_size, dtype=np.uint8).tobytes())
        frames.append(frame)
    planes = [
        tuple(np.frombuffer(p, np.uint8).reshape(p.height, p.line_size)[:, : p.width] for p in frame.planes)
        for frame in frames
    ]
    reformatter = VideoReformatter()

    def converted(resize: Callable[[np.ndarray], object], flags: int) -> object:
        flags |= int(Interpolation.BICUBIC)
        rgb = [reformatter.reformat(x, format="rgb24", interpolation=flags).to_ndarray() for x in frames]
        return resize(np.stack(rgb))

    runs: dict[str, Run] = {}
    for name, flags in SWSCALE.items():
        runs[f"{name}, Pillow"] = partial(converted, pillow, flags)
        runs[f"{name}, torch"] = partial(converted, with_torch, flags)
    same: dict[str, Any] = {"height": TARGET[0], "width": TARGET[1], "chroma": "420", "threads": 1}
    outs: dict[str, dict[str, Any]] = {"pixels": {}}
    outs |= {f"{dtype} patches": {"out": "patches", "dtype": dtype} for dtype in ("bfloat16", "float32")}
    for name in filter(available, INSTRUCTIONS):
        for out, options in outs.items():
            runs[f"ours, {name}, {out}"] = ours(name, partial(_video.convert, planes, **same, **options))
    return runs


def measured(start: str, source: str, runs: dict[str, Run], repeats: int) -> list[dict[str, object]]:
    seconds = _measure.interleaved(runs, repeats=repeats)
    ms = {
        name: {key: value * 1000 / FRAMES for key, value in _measure.summary(taken).items() if key != "runs"}
        for name, taken in seconds.items()
    }
    best_peer = min(values["median"] for name, values in ms.items() if not name.startswith("ours"))
    return [
        {
            "start": f"{start} {source}",
            "what": name,
            "ms a frame": round(values["median"], 3),
            "smallest": round(values["low"], 3),
            "largest": round(values["high"], 3),
            "times the fastest peer": round(best_peer / values["median"], 2),
        }
        for name, values in ms.items()
    ]


def main(argv: list[str]) -> int:
    parser = argparse.ArgumentParser(prog="python -m bench resize", description=__doc__)
    parser.add_argument("--repeats", type=_measure.positive, default=15)
    _measure.add_save(parser)
    options = parser.parse_args(argv)
    torch.set_num_threads(1)
    rows: list[dict[str, object]] = []
    try:
        for source, size in SOURCES.items():
            rows += measured("rgb", source, from_rgb(size), options.repeats)
            rows += measured("yuv", source, from_yuv(size), options.repeats)
    finally:
        _video.use_instructions("best")
    _measure.show(f"{FRAMES} frames to {TARGET[1]}x{TARGET[0]}, Lanczos, one thread", rows)
    if options.save:
        _measure.save("resize", rows)
    return 0
