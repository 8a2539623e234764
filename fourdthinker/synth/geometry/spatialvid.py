"""SpatialVID's annotations: poses.npy, intrinsics.npy and indexes.txt in the folder of a clip.

poses.npy is [N, 7], tx ty tz qx qy qz qw, world-to-camera with OpenCV's axes, without scale (its SLAM keeps
the scene's depth near 1). intrinsics.npy is [N, 4], fx and cx as fractions of the width, fy and cy of the
height. A line of indexes.txt is a pose's number and the number of the video's frame it is of, so its time is
that over the video's true rate: poses are not exactly 0.2 s apart.
"""

from __future__ import annotations

import io
from pathlib import Path

import numpy as np

from fourdthinker.errors import GeometryError
from fourdthinker.files import PathLike, parse_json
from fourdthinker.synth.geometry.conventions import inverted, quaternion_rotations, read_source, table
from fourdthinker.synth.tracks import CAMERA_MOVES, STATIC, Array, CameraTrack, Move

_NAMES = {"stay": STATIC, "roll cw": "roll clockwise", "roll ccw": "roll counter-clockwise"}


def read_spatialvid(folder: PathLike, *, fps: float, size: tuple[int, int]) -> CameraTrack:
    """The camera's path of a clip of SpatialVID.

    Args:
        folder: annotations/GROUP/CLIP.
        fps: of the clip's video, as it is played.
        size: width and height of its pictures.

    Returns:
        The track; its times count from the video's first frame.

    Raises:
        GeometryError: a file is missing or damaged, or the files are not of one length.
    """
    folder = Path(folder)
    poses = _load(folder / "poses.npy", 7)
    lens = _load(folder / "intrinsics.npy", 4)
    times = _times(folder, fps)
    if not len(poses) == len(lens) == len(times):
        raise GeometryError(
            f"{folder}: {len(poses)} poses, {len(lens)} intrinsics and {len(times)} lines of indexes.txt; "
            "the files are not of one clip, fetch its folder once more"
        )
    rotations = quaternion_rotations(poses[:, 3:], str(folder / "poses.npy"))
    width, height = size
    intrinsics = np.zeros((len(lens), 3, 3))
    intrinsics[:, 0, 0], intrinsics[:, 0, 2] = lens[:, 0] * width, lens[:, 2] * width
    intrinsics[:, 1, 1], intrinsics[:, 1, 2] = lens[:, 1] * height, lens[:, 3] * height
    intrinsics[:, 2, 2] = 1
    return CameraTrack(times, inverted(rotations, poses[:, :3]), intrinsics, size, source="spatialvid")


def read_instructions(folder: PathLike, *, fps: float) -> tuple[Move, ...]:
    """SpatialVID's own camera labels, to be compared with ours and never to be used as labels.

    They are wrong once the camera has turned, whatever the convention of the poses.

    Args:
        folder: annotations/GROUP/CLIP.
        fps: of the clip's video, as it is played.

    Returns:
        Moves; those of one range are concurrent.

    Raises:
        GeometryError: a file is missing or damaged, or a move is unknown.
    """
    folder = Path(folder)
    path = folder / "instructions.json"
    times = _times(folder, fps)
    try:
        found = parse_json(read_source(path))
        moves = []
        for key, names in found.items():
            start, end = (float(times[int(number)]) for number in key.split("->"))
            moves += [Move("camera", _move(str(name), path), start, end) for name in names]
        return tuple(moves)
    except (ValueError, IndexError, AttributeError, TypeError) as error:
        if isinstance(error, GeometryError):
            raise
        raise GeometryError(
            f'{path}: not of the form {{"0->3": ["Dolly In"]}} with poses of the clip ({error})'
        ) from error


def _move(name: str, path: Path) -> str:
    """Our name of a move of SpatialVID."""
    lower = name.lower()
    if lower not in _NAMES and lower not in CAMERA_MOVES:
        known = ", ".join((*CAMERA_MOVES, *_NAMES))
        raise GeometryError(f"{path}: unknown move {name!r}; known are {known}")
    return _NAMES.get(lower, lower)


def _times(folder: Path, fps: float) -> Array:
    if not 0 < fps < 1000:
        raise GeometryError(f"{folder}: {fps} frames a second; give the rate of the clip's video")
    return table(folder / "indexes.txt", 2)[:, 1] / fps


def _load(path: Path, columns: int) -> Array:
    try:
        array = np.load(io.BytesIO(read_source(path)), allow_pickle=False)
    except (ValueError, EOFError, OSError) as error:
        if isinstance(error, GeometryError):
            raise
        raise GeometryError(f"{path}: no array file ({error}); fetch it once more") from error
    if array.ndim != 2 or array.shape[1] != columns or array.dtype.kind != "f":
        raise GeometryError(
            f"{path}: {array.dtype} {list(array.shape)}, and SpatialVID writes floats [N, {columns}]; is "
            "this another file?"
        )
    return np.asarray(array, np.float64)
