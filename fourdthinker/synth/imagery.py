"""What an <output_image> shows, made from a frame, masks, depth and paths; all of the clip's size."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw

Pixels = NDArray[np.uint8]
Mask = NDArray[np.bool_]
Points = NDArray[np.float64]

_RED = np.array([255, 0, 0], np.float32)
_STRENGTH = 0.4  # of the tint, and
_CONTOUR = 2  # the width of the outline in pixels, as published
_OBJECT, _CAMERA, _PAPER, _GRID = (255, 0, 0), (30, 90, 255), (250, 250, 250), (225, 225, 225)


def overlay(frame: Pixels, mask: Mask) -> Pixels:
    """The frame with the object tinted red and outlined, as in 4DThinker's data.

    Args:
        frame: uint8 [H, W, 3].
        mask: bool [H, W].

    Returns:
        uint8 [H, W, 3].
    """
    out = frame.astype(np.float32)
    out[mask] = (1 - _STRENGTH) * out[mask] + _STRENGTH * _RED
    inner, outer = mask, mask
    for _ in range(_CONTOUR // 2):
        inner, outer = _shrunk(inner), _grown(outer)
    out[outer & ~inner] = _RED
    return (out + 0.5).astype(np.uint8)


def _grown(mask: Mask) -> Mask:
    """A mask and the four neighbours of each of its pixels."""
    padded = np.pad(mask, 1)
    around = padded[:-2, 1:-1] | padded[2:, 1:-1] | padded[1:-1, :-2] | padded[1:-1, 2:]
    return mask | around


def _shrunk(mask: Mask) -> Mask:
    """The pixels of a mask whose four neighbours are in it too; beyond the border nothing is."""
    padded = np.pad(mask, 1)
    return mask & padded[:-2, 1:-1] & padded[2:, 1:-1] & padded[1:-1, :-2] & padded[1:-1, 2:]


def silhouette(mask: Mask) -> Pixels:
    """The object white on black.

    Args:
        mask: bool [H, W].

    Returns:
        uint8 [H, W, 3].
    """
    return np.repeat((mask * np.uint8(255))[..., None], 3, 2)


def depth_picture(depth: NDArray[np.float32], mask: Mask | None = None) -> Pixels:
    """Depth as brightness, near is bright; the object keeps a red outline.

    Args:
        depth: [H, W], larger is farther, in any unit; infinite or not positive: unknown, black.
        mask: bool [H, W] of the object, or None.

    Returns:
        uint8 [H, W, 3].
    """
    known = np.isfinite(depth) & (depth > 0)
    inverse = np.zeros_like(depth, np.float32)
    inverse[known] = 1 / depth[known]
    top = float(np.quantile(inverse[known], 0.98)) if known.any() else 1.0
    grey = np.repeat((np.clip(inverse / max(top, 1e-12), 0, 1) * 255 + 0.5).astype(np.uint8)[..., None], 3, 2)
    if mask is not None:
        grey[mask & ~_shrunk(mask)] = _OBJECT
    return grey


def trail(frame: Pixels, points: Points) -> Pixels:
    """The frame with the path of the object so far, in the picture.

    Args:
        frame: uint8 [H, W, 3].
        points: [n, 2], x and y in pixels, in the order of time.

    Returns:
        uint8 [H, W, 3].
    """
    image = Image.fromarray(frame)
    draw = ImageDraw.Draw(image)
    path = [(float(x), float(y)) for x, y in points]
    width = max(2, frame.shape[0] // 120)
    if len(path) > 1:
        draw.line(path, fill=_OBJECT, width=width, joint="curve")
    _dot(draw, path[-1], 2 * width, _OBJECT)
    return np.asarray(image).copy()


def top_down(
    size: tuple[int, int], camera: Points, forward: Points, thing: Points | None, now: int
) -> Pixels:
    """Camera and object seen from above, up to one moment; all of the clip is in the picture.

    Args:
        size: (height, width) of the picture.
        camera: [T, 2] positions, right and forward of the first view.
        forward: [T, 2], where the camera looks, in the same axes.
        thing: [T, 2] positions of the object, or None.
        now: index of the moment.

    Returns:
        uint8 [H, W, 3]; forward is up. The camera is blue with its direction, the object red.
    """
    height, width = size
    every = camera if thing is None else np.concatenate([camera, thing])
    low, high = every.min(0), every.max(0)
    scale = 0.8 * min(width / max(high[0] - low[0], 1e-6), height / max(high[1] - low[1], 1e-6))
    middle = (low + high) / 2

    def seen(points: Points) -> list[tuple[float, float]]:
        moved = (points - middle) * scale
        return [(width / 2 + float(x), height / 2 - float(y)) for x, y in moved]

    image = Image.new("RGB", (width, height), _PAPER)
    draw = ImageDraw.Draw(image)
    step = max(8, min(size) // 8)
    for column in range(width // 2 % step, width, step):
        draw.line([(column, 0), (column, height)], fill=_GRID)
    for row in range(height // 2 % step, height, step):
        draw.line([(0, row), (width, row)], fill=_GRID)
    thick = max(2, min(size) // 100)
    for points, colour in ((camera, _CAMERA), (thing, _OBJECT)):
        if points is not None:
            path = seen(points[: now + 1])
            if len(path) > 1:
                draw.line(path, fill=colour, width=thick, joint="curve")
            _dot(draw, path[-1], 2 * thick, colour)
    x, y = seen(camera[: now + 1])[-1]
    length = np.linalg.norm(forward[now])
    if length > 0:
        dx, dy = forward[now] / length * min(size) / 10
        draw.line([(x, y), (x + float(dx), y - float(dy))], fill=_CAMERA, width=thick)
    return np.asarray(image).copy()


def _dot(
    draw: ImageDraw.ImageDraw, centre: tuple[float, float], radius: float, colour: tuple[int, int, int]
) -> None:
    x, y = centre
    draw.ellipse([x - radius, y - radius, x + radius, y + radius], fill=colour)


def from_above(poses: NDArray[np.float64], points: Sequence[NDArray[np.float64]]) -> list[Points]:
    """World points as the map shows them.

    Args:
        poses: [T, 4, 4] camera to world.
        points: arrays [T, 3] in the world.

    Returns:
        For each array [T, 2]: right and forward of the first camera, level where its axes are.
    """
    rotation, origin = poses[0, :3, :3], poses[0, :3, 3]
    return [((array - origin) @ rotation)[:, [0, 2]] for array in points]
