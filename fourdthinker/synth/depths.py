"""Depth of a clip's frames, in the unit of its camera's path: from a second camera, or from a model."""

from __future__ import annotations

from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from fourdthinker.errors import GeometryError
from fourdthinker.frames import FramePolicy, iterate_frames, probe
from fourdthinker.synth.context import Context
from fourdthinker.synth.geometry import Depth, Estimate, aligned, in_metres, stereo_depth
from fourdthinker.synth.tracks import CameraTrack

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
    model = None if "right" in context.source.given else _model(context.settings.depth_weights)
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


@cache
def _model(weights: Path | None) -> DepthModel | None:
    """The model, loaded once in each process."""
    import torch

    from fourdthinker.synth.geometry.depth_model import DepthModel

    assert weights is not None
    return DepthModel(weights, device="cuda" if torch.cuda.is_available() else "cpu")


def _stereo(context: Context) -> Depth:
    """From the right video of a rectified pair, whose frames are read at the clip's times."""
    given, clip = context.source.given, context.clip
    size, other = probe(context.source.path).size, probe(given["right"]).size
    if other != size:
        raise GeometryError(
            f"{given['right']}: {other[1]}x{other[0]} pixels and the left video {size[1]}x{size[0]}; "
            "give rectified videos of one size"
        )
    rows, columns = clip.pixels.shape[1:3]
    policy = FramePolicy(
        fps=context.settings.analysis_fps,
        max_frames=1 << 24,
        max_pixels=context.settings.analysis_pixels,
        min_pixels=4,
        factor=2,
    )
    batches = iterate_frames(given["right"], policy, times=(clip.times + clip.start).tolist())
    right = [frame for batch in batches for frame in np.asarray(batch.pixels)]
    if right and right[0].shape != (rows, columns, 3):
        raise GeometryError(f"{given['right']}: its frames are read at another size than the left ones")
    return stereo_depth(
        list(clip.pixels),
        right,
        focal=float(given["focal"])
        * max(rows, columns)
        / max(size),  # stored sizes may be turned by 90 degrees
        baseline=float(given["baseline"]),
    )
