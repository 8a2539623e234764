"""Trajectories as the TUM RGB-D benchmark and most SLAM systems write them: text, one pose a line."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path

from fourdthinker.errors import GeometryError
from fourdthinker.files import PathLike
from fourdthinker.synth.geometry.conventions import (
    frame_times,
    pose_matrices,
    quaternion_rotations,
    read_source,
    table,
    with_unit,
)
from fourdthinker.synth.tracks import Array, CameraTrack

_DEPTH = re.compile(r"^#\s*(?:median\s+)?depth\s*[:=]?\s*([-+.\d]\S*)", re.MULTILINE | re.IGNORECASE)
_EPOCH = 1e6  # seconds; no video is as long: larger stamps count from some day, such as 1970


def read_tum(
    path: PathLike,
    *,
    times: Sequence[float] | None = None,
    metric: bool = False,
    intrinsics: Array | None = None,
    size: tuple[int, int] | None = None,
) -> CameraTrack:
    """A camera's path from lines `timestamp tx ty tz qx qy qz qw`, camera-to-world with OpenCV's axes.

    A comment `# depth 4.2` says that the median depth of the scene is 4.2 in the unit of the poses; lengths
    are then divided by it. Without it, and without metres, the track is not `scaled`.

    Args:
        path: the file.
        times: of the clip's frames, one for each line; None: the timestamps, in seconds of the video. Those
            that count from 1970 (the first one above 1e6 s) are counted from the first.
        metric: whether lengths are metres, which the format does not say; those of a monocular SLAM are not.
        intrinsics: [3, 3] in pixels of `size`, which the format does not hold.
        size: width and height of the pictures.

    Returns:
        The track.

    Raises:
        GeometryError: a line is another one, a quaternion has not the length 1, or the number of frames
            differs, or a depth is not above 0.
    """
    rows = table(path, 8)
    if times is not None:
        seconds = frame_times(times, len(rows), str(Path(path)))
    else:
        seconds = rows[:, 0] - (rows[0, 0] if rows[0, 0] > _EPOCH else 0.0)
    poses = pose_matrices(quaternion_rotations(rows[:, 4:], str(Path(path))), rows[:, 1:4])
    track = CameraTrack(seconds, poses, intrinsics, size, metric=metric, source="tum")
    return with_unit(track, _depth(path), str(Path(path)))


def _depth(path: PathLike) -> float | None:
    """The median depth that a comment states."""
    said = _DEPTH.search(read_source(path).decode("utf-8", errors="replace"))
    if said is None:
        return None
    try:
        return float(said[1])
    except ValueError:
        raise GeometryError(
            f"{Path(path)}: '# depth {said[1]}' is no number; write such as '# depth 4.2'"
        ) from None
