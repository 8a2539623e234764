"""transforms.json of nerfstudio and instant-ngp: camera-to-world, OpenGL's axes (y up, z backward)."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np

from fourdthinker.errors import GeometryError
from fourdthinker.files import PathLike, parse_json
from fourdthinker.synth.geometry.conventions import (
    OPENGL,
    frame_times,
    intrinsic_matrix,
    nearest_rotations,
    of_frames,
    pose_matrices,
    read_source,
    scaled_intrinsics,
    with_unit,
)
from fourdthinker.synth.tracks import Array, CameraTrack


def read_nerfstudio(
    path: PathLike,
    *,
    names: Sequence[str],
    times: Sequence[float],
    size: tuple[int, int] | None = None,
    depth: float | None = None,
) -> CameraTrack:
    """The camera's path from a transforms.json.

    Args:
        path: the file.
        names: of the frames in order of time, as in `file_path`; folders do not count.
        times: seconds of these frames.
        size: width and height of the pictures that are used, where it is not that of the file.
        depth: the median depth of the scene in the file's unit, which has no scale; None: not known.

    Returns:
        The track; its lengths are in units of `depth`. Without it, it is not `scaled`.

    Raises:
        GeometryError: the file has another form, has no pose for a frame, or its lens cannot be.
    """
    source = str(Path(path))
    try:
        found = parse_json(read_source(path))
        frames = {PurePosixPath(frame["file_path"]).name: frame for frame in found["frames"]}
    except (ValueError, KeyError, TypeError) as error:
        if isinstance(error, GeometryError):
            raise
        raise GeometryError(f"{source}: not of the form of a transforms.json ({error})") from error
    seconds = frame_times(times, len(names), source)
    chosen = of_frames(frames, names, source)
    try:
        matrices = np.array([frame["transform_matrix"] for frame in chosen], np.float64)[:, :3, :4]
        lenses = [_lens(found | frame) for frame in chosen]
    except (KeyError, IndexError, ValueError, TypeError) as error:
        raise GeometryError(
            f"{source}: transform_matrix or the lens (fl_x, w, h) is wrong ({error})"
        ) from error
    rotations = nearest_rotations(matrices[:, :, :3], source) @ OPENGL
    known = lenses[0][1]
    intrinsics = np.stack([matrix for matrix, _ in lenses])
    whole = (round(known[0]), round(known[1]))
    if size is not None:
        intrinsics = scaled_intrinsics(intrinsics, known, size, source)
    poses = pose_matrices(rotations, matrices[:, :, 3])
    track = CameraTrack(seconds, poses, intrinsics, size or whole, source="nerfstudio")
    return with_unit(track, depth, source)


def _lens(values: Mapping[str, Any]) -> tuple[Array, tuple[float, float]]:
    """Intrinsics [3, 3], and width and height of the pictures they are for."""
    width, height = float(values["w"]), float(values["h"])
    fx = values.get("fl_x")
    if fx is None:
        fx = width / 2 / math.tan(float(values["camera_angle_x"]) / 2)
    fy, cx, cy = values.get("fl_y", fx), values.get("cx", width / 2), values.get("cy", height / 2)
    return intrinsic_matrix(float(fx), float(fy), float(cx), float(cy)), (width, height)
