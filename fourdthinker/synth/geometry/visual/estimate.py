"""The camera's path from frames: points are followed, and the stretches of the path are chained."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from fourdthinker.errors import GeometryError
from fourdthinker.synth.computer_vision import opencv
from fourdthinker.synth.geometry.conventions import intrinsic_matrix, pose_matrices
from fourdthinker.synth.geometry.visual.features import follow
from fourdthinker.synth.geometry.visual.stretch import go_on, new_path
from fourdthinker.synth.tracks import Array, CameraTrack

USUAL_FOCAL = 0.8  # of the long side: the main camera of a phone while filming
_KEY_SECONDS = 0.1  # between frames that get a pose


@dataclass(frozen=True, eq=False)
class Estimate:
    """`track`: poses of about ten frames a second; `points` [N, 3]: what was seen, in the same world."""

    track: CameraTrack
    points: Array


def estimate_camera(
    frames: Sequence[NDArray[np.uint8]],
    times: Sequence[float] | Array,
    *,
    intrinsics: Array | None = None,
    movers: Sequence[NDArray[np.bool_]] | None = None,
) -> Estimate:
    """Estimate the camera's path from the frames of one shot.

    Between frames without parallax the camera has only turned, and its position stays what it was; so a pan
    far from anything is a pan. There is no scale: the unit is the median depth of the points that are seen.

    Args:
        frames: uint8 [H, W, 3], RGB, of one size.
        times: seconds, one for each frame.
        intrinsics: [3, 3] in pixels of the frames; None: a usual focal length, and the middle of the frame.
        movers: bool [H, W] for each frame, true on objects that move; None: most of what is seen stands
            still.

    Returns:
        The track and the points. Poses that few points agree with have a low confidence.

    Raises:
        GeometryError: fewer than two frames, other numbers of times or masks, or nothing that can be
            followed.
        ConfigError: OpenCV is not installed.
    """
    seconds = _checked(frames, times, movers)
    height, width = frames[0].shape[:2]
    if intrinsics is None:
        focal = USUAL_FOCAL * max(width, height)
        intrinsics = intrinsic_matrix(focal, focal, width / 2, height / 2)
    pixels = follow(frames, seconds, movers)
    keys = key_frames(seconds, _KEY_SECONDS)
    pixels = pixels[:, keys]
    pixels = pixels[np.isfinite(pixels[..., 0]).sum(axis=1) >= 2]
    if not len(pixels):
        raise GeometryError(
            "no point of the scene can be followed from frame to frame; the frames show too little"
        )
    rays = _rays(pixels, np.asarray(intrinsics, np.float64))
    # Points were found in frames of at most 640 pixels: a pixel of these is what they are exact to.
    pixel = max(max(width, height) / 640, 1.0) / float(intrinsics[0, 0])
    path = new_path(rays, pixel)
    points = []
    frame = 0
    while frame < path.length - 1:
        frame = go_on(path, frame)
        points.append(path.points[np.isfinite(path.points[:, 0])])
    found = np.concatenate(points)
    unit = _median_depth(path.rotations, path.centres, found)
    track = CameraTrack(
        seconds[keys],
        pose_matrices(path.rotations, path.centres / unit),
        np.asarray(intrinsics, np.float64),
        (width, height),
        confidence=path.confidence,
        source="opencv",
    )
    return Estimate(track, found / unit)


def _checked(
    frames: Sequence[NDArray[np.uint8]],
    times: Sequence[float] | Array,
    movers: Sequence[NDArray[np.bool_]] | None,
) -> Array:
    """The times, one for each frame."""
    if len(frames) < 2 or len(frames) != len(times):
        raise GeometryError(
            f"{len(frames)} frames and {len(times)} times; give at least two, one time for each"
        )
    if movers is not None and len(movers) != len(frames):
        raise GeometryError(f"{len(movers)} masks for {len(frames)} frames; give one for each")
    return np.asarray(times, np.float64)


def key_frames(times: Array, spacing: float) -> NDArray[np.int64]:
    """Frames that get a pose.

    Args:
        times: seconds, increasing.
        spacing: seconds between two of them, at least.

    Returns:
        Indices: the first, each that is `spacing` after the last one chosen, and the last.
    """
    keys = [0]
    for k, time in enumerate(times):
        if time - times[keys[-1]] >= spacing - 1e-3:
            keys.append(k)
    if keys[-1] != len(times) - 1:
        keys.append(len(times) - 1)
    return np.array(keys)


def _rays(pixels: Array, intrinsics: Array) -> Array:
    """[N, T, 2] on the plane at depth 1."""
    flat = pixels.reshape(-1, 1, 2)
    seen = np.isfinite(flat[:, 0, 0])
    out = np.full((len(flat), 2), np.nan)
    out[seen] = opencv().undistortPoints(flat[seen], intrinsics, None)[:, 0]
    return out.reshape(pixels.shape)


def _median_depth(rotations: Array, centres: Array, points: Array) -> float:
    """Of the points before each camera, over all of them; 1 without points."""
    if not len(points):
        return 1.0
    depth = np.einsum("tj,ntj->tn", rotations[:, :, 2], points[:, None] - centres[None])
    depth = depth[depth > 0]
    return float(np.median(depth)) if len(depth) else 1.0
