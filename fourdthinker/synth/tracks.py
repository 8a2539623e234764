"""What synthesis knows of a clip's geometry: the camera's path, the objects' paths, and moves.

Camera axes are OpenCV's: x to the right, y down, z forward. Poses are camera-to-world. Lengths are metres
where `metric` is true; else the unit is the median depth of the scene, or unknown where a camera is not
`scaled`.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from fourdthinker.errors import GeometryError

Array = NDArray[np.float64]

CAMERA_MOVES = (
    "dolly in",
    "dolly out",
    "truck left",
    "truck right",
    "pedestal up",
    "pedestal down",
    "pan left",
    "pan right",
    "tilt up",
    "tilt down",
    "roll clockwise",
    "roll counter-clockwise",
)
STATIC = "static"
LATERAL_DIRECTIONS = ("right", "right-up", "up", "left-up", "left", "left-down", "down", "right-down")
OBJECT_DIRECTIONS = (*LATERAL_DIRECTIONS, "toward the camera", "away from the camera")
STATIONARY = "stationary"
SPEED_PROFILES = (
    "constant speed",
    "speeding up",
    "slowing down",
    "first speeding up, then slowing down",
    "first slowing down, then speeding up",
    "varying speed",
)
REACH = 0.5  # seconds to the nearest sample of a track, up to which something is known between samples
_ROTATION_ERROR = 1e-3  # largest entry of RᵀR − 1; poses in text files have few digits


@dataclass(frozen=True, eq=False)
class CameraTrack:
    """The camera's path.

    Attributes:
        times: [T] float64, seconds, increasing.
        poses: [T, 4, 4] float64, camera-to-world.
        intrinsics: [T, 3, 3] float64, in pixels of `size` from the picture's corner (the first pixel's middle
            is 0.5), or None.
        size: width and height of the pictures that `intrinsics` are for, or None.
        metric: whether lengths are metres.
        scaled: whether they have a unit that is known: metres, or the median depth of the scene. Of a track
            without one, translations have no label.
        confidence: [T] float64, 0 (the pose is a guess) to 1. Empty when made: 1 throughout.
        source: where the poses are from, such as "spatialvid".
    """

    times: Array
    poses: Array
    intrinsics: Array | None = None
    size: tuple[int, int] | None = None
    metric: bool = False
    confidence: Array = field(default_factory=lambda: np.ones(0))
    source: str = ""
    scaled: bool = True

    def __post_init__(self) -> None:
        times = _times(self.times, self.source)
        poses = _array(self.poses, (len(times), 4, 4), "poses", self.source)
        rotation = poses[:, :3, :3]
        error = np.abs(rotation.transpose(0, 2, 1) @ rotation - np.eye(3)).max(axis=(1, 2))
        flat = (poses[:, 3] != [0, 0, 0, 1]).any(axis=1)
        wrong = (error > _ROTATION_ERROR) | (np.linalg.det(rotation) < 0) | flat
        if wrong.any():
            raise GeometryError(
                f"{self.source or 'camera track'}: pose {int(wrong.argmax())} is no rigid motion (rotation, "
                "translation, last row 0 0 0 1); give camera-to-world matrices without scale or mirroring"
            )
        if (self.intrinsics is None) != (self.size is None):
            raise GeometryError(
                f"{self.source or 'camera track'}: intrinsics are pixels of a picture; give both "
                "intrinsics and size, or neither"
            )
        intrinsics = self.intrinsics
        if intrinsics is not None and self.size is not None:
            intrinsics = np.broadcast_to(np.asarray(intrinsics, np.float64), (len(times), 3, 3))
            intrinsics = _array(intrinsics, (len(times), 3, 3), "intrinsics", self.source)
            _check_intrinsics(intrinsics, self.size, self.source)
        object.__setattr__(self, "times", times)
        object.__setattr__(self, "poses", poses)
        object.__setattr__(self, "intrinsics", intrinsics)
        object.__setattr__(self, "confidence", _confidence(self.confidence, len(times), self.source))

    @property
    def centres(self) -> Array:
        """[T, 3], where the camera is in the world."""
        return self.poses[:, :3, 3]

    @property
    def rotations(self) -> Array:
        """[T, 3, 3], camera to world."""
        return self.poses[:, :3, :3]

    def camera_points(self, points: Array) -> Array:
        """World points [T, 3], one for each pose, in that pose's camera axes."""
        return np.einsum("tji,tj->ti", self.rotations, points - self.centres)

    def project(self, points: Array) -> Array:
        """Pixels x and y, and depth, of world points.

        Args:
            points: [T, 3], one for each pose.

        Returns:
            [T, 3]: x and y in pixels of `size`, depth along the optical axis.

        Raises:
            GeometryError: the track has no intrinsics.
        """
        if self.intrinsics is None:
            raise GeometryError(
                f"{self.source or 'camera track'}: without intrinsics nothing is projected; give them"
            )
        local = self.camera_points(points)
        pixel = np.einsum("tij,tj->ti", self.intrinsics, local / np.maximum(local[:, 2:], 1e-9))
        return np.concatenate([pixel[:, :2], local[:, 2:]], axis=1)

    def resampled(self, times: Array) -> CameraTrack:
        """The track at other times within its own: linear positions, rotations along the shortest arc.

        Args:
            times: [N] seconds, increasing; those outside the track get its first or last pose.

        Returns:
            A track of N poses, with a confidence of 0 where the nearest pose is more than REACH seconds away.
        """
        times = np.asarray(times, np.float64)
        left, share = _between(self.times, np.clip(times, self.times[0], self.times[-1]))
        right = np.minimum(left + 1, len(self.times) - 1)
        poses = np.tile(np.eye(4), (len(times), 1, 1))
        step = rotation_vectors(self.rotations[left].transpose(0, 2, 1) @ self.rotations[right])
        poses[:, :3, :3] = self.rotations[left] @ rotations_of(step * share[:, None])
        poses[:, :3, 3] = _mixed(self.centres, left, right, share)
        given = self.intrinsics
        apart = np.minimum(np.abs(times - self.times[left]), np.abs(times - self.times[right]))
        sure = np.minimum(self.confidence[left], self.confidence[right])
        return replace(
            self,
            times=times,
            poses=poses,
            intrinsics=None if given is None else _mixed(given, left, right, share),
            confidence=np.where(apart <= REACH + 1e-6, sure, 0.0),
        )


@dataclass(frozen=True, eq=False)
class ObjectTrack:
    """An object's path.

    Attributes:
        name: as questions call it.
        times: [T] float64, seconds, increasing.
        positions: [T, 3] float64, of its centre in the world of the camera's track.
        metric: whether lengths are metres.
        confidence: [T] float64, 0 to 1; 0 where it is not seen and the position is a guess. Empty when made:
            1 throughout.
        heading: [T, 3] float64, unit vectors in the world to where its front points, or None.
        source: where the positions are from.
        boxes: [T, 4] float64, fractions of width and height: left, top, right, bottom; or None.
        masks: a COCO run-length code {"size": [height, width], "counts": ...} or None for each time; or None.
        otherwise: [T, 3] float64, positions by another measure of its distance, or None where there is none.
            Its distance is told only where both agree about its change.
    """

    name: str
    times: Array
    positions: Array
    metric: bool = False
    confidence: Array = field(default_factory=lambda: np.ones(0))
    heading: Array | None = None
    source: str = ""
    boxes: Array | None = None
    masks: tuple[Mapping[str, Any] | None, ...] | None = None
    otherwise: Array | None = None

    def __post_init__(self) -> None:
        if not self.name:
            raise GeometryError("an object track has an empty name; name the object")
        times = _times(self.times, self.name)
        count = len(times)
        object.__setattr__(self, "times", times)
        object.__setattr__(self, "positions", _array(self.positions, (count, 3), "positions", self.name))
        object.__setattr__(self, "confidence", _confidence(self.confidence, count, self.name))
        if self.otherwise is not None:
            object.__setattr__(self, "otherwise", _array(self.otherwise, (count, 3), "otherwise", self.name))
        if self.heading is not None:
            heading = _array(self.heading, (count, 3), "heading", self.name)
            if (np.abs(np.linalg.norm(heading, axis=1) - 1) > 1e-3).any():
                raise GeometryError(
                    f"{self.name}: heading holds a vector whose length is not 1; normalise it"
                )
            object.__setattr__(self, "heading", heading)
        if self.boxes is not None:
            boxes = _array(self.boxes, (count, 4), "boxes", self.name)
            if (boxes < 0).any() or (boxes > 1).any() or (boxes[:, :2] > boxes[:, 2:]).any():
                raise GeometryError(
                    f"{self.name}: boxes are left, top, right, bottom in fractions of width and height, "
                    "0 to 1; divide pixels by the size of the picture"
                )
            object.__setattr__(self, "boxes", boxes)
        if self.masks is not None:
            object.__setattr__(self, "masks", tuple(self.masks))
            if len(self.masks) != count:
                raise GeometryError(
                    f"{self.name}: {len(self.masks)} masks for {count} times; give one for each"
                )

    def readings(self) -> tuple[ObjectTrack, ...]:
        """The track by each measure of its distance: one or two."""
        if self.otherwise is None:
            return (self,)
        first = replace(self, otherwise=None)
        return first, replace(first, positions=self.otherwise)

    def positions_in(self, times: Array) -> Array:
        """[N, 3], the positions at times within the track, interpolated; the first or last one outside it."""
        left, share = _between(self.times, np.clip(times, self.times[0], self.times[-1]))
        return _mixed(self.positions, left, np.minimum(left + 1, len(self.times) - 1), share)


def with_article(name: str) -> str:
    """A name as texts call it.

    Args:
        name: of an object.

    Returns:
        "the car" of "car"; "The car" and "the car" as they are.
    """
    return name if name.lower().startswith("the ") else f"the {name}"


def plain_name(name: str) -> str:
    """A name without case, article and marks: "The red-ball" and "red ball" are one to who reads them.

    Args:
        name: of an object.

    Returns:
        Words with a space between; the name as it is where it has none.
    """
    words = re.findall(r"[^\W_]+", name.lower())
    return " ".join(words[1:] if words[:1] == ["the"] else words) or name


@dataclass(frozen=True)
class Move:
    """What the camera or an object does from `start` to `end`, in seconds.

    `name` is one of CAMERA_MOVES or STATIC for a camera, of OBJECT_DIRECTIONS or STATIONARY for an object.
    Moves of a camera that overlap are concurrent.
    """

    kind: Literal["camera", "object"]
    name: str
    start: float
    end: float

    def __post_init__(self) -> None:
        names = (*CAMERA_MOVES, STATIC) if self.kind == "camera" else (*OBJECT_DIRECTIONS, STATIONARY)
        if self.name not in names:
            raise GeometryError(f"unknown {self.kind} move {self.name!r}; use one of {', '.join(names)}")
        if not self.end > self.start:
            raise GeometryError(
                f"{self.name}: ends at {self.end} s and starts at {self.start} s; end it later"
            )


def rotation_vectors(rotations: Array) -> Array:
    """Axis times angle of rotations.

    Args:
        rotations: [..., 3, 3].

    Returns:
        [..., 3], radians.
    """
    skew = np.stack(
        [
            rotations[..., 2, 1] - rotations[..., 1, 2],
            rotations[..., 0, 2] - rotations[..., 2, 0],
            rotations[..., 1, 0] - rotations[..., 0, 1],
        ],
        axis=-1,
    )
    twice_sine = np.linalg.norm(skew, axis=-1)
    angle = np.arctan2(twice_sine, np.trace(rotations, axis1=-2, axis2=-1) - 1)
    # Near half a turn the sine vanishes; the axis is then a column of R + 1.
    column = rotations + np.eye(3)
    largest = np.linalg.norm(column, axis=-2).argmax(axis=-1)
    axis = np.take_along_axis(column, largest[..., None, None], axis=-1)[..., 0]
    axis /= np.linalg.norm(axis, axis=-1, keepdims=True)
    axis *= np.where((axis * skew).sum(-1, keepdims=True) < 0, -1.0, 1.0)
    half_turn = (twice_sine < 1e-6) & (angle > 1)
    usual = skew / np.maximum(twice_sine, 1e-12)[..., None]
    return np.where(half_turn[..., None], axis, usual) * angle[..., None]


def rotations_of(vectors: Array) -> Array:
    """Rotations by axis times angle.

    Args:
        vectors: [..., 3], radians.

    Returns:
        [..., 3, 3].
    """
    angle = np.linalg.norm(vectors, axis=-1)[..., None, None]
    unit = vectors / np.maximum(np.linalg.norm(vectors, axis=-1, keepdims=True), 1e-300)
    cross = np.zeros((*vectors.shape, 3))
    cross[..., 2, 1], cross[..., 0, 2], cross[..., 1, 0] = unit[..., 0], unit[..., 1], unit[..., 2]
    cross -= np.swapaxes(cross, -1, -2)
    return np.eye(3) + np.sin(angle) * cross + (1 - np.cos(angle)) * (cross @ cross)


def _array(value: Any, shape: tuple[int, ...], what: str, source: str) -> Array:
    array = np.array(value, np.float64)
    if array.shape != shape:
        raise GeometryError(
            f"{source or 'track'}: {what} have the shape {list(array.shape)}, and {shape[0]} times ask for "
            f"{list(shape)}; give one for each frame"
        )
    if not np.isfinite(array).all():
        index = int(np.argwhere(~np.isfinite(array))[0][0])
        raise GeometryError(f"{source or 'track'}: {what}[{index}] is not finite; leave that frame out")
    return array


def _times(value: Any, source: str) -> Array:
    times = np.array(value, np.float64)
    if times.ndim != 1 or not len(times):
        raise GeometryError(
            f"{source or 'track'}: times have the shape {list(times.shape)}; give seconds, one for each frame"
        )
    if not np.isfinite(times).all() or (np.diff(times) <= 0).any():
        raise GeometryError(f"{source or 'track'}: times do not increase; sort the frames, each time once")
    return times


def _confidence(value: Any, count: int, source: str) -> Array:
    confidence = np.ones(count) if np.size(value) == 0 else _array(value, (count,), "confidence", source)
    if (confidence < 0).any() or (confidence > 1).any():
        raise GeometryError(f"{source or 'track'}: confidence is 0 to 1, and holds {confidence.max():g}")
    return confidence


def _check_intrinsics(intrinsics: Array, size: tuple[int, int], source: str) -> None:
    """Focal lengths that a lens can have, and an optical axis that passes through the picture."""
    width, height = size
    if width < 1 or height < 1:
        raise GeometryError(f"{source or 'camera track'}: size {width}x{height}; give width and height")
    focal = intrinsics[:, [0, 1], [0, 1]] / max(width, height)
    centre = intrinsics[:, :2, 2] / [width, height]
    bad = ((focal < 0.1) | (focal > 30)).any(axis=1) | ((centre < -0.5) | (centre > 1.5)).any(axis=1)
    if bad.any():
        index = int(bad.argmax())
        values = ", ".join(
            f"{v:g}"
            for v in (*intrinsics[index, [0, 1], [0, 1]], intrinsics[index, 0, 2], intrinsics[index, 1, 2])
        )
        raise GeometryError(
            f"{source or 'camera track'}: fx, fy, cx, cy = {values} cannot be for pictures of "
            f"{width}x{height} pixels; scale the intrinsics to these pictures"
        )


def _between(known: Array, times: Array) -> tuple[NDArray[np.int64], Array]:
    """Index of the sample before each time, and the share of the way to the next one."""
    left = np.clip(np.searchsorted(known, times, side="right") - 1, 0, max(len(known) - 2, 0))
    step = known[np.minimum(left + 1, len(known) - 1)] - known[left]
    return left, np.where(step > 0, (times - known[left]) / np.where(step > 0, step, 1.0), 0.0)


def _mixed(values: Array, left: NDArray[np.int64], right: NDArray[np.int64], share: Array) -> Array:
    weight = share.reshape(-1, *(1,) * (values.ndim - 1))
    return values[left] * (1 - weight) + values[right] * weight
