"""Frames laid over one another by what stands still, what then still differs, and which colours do."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from fourdthinker.synth.tracks import Array

Image = NDArray[np.uint8]
Laid = list[list[tuple[int, Array]]]  # of each frame: others, each with the homography that lays it over

UNKNOWN, STILL, CHANGED = 0, 1, 2

_OFFSETS = (0.4, 0.8, 1.4)  # seconds to the frames that are laid over one, before and after it
_LEAST_FEATURES = 24  # common to two frames, for one to be laid over the other
_FITS = 2.0  # pixels within which a feature is laid over itself
_LAID = 0.5  # share of the common features that must be
_LEVELS = 16  # grey levels beyond those next to it from which a pixel differs
_SHARE = 0.4  # of the frames laid over one from which a pixel must differ, to have changed
_SHADE = (0.3, 0.95)  # brightness in a shadow, as a share of that without it
_BITS = 4  # of each colour channel that colours are told apart by
_LEAST_DENSITY = 1e-4  # of a colour, against noise in those that are rare
_MOST_ODDS = 2.0  # either way, so that blurring moves no border


def lay(cv2: Any, points: Array, fps: float) -> tuple[Laid, list[Array | None]]:
    """Homographies that lay frames over others.

    A homography is exact where the camera only turns, and for the plane that most features lie on, such as
    the ground, where it moves.

    Args:
        cv2: OpenCV.
        points: [N, T, 2] followed features, in pixels from the frames' corner, NaN where one is not seen.
        fps: frames a second.

    Returns:
        Of each frame, those laid over it with their homographies [3, 3]; and of each frame the homography
        that lays the one before over it, None where nothing tells.
    """
    count = points.shape[1]
    steps = sorted({max(1, round(seconds * fps)) for seconds in _OFFSETS})
    forth = {
        (first, first + step): _homography(cv2, points, first, first + step)
        for step in {1, *steps}
        for first in range(count - step)
    }
    laid: Laid = [[] for _ in range(count)]
    for (first, second), matrix in forth.items():
        if matrix is not None and second - first in steps:
            laid[first].append((second, np.asarray(np.linalg.inv(matrix), np.float64)))
            laid[second].append((first, matrix))
    return laid, [None, *(forth[first, first + 1] for first in range(count - 1))]


def _homography(cv2: Any, points: Array, first: int, second: int) -> Array | None:
    """From pixels of the first frame to those of the second."""
    both = np.isfinite(points[:, [first, second], 0]).all(axis=1)
    if both.sum() < _LEAST_FEATURES:
        return None
    start, end = (np.float32(points[both, k] - 0.5) for k in (first, second))  # OpenCV: from a pixel's middle
    matrix, inside = cv2.findHomography(start, end, cv2.USAC_MAGSAC, _FITS, maxIters=2000)
    if matrix is None or inside.mean() < _LAID or abs(np.linalg.det(matrix)) < 1e-6:
        return None
    return np.asarray(matrix, np.float64)


def changes(cv2: Any, frames: list[Image], laid: Laid) -> Image:
    """What differs, in each frame, from the frames laid over it.

    A pixel differs where its colour is outside the range of colours next to it, by more than coding does. One
    that is only darker or brighter, of one hue, is in a shadow, or out of it.

    Args:
        cv2: OpenCV.
        frames: uint8 [h, w, 3], of one size.
        laid: of `lay`.

    Returns:
        uint8 [T, h, w]: CHANGED, STILL (in every frame laid over it) or UNKNOWN.
    """
    kernel = np.ones((3, 3), np.uint8)
    ranges = [(cv2.erode(frame, kernel), cv2.dilate(frame, kernel)) for frame in frames]
    height, width = frames[0].shape[:2]
    out = np.zeros((len(frames), height, width), np.uint8)
    for index, frame in enumerate(frames):
        known, differs, equal = (np.zeros((height, width), np.uint8) for _ in range(3))
        for other, matrix in laid[index]:
            low = cv2.warpPerspective(ranges[other][0], matrix, (width, height))
            high = cv2.warpPerspective(ranges[other][1], matrix, (width, height), borderValue=(255,) * 3)
            seen = (_largest(cv2, low) > 0) | (_largest(cv2, ~high) > 0)
            outside = _largest(cv2, cv2.max(cv2.subtract(frame, high), cv2.subtract(low, frame)))
            found = seen & (outside > _LEVELS)
            equal += seen & ~found
            found[found] = ~_shaded(frame[found], low[found], high[found])
            known += seen
            differs += found
        enough = known >= min(2, len(laid[index]))
        out[index][enough & (equal == known)] = STILL
        out[index][enough & (differs >= np.maximum(_SHARE * known, 1))] = CHANGED
    return out


def _largest(cv2: Any, image: Image) -> Image:
    """[h, w], over the channels."""
    red, green, blue = cv2.split(image)
    return np.asarray(cv2.max(cv2.max(red, green), blue))


def _shaded(colours: Image, low: Image, high: Image) -> NDArray[np.bool_]:
    """[n], of the one colour under more or less light."""
    here = colours.astype(np.float32)
    there = (low.astype(np.float32) + high) / 2
    ratio = here.sum(1, keepdims=True) / np.maximum(there.sum(1, keepdims=True), 1)
    darker = np.minimum(ratio, 1 / np.maximum(ratio, 1e-6))
    error = np.abs(np.where(ratio < 1, here - darker * there, there - darker * here)).max(axis=1)
    inside = (darker[:, 0] > _SHADE[0]) & (darker[:, 0] < _SHADE[1])
    return np.asarray(inside & (error < _LEVELS))


def colour_odds(frames: list[Image], changed: Image) -> list[NDArray[np.float32]]:
    """Of each pixel's colour: the logarithm of its share of what changes over its share of what stays.

    Args:
        frames: uint8 [h, w, 3].
        changed: of `changes`.

    Returns:
        Of each frame [h, w], between -2 and 2.
    """
    bins = 1 << (3 * _BITS)
    counts = {kind: np.zeros(bins) for kind in (STILL, CHANGED)}
    codes = [_codes(frame) for frame in frames]
    for code, kinds in zip(codes, changed, strict=True):
        for kind, count in counts.items():
            count += np.bincount(code[kinds == kind], minlength=bins)
    still, moving = (_spread(count / max(count.sum(), 1)) + _LEAST_DENSITY for count in counts.values())
    odds = np.log(moving / still)
    table = np.clip(odds, -_MOST_ODDS, _MOST_ODDS).astype(np.float32)
    return [table[code] for code in codes]


def _codes(frame: Image) -> NDArray[np.uint16]:
    """A number for each pixel's colour."""
    red, green, blue = (frame[..., k].astype(np.uint16) >> (8 - _BITS) for k in range(3))
    return np.asarray((red << (2 * _BITS)) | (green << _BITS) | blue)


def _spread(density: Array) -> Array:
    """A density over colours, blurred over those next to each."""
    cube = density.reshape((1 << _BITS,) * 3)
    for axis in range(3):
        wide = np.pad(cube, [(1, 1) if k == axis else (0, 0) for k in range(3)])
        before, after = (np.take(wide, np.arange(cube.shape[axis]) + k, axis) for k in (0, 2))
        cube = 0.5 * cube + 0.25 * (before + after)
    return cube.ravel()
