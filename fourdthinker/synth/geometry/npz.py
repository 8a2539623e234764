"""Tracks in one .npz file of stated keys, which any external pose model can be asked to write.

Keys: `poses` [T, 4, 4] or [T, 3, 4] and `convention`, one of CONVENTIONS, are needed. `times` [T] (seconds),
`intrinsics` [3, 3] or [T, 3, 3] with `size` (width, height), `metric` (bool), `depth` (the median depth of
the scene in the unit of the poses, where they are not in metres), `confidence` [T] (0 to 1) and `source`
(text) may be given.
"""

from __future__ import annotations

import io
import zipfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from fourdthinker.errors import GeometryError
from fourdthinker.files import PathLike, atomic_writer
from fourdthinker.synth.geometry.conventions import (
    OPENGL,
    frame_times,
    inverted,
    nearest_rotations,
    pose_matrices,
    read_source,
    with_unit,
)
from fourdthinker.synth.tracks import CameraTrack

CONVENTIONS = ("opencv camera-to-world", "opencv world-to-camera", "opengl camera-to-world")
_KEYS = {"poses", "convention", "times", "intrinsics", "size", "metric", "depth", "confidence", "source"}


def read_npz(path: PathLike, *, times: Sequence[float] | None = None) -> CameraTrack:
    """The camera's path from a .npz file.

    Args:
        path: the file.
        times: of the clip's frames, one for each pose; None: those of the file.

    Returns:
        The track.

    Raises:
        GeometryError: a key is missing, unknown or of another shape, or the number of frames differs.
    """
    source = str(Path(path))
    values = _load(path)
    unknown = sorted(set(values) - _KEYS)
    if unknown or "poses" not in values or "convention" not in values:
        wrong = f"unknown key {unknown[0]!r}" if unknown else "poses or convention is missing"
        raise GeometryError(f"{source}: {wrong}; the keys are {', '.join(sorted(_KEYS))}")
    convention = str(values["convention"])
    if convention not in CONVENTIONS:
        raise GeometryError(f"{source}: convention is {convention!r}; write one of: {'; '.join(CONVENTIONS)}")
    matrices = np.asarray(values["poses"], np.float64)
    if matrices.ndim != 3 or matrices.shape[1:] not in ((3, 4), (4, 4)):
        raise GeometryError(
            f"{source}: poses have the shape {list(matrices.shape)}; write [T, 4, 4] or [T, 3, 4]"
        )
    if times is None and "times" not in values:
        raise GeometryError(f"{source}: holds no times; write them, or give the frames' times")
    seconds = frame_times(values["times"] if times is None else times, len(matrices), source)
    rotations = nearest_rotations(matrices[:, :3, :3], source)
    if convention == "opencv world-to-camera":
        poses = inverted(rotations, matrices[:, :3, 3])
    else:
        turned = rotations @ OPENGL if convention.startswith("opengl") else rotations
        poses = pose_matrices(turned, matrices[:, :3, 3])
    size = values.get("size")
    track = CameraTrack(
        seconds,
        poses,
        values.get("intrinsics"),
        None if size is None else (int(size[0]), int(size[1])),
        metric=bool(values.get("metric", False)),
        confidence=values.get("confidence", np.ones(0)),
        source=str(values.get("source", "npz")),
    )
    depth = values.get("depth")
    if depth is not None and (np.size(depth) != 1 or np.asarray(depth).dtype.kind not in "iuf"):
        raise GeometryError(f"{source}: depth is {depth!r}; write one number, the median depth of the scene")
    return with_unit(track, None if depth is None else float(np.ravel(depth)[0]), source)


def write_npz(path: PathLike, track: CameraTrack) -> None:
    """Write a track in the form that `read_npz` reads.

    Args:
        path: the file.
        track: the camera's path.

    Raises:
        OutputError: it cannot be written.
    """
    values: dict[str, Any] = {
        "poses": track.poses,
        "convention": CONVENTIONS[0],
        "times": track.times,
        "metric": track.metric,
        "confidence": track.confidence,
        "source": track.source,
    }
    if track.scaled and not track.metric:
        values["depth"] = 1.0
    if track.intrinsics is not None and track.size is not None:
        values |= {"intrinsics": track.intrinsics, "size": np.array(track.size)}
    with atomic_writer(path) as file:
        np.savez(file, **values)


def _load(path: PathLike) -> dict[str, Any]:
    try:
        with np.load(io.BytesIO(read_source(path)), allow_pickle=False) as archive:
            return {key: archive[key] for key in archive.files}
    except (ValueError, EOFError, OSError, AttributeError, TypeError, zipfile.BadZipFile) as error:
        if isinstance(error, GeometryError):
            raise
        raise GeometryError(
            f"{Path(path)}: no .npz file of plain arrays ({error}); write it with numpy.savez"
        ) from error
