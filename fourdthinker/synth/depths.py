"""Depth of a clip's frames, in the unit of its camera's path: from a second camera, or from a model."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from fourdthinker.errors import ConfigError, GeometryError
from fourdthinker.frames import FramePolicy, iterate_frames, probe
from fourdthinker.synth.clips import RejectError
from fourdthinker.synth.context import Context
from fourdthinker.synth.geometry import (
    Calibration,
    Depth,
    Estimate,
    aligned,
    calibrated_depth,
    in_metres,
    read_calibration,
    stereo_depth,
)
from fourdthinker.synth.geometry.conventions import intrinsic_matrix
from fourdthinker.synth.inputs import Candidate, unfit
from fourdthinker.synth.tracks import Array, CameraTrack

if TYPE_CHECKING:
    from fourdthinker.synth.geometry.depth_model import DepthModel


class UnscaledError(GeometryError):
    """Nothing relates the depth to the camera's path."""


def with_depth(context: Context, camera: CameraTrack, estimate: Estimate | None) -> tuple[CameraTrack, Depth]:
    """Depth of each frame, and the camera's path in one unit with it.

    Args:
        context: of a clip with stereo, or of a run with depth_weights.
        camera: poses at the clip's frames.
        estimate: where the path was estimated; its points set the scale of one or the other.

    Returns:
        The path, in metres where the depth is and points or its own scale allow it; the depth.

    Raises:
        UnscaledError: nothing relates the depth to the path.
        GeometryError: the second video does not fit the first.
        CheckpointError: depth_weights holds no depth model.
    """
    model = _model_of(context)
    if model is None:
        depth = _stereo(context)
    else:
        values = model(list(context.clip.pixels))
        if not model.metric:
            if estimate is None:
                raise UnscaledError("the model's depth has no scale, and given poses come without points")
            return camera, aligned(values, camera, estimate.points, str(context.settings.depth_weights))
        depth = Depth(values, metric=True, source=str(context.settings.depth_weights))
    if camera.metric:
        return camera, depth
    if estimate is None:
        raise UnscaledError("the depth is in metres and the given poses are not; give poses in metres")
    return in_metres(camera, estimate.points, depth), depth


def depth_of(context: Context, frame: int) -> NDArray[np.float32]:
    """Depth of one frame, of the scene, the second camera or the model, for a picture of it.

    Args:
        context: of the clip.
        frame: which of its frames.

    Returns:
        float32 [H, W], larger is farther, in any unit; NaN where it is unknown.

    Raises:
        RejectError: the clip has no second video, and the run no model.
        GeometryError: the second video does not fit the first.
        CheckpointError: depth_weights holds no depth model.
    """
    if context.scene is not None:
        return context.scene.depth[context.scene.index(context.clip)[frame]]
    if "right" not in context.source.given and context.settings.depth_weights is None:
        raise RejectError("no depth for imagery=depth")
    model = _model_of(context)
    if model is None:
        return _stereo(context, slice(frame, frame + 1)).values[0]
    return np.asarray(model([context.clip.pixels[frame]])[0], np.float32)


def _model_of(context: Context) -> DepthModel | None:
    """What says the depth of a clip; None: its second video does."""
    return None if "right" in context.source.given else _model(context.settings.depth_weights)


@cache
def _model(weights: Path | None) -> DepthModel | None:
    """The model, loaded once in each process."""
    import torch

    from fourdthinker.synth.geometry.depth_model import DepthModel

    assert weights is not None
    return DepthModel(weights, device="cuda" if torch.cuda.is_available() else "cpu")


def with_lens(context: Context, camera: CameraTrack) -> CameraTrack:
    """The path with the intrinsics of the left camera of a pair, where they are known better.

    Those of a calibration replace what the path brings, those of a focal length alone do not.

    Args:
        context: of the clip.
        camera: its path.

    Returns:
        The path; as it is where there is no right camera.

    Raises:
        GeometryError: a calibration that cannot be, or of pictures of another aspect.
    """
    lens = lens_of(context)
    if lens is None or (camera.intrinsics is not None and "calibration" not in context.source.given):
        return camera
    height, width = context.clip.pixels.shape[1:3]
    return replace(camera, intrinsics=lens, size=(width, height))


def lens_of(context: Context) -> Array | None:
    """[3, 3], intrinsics of the left camera of a pair, in pixels of the clip's frames from their corner.

    Args:
        context: of the clip.

    Returns:
        None where there is no right camera.

    Raises:
        GeometryError: a calibration that cannot be, or of pictures of another aspect.
    """
    given = context.source.given
    if "right" not in given:
        return None
    height, width = context.clip.pixels.shape[1:3]
    if "calibration" not in given:
        focal = _focal(context)
        return intrinsic_matrix(focal, focal, width / 2, height / 2)
    calibration = read_calibration(given["calibration"])
    calibration.check_size((width, height), "a frame")
    matrix = calibration.left.scaled(calibration.size, (width, height)).matrix.copy()
    matrix[:2, 2] += 0.5  # the middle of the first pixel is 0 there
    return matrix


def check_calibrations(found: Sequence[Candidate]) -> None:
    """Whether calibrations are some, and each video that one is given with has the aspect that it is for.

    Args:
        found: all that is to be read; what is refused or no video is left to the ingest stage.

    Raises:
        ConfigError: a calibration that cannot be, or a video of another aspect.
    """
    known: dict[str, Calibration] = {}  # one rig films many clips
    for candidate in found:
        path = candidate.row.get("calibration")
        if path is None or unfit(candidate) is not None:
            continue
        try:
            if path not in known:
                known[path] = read_calibration(path)
            held = probe(candidate.path)
            rows, columns = held.size[::-1] if held.orientation.transposed else held.size
            known[path].check_size((columns, rows), candidate.shown)
        except GeometryError as error:
            raise ConfigError(f"{candidate.shown}: calibration: {error}") from error
        except (ValueError, OSError):  # no video
            continue


def _focal(context: Context) -> float:
    """The focal length of a rectified pair, in pixels of the clip's frames."""
    found = max(probe(context.source.path).size)  # stored sizes may be turned by 90 degrees
    return float(context.source.given["focal"]) * max(context.clip.pixels.shape[1:3]) / found


def _stereo(context: Context, frames: slice = slice(None)) -> Depth:
    """From the right video, of which the frames are read that lie beside those of the clip."""
    given, clip = context.source.given, context.clip
    size, other = probe(context.source.path).size, probe(given["right"]).size
    if other != size:
        raise GeometryError(
            f"{given['right']}: {other[1]}x{other[0]} pixels and the left video {size[1]}x{size[0]}; "
            "give videos of one size"
        )
    rows, columns = clip.pixels.shape[1:3]
    policy = FramePolicy(
        fps=context.settings.analysis_fps,
        max_frames=1 << 24,
        max_pixels=context.settings.analysis_pixels,
        min_pixels=4,
        factor=2,
    )
    batches = iterate_frames(given["right"], policy, times=(clip.times[frames] + clip.start).tolist())
    left = list(clip.pixels[frames])
    right = [frame for batch in batches for frame in np.asarray(batch.pixels)]
    if right and right[0].shape != (rows, columns, 3):
        raise GeometryError(f"{given['right']}: its frames are read at another size than the left ones")
    if "calibration" in given:
        return calibrated_depth(left, right, read_calibration(given["calibration"]))
    return stereo_depth(left, right, focal=_focal(context), baseline=float(given["baseline"]))
