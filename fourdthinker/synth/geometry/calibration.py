"""The calibration of two cameras, read from a JSON file: lenses, and how the right camera stands."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from fourdthinker.errors import GeometryError
from fourdthinker.files import PathLike, parse_json
from fourdthinker.synth.geometry.conventions import read_source
from fourdthinker.synth.tracks import Array

_LARGEST = 1 << 20  # bytes of the file
_COEFFICIENTS = (0, 4, 5, 8)
_ROTATION_ERROR = 1e-3  # largest entry of RᵀR − 1, as of poses
FARTHEST = 10.0  # metres between two cameras of one rig: more are millimetres
_LEAST_ASIDE = (
    0.5  # cosine: both cameras look at most 60 degrees away from one that faces across the baseline
)


@dataclass(frozen=True, eq=False)
class Lens:
    """One camera.

    Attributes:
        matrix: [3, 3] float64, K in pixels; the middle of the first pixel is 0, as OpenCV has it.
        distortion: [0, 4, 5 or 8] float64, OpenCV's k1, k2, p1, p2, k3, k4, k5, k6.
    """

    matrix: Array
    distortion: Array

    def scaled(self, known: tuple[int, int], size: tuple[int, int]) -> Lens:
        """The lens for pictures of `size` (width, height) in place of `known`."""
        ratio = np.array(size, np.float64) / np.array(known, np.float64)
        matrix = np.diag([*ratio, 1.0]) @ self.matrix
        matrix[:2, 2] = (self.matrix[:2, 2] + 0.5) * ratio - 0.5
        return Lens(matrix, self.distortion)


@dataclass(frozen=True, eq=False)
class Calibration:
    """Two cameras that film the same.

    A point x in the axes of the left camera (OpenCV's: x right, y down, z forward) is at rotation · x +
    translation in those of the right one.

    Attributes:
        source: the file, for messages.
        size: width and height of the pictures that the lenses are for.
        left, right: the lenses.
        rotation: [3, 3] float64.
        translation: [3] float64, metres.
    """

    source: str
    size: tuple[int, int]
    left: Lens
    right: Lens
    rotation: Array
    translation: Array

    @property
    def baseline(self) -> float:
        """Metres between both cameras."""
        return float(np.linalg.norm(self.translation))

    def rectifying(self) -> tuple[Array, Array]:
        """Rotations [3, 3] from the axes of the left and of the right camera to common ones.

        Their x points from the left camera to the right one, whichever side that is on, and their z across
        it, as near to where both cameras look as that allows.
        """
        x = -self.rotation.T @ self.translation / self.baseline
        ahead = np.array([0.0, 0.0, 1.0]) + self.rotation[2]
        z = ahead - (ahead @ x) * x
        z /= max(float(np.linalg.norm(z)), 1e-12)
        common = np.stack([x, np.cross(z, x), z])
        return common, common @ self.rotation.T

    def check_size(self, size: tuple[int, int], what: str) -> None:
        """Whether pictures may be scaled ones of those that the lenses are for.

        Args:
            size: their width and height.
            what: they are, for the message.

        Raises:
            GeometryError: they have another aspect.
        """
        ratio = np.array(size, np.float64) / self.size
        if abs(np.log(ratio[0] / ratio[1])) > 0.02:
            raise GeometryError(
                f"{self.source}: image_size is {self.size[0]}x{self.size[1]} and {what} has "
                f"{size[0]}x{size[1]} pixels, another aspect ratio; calibrate with pictures that are neither "
                "cut nor turned"
            )


def read_calibration(path: PathLike) -> Calibration:
    """The calibration of two cameras from a JSON file.

    Args:
        path: holds an object with image_size [width, height], left and right (each with K, 3 rows of 3
            numbers, and distortion, a list of 0, 4, 5 or 8), R (3 rows of 3) and T (3 numbers, metres).

    Returns:
        The calibration.

    Raises:
        GeometryError: the file cannot be read, a key is missing, unknown or of another form, or the cameras
            cannot be.
    """
    source = str(Path(path))
    top = _keys(_parsed(path, source), {"image_size", "left", "right", "R", "T"}, source)
    width, height = _numbers(top["image_size"], (2,), f"{source}: image_size")
    if not (
        width.is_integer() and height.is_integer() and min(width, height) >= 2 and max(width, height) < 1e5
    ):
        raise GeometryError(f"{source}: image_size is {top['image_size']!r}; give [width, height] in pixels")
    size = int(width), int(height)
    found = Calibration(
        source,
        size,
        _lens(top["left"], size, f"{source}: left"),
        _lens(top["right"], size, f"{source}: right"),
        _rotation(top["R"], f"{source}: R"),
        _numbers(top["T"], (3,), f"{source}: T"),
    )
    if not 1e-4 < found.baseline < FARTHEST:
        raise GeometryError(
            f"{source}: T is {top['T']!r}, a baseline of {found.baseline:g}; give where the left "
            f"camera is in the axes of the right one, in metres, above 0 and below {FARTHEST:g}"
        )
    if min(turn[2, 2] for turn in found.rectifying()) < _LEAST_ASIDE:
        raise GeometryError(
            f"{source}: T is {top['T']!r} with R {top['R']!r}: one camera looks along the line "
            "between both, or they look apart, so that no rows match; put them side by side"
        )
    return found


def _parsed(path: PathLike, source: str) -> Any:
    try:
        large = os.stat(path).st_size > _LARGEST
    except (OSError, ValueError):
        large = False  # the reader says why
    if large:
        raise GeometryError(f"{source}: more than {_LARGEST} bytes; give the calibration alone")
    try:
        return parse_json(read_source(path), unique_keys=True)
    except GeometryError:
        raise
    except ValueError as error:
        raise GeometryError(f"{source}: no JSON ({error}); write one object") from error


def _keys(value: Any, names: set[str], where: str) -> dict[str, Any]:
    """The object that a value is, with exactly these keys."""
    if not isinstance(value, dict):
        raise GeometryError(f"{where} is no object; give {', '.join(sorted(names))}")
    for what, wrong in (("no", names - value.keys()), ("unknown key", value.keys() - names)):
        if wrong:
            raise GeometryError(
                f"{where}: {what} {', '.join(sorted(wrong))}; its keys are {', '.join(sorted(names))}"
            )
    return value


def _numbers(value: Any, shape: tuple[int, ...], where: str) -> Array:
    try:
        array = np.array(value)
    except ValueError:  # rows of unlike length
        array = np.empty(0, object)
    if array.dtype.kind not in "if" or array.shape != shape:
        wanted = f"{shape[0]} numbers" if len(shape) == 1 else f"{shape[0]} rows of {shape[1]} numbers"
        raise GeometryError(f"{where} is {_short(value)}; give {wanted}")
    return array.astype(np.float64)


def _lens(value: Any, size: tuple[int, int], where: str) -> Lens:
    values = _keys(value, {"K", "distortion"}, where)
    matrix = _numbers(values["K"], (3, 3), f"{where}.K")
    focal, centre = np.diag(matrix)[:2] / max(size), matrix[:2, 2] / size
    rest = matrix.copy()
    rest[[0, 1, 0, 1], [0, 1, 2, 2]] = 0.0
    good = (focal > 0.1).all() and (focal < 30).all() and (centre > -0.5).all() and (centre < 1.5).all()
    if not good or (rest != np.diag([0.0, 0.0, 1.0])).any():
        raise GeometryError(
            f"{where}.K is {_short(values['K'])}, which no camera with pictures of {size[0]}x{size[1]} has; "
            "give [[fx, 0, cx], [0, fy, cy], [0, 0, 1]] in their pixels"
        )
    given = values["distortion"]
    if not isinstance(given, list) or len(given) not in _COEFFICIENTS:
        raise GeometryError(
            f"{where}.distortion is {_short(given)}; give a list of 0, 4, 5 or 8 of OpenCV's coefficients, "
            "[] for none"
        )
    distortion = _numbers(given, (len(given),), f"{where}.distortion") if given else np.zeros(0)
    if (np.abs(distortion) > 1e3).any():
        raise GeometryError(f"{where}.distortion is {_short(given)}; no coefficient is larger than 1000")
    return Lens(matrix, distortion)


def _rotation(value: Any, where: str) -> Array:
    matrix = _numbers(value, (3, 3), where)
    with np.errstate(over="ignore", invalid="ignore"):
        error = np.abs(matrix.T @ matrix - np.eye(3)).max()
    if not error < _ROTATION_ERROR or np.linalg.det(matrix) < 0:
        raise GeometryError(
            f"{where} is {_short(value)}, no rotation; give the matrix from the left to the right camera's "
            "axes, without scale or mirroring"
        )
    u, _, v = np.linalg.svd(matrix)
    return np.asarray(u @ v)


def _short(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 120 else f"{text[:117]}..."
