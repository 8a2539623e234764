"""Depth of every pixel: given, from a rectified stereo pair, or from a model's weights."""

from __future__ import annotations

import io
import zipfile
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from fourdthinker.errors import GeometryError
from fourdthinker.files import PathLike
from fourdthinker.synth.computer_vision import opencv
from fourdthinker.synth.geometry.calibration import FARTHEST
from fourdthinker.synth.geometry.conventions import read_source
from fourdthinker.synth.tracks import Array, CameraTrack

_KEYS = {"depth", "metric"}
_LEAST_POINTS = 20  # in front of a camera, to find the scale of a model's depth


@dataclass(frozen=True, eq=False)
class Depth:
    """Depth along the optical axis.

    Attributes:
        values: [T, H, W] float32, above 0; NaN where it is unknown.
        metric: whether it is in metres; else in the unit of the camera's track.
        source: where it is from.
    """

    values: NDArray[np.float32]
    metric: bool
    source: str

    def __post_init__(self) -> None:
        values = np.array(self.values, np.float32)
        if values.ndim != 3 or not values.size:
            raise GeometryError(f"{self.source}: depth has the shape {list(values.shape)}; give [T, H, W]")
        values[~np.isfinite(values) | (values <= 0)] = np.nan
        object.__setattr__(self, "values", values)


def read_depth(path: PathLike, *, frames: int) -> Depth:
    """Depth from a .npz file: `depth` [T, H, W], 0 or not finite where unknown, and `metric` (bool).

    Args:
        path: the file.
        frames: number of frames of the clip.

    Returns:
        The depth.

    Raises:
        GeometryError: a key is missing, unknown or of another shape, or the number of frames differs.
    """
    source = str(Path(path))
    try:
        with np.load(io.BytesIO(read_source(path)), allow_pickle=False) as archive:
            values = {key: archive[key] for key in archive.files}
    except (ValueError, EOFError, OSError, AttributeError, TypeError, zipfile.BadZipFile) as error:
        if isinstance(error, GeometryError):
            raise
        raise GeometryError(
            f"{source}: no .npz file of plain arrays ({error}); write it with numpy.savez"
        ) from error
    if set(values) != _KEYS:
        raise GeometryError(
            f"{source}: holds {', '.join(sorted(values)) or 'nothing'}; write depth and metric"
        )
    found = Depth(values["depth"], bool(values["metric"]), source)
    if len(found.values) != frames:
        raise GeometryError(f"{source}: depth of {len(found.values)} frames for {frames}; give one for each")
    return found


def stereo_depth(
    left: Sequence[NDArray[np.uint8]],
    right: Sequence[NDArray[np.uint8]],
    *,
    focal: float,
    baseline: float,
    disparities: int = 64,
) -> Depth:
    """Depth in metres from rectified stereo frames, by semi-global matching.

    Args:
        left: uint8 [H, W, 3]; the depth is theirs.
        right: uint8 [H, W, 3], as many.
        focal: pixels, of the rectified frames.
        baseline: metres between both cameras.
        disparities: largest difference in pixels that is searched; a multiple of 16. Nearer than
            focal * baseline / disparities nothing is found.

    Returns:
        The depth; unknown where the frames do not match.

    Raises:
        GeometryError: frames of unlike number or size, or a calibration that cannot be.
        ConfigError: OpenCV is not installed.
    """
    if not left or len(left) != len(right) or left[0].shape != right[0].shape:
        raise GeometryError(
            f"stereo: {len(left)} left and {len(right)} right frames, of sizes "
            f"{[f.shape[:2] for f in left[:1]]} and {[f.shape[:2] for f in right[:1]]}; give as many of "
            "each, of one size"
        )
    width = left[0].shape[1]
    if not 0.1 * width < focal < 30 * width or not 0 < baseline < FARTHEST:
        raise GeometryError(
            f"stereo: a focal length of {focal:g} pixels with frames of {width}, and a baseline of "
            f"{baseline:g} m; the focal length is in pixels of these frames, the baseline in metres, "
            f"above 0 and below {FARTHEST:g}"
        )
    if disparities < 16 or disparities % 16:
        raise GeometryError(f"stereo: disparities is {disparities}; give a multiple of 16")
    cv2 = opencv()
    matcher = cv2.StereoSGBM_create(
        minDisparity=0,
        numDisparities=disparities,
        blockSize=5,
        P1=8 * 3 * 25,
        P2=32 * 3 * 25,
        disp12MaxDiff=1,
        uniquenessRatio=10,
        speckleWindowSize=100,
        speckleRange=2,
    )
    out = []
    for a, b in zip(left, right, strict=True):
        disparity = matcher.compute(np.ascontiguousarray(a), np.ascontiguousarray(b)).astype(np.float32) / 16
        with np.errstate(divide="ignore", invalid="ignore"):
            out.append(np.where(disparity > 0.5, focal * baseline / disparity, np.nan))
    return Depth(np.stack(out), metric=True, source="stereo")


def aligned(inverse: NDArray[np.float32], camera: CameraTrack, points: Array, source: str) -> Depth:
    """Depth in the unit of a camera's track, from a model's inverse depth of unknown scale and shift.

    Args:
        inverse: [T, H, W], a model's relative inverse depth, for the poses of the track.
        camera: with intrinsics.
        points: [N, 3], points of the scene in the track's world, which set scale and shift.
        source: for messages.

    Returns:
        The depth of each frame: 1 / (a * inverse + b), a and b fitted to the points by least squares.

    Raises:
        GeometryError: another number of frames than of poses, or too few points in front of the camera.
    """
    if len(inverse) != len(camera.times):
        raise GeometryError(
            f"{source}: depth of {len(inverse)} frames for {len(camera.times)} poses; give one for each"
        )
    if camera.intrinsics is None or camera.size is None:
        raise GeometryError(
            f"{source}: the camera's track has no intrinsics, so no point is projected; give them"
        )
    out = np.empty_like(inverse, dtype=np.float32)
    for k, image in enumerate(inverse):
        row, column, ahead = _seen(camera, points, k, image.shape)
        if len(row) < _LEAST_POINTS:
            raise GeometryError(
                f"{source}: {len(row)} points of the scene are seen in frame {k}, and "
                f"{_LEAST_POINTS} are needed to find the scale of the model's depth; use a metric depth model"
            )
        x, y = image[row, column].astype(np.float64), 1 / ahead
        a, b = _line(x, y)
        with np.errstate(divide="ignore"):
            out[k] = 1 / (a * image + b)
    return Depth(out, camera.metric, source)


def in_metres(camera: CameraTrack, points: Array, depth: Depth) -> CameraTrack:
    """An estimated path at the scale of a depth in metres.

    Args:
        camera: with intrinsics, without scale.
        points: [N, 3], points of the scene in the track's world.
        depth: metric, one frame for each pose.

    Returns:
        The path in metres. One that has only turned is so already.

    Raises:
        GeometryError: another number of frames than of poses, no intrinsics, or too few points whose depth is
            known.
    """
    if len(depth.values) != len(camera.times) or camera.intrinsics is None or camera.size is None:
        raise GeometryError(
            f"{depth.source}: depth of {len(depth.values)} frames for {len(camera.times)} poses, intrinsics "
            f"{'missing' if camera.intrinsics is None else 'known'}; give one frame for each, and intrinsics"
        )
    ratios = []
    for k, values in enumerate(depth.values):
        row, column, ahead = _seen(camera, points, k, values.shape)
        ratios.append(values[row, column] / ahead)
    known = np.concatenate(ratios)
    known = known[np.isfinite(known)]
    scale = 1.0
    if np.ptp(camera.centres, axis=0).max() > 0:
        if len(known) < _LEAST_POINTS:
            raise GeometryError(
                f"{depth.source}: {len(known)} points of the scene have a depth, and {_LEAST_POINTS} are "
                "needed to find the scale of the camera's path"
            )
        scale = float(np.median(known))
    poses = camera.poses.copy()
    poses[:, :3, 3] *= scale
    return replace(camera, poses=poses, metric=True, source=f"{camera.source}, {depth.source}")


def _seen(
    camera: CameraTrack, points: Array, frame: int, size: tuple[int, ...]
) -> tuple[NDArray[np.int64], NDArray[np.int64], Array]:
    """Rows, columns and depths of the points that a frame of a size shows."""
    assert camera.intrinsics is not None  # checked by the callers
    assert camera.size is not None
    height, width = size
    local = (points - camera.centres[frame]) @ camera.rotations[frame]
    ahead = local[local[:, 2] > 1e-6]
    pixel = (ahead / ahead[:, 2:]) @ camera.intrinsics[frame].T
    ratio = np.array([width, height]) / np.array(camera.size)
    column, row = np.floor(pixel[:, :2] * ratio).astype(np.int64).T
    inside = (column >= 0) & (column < width) & (row >= 0) & (row < height)
    return row[inside], column[inside], ahead[inside, 2]


def _line(x: Array, y: Array) -> tuple[float, float]:
    """Slope a and offset b of y = a x + b, of the line that half of the points are nearest to."""
    rng = np.random.default_rng(0)
    best, error = (0.0, 0.0), np.inf
    for _ in range(200):
        i, j = rng.choice(len(x), 2, replace=False)
        if abs(x[i] - x[j]) < 1e-9:
            continue
        a = (y[i] - y[j]) / (x[i] - x[j])
        b = y[i] - a * x[i]
        middle = float(np.median(np.abs(a * x + b - y)))
        if a > 0 and middle < error:
            best, error = (a, b), middle
    near = np.abs(best[0] * x + best[1] - y) <= 3 * error + 1e-9
    if near.sum() < 2 or np.ptp(x[near]) < 1e-9:
        return best
    a, b = np.polyfit(x[near], y[near], 1)
    return float(a), float(b)
