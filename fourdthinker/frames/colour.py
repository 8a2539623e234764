"""Decoded frames as planes in memory, with what has to be known to make RGB of them."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from fourdthinker.frames.rgba import opaque, over_white

if TYPE_CHECKING:
    import av


Planes = tuple[NDArray[np.uint8] | NDArray[np.uint16], ...]


@dataclass(frozen=True)
class Layout:
    """How the planes of a frame are to be read; the keywords of `_video.convert`."""

    chroma: str
    depth: int = 8
    shift: int = 0
    interleaved: bool = False
    full_range: bool = False
    matrix: str = "bt601"
    siting: str = "left"


def _yuv() -> dict[str, Layout]:
    known = {"nv12": Layout("420", interleaved=True), "nv16": Layout("422", interleaved=True)}
    for name in ("420", "422", "444"):
        known[f"yuv{name}p"] = Layout(name)
        known[f"yuvj{name}p"] = Layout(name, full_range=True)
        for depth in (10, 12):
            known[f"yuv{name}p{depth}le"] = Layout(name, depth)
    for depth in (10, 12):
        known[f"p0{depth}le"] = Layout("420", depth, 16 - depth, interleaved=True)
        known[f"gray{depth}le"] = Layout("gray", depth, full_range=True)
    return known | {"gray": Layout("gray", full_range=True), "rgb24": Layout("rgb", full_range=True)}


LAYOUTS = _yuv()
# By the numbers of ITU-T H.273. Where nothing is declared (2), BT.601: what swscale, and with it nearly every
# reader that models were trained with, takes at every size.
_MATRICES = {1: "bt709", 2: "bt601", 4: "bt601", 5: "bt601", 6: "bt601", 9: "bt2020", 10: "bt2020"}
_FULL_RANGE = 2
REPEAT = "repeat"  # siting of pictures that keep their size: chroma not interpolated, as FFmpeg's default


def planes_of(
    frame: av.VideoFrame, siting: str = "left", *, rgb: bool = False
) -> tuple[Planes, Layout, str | None]:
    """(planes without a copy, how to read them, the pixel format that swscale made RGB of, or None).

    rgb: make RGB of every format, for want of a converter.
    """
    name = frame.format.name
    if name == "rgba":
        return _over_white(frame), LAYOUTS["rgb24"], None
    known = None if rgb and name != "rgb24" else LAYOUTS.get(name)
    matrix = "bt601" if known and known.chroma in ("gray", "rgb") else _MATRICES.get(int(frame.colorspace))
    if known is None or matrix is None or any(plane.line_size < 0 for plane in frame.planes):
        # Palettes, rows from the bottom up, other orders of RGB, rare depths and matrices.
        from av.video.reformatter import Interpolation

        exact = Interpolation.BICUBIC | Interpolation.FULL_CHR_H_INT | Interpolation.ACCURATE_RND
        clear = name == "pal8" or any(part.is_alpha for part in frame.format.components)
        packed = frame.reformat(format="rgba" if clear else "rgb24", interpolation=exact, threads=1)
        planes = _over_white(packed) if clear else _views(packed, LAYOUTS["rgb24"])
        return planes, LAYOUTS["rgb24"], name
    # Gray is full range unless declared otherwise; RGB and the yuvj formats always are.
    full = int(frame.color_range) == _FULL_RANGE or (
        known.full_range and (known.chroma != "gray" or int(frame.color_range) == 0)
    )
    layout = replace(known, full_range=full, matrix=matrix, siting=siting)
    return _views(frame, layout), layout, None


def _over_white(frame: av.VideoFrame) -> Planes:
    """The plane of RGB of an RGBA frame, as for images."""
    pixels = frame.to_ndarray()
    if opaque(pixels):
        return _views(frame.reformat(format="rgb24", threads=1), LAYOUTS["rgb24"])
    return (over_white(pixels).reshape(frame.height, -1),)


def _views(frame: av.VideoFrame, layout: Layout) -> Planes:
    kind = np.dtype(np.uint8 if layout.depth == 8 else np.uint16)
    count = 1 if layout.chroma in ("gray", "rgb") else 2 if layout.interleaved else 3
    views = []
    for index, plane in enumerate(frame.planes[:count]):
        rows = np.frombuffer(plane, kind).reshape(plane.height, plane.line_size // kind.itemsize)
        samples = 3 if layout.chroma == "rgb" else 2 if layout.interleaved and index else 1
        views.append(rows[:, : plane.width * samples])
    return tuple(views)
