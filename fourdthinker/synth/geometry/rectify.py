"""Depth of the left frames of two calibrated cameras: rectified, matched, and brought back."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fourdthinker.errors import GeometryError
from fourdthinker.synth.computer_vision import opencv
from fourdthinker.synth.geometry.calibration import Calibration, Lens
from fourdthinker.synth.geometry.conventions import intrinsic_matrix
from fourdthinker.synth.geometry.depth import Depth, stereo_depth
from fourdthinker.synth.tracks import Array

_LARGEST = 1.0  # widths of the frame that the rectified picture reaches to each side of its middle
_LEAST_AHEAD = 0.2  # cosine of a ray to the rectified picture's axis, to be in it
_BACK = 0.5  # pixels: a ray that the lens brings back elsewhere than it came from is none


def calibrated_depth(
    left: Sequence[NDArray[np.uint8]], right: Sequence[NDArray[np.uint8]], calibration: Calibration
) -> Depth:
    """Depth in metres of the left frames, as they were filmed.

    Both are turned to common axes (`Calibration.rectifying`) and freed of distortion, matched row by row
    (`stereo_depth`), and the depth found is told along the left camera's own axis, at its own pixels.

    Args:
        left: uint8 [H, W, 3]; the depth is theirs.
        right: uint8 [H, W, 3], as many.
        calibration: of the cameras, for pictures of any size with the aspect of these.

    Returns:
        The depth; unknown where the frames do not match.

    Raises:
        GeometryError: frames of unlike number, size or aspect, or a lens that shows none of it.
        ConfigError: OpenCV is not installed.
    """
    if not left or len(left) != len(right) or left[0].shape != right[0].shape:
        raise GeometryError(
            f"stereo: {len(left)} left and {len(right)} right frames; give as many, of one size"
        )
    cv2 = opencv()
    height, width = left[0].shape[:2]
    calibration.check_size((width, height), "a frame")
    lenses = [
        lens.scaled(calibration.size, (width, height)) for lens in (calibration.left, calibration.right)
    ]
    turns = calibration.rectifying()
    seen = _rays(cv2, lenses[0], (width, height)) @ turns[0].T  # [H, W, 3], in the common axes
    focal = float(lenses[0].matrix[0, 0])
    common, size = _picture(seen, lenses[0], calibration.source)
    maps = [
        cv2.initUndistortRectifyMap(lens.matrix, lens.distortion, turn, common, size, cv2.CV_32FC1)
        for lens, turn in zip(lenses, turns, strict=True)
    ]
    pairs = [
        [cv2.remap(np.ascontiguousarray(frame), *there, cv2.INTER_LINEAR) for frame in frames]
        for there, frames in zip(maps, (left, right), strict=True)
    ]
    found = stereo_depth(*pairs, focal=focal, baseline=calibration.baseline)
    # At depth d the ray s is at d s / s_z; along the left axis, of which s has the length 1, that is d / s_z.
    with np.errstate(divide="ignore", invalid="ignore"):
        ahead = np.where(seen[..., 2] > _LEAST_AHEAD, seen[..., 2], np.nan)
        where = (seen[..., :2] * focal / ahead[..., None] + common[:2, 2]).astype(np.float32)
    column, row = np.where(np.isfinite(where), where, np.float32(-1e4)).transpose(2, 0, 1)
    values = [
        cv2.remap(depth, column, row, cv2.INTER_NEAREST, borderMode=cv2.BORDER_CONSTANT, borderValue=np.nan)
        for depth in found.values
    ]
    return Depth((np.stack(values) / ahead).astype(np.float32), metric=True, source="stereo")


def _rays(cv2: Any, lens: Lens, size: tuple[int, int]) -> Array:
    """[H, W, 3], where each pixel looks, at depth 1 along the axis; NaN where the lens shows nothing."""
    width, height = size
    pixels = (
        np.stack(np.meshgrid(np.arange(width), np.arange(height)), -1).reshape(-1, 1, 2).astype(np.float64)
    )
    exact = (cv2.TERM_CRITERIA_COUNT | cv2.TERM_CRITERIA_EPS, 40, 1e-9)
    flat = cv2.undistortPoints(pixels, lens.matrix, lens.distortion, criteria=exact)[:, 0]
    rays = np.concatenate([flat, np.ones((len(flat), 1))], axis=1)
    back = cv2.projectPoints(rays, np.zeros(3), np.zeros(3), lens.matrix, lens.distortion)[0]
    with np.errstate(invalid="ignore", over="ignore"):
        rays[~(np.abs(back - pixels).max(axis=(1, 2)) < _BACK)] = np.nan
    return rays.reshape(height, width, 3)


def _picture(seen: Array, lens: Lens, source: str) -> tuple[Array, tuple[int, int]]:
    """K and size (width, height) of a picture of the lens's focal length that holds what it sees.

    Of a lens without distortion that is not turned it is the frame itself, pixel for pixel.
    """
    ahead = seen[seen[..., 2] > _LEAST_AHEAD]
    if not len(ahead):
        raise GeometryError(
            f"{source}: left.K and left.distortion show nothing of the frames; calibrate again"
        )
    focal, centre = lens.matrix[0, 0], lens.matrix[:2, 2]
    there = np.round(ahead[:, :2] * (focal / ahead[:, 2:]) + centre, 3)
    reach = _LARGEST * max(seen.shape[:2])
    first = np.floor(np.maximum(there.min(axis=0), centre - reach))
    last = np.ceil(np.minimum(there.max(axis=0), centre + reach))
    width, height = (last - first).astype(int) + 1
    return intrinsic_matrix(focal, focal, *(centre - first)), (int(width), int(height))
