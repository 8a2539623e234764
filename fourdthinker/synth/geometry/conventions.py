"""Conventions of poses: what a source writes, turned into camera-to-world matrices with OpenCV's axes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path, PurePosixPath
from typing import TypeVar

import numpy as np
from numpy.typing import ArrayLike

from fourdthinker.errors import ConfigError, GeometryError
from fourdthinker.files import PathLike, read_regular
from fourdthinker.synth.tracks import Array, CameraTrack

_ROUNDED = 0.01  # largest error of a rotation that few digits explain
T = TypeVar("T")
OPENGL = np.diag([1.0, -1.0, -1.0])  # x right, y up, z backward


def quaternion_rotations(quaternions: ArrayLike, source: str) -> Array:
    """Rotations [T, 3, 3] of quaternions [T, 4], x y z w.

    Raises:
        GeometryError: a quaternion whose length is not 1, to a hundredth.
    """
    q = np.asarray(quaternions, np.float64).reshape(-1, 4)
    length = np.linalg.norm(q, axis=1)
    wrong = ~(np.abs(length - 1) < _ROUNDED)
    if wrong.any():
        index = int(wrong.argmax())
        raise GeometryError(
            f"{source}: quaternion {index} has the length {length[index]:g}, not 1; is the order of the "
            "columns another one?"
        )
    x, y, z, w = (q / length[:, None]).T
    rows = [
        [1 - 2 * (y * y + z * z), 2 * (x * y - z * w), 2 * (x * z + y * w)],
        [2 * (x * y + z * w), 1 - 2 * (x * x + z * z), 2 * (y * z - x * w)],
        [2 * (x * z - y * w), 2 * (y * z + x * w), 1 - 2 * (x * x + y * y)],
    ]
    return np.array(rows).transpose(2, 0, 1)


def pose_matrices(rotations: Array, centres: Array) -> Array:
    """[T, 4, 4] camera-to-world of camera-to-world rotations [T, 3, 3] and camera centres [T, 3]."""
    poses = np.tile(np.eye(4), (len(rotations), 1, 1))
    poses[:, :3, :3], poses[:, :3, 3] = rotations, centres
    return poses


def inverted(rotations: Array, translations: Array) -> Array:
    """[T, 4, 4] camera-to-world of world-to-camera rotations [T, 3, 3] and translations [T, 3]."""
    turned = rotations.transpose(0, 2, 1)
    return pose_matrices(turned, -np.einsum("tij,tj->ti", turned, translations))


def nearest_rotations(matrices: Array, source: str) -> Array:
    """The rotations next to matrices [T, 3, 3] that were written with few digits.

    Raises:
        GeometryError: a matrix that is no rotation, to a hundredth.
    """
    u, scale, v = np.linalg.svd(matrices)
    rotations = u @ v
    wrong = (np.abs(scale - 1) > _ROUNDED).any(axis=1) | (np.linalg.det(rotations) < 0)
    if wrong.any():
        index = int(wrong.argmax())
        raise GeometryError(
            f"{source}: matrix {index} is no rotation (its scales are "
            f"{', '.join(f'{s:g}' for s in scale[index])}); give rotations without scale or mirroring"
        )
    return rotations


def frame_times(times: Sequence[float] | Array, count: int, source: str) -> Array:
    """The times of a clip's frames, one for each pose.

    Raises:
        GeometryError: another number of frames than of poses.
    """
    found = np.asarray(times, np.float64)
    if found.shape != (count,):
        raise GeometryError(
            f"{source}: {count} poses for {len(found)} frames; give one pose for each frame, in their order"
        )
    return found


def of_frames(known: Mapping[str, T], names: Sequence[str], source: str) -> list[T]:
    """What a source knows of each frame, by the frame's file name; folders do not count.

    Raises:
        GeometryError: a frame is not among what is known.
    """
    missing = [name for name in names if PurePosixPath(name).name not in known]
    if missing:
        raise GeometryError(
            f"{source}: no pose for {missing[0]} ({len(missing)} of {len(names)} frames have none); leave "
            "these out"
        )
    return [known[PurePosixPath(name).name] for name in names]


def intrinsic_matrix(fx: float, fy: float, cx: float, cy: float) -> Array:
    """[3, 3]."""
    return np.array([[fx, 0.0, cx], [0.0, fy, cy], [0.0, 0.0, 1.0]])


def scaled_intrinsics(
    matrices: Array, known: tuple[float, float], size: tuple[int, int], source: str
) -> Array:
    """Intrinsics [..., 3, 3] for pictures of another size than the one that they are known for.

    Args:
        matrices: in pixels of `known`.
        known: width and height.
        size: width and height of the pictures that are used.
        source: for messages.

    Returns:
        The matrices in pixels of `size`.

    Raises:
        GeometryError: the pictures have another aspect ratio, so that they were cut or turned.
    """
    ratio = np.array(size, np.float64) / np.array(known, np.float64)
    if abs(np.log(ratio[0] / ratio[1])) > 0.02:
        raise GeometryError(
            f"{source}: the intrinsics are for {known[0]:g}x{known[1]:g} pixels and the pictures have "
            f"{size[0]}x{size[1]}, another aspect ratio; give pictures that were neither cut nor turned"
        )
    return np.diag([ratio[0], ratio[1], 1.0]) @ matrices


def read_source(path: PathLike) -> bytes:
    """The bytes of a file of poses.

    Raises:
        GeometryError: it cannot be read.
    """
    try:
        return read_regular(path)
    except ConfigError as error:
        raise GeometryError(str(error)) from error


def with_unit(track: CameraTrack, depth: float | None, source: str) -> CameraTrack:
    """A track in a unit that labels know: metres, or the median depth of the scene.

    Args:
        track: as its file has it.
        depth: the median depth of the scene in the file's unit; None: not said.
        source: the file, for errors.

    Returns:
        The track; not `scaled` where the file's unit is unknown and the camera goes somewhere.

    Raises:
        GeometryError: a depth that is none, or one beside metres.
    """
    if depth is None:
        # a tripod of a SLAM trembles in the last digits
        still = bool((np.ptp(track.centres, axis=0) <= 1e-5 * (1 + np.abs(track.centres).max(axis=0))).all())
        return replace(track, scaled=track.metric or still)
    if track.metric or not 0 < depth < np.inf:
        raise GeometryError(
            f"{source}: depth is {depth:g}{' beside metres' if track.metric else ''}; give the median depth "
            "of the scene in the unit of the poses, above 0, where they are not in metres"
        )
    poses = track.poses.copy()
    poses[:, :3, 3] /= depth
    return replace(track, poses=poses)


def table(path: PathLike, columns: int) -> Array:
    """The numbers of a text file of so many columns; lines that begin with # are comments.

    Raises:
        GeometryError: it cannot be read, or a line is another one.
    """
    rows = []
    text = read_source(path).decode("utf-8", errors="replace")
    for number, line in enumerate(text.splitlines(), 1):
        words = line.replace(",", " ").split()
        if not words or words[0].startswith("#"):
            continue
        try:
            row = [float(word) for word in words]
        except ValueError:
            row = []
        if len(row) != columns:
            raise GeometryError(
                f"{Path(path)}:{number}: {line.strip()[:80]!r} is no line of {columns} numbers"
            )
        rows.append(row)
    if not rows:
        raise GeometryError(f"{Path(path)}: holds no poses; give a file with one line for each frame")
    return np.array(rows)
